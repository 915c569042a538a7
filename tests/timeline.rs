//! Long random changes through the world on a made-up clock: probes, resolutions, reloads, operators' words, time. After
//! each change the whole snapshot is held against a simple model and the laws of health and reload.
//!
//! A failure prints its seed; `TIMELINE_SEED=n` runs that schedule alone, `TIMELINE_SCHEDULES=n` more of them.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test")]

#[path = "timeline/asked.rs"]
mod asked;
mod common;
#[path = "timeline/model.rs"]
mod model;
#[path = "timeline/outlier.rs"]
mod outlier;
#[path = "timeline/plan.rs"]
mod plan;
#[path = "timeline/shedding.rs"]
mod shedding;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use common::dice::Dice;
use common::fleet::{default_health, fleet, pool, service, view};
use meridian::geo::{Atlas, Canonical};
use meridian::steering::fleet::{HealthPolicy, Intent, Probe};
use meridian::steering::ids::RegionSet;
use meridian::steering::snapshot::{Asked, EndpointId, EndpointState, EndpointView, PoolState, PoolView, Snapshot};
use meridian::steering::world::ProbeResult;
use meridian::steering::{Change, Event, Now, Query, World};
use model::{Key, Known, kind};
use plan::{HOSTS, Plan, REGIONS, random_service};

const STEPS: u64 = 120;

#[test]
fn laws_hold_through_random_schedules() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number("TIMELINE_SEED") {
        return drop(run(seed));
    }
    let mut seen = BTreeMap::new();
    for seed in 0..number("TIMELINE_SCHEDULES").unwrap_or(10_000) {
        for moved in run(seed) {
            *seen.entry(moved).or_insert(0) += 1;
        }
    }
    // The schedules are worth nothing if they do not get everywhere.
    let words = ["unknown", "up", "holding", "ramping", "down"];
    for [from, to] in words.iter().flat_map(|from| words.map(|to| [*from, to])) {
        let count = seen.get(&(from, to)).copied().unwrap_or(0);
        assert_eq!(count > 20, may_follow(from, to), "{from} → {to} was seen {count} times");
    }
}

fn may_follow(from: &str, to: &str) -> bool {
    match from {
        "unknown" => ["up", "down"].contains(&to),
        "up" => ["unknown", "down"].contains(&to),
        "holding" => ["ramping", "up", "down"].contains(&to),
        "ramping" => ["up", "down"].contains(&to),
        _ => ["holding", "ramping", "up"].contains(&to),
    }
}

/// Runs one schedule; returns every change of a region's state.
fn run(seed: u64) -> Vec<(&'static str, &'static str)> {
    let mut run = Run::new(seed);
    for step in 0..STEPS {
        run.trace.1 = step;
        run.step();
    }
    run.check_handover();
    std::mem::take(&mut run.moved)
}

/// What is known of a pool and of its endpoints, without what belongs to one process.
fn known(pool: &PoolView) -> impl PartialEq + std::fmt::Debug + use<> {
    let of = |e: &EndpointView| (e.address, e.weight, e.state, e.cause.clone(), e.ejected, e.intent, e.warmth, e.asked);
    let endpoints: Vec<_> = pool.endpoints.iter().map(of).collect();
    // Written out, a fraction may change in its last digit.
    let [ramp, spill] = [pool.ramp, pool.spill].map(|fraction| (fraction * 1e12).round());
    (pool.state, ramp, spill, pool.epoch, pool.changed_ms, endpoints)
}

/// Says which schedule failed.
struct Trace(u64, u64);

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("TIMELINE_SEED={} fails at step {}", self.0, self.1);
        }
    }
}

