//! Endpoints and their identity: which of them are the same over reloads and resolutions.
//!
//! An endpoint is a service, a region, an address and a kind of probe. Whatever else changes (weights, names, intervals, other
//! pools), it keeps its id, its counters and its verdict; what left is forgotten. A name stands for all addresses
//! it resolved to, each with the full weight of its line (as in Envoy's strict DNS), and one address that several lines give is one endpoint with
//! the weights added.
//!
//! It must not know how names are resolved nor when: addresses arrive as changes.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::steering::fleet::{EndpointAddress, EndpointSpec, HealthPolicy, Intent, Probe};
use crate::steering::health::{EndpointHealth, Turn};
use crate::steering::meter::Meter;
use crate::steering::snapshot::{EndpointId, EndpointState, EndpointView};
use crate::steering::world::Now;

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
    meter: Arc<Meter>,
}

#[derive(Clone, Copy, Debug)]
struct SlowStart {
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
            meter,
        }
    }

    /// The same address under another kind of probe: another endpoint, for results of the old kind must not count for it. What was
    /// known stands until the new kind knows better, so that turning a check on stops no traffic.
    fn succeed(self, ids: &mut Ids, probe: &Probe) -> Endpoint {
        Endpoint::new(ids, self.address, probe, self.health.verdict(), self.meter)
    }

    /// Takes a probe's result.
    pub(crate) fn observe(&mut self, passed: bool, policy: &HealthPolicy, now: Now) -> Option<(Turn, EndpointState)> {
        let before = self.health.verdict();
        let turn = self.health.observe(passed, policy)?;
        let back = before == EndpointState::Down && turn.verdict() == EndpointState::Up;
        self.slow_start = (back && !slow_start(policy).is_zero()).then_some(SlowStart { since: now, warmth: COLD });
        Some((turn, before))
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

    /// As readers see it.
    pub(crate) fn view(&self) -> EndpointView {
        EndpointView {
            id: self.id,
            address: self.address,
            name: Arc::clone(&self.name),
            weight: self.weight,
            state: self.health.verdict(),
            intent: self.intent,
            warmth: self.slow_start.map_or(1.0, |start| start.warmth),
            meter: Arc::clone(&self.meter),
        }
    }
}

fn slow_start(policy: &HealthPolicy) -> Duration {
    policy.ramp.min(SLOW_START_MOST)
}

/// The endpoints that a pool's lines stand for, in the order of the lines and then of the addresses, continuing those of `old`
/// that are the same.
pub(crate) fn stand_for(
    specs: &[EndpointSpec],
    names: &Names,
    probe: &Probe,
    old: Vec<Endpoint>,
    ids: &mut Ids,
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
                None => Endpoint::new(ids, address, probe, EndpointState::Unknown, Arc::default()),
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
