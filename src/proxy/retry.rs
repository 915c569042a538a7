//! What may go again, and where: a pure judgement of what happened, and the budget that bounds it.
//!
//! Whether a request may be sent twice depends on how far the first sending came and on what the client asked, never on which
//! mover sent it. The budget keeps a failing fleet from being hit harder than a healthy one: retries are bounded to a
//! share of the requests of the last ten seconds (as Envoy's retry budgets are), apart from a few at once, so that a service with
//! little traffic can fail over at all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Method;

use crate::proxy::Outcome;
use crate::steering::meter::Histogram;
use crate::steering::{Avoid, ServiceId, Snapshot};

/// How an attempt failed before a byte of its answer was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: refused, unreachable, reset while connecting. Nothing was sent.
    NotConnected,
    /// Connecting took too long. Nothing was sent.
    ConnectTimeout,
    /// The endpoint has as many connections as it may have, or refused the request and did not look at it.
    NoRoom,
    /// A connection from the pool took no byte, or ended with the word that nobody looked at the request.
    Stale,
    /// The connection closed or broke after the request (or some of it) was sent.
    Lost {
        /// Whether the connection came from the pool, so that it may have been closing already.
        reused: bool,
    },
    /// No answer began in time.
    Silent,
    /// What came is no valid answer.
    BadAnswer,
    /// An answer with a status that the service takes elsewhere.
    Status(u16),
}

impl Failure {
    /// Whether the upstream can have seen anything of the request.
    pub fn sent(self) -> bool {
        !matches!(self, Failure::NotConnected | Failure::ConnectTimeout | Failure::NoRoom | Failure::Stale)
    }

    /// Whether it speaks against the endpoint, as a gateway failure: no connection, no answer in time, or none that is valid. That a kept
    /// connection closed does not, nor that we let no more connections be made; what a status says is judged when it comes.
    pub fn is_the_endpoints(self) -> bool {
        match self {
            Failure::NotConnected | Failure::ConnectTimeout | Failure::Silent | Failure::BadAnswer => true,
            Failure::Lost { reused } => !reused,
            Failure::NoRoom | Failure::Stale | Failure::Status(_) => false,
        }
    }

    /// What it means to the client when nothing is tried after it.
    pub fn outcome(self) -> Outcome {
        match self {
            Failure::NotConnected => Outcome::ConnectFailed,
            Failure::ConnectTimeout => Outcome::ConnectTimeout,
            Failure::NoRoom => Outcome::Full,
            Failure::Lost { .. } | Failure::Stale => Outcome::Reset,
            Failure::Silent => Outcome::FirstByteTimeout,
            Failure::BadAnswer => Outcome::BadAnswer,
            Failure::Status(_) => Outcome::Answered,
        }
    }
}

/// What may be done with a request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Sending it twice does what sending it once does: by its method, or by an idempotency key where the service allows that.
    pub idempotent: bool,
    /// All of its body that was read is still at hand.
    pub replayable: bool,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Take the next step of the walk.
    Elsewhere(Avoid),
    /// The same endpoint over a fresh connection.
    Fresh,
    /// Nothing: what happened is the client's answer.
    GiveUp(GaveUp),
}

/// Why nothing is tried after a failure. The words are a contract of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GaveUp {
    /// It was sent, and sending it twice might do twice what it does.
    NotIdempotent,
    /// More of its body was sent than is kept (`[services.*.retry] replay`).
    BodyNotKept,
    /// As many attempts were made as may be.
    Attempts,
    /// Its time is over.
    Deadline,
    /// The retry budget is used up.
    Budget,
    /// There is nowhere else to go.
    Nowhere,
    /// There is, but no room.
    Full,
    /// The client had begun to get an answer.
    Begun,
}

impl GaveUp {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            GaveUp::NotIdempotent => "not_idempotent",
            GaveUp::BodyNotKept => "body_not_kept",
            GaveUp::Attempts => "attempts",
            GaveUp::Deadline => "deadline",
            GaveUp::Budget => "budget",
            GaveUp::Nowhere => "nowhere",
            GaveUp::Full => "full",
            GaveUp::Begun => "begun",
        }
    }
}