struct Run {
    trace: Trace,
    dice: Dice,
    now: Now,
    atlas: Arc<Atlas>,
    plan: Plan,
    world: World,
    last: Arc<Snapshot>,
    known: BTreeMap<Key, Known>,
    ids: HashSet<EndpointId>,
    resolved: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Percent of probes that pass, by region.
    moods: BTreeMap<&'static str, u64>,
    moved: Vec<(&'static str, &'static str)>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut dice = Dice::new(seed);
        let count = dice.roll(1..5) as usize;
        let regions: Vec<_> = REGIONS[..count].iter().map(|name| ((*name).to_owned(), Intent::Ready)).collect();
        let services = ["web", "api"].map(|name| random_service(&mut dice, name, &regions)).into();
        let plan = Plan { regions, services };
        let atlas = Arc::new(Atlas::empty());
        let now = Now(dice.roll(0..1 << 40));
        let world = World::new(plan.view(&atlas, None), now);
        let last = world.snapshot();
        let moods = REGIONS.iter().map(|region| (*region, 97)).collect();
        let mut run = Run {
            trace: Trace(seed, 0),
            dice,
            now,
            atlas,
            plan,
            world,
            last,
            known: BTreeMap::new(),
            ids: HashSet::new(),
            resolved: BTreeMap::new(),
            moods,
            moved: Vec::new(),
        };
        run.follow_endpoints();
        run.check_endpoints();
        run
    }

    /// Another process that takes over knows the same, and nothing of it is news; and goes on as this one would have.
    fn check_handover(&mut self) {
        self.world.apply(Change::Tick, self.now);
        self.last = self.world.snapshot();
        let written = serde_json::to_string(&self.world.handover()).unwrap();
        let mut next = World::new(self.plan.view(&self.atlas, None), self.now);
        let events = next.apply(Change::HandedOver(Box::new(serde_json::from_str(&written).unwrap())), self.now);
        assert!(
            events.iter().all(|event| matches!(event, Event::Panic { .. } | Event::SelfSuspicion { .. })),
            "{events:?}"
        );
        for ahead in [0, 1000, 40_000] {
            let now = self.now.after(Duration::from_millis(ahead));
            let tick = |world: &mut World| {
                world.apply(Change::Look, now);
                world.apply(Change::Tick, now);
                world.snapshot()
            };
            if ahead > 0 {
                (self.last, _) = (tick(&mut self.world), tick(&mut next));
            }
            let (here, there) = (&self.last, next.snapshot());
            assert_eq!(here.suspects_itself, there.suspects_itself);
            assert_eq!(here.services, there.services, "{ahead} ms later");
            for (here, there) in here.pools.iter().zip(&there.pools) {
                assert_eq!(known(here), known(there), "{ahead} ms later");
            }
        }
    }

    fn step(&mut self) {
        let wait = *self.dice.pick(&[0, 0, 50, 200, 250, 1000, 1000, 3000, 12_000]);
        self.now.0 += wait;
        let mut tripped = None;
        let change = match self.dice.roll(0..100) {
            0..10 => {
                tripped = self.trip();
                Change::Look
            }
            10..65 => self.random_probe(),
            65..80 => Change::Tick,
            80..87 => {
                let addresses: Vec<IpAddr> =
                    (0..self.dice.roll(1..4)).map(|_| [192, 0, 2, self.dice.roll(1..10) as u8].into()).collect();
                Change::Resolved { host: (*self.dice.pick(&HOSTS)).to_owned(), addresses }
            }
            87..96 => self.random_reload(),
            _ => {
                let region = *self.dice.pick(&REGIONS);
                let mood = *self.dice.pick(&[100, 97, 50, 3, 0]);
                self.moods.insert(region, mood);
                Change::Tick
            }
        };
        let before = Arc::clone(&self.last);
        let still = !self.world.wants_tick() && matches!(change, Change::Tick);
        let (turns, asks) = self.follow(&change);
        let looks = matches!(change, Change::Look);
        let events = self.world.apply(change, self.now);
        self.last = self.world.snapshot();
        assert!(Arc::ptr_eq(&self.last, &self.world.snapshot()));
        assert_eq!(Arc::ptr_eq(&before, &self.last), !differs(&before, &self.last), "published iff it differs");
        let quiet = events.iter().all(|event| matches!(event, Event::Late { .. }));
        assert!(!still || (Arc::ptr_eq(&before, &self.last) && quiet), "time moves what wants ticks only");

        assert!(!looks || self.world.apply(Change::Look, self.now).is_empty(), "a look sees what is new only");
        self.follow_endpoints();
        self.check_ejections(&before, &events, tripped);
        self.check_endpoints();
        self.check_suspicion(&events);
        self.check_operators();
        self.check_takes();
        let moved = self.check_pools(&before);
        let told: BTreeSet<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Region { service, region, from, to } => {
                    Some((service.to_string(), region.to_string(), from.as_str(), to.as_str()))
                }
                _ => None,
            })
            .collect();
        assert_eq!(told, moved, "events tell what moved");
        self.moved.extend(moved.into_iter().map(|(_, _, from, to)| (from, to)));
        let told = events.iter().filter(|event| matches!(event, Event::Endpoint { .. })).count();
        assert_eq!(told, turns, "events tell which verdicts turned");
        let told = events.iter().filter(|event| matches!(event, Event::Asked { .. })).count();
        assert_eq!(told, asks, "events tell who asks to be drained");
    }

    fn random_probe(&mut self) -> Change {
        let keys: Vec<&Key> = self.known.keys().collect();
        if keys.is_empty() {
            return Change::Tick;
        }
        let key = (*self.dice.pick(&keys)).clone();
        // An endpoint that left long ago may still have a result on the way.
        let endpoint = if self.dice.percent(98) { self.known[&key].id } else { EndpointId(self.dice.roll(0..50)) };
        let region = self.known.iter().find(|(_, known)| known.id == endpoint).map(|(key, _)| key.1.as_str());
        let passed = self.dice.percent(region.map_or(50, |region| self.moods[region]));
        Change::Probed {
            began: Now(u64::MAX),
            endpoint,
            result: if passed { ProbeResult::Pass(self.random_asked()) } else { ProbeResult::Fail("test".into()) },
        }
    }

    /// Most answers ask for nothing.
    fn random_asked(&mut self) -> Asked {
        if self.dice.percent(75) {
            return Asked::default();
        }
        Asked { drain: self.dice.percent(70), weight: *self.dice.pick(&[100, 100, 60, 5, 0]) }
    }

    /// An endpoint's traffic fails too often, while the process runs as it should.
    fn trip(&mut self) -> Option<Key> {
        for _ in 0..4 {
            self.now.0 += 400;
            let events = self.world.apply(Change::Look, self.now);
            assert!(events.iter().all(|event| matches!(event, Event::Late { .. })), "{events:?}");
        }
        self.now.0 += 50;
        let keys: Vec<&Key> = self.known.keys().collect();
        let key = if keys.is_empty() { return None } else { (*self.dice.pick(&keys)).clone() };
        self.known[&key].meter.failed(1);
        Some(key)
    }

    fn random_reload(&mut self) -> Change {
        self.plan.change(&mut self.dice);
        Change::View(self.plan.view(&self.atlas, Some(&self.last.view)))
    }

    /// Tells the model what comes; returns how many verdicts turn, and how many drains are asked for or no more.
    fn follow(&mut self, change: &Change) -> (usize, usize) {
        match change {
            Change::Probed { endpoint, result, .. } => {
                let Some((key, known)) = self.known.iter_mut().find(|(_, known)| known.id == *endpoint) else {
                    return (0, 0);
                };
                let policy = self.plan.policy(&key.0);
                if policy.probe == Probe::None {
                    return (0, 0);
                }
                known.results.push((matches!(result, ProbeResult::Pass(_)), policy.fall, policy.rise));
                let verdict = known.judge();
                let before = std::mem::replace(&mut known.verdict, verdict);
                if verdict != before {
                    known.out = match known.out {
                        Some((_, true)) if verdict == EndpointState::Up => None,
                        Some((until, confirmed)) => Some((until, confirmed || verdict == EndpointState::Down)),
                        None => None,
                    };
                }
                let asked = match (verdict, result) {
                    (EndpointState::Down, _) => Asked::default(),
                    (_, ProbeResult::Pass(asked)) => *asked,
                    (_, ProbeResult::Fail(_)) => known.asked,
                };
                let old = std::mem::replace(&mut known.asked, asked);
                let passed = matches!(result, ProbeResult::Pass(_));
                (usize::from(known.verdict != before), usize::from(passed && old.drain != asked.drain))
            }
            Change::Resolved { host, addresses } if self.plan.names(host) => {
                self.resolved.insert(host.clone(), addresses.iter().copied().collect());
                (0, 0)
            }
            Change::View(_) => {
                let plan = &self.plan;
                self.resolved.retain(|host, _| plan.names(host));
                (0, 0)
            }
            _ => (0, 0),
        }
    }

    /// Which endpoints there should be, with their weights.
    fn expected(&self) -> BTreeMap<Key, u32> {
        let mut expected = BTreeMap::new();
        for service in &self.plan.services {
            let kind = kind(&service.health.probe);
            for (region, pool) in &service.pools {
                for (address, weight) in &pool.endpoints {
                    let addresses: Vec<SocketAddr> = match address.parse() {
                        Ok(address) => vec![address],
                        Err(_) => {
                            let resolved = self.resolved.get(address.split(':').next().unwrap());
                            resolved.into_iter().flatten().map(|ip| SocketAddr::new(*ip, 80)).collect()
                        }
                    };
                    for address in addresses {
                        let key = (service.name.clone(), region.clone(), address, kind);
                        *expected.entry(key).or_insert(0) += weight;
                    }
                }
            }
        }
        expected
    }

    /// Lets endpoints leave and come in the model as the plan says.
    fn follow_endpoints(&mut self) {
        let expected = self.expected();
        let gone: Vec<Key> = self.known.keys().filter(|key| !expected.contains_key(*key)).cloned().collect();
        let gone: Vec<(Key, Known)> = gone.into_iter().filter_map(|key| self.known.remove_entry(&key)).collect();
        for (service, region, address, kind) in expected.into_keys() {
            let key = (service.clone(), region.clone(), address, kind);
            if self.known.contains_key(&key) {
                continue;
            }
            let pool = pool_view(&self.last, &service, &region).unwrap();
            let endpoint = pool.endpoints.iter().find(|e| e.address == address).unwrap();
            assert!(self.ids.insert(endpoint.id), "an id is never given again");
            // Only the kind of probe may differ: what was known stands.
            let same =
                gone.iter().find(|(k, _)| (&k.0, &k.1, k.2) == (&service, &region, address)).map(|(_, known)| known);
            assert!(same.is_none_or(|known| Arc::ptr_eq(&known.meter, &endpoint.meter)));
            let given = if self.plan.policy(&service).probe == Probe::None {
                EndpointState::Up
            } else {
                same.map_or(EndpointState::Unknown, |known| known.verdict)
            };
            let (meter, out) = (Arc::clone(&endpoint.meter), same.and_then(|known| known.out));
            let (results, asked) = (Vec::new(), Asked::default());
            self.known.insert(key, Known { id: endpoint.id, meter, given, results, verdict: given, asked, out });
        }
    }

    fn check_endpoints(&self) {
        let expected = self.expected();
        let snapshot = &self.last;
        let mut waiting = 0;
        let mut count = 0;
        for (pool, view) in snapshot.fleet().pools.iter().zip(&snapshot.pools) {
            let service = snapshot.fleet().service(pool.service);
            let region = snapshot.fleet().region(pool.region);
            let kind = kind(&service.health.probe);
            for endpoint in view.endpoints.iter() {
                count += 1;
                let key = (service.name.clone(), region.name.clone(), endpoint.address, kind);
                assert_eq!(Some(&endpoint.weight), expected.get(&key), "{key:?}");
                let known = &self.known[&key];
                assert_eq!(endpoint.id, known.id, "an endpoint keeps its id: {key:?}");
                assert!(Arc::ptr_eq(&endpoint.meter, &known.meter), "an endpoint keeps its counters: {key:?}");
                let state = if known.out.is_some() { EndpointState::Down } else { known.verdict };
                assert_eq!(endpoint.state, state, "{key:?} after {:?}, out: {:?}", known.results, known.out);
                assert_eq!(endpoint.ejected.until_ms, known.out.map(|(until, _)| until), "{key:?}");
                assert_eq!(endpoint.cause.is_some(), endpoint.state == EndpointState::Down, "{key:?}");
                assert!((0.1..=1.0).contains(&endpoint.warmth));
                assert_eq!(endpoint.asked, known.asked, "{key:?}");
                let probed = service.health.probe != Probe::None;
                waiting += usize::from(probed && known.results.is_empty());
                let delay = if known.in_doubt(&service.health) {
                    service.health.fast_interval
                } else {
                    service.health.interval
                };
                assert_eq!(self.world.next_probe(endpoint.id), probed.then_some(delay), "{key:?}");
            }
        }
        assert_eq!(count, expected.len(), "every endpoint is there once");
        let asked = HOSTS.iter().all(|host| !self.plan.names(host) || self.resolved.contains_key(*host));
        assert_eq!(self.world.first_round_done(), waiting == 0 && asked);
    }

    /// Who is ejected, why and for how long.
    fn check_ejections(&mut self, before: &Snapshot, events: &[Event], tripped: Option<Key>) {
        let (snapshot, now) = (&self.last, self.now.0);
        let fleet = snapshot.fleet();
        let told = |over: bool| {
            let is = |event: &&Event| matches!(event, Event::Ejection { time, .. } if time.is_none() == over);
            events.iter().filter(is).count()
        };
        let mut ejected = 0;
        if let Some(key) = tripped {
            let policy = self.plan.policy(&key.0);
            let (pool, old) = [snapshot, before].map(|of| pool_view(of, &key.0, &key.1).unwrap()).into();
            let is_it = |e: &&EndpointView| e.address == key.2;
            let view = pool.endpoints.iter().find(is_it).unwrap();
            let was = old.endpoints.iter().find(is_it).unwrap();
            let out = old.endpoints.iter().filter(|e| e.ejected.until_ms.is_some()).count();
            let others = fleet.regions.iter().any(|other| {
                let passes = pool_view(before, &key.0, &other.name)
                    .is_some_and(|pool| matches!(pool.state, PoolState::Up | PoolState::Ramping) && !leaves(pool));
                other.intent == Intent::Ready && other.name != key.1 && passes
            });
            let room = out < if others { old.endpoints.len() } else { old.endpoints.len().div_ceil(2) };
            let due = was.state == EndpointState::Up && room;
            ejected = usize::from(due);
            assert_eq!(view.ejected.count - was.ejected.count, u32::from(due), "{key:?}: {out} out, others: {others}");
            if due {
                let until = view.ejected.until_ms.unwrap();
                let (least, most) = (policy.passive.eject, policy.passive.eject_max);
                assert!((least..=most).contains(&Duration::from_millis(until - now)), "{key:?} until {until}");
                self.known.get_mut(&key).unwrap().out = Some((until, false));
            }
        }
        assert_eq!(told(false), ejected, "{events:?}");
        // Time ends the others, at a tick.
        let mut over = 0;
        for (key, known) in &mut self.known {
            let view =
                pool_view(snapshot, &key.0, &key.1).unwrap().endpoints.iter().find(|e| e.id == known.id).unwrap();
            if let (Some((until, _)), None) = (known.out, view.ejected.until_ms) {
                assert!(now >= until, "{key:?} came back before its time");
                known.out = None;
                over += 1;
            }
        }
        let readmitted = events
            .iter()
            .any(|event| matches!(event, Event::Ejection { time: None, cause, .. } if cause.contains("probes failed")));
        assert_eq!(told(true), over + usize::from(readmitted), "{events:?}");
    }

    /// A PoP suspects itself only while everything that is probed is down, in two regions or more.
    fn check_suspicion(&self, events: &[Event]) {
        let snapshot = &self.last;
        let fleet = snapshot.fleet();
        let probed = fleet.pools.iter().filter(|pool| fleet.service(pool.service).health.probe != Probe::None);
        let regions: BTreeSet<_> = probed.map(|pool| pool.region).collect();
        let down = |known: &&Known| known.verdict == EndpointState::Down;
        let (total, lost) = self
            .known
            .iter()
            .filter(|(key, _)| key.3 != "none")
            .fold((0, 0), |(total, lost), (_, known)| (total + 1, lost + usize::from(down(&known))));
        if snapshot.suspects_itself {
            assert!(total >= 2 && lost == total && regions.len() >= 2, "{lost} of {total} down in {regions:?}");
        }
        for event in events {
            if let Event::SelfSuspicion { on } = event {
                assert_eq!(*on, snapshot.suspects_itself);
            }
        }
    }

    /// Operators' words are as configured, whatever was observed; and what was observed is beside them, not under them.
    fn check_operators(&self) {
        let snapshot = &self.last;
        let fleet = snapshot.fleet();
        for (service, view) in fleet.services.iter().zip(&snapshot.services) {
            let with = |is: &dyn Fn(Intent, &PoolView) -> bool| -> RegionSet {
                let pools = service.pools.iter().map(|id| (fleet.pool(*id).region, snapshot.pool(*id)));
                pools
                    .filter(|(region, pool)| is(fleet.region(*region).intent, pool))
                    .map(|(region, _)| region)
                    .collect()
            };
            assert_eq!(view.drained, with(&|intent, _| intent == Intent::Drain));
            assert_eq!(view.maint, with(&|intent, _| intent == Intent::Maint));
            assert_eq!(view.up, with(&|_, pool| pool.state.is_up()));
            assert_eq!(view.leaving, with(&|_, pool| pool.state.is_up() && leaves(pool)));
            assert_eq!(view.holding, with(&|_, pool| pool.state == PoolState::Holding));
            assert_eq!(view.panicking, with(&|i, pool| i == Intent::Ready && pool.state.is_up()).is_empty());
        }
    }

    /// Nobody is sent where it is down while it is up elsewhere, nor where an operator does not want him.
    fn check_takes(&mut self) {
        let snapshot = Arc::clone(&self.last);
        for (index, view) in snapshot.services.iter().enumerate() {
            let address = IpAddr::from((self.dice.roll(1 << 24..200 << 24) as u32).to_be_bytes());
            let service = meridian::steering::ServiceId(index as u16);
            let chance = self.dice.roll(0..u64::MAX);
            let query =
                Query { client: Canonical::new(address), service, chance, affinity: None, full: RegionSet::EMPTY };
            let good = view.up.without(view.drained).without(view.maint);
            let staying = good.without(view.leaving);
            match snapshot.walk(&query).take(&snapshot) {
                Ok(take) => {
                    assert!(!view.drained.or(view.maint).contains(take.region), "{take:?} of {view:?}");
                    assert!(good.is_empty() || good.contains(take.region), "{take:?} of {view:?}");
                    let endpoint = &snapshot.pool(take.pool).endpoints[usize::from(take.endpoint)];
                    assert!(good.is_empty() || endpoint.state == EndpointState::Up, "{take:?}: {endpoint:?}");
                    assert!(staying.is_empty() || staying.contains(take.region), "{take:?} of {view:?}");
                    assert!(staying.is_empty() || !endpoint.asked.drain, "{take:?}: {endpoint:?}");
                }
                Err(refusal) => assert!(good.is_empty(), "{refusal:?} with {view:?}"),
            }
        }
    }

    /// The laws of a region's state; returns what changed.
    fn check_pools(&self, before: &Snapshot) -> BTreeSet<(String, String, &'static str, &'static str)> {
        let snapshot = &self.last;
        let fleet = snapshot.fleet();
        let mut moved = BTreeSet::new();
        for (pool, view) in fleet.pools.iter().zip(&snapshot.pools) {
            let service = fleet.service(pool.service);
            let region = &fleet.region(pool.region).name;
            let here = format!("{} in {region}", service.name);
            check_numbers(view, &service.health, &here);
            // Who else could serve: up and not waiting, before and after, and no operator against it.
            let serves = |of: &Snapshot, name: &str| {
                pool_view(of, &service.name, name)
                    .is_some_and(|p| matches!(p.state, PoolState::Up | PoolState::Ramping) && !leaves(p))
            };
            let others = |also_before: bool| {
                fleet.regions.iter().any(|other| {
                    let ready = other.intent == Intent::Ready && other.name != *region;
                    ready && serves(snapshot, &other.name) && (!also_before || serves(before, &other.name))
                })
            };
            if matches!(view.state, PoolState::Holding | PoolState::Ramping) {
                assert!(others(false), "{here} is {:?} with nobody to serve instead", view.state);
            }
            let Some(old) = pool_view(before, &service.name, region) else {
                let expected = if view.endpoints.iter().any(|e| e.state == EndpointState::Up) {
                    PoolState::Up
                } else {
                    PoolState::Unknown
                };
                assert_eq!((view.state, view.epoch), (expected, 0), "{here} is new");
                if expected == PoolState::Up {
                    moved.insert((service.name.clone(), region.clone(), "unknown", "up"));
                }
                continue;
            };
            let fell = u32::from(view.state == PoolState::Down && old.state != PoolState::Down);
            assert_eq!(view.epoch, old.epoch + fell, "{here}: the epoch rises exactly at falls");
            if view.state == old.state {
                assert_eq!(view.changed_ms, old.changed_ms, "{here}");
                assert!(view.ramp >= old.ramp, "{here}: a ramp never falls");
                continue;
            }
            assert_eq!(view.changed_ms, self.now.0, "{here}");
            assert!(may_follow(old.state.as_str(), view.state.as_str()), "{here}: {:?} → {:?}", old.state, view.state);
            moved.insert((service.name.clone(), region.clone(), old.state.as_str(), view.state.as_str()));
            // A return never skips hold and ramp unless no other region passes.
            let (hold, ramp) = (service.health.hold, service.health.ramp);
            let elapsed = Duration::from_millis(self.now.0 - old.changed_ms);
            let due = match (old.state, view.state) {
                (PoolState::Down, PoolState::Ramping) => hold.is_zero(),
                (PoolState::Down, PoolState::Up) => !others(true) || (hold.is_zero() && ramp.is_zero()),
                (PoolState::Holding, PoolState::Ramping) => elapsed >= hold,
                (PoolState::Holding, PoolState::Up) => !others(true) || (elapsed >= hold && ramp.is_zero()),
                (PoolState::Ramping, PoolState::Up) => !others(true) || elapsed >= ramp,
                (_, PoolState::Unknown) => view.endpoints.iter().all(|e| e.state != EndpointState::Up),
                _ => true,
            };
            assert!(due, "{here}: {:?} → {:?} after {elapsed:?} of {hold:?} and {ramp:?}", old.state, view.state);
        }
        moved
    }
}

