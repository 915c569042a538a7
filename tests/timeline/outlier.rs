//! Endpoints that fail some of their requests and not others: left when the others of their service do better, and only then.

use std::sync::Arc;
use std::time::Duration;

use meridian::steering::fleet::{Fleet, HealthPolicy, Intent};
use meridian::steering::meter::Meter;
use meridian::steering::snapshot::EndpointState;
use meridian::steering::{Change, Event, Now, World};

use super::common::dice::Dice;
use super::common::fleet::{default_health, fleet, pool, service, view};
use crate::probe;

struct Scene {
    world: World,
    meters: Vec<Arc<Meter>>,
    dice: Dice,
    now: u64,
}

/// One service with these regions, each with so many endpoints.
fn of(regions: &[usize], health: HealthPolicy) -> Fleet {
    let mut web = service("web").set(|service| service.health = health);
    let mut all = fleet();
    for (region, count) in regions.iter().enumerate() {
        let name = format!("r{region}");
        let addresses: Vec<String> = (0..*count).map(|n| format!("192.0.2.{}:80", region * 50 + n + 1)).collect();
        web = web.pool(&name, pool(&addresses.iter().map(String::as_str).collect::<Vec<_>>()));
        all = all.region(&name, 10.0, 20.0 * region as f64);
    }
    all.service(web).build()
}

impl Scene {
    fn new(regions: &[usize], health: HealthPolicy, seed: u64) -> Scene {
        let mut world = World::new(view(of(regions, health)), Now(0));
        let endpoints: Vec<_> = world.snapshot().pools.iter().flat_map(|pool| pool.endpoints.to_vec()).collect();
        for endpoint in &endpoints {
            world.apply(probe(endpoint.id, true, Now(1)), Now(1));
        }
        let meters = endpoints.iter().map(|endpoint| Arc::clone(&endpoint.meter)).collect();
        let mut scene = Scene { world, meters, dice: Dice::new(seed), now: 1 };
        assert!(scene.run(3000, |_| 3, |_| 0).is_empty(), "all is well");
        scene
    }

    /// Between looks so many requests come to each endpoint that is up, and this percentage of them fails, by a status or without an answer.
    /// Returns what happened, but for regions that move.
    fn run(&mut self, ms: u64, requests: impl Fn(usize) -> u64, percent: impl Fn(usize) -> u64) -> Vec<(u64, Event)> {
        let (began, mut told) = (self.now, Vec::new());
        while self.now < began + ms {
            self.now += 50;
            let snapshot = self.world.snapshot();
            let up: Vec<bool> = snapshot
                .pools
                .iter()
                .flat_map(|pool| pool.endpoints.iter().map(|endpoint| endpoint.state == EndpointState::Up))
                .collect();
            for (at, meter) in self.meters.iter().enumerate().filter(|(at, _)| up[*at]) {
                for _ in 0..requests(at) {
                    meter.waits();
                    let failed = self.dice.percent(percent(at));
                    let answered = !failed || self.dice.percent(50);
                    if answered {
                        meter.answers(Duration::from_millis(2))
                    } else {
                        meter.gives_up()
                    }
                    if failed {
                        // Never five in a row: that is found otherwise.
                        meter.failed(0);
                        meter.first_failed(answered);
                    } else {
                        meter.succeeded();
                    }
                }
            }
            for change in [Change::Look, Change::Tick] {
                let events = self.world.apply(change, Now(self.now));
                let passes =
                    events.into_iter().filter(|event| matches!(event, Event::Ejection { .. } | Event::Panic { .. }));
                told.extend(passes.map(|event| (self.now - began, event)));
            }
        }
        told
    }
}

/// Which endpoint was ejected, and when.
fn ejected(told: &[(u64, Event)]) -> Vec<(u64, String)> {
    let of = |(at, event): &(u64, Event)| match event {
        Event::Ejection { address, time: Some(_), .. } => Some((*at, address.to_string())),
        _ => None,
    };
    told.iter().filter_map(of).collect()
}

fn only(at: usize, percent: u64) -> impl Fn(usize) -> u64 {
    move |endpoint| if endpoint == at { percent } else { 0 }
}

#[test]
fn a_region_that_fails_half_is_left_within_a_second() {
    for seed in 0..50 {
        let mut scene = Scene::new(&[1, 1, 1], default_health(), seed);
        let told = scene.run(1500, |_| 3, only(1, 50));
        let out = ejected(&told);
        assert_eq!(out.len(), 1, "{told:?}");
        assert!(out[0].0 <= 1000 && out[0].1 == "192.0.2.51:80", "{out:?}");
        let text = told[0].1.to_string();
        assert!(text.contains(" requests failed, and at most 1 % do elsewhere"), "{text}");
    }
}

#[test]
fn one_of_a_pool_is_left_also_at_a_few_requests_a_second() {
    for seed in 0..20 {
        let mut scene = Scene::new(&[4], default_health(), seed);
        let told = scene.run(20_000, |_| 1, only(2, 40));
        let out = ejected(&told);
        assert_eq!(out.iter().map(|(_, address)| address.as_str()).collect::<Vec<_>>(), ["192.0.2.3:80"], "{told:?}");
    }
}

