//! Endpoints and their identity: which of them are the same over reloads and resolutions.
//!
//! An endpoint is a service, a region, an address and a kind of probe. Whatever else changes (weights, names, intervals, other
//! pools), it keeps its id, its counters and its verdict; what left is forgotten. A name stands for all addresses
//! it resolved to, each with the full weight of its line (as in Envoy's strict DNS), and one address that several lines give is one endpoint with
//! the weights added.
//!
//! It must not know how names are resolved nor when: addresses arrive as changes.

use std::collections::{BTreeMap, HashMap};
use std::mem::{Discriminant, discriminant};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::steering::ejection::Ejection;
use crate::steering::fleet::{EndpointAddress, EndpointSpec, HealthPolicy, Intent, Probe};
use crate::steering::handover::EndpointHandover;
use crate::steering::health::{EndpointHealth, Turn};
use crate::steering::load::Load;
use crate::steering::meter::{Meter, OutcomesRead};
use crate::steering::outlier::{Found, Outlier, Peers};
use crate::steering::snapshot::{Asked, Ejected, EndpointId, EndpointState, EndpointView};
use crate::steering::stall::Stall;
use crate::steering::world::{Now, ProbeResult};

/// What an endpoint that came back takes at first, as a part of its share: enough to warm up with, little enough not to hurt.
const COLD: f32 = 0.1;

/// The longest slow start of an endpoint: its region's own ramp may be longer.
const SLOW_START_MOST: Duration = Duration::from_secs(30);

/// Gives out ids, each once.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    last: u64,
}

impl Ids {
    fn next(&mut self) -> EndpointId {
        self.last += 1;
        EndpointId(self.last)
    }
}

/// What names stand for, as far as they resolved.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Empty: asked for, without an answer yet.
    addresses: HashMap<String, Vec<IpAddr>>,
}

impl Names {
    /// Takes a resolution; returns whether it says something new. No address at all is no answer, so the last set stays.
    pub(crate) fn learn(&mut self, host: &str, mut addresses: Vec<IpAddr>) -> bool {
        // Resolvers rotate their answers; the order means nothing.
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            self.addresses.entry(host.to_owned()).or_default();
            return false;
        }
        if self.addresses.get(host) == Some(&addresses) {
            return false;
        }
        self.addresses.insert(host.to_owned(), addresses);
        true
    }

    /// Whether the name was resolved, or it was tried.
    pub(crate) fn asked(&self, host: &str) -> bool {
        self.addresses.contains_key(host)
    }

    /// Forgets the names that `named` denies.
    pub(crate) fn retain(&mut self, named: impl Fn(&str) -> bool) {
        self.addresses.retain(|host, _| named(host));
    }

    /// All that resolved.
    pub(crate) fn all(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let known = self.addresses.iter().filter(|(_, addresses)| !addresses.is_empty());
        known.map(|(host, addresses)| (host.clone(), addresses.clone())).collect()
    }

    fn of(&self, host: &str) -> &[IpAddr] {
        self.addresses.get(host).map_or(&[], Vec::as_slice)
    }
}

/// One endpoint of a pool.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: EndpointId,
    pub(crate) address: SocketAddr,
    name: Arc<str>,
    pub(crate) weight: u32,
    probe: Discriminant<Probe>,
    pub(crate) health: EndpointHealth,
    /// What operators want of it; set by who knows their words, after it came.
    pub(crate) intent: Intent,
    slow_start: Option<SlowStart>,
    ejection: Ejection,
    /// Why it was ejected last.
    ejected_for: Option<Arc<str>>,
    /// Why its probes turned it down, if they did.
    pub(crate) down_for: Option<Arc<str>>,
    /// How often it was ejected in its life.
    ejections: u32,
    stall: Stall,
    outlier: Outlier,
    outcomes: OutcomesRead,
    /// Connects that were looked at: microseconds and count.
    trips: (u64, u64),
    /// Its last probe did not count: the next one is due at once.
    pub(crate) anew: bool,
    /// When the probes turned it down, if they did.
    pub(crate) down_since: Option<Now>,
    /// What its last pass asked for. One that is down asks for nothing.
    pub(crate) asked: Asked,
    meter: Arc<Meter>,
}

