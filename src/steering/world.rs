//! The slow door: changes in, events and snapshots out. One writer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::steering::snapshot::{EndpointId, PoolState, Snapshot, View};

/// Milliseconds of the writer's monotonic clock, from any origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

/// Something the world learned.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new configuration or new geo data, compiled aside.
    View(View),
    /// A host name now stands for these addresses (all pools that name it).
    Resolved {
        /// Lower case, as in the configuration.
        host: String,
        /// At least one; a failed look-up keeps the last set and is no change.
        addresses: Vec<IpAddr>,
    },
    /// A probe ended.
    Probed {
        /// Whose.
        endpoint: EndpointId,
        /// How.
        result: ProbeResult,
    },
    /// Time went by: hold, ramp and slow start move.
    Tick,
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// As it should.
    Pass,
    /// Why not, in a few words.
    Fail(String),
}

/// Something that happened, worth a line in the log and a count.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An endpoint got a verdict, or another one.
    Endpoint {
        /// Service name.
        service: Arc<str>,
        /// Region name.
        region: Arc<str>,
        /// Address.
        address: SocketAddr,
        /// Whether it is up now.
        up: bool,
        /// Whether this is its first verdict.
        first: bool,
        /// Why, in a few words.
        cause: String,
    },
    /// A region's pool changed its state for a service.
    Region {
        /// Service name.
        service: Arc<str>,
        /// Region name.
        region: Arc<str>,
        /// Before.
        from: PoolState,
        /// Now.
        to: PoolState,
    },
    /// A service began or ceased to have no region that is up.
    Panic {
        /// Service name.
        service: Arc<str>,
        /// Whether it began.
        on: bool,
    },
    /// A view was published.
    Published {
        /// Its generation.
        generation: u64,
    },
}

/// The state of everything, owned by the one writer.
#[derive(Debug)]
pub struct World {}

impl World {
    /// A world of which nothing was observed yet; the generation is 1.
    pub fn new(_view: View, _now: Now) -> World {
        todo!()
    }

    /// Applies one change; returns what happened. The snapshot is published by the caller when [`World::snapshot`] differs.
    pub fn apply(&mut self, _change: Change, _now: Now) -> Vec<Event> {
        todo!()
    }

    /// The view of the world now; the same `Arc` until something in it changes.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        todo!()
    }

    /// How long to wait before the next probe of `endpoint` (without jitter); `None` when it is gone or not probed.
    pub fn next_probe(&self, _endpoint: EndpointId) -> Option<Duration> {
        todo!()
    }

    /// Whether every probed endpoint has had its first probe result (endpoints without addresses do not wait).
    pub fn first_round_done(&self) -> bool {
        todo!()
    }
}