/// What a pool's state, ramp and spill may be with its endpoints.
fn check_numbers(view: &PoolView, policy: &HealthPolicy, here: &str) {
    let weight = |e: &EndpointView| f64::from(e.weight) * f64::from(e.asked.weight) / 100.0;
    let heavy = view.endpoints.iter().any(|e| weight(e) > 0.0);
    let weigh = |states: &[EndpointState], heads: bool| -> f64 {
        let counted = view.endpoints.iter().filter(|e| states.contains(&e.state));
        counted.map(|e| if heads { 1.0 } else { weight(e) }).sum()
    };
    let (up, down, unknown) = (EndpointState::Up, EndpointState::Down, EndpointState::Unknown);
    let needed = weigh(&[up, down, unknown], !heavy) * f64::from(policy.min_healthy) / 100.0 - 1e-9;
    let heads = weigh(&[up], true);
    if heads > 0.0 && weigh(&[up], !heavy) >= needed {
        assert!(view.state.is_up(), "{here}: enough is up");
    }
    if view.endpoints.is_empty() || heads == 0.0 || weigh(&[up, unknown], !heavy) < needed {
        assert!(!view.state.is_up(), "{here}: not enough is up");
    }
    // What is asked for is taken from the good side only.
    let proven = || view.endpoints.iter().filter(|e| e.state != unknown);
    let by_heads = proven().all(|e| e.weight == 0);
    let all: f64 = proven().map(|e| if by_heads { 1.0 } else { f64::from(e.weight) }).sum();
    let good = proven().filter(|e| e.state == up && !e.asked.drain);
    let good: f64 = good.map(|e| if by_heads { 1.0 } else { weight(e) }).sum();
    let spill = if all == 0.0 { 0.0 } else { (policy.overprovision * good / all).min(1.0) };
    assert!((view.spill - spill).abs() < 1e-9, "{here}: spill {} is not {spill}", view.spill);
    match view.state {
        PoolState::Holding => assert_eq!(view.ramp, 0.0, "{here}"),
        PoolState::Ramping => assert!((0.0..1.0).contains(&view.ramp), "{here}: {}", view.ramp),
        _ => assert_eq!(view.ramp, 1.0, "{here}"),
    }
}

