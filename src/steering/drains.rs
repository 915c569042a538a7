//! Since when regions drain: how long affinity and streams may still finish there.
//!
//! Kept by name, so that a reload that moves regions around begins no drain anew. A region that drains when the process starts drains
//! since then: when that was asked for is written nowhere.
//!
//! Must not know who asks for a drain, only that one is on.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::steering::fleet::Fleet;
use crate::steering::ids::RegionSet;
use crate::steering::world::Now;

/// Since when which regions drain.
#[derive(Debug, Default)]
pub(super) struct Drains {
    since: HashMap<String, Now>,
}

impl Drains {
    /// Takes note of the regions that drain now: those that did not before begin, those that no longer do are forgotten.
    pub(super) fn follow<'a>(&mut self, draining: impl Iterator<Item = &'a str>, now: Now) {
        let before = std::mem::take(&mut self.since);
        self.since = draining.map(|name| (name.to_owned(), before.get(name).copied().unwrap_or(now))).collect();
    }

    /// Since when which regions drain, by name.
    pub(super) fn all(&self) -> BTreeMap<String, Now> {
        self.since.iter().map(|(name, since)| (name.clone(), *since)).collect()
    }

    /// Another process has seen these begin. They are followed from the next [`Drains::follow`] on.
    pub(super) fn recall(&mut self, since: BTreeMap<String, Now>) {
        self.since.extend(since);
    }

    /// Those of `drained` whose drain began less than `timeout` ago.
    pub(super) fn finishing(&self, fleet: &Fleet, drained: RegionSet, timeout: Duration, now: Now) -> RegionSet {
        let since = |id| self.since.get(&fleet.region(id).name);
        drained.iter().filter(|id| since(*id).is_some_and(|since| now.since(*since) < timeout)).collect()
    }
}
