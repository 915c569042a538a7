//! How many clients a change would move, held against what is known of it otherwise.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::sync::Arc;

use common::world::{over, random, snapshot, view};
use meridian::geo::Canonical;
use meridian::steering::brake::{self, Moves};
use meridian::steering::fleet::Intent;
use meridian::steering::snapshot::PoolState;
use meridian::steering::{RegionId, Snapshot, Target, Word};

const REGIONS: &str = "
[regions.us]
location = [38.95, -77.45]
[regions.eu]
location = [53.35, -6.26]
[regions.ap]
location = [35.62, 139.78]
";

/// A world of three regions with this in `[process]` and in the service, and these weights.
fn text(process: &str, service: &str, weights: [u32; 3]) -> String {
    let pools = ["us", "eu", "ap"].into_iter().zip(weights).enumerate().map(|(index, (region, weight))| {
        format!("[services.web.pools.{region}]\nweight = {weight}\nendpoints = [\"10.0.{index}.1:80\", \"{region}.test:80\"]\n")
    });
    format!(
        "[process]\n{process}\n{REGIONS}[services.web]\n{service}\n[services.web.health]\n{}",
        pools.collect::<String>()
    )
}

fn word(kind: Target, name: &str, state: Intent) -> Word {
    Word::Set(over(kind, name, state))
}

/// What moves, whatever it is.
fn all(now: &str, then: &str, down: &[&str]) -> Option<Moves> {
    let then = then.replace("[process]\n", "[process]\nbrake = 0\n");
    brake::reload(&snapshot(now, down), &view(&then)).pop()
}

#[test]
fn what_changes_nothing_moves_nobody() {
    let now = text("", "steering = \"split\"", [5, 3, 2]);
    assert_eq!(all(&now, &now, &[]), None);
    assert_eq!(all(&now, &now.replace("0.1:80", "0.2:80"), &["eu"]), None, "other endpoints are the same region");
}

#[test]
fn a_split_moves_what_its_weights_say() {
    for (before, after) in [([70, 30, 0], [60, 40, 0]), ([70, 30, 0], [10, 90, 0]), ([1, 1, 1], [1, 1, 2])] {
        let share = |weights: [u32; 3], n: usize| f64::from(weights[n]) / f64::from(weights.iter().sum::<u32>());
        let expected: f64 = (0..3).map(|n| (share(after, n) - share(before, n)).max(0.0)).sum::<f64>() * 100.0;
        let [now, then] = [before, after].map(|weights| text("", "steering = \"split\"", weights));
        let moves = all(&now, &then, &[]).unwrap();
        assert!((f64::from(moves.percent) - expected).abs() < 4.0, "{before:?} to {after:?}: {moves}, not {expected}");
        assert!(!moves.seen);
        // One by one for requests that are drawn each for itself.
        let [now, then] = [before, after].map(|weights| text("", "steering = \"split\"\ndraw = \"request\"", weights));
        let moves = all(&now, &then, &[]).unwrap();
        assert!((f64::from(moves.percent) - expected).abs() < 4.0, "{before:?} to {after:?}: {moves}, not {expected}");
    }
}

#[test]
fn what_is_down_moves_nobody() {
    let now = text("", "", [1, 1, 1]);
    let without = now.replace("[regions.eu]\n", "[regions.eu]\nstate = \"drain\"\n");
    let moves = all(&now, &without, &[]).unwrap();
    assert!(moves.percent > 20 && moves.ways.iter().all(|(from, ..)| from == "eu"), "{moves}");
    assert_eq!(all(&now, &without, &["eu"]), None);
}

#[test]
fn the_brake_is_that_of_what_would_be() {
    let now = text("", "steering = \"split\"", [1, 0, 0]);
    let then = |process| view(&text(process, "steering = \"split\"", [40, 60, 0]));
    let now = snapshot(&now, &[]);
    let told = brake::reload(&now, &then("")).pop().unwrap().to_string();
    assert!(
        told.contains("% of the clients (by the addresses of geo data: hardly any were seen yet) of service `web`: "),
        "{told}"
    );
    assert!(told.contains(" % from `us` to `eu`"), "{told}");
    assert_eq!(brake::reload(&now, &then("brake = 70")), []);
    assert_eq!(brake::reload(&now, &then("brake = 100")), []);
    assert_eq!(brake::reload(&now, &then("brake = 20")).len(), 1);
}

#[test]
fn who_was_seen_counts_before_the_world() {
    let now = snapshot(&text("brake = 40", "", [1, 1, 1]), &[]);
    // Ireland, Germany and France; and one in a hundred from Virginia.
    let bases =
        ["46.7.0.0", "87.128.0.0", "90.0.0.0"].map(|base| u32::from(base.parse::<std::net::Ipv4Addr>().unwrap()));
    let mut chances = random(1);
    let mut see = |base: u32, n: u32| {
        let client = Canonical::new(std::net::IpAddr::from((base + n % 200 * 256 + 9).to_be_bytes()));
        now.clients[0].see(client, chances.next().unwrap());
    };
    let drain = |region| brake::word(&now, &word(Target::Region, region, Intent::Drain));
    let (by_addresses, of_virginia) = (drain("us"), drain("eu"));
    assert!(!by_addresses.is_empty() && of_virginia.is_empty(), "{by_addresses:?} {of_virginia:?}");
    for n in 0..1500 {
        see(bases[n as usize % 3], n);
    }
    for n in 0..30 {
        see(u32::from(std::net::Ipv4Addr::new(72, 83, 0, 0)), n);
    }
    assert_eq!(drain("us"), []);
    let moves = drain("eu").pop().unwrap();
    assert!(moves.seen && (97..100).contains(&moves.percent), "{moves}");
    assert!(moves.to_string().contains("clients of the last hours of service `web`"), "{moves}");
}

