//! Regions that carry more than they should: clients are shed, always the same ones, and nothing passes a limit.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use meridian::geo::Canonical;
use meridian::steering::fleet::{Capacity, Fleet, Unit};
use meridian::steering::meter::Meter;
use meridian::steering::{Change, Now, Query, RegionId, RegionSet, ServiceId, World};

use super::common::fleet::{fleet, pool, service, view};
use crate::probe;

const BOUND: Capacity = Capacity { target: 800, limit: 1000, unit: Unit::InFlight };

fn two(near: Option<Capacity>, far: Option<Capacity>) -> Fleet {
    let web = service("web").pool("near", pool(&["192.0.2.1:80"])).pool("far", pool(&["192.0.2.2:80"]));
    let fleet = fleet().region_with("near", |region| region.capacity = near);
    fleet.region_with("far", |region| region.capacity = far).service(web).build()
}

/// Clients of which each asks again as soon as it was answered, in steps of 50 ms.
struct Crowd {
    world: World,
    now: u64,
    /// By when they are answered: so many steps from now.
    waiting: VecDeque<Vec<(u32, Arc<Meter>)>>,
    /// Those who ask in the next step.
    asking: Vec<u32>,
    /// Those who come later, a part in each step.
    coming: Vec<Vec<u32>>,
    refused: usize,
    /// The most that were in each region at once.
    peaks: [u32; 2],
    /// Where clients went last.
    near: BTreeSet<u32>,
    told: Vec<String>,
}

/// Steps that an answer takes.
const LONG: usize = 10;

impl Crowd {
    fn new(fleet: Fleet, clients: u32) -> Crowd {
        let mut world = World::new(view(fleet), Now(0));
        let ids: Vec<_> = world.snapshot().pools.iter().flat_map(|p| p.endpoints.iter().map(|e| e.id)).collect();
        for endpoint in ids {
            world.apply(probe(endpoint, true, Now(1)), Now(1));
        }
        let waiting = (0..LONG).map(|_| Vec::new()).collect();
        let part = |of: u32| (0..clients).filter(|client| client % LONG as u32 == of).collect();
        let coming = (0..LONG as u32).map(part).collect();
        let asking = Vec::new();
        Crowd {
            world,
            now: 1,
            waiting,
            asking,
            coming,
            refused: 0,
            peaks: [0; 2],
            near: BTreeSet::new(),
            told: Vec::new(),
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.now += 50;
            self.step();
        }
    }

    fn step(&mut self) {
        for (client, meter) in self.waiting.pop_front().unwrap_or_default() {
            meter.leave();
            self.asking.push(client);
        }
        self.asking.extend(self.coming.pop().unwrap_or_default());
        let now = || self.now * 1_000_000;
        let snapshot = self.world.snapshot();
        let mut answered = Vec::new();
        for client in std::mem::take(&mut self.asking) {
            let address = Canonical::new(std::net::Ipv4Addr::from(client << 8).into());
            let full = snapshot.full([RegionId(0), RegionId(1)].into_iter().collect(), now);
            let mut walk =
                snapshot.walk(&Query { client: address, service: ServiceId(0), chance: 7, affinity: None, full });
            let Ok(take) = walk.take(&snapshot) else {
                self.refused += 1;
                self.asking.push(client);
                continue;
            };
            let meter = &snapshot.pool(take.pool).endpoints[usize::from(take.endpoint)].meter;
            match &snapshot.fleet().region(take.region).capacity {
                Some(capacity) => assert!(meter.try_enter(capacity, now), "it was not full"),
                None => meter.enter(),
            }
            match take.region {
                RegionId(0) => self.near.insert(client),
                _ => self.near.remove(&client),
            };
            answered.push((client, Arc::clone(meter)));
        }
        self.waiting.push_back(answered);
        for (peak, region) in self.peaks.iter_mut().zip(&snapshot.regions) {
            *peak = (*peak).max(region.load.in_flight());
        }
        self.told.extend(self.world.apply(Change::Look, Now(self.now)).iter().map(ToString::to_string));
    }

    fn in_flight(&self) -> [u32; 2] {
        [0, 1].map(|region| self.world.snapshot().regions[region].load.in_flight())
    }
}

#[test]
fn a_region_above_its_target_sheds_to_the_next() {
    let mut crowd = Crowd::new(two(Some(BOUND), None), 1_600);
    crowd.pass(60_000);
    let [near, far] = crowd.in_flight();
    assert_eq!((near + far, crowd.refused), (1_600, 0));
    assert!(crowd.peaks[0] <= BOUND.limit, "{:?}", crowd.peaks);
    assert!((BOUND.target..=BOUND.limit).contains(&near), "{near}");
    assert_eq!(
        crowd.told.iter().filter(|told| told.starts_with("region near sheds clients")).count(),
        1,
        "{:?}",
        crowd.told
    );
    // The same clients stay: the part moves a little, and nobody else does.
    let (mut least, mut most) = (crowd.near.clone(), crowd.near.clone());
    for _ in 0..20 {
        crowd.pass(1_000);
        least = least.intersection(&crowd.near).copied().collect();
        most = most.union(&crowd.near).copied().collect();
    }
    assert!(least.len() * 10 >= most.len() * 9, "{} always, {} at some time", least.len(), most.len());
}

