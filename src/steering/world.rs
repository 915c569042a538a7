//! The slow door: changes in, events and snapshots out. One writer.
//!
//! The world joins what is configured (the view), what was observed (endpoints and pools) and what operators want (by the
//! configuration, or since: `operator`); each is kept apart and only the snapshot puts them side by side. Health is kept by identity: a pool is
//! its service and region by name, an endpoint is in `endpoints`; so a reload that moves, weighs or renames everything around
//! them changes no verdict. Nothing is rebuilt that did not change: a verdict costs its pool's slice of endpoints, a published
//! snapshot one clone of each pool's few words.
//!
//! What an endpoint asks for by its answers to probes (to be drained, less weight) is observed, too: the last pass tells, at once and without
//! hysteresis, for it is a word and no symptom. It turns no verdict and ends no region, so that nothing holds or ramps when
//! it is taken back.
//!
//! It must not know clocks, probes or resolvers: the shells that own those send what they learned.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

mod handing;
mod operator;

use serde::{Deserialize, Serialize};

pub use crate::steering::event::Event;

use crate::steering::clients::Sampling;
use crate::steering::drains::Drains;
use crate::steering::endpoints::{Accusation, Ids, Names, Turned};
use crate::steering::fleet::{self, EndpointAddress, EndpointSpec, Fleet, Intent, Probe, Service};
use crate::steering::handover::Handover;
use crate::steering::ids::{PoolId, RegionId, RegionSet, ServiceId};
use crate::steering::outlier::Peers;
use crate::steering::overrides::{Override, Overrides, Word};
use crate::steering::pool_health::Return;
use crate::steering::pools::Pool;
use crate::steering::shed::Shedding;
use crate::steering::snapshot::{Asked, EndpointId, EndpointState, PoolState, ServiceView, Snapshot, View};
use crate::steering::trip;

/// Milliseconds of the writer's monotonic clock, from any origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Now(pub u64);

