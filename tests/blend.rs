//! Round trips beside distances: what counts, and when it does not.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::net::IpAddr;
use std::time::Duration;

use common::world::{networks, region, snapshot, take, view};
use meridian::steering::snapshot::Asked;
use meridian::steering::world::ProbeResult;
use meridian::steering::{Change, Now, RegionId, Snapshot, TakeReason, World};
use proptest::prelude::*;

/// Ashburn, Dublin and Tokyo.
fn text(service: &str) -> String {
    let mut text = String::new();
    for (name, point) in [("us", "38.95, -77.45"), ("eu", "53.35, -6.26"), ("ap", "35.62, 139.78")] {
        text += &format!("[regions.{name}]\nlocation = [{point}]\n");
    }
    text += &format!("[services.web]\n{service}\n[services.web.health]\n");
    for (index, name) in ["us", "eu", "ap"].into_iter().enumerate() {
        text += &format!("[services.web.pools.{name}]\nendpoints = [\"10.0.{index}.1:80\"]\n");
    }
    text
}

fn with(service: &str, down: &[&str], trips: [Option<f64>; 3]) -> Snapshot {
    let mut snapshot = snapshot(&text(service), down);
    for (pool, rtt_ms) in snapshot.pools.iter_mut().zip(trips) {
        pool.rtt_ms = rtt_ms;
    }
    snapshot
}

/// London: 460 km from Dublin, 5,900 km from Ashburn, 9,600 km from Tokyo.
const LONDON: &str = "81.2.69.142";

#[test]
fn a_millisecond_stands_for_a_hundred_kilometres() {
    let all = |trips: [f64; 3]| trips.map(Some);
    // (service, down, trips to us, eu and ap, region)
    for (service, down, trips, want) in [
        ("", &[][..], all([1.0, 500.0, 1.0]), 1),
        ("rtt_weight = 0", &[], all([1.0, 500.0, 1.0]), 1),
        ("rtt_weight = 0.5", &[], all([80.0, 80.0, 80.0]), 1),
        // 54 ms are 5,400 km, the difference of the distances.
        ("rtt_weight = 0.5", &[], all([20.0, 73.0, 200.0]), 1),
        ("rtt_weight = 0.5", &[], all([20.0, 76.0, 200.0]), 0),
        ("rtt_weight = 0.5\nrtt_km_per_ms = 10", &[], all([20.0, 76.0, 200.0]), 1),
        ("rtt_weight = 1", &[], all([20.0, 21.0, 19.0]), 2),
        ("rtt_weight = 1", &["ap"], all([20.0, 21.0, 19.0]), 0),
        // One that somebody could go to is not known: distance alone. One that is down does not matter.
        ("rtt_weight = 1", &[], [Some(20.0), Some(21.0), None], 1),
        ("rtt_weight = 1", &["ap"], [Some(20.0), Some(21.0), None], 0),
        ("rtt_weight = 1", &["eu"], [Some(20.0), Some(9.0), Some(19.0)], 2),
    ] {
        let snapshot = with(service, down, trips);
        let taken = take(&snapshot, LONDON.parse().unwrap()).unwrap();
        assert_eq!(taken.region, RegionId(want), "{service:?} {down:?} {trips:?}");
        let reason =
            if down == ["eu"] || want == 0 && down == ["ap"] && service == "rtt_weight = 1" && trips[2] == Some(19.0) {
                TakeReason::Failover
            } else {
                TakeReason::Nearest
            };
        assert_eq!(taken.reason, reason, "{service:?} {down:?} {trips:?}");
    }
}

#[test]
fn who_has_no_place_goes_by_round_trips() {
    let snapshot = with("rtt_weight = 0.2", &[], [Some(30.0), Some(20.0), Some(10.0)]);
    assert_eq!(region(&snapshot, "203.0.113.9".parse().unwrap()), Some(RegionId(2)));
    let snapshot = with("rtt_weight = 0.2", &[], [Some(30.0), Some(20.0), None]);
    assert_eq!(region(&snapshot, "203.0.113.9".parse().unwrap()), Some(RegionId(0)), "the order of the configuration");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// As with distances, losing a region moves its own clients and nobody else.
    #[test]
    fn a_lost_region_moves_its_own_clients_only(trips in prop::array::uniform3(1.0..200.0_f64), weight in 0.01..1.0_f64, seed: u64) {
        let service = format!("rtt_weight = {weight}");
        let (all, without) = (with(&service, &[], trips.map(Some)), with(&service, &["eu"], [Some(trips[0]), None, Some(trips[2])]));
        for client in networks(seed, 200) {
            let (before, after) = (region(&all, client), region(&without, client));
            prop_assert!(if before == Some(RegionId(1)) { after != before } else { after == before }, "{}", client);
        }
    }
}

