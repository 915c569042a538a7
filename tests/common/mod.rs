//! What several tests share. Each test binary uses its part of it.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses another part")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests fail by panicking and own a clock")]

pub mod authority;
pub mod dice;
pub mod fleet;
pub mod harness;
pub mod http;
pub mod http2;
pub mod lane;
pub mod model;
pub mod pebble;
pub mod pipes;
pub mod process;
pub mod world;