impl Now {
    /// The time since `earlier`; none when that lies ahead.
    pub fn since(self, earlier: Now) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The moment so much later.
    pub fn after(self, time: Duration) -> Now {
        Now(self.0.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// How far looks ([`Change::Look`]) lie apart as a rule.
pub const LOOK: Duration = Duration::from_millis(50);

/// A writer that is so much late was stopped, or its machine was: what came of the time between says nothing of endpoints.
const LATE: Duration = Duration::from_millis(500);

/// After such a gap, the traffic is not listened to for this long: what it has to tell was waited for in vain by us, not by it.
const DISTRUST: Duration = Duration::from_secs(1);

/// Something the world learned.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new configuration or new geo data, compiled aside.
    View(View),
    /// A host name now stands for these addresses (all pools that name it).
    Resolved {
        /// Lower case, as in the configuration.
        host: String,
        /// Empty after a failed look-up: the last set stays, but now the name was asked for.
        addresses: Vec<IpAddr>,
    },
    /// A probe ended.
    Probed {
        /// Whose.
        endpoint: EndpointId,
        /// How.
        result: ProbeResult,
        /// When it began.
        began: Now,
    },
    /// Time went by: hold, ramp, slow start and ejections move.
    Tick,
    /// Look at what the traffic of endpoints tells, about every [`LOOK`]. Once there was one, a change that comes much later than the next
    /// one was due shows that this process stood still.
    Look,
    /// An operator said something. [`World::objection`] is to be asked before.
    Said(Word),
    /// Operators' words that were in force before this process, the oldest first.
    Recalled(Vec<Override>),
    /// What another process knew, whose place this one takes. For a world that has observed nothing yet, and whose clock goes on from the
    /// other's.
    HandedOver(Box<Handover>),
    /// The calendar went on to this, in Unix milliseconds: operators' words that are over leave.
    Date(u64),
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// As it should, and what the endpoint asked for with it.
    Pass(Asked),
    /// Why not, in a few words.
    Fail(String),
}

/// The state of everything, owned by the one writer.
#[derive(Debug)]
pub struct World {
    generation: u64,
    view: View,
    /// By `ServiceId`.
    services: Vec<Standing>,
    /// By `PoolId`.
    pools: Vec<Pool>,
    /// By `RegionId`.
    loads: Vec<Shedding>,
    /// Where each endpoint is: its pool, and its index there.
    places: HashMap<EndpointId, (PoolId, usize)>,
    names: Names,
    ids: Ids,
    /// The last look.
    looked: Option<Now>,
    /// When round trips were looked at last.
    trips_looked: Now,
    /// When a gap ended in which this process stood still.
    gap: Option<Now>,
    /// Everything that is probed went down at once.
    suspects_itself: bool,
    overrides: Arc<Overrides>,
    /// What operators want of each region, by `RegionId`.
    intents: Vec<Intent>,
    drains: Drains,
    /// What readers get; empty when something changed since it was last asked for.
    snapshot: OnceLock<Arc<Snapshot>>,
}

/// A service as the writer holds it.
#[derive(Clone, Debug)]
struct Standing {
    view: ServiceView,
    /// Whether a ready region was ever up: without one there is nothing to lose yet.
    stood: bool,
    /// Whether its panic was told.
    panic_told: bool,
    sampling: Sampling,
}

impl World {
    /// A world of which nothing was observed yet; the generation is 1.
    pub fn new(view: View, now: Now) -> World {
        let mut world = World {
            generation: 0,
            view: View { fleet: Arc::default(), ..view.clone() },
            services: Vec::new(),
            pools: Vec::new(),
            loads: Vec::new(),
            places: HashMap::new(),
            names: Names::default(),
            ids: Ids::default(),
            looked: None,
            trips_looked: now,
            gap: None,
            suspects_itself: false,
            overrides: Arc::default(),
            intents: Vec::new(),
            drains: Drains::default(),
            snapshot: OnceLock::new(),
        };
        // Nobody was there before, so that what is so from the start is no event.
        world.apply(Change::View(view), now);
        world
    }

    /// Applies one change; returns what happened. The snapshot is published by the caller when [`World::snapshot`] differs.
    pub fn apply(&mut self, change: Change, now: Now) -> Vec<Event> {
        let mut events = Vec::new();
        self.mind_the_gap(now, &mut events);
        match change {
            Change::View(view) => self.reload(view, now, &mut events),
            Change::Resolved { host, addresses } => self.resolved(&host, addresses, now, &mut events),
            Change::Probed { endpoint, result, began } => self.probed(endpoint, &result, began, now, &mut events),
            Change::Tick => self.tick(now, &mut events),
            Change::Look => self.look(now, &mut events),
            Change::Said(word) => self.said(word, now, &mut events),
            Change::Recalled(words) => self.recalled(words, now, &mut events),
            Change::HandedOver(handover) => self.handed_over(*handover, now, &mut events),
            Change::Date(unix_ms) => self.date(unix_ms, now, &mut events),
        }
        events
    }

    /// The view of the world now; the same `Arc` until something in it changes.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let build = || {
            Arc::new(Snapshot {
                generation: self.generation,
                suspects_itself: self.suspects_itself,
                view: self.view.clone(),
                services: self.services.iter().map(|standing| standing.view.clone()).collect(),
                pools: self.pools.iter().map(|pool| pool.view().clone()).collect(),
                regions: self.loads.iter().map(Shedding::view).collect(),
                clients: self.services.iter().map(|standing| Arc::clone(standing.sampling.clients())).collect(),
                overrides: Arc::clone(&self.overrides),
            })
        };
        Arc::clone(self.snapshot.get_or_init(build))
    }

    /// How long to wait before the next probe of `endpoint` (without jitter); `None` when it is gone or not probed.
    pub fn next_probe(&self, endpoint: EndpointId) -> Option<Duration> {
        let (pool, index) = self.places.get(&endpoint)?;
        let policy = &self.view.fleet.service(self.view.fleet.pool(*pool).service).health;
        let endpoint = &self.pools[pool.index()].endpoints()[*index];
        let delay = || if endpoint.anew { Duration::ZERO } else { endpoint.health.next_delay(policy) };
        (policy.probe != Probe::None).then(delay)
    }