/// What to do after `failure`. `fresh` says that this attempt was itself made over a fresh connection for that reason.
pub fn judge(failure: Failure, replay: Replay, fresh: bool) -> Verdict {
    if failure.sent() && !replay.idempotent {
        return Verdict::GiveUp(GaveUp::NotIdempotent);
    }
    if !replay.replayable {
        return Verdict::GiveUp(GaveUp::BodyNotKept);
    }
    match failure {
        Failure::Lost { reused: true } | Failure::Stale if !fresh => Verdict::Fresh,
        Failure::NotConnected | Failure::ConnectTimeout | Failure::Silent => Verdict::Elsewhere(Avoid::Region),
        Failure::Lost { .. } | Failure::Stale | Failure::NoRoom | Failure::BadAnswer | Failure::Status(_) => {
            Verdict::Elsewhere(Avoid::Endpoint)
        }
    }
}

/// Whether a method is idempotent (RFC 9110, 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// Connects of an endpoint that have to be known before its own times count.
const CONNECTS: u32 = 20;

/// No connect is slow before this: a millisecond's hiccup is no reason to open connections elsewhere.
const PATIENCE: Duration = Duration::from_millis(10);

/// How long connecting may take before another region is tried beside it: longer than 99 of 100 connects took there; a third of `connect`, its
/// bound, until enough of them are known.
pub fn race_after(connects: &Histogram, connect: Duration) -> Duration {
    connects.p99(CONNECTS).map_or(connect / 3, |p99| p99.max(PATIENCE))
}

/// Answers of an endpoint that have to be known before one is late.
const ANSWERS: u32 = 100;

/// How long a request may wait for its answer before another region is asked as well: longer than 99 of 100 did there. `None`: too little is
/// known.
pub fn hedge_after(first_bytes: &Histogram) -> Option<Duration> {
    first_bytes.p99(ANSWERS).map(|p99| p99.max(PATIENCE))
}

/// How long attempt `k` of `n` (from 1) may wait for an answer: its share of what remains, at most `first_byte`.
pub fn share(first_byte: Duration, remaining: Duration, k: u8, n: u8) -> Duration {
    let left = u32::from(n.saturating_sub(k)) + 1;
    first_byte.min(remaining / left)
}

/// Seconds over which the budget looks.
const WINDOW_S: u32 = 10;
/// Retries that may always be under way at once, and begin within a second.
const FLOOR: u32 = 3;

/// The retry budget of one service.
#[derive(Debug)]
pub struct Budget {
    origin: Instant,
    /// One bucket a second, and one more so that the oldest full second is still whole.
    seconds: [Second; WINDOW_S as usize + 1],
    under_way: AtomicU32,
}

