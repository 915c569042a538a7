//! The parts of the tests' common folder that the targets need.

#![allow(dead_code, unreachable_pub, reason = "the targets use a part of it")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a target fails by panicking")]

#[path = "../common/fleet.rs"]
pub mod fleet;
#[path = "../common/model.rs"]
pub mod model;
#[path = "../common/pipes.rs"]
pub mod pipes;
#[path = "../common/world.rs"]
pub mod world;
