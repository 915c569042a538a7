//! Live counters of an endpoint: all that moves beneath a snapshot.
//!
//! Those who move bytes count here, without a lock and without telling anybody; the one writer looks from time to time and draws its
//! conclusions (`ejection`, `outlier`, `stall`). Counters of different things may be a moment apart: nothing here is exact to the request
//! while requests are under way, and nobody needs it to be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use crate::steering::fleet::Capacity;
use crate::steering::load::Load;
use crate::steering::trip::Trips;

/// Counters of one endpoint, shared by every snapshot that holds it; kept over reloads.
#[derive(Debug, Default)]
pub struct Meter {
    /// Of the region, for all its endpoints.
    load: Arc<Load>,
    in_flight: AtomicU32,
    connections: AtomicU32,
    /// What speaks against it at this moment ([`Trouble`]).
    trouble: AtomicU32,
    /// There were too many of them in a row since the writer looked last.
    tripped: AtomicBool,
    /// Whose request failed last, while that is in doubt; 0: nobody's.
    failed_for: AtomicU32,
    /// First attempts that failed, and those among them that had no answer at all. Both wrap.
    failed: AtomicU32,
    unanswered: AtomicU32,
    /// Requests that were sent whole and of whose answer no byte came yet.
    waiting: AtomicU32,
    /// Of these, how many ever left without an answer. Wraps.
    left: AtomicU32,
    /// Reads from the endpoint that brought something. Wraps.
    heard: AtomicU32,
    first_bytes: Histogram,
    connects: Histogram,
    trips: Arc<Trips>,
}

/// What came of first attempts in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// All that ended or were answered.
    pub tried: u32,
    /// Those that failed as a gateway fails.
    pub failed: u32,
}

/// What was read of a meter's outcomes last.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutcomesRead {
    answered: u32,
    failed: u32,
    unanswered: u32,
}

/// What a meter says of requests that wait, read at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Requests that wait for the first byte of their answer.
    pub waiting: u32,
    /// How many gave up waiting, since ever. Wraps.
    pub left: u32,
    /// How often something came from the endpoint, since ever. Wraps.
    pub heard: u32,
}

impl Meter {
    /// Of an endpoint in the region whose load that is.
    pub fn new(load: &Arc<Load>) -> Meter {
        Meter { load: Arc::clone(load), ..Meter::default() }
    }