/// Whether all that could be taken asks to be drained.
fn leaves(pool: &PoolView) -> bool {
    let mut up = pool.endpoints.iter().filter(|e| e.state == EndpointState::Up).peekable();
    up.peek().is_some() && up.all(|e| e.asked.drain)
}

fn pool_view<'a>(snapshot: &'a Snapshot, service: &str, region: &str) -> Option<&'a PoolView> {
    let service = snapshot.fleet().service_named(service)?;
    let region = snapshot.fleet().region_named(region)?;
    Some(snapshot.pool(snapshot.fleet().service(service).pool_of[region.index()]?))
}

/// Whether readers can tell two snapshots apart, but by the view.
fn differs(one: &Snapshot, other: &Snapshot) -> bool {
    let pool = |view: &PoolView| {
        let endpoints = view
            .endpoints
            .iter()
            .map(|e| (e.id, e.address, e.name.clone(), e.weight, e.state, e.ejected, e.warmth, e.asked));
        let numbers = (view.state, view.ramp, view.spill, view.epoch, view.changed_ms);
        (numbers, endpoints.collect::<Vec<_>>())
    };
    let pools = |snapshot: &Snapshot| snapshot.pools.iter().map(pool).collect::<Vec<_>>();
    let suspicion = one.suspects_itself != other.suspects_itself;
    suspicion || one.generation != other.generation || one.services != other.services || pools(one) != pools(other)
}

