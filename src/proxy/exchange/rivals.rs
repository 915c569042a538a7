//! The attempt that is made beside another one: raced to a connection, or asked as well because the first one's answer is late.
//!
//! Must not know of: who connects and who listens, which is the mover's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::takes::{in_doubt, with_room};
use super::{Attempt, Exchange, Rival};
use crate::config::tls::UpstreamTls;
use crate::proxy::retry;
use crate::steering::fleet::Service;
use crate::steering::meter::Meter;
use crate::steering::{Avoid, Take, Walk};

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

    /// An attempt in another region to connect for beside the one being made, if there is one to make; it is counted in
    /// there. Nothing is sent over either before one of them has its connection.
    pub fn rival(&mut self, now: Instant) -> Option<Attempt> {
        let (current, service) = (self.current?, self.record.service?);
        if now >= self.deadline {
            return None;
        }
        let published = Arc::clone(&self.published);
        let mut walk = self.walk.clone()?;
        walk.look_again(self.full(published.snapshot.fleet().service(service), now));
        walk.failed(&published.snapshot, Avoid::Region);
        let next = |walk: &mut Walk| {
            let take = walk.take(&published.snapshot).ok();
            let is_other = |take: &Take| take.region != current.take.region;
            // What may be sent once only is not sent where others just failed.
            take.filter(is_other).filter(|take| self.idempotent || !in_doubt(&published.snapshot, *take)).ok_or(())
        };
        let enter = |take| self.enter(take, true, now);
        let (take, in_flight) = with_room(&mut walk, &published.snapshot, next, enter).ok()?;
        let remaining = self.deadline.saturating_duration_since(now);
        let attempt = self.plan(published.snapshot.fleet().service(service), take, false, remaining);
        self.rival = Some(Box::new(Rival { walk, attempt, in_flight: Some(in_flight) }));
        Some(attempt)
    }

    /// The counters of an attempt's endpoint, and how many failures in a row are too many there.
    pub fn counters(&self, attempt: &Attempt) -> Option<(Arc<Meter>, u32)> {
        let many = self.service()?.health.passive.failures;
        Some((Arc::clone(&self.endpoint(attempt.take).meter), many))
    }

    /// The TLS that the attempt's endpoint is spoken to within, and the endpoint as it was configured; `None`: none.
    pub fn tls(&self, attempt: &Attempt) -> Option<(Arc<UpstreamTls>, Arc<str>)> {
        let tls = self.published.edge.upstream_tls(attempt.tls)?;
        Some((Arc::clone(tls), Arc::clone(&self.endpoint(attempt.take).name)))
    }

    /// The rival has its connection, and the attempt being made has none: the rival is the next attempt.
    pub fn overtaken(&mut self, now: Instant) {
        let rival = self.rival.take();
        self.connected(now);
        if let Some(rival) = rival {
            let Rival { walk, attempt, in_flight } = *rival;
            self.in_flight = None;
            self.walk = Some(walk);
            self.planned = in_flight.map(|in_flight| (attempt, in_flight));
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
        let percent = self.published.snapshot.fleet().service(service).retry.budget;
        let Some(permit) = self.shared.budgets.of(&self.published.snapshot, service).take(percent, now) else {
            self.rival = None;
            return None;
        };
        self.permits.push(permit);
        if let Some(in_flight) = self.rival.as_mut().and_then(|rival| rival.in_flight.as_mut()) {
            in_flight.unused = None;
        }
        self.count(attempt.take.region);
        Some(attempt)
    }

    /// The rival of a hedge answers, and is the attempt being made from here on.
    pub fn hedge_won(&mut self) {
        let Some(Rival { walk, attempt, in_flight }) = self.rival.take().map(|rival| *rival) else { return };
        self.walk = Some(walk);
        self.in_flight = in_flight;
        self.is_at(attempt);
    }

    /// The attempt being made goes on alone: it answers, or no rival could be asked.
    pub fn hedge_lost(&mut self) {
        self.rival = None;
    }

    /// The rival cannot answer any more: its place is free.
    pub fn rival_lost(&mut self) {
        if let Some(rival) = &mut self.rival {
            rival.in_flight = None;
        }
    }

    /// Neither answers: the next attempt is where none of them was.
    pub fn hedge_failed(&mut self) {
        if let Some(rival) = self.rival.take() {
            self.walk = Some(rival.walk);
        }
    }
}
