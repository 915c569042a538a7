//! What a region carries now, and the limit that nobody passes.
//!
//! Those who move bytes count here, one atomic for each request that comes or goes; the one writer looks from time to time and draws its
//! conclusions ([`shed`](super::shed)). The limit is the exception: it holds at every moment and whoever asks, because a request is only counted in
//! if there is room for it, in one step. So it never depends on how old an average is.
//!
//! A rate is bounded by the generic cell rate algorithm (ITU-T I.371, a leaky bucket that is one number): each request moves the moment at which
//! the region is through with all of them, and one is let in while that moment is near enough.
//!
//! Must not know clocks: moments are arguments.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::steering::fleet::{Capacity, Unit};

/// How far ahead of its rate a region may be let run, in nanoseconds: requests do not come evenly.
const BURST: u64 = 100_000_000;

const SECOND: u64 = 1_000_000_000;

/// Counters of one region, shared by every snapshot that holds it; kept over reloads.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU32,
    /// Requests that ever came while there was a capacity. Wraps.
    entered: AtomicU32,
    /// When a region that is bound by a rate is through with what it was given, in nanoseconds.
    through: AtomicU64,
}

impl Load {
    /// Requests that are at this region now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Requests that ever came to it while it had a capacity. Wraps.
    pub fn entered(&self) -> u32 {
        self.entered.load(Relaxed)
    }

    /// Counts a request in, at a region that has no capacity: how many came there is not asked. Every call is paired with one [`Load::leave`].
    pub fn enter(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Counts a request in, unless the region is at its limit at `now`, in nanoseconds from any origin that is always the same. Every success is
    /// paired with one [`Load::leave`].
    pub fn try_enter(&self, capacity: &Capacity, now: impl FnOnce() -> u64) -> bool {
        let room = match capacity.unit {
            // Not counted in to see whether there is room: then others might see none.
            Unit::InFlight => {
                let next = |before: u32| (before < capacity.limit).then_some(before + 1);
                self.in_flight.fetch_update(Relaxed, Relaxed, next).is_ok()
            }
            Unit::Rps => {
                let now = now();
                let next = |through: u64| has_room(through, capacity, now).then(|| through.max(now) + each(capacity));
                let room = self.through.fetch_update(Relaxed, Relaxed, next).is_ok();
                if room {
                    self.in_flight.fetch_add(1, Relaxed);
                }
                room
            }
        };
        if room {
            self.entered.fetch_add(1, Relaxed);
        }
        room
    }

    /// Whether [`Load::try_enter`] would fail.
    pub fn is_full(&self, capacity: &Capacity, now: impl FnOnce() -> u64) -> bool {
        match capacity.unit {
            Unit::InFlight => self.in_flight() >= capacity.limit,
            Unit::Rps => !has_room(self.through.load(Relaxed), capacity, now()),
        }
    }

    /// Counts a request out.
    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Of a request that was counted in by [`Load::try_enter`] nothing was sent: it takes nothing of the rate. It is still to be counted out.
    pub fn refund(&self, capacity: &Capacity) {
        self.entered.fetch_sub(1, Relaxed);
        if capacity.unit == Unit::Rps {
            let before = |through: u64| Some(through.saturating_sub(each(capacity)));
            // It cannot fail.
            let _ = self.through.fetch_update(Relaxed, Relaxed, before);
        }
    }
}

/// Nanoseconds that a request takes of a region's rate.
fn each(capacity: &Capacity) -> u64 {
    SECOND / u64::from(capacity.limit.max(1))
}

fn has_room(through: u64, capacity: &Capacity, now: u64) -> bool {
    // One request may always be under way, however few there may be in a second.
    through.saturating_sub(now) <= BURST.saturating_sub(each(capacity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::thread;

    const fn capacity(limit: u32, unit: Unit) -> Capacity {
        Capacity { target: limit, limit, unit }
    }

    #[test]
    fn a_limit_holds_whoever_asks() {
        let (load, bound) = (Load::default(), capacity(7, Unit::InFlight));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if load.try_enter(&bound, || 0) {
                            assert!(load.in_flight() <= 7);
                            load.leave();
                        }
                    }
                });
            }
        });
        assert_eq!(load.in_flight(), 0);
        let taken = (0..20).filter(|_| load.try_enter(&bound, || 0)).count();
        assert_eq!((taken, load.is_full(&bound, || 0)), (7, true));
        load.leave();
        assert!(!load.is_full(&bound, || 0) && load.try_enter(&bound, || 0));
    }

    proptest! {
        /// In no time does more come than the rate allows for it, but for the burst; and what comes as the rate allows is never refused.
        #[test]
        fn a_rate_holds_over_every_window(limit in 1_u32..5_000, gaps in proptest::collection::vec(0_u64..3_000_000, 1..600)) {
            let (load, bound) = (Load::default(), capacity(limit, Unit::Rps));
            let (mut now, mut taken) = (SECOND, Vec::new());
            for gap in gaps {
                now += gap;
                let full = load.is_full(&bound, || now);
                prop_assert_eq!(load.try_enter(&bound, || now), !full);
                if !full {
                    taken.push(now);
                }
            }
            for (from, first) in taken.iter().enumerate() {
                for (to, last) in taken.iter().enumerate().skip(from) {
                    let window = last - first + BURST.max(each(&bound));
                    prop_assert!((to - from) as u64 * each(&bound) <= window);
                }
            }
            // What is given back can be had again, at once.
            let (gave, at) = (Load::default(), 7 * SECOND);
            for _ in 0..1_000 {
                prop_assert!(gave.try_enter(&bound, || at));
                gave.refund(&bound);
                gave.leave();
            }
            prop_assert_eq!((gave.entered(), gave.in_flight()), (0, 0));
            let (calm, mut at) = (Load::default(), SECOND);
            for _ in 0..200 {
                prop_assert!(calm.try_enter(&bound, || at));
                at += each(&bound);
            }
        }
    }
}