#[derive(Debug, Default)]
struct Second {
    /// The second this bucket counts, +1; 0: none yet.
    stamp: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// A retry under way; dropped when its answer begins, or its request ends.
#[derive(Debug)]
pub struct Permit(Arc<Budget>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

impl Budget {
    /// A budget that saw nothing; `origin` is any moment not after the first one it is asked about.
    pub fn new(origin: Instant) -> Budget {
        Budget { origin, seconds: Default::default(), under_way: AtomicU32::new(0) }
    }

    /// Counts a request.
    pub fn request(&self, now: Instant) {
        self.second(now).requests.fetch_add(1, Relaxed);
    }

    /// Leave for one retry, if `percent` of the requests of the last ten seconds leaves one, or few are under way and few were begun in this
    /// second: otherwise answers that fail quickly would be asked for twice without a bound. With `percent` = 0 there is none. Counters are
    /// read without a lock: under a race a few too many or too few may pass.
    pub fn take(self: &Arc<Self>, percent: u8, now: Instant) -> Option<Permit> {
        self.has_room(percent, now).then(|| {
            self.second(now).retries.fetch_add(1, Relaxed);
            self.under_way.fetch_add(1, Relaxed);
            Permit(Arc::clone(self))
        })
    }

    /// Whether one retry would get leave.
    pub fn has_room(&self, percent: u8, now: Instant) -> bool {
        let (requests, retries) = self.sums(now);
        let within = (retries + 1) * 100 <= u64::from(percent) * requests;
        within || percent > 0 && self.under_way.load(Relaxed) < FLOOR && self.second(now).retries.load(Relaxed) < FLOOR
    }

    fn stamp(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.origin).as_secs() as u32 + 1
    }

    /// The bucket of `now`, emptied if it still counts an older second.
    fn second(&self, now: Instant) -> &Second {
        let stamp = self.stamp(now);
        let second = &self.seconds[stamp as usize % self.seconds.len()];
        let old = second.stamp.load(Relaxed);
        if old != stamp && second.stamp.compare_exchange(old, stamp, Relaxed, Relaxed).is_ok() {
            second.requests.store(0, Relaxed);
            second.retries.store(0, Relaxed);
        }
        second
    }

    /// Requests and retries of the window.
    fn sums(&self, now: Instant) -> (u64, u64) {
        let stamp = self.stamp(now);
        let recent = self.seconds.iter().filter(|s| {
            let of = s.stamp.load(Relaxed);
            of != 0 && of <= stamp && stamp - of <= WINDOW_S
        });
        recent.fold((0, 0), |(requests, retries), s| {
            (requests + u64::from(s.requests.load(Relaxed)), retries + u64::from(s.retries.load(Relaxed)))
        })
    }
}

/// The budgets of all services, kept by name over reloads.
#[derive(Debug)]
pub struct Budgets {
    origin: Instant,
    by_name: Mutex<HashMap<String, Arc<Budget>>>,
    /// Those of the newest generation seen, by `ServiceId`: what a request reads without a lock.
    current: ArcSwap<(u64, Vec<Arc<Budget>>)>,
}

impl Budgets {
    /// No budgets yet.
    pub fn new(origin: Instant) -> Budgets {
        Budgets { origin, by_name: Mutex::default(), current: ArcSwap::from_pointee((0, Vec::new())) }
    }

    /// Counts a request of a service of `snapshot`.
    pub fn request(&self, snapshot: &Snapshot, service: ServiceId, now: Instant) {
        self.with(snapshot, service, |budget| budget.request(now));
    }

    /// The budget of a service of `snapshot`.
    pub fn of(&self, snapshot: &Snapshot, service: ServiceId) -> Arc<Budget> {
        self.with(snapshot, service, Arc::clone)
    }

    fn with<T>(&self, snapshot: &Snapshot, service: ServiceId, what: impl FnOnce(&Arc<Budget>) -> T) -> T {
        let current = self.current.load();
        match current.1.get(service.index()) {
            Some(budget) if current.0 == snapshot.generation => what(budget),
            _ => what(&self.resolve(snapshot, service)),
        }
    }

    /// Once for each generation, and for the few requests that still hold an older one.
    fn resolve(&self, snapshot: &Snapshot, service: ServiceId) -> Arc<Budget> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let mut budget = |name: &str| match by_name.get(name) {
            Some(budget) => Arc::clone(budget),
            None => {
                let budget = Arc::new(Budget::new(self.origin));
                by_name.insert(name.to_owned(), Arc::clone(&budget));
                budget
            }
        };
        let services = &snapshot.fleet().services;
        if snapshot.generation > self.current.load().0 {
            let all: Vec<_> = services.iter().map(|s| budget(&s.name)).collect();
            let budget = Arc::clone(&all[service.index()]);
            // Services that left the configuration leave the memory too; requests that still hold them keep their own.
            by_name.retain(|name, _| services.iter().any(|s| s.name == *name));
            self.current.store(Arc::new((snapshot.generation, all)));
            return budget;
        }
        budget(&services[service.index()].name)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an instant can only be had from the clock")]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn every_failure_meets_its_verdict() {
        use Verdict::{Elsewhere, Fresh};
        let (region, endpoint) = (Elsewhere(Avoid::Region), Elsewhere(Avoid::Endpoint));
        let (twice, not_kept) = (Verdict::GiveUp(GaveUp::NotIdempotent), Verdict::GiveUp(GaveUp::BodyNotKept));
        let rows = [
            // failure, idempotent: verdict; not idempotent: verdict
            (Failure::NotConnected, region, region),
            (Failure::ConnectTimeout, region, region),
            (Failure::NoRoom, endpoint, endpoint),
            (Failure::Stale, Fresh, Fresh),
            (Failure::Lost { reused: false }, endpoint, twice),
            (Failure::Lost { reused: true }, Fresh, twice),
            (Failure::Silent, region, twice),
            (Failure::BadAnswer, endpoint, twice),
            (Failure::Status(503), endpoint, twice),
        ];
        for (failure, idempotent, other) in rows {
            let replay = |idempotent, replayable| Replay { idempotent, replayable };
            assert_eq!(judge(failure, replay(true, true), false), idempotent, "{failure:?}");
            assert_eq!(judge(failure, replay(false, true), false), other, "{failure:?}");
            assert_eq!(judge(failure, replay(true, false), false), not_kept, "{failure:?}");
        }
        let replay = Replay { idempotent: true, replayable: true };
        assert_eq!(judge(Failure::Lost { reused: true }, replay, true), endpoint);
    }

