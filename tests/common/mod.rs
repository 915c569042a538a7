//! What several tests share. Each test binary uses its part of it.

#![allow(dead_code, reason = "every test binary uses another part")]

pub mod harness;
pub mod http;
pub mod process;
pub mod world;