    /// Whether every name was asked for and every probed endpoint has had its first probe result. A reload that brings new ones
    /// makes it false again: who wants readiness to last remembers it.
    pub fn first_round_done(&self) -> bool {
        let mut hosts = self.view.fleet.pools.iter().flat_map(|pool| hosts(&pool.endpoints));
        hosts.all(|host| self.names.asked(host))
            && !self.pools.iter().flat_map(Pool::endpoints).any(|endpoint| endpoint.awaits_probe())
    }

    /// Whether time alone changes something: a region holds or ramps, a drain runs, or an endpoint starts slowly. Without it, ticks do nothing.
    pub fn wants_tick(&self) -> bool {
        self.pools.iter().any(Pool::moves) || self.services.iter().any(Standing::finishes)
    }

    fn reload(&mut self, view: View, now: Now, events: &mut Vec<Event>) {
        let before = std::mem::replace(&mut self.view, view).fleet;
        let fleet = Arc::clone(&self.view.fleet);
        let hosts: HashSet<&str> = fleet.pools.iter().flat_map(|pool| hosts(&pool.endpoints)).collect();
        self.names.retain(|host| hosts.contains(host));

        self.intend(now);

        let mut old_loads: Vec<Option<Shedding>> = self.loads.drain(..).map(Some).collect();
        for region in &fleet.regions {
            let old = before.region_named(&region.name).and_then(|id| old_loads[id.index()].take());
            let mut load = old.unwrap_or_default();
            load.rename(|from| same_regions(&before, &fleet, from));
            self.loads.push(load);
        }

        let same_service = same_services(&before, &fleet);
        let same_pool = same_pools(&before, &fleet, &same_service);
        let mut old_services: Vec<Option<Standing>> = self.services.drain(..).map(Some).collect();
        for same in &same_service {
            let mut standing = same.and_then(|id| old_services[id.index()].take()).unwrap_or_else(Standing::new);
            // Its ids were those of another configuration: all that is still asked for is what of it may be lost.
            let (up, panicking) = (same_regions(&before, &fleet, standing.view.taking()), standing.view.panicking);
            standing.view = ServiceView { up, panicking, ..nothing() };
            self.services.push(standing);
        }
        let mut old_pools: Vec<Option<Pool>> = self.pools.drain(..).map(Some).collect();
        for (index, same) in same_pool.iter().enumerate() {
            let id = PoolId(index as u16);
            let new = fleet.pool(id);
            let probe = &fleet.service(new.service).health.probe;
            let old = same.and_then(|old| Some((old, old_pools[old.index()].take()?)));
            let Some((old_id, pool)) = old else {
                self.pools.push(Pool::new(now));
                self.refit(id);
                continue;
            };
            self.pools.push(pool);
            let old = before.pool(old_id);
            let old_probe = &before.service(old.service).health.probe;
            if old.endpoints != new.endpoints || std::mem::discriminant(old_probe) != std::mem::discriminant(probe) {
                self.refit(id);
            } else if old_id != id {
                self.place(id);
            }
        }
        for endpoint in old_pools.iter().flatten().flat_map(Pool::ids) {
            self.places.remove(&endpoint);
        }
        self.generation += 1;
        self.snapshot.take();
        events.push(Event::Published { generation: self.generation });
        for service in 0..fleet.services.len() {
            self.settle(ServiceId(service as u16), now, events);
        }
        self.suspect(events);
    }

