//! A table: a world, then a client a row, with the region and reason that it gets.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::world::{query, snapshot};
use meridian::steering::{Query, Snapshot, Step};

const LONDON: &str = "81.2.69.142";
const MINNEAPOLIS: &str = "128.101.101.101";
const TOKYO: &str = "133.11.0.1";
const NOWHERE: &str = "10.1.2.3";

const REGIONS: &str = "\
[regions.us-east]
location = [38.95, -77.45]
[regions.eu-west]
location = [53.35, -6.26]
[regions.ap-northeast]
location = [35.68, 139.69]
";

fn pools(lines: [&str; 3]) -> String {
    let names = ["us-east", "eu-west", "ap-northeast"];
    let pool =
        |(name, line): (&str, &str)| format!("[services.web.pools.{name}]\nendpoints = [\"192.0.2.1:80\"]\n{line}\n");
    names.into_iter().zip(lines).map(pool).collect()
}

fn world(regions: &str, service: &str, lines: [&str; 3]) -> String {
    format!("{regions}\n[services.web]\n{service}\n{}", pools(lines))
}

/// The steps up to the take in the words of the contract.
fn told(snapshot: &Snapshot, client: &str) -> String {
    told_of(snapshot, query(client.parse().unwrap()))
}

/// The same for a client that was at this region before.
fn told_back(snapshot: &Snapshot, client: &str, region: &str) -> String {
    let affinity = snapshot.fleet().region_named(region);
    assert!(affinity.is_some());
    told_of(snapshot, Query { affinity, ..query(client.parse().unwrap()) })
}

fn told_of(snapshot: &Snapshot, query: Query) -> String {
    let mut walk = snapshot.walk(&query);
    let mut words = Vec::new();
    let name = |region| snapshot.fleet().region(region).name.as_str();
    loop {
        match walk.step(snapshot) {
            Some(Step::Pass(region, reason)) => words.push(format!("pass {} {}", name(region), reason.as_str())),
            Some(Step::Take(take)) => {
                words.push(format!("take {} {}", name(take.region), take.reason.as_str()));
                return words.join(", ");
            }
            None => {
                words.push(format!("none {}", walk.refusal().as_str()));
                return words.join(", ");
            }
        }
    }
}

#[track_caller]
fn check(text: &str, down: &[&str], rows: &[(&str, &str)]) {
    let snapshot = snapshot(text, down);
    for (client, want) in rows {
        assert_eq!(told(&snapshot, client), *want, "{client} with {down:?} down");
    }
}

#[test]
fn the_nearest_and_the_next() {
    let plain = world(REGIONS, "", ["", "", ""]);
    check(
        &plain,
        &[],
        &[
            (LONDON, "take eu-west nearest"),
            (MINNEAPOLIS, "take us-east nearest"),
            (TOKYO, "take ap-northeast nearest"),
            // Nothing is known of it: configuration order.
            (NOWHERE, "take us-east nearest"),
        ],
    );
    check(
        &plain,
        &["eu-west"],
        &[(LONDON, "pass eu-west unhealthy, take us-east failover"), (TOKYO, "take ap-northeast nearest")],
    );
    check(&plain, &["us-east", "eu-west", "ap-northeast"], &[(LONDON, "take eu-west panic")]);
}

#[test]
fn refusing_to_panic() {
    let text = world(REGIONS, "panic = \"refuse\"", ["", "", ""]);
    check(
        &text,
        &["us-east", "eu-west", "ap-northeast"],
        &[(TOKYO, "pass ap-northeast unhealthy, pass eu-west unhealthy, pass us-east unhealthy, none unhealthy")],
    );
}

#[test]
fn full_regions_and_those_above_their_target() {
    let plain = world(REGIONS, "", ["", "", ""]);
    let mut snapshot = snapshot(&plain, &[]);
    let full = |snapshot: &Snapshot, names: &[&str], client: &str| {
        let full = names.iter().map(|name| snapshot.fleet().region_named(name).unwrap()).collect();
        told_of(snapshot, Query { full, ..query(client.parse().unwrap()) })
    };
    assert_eq!(full(&snapshot, &["eu-west"], LONDON), "pass eu-west full, take us-east spillover");
    assert_eq!(full(&snapshot, &["eu-west"], TOKYO), "take ap-northeast nearest");
    assert_eq!(
        full(&snapshot, &["eu-west", "us-east", "ap-northeast"], LONDON),
        "pass eu-west full, pass us-east full, pass ap-northeast full, none full"
    );
    // Clients of a region above its target go to the next; when all are, the first has to take them.
    snapshot.regions[1].shed = 0.0;
    assert_eq!(told(&snapshot, LONDON), "pass eu-west over_target, take us-east spillover");
    assert_eq!(told_back(&snapshot, LONDON, "eu-west"), "take eu-west affinity", "who is there stays");
    snapshot.regions.iter_mut().for_each(|region| region.shed = 0.0);
    assert_eq!(
        told(&snapshot, LONDON),
        "pass eu-west over_target, pass us-east over_target, pass ap-northeast over_target, take eu-west spillover"
    );
    assert_eq!(
        full(&snapshot, &["eu-west"], LONDON),
        "pass eu-west full, pass us-east over_target, pass ap-northeast over_target, take us-east spillover"
    );
    // A limit is never lifted, not by panic either.
    let down = ["us-east", "eu-west", "ap-northeast"];
    let dark = common::world::snapshot(&plain, &down);
    assert_eq!(full(&dark, &["eu-west"], LONDON), "pass eu-west full, take us-east panic");
    assert!(full(&dark, &down, LONDON).ends_with("none full"));
}

