//! The fast door: from a question to steps, take this endpoint or pass this region and why.

use crate::geo::Canonical;
use crate::steering::decision::{Refusal, Step, Take};
use crate::steering::fleet::ServiceId;
use crate::steering::snapshot::Snapshot;

/// One question.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Who asks.
    pub client: Canonical,
    /// For what.
    pub service: ServiceId,
    /// A random number, used for the endpoint choice only (and for the draw with `draw = "request"`).
    pub chance: u64,
}

/// How an attempt failed, as far as the walk minds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Avoid {
    /// This endpoint: another one in the same region may do.
    Endpoint,
    /// The whole region first (connect error or timeout).
    Region,
}

/// A walk in progress: plain state, no borrow, no heap. It must be continued with the snapshot that began it.
#[derive(Clone, Debug)]
pub struct Walk {}

impl Walk {
    /// The next step; `None` when nothing is left (see [`Walk::refusal`]).
    pub fn step(&mut self, _snapshot: &Snapshot) -> Option<Step> {
        todo!()
    }

    /// The next endpoint to take, or why there is none.
    pub fn take(&mut self, _snapshot: &Snapshot) -> Result<Take, Refusal> {
        todo!()
    }

    /// Says that what was taken last failed. The next take is elsewhere as far as `avoid` says, untried endpoints first; when none is
    /// left, a tried one once more.
    pub fn failed(&mut self, _avoid: Avoid) {
        todo!()
    }

    /// Why there is nothing (more) to take.
    pub fn refusal(&self) -> Refusal {
        todo!()
    }
}

impl Snapshot {
    /// Begins a walk for `query`. Pure: no clock, lock, I/O or allocation.
    pub fn walk(&self, _query: &Query) -> Walk {
        todo!()
    }
}
