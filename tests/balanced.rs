//! Balanced steering over the embedded world: the shares hold, nothing is much nearer, and turning a weight moves a border.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use common::world::{atlas, compile, random, snapshot, view};
use meridian::geo::Canonical;
use meridian::steering::balance::{self, Sample};
use meridian::steering::{RegionId, RegionSet, Snapshot, TakeReason, View};

/// Ashburn, Dublin and Tokyo.
const POINTS: [(f64, f64); 3] = [(38.95, -77.45), (53.35, -6.26), (35.62, 139.78)];

fn text(service: &str, weights: [u32; 3]) -> String {
    let mut text = String::new();
    for (name, (latitude, longitude)) in ["us", "eu", "ap"].into_iter().zip(POINTS) {
        text += &format!("[regions.{name}]\nlocation = [{latitude}, {longitude}]\n");
    }
    text += &format!("[services.web]\nsteering = \"balanced\"\n{service}\n[services.web.health]\n");
    for (name, weight) in ["us", "eu", "ap"].into_iter().zip(weights) {
        text += &format!("[services.web.pools.{name}]\nweight = {weight}\nendpoints = [\"10.0.0.1:80\"]\n");
    }
    text
}

/// Other addresses of the world than those that the offsets were made for, with where they are.
fn clients() -> Vec<IpAddr> {
    let atlas = atlas();
    let known = |address: &IpAddr| atlas.place(atlas.locate(Canonical::new(*address)).place).point.is_some();
    random(99).map(|bits| IpAddr::V4(Ipv4Addr::from(bits as u32))).filter(known).take(6000).collect()
}

fn region(snapshot: &Snapshot, client: IpAddr) -> usize {
    common::world::region(snapshot, client).unwrap().index()
}

/// Part of the clients in each region, and kilometres in all.
fn spread(snapshot: &Snapshot, clients: &[IpAddr]) -> ([f64; 3], f64) {
    let (mut parts, mut sum) = ([0.0; 3], 0.0);
    for client in clients {
        let at = region(snapshot, *client);
        parts[at] += 1.0 / clients.len() as f64;
        sum += km(*client, at);
    }
    (parts, sum)
}

fn km(client: IpAddr, at: usize) -> f64 {
    let atlas = atlas();
    let point = atlas.place(atlas.locate(Canonical::new(client)).place).point.unwrap();
    point.distance_km(meridian::geo::Point::new(POINTS[at].0, POINTS[at].1).unwrap())
}

#[test]
fn shares_hold_for_clients_that_nobody_asked_before() {
    let clients = clients();
    for weights in [[1, 1, 1], [70, 30, 0], [60, 40, 0], [5, 90, 5], [0, 0, 1]] {
        let (parts, _) = spread(&snapshot(&text("", weights), &[]), &clients);
        for (part, weight) in parts.iter().zip(weights) {
            let wanted = f64::from(weight) / f64::from(weights.iter().sum::<u32>());
            assert!((part - wanted).abs() < 0.035, "{weights:?}: {parts:?}");
        }
    }
}

/// Every exchange of the clients of two regions, whoever they are, would make it longer or hardly shorter: the shares are had for
/// the least distance in all. Held against a border in another form: the best threshold of distances that gives the same shares.
#[test]
fn no_other_border_with_these_shares_is_shorter() {
    let clients = clients();
    for weights in [[70, 30, 0], [50, 50, 0], [20, 80, 0]] {
        let (parts, sum) = spread(&snapshot(&text("", weights), &[]), &clients);
        // For two regions the best there is: by the difference of distances, so many of them.
        let mut by_difference: Vec<(f64, f64)> =
            clients.iter().map(|client| (km(*client, 0), km(*client, 1))).collect();
        by_difference.sort_by(|a, b| (a.0 - a.1).total_cmp(&(b.0 - b.1)));
        let first = (parts[0] * clients.len() as f64).round() as usize;
        let best: f64 = by_difference.iter().take(first).map(|both| both.0).sum::<f64>()
            + by_difference.iter().skip(first).map(|both| both.1).sum::<f64>();
        assert!(sum <= best * 1.01, "{weights:?}: {sum} km instead of {best} km");
        assert!(sum >= best * 0.999_999);
    }
}

