//! The state of one request, from its head to its line in the log, whoever moves its bytes.
//!
//! A mover calls, in this order: [`Exchange::begin`]; if nothing is refused, [`Exchange::next_attempt`]; then for each attempt
//! [`Exchange::connected`] and either [`Exchange::attempt_failed`] or [`Exchange::response_head`], which say whether another attempt is
//! ready; [`Exchange::passed_on`] when the first byte of the answer leaves; [`Exchange::finish`]. A retry is decided and its endpoint
//! chosen in one go, so that an answer is thrown away only when there is somewhere else to ask.
//!
//! The snapshot is loaded once and held to the end. Time and chance come from the mover. The endpoint's in-flight count is a
//! guard: however a request ends, also by being dropped, it is given back.

mod arrival;
mod rivals;
mod takes;
mod vigil;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;

use crate::acme::challenge::Challenges;
use crate::config::Edge;
use crate::config::tls::Certificate;
use crate::pressure::Pressure;
use crate::proxy::affinity::{self, Claim};
use crate::proxy::client::Client;
use crate::proxy::framing::Framing;
use crate::proxy::headers::Forward;
use crate::proxy::rates::{self, Rates};
use crate::proxy::retry::{self, Budgets, Failure, GaveUp, Permit, Replay, Verdict};
use crate::proxy::rules::Ruled;
use crate::proxy::{Fields, Outcome};
use crate::proxy_protocol::{self, Version};
use crate::state::{Published, Reader};
use crate::steering::fleet::{Affinity, Intent, Protocol, Service, Unit};
use crate::steering::meter::Meter;
use crate::steering::snapshot::{EndpointId, EndpointState, EndpointView};
use crate::steering::{Avoid, RegionId, RegionSet, ServiceId, Take, Walk};
use crate::telemetry::{self, AccessLogger, AccessRecord, AffinityResult, Mover};

pub use vigil::Vigil;

use takes::{InFlight, further, out_of_doubt, with_room};
use vigil::{find, has_fallen, region_now, service_now};

/// What all requests of a process share.
#[derive(Debug)]
pub struct Shared {
    /// What is published.
    pub reader: Reader,
    /// Where finished requests are told.
    pub access: AccessLogger,
    /// Retry budgets.
    pub budgets: Budgets,
    /// What authorities are answered that ask whether names are ours.
    pub challenges: Challenges,
    /// Who keeps services' `rate_limit`.
    pub rates: Rates,
    /// Whether no request is to be begun.
    pub pressure: Pressure,
    /// Requests under way, while `[limits] in_flight` bounds them.
    under_way: Arc<AtomicUsize>,
}

impl Shared {
    /// For a process whose clock stands at `now`.
    pub fn new(reader: Reader, access: AccessLogger, now: Instant) -> Shared {
        let (budgets, challenges, rates) = (Budgets::new(now), Challenges::default(), Rates::default());
        let (pressure, under_way) = (Pressure::default(), Arc::default());
        Shared { reader, access, budgets, challenges, rates, pressure, under_way }
    }
}

/// A request that counts, until this is dropped.
#[derive(Debug)]
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn enter(all: &Arc<AtomicUsize>, most: usize) -> Result<UnderWay, Outcome> {
        let entered = UnderWay(Arc::clone(all));
        if all.fetch_add(1, Ordering::Relaxed) < most { Ok(entered) } else { Err(Outcome::Overloaded) }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request head and how it came.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a, F> {
    /// Method.
    pub method: &'a Method,
    /// Request target, as sent.
    pub target: &'a [u8],
    /// Version.
    pub version: http::Version,
    /// Fields.
    pub fields: &'a F,
    /// The connecting peer.
    pub peer: Option<SocketAddr>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Certificates of which the client was shown one and to whose hosts it is held; empty: it may ask for any.
    pub bound: &'a [Arc<Certificate>],
    /// Who moves the bytes.
    pub mover: Mover,
    /// When the head was complete.
    pub now: Instant,
    /// The same moment in Unix microseconds.
    pub at_us: u64,
    /// A random number for choices.
    pub chance: u64,
    /// A random number for the request id, should none come with the request.
    pub id: u128,
}

/// Where to send a request, and how long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its address.
    pub address: SocketAddr,
    /// Epoch of its pool: connections of another epoch must not be used.
    pub epoch: u32,
    /// A connection from the pool must not be used.
    pub fresh: bool,
    /// What it speaks.
    pub protocol: Protocol,
    /// Which TLS it speaks that within, by its fingerprint; 0: none.
    pub tls: u64,
    /// For connecting, TLS included.
    pub connect: Duration,
    /// For the first byte of the answer.
    pub first_byte: Duration,
    /// For a pooled connection that nobody uses.
    pub pool_idle: Duration,
    /// For a connection to be used at all.
    pub max_age: Duration,
    /// The most connections to the endpoint; 0: no bound.
    pub max_connections: u32,
    /// For silence once an answer has begun.
    pub idle: Duration,
    take: Take,
}

