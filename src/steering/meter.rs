//! Live counters of an endpoint: all that moves beneath a snapshot.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Counters of one endpoint, shared by every snapshot that holds it; kept over reloads.
#[derive(Debug, Default)]
pub struct Meter {
    in_flight: AtomicU32,
    connections: AtomicU32,
}

impl Meter {
    /// Requests that are at this endpoint now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Counts a request in. Every call is paired with one [`Meter::leave`].
    pub fn enter(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Connections to this endpoint that are open, in use or not.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Counts a connection in, unless `limit` are open (0: no limit). Every success is paired with one [`Meter::disconnect`].
    pub fn try_connect(&self, limit: u32) -> bool {
        let open = self.connections.fetch_add(1, Relaxed);
        if limit > 0 && open >= limit {
            self.connections.fetch_sub(1, Relaxed);
            return false;
        }
        true
    }

    /// Counts a connection out.
    pub fn disconnect(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Counts a request out.
    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }
}
