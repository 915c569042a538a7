//! A region fails in every way that regions fail, under a load that does not wait, and nothing that could be saved is lost.
//!
//! Real processes on loopback, played and judged as `meridian drill` does it: each fault, its bars and what they mean are in
//! `src/drill/fault.rs`. `FAILOVER_RUNS=n` takes medians of n runs.

#![allow(clippy::unwrap_used, reason = "a test")]

use meridian::drill::{self, Fault, Figures, RATE, Setup, Who};
use tokio::sync::Mutex;

/// One scene at a time: what is measured is time.
static STAGE: Mutex<()> = Mutex::const_new(());

/// Plays a fault as often as is asked for, and holds it to its bars.
async fn judge(name: &str) {
    let _alone = STAGE.lock().await;
    let runs = std::env::var("FAILOVER_RUNS").map_or(1, |text| text.parse().unwrap());
    let fault = Fault::named(name).unwrap();
    let setup = Setup { program: env!("CARGO_BIN_EXE_meridian").into(), envoy: None, rate: RATE };
    let (mut figures, mut told) = (Vec::new(), String::new());
    for _ in 0..runs {
        let seen = drill::play(&setup, fault, Who::Meridian).await.unwrap();
        figures.push(Figures::of(fault, &seen));
        let failures: Vec<_> = seen.requests.iter().filter(|request| !request.is_served()).take(50).collect();
        told += &format!("{failures:?}\n{}\n", seen.log);
    }
    let misses = drill::judge(fault, &figures);
    println!("{figures:?}");
    assert!(misses.is_empty(), "{name}: {misses:#?}\n{figures:#?}\n{told}");
}

macro_rules! faults {
    ($($(#[$attribute:meta])* $test:ident: $name:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            $(#[$attribute])*
            async fn $test() {
                judge($name).await;
            }
        )*

        const PLAYED: &[&str] = &[$($name),*];
    };
}

// What is ignored is played by `make test-all`.
faults! {
    killed: "kill";
    frozen: "stop";
    a_black_hole: "vanish";
    every_answer_a_503: "gray";
    half_of_the_answers_503: "half";
    executed_then_reset: "executed";
    a_reset_in_the_body_is_seen: "body";
    accepted_and_closed: "close";
    garbage: "garbage";
    a_byte_a_second: "drip";
    bad_health_and_good_traffic: "health";
    bad_health_everywhere_and_good_traffic: "health-everywhere";
    flapping_is_bounded: "flap";
    meridian_stopped_and_continued_blames_nobody: "pause";
    a_hundred_reloads_during_a_failover: "reloads";
    probes_alone_find_a_region_that_refuses: "kill-idle";
    probes_alone_find_a_black_hole: "vanish-idle";
    a_lost_region_does_not_drown_the_others: "overload";
    #[ignore = "for make test-all"]
    nobody_listens_any_more: "refuse";
    #[ignore = "for make test-all"]
    every_answer_and_the_health_page_a_503: "503";
    #[ignore = "for make test-all"]
    a_cut_configuration_is_refused: "cut-config";
    #[ignore = "for make test-all"]
    swapped_geo_data: "swap-mmdb";
    #[ignore = "for make test-all"]
    deleted_geo_data: "delete-mmdb";
    #[ignore = "takes half a minute"]
    retries_do_not_multiply: "retry-storm";
    #[ignore = "takes more than a minute"]
    a_cold_region_comes_back: "cold-return";
}

#[test]
fn every_fault_is_played() {
    let missing: Vec<_> = drill::FAULTS.iter().map(|fault| fault.name).filter(|name| !PLAYED.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
