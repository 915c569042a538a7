//! The core: for this client, which endpoint?
//!
//! Two doors, both pure. The slow one, [`World::apply`], takes changes (configuration, geo data, probe results, time) one at a time from
//! the one writer and publishes snapshots. The fast one, [`Snapshot::walk`], is called by many readers at once: proxy,
//! `explain`, tests and benches. They meet only in the immutable [`Snapshot`] and in the [`meter`] counters beneath it.
//!
//! Nothing here may know files, sockets, clocks, randomness, tasks or globals: time arrives as [`Now`], chance as a number in the
//! [`Query`].

pub mod accept;
pub mod assume;
pub mod balance;
pub mod brake;
pub mod clients;
pub mod decision;
mod drains;
pub mod ejection;
pub(crate) mod endpoints;
pub mod event;
pub mod explain;
pub mod fleet;
pub mod handover;
pub mod health;
pub mod ids;
pub mod load;
pub mod meter;
pub mod networks;
pub mod order;
pub mod outlier;
pub mod overrides;
pub mod pool_health;
pub(crate) mod pools;
pub mod route;
pub mod rules;
pub mod select;
mod shed;
pub mod snapshot;
pub mod stall;
pub mod trip;
pub mod walk;
pub mod world;

pub use decision::{PassReason, Refusal, Step, Take, TakeReason};
pub use event::Event;
pub use fleet::Fleet;
pub use handover::Handover;
pub use ids::{PoolId, RegionId, RegionSet, ServiceId};
pub use overrides::{Objection, Override, Overrides, Target, Word};
pub use snapshot::{Snapshot, View};
pub use walk::{Avoid, Query, Walk};
pub use world::{Change, Now, World};
