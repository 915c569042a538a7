//! A region fails in every way that regions fail, under a load that does not wait, and nothing that could be saved is lost.
//!
//! Real processes on loopback: meridian, and three origins as regions whose journals tell what was executed. Each fault has bars:
//! how many may fail, how slow the slowest may be, when the region is left alone. `FAILOVER_RUNS=n` takes medians of n runs.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;
#[path = "failover/hole.rs"]
mod hole;
#[path = "failover/load.rs"]
mod load;
#[path = "failover/scene.rs"]
mod scene;

use std::time::Duration;

use load::Done;
use scene::{Bars, Fault, judge};
use tokio::sync::Mutex;

/// One scene at a time: what is measured is time.
static STAGE: Mutex<()> = Mutex::const_new(());

/// What every fault has to stay within, unless it says otherwise.
const BARS: Bars =
    Bars { failed_gets: 0, failed_posts: 3, slower: 0, quiet_after: Some(Duration::from_millis(700)), attempts: None };

macro_rules! faults {
    ($($name:ident: $fault:expr, $bars:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let _alone = STAGE.lock().await;
                judge($fault, &$bars).await;
            }
        )*
    };
}

faults! {
    killed: Fault::Kill, BARS;
    every_answer_a_503: Fault::Trouble("503"), Bars { failed_posts: 8, ..BARS };
    frozen: Fault::Stop, Bars { slower: 10, failed_posts: 12, ..BARS };
    executed_then_reset: Fault::Trouble("executed"), Bars { failed_posts: 8, ..BARS };
    accepted_and_closed: Fault::Trouble("close"), Bars { failed_posts: 8, ..BARS };
    garbage: Fault::Trouble("garbage"), Bars { failed_posts: 8, ..BARS };
    half_of_the_answers_503: Fault::Trouble("half"), Bars { failed_posts: 160, quiet_after: None, attempts: Some(1.2), ..BARS };
    a_byte_a_second: Fault::Trouble("drip"), Bars { slower: 60, failed_posts: 30, quiet_after: None, ..BARS };
    bad_health_and_good_traffic: Fault::Health("500"), Bars { quiet_after: Some(Duration::from_millis(1500)), failed_posts: 0, ..BARS };
}

/// Not one region's health page says 200, and all of them answer: they serve on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_health_everywhere_and_good_traffic() {
    let _alone = STAGE.lock().await;
    let seen = scene::run(Fault::HealthEverywhere("500")).await;
    let failed: Vec<_> = seen.all.iter().filter(|done| done.failed()).collect();
    assert!(failed.is_empty(), "{failed:?}\n{}", seen.log);
    assert!(seen.log.contains("self_suspicion") || seen.log.contains("\"panic\""), "{}", seen.log);
}

/// The configuration changes a hundred times while the region is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_during_a_failover() {
    let _alone = STAGE.lock().await;
    judge(Fault::KillAndReload, &Bars { quiet_after: None, ..BARS }).await;
}

/// A health page that goes good and bad as often as it can: the region's state does not follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flapping_is_bounded() {
    let _alone = STAGE.lock().await;
    let seen = scene::run(Fault::Flap).await;
    let failed: Vec<_> = seen.all.iter().filter(|done| done.failed()).collect();
    assert!(failed.is_empty(), "{failed:?}\n{}", seen.log);
    let turns = seen.log.matches("\"kind\":\"region\"").count();
    assert!(turns <= 3 + 8, "{turns} turns of regions\n{}", seen.log);
}

/// What came of the answer before it broke is with the client, and it can see that there is something missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_in_the_body_is_seen() {
    let _alone = STAGE.lock().await;
    let seen = scene::run(Fault::Trouble("body")).await;
    // From when the origin was surely told.
    let told = seen.fault + Duration::from_millis(200);
    let whole = |done: &&Done| done.due > told && matches!(&done.result, Ok((200, origin)) if *origin == seen.victim);
    let troubled = seen.during().filter(whole).count();
    assert_eq!(troubled, 0, "broken answers that looked whole");
    assert!(seen.during().filter(|done| done.failed()).count() > 10, "nothing broke");
    assert_eq!(seen.duplicates(), Vec::<String>::new());
}

/// A process that stood still finds its regions where it left them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meridian_stopped_and_continued_blames_nobody() {
    let _alone = STAGE.lock().await;
    let seen = scene::run(Fault::Ourselves).await;
    let failed: Vec<_> = seen.all.iter().filter(|done| done.failed()).collect();
    assert!(failed.is_empty(), "{failed:?}\n{}", seen.log);
    assert!(seen.log.contains("stood still"), "{}", seen.log);
    assert!(!seen.log.contains("ejected") && !seen.log.contains("region down"), "{}", seen.log);
}

/// No request tells of the fault: probes find it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_alone_find_a_region_that_refuses() {
    let _alone = STAGE.lock().await;
    let took = scene::found_by_probes().await;
    assert!(took <= Duration::from_millis(1500), "{took:?}");
}

/// A machine that vanishes: no refusal, no reset, nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole() {
    let _alone = STAGE.lock().await;
    hole::outside();
}

/// The same from inside of the network namespace that [`a_black_hole`] makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a network namespace of its own, started by a_black_hole"]
async fn inside_of_the_hole() {
    if std::env::var_os(hole::INSIDE).is_none() {
        return;
    }
    judge(Fault::Vanish, &Bars { slower: 10, failed_posts: 12, ..BARS }).await;
    let took = scene::found_by_probes_in_the_hole().await;
    hole::close();
    assert!(took <= Duration::from_millis(2500), "{took:?}");
}