#[cfg(test)]
impl Attempt {
    /// An attempt of no request.
    pub(crate) fn for_tests() -> Attempt {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let take = Take {
            region: crate::steering::RegionId(0),
            pool: crate::steering::PoolId(0),
            endpoint: 0,
            reason: crate::steering::TakeReason::Nearest,
        };
        Attempt {
            endpoint: EndpointId(1),
            address: ([127, 0, 0, 1], 1).into(),
            epoch: 0,
            fresh: false,
            protocol: Protocol::Http1,
            tls: 0,
            connect: second,
            first_byte: second,
            pool_idle: minute,
            max_age: minute * 60,
            max_connections: 0,
            idle: second,
            take,
        }
    }
}

/// One request.
#[derive(Debug)]
pub struct Exchange {
    shared: Arc<Shared>,
    published: Arc<Published>,
    record: Box<AccessRecord>,
    client: Option<Client>,
    request_id_kept: bool,
    scheme: &'static str,
    version: &'static str,
    framing: Framing,
    websocket: bool,
    /// It is a call of gRPC.
    is_call: bool,
    max_forwards: Option<u64>,
    ruled: Ruled,
    /// The answer to an authority's question.
    challenge: Option<Arc<str>>,
    /// What goes before the request on a connection of its own.
    preamble: Option<Arc<[u8]>>,
    idempotent: bool,
    /// What the client says of where it was before, and what came of that; for services with affinity.
    claim: Claim,
    affinity: Option<AffinityResult>,
    walk: Option<Walk>,
    started: Instant,
    deadline: Instant,
    /// The attempt being made.
    current: Option<Attempt>,
    /// When it began, while it has no connection.
    connecting: Option<Instant>,
    /// The attempt to be made next, counted in already.
    planned: Option<(Attempt, InFlight)>,
    /// The attempt that connects beside the one being made, and the walk after it.
    rival: Option<Box<Rival>>,
    /// At the service, from the head to the end.
    counted: Option<telemetry::InFlight>,
    /// Counted in, while there is a bound for all requests.
    under_way: Option<UnderWay>,
    /// What a client is told that asks too often.
    limited: Option<Box<rates::Told>>,
    /// At the endpoint of the attempt being made.
    in_flight: Option<InFlight>,
    permits: Vec<Permit>,
    /// Attempts that were made anew at the same endpoint.
    fresh: u8,
    /// When the final answer's head came.
    answered: Option<Instant>,
    /// An informational answer went to the client.
    interim: bool,
    passed_on: bool,
    outcome: Outcome,
}

/// An attempt beside another one.
#[derive(Debug)]
struct Rival {
    walk: Walk,
    attempt: Attempt,
    /// `None` once it can answer no more.
    in_flight: Option<InFlight>,
}

/// Whether a failure was an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Yes,
    No,
}

impl Exchange {
    /// Checks a head, finds its client and service, and plans the first attempt, all by what is `published` now. What stands against it
    /// is in [`Exchange::refusal`].
    pub fn begin<F: Fields>(shared: &Arc<Shared>, published: Arc<Published>, head: &Head<'_, F>) -> Exchange {
        let mut exchange = Exchange::new(shared, published, head);
        exchange.plan_first(head);
        exchange
    }

