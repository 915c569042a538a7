//! What must hold for every configuration, outage and client: the laws of the decision, over random worlds.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::net::IpAddr;

use common::world::{networks, query, region, snapshot, take, view};
use meridian::geo::{Canonical, Continent};
use meridian::steering::walk::{MAX_ATTEMPTS, MAX_SPARED};
use meridian::steering::{Avoid, Query, Refusal, RegionId, RegionSet, ServiceId, Snapshot, TakeReason};
use proptest::prelude::*;

const CITIES: [(&str, f64, f64); 8] = [
    ("us-east", 38.95, -77.45),
    ("us-west", 45.84, -119.70),
    ("eu-west", 53.35, -6.26),
    ("ap-southeast", 1.35, 103.82),
    ("ap-northeast", 35.68, 139.69),
    ("sa-east", -23.55, -46.63),
    ("eu-central", 50.11, 8.68),
    ("ap-south", 19.08, 72.88),
];

/// A service over some regions.
#[derive(Clone, Debug)]
struct World {
    steering: &'static str,
    band_km: u32,
    panic: &'static str,
    residency: bool,
    /// Weight, dial, bias and state of each region.
    regions: Vec<(u32, u8, i8, &'static str)>,
    down: Vec<bool>,
}

impl World {
    fn text(&self) -> String {
        let mut text = String::new();
        for ((name, lat, lon), (_, _, bias, state)) in CITIES.iter().zip(&self.regions) {
            text += &format!("[regions.{name}]\nlocation = [{lat:?}, {lon:?}]\nbias = {bias}\nstate = \"{state}\"\n");
        }
        text += &format!("[services.web]\nsteering = \"{}\"\nband_km = {}\n", self.steering, self.band_km);
        text += &format!("panic = \"{}\"\n", self.panic);
        if self.residency {
            text += "residency = [{ from = [\"continent:EU\"], to = [\"us-east\"] }, { from = [\"country:US\"], to = [\"us-east\", \"us-west\"] }]\nunknown = \"allow\"\n";
        }
        for ((name, ..), (weight, dial, ..)) in CITIES.iter().zip(&self.regions) {
            text += &format!(
                "[services.web.pools.{name}]\nweight = {weight}\ndial = {dial}\nendpoints = [\"192.0.2.1:80\", \"192.0.2.2:80\"]\n"
            );
        }
        text
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::assuming(view(&self.text()), self.down())
    }

    fn down(&self) -> RegionSet {
        (0..).map(RegionId).zip(&self.down).filter(|(_, down)| **down).map(|(id, _)| id).collect()
    }

    /// Where a client may go, by a reading of the contract that shares nothing with the walk.
    fn may(&self, snapshot: &Snapshot, client: IpAddr) -> RegionSet {
        let atlas = &snapshot.view.atlas;
        let place = atlas.place(atlas.locate(Canonical::new(client)).place);
        let resident = |id: RegionId| {
            let european = place.continent == Some(Continent::Europe);
            let american = place.country.is_some_and(|c| c.as_str() == "US");
            !self.residency || ((!european || id.0 == 0) && (!american || id.0 <= 1))
        };
        (0..self.regions.len() as u8).map(RegionId).filter(|id| resident(*id)).collect()
    }

    fn ready(&self) -> RegionSet {
        (0..).map(RegionId).zip(&self.regions).filter(|(_, r)| r.3 == "ready").map(|(id, _)| id).collect()
    }
}

fn worlds(steerings: &'static [&'static str]) -> impl Strategy<Value = World> {
    let region = (
        prop_oneof![Just(0u32), 1u32..100],
        prop_oneof![4 => Just(100u8), 1 => 0u8..=100],
        prop_oneof![4 => Just(0i8), 1 => -99i8..=99],
        prop_oneof![6 => Just("ready"), 1 => Just("drain"), 1 => Just("maint")],
    );
    (2usize..=8).prop_flat_map(move |count| {
        (
            prop::sample::select(steerings),
            prop_oneof![Just(0u32), Just(500), Just(5000)],
            prop_oneof![3 => Just("serve"), 1 => Just("refuse")],
            any::<bool>(),
            prop::collection::vec(region.clone(), count),
            prop::collection::vec(prop::bool::weighted(0.3), count),
        )
            .prop_map(|(steering, band_km, panic, residency, regions, down)| World {
                steering,
                band_km,
                panic,
                residency,
                regions,
                down,
            })
    })
}