    /// Requests that are at this endpoint now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Counts a request in, at the endpoint and at its region. Every call is paired with one [`Meter::leave`].
    pub fn enter(&self) {
        self.load.enter();
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// The same, unless the region is at the limit of that capacity ([`Load::try_enter`]).
    pub fn try_enter(&self, capacity: &Capacity, now: impl FnOnce() -> u64) -> bool {
        let room = self.load.try_enter(capacity, now);
        if room {
            self.in_flight.fetch_add(1, Relaxed);
        }
        room
    }

    /// See [`Load::refund`].
    pub fn refund(&self, capacity: &Capacity) {
        self.load.refund(capacity);
    }

    /// Counts a request out.
    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.load.leave();
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

    /// An attempt failed as a gateway fails, whoever asked; `many` in a row are too many (0: never).
    pub fn failed(&self, many: u32) {
        self.fail(many, true);
    }

    /// The same where the client may be the cause, of whom `client` (not 0) tells. Returns whether it counts for more than a failure in a row:
    /// several of one client, with none of another between them, are one, so that a client cannot take endpoints from others.
    pub fn failed_for(&self, many: u32, client: u32) -> bool {
        let counts = self.failed_for.swap(client, Relaxed) != client;
        self.fail(many, counts);
        counts
    }

    fn fail(&self, many: u32, counts: bool) {
        let mut trips = false;
        let doubt = if counts { DOUBT_OF_FAILURE } else { 0 };
        self.change_trouble(|trouble| {
            let row = trouble.row.saturating_add(1);
            trips = many > 0 && u32::from(row) >= many;
            Trouble { row: if trips { 0 } else { row }, doubt: (trouble.doubt + doubt).min(DOUBT_MOST) }
        });
        if trips {
            self.tripped.store(true, Relaxed);
        }
    }

    /// An answer came that is no gateway failure.
    pub fn succeeded(&self) {
        // Mostly there is nothing to forget, and a line that is only read stays with every worker.
        if self.trouble.load(Relaxed) != 0 {
            self.change_trouble(|trouble| Trouble { row: 0, doubt: trouble.doubt.saturating_sub(DOUBT_OF_SUCCESS) });
        }
    }

    /// Whether it failed more than once just now, so that what may be sent once only had better go elsewhere.
    pub fn in_doubt(&self) -> bool {
        Trouble::from(self.trouble.load(Relaxed)).doubt >= DOUBTFUL
    }

    /// A moment went by: doubt fades.
    pub fn fade_doubt(&self) {
        if self.trouble.load(Relaxed) != 0 {
            self.change_trouble(|trouble| Trouble { doubt: trouble.doubt.saturating_sub(1), ..trouble });
        }
        // Each look would take the line from every worker, to forget nobody.
        if self.failed_for.load(Relaxed) != 0 && Trouble::from(self.trouble.load(Relaxed)).doubt == 0 {
            self.failed_for.store(0, Relaxed);
        }
    }

    /// Nothing speaks against it any more.
    pub fn forgive(&self) {
        self.trouble.store(0, Relaxed);
        self.failed_for.store(0, Relaxed);
        self.tripped.store(false, Relaxed);
    }

    fn change_trouble(&self, mut change: impl FnMut(Trouble) -> Trouble) {
        let changed = |packed| Some(change(Trouble::from(packed)).into());
        // It always has a new value, so that this never fails.
        let _ = self.trouble.fetch_update(Relaxed, Relaxed, changed);
    }

    /// A request's first attempt failed, `answered` by a status or not at all.
    pub fn first_failed(&self, answered: bool) {
        self.failed.fetch_add(1, Relaxed);
        if !answered {
            self.unanswered.fetch_add(1, Relaxed);
        }
    }

    /// What came of first attempts since it was asked last, which `read` keeps; the one who asks also lets the histograms fade.
    pub fn take_outcomes(&self, read: &mut OutcomesRead) -> Outcomes {
        let (failed, unanswered) = (self.failed.load(Relaxed), self.unanswered.load(Relaxed));
        let answered = self.first_bytes.count();
        let new_failed = failed.wrapping_sub(read.failed);
        let new_unanswered = unanswered.wrapping_sub(read.unanswered);
        let tried = answered.saturating_sub(read.answered).saturating_add(new_unanswered);
        let answered = if self.first_bytes.fade() { self.first_bytes.count() } else { answered };
        self.connects.fade();
        *read = OutcomesRead { answered, failed, unanswered };
        // Counters may be a moment apart.
        Outcomes { tried: tried.max(new_failed), failed: new_failed }
    }

    /// Whether there were too many failures in a row since this was asked last.
    pub fn take_tripped(&self) -> bool {
        self.tripped.load(Relaxed) && self.tripped.swap(false, Relaxed)
    }

    /// A request was sent whole: from here on only the endpoint is waited for. Every call is paired with one of [`Meter::answers`] and
    /// [`Meter::gives_up`].
    pub fn waits(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// The answer of a request that waited begins, after so long.
    pub fn answers(&self, after: Duration) {
        self.heard.fetch_add(1, Relaxed);
        self.waiting.fetch_sub(1, Relaxed);
        self.first_bytes.record(after);
    }

    /// A request that waited leaves without an answer.
    pub fn gives_up(&self) {
        // In this order, so that at no look more wait than there are.
        self.left.fetch_add(1, Relaxed);
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// Something came from the endpoint beside the beginning of an answer.
    pub fn heard(&self) {
        self.heard.fetch_add(1, Relaxed);
    }

    /// What waits, and whether anything came.
    pub fn waiting(&self) -> Waiting {
        Waiting { waiting: self.waiting.load(Relaxed), left: self.left.load(Relaxed), heard: self.heard.load(Relaxed) }
    }

    /// How long answers take to begin.
    pub fn first_bytes(&self) -> &Histogram {
        &self.first_bytes
    }

    /// How long connecting takes, of those who move requests.
    pub fn connects(&self) -> &Histogram {
        &self.connects
    }

    /// The same in all, of probes too.
    pub fn trips(&self) -> &Arc<Trips> {
        &self.trips
    }

    /// A connection for requests was opened, in this time.
    pub fn connected(&self, took: Duration) {
        self.connects.record(took);
        self.trips.record(took);
    }
}

/// Of an endpoint that fails: how often in a row, and a doubt that grows with each failure and fades with answers and with time.
///
/// Two failures among few requests make it doubtful: one alone says little. That lasts until some answers came without one, or
/// for two seconds at most, so that an endpoint to which nothing but POSTs go is asked again, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Trouble {
    row: u16,
    doubt: u16,
}

const DOUBT_OF_FAILURE: u16 = 16;
const DOUBT_OF_SUCCESS: u16 = 2;
const DOUBTFUL: u16 = 24;

/// It fades below [`DOUBTFUL`] in 40 looks or 20 answers.
const DOUBT_MOST: u16 = 64;

impl From<u32> for Trouble {
    fn from(packed: u32) -> Trouble {
        Trouble { row: (packed >> 16) as u16, doubt: packed as u16 }
    }
}

impl From<Trouble> for u32 {
    fn from(trouble: Trouble) -> u32 {
        u32::from(trouble.row) << 16 | u32::from(trouble.doubt)
    }
}

/// Bits of a duration's microseconds that a bucket tells apart, below the highest: four buckets for each doubling.
const FINE: u32 = 2;

/// Up to 2^36 µs, 19 hours.
const BUCKETS: usize = 36 << FINE;

/// More are halved, so that what is recent counts more.
const MANY: u32 = 8192;

/// How long something takes, in buckets of a quarter of a doubling: a quantile is at most a quarter too large.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU32; BUCKETS],
    count: AtomicU32,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: [const { AtomicU32::new(0) }; BUCKETS], count: AtomicU32::new(0) }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)].fetch_add(1, Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    /// How many it knows, of the recent past.
    pub fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// What 99 of 100 stay within, if at least `least` were counted (0 counts as 1).
    pub fn p99(&self, least: u32) -> Option<Duration> {
        let count = self.count();
        if count < least.max(1) {
            return None;
        }
        let mut above = count / 100;
        for (index, bucket) in self.buckets.iter().enumerate().rev() {
            let here = bucket.load(Relaxed);
            if here > above {
                return Some(Duration::from_micros(upper(index)));
            }
            above -= here;
        }
        None
    }

    /// Halves all counts when they are many; returns whether they were. Called by one thread; what is counted meanwhile may be lost.
    pub fn fade(&self) -> bool {
        if self.count() < MANY {
            return false;
        }
        let mut count = 0;
        for bucket in &self.buckets {
            let half = bucket.load(Relaxed) / 2;
            bucket.store(half, Relaxed);
            count += half;
        }
        self.count.store(count, Relaxed);
        true
    }
}