/// Probes one endpoint as often as the world asks, with results from `result`, for `minutes`; returns the times at which
/// its verdict turned.
fn probe_for(minutes: u64, policy: HealthPolicy, mut result: impl FnMut(EndpointState) -> bool) -> Vec<u64> {
    let of = service("web").set(|s| s.health = policy).pool("us-east", pool(&["192.0.2.1:80"]));
    let mut world = World::new(view(fleet().region("us-east", 38.95, -77.45).service(of).build()), Now(0));
    let endpoint = world.snapshot().pools[0].endpoints[0].id;
    let mut now = Now(0);
    let mut turns = Vec::new();
    while now.0 < minutes * 60_000 {
        let passed = result(world.snapshot().pools[0].endpoints[0].state);
        let result = if passed { ProbeResult::Pass(Asked::default()) } else { ProbeResult::Fail("test".into()) };
        let events = world.apply(Change::Probed { endpoint, result, began: now }, now);
        turns.extend(events.iter().filter(|event| matches!(event, Event::Endpoint { .. })).map(|_| now.0));
        now.0 += world.next_probe(endpoint).unwrap().as_millis() as u64;
    }
    turns
}

fn busiest_minute(turns: &[u64]) -> usize {
    turns.iter().map(|from| turns.iter().filter(|at| (*from..from + 60_000).contains(at)).count()).max().unwrap_or(0)
}