/// What the traffic of an endpoint says against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accusation {
    /// In a few words.
    pub(crate) cause: String,
    /// It serves nobody; else it serves some, so that it is better than none.
    pub(crate) certain: bool,
}

/// What a probe's result did to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turned {
    /// The turn of the probes' verdict.
    pub(crate) turn: Turn,
    /// The verdict before.
    pub(crate) before: EndpointState,
    /// It ended an ejection, too.
    pub(crate) readmitted: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct SlowStart {
    since: Now,
    warmth: f32,
}

impl Endpoint {
    fn new(ids: &mut Ids, address: SocketAddr, probe: &Probe, verdict: EndpointState, meter: Arc<Meter>) -> Endpoint {
        Endpoint {
            id: ids.next(),
            address,
            name: Arc::from(""),
            weight: 0,
            probe: discriminant(probe),
            health: EndpointHealth::new(if *probe == Probe::None { EndpointState::Up } else { verdict }),
            intent: Intent::Ready,
            slow_start: None,
            ejection: Ejection::default(),
            ejected_for: None,
            down_for: None,
            ejections: 0,
            stall: Stall::default(),
            outlier: Outlier::default(),
            outcomes: OutcomesRead::default(),
            trips: (0, 0),
            anew: false,
            down_since: None,
            asked: Asked::default(),
            meter,
        }
    }

    /// The same address under another kind of probe: another endpoint, for results of the old kind must not count for it. What was
    /// known stands until the new kind knows better, so that turning a check on stops no traffic.
    fn succeed(self, ids: &mut Ids, probe: &Probe) -> Endpoint {
        let verdict = self.health.verdict();
        let Endpoint { address, ejection, ejections, ejected_for, down_for, outlier, outcomes, meter, .. } = self;
        let new = Endpoint::new(ids, address, probe, verdict, meter);
        Endpoint { ejection, ejections, ejected_for, down_for, outlier, outcomes, ..new }
    }

    /// What is known of it, for another process.
    pub(crate) fn handover(&self) -> EndpointHandover {
        EndpointHandover {
            address: self.address,
            health: self.health.clone(),
            slow_start: self.slow_start,
            ejection: self.ejection,
            ejected_for: self.ejected_for.as_deref().map(str::to_owned),
            ejections: self.ejections,
            down_for: self.down_for.as_deref().map(str::to_owned),
            down_since: self.down_since,
            asked: self.asked,
        }
    }

    /// Goes on from what another process knew of it.
    pub(crate) fn go_on(&mut self, handover: EndpointHandover) {
        let EndpointHandover {
            address: _,
            health,
            slow_start,
            ejection,
            ejected_for,
            ejections,
            down_for,
            down_since,
            asked,
        } = handover;
        (self.slow_start, self.ejection, self.ejected_for, self.ejections) =
            (slow_start, ejection, ejected_for.map(Arc::from), ejections);
        // One that nobody probes could never be found up again.
        if self.probe != discriminant(&Probe::None) {
            (self.health, self.down_for, self.down_since, self.asked) =
                (health, down_for.map(Arc::from), down_since, asked);
        }
    }

    /// What is known of it, by probes and by its traffic.
    pub(crate) fn state(&self) -> EndpointState {
        if self.ejection.is_out() { EndpointState::Down } else { self.health.verdict() }
    }

    /// Whether it is ejected.
    pub(crate) fn is_out(&self) -> bool {
        self.ejection.is_out()
    }

    /// Takes what its traffic told since the last look.
    pub(crate) fn look(&mut self) {
        self.meter.fade_doubt();
        self.outlier.take(self.meter.take_outcomes(&mut self.outcomes));
    }

    /// What is known of it as one among the endpoints of its service.
    pub(crate) fn peer(&self) -> Peers {
        self.outlier.peer(self.intent == Intent::Ready && self.state() == EndpointState::Up && !self.asked.drain)
    }