#[test]
fn operators_are_obeyed_also_in_panic() {
    let drained = REGIONS.replace("[53.35, -6.26]", "[53.35, -6.26]\nstate = \"drain\"");
    let maint = REGIONS.replace("[53.35, -6.26]", "[53.35, -6.26]\nstate = \"maint\"");
    check(&world(&drained, "", ["", "", ""]), &[], &[(LONDON, "pass eu-west drained, take us-east failover")]);
    check(
        &world(&maint, "", ["", "", ""]),
        &["us-east", "ap-northeast"],
        &[(LONDON, "pass eu-west maint, take us-east panic")],
    );
    let all = REGIONS.replace("]\n[", "]\nstate = \"maint\"\n[").replace("139.69]", "139.69]\nstate = \"drain\"");
    check(
        &world(&all, "", ["", "", ""]),
        &[],
        &[(LONDON, "pass eu-west maint, pass us-east maint, pass ap-northeast drained, none no_region")],
    );
}

#[test]
fn weight_zero_and_dials() {
    let text = world(REGIONS, "", ["", "weight = 0", ""]);
    check(&text, &[], &[(LONDON, "pass eu-west weight_zero, take us-east nearest")]);
    // It may take failover traffic.
    check(
        &text,
        &["us-east", "ap-northeast"],
        &[(
            LONDON,
            "pass eu-west weight_zero, pass us-east unhealthy, pass ap-northeast unhealthy, take eu-west failover",
        )],
    );
    let closed = world(REGIONS, "", ["dial = 0", "dial = 0", "dial = 0"]);
    check(
        &closed,
        &[],
        &[(LONDON, "pass eu-west dial, pass us-east dial, pass ap-northeast dial, take eu-west last_resort")],
    );
}

#[test]
fn pins_by_the_narrowest_area_and_networks_before_them() {
    let pins =
        "[services.web.pins]\n\"continent:EU\" = [\"us-east\"]\n\"country:GB\" = [\"ap-northeast\", \"us-east\"]\n";
    let text = world(REGIONS, "", ["", "", ""]) + pins;
    check(&text, &[], &[(LONDON, "take ap-northeast pin"), (MINNEAPOLIS, "take us-east nearest")]);
    check(&text, &["ap-northeast"], &[(LONDON, "pass ap-northeast unhealthy, take us-east failover")]);
    let networks = "[geoip.networks]\n\"81.2.69.0/24\" = \"us-east\"\n\"10.0.0.0/8\" = \"eu-west\"\n";
    check(
        &(text + networks),
        &[],
        &[(LONDON, "take us-east network"), (NOWHERE, "take eu-west network"), ("81.2.70.1", "take ap-northeast pin")],
    );
}

#[test]
fn residency_is_hard() {
    let rules = "residency = [{ from = [\"continent:EU\"], to = [\"eu-west\"] }, { from = [\"country:US\"], to = [\"us-east\", \"eu-west\"] }]";
    let text = world(REGIONS, rules, ["", "", ""]);
    check(
        &text,
        &["eu-west"],
        &[
            (LONDON, "take eu-west panic"),
            (TOKYO, "take ap-northeast nearest"),
            (NOWHERE, "pass us-east residency, pass eu-west residency, pass ap-northeast residency, none residency"),
        ],
    );
    check(&text, &["us-east"], &[(MINNEAPOLIS, "pass us-east unhealthy, take eu-west failover")]);
    let allowed = world(REGIONS, &format!("{rules}\nunknown = \"allow\""), ["", "", ""]);
    check(&allowed, &[], &[(NOWHERE, "take us-east nearest")]);
    // Neither a pin nor a network re-admits what residency removed.
    let pinned = format!(
        "{text}[services.web.pins]\n\"country:GB\" = [\"us-east\"]\n[geoip.networks]\n\"81.2.70.0/24\" = \"us-east\"\n"
    );
    check(
        &pinned,
        &[],
        &[
            (LONDON, "pass us-east residency, take eu-west nearest"),
            ("81.2.70.1", "pass us-east residency, take eu-west nearest"),
        ],
    );
}