    fn resolved(&mut self, host: &str, addresses: Vec<IpAddr>, now: Now, events: &mut Vec<Event>) {
        let fleet = Arc::clone(&self.view.fleet);
        let names_it = |pool: &PoolId| hosts(&fleet.pool(*pool).endpoints).any(|name| name == host);
        let concerned: Vec<PoolId> =
            (0..fleet.pools.len()).map(|index| PoolId(index as u16)).filter(names_it).collect();
        if concerned.is_empty() || !self.names.learn(host, addresses) {
            return;
        }
        self.snapshot.take();
        let mut services: Vec<ServiceId> = concerned.iter().map(|pool| fleet.pool(*pool).service).collect();
        for pool in concerned {
            self.refit(pool);
        }
        // Pools are grouped by service.
        services.dedup();
        for service in services {
            self.settle(service, now, events);
        }
        self.suspect(events);
    }

    fn probed(&mut self, endpoint: EndpointId, result: &ProbeResult, began: Now, now: Now, events: &mut Vec<Event>) {
        // A result may come after its endpoint left.
        let Some((id, index)) = self.places.get(&endpoint).copied() else { return };
        let fleet = Arc::clone(&self.view.fleet);
        let spec = fleet.pool(id);
        let service = fleet.service(spec.service);
        if service.health.probe == Probe::None {
            return;
        }
        let pool = &mut self.pools[id.index()];
        if self.gap.is_some_and(|gap| began < gap) {
            pool.probe_anew(index);
            return;
        }
        let passed = matches!(result, ProbeResult::Pass(_));
        // Where it is has to be known before anybody is sent there.
        if passed && pool.view().rtt_ms.is_none() && pool.look_at_trips(&service.health, now) {
            self.snapshot.take();
        }
        let drained = pool.endpoints()[index].asked.drain;
        let (turned, changed) = pool.observe(index, result, &service.health, now);
        if turned.is_none() && !changed {
            return;
        }
        if changed {
            self.snapshot.take();
        }
        let endpoint = &pool.endpoints()[index];
        let name = || (service.name.as_str().into(), fleet.region(spec.region).name.as_str().into());
        if let Some(Turned { turn, before, .. }) = turned {
            let (service, region) = name();
            events.push(Event::Endpoint {
                service,
                region,
                address: endpoint.address,
                up: turn.verdict() == EndpointState::Up,
                first: before == EndpointState::Unknown,
                cause: endpoint.down_for.as_deref().map_or_else(|| turn.to_string(), str::to_owned),
            });
        }
        // Weights may move with every answer, which is no news; and one that is down takes back nothing.
        if passed && drained != endpoint.asked.drain {
            let (service, region) = name();
            events.push(Event::Asked { service, region, address: endpoint.address, drain: endpoint.asked.drain });
        }
        if turned.is_some_and(|turned| turned.readmitted) {
            events.push(self.ejection(id, index, None, "its probes failed, and pass again".to_owned()));
        }
        self.settle(spec.service, now, events);
        self.suspect(events);
    }

    /// Whether this process stood still since it looked last. Then nothing that its traffic or its probes told of that time counts.
    fn mind_the_gap(&mut self, now: Now, events: &mut Vec<Event>) {
        let Some(looked) = self.looked else { return };
        let since = now.since(looked);
        if since <= LOOK + LATE {
            return;
        }
        self.looked = Some(now);
        self.gap = Some(now);
        self.pools.iter_mut().for_each(Pool::forget);
        self.loads.iter_mut().for_each(Shedding::forget);
        events.push(Event::Late { by: since - LOOK });
    }

    /// Ejects the endpoints that their traffic speaks against, and sheds what regions carry too much.
    fn look(&mut self, now: Now, events: &mut Vec<Event>) {
        self.looked = Some(now);
        self.shed(now, events);
        self.services.iter_mut().for_each(|standing| standing.sampling.look(now));
        self.look_at_trips(now);
        if self.gap.is_some_and(|gap| now.since(gap) < DISTRUST) {
            self.pools.iter_mut().for_each(Pool::forget);
            return;
        }
        let fleet = Arc::clone(&self.view.fleet);
        for (index, service) in fleet.services.iter().enumerate() {
            let mut ejected = false;
            for id in &service.pools {
                self.pools[id.index()].look();
            }
            let mut all = self.peers(service);
            for id in &service.pools {
                if ejected {
                    // Fewer are left to compare with, and to go to.
                    all = self.peers(service);
                }
                let beside = all.without(self.peers_of(*id));
                for (endpoint, Accusation { cause, certain }) in
                    self.pools[id.index()].accused(&service.health, [&all, &beside], now)
                {
                    let mut others = self.passing(service, &fleet);
                    others.remove(fleet.pool(*id).region);
                    let pool = &mut self.pools[id.index()];
                    if !certain && others.is_empty() && !pool.has_beside(endpoint) {
                        continue;
                    }
                    if let Some(time) = pool.eject(endpoint, &cause, !others.is_empty(), &service.health, now) {
                        events.push(self.ejection(*id, endpoint, Some(time), cause));
                        ejected = true;
                    }
                }
            }
            if ejected {
                self.snapshot.take();
                self.settle(ServiceId(index as u16), now, events);
            }
        }
    }