    /// Why its traffic speaks against it, if it does: failures in a row, far more than others have (`all` of its service, and those `beside` its
    /// pool), or requests that wait in vain.
    pub(crate) fn accused(
        &mut self,
        policy: &HealthPolicy,
        [all, beside]: [&Peers; 2],
        now: Now,
    ) -> Option<Accusation> {
        let failing = self.meter.take_tripped();
        // One that is out or down already, or was never up, has nothing to lose.
        if self.state() != EndpointState::Up {
            self.stall.forget();
            self.outlier.forget();
            return None;
        }
        let stalled = if policy.stall { self.stall.look(&self.meter, now) } else { None };
        let others = all.without(self.peer());
        let outlier = match policy.passive.rate {
            0 => {
                self.outlier.forget();
                None
            }
            rate => self.outlier.judge([&others, beside], f64::from(rate) / 100.0),
        };
        let certain = |cause| Accusation { cause, certain: true };
        if failing {
            return Some(certain(format!("{} failures in a row of its traffic", policy.passive.failures)));
        }
        if let Some(Found { own, elsewhere }) = outlier {
            let percent = elsewhere * 100.0;
            let (failed, tried) = (own.failed, own.tried);
            let cause = format!("{failed:.0} of {tried:.0} requests failed, and at most {percent:.0} % do elsewhere");
            return Some(Accusation { cause, certain: false });
        }
        stalled.map(|waited| certain(format!("requests wait, and nothing came for {} ms", waited.as_millis())))
    }

    /// Forgets what its traffic told: it was not told in time.
    pub(crate) fn forget(&mut self) {
        self.take_trips();
        self.stall.forget();
        self.meter.take_outcomes(&mut self.outcomes);
        self.outlier.forget();
        self.meter.forgive();
    }

    /// Connects since the last call: microseconds in all, and how many.
    pub(crate) fn take_trips(&mut self) -> (u64, u64) {
        let total = self.meter.trips().total();
        let before = std::mem::replace(&mut self.trips, total);
        (total.0.wrapping_sub(before.0), total.1.wrapping_sub(before.1))
    }

    /// Ejects it; returns for how long.
    pub(crate) fn eject(&mut self, cause: &str, policy: &HealthPolicy, now: Now) -> Duration {
        self.ejected_for = Some(cause.into());
        self.ejections = self.ejections.saturating_add(1);
        self.slow_start = None;
        self.stall.forget();
        self.ejection.eject(&policy.passive, now)
    }

    /// Lets time pass for its ejection; returns whether that ended it.
    pub(crate) fn tick(&mut self, policy: &HealthPolicy, now: Now) -> bool {
        let ended = self.ejection.tick(&policy.passive, now) || (policy.ejects_nothing() && self.ejection.lift(now));
        if ended {
            self.come_back(policy, now);
        }
        ended
    }

    /// Whether time alone moves its ejection.
    pub(crate) fn moves(&self) -> bool {
        self.ejection.moves()
    }

    fn come_back(&mut self, policy: &HealthPolicy, now: Now) {
        let is_up = self.state() == EndpointState::Up && !slow_start(policy).is_zero();
        self.slow_start = is_up.then_some(SlowStart { since: now, warmth: COLD });
    }

    /// Takes a probe's result.
    pub(crate) fn observe(&mut self, result: &ProbeResult, policy: &HealthPolicy, now: Now) -> Option<Turned> {
        let (passed, why) = match result {
            ProbeResult::Pass(asked) => (Some(*asked), ""),
            ProbeResult::Fail(why) => (None, why.as_str()),
        };
        self.anew = false;
        let before = self.health.verdict();
        let turn = self.health.observe(passed.is_some(), policy);
        let is_down = self.health.verdict() == EndpointState::Down;
        self.asked = if is_down { Asked::default() } else { passed.unwrap_or(self.asked) };
        let turn = turn?;
        let up = turn.verdict() == EndpointState::Up;
        self.down_since = (!up).then_some(now);
        self.down_for = (!up).then(|| format!("{turn}: {why}").into());
        let readmitted = self.ejection.turned(up, now);
        self.slow_start = None;
        if before == EndpointState::Down {
            self.come_back(policy, now);
        }
        Some(Turned { turn, before, readmitted })
    }