/// With the defaults the worst an endpoint can do is three outages of 3 failures and 2 passes, one failure more and ten passes: eight turns
/// in about 17 s.
#[test]
fn turns_per_minute_are_bounded() {
    let worst = probe_for(20, default_health(), |state| state != EndpointState::Up);
    let busiest = busiest_minute(&worst);
    assert!((20..=32).contains(&busiest), "{busiest}");
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let likely = dice.roll(5..96);
        let turns = probe_for(10, default_health(), |_| dice.percent(likely));
        assert!(busiest_minute(&turns) <= busiest, "seed {seed}: {turns:?}");
    }
}

#[test]
fn a_dead_endpoint_is_down_soon_and_a_live_one_is_up_soon() {
    let turns = probe_for(1, default_health(), {
        let mut probes = 0;
        move |_| {
            probes += 1;
            !(11..=20).contains(&probes)
        }
    });
    // Passes at 0 … 9 s; failures at 10, 10.2 and 10.4 s; then each second until passes at 18.4 and 18.6 s.
    assert_eq!(turns, [0, 10_400, 18_600]);
}

/// The whole of it once, in order, as a reader would tell it.
#[test]
fn an_outage_and_the_return_from_it() {
    let web = service("web").pool("us-east", pool(&["192.0.2.1:80"])).pool("us-west", pool(&["192.0.2.2:80"]));
    let both = fleet().region("us-east", 38.95, -77.45).region("us-west", 45.84, -119.7).service(web);
    let mut world = World::new(view(both.build()), Now(0));
    let ids: Vec<EndpointId> = world.snapshot().pools.iter().map(|pool| pool.endpoints[0].id).collect();
    let mut lines = Vec::new();
    let mut tell = |world: &mut World, second: u64, change: Change| {
        let events = world.apply(change, Now(second * 1000));
        lines.extend(events.iter().map(|event| format!("{second:3} {event}")));
    };
    let pass = |which: usize| Change::Probed {
        endpoint: ids[which],
        result: ProbeResult::Pass(Asked::default()),
        began: Now(u64::MAX),
    };
    let fail = |which: usize| Change::Probed {
        endpoint: ids[which],
        result: ProbeResult::Fail("refused".into()),
        began: Now(u64::MAX),
    };
    assert!(world.snapshot().services[0].panicking && !world.first_round_done());
    tell(&mut world, 1, pass(0));
    tell(&mut world, 1, pass(1));
    assert!(world.first_round_done() && !world.wants_tick());
    (2..5).for_each(|second| tell(&mut world, second, fail(0)));
    (6..8).for_each(|second| tell(&mut world, second, pass(0)));
    assert!(world.wants_tick());
    (8..=40).for_each(|second| tell(&mut world, second, Change::Tick));
    assert_eq!(world.snapshot().pools[0].ramp, 0.05);
    (41..44).for_each(|second| tell(&mut world, second, fail(1)));
    assert!(!world.wants_tick());
    (44..47).for_each(|second| tell(&mut world, second, fail(0)));
    (47..49).for_each(|second| tell(&mut world, second, pass(1)));
    let expected = "
  1 service web: endpoint 192.0.2.1:80 in us-east is up, its first verdict: first pass
  1 service web: region us-east is up, was unknown
  1 service web: endpoint 192.0.2.2:80 in us-west is up, its first verdict: first pass
  1 service web: region us-west is up, was unknown
  4 service web: endpoint 192.0.2.1:80 in us-east is down: 3 failures in a row: refused
  4 service web: region us-east is down, was up
  7 service web: endpoint 192.0.2.1:80 in us-east is up: 2 passes in a row
  7 service web: region us-east is holding, was down
 37 service web: region us-east is ramping, was holding
 43 service web: endpoint 192.0.2.2:80 in us-west is down: 3 failures in a row: refused
 43 service web: region us-east is up, was ramping
 43 service web: region us-west is down, was up
 46 service web: endpoint 192.0.2.1:80 in us-east is down: 3 failures in a row: refused
 46 service web: region us-east is down, was up
 46 service web: no ready region is up
 48 service web: endpoint 192.0.2.2:80 in us-west is up: 2 passes in a row
 48 service web: region us-west is up, was down
 48 service web: a ready region is up again";
    assert_eq!(lines.join("\n"), expected.trim_start_matches('\n'));
}