    /// What is known of the endpoints of a service together.
    fn peers(&self, service: &Service) -> Peers {
        service.pools.iter().map(|id| self.peers_of(*id)).fold(Peers::default(), Peers::and)
    }

    /// The same of a pool: one that an operator took out is nobody to go to.
    fn peers_of(&self, id: PoolId) -> Peers {
        let peers = self.pools[id.index()].peers();
        Peers { up: if self.intent(id) == Intent::Ready { peers.up } else { 0 }, ..peers }
    }

    /// Looks at the round trips to all regions. Few services ask for them, but one that will has to be told from the start.
    fn look_at_trips(&mut self, now: Now) {
        if now.since(self.trips_looked) < trip::EVERY {
            return;
        }
        self.trips_looked = now;
        for (spec, pool) in self.view.fleet.pools.iter().zip(&mut self.pools) {
            if pool.look_at_trips(&self.view.fleet.service(spec.service).health, now) {
                self.snapshot.take();
            }
        }
    }

    fn shed(&mut self, now: Now, events: &mut Vec<Event>) {
        for (region, load) in self.view.fleet.regions.iter().zip(&mut self.loads) {
            if load.look(region.capacity.as_ref(), now) {
                self.snapshot.take();
            }
            if let Some(on) = load.turned() {
                let capacity = region.capacity;
                let (region, carried) = (region.name.as_str().into(), load.average().round() as u64);
                events.push(Event::Shedding { region, on, carried, capacity });
            }
        }
    }

    fn ejection(&self, id: PoolId, index: usize, time: Option<Duration>, cause: String) -> Event {
        let fleet = &self.view.fleet;
        let pool = fleet.pool(id);
        Event::Ejection {
            service: fleet.service(pool.service).name.as_str().into(),
            region: fleet.region(pool.region).name.as_str().into(),
            address: self.pools[id.index()].endpoints()[index].address,
            time,
            cause,
        }
    }

    /// Everything that is probed, in two regions or more, went down within the time that finding it out takes: this PoP's own network is the
    /// likelier cause. It stays so until something is up again.
    fn suspect(&mut self, events: &mut Vec<Event>) {
        let fleet = Arc::clone(&self.view.fleet);
        let (mut regions, mut count, mut all) = (RegionSet::EMPTY, 0, true);
        let (mut first, mut last, mut bound) = (u64::MAX, 0, Duration::ZERO);
        for (spec, pool) in fleet.pools.iter().zip(&self.pools) {
            let health = &fleet.service(spec.service).health;
            if health.probe == Probe::None {
                continue;
            }
            bound = bound.max(health.detection_bound());
            for endpoint in pool.endpoints() {
                regions.insert(spec.region);
                count += 1;
                match endpoint.down_since {
                    Some(since) => (first, last) = (first.min(since.0), last.max(since.0)),
                    None => all = false,
                }
            }
        }
        let at_once = || Now(last).since(Now(first)) <= bound;
        let suspects = all && count >= 2 && regions.len() >= 2 && (self.suspects_itself || at_once());
        if std::mem::replace(&mut self.suspects_itself, suspects) != suspects {
            self.snapshot.take();
            events.push(Event::SelfSuspicion { on: suspects });
        }
    }