#[test]
fn a_weight_moves_who_lives_at_the_border_and_nobody_else() {
    let clients = clients();
    let [before, after] = [[70, 30, 0], [60, 40, 0]].map(|weights| snapshot(&text("", weights), &[]));
    let offset = |snapshot: &Snapshot| {
        let of = |id| snapshot.view.balances[0].as_ref().unwrap().offset(RegionId(id));
        of(1) - of(0)
    };
    let (low, high) = (offset(&before), offset(&after));
    assert!(low < high);
    let mut moved = 0;
    for client in &clients {
        let (from, to) = (region(&before, *client), region(&after, *client));
        if from != to {
            moved += 1;
            assert_eq!((from, to), (0, 1), "{client}");
            let difference = km(*client, 1) - km(*client, 0);
            assert!(
                difference > low - balance::SPREAD_KM && difference < high + balance::SPREAD_KM,
                "{client} is far from it"
            );
        }
    }
    let part = f64::from(moved) / clients.len() as f64;
    assert!((part - 0.1).abs() < 0.03, "{part}");
}

#[test]
fn pins_residency_and_unknown_places_count() {
    let clients = clients();
    let pinned = "[services.web.pins]\n\"country:US\" = [\"ap\"]";
    let world = text("", [1, 1, 1]) + pinned;
    let snapshot = snapshot(&world, &[]);
    let (parts, _) = spread(&snapshot, &clients);
    let atlas = atlas();
    let is_us = |client: &&IpAddr| {
        atlas.place(atlas.locate(Canonical::new(**client)).place).country.is_some_and(|c| c.as_str() == "US")
    };
    let us = clients.iter().filter(is_us).count() as f64 / clients.len() as f64;
    // A third of the world or more lives there: all of it is pinned, and the rest shares what is left as well as it can.
    assert!(us > 0.3, "{us}");
    assert!(parts[2] > us - 1e-6 && parts[2] < us.max(1.0 / 3.0) + 0.05, "{parts:?}");
    assert!(clients.iter().filter(is_us).all(|client| region(&snapshot, *client) == 2));
    // Nobody knows where this is, and nothing says what to think: drawn by weight.
    let nowhere = Arc::new(Snapshot::assuming(
        View::compile(compile(&text("", [1, 3, 0])).fleet, Arc::new(meridian::geo::Atlas::empty()), None),
        RegionSet::EMPTY,
    ));
    let networks = common::world::networks(3, 2000);
    let eu = networks.iter().filter(|client| region(&nowhere, **client) == 1).count();
    assert!((1400..1600).contains(&eu), "{eu}");
}

#[test]
fn a_lost_region_moves_its_own_clients_only() {
    let world = text("", [1, 1, 1]);
    let (all, without) = (snapshot(&world, &[]), snapshot(&world, &["eu"]));
    for client in clients() {
        let (before, after) = (region(&all, client), region(&without, client));
        assert!(if before == 1 { after != 1 } else { after == before }, "{client}");
        let reason = common::world::take(&all, client).unwrap().reason;
        assert_eq!(reason, TakeReason::Balanced);
    }
}

/// One place with half of the clients: a border runs through it, and its networks stay where they are.
#[test]
fn a_city_is_shared_by_its_networks() {
    let clients = clients();
    let place = |client: &IpAddr| atlas().locate(Canonical::new(*client)).place;
    let mut counts = BTreeMap::new();
    clients.iter().for_each(|client| *counts.entry(place(client)).or_insert(0) += 1);
    let (largest, _) = counts.iter().max_by_key(|(_, count)| **count).unwrap();
    let city: Vec<Canonical> =
        clients.iter().filter(|client| place(client) == *largest).map(|client| Canonical::new(*client)).collect();
    assert!(city.len() > 100, "{} networks of one place", city.len());
    let sample: Sample = BTreeMap::from([("web".to_owned(), city.iter().copied().cycle().take(1500).collect())]);
    let view = View::compile_for(&sample, compile(&text("", [30, 70, 0])).fleet, atlas(), None);
    let snapshot = Snapshot::assuming(view, RegionSet::EMPTY);
    let us = city.iter().filter(|client| region(&snapshot, client.ip()) == 0).count() as f64 / city.len() as f64;
    assert!((us - 0.3).abs() < 0.01, "{us}");
}