#[test]
fn what_fits_nowhere_is_refused_and_nothing_passes_a_limit() {
    let mut crowd = Crowd::new(two(Some(BOUND), Some(Capacity { target: 300, limit: 400, ..BOUND })), 2_000);
    crowd.pass(30_000);
    let [near, far] = crowd.in_flight();
    assert!(crowd.refused > 0 && crowd.peaks[0] <= 1_000 && crowd.peaks[1] <= 400, "{:?}", crowd.peaks);
    // All that fits is served, whatever the regions would rather shed.
    assert_eq!([near, far], [1_000, 400]);
}

#[test]
fn a_rate_sheds_as_well() {
    let bound = Capacity { target: 800, limit: 1_000, unit: Unit::Rps };
    // 600 at once that take half a second each: 1,200 a second.
    let mut crowd = Crowd::new(two(Some(bound), None), 600);
    crowd.pass(30_000);
    assert_eq!(crowd.refused, 0);
    let near = crowd.near.len() as f64 / 600.0 * 1_200.0;
    assert!((750.0..=1_000.0).contains(&near), "{near} a second");
}

#[test]
fn who_comes_from_a_lost_region_is_let_in_little_by_little() {
    let names = ["lost", "near", "far"];
    let web = names
        .iter()
        .enumerate()
        .fold(service("web"), |web, (at, name)| web.pool(name, pool(&[&format!("192.0.2.{at}:80")])));
    let bound = |region: &mut meridian::steering::fleet::Region| region.capacity = Some(BOUND);
    let three = fleet().region_with("lost", |_| {}).region_with("near", bound).region_with("far", |_| {}).service(web);
    let mut world = World::new(view(three.build()), Now(0));
    let ids: Vec<_> = world.snapshot().pools.iter().flat_map(|p| p.endpoints.iter().map(|e| e.id)).collect();
    for endpoint in &ids {
        world.apply(probe(*endpoint, true, Now(1)), Now(1));
    }
    let near = Arc::clone(&world.snapshot().pools[1].endpoints[0].meter);
    (0..600).for_each(|_| near.enter());
    let mut now = 1;
    let mut pass = |world: &mut World, ms: u64| {
        for _ in 0..ms / 50 {
            now += 50;
            world.apply(Change::Look, Now(now));
        }
        now
    };
    let at = pass(&mut world, 2_000);
    for ms in [at, at + 1, at + 2] {
        world.apply(probe(ids[0], false, Now(ms)), Now(ms));
    }
    let share = |world: &World| {
        let snapshot = world.snapshot();
        let taken = (0..4_000_u32).filter(|client| {
            let client = Canonical::new(std::net::Ipv4Addr::from(client << 8).into());
            let query = Query { client, service: ServiceId(0), chance: 7, affinity: None, full: RegionSet::EMPTY };
            snapshot.walk(&query).take(&snapshot).unwrap().region == RegionId(1)
        });
        taken.count() as f64 / 4_000.0
    };
    // 200 of 800 have room.
    assert!((share(&world) - 0.25).abs() < 0.03, "{}", share(&world));
    pass(&mut world, 3_000);
    assert!((share(&world) - 0.55).abs() < 0.05, "{}", share(&world));
    pass(&mut world, 5_000);
    assert_eq!(share(&world), 1.0);
}

#[test]
fn a_reload_changes_the_capacity_and_keeps_the_count() {
    let mut crowd = Crowd::new(two(None, None), 900);
    crowd.pass(2_000);
    assert_eq!(crowd.in_flight(), [900, 0]);
    let load = Arc::clone(&crowd.world.snapshot().regions[0].load);
    crowd
        .world
        .apply(Change::View(view(two(Some(Capacity { target: 100, limit: 200, ..BOUND }), None))), Now(crowd.now));
    assert!(Arc::ptr_eq(&load, &crowd.world.snapshot().regions[0].load));
    assert_eq!(
        crowd.world.snapshot().full([RegionId(0), RegionId(1)].into_iter().collect(), || 0),
        RegionSet::from_iter([RegionId(0)])
    );
    crowd.pass(1_000);
    assert!(crowd.in_flight()[0] <= 200, "{:?}", crowd.in_flight());
    // And back: all are taken at once, for nothing is bound any more.
    crowd.world.apply(Change::View(view(two(None, None))), Now(crowd.now));
    crowd.pass(1_000);
    assert_eq!((crowd.in_flight(), crowd.world.snapshot().regions[0].shed), ([900, 0], 1.0));
    // Another region of that name is another region.
    let before = Arc::clone(&crowd.world.snapshot().regions[1].load);
    let one = service("web").pool("near", pool(&["192.0.2.1:80"]));
    let alone = fleet().region_with("near", |_| {}).service(one).build();
    crowd.world.apply(Change::View(view(alone)), Now(crowd.now));
    crowd.world.apply(Change::View(view(two(None, None))), Now(crowd.now));
    assert!(!Arc::ptr_eq(&before, &crowd.world.snapshot().regions[1].load));
    assert!(Arc::ptr_eq(&load, &crowd.world.snapshot().regions[0].load));
}