#[test]
fn bias_and_defaults() {
    let biased = REGIONS.replace("[38.95, -77.45]", "[38.95, -77.45]\nbias = 95");
    check(
        &world(&biased, "", ["", "", ""]),
        &[],
        &[(LONDON, "take us-east nearest"), (NOWHERE, "take us-east nearest")],
    );
    let default = world(REGIONS, "", ["", "", ""]) + "[geoip]\ndefault = [35.0, 135.0]\n";
    check(&default, &[], &[(NOWHERE, "take ap-northeast nearest")]);
    let pop = world(REGIONS, "", ["", "", ""]) + "[pop]\nlocation = [50.11, 8.68]\n";
    check(&pop, &[], &[(NOWHERE, "take eu-west nearest")]);
}

#[test]
fn band_splits_among_the_near_only() {
    let text = world(REGIONS, "steering = \"band\"\nband_km = 100", ["", "", ""]);
    check(&text, &[], &[(LONDON, "take eu-west band"), (TOKYO, "take ap-northeast band")]);
    let snapshot = snapshot(&world(REGIONS, "steering = \"band\"\nband_km = 6000", ["", "", ""]), &[]);
    let british = |address: &String| {
        let client = meridian::geo::Canonical::new(address.parse().unwrap());
        let place = snapshot.view.atlas.place(snapshot.view.atlas.locate(client).place);
        place.country.is_some_and(|country| country.as_str() == "GB")
    };
    let britons: Vec<_> = (0..=255u8).map(|n| format!("81.2.{n}.1")).filter(british).collect();
    assert!(britons.len() > 50);
    let londoners = britons.iter().map(|address| told(&snapshot, address));
    let seen: std::collections::BTreeSet<_> = londoners.collect();
    let want = ["take eu-west band", "take us-east band"].map(str::to_owned);
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), want);
}

#[test]
fn what_is_left_of_a_split_is_a_walk() {
    let text = world(REGIONS, "steering = \"split\"", ["weight = 70", "weight = 30", "weight = 0"]);
    let snapshot = snapshot(&text, &[]);
    for n in 0..50u8 {
        let mut walk = snapshot.walk(&query(format!("81.2.{n}.1").parse().unwrap()));
        let first = walk.take(&snapshot).unwrap();
        walk.failed(&snapshot, meridian::steering::Avoid::Region);
        let second = walk.take(&snapshot).unwrap();
        walk.failed(&snapshot, meridian::steering::Avoid::Region);
        let third = walk.take(&snapshot).unwrap();
        assert_eq!(first.region.0 + second.region.0, 1, "{first:?} {second:?}");
        assert_eq!((third.region.0, third.reason.as_str()), (2, "failover"));
    }
}

#[test]
fn affinity_is_honoured_while_its_region_is_in_the_sets() {
    /// State of the region, lines of the service and of its pools, what is down; and the steps.
    type Row = (&'static str, &'static str, [&'static str; 3], &'static [&'static str], &'static str);
    let rows: &[Row] = &[
        ("", "", ["", "", ""], &[], "take ap-northeast affinity"),
        // Whatever its weight and dial; before pins, and under every steering.
        ("", "", ["", "", "weight = 0"], &[], "take ap-northeast affinity"),
        ("", "", ["", "", "dial = 0"], &[], "take ap-northeast affinity"),
        ("", "pins = { \"country:GB\" = [\"us-east\"] }", ["", "", ""], &[], "take ap-northeast affinity"),
        ("", "steering = \"split\"", ["", "", ""], &[], "take ap-northeast affinity"),
        // A drain that has just begun counts as in, maintenance never does.
        ("state = \"drain\"", "", ["", "", ""], &[], "take ap-northeast affinity"),
        ("state = \"maint\"", "", ["", "", ""], &[], "pass ap-northeast maint, take eu-west failover"),
        ("", "", ["", "", ""], &["ap-northeast"], "pass ap-northeast unhealthy, take eu-west failover"),
        (
            "",
            "residency = [{ from = [\"continent:EU\"], to = [\"eu-west\"] }]",
            ["", "", ""],
            &[],
            "pass ap-northeast residency, take eu-west nearest",
        ),
        // Then the order is as ever, and it is not asked twice.
        (
            "state = \"drain\"",
            "pins = { \"country:GB\" = [\"ap-northeast\", \"us-east\"] }",
            ["", "", ""],
            &["ap-northeast"],
            "pass ap-northeast drained, take us-east failover",
        ),
        ("", "", ["", "", ""], &["ap-northeast", "eu-west", "us-east"], "take ap-northeast panic"),
    ];
    for (state, service, lines, down, want) in rows {
        // `REGIONS` ends inside the table of the last one.
        let snapshot = snapshot(&world(&format!("{REGIONS}{state}"), service, *lines), down);
        assert_eq!(told_back(&snapshot, LONDON, "ap-northeast"), *want, "{state} {service} {lines:?} {down:?}");
    }
    // Not one of the service's: as if nothing were said.
    let two = world(REGIONS, "", ["", "", ""]) + "[regions.moon]\n";
    assert_eq!(told_back(&snapshot(&two, &[]), LONDON, "moon"), "take eu-west nearest");
}