#[test]
fn what_did_not_change_is_taken_over_and_traffic_is_followed_slowly() {
    let first = view(&text("", [1, 1, 0]));
    let elsewhere: Vec<Canonical> =
        clients().iter().filter(|client| km(**client, 0) < 5000.0).map(|c| Canonical::new(*c)).take(1500).collect();
    let sample: Sample = BTreeMap::from([("web".to_owned(), elsewhere.clone())]);
    let with = |weights| View::compile_for(&sample, compile(&text("", weights)).fleet, atlas(), Some(&first));
    assert_eq!(with([1, 1, 0]).balances, first.balances, "an edit elsewhere moves nobody");
    assert_eq!(with([2, 2, 0]).balances, first.balances);
    assert_ne!(with([1, 2, 0]).balances, first.balances);

    // All its traffic is from America: Europe gets a little more of it each time, until it has its half.
    let mut now = Snapshot::assuming(first, RegionSet::EMPTY);
    assert!(balance::follow(&now).is_none(), "nobody was seen yet");
    let part = |now: &Snapshot| {
        elsewhere.iter().filter(|client| region(now, client.ip()) == 1).count() as f64 / elsewhere.len() as f64
    };
    let mut steps = 0;
    let mut before = part(&now);
    assert!(before < 0.2, "{before}");
    loop {
        let mut chances = random(5);
        elsewhere.iter().for_each(|client| now.clients[0].see(*client, chances.next().unwrap()));
        let Some(balances) = balance::follow(&now) else { break };
        now = Snapshot::assuming(View { balances, ..now.view.clone() }, RegionSet::EMPTY);
        let after = part(&now);
        assert!(after > before && after - before < 0.06, "{before} to {after}");
        (before, steps) = (after, steps + 1);
        assert!(steps < 30);
    }
    assert!((before - 0.5).abs() <= 0.035 && steps >= 5, "{before} after {steps} steps");
}

/// Networks that the geo data cannot place say nothing of distances.
#[test]
fn a_sample_without_places_is_none() {
    let private: Vec<Canonical> =
        (0..2000_u32).map(|n| Canonical::new(IpAddr::from((0x0a00_0000 + (n << 8)).to_be_bytes()))).collect();
    let sample: Sample = BTreeMap::from([("web".to_owned(), private)]);
    let fleet = || compile(&text("", [9, 1, 0])).fleet;
    let with = View::compile_for(&sample, fleet(), atlas(), None);
    assert_eq!(with.balances, View::compile(fleet(), atlas(), None).balances);
}

/// A pin to a region without a share, or one that residency forbids, is passed by the walk, and so it is here.
#[test]
fn pins_that_lead_nowhere_do_not_count() {
    let clients = clients();
    let pinned = snapshot(&(text("", [1, 1, 0]) + "[services.web.pins]\n\"country:US\" = [\"ap\"]"), &[]);
    let (parts, _) = spread(&pinned, &clients);
    assert!((parts[0] - 0.5).abs() < 0.035 && (parts[1] - 0.5).abs() < 0.035, "{parts:?}");
}

/// Shares that cannot be had are no reason to move anybody.
#[test]
fn what_pins_keep_away_is_not_followed() {
    let text = text("", [1, 1, 1]) + "[services.web.pins]\n\"country:US\" = [\"us\"]";
    let american = clients().into_iter().filter(|client| {
        let place = atlas().place(atlas().locate(Canonical::new(*client)).place);
        place.country.is_some_and(|country| country.as_str() == "US")
    });
    let mut sample: Vec<Canonical> = american.map(Canonical::new).take(1200).collect();
    sample.extend(clients().iter().map(|client| Canonical::new(*client)).take(800));
    let view =
        View::compile_for(&BTreeMap::from([("web".to_owned(), sample.clone())]), compile(&text).fleet, atlas(), None);
    let now = Snapshot::assuming(view, RegionSet::EMPTY);
    let mut chances = random(5);
    sample.iter().for_each(|client| now.clients[0].see(*client, chances.next().unwrap()));
    assert!(balance::follow(&now).is_none());
}