    /// The same in a place that is there already: an exchange is a kilobyte, which need not be moved.
    pub fn begin_in<'s, F: Fields>(
        slot: &'s mut Option<Exchange>,
        shared: &Arc<Shared>,
        published: Arc<Published>,
        head: &Head<'_, F>,
    ) -> &'s mut Exchange {
        // Not `insert`, which would move it once more.
        *slot = None;
        let exchange = slot.get_or_insert_with(|| Exchange::new(shared, published, head));
        exchange.plan_first(head);
        exchange
    }

    fn plan_first<F: Fields>(&mut self, head: &Head<'_, F>) {
        if let Err(outcome) = self.route(head) {
            self.outcome = outcome;
        }
    }

    /// For a head that the mover itself could not read, or that never came whole: nothing to do but to answer and to log it.
    pub fn refused<F: Fields>(shared: &Arc<Shared>, head: &Head<'_, F>, outcome: Outcome) -> Exchange {
        Exchange { outcome, ..Exchange::new(shared, shared.reader.load(), head) }
    }

    /// What stands against the request, if anything.
    pub fn refusal(&self) -> Option<Outcome> {
        (self.outcome != Outcome::Answered).then_some(self.outcome)
    }

    /// Why the request ends as it does, as far as known.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The edge rules that this request began under.
    pub fn edge(&self) -> &Edge {
        &self.published.edge
    }

    /// Its service, once one was found.
    pub fn service(&self) -> Option<&Service> {
        self.record.service.map(|id| self.published.snapshot.fleet().service(id))
    }

    /// The body of an answer of our own.
    pub fn own_body(&self, outcome: Outcome) -> &str {
        self.challenge.as_deref().filter(|_| outcome == Outcome::Challenge).unwrap_or(outcome.body())
    }

    /// Whether it is a call of gRPC, whose client reads another status than that of HTTP.
    pub fn is_call(&self) -> bool {
        self.is_call
    }

    /// The header that says whose request it is, for services that want one. `arrived`: where its client came to.
    pub fn announce(&mut self, version: Version, arrived: Option<SocketAddr>) {
        let Some(peer) = self.record.peer else { return };
        let source = match self.client {
            Some(client) if client.address.ip() != client.peer && client.peer_trusted => {
                // Its port is known to whom it connected to.
                SocketAddr::new(client.address.ip(), 0)
            }
            _ => peer,
        };
        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        self.preamble = Some(proxy_protocol::write(version, source, arrived.unwrap_or(nowhere)).into());
    }

    /// What goes before the request on a connection of its own.
    pub fn preamble(&self) -> Option<&Arc<[u8]>> {
        self.preamble.as_ref()
    }

    /// How its body is framed. Nothing is known of one that breaks a rule.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether anything of an answer went to the client.
    pub fn has_begun(&self) -> bool {
        self.passed_on || self.interim
    }

    /// Whether it asks for a WebSocket.
    pub fn websocket(&self) -> bool {
        self.websocket
    }

    /// The counters of the endpoint of the attempt being made.
    pub fn meter(&self) -> Option<&Arc<Meter>> {
        self.in_flight.as_ref().map(|in_flight| &in_flight.meter)
    }

    /// When its head was complete.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// By when a final answer must have begun, over all attempts.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When the attempt being made is given up unless its answer has begun. Its share runs from the end of the request: while a
    /// body is still on its way, silence is no fault of the upstream, and only the request's deadline counts.
    pub fn answer_due(&self, complete: bool, now: Instant) -> Instant {
        match self.current {
            Some(attempt) if complete => self.deadline.min(now + attempt.first_byte),
            _ => self.deadline,
        }
    }

    /// Begins the next attempt. The endpoint counts it as in flight until the next one or the end.
    pub fn next_attempt(&mut self, now: Instant) -> Result<Attempt, Outcome> {
        let Some((attempt, mut in_flight)) = self.planned.take() else {
            if self.outcome == Outcome::Answered {
                self.outcome = Outcome::Internal;
            }
            return Err(self.outcome);
        };
        let take = attempt.take;
        in_flight.unused = None;
        self.in_flight = Some(in_flight);
        if self.record.attempts == 0
            && let Some(id) = self.record.service
        {
            self.shared.budgets.request(&self.published.snapshot, id, now);
        }
        self.count(take.region);
        self.is_at(attempt);
        self.outcome = Outcome::Answered;
        self.connecting = Some(now);
        Ok(attempt)
    }

    /// The attempt being made is this one.
    fn is_at(&mut self, attempt: Attempt) {
        self.record.region = Some(attempt.take.region);
        self.record.endpoint = Some(attempt.address);
        self.record.reason = Some(attempt.take.reason);
        self.current = Some(attempt);
    }

    /// Whether another attempt may be made. A second one at the same endpoint, because its kept connection had ended, is none of those that a
    /// service allows: otherwise a request might end where it could not have been served.
    fn has_attempts(&self, service: &Service) -> bool {
        self.record.attempts.saturating_sub(self.fresh) < service.retry.attempts
    }

    /// One attempt more, at that region.
    fn count(&mut self, region: RegionId) {
        self.record.attempts = self.record.attempts.saturating_add(1);
        if let Some(service) = self.record.service {
            self.published.handles.attempt(service, region);
        }
    }

    /// Whether the request may move on from where it waits should that be found down: idempotent ones with attempts left may.
    pub fn may_leave(&self) -> bool {
        let (Some(attempt), Some(id)) = (self.current, self.record.service) else { return false };
        self.idempotent
            && self.has_attempts(self.published.snapshot.fleet().service(id))
            && self.endpoint(attempt.take).state != EndpointState::Down
    }

    /// What tells that the request had better move on from where it waits, if it may.
    pub fn vigil(&self) -> Option<Vigil> {
        let (attempt, service) = (self.current?, self.record.service?);
        self.may_leave().then(|| Vigil {
            shared: Arc::clone(&self.shared),
            snapshot: Arc::clone(&self.published.snapshot),
            service,
            take: attempt.take,
            endpoint: attempt.endpoint,
        })
    }

    /// Whether what serves it is done with, for streams too: a region in maintenance, or drained for longer than they may take; an endpoint in
    /// maintenance. One that left the configuration drains nothing.
    pub fn has_to_end(&self) -> bool {
        let (Some(attempt), Some(service)) = (self.current, self.record.service) else { return false };
        let (then, now) = (&self.published.snapshot, &self.shared.reader.load().snapshot);
        let Some(service) = service_now(then, now, service) else { return false };
        region_now(then, now, attempt.take.region).is_some_and(|region| now.service(service).has_ended(region))
            || find(now, service, attempt.endpoint).is_some_and(|(_, endpoint)| endpoint.intent == Intent::Maint)
    }

    /// The attempt being made has its connection, whoever else was looking for one.
    pub fn connected(&mut self, now: Instant) {
        self.rival = None;
        if let Some(began) = self.connecting.take() {
            // Mostly there was one.
            if now != began {
                self.record.connect_us += micros(now - began);
            }
        }
    }

    /// The request of the attempt being made is sent whole: from here on its endpoint alone is waited for. First attempts only tell whether an
    /// endpoint stalls: requests that are slow by their nature would take one endpoint after the other with them.
    pub fn asked(&mut self, now: Instant) {
        if let Some(in_flight) = &mut self.in_flight
            && in_flight.asked.is_none()
            && self.record.attempts == 1
        {
            in_flight.asked = Some(now);
            in_flight.meter.waits();
        }
    }

    /// Something came from the endpoint of the attempt being made that is not the head of its answer.
    pub fn heard(&self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.meter.heard();
        }
    }

    /// The endpoint of the attempt being made failed as gateways fail, or it did not; so many failures in a row eject it.
    /// `counted`: as what its rate of failures is made of, by an answer or without one.
    fn judge_endpoint(&self, failed: Option<Failure>, counted: Option<Answered>) {
        let (Some(in_flight), Some(service)) = (&self.in_flight, self.service()) else { return };
        let Some(failure) = failed else { return in_flight.meter.succeeded() };
        let (meter, many) = (&in_flight.meter, service.health.passive.failures);
        // What was sent may have failed for what it asked.
        let counts = match failure.sent() {
            true => meter.failed_for(many, self.who()),
            false => {
                meter.failed(many);
                true
            }
        };
        if counts && let Some(answered) = counted {
            meter.first_failed(answered == Answered::Yes);
        }
    }

    /// Which client this is, as far as its failures are told apart from others': its address, of IPv6 the first 48 bits. Never 0.
    fn who(&self) -> u32 {
        let who = match self.client.map(|client| client.address.ip()) {
            Some(IpAddr::V4(address)) => address.to_bits(),
            Some(IpAddr::V6(address)) => {
                ((address.to_bits() >> 80) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32) as u32
            }
            None => 0,
        };
        who.max(1)
    }

    /// Whether it may be sent once only, by what it is or by what the service allows.
    fn goes_once(&self, service: &Service) -> bool {
        let kept = !matches!(self.framing, Framing::Length(length) if length > service.retry.replay);
        !self.idempotent || !kept || service.retry.attempts == 1
    }

    /// The attempt being made waits at an endpoint that was found down, and nothing of an answer came. Returns whether another one is
    /// planned; if not, it may as well wait on.
    pub fn evacuate(&mut self, replayable: bool, now: Instant) -> bool {
        let moves = self.retry(Failure::Silent, replayable, now).is_ok();
        if moves {
            self.in_flight = None;
        }
        moves
    }

    /// The attempt being made failed. Returns whether another one is planned; if not, the failure is the request's outcome.
    /// `replayable` says that all of the body read so far can be sent again.
    pub fn attempt_failed(&mut self, failure: Failure, replayable: bool, now: Instant) -> bool {
        // If it has none, looking for one is over.
        self.connected(now);
        if failure.is_the_endpoints() && !self.passed_on {
            // A first attempt that had begun to wait, or had nobody to send it to.
            let waited = self.in_flight.as_ref().is_some_and(|in_flight| in_flight.asked.is_some());
            let first = waited || (!failure.sent() && self.record.attempts == 1);
            self.judge_endpoint(Some(failure), first.then_some(Answered::No));
        }
        self.outcome = match self.passed_on {
            true => Outcome::AnswerBroken,
            false if now >= self.deadline => Outcome::Deadline,
            false => failure.outcome(),
        };
        let planned = self.retry_or_say_why(failure, replayable, now);
        if planned == Err(GaveUp::Full) {
            // It could be served, a moment later.
            self.outcome = Outcome::Full;
        }
        // Only now: a request that moves on within its region keeps its place there.
        self.in_flight = None;
        planned.is_ok()
    }

    /// A response head came. Returns whether it is to be thrown away because another attempt is planned. Informational heads
    /// (1xx but 101) are no answer and go by.
    pub fn response_head(&mut self, status: u16, replayable: bool, now: Instant) -> bool {
        if (100..200).contains(&status) && status != 101 {
            self.heard();
            return false;
        }
        let waited = now - self.started;
        let mut counted = None;
        if let Some(in_flight) = &mut self.in_flight {
            let asked = in_flight.asked.take();
            counted = asked.map(|_| Answered::Yes);
            match asked {
                // Mostly it was sent as soon as it was there.
                Some(asked) if asked == self.started => in_flight.meter.answers(waited),
                Some(asked) => in_flight.meter.answers(now - asked),
                None => in_flight.meter.heard(),
            }
        }
        self.judge_endpoint(matches!(status, 502..=504).then_some(Failure::Status(status)), counted);
        let takes_elsewhere = self.service().is_some_and(|service| service.retry.on.contains(&status));
        if takes_elsewhere && self.retry_or_say_why(Failure::Status(status), replayable, now).is_ok() {
            self.in_flight = None;
            return true;
        }
        self.record.first_byte_us = Some(micros(waited));
        self.answered = Some(now);
        self.outcome = Outcome::Answered;
        false
    }

    /// An informational answer goes to the client: nothing is tried again, but there can still be an answer of ours.
    pub fn interim_passed_on(&mut self) {
        self.interim = true;
    }

    /// The first byte of the final answer goes to the client: from here on nothing is tried again, and a failure can only be shown.
    pub fn passed_on(&mut self) {
        self.passed_on = true;
        // However long the answer is, its retries are over.
        self.permits.clear();
    }

    /// The request ends for a reason that is not an attempt's failure.
    pub fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// What the forwarded head says of the client.
    pub fn forward(&self, trailers: bool) -> Forward<'_> {
        static PASS: crate::steering::fleet::HostRule = crate::steering::fleet::HostRule::Pass;
        let service = self.service();
        Forward {
            client: self.client.as_ref(),
            host: self.record.text.host(),
            scheme: self.scheme,
            via: &self.published.edge.via,
            version: self.version,
            request_id: self.record.request_id,
            request_id_kept: self.request_id_kept,
            host_rule: service.map_or(&PASS, |service| &service.host),
            websocket: self.websocket,
            max_forwards: self.max_forwards,
            trailers,
            rules: service.and_then(|service| service.rules.as_deref()),
            cut: self.ruled.cut(),
            traced: &self.record.traced,
        }
    }

    /// What an answer of our own says besides what all of them do: name and value.
    pub fn own_fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let limited = self.limited.iter().flat_map(|told| told.iter().map(|(name, value)| (*name, value.as_str())));
        self.ruled.own(self.service().and_then(|service| service.rules.as_deref())).chain(limited)
    }

    /// Makes the fields of the final answer as the client gets them, once [`crate::proxy::headers::response`] has: by the service's rules, and
    /// with a cookie for the region that answers, if the client is to have one. No shared cache may keep that for others, whatever a rule says.
    pub fn complete(&self, fields: &mut impl Fields, upgraded: bool) {
        let Some(service) = self.service() else { return };
        if let Some(rules) = &service.rules {
            self.ruled.response(fields, rules);
        }
        let Some(Affinity::Cookie(policy)) = &service.affinity else { return };
        let Some(region) = self.current.map(|attempt| attempt.take.region) else { return };
        if self.claim == (Claim::Region { id: region, stale: false }) {
            return;
        }
        let region = &self.published.snapshot.fleet().region(region).name;
        let cookie = affinity::set_cookie(policy, &service.name, region, self.record.at_us / 1_000_000);
        fields.append("set-cookie", &[cookie.as_bytes()]);
        let is_private = [&b"private"[..], b"no-store"].iter().any(|word| fields.lists("cache-control", word));
        if !upgraded && !is_private {
            fields.append_member("cache-control", b"private");
        }
    }

    /// Our name in `Via`.
    pub fn via(&self) -> &str {
        &self.published.edge.via
    }

    /// Ends the request: counts it and hands its line to the log. `status` is what was sent to the client, 0 for nothing.
    pub fn finish(mut self, status: u16, bytes_in: u64, bytes_out: u64, now: Instant) {
        self.in_flight = None;
        self.counted = None;
        self.record.status = status;
        self.record.outcome = self.outcome.label();
        self.record.bytes_in = bytes_in;
        self.record.bytes_out = bytes_out;
        self.record.total_us = match self.record.first_byte_us {
            // Mostly an answer comes whole.
            Some(whole) if self.answered == Some(now) => whole,
            _ => micros(now - self.started),
        };
        self.published.handles.request(&self.record);
        if let (Some(service), Some(result)) = (self.record.service, self.affinity) {
            self.published.handles.affinity(service, result);
        }
        self.shared.access.log(&self.published.snapshot, self.record);
    }

    /// Plans another attempt if what happened allows it; if not, the log is told why.
    fn retry_or_say_why(&mut self, failure: Failure, replayable: bool, now: Instant) -> Result<(), GaveUp> {
        let planned = self.retry(failure, replayable, now);
        self.record.gave_up = planned.err().map(GaveUp::as_str);
        planned
    }

    /// Plans another attempt if what happened allows it.
    fn retry(&mut self, failure: Failure, replayable: bool, now: Instant) -> Result<(), GaveUp> {
        let Some(last) = self.current else { return Err(GaveUp::Nowhere) };
        let Some(id) = self.record.service else { return Err(GaveUp::Nowhere) };
        let published = Arc::clone(&self.published);
        let service = published.snapshot.fleet().service(id);
        if self.passed_on || self.interim {
            return Err(GaveUp::Begun);
        }
        if now >= self.deadline {
            return Err(GaveUp::Deadline);
        }
        if !self.has_attempts(service) {
            return Err(GaveUp::Attempts);
        }
        let replay = Replay { idempotent: self.idempotent, replayable };
        // Steps on a copy: without leave to go, the walk stays where it is.
        let mut walk = self.walk.clone();
        let (take, fresh, in_flight) = match retry::judge(failure, replay, last.fresh) {
            Verdict::GiveUp(why) => return Err(why),
            // Nothing was served there, so that it takes nothing more.
            Verdict::Fresh => (last.take, true, self.enter(last.take, false, now).ok_or(GaveUp::Nowhere)?),
            Verdict::Elsewhere(avoid) => {
                let walk = walk.as_mut().ok_or(GaveUp::Nowhere)?;
                walk.look_again(self.full(service, now));
                walk.failed(&published.snapshot, avoid);
                let (take, in_flight) = self.next_take(walk, id, now)?;
                (take, false, in_flight)
            }
        };
        let then = &published.snapshot;
        if failure.sent() && !has_fallen(then, &self.shared.reader.load().snapshot, id, last.take.region) {
            match self.shared.budgets.of(&published.snapshot, id).take(service.retry.budget, now) {
                Some(permit) => self.permits.push(permit),
                None => return Err(GaveUp::Budget),
            }
        }
        self.walk = walk;
        self.fresh += u8::from(fresh);
        let attempt = self.plan(service, take, fresh, self.deadline.saturating_duration_since(now));
        self.planned = Some((attempt, in_flight));
        Ok(())
    }

    /// The regions without room for this request now: the one that it is at has that.
    fn full(&self, service: &Service, now: Instant) -> RegionSet {
        let snapshot = &self.published.snapshot;
        let mut full = snapshot.full(service.regions, || self.shared.reader.clock().nanos(now));
        if let Some(region) = self.place() {
            full.remove(region);
        }
        full
    }

    /// The region in which this request counts as one that is there, and goes on doing so when it moves on within it.
    fn place(&self) -> Option<RegionId> {
        let region = self.in_flight.as_ref().and(self.current)?.take.region;
        let capacity = self.published.snapshot.fleet().region(region).capacity?;
        (capacity.unit == Unit::InFlight).then_some(region)
    }

    /// Counts in for another attempt, there.
    fn enter(&self, take: Take, needs_room: bool, now: Instant) -> Option<InFlight> {
        let needs_room = needs_room && self.place() != Some(take.region);
        InFlight::enter(&self.published.snapshot, take, needs_room, || self.shared.reader.clock().nanos(now))
    }

    /// The walk's next take that has room.
    fn next_take(&self, walk: &mut Walk, service: ServiceId, now: Instant) -> Result<(Take, InFlight), GaveUp> {
        let next = |walk: &mut Walk| self.take(walk, service).ok_or(GaveUp::Nowhere);
        let taken = with_room(walk, &self.published.snapshot, next, |take| self.enter(take, true, now));
        taken.map_err(|nowhere| if walk.lacks_room() { GaveUp::Full } else { nowhere })
    }

    /// The walk's next take that is not known by now to be in vain: since the request began, an endpoint may have gone down, or an operator may
    /// have spoken. If all are, the first of them after all.
    fn take(&self, walk: &mut Walk, service: ServiceId) -> Option<Take> {
        let (then, published) = (&self.published.snapshot, self.shared.reader.load());
        let now = &published.snapshot;
        let is_vain = |take: Take| {
            let Some(service) = service_now(then, now, service) else { return false };
            let Some((pool, endpoint)) = find(now, service, self.endpoint(take).id) else { return false };
            let is_open = now.service(service).serving().contains(now.fleet().pool(pool).region);
            !is_open || endpoint.state == EndpointState::Down || endpoint.intent != Intent::Ready
        };
        let vain = |take| is_vain(take).then_some(Avoid::Region);
        let first = walk.take(then).ok()?;
        let take = further(walk, then, first, vain).unwrap_or(first);
        if self.idempotent || is_vain(take) {
            return Some(take);
        }
        let mut on = walk.clone();
        let spared = out_of_doubt(&mut on, then, take, self.claim.region()).filter(|take| !is_vain(*take));
        if spared.is_some() {
            *walk = on;
        }
        spared.or(Some(take))
    }

    fn endpoint(&self, take: Take) -> &EndpointView {
        &self.published.snapshot.pool(take.pool).endpoints[usize::from(take.endpoint)]
    }

    /// An attempt with `remaining` left of the request's time.
    fn plan(&self, service: &Service, take: Take, fresh: bool, remaining: Duration) -> Attempt {
        let endpoint = self.endpoint(take);
        let timeouts = &service.timeouts;
        // Nothing is held back for attempts that there will not be: what reached its upstream and may be sent once only is not tried again.
        let attempts = if self.goes_once(service) { 1 } else { service.retry.attempts };
        let share = retry::share(timeouts.first_byte, remaining, self.record.attempts.saturating_add(1), attempts);
        Attempt {
            endpoint: endpoint.id,
            address: endpoint.address,
            epoch: self.published.snapshot.pool(take.pool).epoch,
            fresh,
            protocol: service.upstream.protocol,
            tls: service.upstream.tls,
            connect: timeouts.connect.min(remaining),
            first_byte: share,
            pool_idle: service.upstream.idle,
            max_age: service.upstream.max_age,
            max_connections: service.upstream.max_connections,
            idle: if self.websocket { timeouts.tunnel_idle } else { timeouts.idle },
            take,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000 + u64::from(duration.subsec_micros())
}
