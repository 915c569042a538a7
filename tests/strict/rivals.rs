//! Two upstreams beside each other: whoever is first is heard, and nothing is done twice that must not be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::common::harness::{Proxy, answering, config, scripted, status, until};
use super::kit::{GET, OK, POST, Peer, ended};

const OTHER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother";

/// How late an answer of the first one would be.
const LONG: Duration = Duration::from_secs(20);

/// A service whose first region answers until `frozen`, and then no more; and how many of its connections were closed.
async fn freezing(
    service: &str,
) -> (Proxy, Arc<AtomicBool>, super::common::harness::Script, super::common::harness::Script) {
    let frozen = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&frozen);
    let (near, near_script) = scripted(move |mut stream, script| {
        let frozen = Arc::clone(&told);
        async move {
            while script.request(&mut stream).await.is_some() {
                if frozen.load(Ordering::SeqCst) {
                    // Until the proxy has had enough.
                    script.request(&mut stream).await;
                    return;
                }
                if stream.write_all(OK.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let (far, far_script) = answering(OTHER).await;
    let proxy = Proxy::start(&config("", service, &[("near", near), ("far", far)]), &[]).await;
    (proxy, frozen, near_script, far_script)
}

#[tokio::test]
async fn a_hedge_asks_another_region_and_cancels_the_loser() {
    let service = "timeouts = { first_byte = \"20s\" }\nretry = { hedge = true }";
    let (proxy, frozen, near, far) = freezing(service).await;
    let mut client = Peer::connect(proxy.address).await;
    for _ in 0..110 {
        client.say(GET).await;
        assert_eq!(client.answer().await.1, "good");
    }
    frozen.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    client.say(GET).await;
    let (head, body) = client.answer().await;
    assert!(status(&head) == 200 && body == "other", "{head}{body}");
    assert!(asked.elapsed() < LONG);
    ended(&proxy, 111, "answered", 200).await;
    let line = &proxy.lines_now()[110];
    assert_eq!(
        (&line["attempts"], &line["region"], &line["reason"]),
        (&2.into(), &"far".into(), &"failover".into()),
        "{line}"
    );
    assert_eq!((near.count(), far.count()), (111, 1));
    // What lost is closed, not kept.
    let meter = &proxy.snapshot.pools[0].endpoints[0].meter;
    until("the loser is cancelled", || meter.connections() == 0).await;
    // The client's connection is as good as it was.
    client.say(GET).await;
    assert_eq!(client.answer().await.1, "other");
}

#[tokio::test]
async fn a_post_is_never_hedged() {
    let service = "timeouts = { first_byte = \"500ms\" }\nretry = { hedge = true }";
    let (proxy, frozen, near, far) = freezing(service).await;
    let mut client = Peer::connect(proxy.address).await;
    for _ in 0..110 {
        client.say(GET).await;
        client.answer().await;
    }
    frozen.store(true, Ordering::SeqCst);
    client.say(POST).await;
    let (head, _) = client.answer().await;
    assert_eq!(status(&head), 504, "{head}");
    ended(&proxy, 111, "first_byte_timeout", 504).await;
    assert_eq!(proxy.lines_now()[110]["gave_up"], "not_idempotent");
    assert_eq!((near.count(), far.count()), (111, 0));
}

#[tokio::test]
async fn nothing_is_hedged_unless_asked_for() {
    let (proxy, frozen, _, far) = freezing("timeouts = { first_byte = \"400ms\" }").await;
    let mut client = Peer::connect(proxy.address).await;
    for _ in 0..110 {
        client.say(GET).await;
        client.answer().await;
    }
    frozen.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    client.say(GET).await;
    assert_eq!(client.answer().await.1, "other");
    assert!(asked.elapsed() >= Duration::from_millis(400), "it moved on before its time");
    assert_eq!(far.count(), 1);
}

/// A listener whose queue is full: connecting to it hangs, as to a machine that is gone.
fn full() -> (std::net::SocketAddr, socket2::Socket, Vec<std::net::TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    (address, socket, waiting)
}

#[tokio::test]
async fn a_slow_connect_is_raced_whatever_the_method() {
    let (near, _socket, _waiting) = full();
    let (far, script) = scripted(|mut stream, script| async move {
        while let Some(head) = script.request(&mut stream).await {
            if head.starts_with("POST") {
                let mut body = [0; 2];
                tokio::io::AsyncReadExt::read_exact(&mut stream, &mut body).await.unwrap();
            }
            if stream.write_all(OTHER.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let service = "timeouts = { connect = \"6s\" }";
    let proxy = Proxy::start(&config("", service, &[("near", near), ("far", far)]), &[]).await;
    let mut client = Peer::connect(proxy.address).await;
    for (n, request) in [POST, GET].into_iter().enumerate() {
        let asked = Instant::now();
        client.say(request).await;
        let (head, body) = client.answer().await;
        assert!(status(&head) == 200 && body == "other", "{head}{body}");
        // A third of `connect`, while little is known of how long connecting takes there.
        let took = asked.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&took), "{took:?}");
        ended(&proxy, n + 1, "answered", 200).await;
        let line = &proxy.lines_now()[n];
        assert_eq!((&line["attempts"], &line["region"]), (&2.into(), &"far".into()), "{line}");
    }
    assert_eq!(script.count(), 2);
}

#[tokio::test]
async fn without_a_race_a_connect_has_its_time() {
    let (near, _socket, _waiting) = full();
    let (far, _) = answering(OTHER).await;
    let service = "timeouts = { connect = \"600ms\" }\nretry = { race = false }";
    let proxy = Proxy::start(&config("", service, &[("near", near), ("far", far)]), &[]).await;
    let mut client = Peer::connect(proxy.address).await;
    let asked = Instant::now();
    client.say(GET).await;
    assert_eq!(client.answer().await.1, "other");
    assert!(asked.elapsed() >= Duration::from_millis(600));
}
