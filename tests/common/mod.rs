//! What several tests share. Each test binary uses its part of it.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses another part")]

pub mod dice;
pub mod fleet;
pub mod harness;
pub mod http;
pub mod process;
pub mod world;