    /// Regions of a service on which others may count: ready, up, neither just back nor waiting, and not asking to be drained.
    fn passing(&self, service: &Service, fleet: &Fleet) -> RegionSet {
        self.regions(service, |pool, intent| intent == Intent::Ready && pool.serves(&service.health), fleet)
    }

    fn tick(&mut self, now: Now, events: &mut Vec<Event>) {
        let fleet = Arc::clone(&self.view.fleet);
        for (index, service) in fleet.services.iter().enumerate() {
            let moves = service.pools.iter().any(|pool| self.pools[pool.index()].moves());
            if !moves && !self.services[index].finishes() {
                continue;
            }
            for pool in &service.pools {
                if self.pools[pool.index()].warm(&service.health, now) {
                    self.snapshot.take();
                }
                for endpoint in self.pools[pool.index()].tick(&service.health, now) {
                    self.snapshot.take();
                    let nothing = service.health.ejects_nothing();
                    let cause = if nothing { "nothing ejects any more" } else { "its time is over" };
                    events.push(self.ejection(*pool, endpoint, None, cause.to_owned()));
                }
            }
            self.settle(ServiceId(index as u16), now, events);
        }
    }

    /// Moves the pools of a service, and the service, to where the endpoints and time put them.
    fn settle(&mut self, id: ServiceId, now: Now, events: &mut Vec<Event>) {
        let fleet = Arc::clone(&self.view.fleet);
        let service = fleet.service(id);
        let back = Return::new(&service.health, service.failback);
        // Fixed before any pool moves: two regions that wait while the last other one falls both cease to wait.
        let passing = self.passing(service, &fleet);
        for pool in &service.pools {
            let region = fleet.pool(*pool).region;
            let mut others = passing;
            others.remove(region);
            let pool = &mut self.pools[pool.index()];
            let (from, changed) = pool.settle(&service.health, &back, !others.is_empty(), now);
            if let Some(from) = from {
                events.push(Event::Region {
                    service: service.name.as_str().into(),
                    region: fleet.region(region).name.as_str().into(),
                    from,
                    to: pool.view().state,
                });
            }
            if changed {
                self.snapshot.take();
            }
        }
        let up = self.regions(service, |pool, _| pool.view().state.is_up(), &fleet);
        let holding = self.regions(service, |pool, _| pool.view().state == PoolState::Holding, &fleet);
        let unproven = self.regions(
            service,
            |pool, intent| intent == Intent::Ready && pool.view().state == PoolState::Unknown,
            &fleet,
        );
        let intent = |region: RegionId| service.pool_of[region.index()].map_or(Intent::Ready, |pool| self.intent(pool));
        let mut view = ServiceView::new(service, intent, up, holding);
        view.leaving = self.regions(service, |pool, _| pool.view().state.is_up() && pool.leaves(), &fleet);
        // Endpoints that are drained one by one finish without a bound: their region does not drain.
        let whole = |region: &RegionId| self.intents[region.index()] == Intent::Drain;
        let drained: RegionSet = view.drained.iter().filter(whole).collect();
        let finishing = self.drains.finishing(&fleet, drained, service.drain_timeout, now);
        view.finishing = view.drained.without(drained).or(finishing);
        let lost = self.services[id.index()].view.taking().without(view.taking());
        self.receive(service, lost);
        let standing = &mut self.services[id.index()];
        if standing.view != view {
            self.snapshot.take();
        }
        if let Some(on) = standing.stand(view, !unproven.is_empty()) {
            events.push(Event::Panic { service: service.name.as_str().into(), on });
        }
    }

    /// Regions of a service are lost: those that are left get their clients.
    fn receive(&mut self, service: &Service, lost: RegionSet) {
        let fleet = Arc::clone(&self.view.fleet);
        for gone in lost.and(service.regions).iter() {
            for receiver in service.regions.without(lost).iter() {
                let Some(capacity) = &fleet.region(receiver).capacity else { continue };
                let carried = fleet.region(gone).capacity.filter(|lost| lost.unit == capacity.unit);
                if self.loads[receiver.index()].receive(capacity, gone, carried.map(|lost| lost.target)) {
                    self.snapshot.take();
                }
            }
        }
    }

