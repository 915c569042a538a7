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
mod builder;
pub mod builtin;
pub mod database;
pub mod geofeed;
pub mod location;
mod ranges;
mod record;
mod table;
pub mod tables;
mod tree;

pub use address::{Canonical, Prefix};
pub use atlas::{Atlas, Located, PlaceId, SourceInfo};
pub use builder::AtlasBuilder;
pub use database::DatabaseError;
pub use geofeed::GeofeedError;
pub use location::{Area, Continent, Country, HalfAngles, Place, Point, Source, Subdivision};
