//! Requests through real sockets: what is forwarded, what is tried again, what failures look like, and that nothing leaks. The same tests
//! over both movers of bytes.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]
#![allow(clippy::duplicate_mod, reason = "one suite, two movers")]

mod common;

#[path = "proxy/suite.rs"]
mod native;
#[path = "proxy/suite.rs"]
mod pingora;