    /// The regions of a service of whose pool and intent `is` holds.
    fn regions(&self, service: &Service, is: impl Fn(&Pool, Intent) -> bool, fleet: &Fleet) -> RegionSet {
        let chosen = |pool: &&PoolId| is(&self.pools[pool.index()], self.intent(**pool));
        service.pools.iter().filter(chosen).map(|pool| fleet.pool(*pool).region).collect()
    }

    /// Gives a pool the endpoints that its lines stand for now.
    fn refit(&mut self, id: PoolId) {
        let spec = self.view.fleet.pool(id);
        let probe = &self.view.fleet.service(spec.service).health.probe;
        let pool = &mut self.pools[id.index()];
        for endpoint in pool.ids() {
            self.places.remove(&endpoint);
        }
        pool.refit(&spec.endpoints, &self.names, probe, &mut self.ids, self.loads[spec.region.index()].load());
        pool.ordain(|endpoint| operator::wanted(&self.overrides, endpoint));
        self.place(id);
    }

    /// Notes where a pool's endpoints are.
    fn place(&mut self, id: PoolId) {
        for (index, endpoint) in self.pools[id.index()].ids().enumerate() {
            self.places.insert(endpoint, (id, index));
        }
    }
}

/// Of a service of which nothing is known.
fn nothing() -> ServiceView {
    let none = RegionSet::EMPTY;
    let (drained, finishing, maint) = (none, none, none);
    ServiceView { drained, finishing, maint, up: none, holding: none, leaving: none, panicking: true }
}

impl Standing {
    fn new() -> Standing {
        let view = nothing();
        Standing { view, stood: false, panic_told: false, sampling: Sampling::default() }
    }

    /// Whether a drain runs that time will end.
    fn finishes(&self) -> bool {
        !self.view.finishing.is_empty()
    }

    /// Takes its new view; returns whether a panic that is worth telling began or ended. `unproven`: a ready region has no verdict yet.
    fn stand(&mut self, view: ServiceView, unproven: bool) -> Option<bool> {
        self.stood |= !view.panicking;
        let telling = view.panicking && (self.panic_told || self.stood || !unproven);
        self.view = view;
        (std::mem::replace(&mut self.panic_told, telling) != telling).then_some(telling)
    }
}

/// The host names among a pool's lines.
fn hosts(specs: &[EndpointSpec]) -> impl Iterator<Item = &str> {
    specs.iter().filter_map(|spec| match &spec.address {
        EndpointAddress::Name { host, .. } => Some(host.as_str()),
        EndpointAddress::Socket(_) => None,
    })
}

/// For each service of `after`, the one of the same name in `before`.
fn same_services(before: &Fleet, after: &Fleet) -> Vec<Option<ServiceId>> {
    let ids: HashMap<&str, ServiceId> =
        before.services.iter().enumerate().map(|(index, s)| (s.name.as_str(), ServiceId(index as u16))).collect();
    after.services.iter().map(|service| ids.get(service.name.as_str()).copied()).collect()
}

/// The regions of `after` that have the names of these of `before`.
fn same_regions(before: &Fleet, after: &Fleet, regions: RegionSet) -> RegionSet {
    regions.iter().filter_map(|region| after.region_named(&before.region(region).name)).collect()
}

/// For each pool of `after`, the one of the same service and region in `before`.
fn same_pools(before: &Fleet, after: &Fleet, same_service: &[Option<ServiceId>]) -> Vec<Option<PoolId>> {
    let same_region: Vec<_> = after.regions.iter().map(|region| before.region_named(&region.name)).collect();
    let same = |pool: &fleet::Pool| {
        let service = same_service[pool.service.index()]?;
        before.service(service).pool_of[same_region[pool.region.index()]?.index()]
    };
    after.pools.iter().map(same).collect()
}
