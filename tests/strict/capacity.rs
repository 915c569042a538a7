//! Regions that say what they can carry: their limit is never passed, and what is beyond it is served elsewhere or told to come back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::common::harness::{Proxy, Script, answering, config, status, until};
use super::kit::{GET, OK, Peer, always, ended, field};

const OTHER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother";

/// An upstream that answers as many requests as it has leave for.
async fn gated() -> (SocketAddr, Script, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let (address, script) = always(move |mut peer, script| {
        let gate = Arc::clone(&opened);
        async move {
            while script.request(&mut peer.0).await.is_some() {
                gate.acquire().await.unwrap().forget();
                if peer.try_say(OK).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, script, gate)
}

/// A proxy before regions of which the first have these capacities.
async fn bounded(service: &str, capacities: &[&str], regions: &[(&str, SocketAddr)]) -> Proxy {
    let mut text = config("", service, regions);
    for ((name, _), capacity) in regions.iter().zip(capacities) {
        text = text.replace(&format!("[regions.{name}]\n"), &format!("[regions.{name}]\ncapacity = {capacity}\n"));
    }
    Proxy::start(&text, &[]).await
}

async fn asking(proxy: &Proxy) -> Peer {
    let mut client = Peer::connect(proxy.address).await;
    client.say(GET).await;
    client
}

#[tokio::test]
async fn what_is_beyond_a_limit_goes_to_the_next_region() {
    let (near, script, gate) = gated().await;
    let (far, far_script) = answering(OTHER).await;
    let proxy = bounded("", &["{ target = 2, limit = 2 }"], &[("near", near), ("far", far)]).await;
    let mut waiting = [asking(&proxy).await, asking(&proxy).await];
    until("both are there", || script.count() == 2).await;
    let mut third = asking(&proxy).await;
    assert_eq!(third.answer().await.1, "other");
    let line = &proxy.lines_of(1).await[0];
    assert_eq!((&line["region"], &line["reason"], &line["attempts"]), (&"far".into(), &"spillover".into(), &1.into()));
    assert_eq!(far_script.count(), 1);
    // As soon as there is room, there is room: also by a client that leaves.
    gate.add_permits(1);
    let left = {
        let [one, two] = &mut waiting;
        tokio::select! {
            answer = one.answer() => { assert_eq!(answer.1, "good"); 1 }
            answer = two.answer() => { assert_eq!(answer.1, "good"); 0 }
        }
    };
    let [one, two] = waiting;
    drop(if left == 0 { one } else { two });
    until("nothing is in flight", || proxy.in_flight() == 0).await;
    // One for the request that nobody waits for.
    gate.add_permits(2);
    third.say(GET).await;
    assert_eq!(third.answer().await.1, "good");
    until("nothing is in flight", || proxy.in_flight() == 0).await;
    assert_eq!(proxy.snapshot.regions[0].load.in_flight(), 0);
}

#[tokio::test]
async fn when_all_are_full_the_client_is_told_to_come_back() {
    let (near, near_script, gate) = gated().await;
    let (far, far_script, far_gate) = gated().await;
    let bound = "{ target = 1, limit = 1 }";
    let proxy = bounded("", &[bound, bound], &[("near", near), ("far", far)]).await;
    let mut waiting = [asking(&proxy).await, asking(&proxy).await];
    until("each has one", || near_script.count() == 1 && far_script.count() == 1).await;
    let mut third = Peer::connect(proxy.address).await;
    for _ in 0..2 {
        third.say(GET).await;
        let (head, body) = third.answer().await;
        assert_eq!((status(&head), field(&head, "retry-after")), (503, Some("1")), "{head}");
        assert_eq!(body, "503 full: every region is at its limit\n");
    }
    gate.add_permits(2);
    far_gate.add_permits(1);
    for client in &mut waiting {
        assert_eq!(client.answer().await.1, "good");
    }
    until("nothing is in flight", || proxy.in_flight() == 0).await;
    // Its connection is as good as it was.
    third.say(GET).await;
    assert_eq!(third.answer().await.1, "good");
    let lines = proxy.lines(5).await;
    let refused: Vec<_> = lines.iter().filter(|line| line["outcome"] == "full").collect();
    assert_eq!(refused.len(), 2);
    assert!(refused.iter().all(|line| line["attempts"] == 0 && line["region"].is_null()), "{refused:?}");
    assert_eq!((near_script.count(), far_script.count()), (2, 1));
}

#[tokio::test]
async fn a_retry_needs_room_too_and_keeps_what_it_has() {
    // Its region is at the limit by this request alone, which may move on within it.
    let (broken, _) = answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    let (good, good_script) = answering(OK).await;
    let retry = "retry = { on = [503], budget = 100, race = false }";
    let text = config("", retry, &[("near", broken)])
        .replace("[regions.near]\n", "[regions.near]\ncapacity = { target = 1, limit = 1 }\n")
        .replace(&format!("[\"{broken}\"]"), &format!("[\"{broken}\", \"{good}\"]"));
    let proxy = Proxy::start(&text, &[]).await;
    let mut client = Peer::connect(proxy.address).await;
    for _ in 0..20 {
        client.say(GET).await;
        assert_eq!(client.answer().await.1, "good");
    }
    assert_eq!(good_script.count(), 20);
    ended(&proxy, 20, "answered", 200).await;
    assert_eq!(proxy.snapshot.regions[0].load.in_flight(), 0);

    // The next region has no room: a moment later it may.
    let (dead, _) = always(|peer, _| async move { drop(peer) }).await;
    let (busy, busy_script, gate) = gated().await;
    let proxy =
        bounded("", &["{ target = 9, limit = 9 }", "{ target = 1, limit = 1 }"], &[("near", dead), ("far", busy)])
            .await;
    let mut waits = asking(&proxy).await;
    until("the far one is busy", || busy_script.count() == 1).await;
    let mut refused = asking(&proxy).await;
    let (head, _) = refused.answer().await;
    assert_eq!((status(&head), field(&head, "retry-after")), (503, Some("1")), "{head}");
    let line = &proxy.lines_of(1).await[0];
    assert_eq!((&line["outcome"], &line["gave_up"]), (&"full".into(), &"full".into()), "{line}");
    gate.add_permits(1);
    assert_eq!(waits.answer().await.1, "good");
    until("nothing is in flight", || proxy.in_flight() == 0).await;
    assert!(proxy.snapshot.regions.iter().all(|region| region.load.in_flight() == 0));
}

#[tokio::test]
async fn a_hedge_needs_room_and_gives_it_back() {
    let (near, _, gate) = gated().await;
    let (far, far_script, far_gate) = gated().await;
    let service = "timeouts = { first_byte = \"20s\" }\nretry = { hedge = true, budget = 100 }";
    let bound = "{ target = 1, limit = 1 }";
    let proxy = bounded(service, &["{ target = 9, limit = 9 }", bound], &[("near", near), ("far", far)]).await;
    let mut client = Peer::connect(proxy.address).await;
    gate.add_permits(110);
    for _ in 0..110 {
        client.say(GET).await;
        assert_eq!(client.answer().await.1, "good");
    }
    client.say(GET).await;
    until("the other one is asked", || far_script.count() == 1).await;
    let far_load = &proxy.snapshot.regions[1].load;
    assert_eq!((far_load.in_flight(), proxy.snapshot.regions[0].load.in_flight()), (1, 1));
    // It has no room for a second one, which waits on alone.
    let mut second = asking(&proxy).await;
    second.hears_nothing().await;
    assert_eq!((far_script.count(), far_load.in_flight()), (1, 1));
    gate.add_permits(2);
    assert_eq!((client.answer().await.1, second.answer().await.1), ("good".to_owned(), "good".to_owned()));
    until("nothing is in flight", || proxy.in_flight() == 0).await;
    assert!(proxy.snapshot.regions.iter().all(|region| region.load.in_flight() == 0));
    drop(far_gate);
}

#[tokio::test]
async fn a_rate_is_never_passed() {
    let (near, script) = answering(OK).await;
    let (far, far_script) = answering(OTHER).await;
    let capacity = "{ target = 50, limit = 50, unit = \"rps\" }";
    let proxy = bounded("", &[capacity], &[("near", near), ("far", far)]).await;
    let mut client = Peer::connect(proxy.address).await;
    let began = Instant::now();
    for _ in 0..400 {
        client.say(GET).await;
        client.answer().await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let (near, far) = (script.count(), far_script.count());
    assert_eq!(near + far, 400);
    // A tenth of a second's worth may come at once.
    assert!(near as f64 <= 50.0 * (seconds + 0.1) + 1.0, "{near} in {seconds} s");
    assert!(near as f64 >= 0.8 * 50.0 * seconds.min(4.0), "{near} in {seconds} s");
    // And it goes on at that rate.
    tokio::time::sleep(Duration::from_millis(40)).await;
    client.say(GET).await;
    assert_eq!(client.answer().await.1, "good");
}
