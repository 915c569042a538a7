//! Real processes under load: weights, outages, bad health, broken configurations, new geo data, a hundred reloads. No GET fails in
//! any of them. The same tests over both movers of bytes.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]
#![allow(clippy::duplicate_mod, reason = "one suite, two movers")]

mod common;

#[path = "outage/suite.rs"]
mod native;
#[path = "outage/suite.rs"]
mod pingora;

/// One at a time, whoever the mover is: each of these tests runs five processes, and some hold meridian to a time.
static STAGE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
