//! What does not allocate: a decision (a counting allocator watches every kind of walk, retries included), and in the long run a request.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::net::IpAddr;

use common::world::{networks, query, snapshot};
use meridian::steering::{Avoid, Snapshot};

fn world(service: &str) -> String {
    let mut text = String::new();
    for n in 0..50 {
        text += &format!("[regions.r{n}]\nlocation = [{}.0, {}.0]\n", n * 3 - 75, n * 7 - 170);
    }
    text += &format!("[geoip.networks]\n\"81.2.69.0/24\" = \"r7\"\n[services.web]\n{service}\n");
    for n in 0..50 {
        text += &format!(
            "[services.web.pools.r{n}]\nendpoints = [\"192.0.2.1:80\", \"192.0.2.2:80\"]\ndial = {}\n",
            50 + n
        );
    }
    text + "[services.web.pins]\n\"country:DE\" = [\"r3\", \"r4\"]\n"
}

fn decide(snapshot: &Snapshot, clients: &[IpAddr]) -> usize {
    let mut taken = 0;
    for client in clients {
        let mut walk = snapshot.walk(&query(*client));
        while walk.take(snapshot).is_ok() {
            taken += 1;
            walk.failed(snapshot, if taken % 2 == 0 { Avoid::Region } else { Avoid::Endpoint });
        }
    }
    taken
}

#[test]
fn no_walk_allocates() {
    let mut clients = networks(50, 500);
    clients.extend(["81.2.69.142", "2a02:26f0::1", "10.0.0.1"].map(|address| address.parse::<IpAddr>().unwrap()));
    let residency = "residency = [{ from = [\"continent:EU\"], to = [\"r1\", \"r3\"] }]\nunknown = \"allow\"";
    for steering in ["nearest", "split", "band", "balanced"] {
        for rest in ["", residency, "draw = \"address\"", "panic = \"refuse\""] {
            let text = world(&format!("steering = \"{steering}\"\n{rest}"));
            for down in [&[][..], &["r3", "r7", "r20"]] {
                let snapshot = snapshot(&text, down);
                let mut taken = 0;
                let counted = allocation_counter::measure(|| taken = decide(&snapshot, &clients));
                assert!(taken > clients.len(), "the walks went nowhere");
                assert_eq!(counted.count_total, 0, "{steering} {rest} with {down:?} down");
            }
        }
    }
}

#[test]
fn no_request_allocates_in_the_long_run() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let lane = common::lane::Lane::new();
        let answer = lane.ask(1_000).await / 1_000;
        // What a connection costs stays; a thousand requests more cost nothing more.
        let mut counts = [0; 2];
        for (requests, count) in [100, 1_100].into_iter().zip(&mut counts) {
            let before = lane.ask(1).await;
            assert_eq!(before, answer);
            let (mut got, mut ask) = (0, std::pin::pin!(lane.ask(requests)));
            // The whole of it is one poll: nothing in it waits.
            let counted = allocation_counter::measure(|| {
                let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                match ask.as_mut().poll(&mut cx) {
                    std::task::Poll::Ready(bytes) => got = bytes,
                    std::task::Poll::Pending => {}
                }
            });
            assert_eq!(got, requests * answer);
            *count = counted.count_total;
        }
        assert_eq!(counts[0], counts[1]);
    });
}

/// The check can fail: what allocates is seen.
#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!(counted.count_total, 1);
}
