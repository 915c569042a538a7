//! # meridian
//!
//! Each HTTP request to the nearest healthy data center. This page is the map.

#![deny(unsafe_code)]

pub mod admin;
pub mod config;
pub mod disk;
pub mod geo;
pub mod load;
pub mod notify;
pub mod probe;
pub mod resolve;
pub mod state;
pub mod steering;
pub mod telemetry;
pub mod watch;
