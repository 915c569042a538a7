//! The attempt that is made beside another one: raced to a connection, or asked as well because the first one's answer is late.
//!
//! Must not know of: who connects and who listens, which is the mover's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Attempt, Exchange, InFlight};
use crate::proxy::retry;
use crate::steering::Avoid;
use crate::steering::fleet::Service;
use crate::steering::meter::Meter;

impl Exchange {
    /// After how long without a connection another region had better be tried beside the one of the attempt being made.
    pub fn race_after(&self) -> Option<Duration> {
        let (attempt, service) = (self.current?, self.service()?);
        (service.retry.race && self.may_try_another(service))
            .then(|| retry::race_after(self.endpoint(attempt.take).meter.connects(), attempt.connect))
    }

    /// Whether attempts are left, and there is another region at all.
    fn may_try_another(&self, service: &Service) -> bool {
        self.has_attempts(service) && service.pools.len() > 1
    }

    /// An attempt in another region to connect for beside the one being made, if there is one to make. Nothing is sent over either before one
    /// of them has its connection.
    pub fn rival(&mut self, now: Instant) -> Option<Attempt> {
        let (current, service) = (self.current?, self.record.service?);
        if now >= self.deadline {
            return None;
        }
        let published = Arc::clone(&self.published);
        let mut walk = self.walk.clone()?;
        walk.failed(&published.snapshot, Avoid::Region);
        let take = walk.take(&published.snapshot).ok().filter(|take| take.region != current.take.region)?;
        let remaining = self.deadline.saturating_duration_since(now);
        let attempt = self.plan(published.snapshot.fleet().service(service), take, false, remaining);
        self.rival = Some(Box::new((walk, attempt)));
        Some(attempt)
    }

    /// The counters of an attempt's endpoint, and how many failures in a row are too many there.
    pub fn counters(&self, attempt: &Attempt) -> Option<(Arc<Meter>, u32)> {
        let many = self.service()?.health.passive.failures;
        Some((Arc::clone(&self.endpoint(attempt.take).meter), many))
    }

    /// The rival has its connection, and the attempt being made has none: the rival is the next attempt.
    pub fn overtaken(&mut self, now: Instant) {
        self.connected(now);
        if let Some(rival) = self.rival.take() {
            let (walk, attempt) = *rival;
            self.in_flight = None;
            self.walk = Some(walk);
            self.planned = Some(attempt);
        }
    }

    /// After how long without an answer another region is to be asked as well, if the service wants that and the request may be sent twice.
    pub fn hedge_after(&self) -> Option<Duration> {
        let service = self.service().filter(|service| service.retry.hedge)?;
        (self.idempotent && self.may_try_another(service))
            .then(|| retry::hedge_after(self.meter()?.first_bytes()))
            .flatten()
    }

    /// An attempt in another region beside the one that waits, if there is one to make and the retry budget allows it. It is counted as begun.
    pub fn hedge(&mut self, now: Instant) -> Option<Attempt> {
        let service = self.record.service?;
        let attempt = self.rival(now)?;
        let percent = self.service()?.retry.budget;
        let permit = self.shared.budgets.of(&self.published.snapshot, service).take(percent, now)?;
        self.permits.push(permit);
        self.count(attempt.take.region);
        self.hedged = Some(InFlight::enter(&self.endpoint(attempt.take).meter));
        Some(attempt)
    }

    /// The rival of a hedge answers, and is the attempt being made from here on.
    pub fn hedge_won(&mut self) {
        let (hedged, rival) = (self.hedged.take(), self.rival.take());
        let Some((walk, attempt)) = rival.map(|rival| *rival) else { return };
        self.walk = Some(walk);
        self.in_flight = hedged;
        self.is_at(attempt);
    }

    /// The attempt being made goes on alone: it answers, or no rival could be asked.
    pub fn hedge_lost(&mut self) {
        self.hedged = None;
        self.rival = None;
    }

    /// Neither answers: the next attempt is where none of them was.
    pub fn hedge_failed(&mut self) {
        self.hedged = None;
        if let Some(rival) = self.rival.take() {
            self.walk = Some(rival.0);
        }
    }
}