#[test]
fn nobody_is_left_where_all_fail_alike() {
    for (seed, percent) in [1, 5, 10, 20, 50, 80, 100].into_iter().enumerate() {
        for shape in [&[1, 1, 1][..], &[4], &[2, 2], &[1]] {
            let mut scene = Scene::new(shape, default_health(), seed as u64);
            let told = scene.run(60_000, |_| 3, |_| percent);
            assert_eq!(told, [], "{percent} % at {shape:?}");
        }
    }
}

#[test]
fn nobody_is_left_for_a_few_failures() {
    for seed in 0..10 {
        let mut scene = Scene::new(&[1, 1], default_health(), seed);
        let told = scene.run(120_000, |_| 10, only(0, 5));
        assert_eq!(told, []);
    }
}

#[test]
fn the_last_one_that_is_up_stays() {
    let mut scene = Scene::new(&[1, 1], default_health(), 3);
    let told = scene.run(20_000, |_| 3, |_| 0);
    assert_eq!(told, []);
    let told = scene.run(2000, |_| 3, only(0, 50));
    assert_eq!(ejected(&told).len(), 1);
    // Its clients go to the other one, which fails as often: neither it nor the first one again.
    let told = scene.run(25_000, |_| 6, |_| 50);
    assert_eq!(told, []);
}

#[test]
fn several_are_left_while_the_others_do_far_better() {
    let mut scene = Scene::new(&[5], default_health(), 5);
    let told = scene.run(10_000, |_| 5, |at| if at < 2 { 60 } else { 0 });
    let mut out: Vec<_> = ejected(&told).into_iter().map(|(_, address)| address).collect();
    out.sort();
    assert_eq!(out, ["192.0.2.1:80", "192.0.2.2:80"], "{told:?}");
    // Where most fail, the one that does not could not carry them all.
    let mut scene = Scene::new(&[4], default_health(), 5);
    assert_eq!(scene.run(10_000, |_| 5, |at| if at < 3 { 60 } else { 0 }), []);
}

#[test]
fn a_region_that_fails_as_a_whole_is_left_however_many_endpoints_it_has() {
    for (seed, size) in [2, 4, 8].into_iter().enumerate() {
        let mut scene = Scene::new(&[size, size], default_health(), seed as u64);
        let told = scene.run(5000, |_| 3, |at| if at < size { 50 } else { 0 });
        let out = ejected(&told);
        let home = |address: &str| {
            address.strip_prefix("192.0.2.").unwrap().split(':').next().unwrap().parse::<usize>().unwrap() <= 50
        };
        assert!(out.len() > size / 2 && out.iter().all(|(_, address)| home(address)), "{size}: {told:?}");
        assert_eq!(scene.world.snapshot().pools[0].state.as_str(), "down");
    }
}

#[test]
fn nobody_is_left_when_all_begin_to_fail_at_once_however_many_ask() {
    for requests in [1, 3, 10, 50, 200] {
        for percent in [20, 40, 60, 80, 100] {
            for shape in [&[1, 1, 1][..], &[1, 1], &[4], &[3, 3]] {
                let mut scene = Scene::new(shape, default_health(), requests + percent);
                let told = scene.run(5000, |_| requests, |_| percent);
                assert_eq!(told, [], "{percent} % of {requests} at {shape:?}");
            }
        }
    }
}

#[test]
fn nobody_is_left_for_a_region_that_an_operator_took_out() {
    let mut scene = Scene::new(&[1, 1], default_health(), 4);
    let mut fleet = of(&[1, 1], default_health());
    fleet.regions[1].intent = Intent::Drain;
    scene.world.apply(Change::View(view(fleet)), Now(scene.now));
    assert_eq!(scene.run(20_000, |at| if at == 0 { 3 } else { 0 }, only(0, 40)), []);
}

#[test]
fn a_configuration_that_ejects_nothing_takes_everybody_back() {
    let mut scene = Scene::new(&[1, 1], default_health(), 6);
    assert_eq!(ejected(&scene.run(2000, |_| 3, only(0, 50))).len(), 1);
    let mut health = default_health();
    (health.passive.failures, health.passive.rate, health.stall) = (0, 0, false);
    scene.world.apply(Change::View(view(of(&[1, 1], health))), Now(scene.now));
    let told = scene.run(1000, |_| 3, only(0, 50));
    let texts: Vec<String> = told.iter().map(|(_, event)| event.to_string()).collect();
    assert_eq!(texts, ["service web: endpoint 192.0.2.1:80 in r0 is no longer ejected: nothing ejects any more"]);
}

#[test]
fn a_standby_that_nobody_asked_yet_takes_over() {
    let mut scene = Scene::new(&[1, 1], default_health(), 9);
    let told = scene.run(5000, |at| if at == 0 { 3 } else { 0 }, only(0, 50));
    assert_eq!(ejected(&told).len(), 1, "{told:?}");
}

#[test]
fn a_rate_of_zero_leaves_nobody() {
    let mut health = default_health();
    health.passive.rate = 0;
    let mut scene = Scene::new(&[1, 1], health, 1);
    assert_eq!(scene.run(30_000, |_| 3, only(0, 60)), []);
}
