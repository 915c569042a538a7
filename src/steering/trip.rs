//! Round trips to a region, as far as opening connections tells, and when they are worth moving clients for.
//!
//! Probes and traffic count how long connections take to open; the writer looks once a second and keeps a moving average for each pool. What readers get of it is
//! another number, which follows only when the average has left a band around it, so that noise moves nobody. One connect that had to be sent twice says
//! nothing of the way: no second counts for more than a few times what is known.
//!
//! What was not measured for a while is not known: then distance alone counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::steering::world::Now;

/// How often the writer looks.
pub const EVERY: Duration = Duration::from_secs(1);

/// The time in which the average forgets two thirds of what it was.
const MEMORY: Duration = Duration::from_secs(15);

/// The band around what is shown: so many milliseconds, or this part of it, whichever is more.
const BAND_MS: f64 = 2.0;
const BAND: f64 = 0.2;

/// One second counts for so many times the average at most, and some milliseconds.
const OUTLIER: f64 = 3.0;
const OUTLIER_MS: f64 = 10.0;

/// Of so many first ones the least counts.
const FIRST: u32 = 3;

/// What was not measured for this long, and for this many intervals of its probes, is not known.
const STALE: Duration = Duration::from_secs(30);
const STALE_INTERVALS: u32 = 5;

/// Connects of one endpoint so far. Written by many.
#[derive(Debug, Default)]
pub struct Trips {
    micros: AtomicU64,
    count: AtomicU64,
}

impl Trips {
    /// A connection was opened.
    pub fn record(&self, took: Duration) {
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX >> 20), Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    /// Microseconds of all, and how many.
    pub fn total(&self) -> (u64, u64) {
        (self.micros.load(Relaxed), self.count.load(Relaxed))
    }
}

/// Two are the same when they count the same connects.
impl PartialEq for Trips {
    fn eq(&self, other: &Trips) -> bool {
        std::ptr::eq(self, other)
    }
}

/// The round trip to one pool, as the writer holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trip {
    average_ms: Option<f64>,
    measured: Option<Now>,
    /// Times that it was measured since it was not known.
    times: u32,
    shown_ms: Option<f64>,
}

impl Trip {
    /// Takes what was counted since the last look: microseconds in all, and connects; `interval` is that of its probes; `None`: it is
    /// down, and what was known of it stays. Returns whether what is shown changed.
    pub(crate) fn look(&mut self, (micros, count): (u64, u64), interval: Option<Duration>, now: Now) -> bool {
        if count > 0 {
            let since = self.measured.replace(now).map_or(EVERY, |measured| now.since(measured));
            let mean = micros as f64 / count as f64 / 1000.0;
            self.times = self.times.saturating_add(1);
            self.average_ms = Some(match self.average_ms {
                None => mean,
                // The first may be the one that was sent twice.
                Some(average) if self.times <= FIRST => average.min(mean),
                Some(average) => {
                    let part = 1.0 - (-since.as_secs_f64() / MEMORY.as_secs_f64()).exp();
                    average + (mean.min(average * OUTLIER + OUTLIER_MS) - average) * part
                }
            });
        }
        let is_stale = |interval| {
            let stale = STALE.max(interval * STALE_INTERVALS);
            self.measured.is_none_or(|measured| now.since(measured) > stale)
        };
        if interval.is_some_and(is_stale) {
            (self.average_ms, self.times) = (None, 0);
        }
        let before = self.shown_ms;
        self.shown_ms = match (self.average_ms, before) {
            (Some(average), Some(shown)) if (average - shown).abs() <= BAND_MS.max(shown * BAND) => Some(shown),
            (average, _) => average,
        };
        self.shown_ms != before
    }

    /// What readers get; `None`: it is not known.
    pub(crate) fn shown_ms(&self) -> Option<f64> {
        self.shown_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn second(trip: &mut Trip, at: u64, ms: f64) -> bool {
        trip.look(((ms * 1000.0) as u64, 1), Some(EVERY), Now(at * 1000))
    }

    #[test]
    fn what_is_not_measured_any_more_is_not_known() {
        let mut trip = Trip::default();
        assert!(second(&mut trip, 0, 20.0));
        assert_eq!(trip.shown_ms(), Some(20.0));
        assert!((1..=30).all(|at| !trip.look((0, 0), Some(EVERY), Now(at * 1000))));
        assert!(trip.look((0, 0), Some(EVERY), Now(31_000)));
        assert_eq!(trip.shown_ms(), None);
        assert!(second(&mut trip, 32, 50.0));
        assert_eq!(trip.shown_ms(), Some(50.0), "nothing of before counts");
        assert!(!trip.look((0, 0), None, Now(900_000)), "while it is down, it keeps its place");
    }

    #[test]
    fn a_way_that_changed_is_followed_and_one_lost_packet_is_not() {
        let mut trip = Trip::default();
        second(&mut trip, 0, 20.0);
        assert!((1..20).all(|at| !second(&mut trip, at, 20.0)));
        assert!(!second(&mut trip, 20, 1020.0), "a second packet after a second");
        let moved = (21..120).filter(|at| second(&mut trip, *at, 45.0)).count();
        let shown = trip.shown_ms().unwrap();
        assert!((36.0..46.0).contains(&shown) && (1..=5).contains(&moved), "{shown} in {moved} steps");
    }

    proptest! {
        /// Whatever the noise within a tenth around it, nobody is moved once it is known.
        #[test]
        fn noise_moves_nobody(base in 1.0..300.0_f64, noise in proptest::collection::vec(-0.1..0.1_f64, 100)) {
            let mut trip = Trip::default();
            for (at, noise) in (0..).zip(noise) {
                let changed = second(&mut trip, at, base * (1.0 + noise));
                prop_assert!(at == 0 || !changed);
            }
        }
    }
}
