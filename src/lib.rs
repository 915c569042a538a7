//! # meridian
//!
//! Each HTTP request to the nearest healthy data center. This page is the map.

#![deny(unsafe_code)]

pub mod config;
pub mod disk;
pub mod geo;
pub mod listen;
pub mod origin;
pub mod proxy;
pub mod state;
pub mod steering;
pub mod telemetry;
