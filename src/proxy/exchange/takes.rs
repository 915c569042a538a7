//! Which endpoint a request takes along its walk, and that it counts there: where there is room, and rather where nobody failed just now.
//!
//! Must not know of: what the request is, and how often it was tried.

use std::sync::Arc;
use std::time::Instant;

use crate::steering::fleet::Capacity;
use crate::steering::meter::Meter;
use crate::steering::walk::MAX_SPARED;
use crate::steering::{Avoid, Refusal, RegionId, Snapshot, Take, Walk};

/// A request counted in at an endpoint and its region.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) meter: Arc<Meter>,
    /// The capacity that it was counted in by, until its attempt is made: if it never is, nothing was taken of a rate.
    pub(super) unused: Option<Capacity>,
    /// Since when nothing but the answer is waited for, until it begins.
    pub(super) asked: Option<Instant>,
}

impl InFlight {
    /// Counts in, if the region has room at `now` (of [`Clock::nanos`](crate::state::Clock::nanos)), or none is needed.
    pub(super) fn enter(
        snapshot: &Snapshot,
        take: Take,
        needs_room: bool,
        now: impl FnOnce() -> u64,
    ) -> Option<InFlight> {
        let meter = &snapshot.pool(take.pool).endpoints[usize::from(take.endpoint)].meter;
        let capacity = snapshot.fleet().region(take.region).capacity.filter(|_| needs_room);
        match &capacity {
            Some(capacity) if !meter.try_enter(capacity, now) => return None,
            Some(_) => {}
            None => meter.enter(),
        }
        Some(InFlight { meter: Arc::clone(meter), unused: capacity, asked: None })
    }
}

/// A take of the walk, from `first` on, that nothing speaks against; the walk goes on from there. `None` when there is no such take, and
/// the walk stays where it is.
pub(super) fn further(
    walk: &mut Walk,
    snapshot: &Snapshot,
    first: Take,
    against: impl Fn(Take) -> Option<Avoid>,
) -> Option<Take> {
    let (mut on, mut take) = (walk.clone(), first);
    while let Some(avoid) = against(take) {
        on.failed(snapshot, avoid);
        take = on.take(snapshot).ok()?;
    }
    *walk = on;
    Some(take)
}

/// Whether the endpoint failed others just now.
pub(super) fn in_doubt(snapshot: &Snapshot, take: Take) -> bool {
    snapshot.pool(take.pool).endpoints[usize::from(take.endpoint)].meter.in_doubt()
}

/// What a request that may be sent once only had better take instead of `first`, while that endpoint is in doubt and another one is not: those
/// that may be sent twice show soon enough what is wrong there. Regions that do not accept the client are not gone to for a doubt, and it stays
/// in the region where it was before (`stay`). `None`: `first` it is.
pub(super) fn out_of_doubt(walk: &mut Walk, snapshot: &Snapshot, first: Take, stay: Option<RegionId>) -> Option<Take> {
    // Where nobody is up, the others are no better.
    if !in_doubt(snapshot, first) || walk.panics() {
        return None;
    }
    let mut on = walk.clone();
    for spared in 1..=MAX_SPARED {
        on.failed(snapshot, if spared < MAX_SPARED { Avoid::Endpoint } else { Avoid::Region });
        let take = on.take(snapshot).ok()?;
        if !on.accepts() || (stay == Some(first.region) && take.region != first.region) {
            return None;
        }
        if !in_doubt(snapshot, take) {
            *walk = on;
            return Some(take);
        }
    }
    None
}

/// The first take of a request that may be sent once only, and the region that it left for a doubt, if it did.
#[inline(never)]
pub(super) fn with_room_out_of_doubt(
    walk: &mut Walk,
    snapshot: &Snapshot,
    stay: Option<RegionId>,
    enter: impl Fn(Take) -> Option<InFlight>,
) -> (Result<(Take, InFlight), Refusal>, Option<RegionId>) {
    let mut spared = None;
    let next = |walk: &mut Walk| {
        let first = walk.take(snapshot)?;
        let Some(instead) = out_of_doubt(walk, snapshot, first, stay) else { return Ok(first) };
        spared = Some((first.region, instead));
        Ok(instead)
    };
    let taken = with_room(walk, snapshot, next, enter);
    // Where there was no room, it may be where it was in the end.
    let left = spared.filter(|(_, instead)| taken.as_ref().is_ok_and(|(take, _)| take == instead));
    (taken, left.map(|(region, _)| region))
}

/// Of the takes that `next` finds along a walk, the first that `enter` finds room for.
pub(super) fn with_room<E>(
    walk: &mut Walk,
    snapshot: &Snapshot,
    mut next: impl FnMut(&mut Walk) -> Result<Take, E>,
    enter: impl Fn(Take) -> Option<InFlight>,
) -> Result<(Take, InFlight), E> {
    loop {
        let take = next(walk)?;
        match enter(take) {
            Some(in_flight) => return Ok((take, in_flight)),
            None => walk.had_no_room(snapshot),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.asked.is_some() {
            self.meter.gives_up();
        }
        if let Some(capacity) = &self.unused {
            self.meter.refund(capacity);
        }
        self.meter.leave();
    }
}