    /// Lets time pass for its slow start; returns whether its warmth changed.
    pub(crate) fn warm(&mut self, policy: &HealthPolicy, now: Now) -> bool {
        let Some(start) = &mut self.slow_start else { return false };
        let elapsed = now.since(start.since);
        if elapsed >= slow_start(policy) {
            self.slow_start = None;
            return true;
        }
        let progress = elapsed.as_secs_f32() / slow_start(policy).as_secs_f32();
        // A longer ramp by reload takes nothing away.
        let warmth = start.warmth.max(COLD + (1.0 - COLD) * progress);
        std::mem::replace(&mut start.warmth, warmth) != warmth
    }

    /// Whether it is in its slow start.
    pub(crate) fn warms(&self) -> bool {
        self.slow_start.is_some()
    }

    /// Whether its first probe has not ended yet.
    pub(crate) fn awaits_probe(&self) -> bool {
        self.probe != discriminant(&Probe::None) && !self.health.observed()
    }

    /// As it was configured (`host:port`).
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What a probe's result may change of it, as readers see it.
    pub(crate) fn face(&self) -> (EndpointState, bool, bool, Asked) {
        (self.state(), self.is_out(), self.warms(), self.asked)
    }

    fn cause(&self) -> Option<Arc<str>> {
        if self.state() != EndpointState::Down {
            return None;
        }
        if self.ejection.until().is_some() { self.ejected_for.clone() } else { self.down_for.clone() }
    }

    /// As readers see it.
    pub(crate) fn view(&self) -> EndpointView {
        EndpointView {
            id: self.id,
            address: self.address,
            name: Arc::clone(&self.name),
            weight: self.weight,
            state: self.state(),
            cause: self.cause(),
            ejected: Ejected { until_ms: self.ejection.until().map(|until| until.0), count: self.ejections },
            intent: self.intent,
            warmth: self.slow_start.map_or(1.0, |start| start.warmth),
            asked: self.asked,
            meter: Arc::clone(&self.meter),
        }
    }
}

fn slow_start(policy: &HealthPolicy) -> Duration {
    policy.ramp.min(SLOW_START_MOST)
}

/// The endpoints that a pool's lines stand for, in the order of the lines and then of the addresses, continuing those of `old`
/// that are the same. New ones count at `load`, too.
pub(crate) fn stand_for(
    specs: &[EndpointSpec],
    names: &Names,
    probe: &Probe,
    old: Vec<Endpoint>,
    ids: &mut Ids,
    load: &Arc<Load>,
) -> Vec<Endpoint> {
    let mut old: HashMap<SocketAddr, Endpoint> = old.into_iter().map(|e| (e.address, e)).collect();
    let mut places: HashMap<SocketAddr, usize> = HashMap::new();
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(specs.len());
    for spec in specs {
        let name: Arc<str> = spec.address.to_string().into();
        for address in addresses(&spec.address, names) {
            if let Some(place) = places.get(&address) {
                let weight = &mut endpoints[*place].weight;
                *weight = weight.saturating_add(spec.weight);
                continue;
            }
            let endpoint = match old.remove(&address) {
                Some(same) if same.probe == discriminant(probe) => same,
                Some(other) => other.succeed(ids, probe),
                None => Endpoint::new(ids, address, probe, EndpointState::Unknown, Arc::new(Meter::new(load))),
            };
            places.insert(address, endpoints.len());
            endpoints.push(Endpoint { name: Arc::clone(&name), weight: spec.weight, ..endpoint });
        }
    }
    endpoints
}

fn addresses(address: &EndpointAddress, names: &Names) -> Vec<SocketAddr> {
    match address {
        EndpointAddress::Socket(address) => vec![*address],
        EndpointAddress::Name { host, port } => {
            names.of(host).iter().map(|address| SocketAddr::new(*address, *port)).collect()
        }
    }
}