/// Two regions, two endpoints each, of which all passed.
fn two_regions() -> (World, Vec<EndpointId>) {
    let west = pool(&["192.0.2.2:80", "192.0.2.12:80"]);
    let web = service("web").pool("us-east", pool(&["192.0.2.1:80", "192.0.2.11:80"])).pool("us-west", west);
    let both = fleet().region("us-east", 38.95, -77.45).region("us-west", 45.84, -119.7).service(web);
    let mut world = World::new(view(both.build()), Now(0));
    let ids: Vec<_> = world.snapshot().pools.iter().flat_map(|p| p.endpoints.iter().map(|e| e.id)).collect();
    for endpoint in &ids {
        world.apply(probe(*endpoint, true, Now(1)), Now(1));
    }
    (world, ids)
}

fn probe(endpoint: EndpointId, passed: bool, began: Now) -> Change {
    let result = if passed { ProbeResult::Pass(Asked::default()) } else { ProbeResult::Fail("timeout".into()) };
    Change::Probed { endpoint, result, began }
}

/// Looks every 50 ms until that time; returns what happened.
fn watch(world: &mut World, now: &mut u64, until: u64) -> Vec<String> {
    let mut told = Vec::new();
    while *now < until {
        *now += 50;
        told.extend(world.apply(Change::Look, Now(*now)).iter().map(|event| format!("{now} {event}")));
    }
    told
}

#[test]
fn a_frozen_endpoint_is_found_by_its_traffic() {
    let (mut world, _) = two_regions();
    let mut now = 1000;
    world.apply(Change::Look, Now(now));
    let meter = Arc::clone(&world.snapshot().pools[0].endpoints[0].meter);
    for _ in 0..200 {
        meter.waits();
        meter.answers(Duration::from_millis(3));
    }
    assert!(watch(&mut world, &mut now, 2000).is_empty());
    // 20 requests a second, none of which is answered.
    let mut told = Vec::new();
    while told.is_empty() {
        meter.waits();
        let until = now + 50;
        told = watch(&mut world, &mut now, until);
        assert!(now < 2600, "not found");
    }
    assert_eq!(
        told,
        [
            "2500 service web: endpoint 192.0.2.1:80 in us-east is ejected for 30 s: requests wait, and nothing came for 250 ms"
        ]
    );
    assert_eq!(world.snapshot().pools[0].endpoints[0].state, EndpointState::Down);
    assert!(world.wants_tick());
    let until = now + 29_950;
    assert!(watch(&mut world, &mut now, until).is_empty() && world.apply(Change::Tick, Now(until)).is_empty());
    let told: Vec<_> = world.apply(Change::Tick, Now(until + 50)).iter().map(ToString::to_string).collect();
    assert_eq!(told, ["service web: endpoint 192.0.2.1:80 in us-east is no longer ejected: its time is over"]);
    let endpoint = world.snapshot().pools[0].endpoints[0].clone();
    assert!(endpoint.state == EndpointState::Up && endpoint.warmth < 0.2, "it starts slowly: {endpoint:?}");
}