/// A world under the clock of the test, looked at every second.
struct Play {
    world: World,
    now: Now,
}

impl Play {
    fn new(service: &str) -> Play {
        let mut play = Play { world: World::new(view(&text(service)), Now(0)), now: Now(0) };
        let ids: Vec<_> =
            play.world.snapshot().pools.iter().flat_map(|pool| pool.endpoints.iter().map(|e| e.id)).collect();
        for endpoint in ids {
            for _ in 0..2 {
                let result = ProbeResult::Pass(Asked::default());
                play.world.apply(Change::Probed { endpoint, result, began: Now(0) }, play.now);
            }
        }
        play.world.apply(Change::Look, play.now);
        play
    }

    /// So many seconds in which a connection opens to each region.
    fn pass(&mut self, seconds: u64, ms: [Option<u64>; 3]) {
        for _ in 0..seconds {
            let snapshot = self.world.snapshot();
            for (pool, ms) in snapshot.pools.iter().zip(ms) {
                let trips = pool.endpoints[0].meter.trips();
                ms.into_iter().for_each(|ms| trips.record(Duration::from_millis(ms)));
            }
            for _ in 0..20 {
                self.now = Now(self.now.0 + 50);
                self.world.apply(Change::Look, self.now);
            }
        }
    }

    fn region(&self, client: &str) -> u8 {
        region(&self.world.snapshot(), client.parse::<IpAddr>().unwrap()).unwrap().0
    }
}

#[test]
fn the_writer_measures_and_forgets() {
    let mut play = Play::new("rtt_weight = 0.9");
    assert_eq!(play.region(LONDON), 1, "nothing is known");
    play.pass(3, [Some(10), Some(80), Some(200)]);
    assert_eq!(play.region(LONDON), 0);
    // The way to Dublin is mended.
    play.pass(90, [Some(10), Some(12), Some(200)]);
    assert_eq!(play.region(LONDON), 1);
    // It is gone again, and then nothing more is heard of the one that nobody goes to.
    play.pass(90, [Some(10), Some(80), Some(200)]);
    assert_eq!(play.region(LONDON), 0);
    play.pass(40, [Some(10), Some(80), None]);
    assert_eq!(play.region(LONDON), 1, "distance alone");

    let mut without = Play::new("");
    without.pass(3, [Some(10), Some(80), Some(200)]);
    assert_eq!(without.region(LONDON), 1, "it is known, and does not count");
}

#[test]
fn noise_publishes_nothing() {
    let mut play = Play::new("rtt_weight = 0.5");
    play.pass(3, [Some(50), Some(80), Some(200)]);
    let before = play.world.snapshot();
    for n in 0..100 {
        play.pass(1, [Some(46 + n % 9), Some(75 + n % 10), Some(190 + n % 20)]);
        // A packet was lost.
        if n % 40 == 9 {
            play.pass(1, [Some(1050), Some(80), Some(200)]);
        }
    }
    assert!(std::sync::Arc::ptr_eq(&before, &play.world.snapshot()));
}

/// What was measured while the process stood still is its own doing.
#[test]
fn a_pause_of_the_process_is_no_way() {
    let mut play = Play::new("rtt_weight = 0.9");
    play.pass(3, [Some(10), Some(12), Some(200)]);
    assert_eq!(play.region(LONDON), 1);
    for _ in 0..20 {
        let snapshot = play.world.snapshot();
        snapshot.pools[1].endpoints[0].meter.trips().record(Duration::from_secs(3));
        play.now = Now(play.now.0 + 3000);
        play.world.apply(Change::Look, play.now);
        play.pass(1, [Some(10), Some(12), Some(200)]);
    }
    assert_eq!(play.region(LONDON), 1);
}