#[test]
fn words_over_endpoints_count_too_and_words_in_force_are_in_force() {
    let text = text("brake = 0", "", [1, 1, 1]);
    let now = snapshot(&text, &[]);
    let moved = |now: &Snapshot, word: &Word| brake::word(now, word).pop().map_or(0, |moves| moves.percent);
    let out = |name| word(Target::Endpoint, name, Intent::Maint);
    assert_eq!(moved(&now, &out("10.0.1.1:80")), 0, "another one is left");
    assert!(moved(&now, &out("*")) == 100);
    let one_out = Arc::new([over(Target::Endpoint, "10.0.1.1:80", Intent::Maint)].into_iter().collect());
    let now = now.supposing(now.view.clone(), one_out);
    assert!(moved(&now, &out("eu.test:80")) > 20, "that was the last one");
    let back =
        Word::Auto { kind: Target::Endpoint, name: "10.0.1.1:80".into(), reason: String::new(), who: String::new() };
    assert_eq!(moved(&now, &back), 0);
}

/// An assumed world and the same supposed are one.
#[test]
fn supposing_what_is_so_changes_no_answer() {
    for service in [
        "",
        "steering = \"split\"",
        "steering = \"band\"\nband_km = 2000",
        "residency = [{ from = [\"continent:EU\"], to = [\"eu\"] }]",
    ] {
        for down in [&[][..], &["eu"], &["us", "ap"]] {
            let now = snapshot(&text("", service, [3, 2, 1]), down);
            let supposed = now.supposing(now.view.clone(), Arc::default());
            for client in common::world::networks(7, 500) {
                let one = common::world::take(&now, client).map(|take| (take.region, take.reason));
                let other = common::world::take(&supposed, client).map(|take| (take.region, take.reason));
                assert_eq!(one, other, "{client} with {service:?} and {down:?} down");
            }
        }
    }
}

/// What is known of health holds on both sides, and nothing that may help is held back.
#[test]
fn who_is_served_by_what_is_down_has_nothing_to_lose() {
    let text = text("", "", [1, 1, 0]).replace("[regions.eu]\n", "[regions.eu]\nstate = \"drain\"\n");
    let ready = word(Target::Region, "eu", Intent::Ready);
    // All there is is down, and the standby is called in.
    assert_eq!(brake::word(&snapshot(&text, &["us", "ap"]), &ready), []);
    assert!(brake::word(&snapshot(&text.replace("[process]", "[process]\nbrake = 20"), &[]), &ready).len() == 1);
}

#[test]
fn who_holds_or_leaves_has_no_clients_to_move() {
    let text = text("", "steering = \"split\"", [1, 1, 0]);
    let mut now = snapshot(&text, &[]);
    let drain = |now: &Snapshot, region| brake::word(now, &word(Target::Region, region, Intent::Drain));
    assert_eq!((drain(&now, "eu").len(), drain(&now, "ap").len()), (usize::from(half(&now, 1) > 0.5), 0));
    // It came back, and nobody has come back to it.
    now.pools[1].state = PoolState::Holding;
    now.pools[1].ramp = 0.0;
    assert_eq!(drain(&now, "us").pop().unwrap().percent, 100);
    assert_eq!(drain(&now, "eu"), []);
    // The same of one whose every endpoint asks to be drained.
    now.pools[1].state = PoolState::Up;
    now.pools[1].ramp = 1.0;
    now.services[0].leaving.insert(RegionId(1));
    assert_eq!(drain(&now, "us").pop().unwrap().percent, 100);
    assert_eq!(drain(&now, "eu"), []);
}

/// Part of the addresses that go to that region.
fn half(now: &Snapshot, region: u8) -> f64 {
    let clients = meridian::steering::clients::addresses(&now.view.atlas);
    let there =
        clients.iter().filter(|client| common::world::region(now, client.ip()) == Some(RegionId(region))).count();
    there as f64 / clients.len() as f64
}

#[test]
fn round_trips_that_begin_to_count_move_clients_too() {
    let plain = text("", "", [1, 1, 1]);
    let mut now = snapshot(&plain, &[]);
    for (pool, rtt_ms) in now.pools.iter_mut().zip([90.0, 90.0, 1.0]) {
        pool.rtt_ms = Some(rtt_ms);
    }
    let then = text("", "rtt_weight = 1", [1, 1, 1]);
    let moves = brake::reload(&now, &view(&then)).pop().unwrap();
    assert!(moves.percent > 60 && moves.ways.iter().all(|(_, to, _)| to.as_deref() == Some("ap")), "{moves}");
    // One that nobody has measured yet changes nothing for those who are there.
    let mut now = snapshot(&then, &[]);
    now.pools.iter_mut().for_each(|pool| pool.rtt_ms = Some(10.0));
    let more = then.replace("[services.web]", "[regions.af]\nlocation = [-33.9, 18.4]\n[services.web]")
        + "[services.web.pools.af]\nendpoints = [\"10.0.9.1:80\"]\n";
    assert_eq!(brake::reload(&now, &view(&more.replace("[process]", "[process]\nbrake = 1"))), []);
}
