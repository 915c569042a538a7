//! Fuzzes affinity cookies.

#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, unused_imports, reason = "a target makes one of the checks")]
mod checks;
#[path = "../common.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::cookie(data));