    #[test]
    fn shares_never_exceed_what_remains() {
        let s = Duration::from_secs;
        assert_eq!(share(s(5), s(30), 1, 3), s(5));
        assert_eq!(share(s(5), s(9), 1, 3), s(3));
        assert_eq!(share(s(5), s(9), 3, 3), s(5));
        assert_eq!(share(s(5), s(4), 3, 3), s(4));
        assert_eq!(share(s(5), s(0), 4, 3), s(0));
    }

    proptest! {
        /// Whatever comes when: a grant is within the share of its window, or one of few that are under way.
        #[test]
        fn the_budget_is_never_exceeded(percent in 0u8..=100, steps in vec((0u64..3_000, 0u32..40, 0u32..12, 0usize..12), 1..60)) {
            let start = Instant::now();
            let budget = Arc::new(Budget::new(start));
            let (mut at, mut requests, mut grants, mut under_way) = (0, Vec::new(), Vec::<u64>::new(), Vec::new());
            for (wait, asked, tries, ended) in steps {
                at += wait;
                let now = start + Duration::from_millis(at);
                let second = at / 1000;
                for _ in 0..asked {
                    budget.request(now);
                    requests.push(second);
                }
                under_way.truncate(under_way.len().saturating_sub(ended));
                for _ in 0..tries {
                    let window = |of: &Vec<u64>| of.iter().filter(|at| second - **at <= u64::from(WINDOW_S)).count() as u64;
                    let share = (window(&grants) + 1) * 100 <= u64::from(percent) * window(&requests);
                    let begun = grants.iter().filter(|at| **at == second).count();
                    let few = percent > 0 && under_way.len().max(begun) < FLOOR as usize;
                    let granted = budget.take(percent, now);
                    prop_assert_eq!(granted.is_some(), share || few);
                    if let Some(permit) = granted {
                        grants.push(second);
                        under_way.push(permit);
                    }
                }
            }
        }
    }

    #[test]
    fn the_budget_is_a_share_of_the_last_ten_seconds() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let budget = Arc::new(Budget::new(start));
        (0..1000).for_each(|_| budget.request(at(1)));
        let granted: Vec<_> = (0..1000).filter_map(|_| budget.take(20, at(2))).collect();
        assert_eq!(granted.len(), 200);
        drop(granted);
        // Nothing is under way: a few at once are always possible, but not more of them because they are short.
        assert!(budget.take(20, at(2)).is_none());
        let few: Vec<_> = (0..10).filter_map(|_| budget.take(20, at(3))).collect();
        assert_eq!(few.len(), 3);
        assert!(budget.take(0, at(3)).is_none() && budget.take(20, at(4)).is_none());
        drop(few);
        // A while later the old requests count no more, nor do the old retries.
        (0..100).for_each(|_| budget.request(at(60)));
        let granted: Vec<_> = (0..100).filter_map(|_| budget.take(20, at(60))).collect();
        assert_eq!(granted.len(), 20);
    }
}