/// The bucket of so many microseconds.
fn bucket(micros: u64) -> usize {
    let high = micros.max(1).ilog2();
    let index = match high.checked_sub(FINE) {
        Some(shift) => ((shift + 1) << FINE) as usize + ((micros >> shift) as usize & ((1 << FINE) - 1)),
        None => micros as usize,
    };
    index.min(BUCKETS - 1)
}

/// The first number of microseconds above those of a bucket.
fn upper(index: usize) -> u64 {
    let (octave, part) = (index >> FINE, index as u64 & ((1 << FINE) - 1));
    match octave.checked_sub(1) {
        Some(shift) => ((1 << FINE) + part + 1) << shift,
        None => part + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_what_falls_into_it(micros in 0u64..1 << 34) {
            let index = bucket(micros);
            prop_assert!(micros < upper(index));
            prop_assert!(index == 0 || micros >= upper(index - 1));
            prop_assert!(upper(index) <= (micros + 1).max(micros + micros / 4 + 1));
        }
    }

    #[test]
    fn the_longest_has_a_bucket() {
        let histogram = Histogram::default();
        histogram.record(Duration::MAX);
        assert_eq!(histogram.p99(1), Some(Duration::from_micros(upper(BUCKETS - 1))));
    }

    #[test]
    fn one_in_a_hundred_is_beyond_the_99th() {
        let histogram = Histogram::default();
        assert_eq!(histogram.p99(0), None);
        (0..99).for_each(|_| histogram.record(Duration::from_micros(1000)));
        assert_eq!(histogram.p99(100), None, "too few");
        histogram.record(Duration::from_secs(2));
        let p99 = histogram.p99(100).unwrap();
        assert!(p99 > Duration::from_micros(1000) && p99 <= Duration::from_micros(1250), "{p99:?}");
        histogram.record(Duration::from_secs(2));
        assert!(histogram.p99(100).unwrap() >= Duration::from_secs(2), "two of 101 are beyond");
    }

    #[test]
    fn the_past_fades() {
        let histogram = Histogram::default();
        (0..MANY).for_each(|_| histogram.record(Duration::from_secs(1)));
        for _ in 0..20 {
            histogram.fade();
            (0..MANY).for_each(|_| histogram.record(Duration::from_millis(1)));
        }
        assert!(histogram.p99(100).unwrap() < Duration::from_millis(2));
        assert!(histogram.count() < 2 * MANY);
    }

    #[test]
    fn failures_in_a_row_trip_once() {
        let meter = Meter::default();
        (0..4).for_each(|_| meter.failed(5));
        assert!(!meter.take_tripped());
        meter.succeeded();
        (0..4).for_each(|_| meter.failed(5));
        assert!(!meter.take_tripped(), "an answer between them");
        meter.failed(5);
        meter.succeeded();
        assert!(meter.take_tripped() && !meter.take_tripped(), "told once, whatever came since");
        (0..99).for_each(|_| meter.failed(0));
        assert!(!meter.take_tripped());
    }

    #[test]
    fn two_failures_among_few_answers_are_a_doubt() {
        let meter = Meter::default();
        meter.failed(5);
        assert!(!meter.in_doubt(), "one may be chance");
        meter.succeeded();
        meter.failed(5);
        assert!(meter.in_doubt());
        (0..4).for_each(|_| meter.succeeded());
        assert!(!meter.in_doubt());
        // Far apart.
        meter.forgive();
        (0..10).for_each(|_| {
            meter.failed(5);
            (0..20).for_each(|_| meter.fade_doubt());
            assert!(!meter.in_doubt());
        });
        // However many there were, it is over soon.
        (0..100).for_each(|_| meter.failed(0));
        (0..41).for_each(|_| meter.fade_doubt());
        assert!(!meter.in_doubt());
        (0..100).for_each(|_| meter.failed(0));
        (0..21).for_each(|_| meter.succeeded());
        assert!(!meter.in_doubt());
    }

    #[test]
    fn one_client_alone_makes_no_doubt() {
        let meter = Meter::default();
        assert!(meter.failed_for(0, 7));
        (0..9).for_each(|_| assert!(!meter.failed_for(0, 7)));
        assert!(!meter.in_doubt());
        assert!(meter.failed_for(0, 8) && meter.in_doubt());
        // Later it is a failure like any other.
        (0..40).for_each(|_| meter.fade_doubt());
        assert!(meter.failed_for(0, 8));
        // It is one in a row all the same.
        let meter = Meter::default();
        (0..5).for_each(|_| {
            meter.failed_for(5, 7);
        });
        assert!(meter.take_tripped());
    }

    #[test]
    fn outcomes_are_taken_once() {
        let (meter, mut read) = (Meter::default(), OutcomesRead::default());
        for _ in 0..3 {
            for n in 0..MANY + 7 {
                meter.waits();
                meter.answers(Duration::from_millis(1));
                if n % 8 == 0 {
                    meter.first_failed(true);
                }
            }
            (0..10).for_each(|_| meter.first_failed(false));
            let failed = MANY / 8 + 1 + 10;
            assert_eq!(meter.take_outcomes(&mut read), Outcomes { tried: MANY + 17, failed });
            assert_eq!(meter.take_outcomes(&mut read), Outcomes::default());
        }
    }
}