const ALL: &[&str] = &["nearest", "split", "band", "balanced"];

/// Addresses from everywhere, IPv6 and unknown ones too.
fn clients(seed: u64, count: usize) -> Vec<IpAddr> {
    let mut clients = networks(seed, count);
    clients.extend(
        ["2001:db8::1", "2a02:26f0::1", "2400:cb00::1", "10.0.0.1", "2600::1"].map(|a| a.parse::<IpAddr>().unwrap()),
    );
    clients
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Also in retries: a whole walk keeps to the sets.
    #[test]
    fn nothing_down_is_taken_while_something_up_is_in_the_sets(world in worlds(ALL), seed: u64) {
        let snapshot = world.snapshot();
        for client in clients(seed, 40) {
            let may = world.may(&snapshot, client);
            let ready = may.and(world.ready());
            let live = ready.without(world.down());
            let mut walk = snapshot.walk(&query(client));
            let mut takes = 0;
            while let Ok(take) = walk.take(&snapshot) {
                prop_assert!(may.contains(take.region), "{client}: residency is broken");
                prop_assert!(ready.contains(take.region), "{client}: an operator's word is broken");
                if !live.is_empty() {
                    prop_assert!(live.contains(take.region), "{client}: {:?} is down, {live:?} is up", take.region);
                    prop_assert_ne!(take.reason, TakeReason::Panic);
                } else {
                    prop_assert_eq!(world.panic, "serve");
                    prop_assert_eq!(take.reason, TakeReason::Panic);
                }
                takes += 1;
                walk.failed(&snapshot, if takes % 2 == 0 { Avoid::Region } else { Avoid::Endpoint });
            }
            // Every endpoint that may be tried is tried once, and one of them once more; but for the bound on attempts.
            let open = if live.is_empty() && world.panic == "serve" { ready } else { live };
            let want = if open.is_empty() { 0 } else { (open.len() * 2 + 1).min(MAX_ATTEMPTS + MAX_SPARED) };
            prop_assert_eq!(takes, want, "{}", client);
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer(world in worlds(ALL), seed: u64) {
        let (one, other) = (world.snapshot(), world.snapshot());
        for client in clients(seed, 40) {
            prop_assert_eq!(take(&one, client), take(&one, client));
            prop_assert_eq!(take(&one, client), take(&other, client));
        }
    }

    /// Not for `band`: there the nearest region in the sets says who is a member.
    #[test]
    fn losing_a_region_moves_only_its_own_clients(world in worlds(&["nearest", "split"]), lost in 0usize..8, seed: u64) {
        let lost = lost % world.regions.len();
        let mut after = world.clone();
        after.down[lost] = true;
        let (before, after) = (world.snapshot(), after.snapshot());
        for client in clients(seed, 60) {
            let (was, is) = (take(&before, client), take(&after, client));
            let moved = was.map(|t| t.region) != is.map(|t| t.region);
            let own = was.is_some_and(|take| take.region.index() == lost);
            prop_assert!(!moved || own, "{client} moved from {was:?} to {is:?} though {lost} was lost");
        }
    }

    #[test]
    fn a_weight_moves_clients_one_way_only(world in worlds(&["split"]), which in 0usize..8, weight in 1u32..100, seed: u64) {
        let which = which % world.regions.len();
        let old = world.regions[which].0;
        prop_assume!(old > 0 && old != weight);
        let mut changed = world.clone();
        changed.regions[which].0 = weight;
        let (before, after) = (world.snapshot(), changed.snapshot());
        for client in clients(seed, 200) {
            let (was, is) = (region(&before, client), region(&after, client));
            if was != is {
                let (from, to) = if weight > old { (is, was) } else { (was, is) };
                prop_assert_eq!(from.map(RegionId::index), Some(which), "{}: {:?} to {:?}", client, was, is);
                prop_assert_ne!(to.map(RegionId::index), Some(which));
            }
        }
    }

    /// Lowering it moves only clients of that region away, and raising it brings the same ones back.
    #[test]
    fn a_dial_moves_clients_one_way_only(world in worlds(&["nearest", "split"]), which in 0usize..8, dial in 0u8..=100, seed: u64) {
        let which = which % world.regions.len();
        let old = world.regions[which].1;
        prop_assume!(old != dial);
        let mut changed = world.clone();
        changed.regions[which].1 = dial;
        let (before, after) = (world.snapshot(), changed.snapshot());
        for client in clients(seed, 100) {
            let (was, is) = (take(&before, client), take(&after, client));
            // Where no region accepts, the first must: then a dial that accepts again brings clients from it.
            let forced = [was, is].iter().flatten().any(|t| t.reason == TakeReason::LastResort || t.reason == TakeReason::Failover || t.reason == TakeReason::Panic);
            if was.map(|t| t.region) != is.map(|t| t.region) && !forced {
                let from = if dial > old { is } else { was };
                prop_assert_eq!(from.map(|t| t.region.index()), Some(which), "{}: {:?} to {:?}", client, was, is);
            }
        }
    }
}

const SPLIT: &str = "\
[regions.us-east]
location = [38.95, -77.45]
[regions.us-west]
location = [45.84, -119.70]
[services.web]
steering = \"split\"
";

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Residency, maintenance and health beat affinity; nothing else does.
    #[test]
    fn affinity_chooses_within_the_sets_and_only_there(world in worlds(ALL), seed in any::<u64>(), at in any::<prop::sample::Index>()) {
        let snapshot = world.snapshot();
        let region = RegionId(at.index(world.regions.len()) as u8);
        let drains = world.regions[region.index()].3 == "drain";
        for client in clients(seed, 10) {
            let may = world.may(&snapshot, client);
            let mut ready = may.and(world.ready());
            if drains && may.contains(region) {
                ready.insert(region);
            }
            let live = ready.without(world.down());
            let open = if live.is_empty() && world.panic == "serve" { ready } else { live };
            let query = Query { affinity: Some(region), ..query(client) };
            let mut walk = snapshot.walk(&query);
            let first = walk.take(&snapshot).ok();
            prop_assert_eq!(first.is_some(), !open.is_empty());
            if open.contains(region) {
                let reason = if live.is_empty() { TakeReason::Panic } else { TakeReason::Affinity };
                prop_assert_eq!(first.map(|take| (take.region, take.reason)), Some((region, reason)));
            }
            let mut next = first;
            while let Some(take) = next {
                prop_assert!(open.contains(take.region));
                prop_assert!(take.reason != TakeReason::Affinity || take.region == region);
                walk.failed(&snapshot, Avoid::Region);
                next = walk.take(&snapshot).ok();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// A full region is taken by nobody, in panic neither, whatever else was tried; who finds nothing but full ones is told so, and one that fills up
    /// between the look and the attempt is as if it had been full before.
    #[test]
    fn a_full_region_is_passed_by_all(
        world in worlds(ALL),
        seed in any::<u64>(),
        full in prop::collection::vec(prop::bool::weighted(0.4), 8),
        affinity in prop::option::of(0u8..8),
    ) {
        let snapshot = world.snapshot();
        let full: RegionSet = (0..world.regions.len() as u8).map(RegionId).filter(|id| full[id.index()]).collect();
        let affinity = affinity.map(RegionId).filter(|id| id.index() < world.regions.len());
        for client in clients(seed, 10) {
            let open = Query { affinity, ..query(client) };
            let bound = Query { full, ..open };
            // What there would be without a limit.
            let (mut walk, mut without) = (snapshot.walk(&open), RegionSet::EMPTY);
            while let Ok(take) = walk.take(&snapshot) {
                without.insert(take.region);
                walk.failed(&snapshot, Avoid::Region);
            }
            let (mut walk, mut taken) = (snapshot.walk(&bound), Vec::new());
            while let Ok(take) = walk.take(&snapshot) {
                prop_assert!(!full.contains(take.region));
                taken.push((take.region, take.endpoint, take.reason));
                walk.failed(&snapshot, Avoid::Region);
            }
            prop_assert_eq!(taken.is_empty(), without.without(full).is_empty());
            if taken.is_empty() && !without.is_empty() {
                prop_assert_eq!(walk.refusal(), Refusal::Full);
            } else if taken.is_empty() {
                prop_assert!(walk.refusal() != Refusal::Full);
            }
            // The same regions, found out one by one.
            let (mut walk, mut found) = (snapshot.walk(&open), Vec::new());
            while let Ok(take) = walk.take(&snapshot) {
                if full.contains(take.region) {
                    walk.had_no_room(&snapshot);
                    continue;
                }
                found.push(take.region);
                walk.failed(&snapshot, Avoid::Region);
            }
            let taken: Vec<_> = taken.iter().map(|(region, ..)| *region).collect();
            prop_assert_eq!(&taken, &found);
            prop_assert_eq!(walk.refusal(), if found.is_empty() && !without.is_empty() { Refusal::Full } else { walk.refusal() });
        }
    }
}

fn split(east: u32, west: u32) -> Snapshot {
    let pools = [("us-east", east), ("us-west", west)].map(|(name, weight)| {
        format!("[services.web.pools.{name}]\nweight = {weight}\nendpoints = [\"192.0.2.1:80\"]\n")
    });
    snapshot(&format!("{SPLIT}{}", pools.concat()), &[])
}

fn share_of_first(snapshot: &Snapshot, clients: &[IpAddr]) -> f64 {
    let first = clients.iter().filter(|client| region(snapshot, **client) == Some(RegionId(0))).count();
    first as f64 * 100.0 / clients.len() as f64
}

#[test]
fn seventy_to_thirty_over_twenty_thousand_networks() {
    let clients = networks(70, 20_000);
    let share = share_of_first(&split(70, 30), &clients);
    assert!((share - 70.0).abs() <= 1.0, "{share} %");
}

#[test]
fn a_weight_change_moves_no_more_than_its_share() {
    let clients = networks(7, 20_000);
    let (before, after) = (split(70, 30), split(60, 40));
    let moved = clients.iter().filter(|client| region(&before, **client) != region(&after, **client)).count();
    let moved = moved as f64 * 100.0 / clients.len() as f64;
    assert!((moved - 10.0).abs() <= 1.0, "70/30 to 60/40 moved {moved} %");
}

#[test]
fn a_dial_keeps_its_share_of_the_regions_own_clients() {
    let text = |dial| {
        format!(
            "[regions.eu-west]\nlocation = [53.35, -6.26]\n[regions.us-east]\nlocation = [38.95, -77.45]\n\
             [services.web.pools.eu-west]\ndial = {dial}\nendpoints = [\"192.0.2.1:80\"]\n\
             [services.web.pools.us-east]\nendpoints = [\"192.0.2.1:80\"]\n"
        )
    };
    let (full, most) = (snapshot(&text(100), &[]), snapshot(&text(80), &[]));
    let own: Vec<_> = networks(8, 20_000).into_iter().filter(|c| region(&full, *c) == Some(RegionId(0))).collect();
    assert!(own.len() > 2000);
    let kept = share_of_first(&most, &own);
    assert!((kept - 80.0).abs() <= 2.0, "{kept} %");
}

#[test]
fn one_network_stays_together_and_requests_do_not_when_told_so() {
    let base = split(50, 50);
    for host in 0..=255u8 {
        assert_eq!(region(&base, [198, 18, 7, host].into()), region(&base, [198, 18, 7, 0].into()));
    }
    let text = format!(
        "{SPLIT}draw = \"request\"\n[services.web.pools.us-east]\nendpoints = [\"192.0.2.1:80\"]\n\
         [services.web.pools.us-west]\nendpoints = [\"192.0.2.1:80\"]\n"
    );
    let each = snapshot(&text, &[]);
    let chances = common::world::random(1).take(10_000);
    let client = Canonical::new([198, 18, 7, 1].into());
    let first = chances
        .filter(|chance| {
            let query =
                Query { client, service: ServiceId(0), chance: *chance, affinity: None, full: RegionSet::EMPTY };
            each.walk(&query).take(&each).is_ok_and(|take| take.region == RegionId(0))
        })
        .count();
    assert!((4800..5200).contains(&first), "{first} of 10000");
}
