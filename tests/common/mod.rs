//! What several tests share. Each test binary uses its part of it.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses another part")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests: they may panic and look at the clock")]

pub mod dice;
pub mod fleet;
pub mod harness;
pub mod http;
pub mod process;
pub mod world;
