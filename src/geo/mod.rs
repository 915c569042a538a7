//! From bytes to a place: whose address is this, and what is known of where it is?
//!
//! The problem: every request asks where its client is, so the answer must cost tens of nanoseconds,
//! while the data comes in databases of millions of networks and several schemas. The choice: read
//! databases once, off the request path, into one flat table (`Atlas`) from address to `PlaceId`.
//! The choice refused: a database look-up and decode per request (ten times slower), and orders baked into the
//! table (a topology change would then read every database again).
//!
//! This module must not know regions, services, files, sockets or clocks: bytes arrive as arguments.

pub mod address;
pub mod atlas;
pub mod builtin;
pub mod database;
pub mod geofeed;
pub mod location;
pub mod tables;

pub use address::{Canonical, Prefix};
pub use atlas::{Atlas, Located, PlaceId};
pub use location::{Area, Continent, Country, Place, Point, Source, Subdivision};