#[test]
fn what_happened_while_the_process_stood_still_does_not_count() {
    let (mut world, ids) = two_regions();
    let mut now = 1000;
    world.apply(Change::Look, Now(now));
    let meters: Vec<_> = world.snapshot().pools.iter().map(|p| Arc::clone(&p.endpoints[0].meter)).collect();
    for meter in &meters {
        (0..200).for_each(|_| {
            meter.waits();
            meter.answers(Duration::from_millis(3));
        });
        (0..9).for_each(|_| meter.waits());
    }
    watch(&mut world, &mut now, 1100);
    // Stopped for ten seconds; then everything that waited fails at once, and so do the probes.
    now += 10_000;
    let told: Vec<_> = world.apply(probe(ids[0], false, Now(1050)), Now(now)).iter().map(ToString::to_string).collect();
    assert_eq!(told, ["this process stood still for 9950 ms: what it saw meanwhile does not count"]);
    assert_eq!(world.next_probe(ids[0]), Some(Duration::ZERO), "it is probed anew");
    for endpoint in &ids {
        (0..5).for_each(|_| assert!(world.apply(probe(*endpoint, false, Now(1100)), Now(now)).is_empty()));
    }
    for meter in &meters {
        (0..9).for_each(|_| {
            meter.gives_up();
            meter.failed(5);
        });
    }
    let until = now + 5000;
    assert_eq!(watch(&mut world, &mut now, until), Vec::<String>::new());
    assert!(world.snapshot().pools.iter().flat_map(|p| p.endpoints.iter()).all(|e| e.state == EndpointState::Up));
    // From now on it counts again.
    world.apply(probe(ids[0], true, Now(now)), Now(now));
    assert_eq!(world.next_probe(ids[0]), Some(Duration::from_secs(1)));
    (0..5).for_each(|_| meters[0].failed(5));
    let until = now + 50;
    assert_eq!(watch(&mut world, &mut now, until).len(), 1);
}

#[test]
fn a_pop_that_loses_everything_at_once_suspects_itself() {
    let (mut world, ids) = two_regions();
    let mut told = Vec::new();
    for (at, endpoint) in ids.iter().enumerate() {
        for _ in 0..3 {
            let now = Now(5000 + at as u64 * 400);
            told.extend(world.apply(probe(*endpoint, false, now), now));
        }
    }
    assert!(told.iter().any(|event| matches!(event, Event::SelfSuspicion { on: true })), "{told:?}");
    assert!(world.snapshot().suspects_itself);
    let told = [0, 1].map(|_| world.apply(probe(ids[0], true, Now(9000)), Now(9000)));
    assert!(told.iter().flatten().any(|event| matches!(event, Event::SelfSuspicion { on: false })), "{told:?}");
    // One after the other is what outages look like.
    let (mut world, ids) = two_regions();
    for (at, endpoint) in ids.iter().enumerate() {
        for _ in 0..3 {
            let now = Now(5000 + at as u64 * 3000);
            world.apply(probe(*endpoint, false, now), now);
        }
    }
    assert!(!world.snapshot().suspects_itself);
}

#[test]
fn the_first_round_waits_for_names_but_not_for_their_answer() {
    let text = |endpoint: &str| {
        format!("[regions.r]\n[services.web.health]\n[services.web.pools.r]\nendpoints = [\"{endpoint}\"]\n")
    };
    let mut world = World::new(common::world::view(&text("origin.test:80")), Now(0));
    assert!(!world.first_round_done(), "nobody asked for the name yet");
    let host = "origin.test".to_owned();
    world.apply(Change::Resolved { host: host.clone(), addresses: Vec::new() }, Now(1));
    assert!(world.first_round_done(), "asked in vain, which must not keep a PoP from starting");
    world.apply(Change::Resolved { host: host.clone(), addresses: vec![[192, 0, 2, 1].into()] }, Now(2));
    assert!(!world.first_round_done(), "its endpoint was not probed yet");
    let before = world.snapshot();
    world.apply(Change::Resolved { host, addresses: Vec::new() }, Now(3));
    assert!(Arc::ptr_eq(&before, &world.snapshot()), "a failed look-up keeps the last addresses");
}

#[test]
fn a_drain_lets_finish_for_a_while_also_over_reloads() {
    let world = |drains: &[&str], order: &[&str]| {
        let with = |fleet: common::fleet::FleetBuilder, name: &&str| {
            let intent = if drains.contains(name) { Intent::Drain } else { Intent::Ready };
            fleet.region_with(name, |region| region.intent = intent)
        };
        let fleet = order.iter().fold(fleet(), with);
        let service = |name, seconds| {
            let service = service(name).set(|service| service.drain_timeout = Duration::from_secs(seconds));
            service.pool("a", pool(&["192.0.2.1:80"])).pool("b", pool(&["192.0.2.2:80"]))
        };
        view(fleet.service(service("short", 10)).service(service("long", 60)).build())
    };
    let finishing = |world: &World, id: u16| -> Vec<String> {
        let snapshot = world.snapshot();
        let regions = snapshot.services[usize::from(id)].finishing.iter();
        regions.map(|region| snapshot.fleet().region(region).name.clone()).collect()
    };
    let mut now = World::new(world(&["a"], &["a", "b"]), Now(0));
    assert!(now.wants_tick());
    assert_eq!((finishing(&now, 0), finishing(&now, 1)), (vec!["a".to_owned()], vec!["a".to_owned()]));
    now.apply(Change::Tick, Now(9_999));
    assert_eq!(finishing(&now, 0), ["a"]);
    // The same drain under another id.
    now.apply(Change::View(world(&["a"], &["b", "a"])), Now(9_999));
    assert_eq!(finishing(&now, 0), ["a"]);
    let before = now.snapshot();
    now.apply(Change::Tick, Now(10_000));
    assert!(!Arc::ptr_eq(&before, &now.snapshot()));
    assert_eq!((finishing(&now, 0), finishing(&now, 1)), (vec![], vec!["a".to_owned()]));
    let service = &now.snapshot().services[0];
    assert!(service.drained.iter().all(|region| service.has_ended(region)) && now.wants_tick());
    // One that ends and begins again is another one.
    now.apply(Change::View(world(&["b"], &["b", "a"])), Now(11_000));
    now.apply(Change::View(world(&["a", "b"], &["b", "a"])), Now(12_000));
    now.apply(Change::Tick, Now(21_500));
    assert_eq!(finishing(&now, 0), ["a"]);
    now.apply(Change::Tick, Now(72_000));
    assert_eq!((finishing(&now, 0), finishing(&now, 1), now.wants_tick()), (vec![], vec![], false));
}
