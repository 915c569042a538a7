//! Requests that wait at a place that falls, and whatever of them had been sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use meridian::config::Engine;

use super::common::harness::{Proxy, config, found_down, status};
use super::kit::{Peer, always, ended};

/// More than the kernel takes for a process that reads nothing.
const LENGTH: usize = 20 << 20;

#[tokio::test]
async fn a_large_upload_that_is_kept_leaves_a_frozen_endpoint() {
    let (frozen, _) = always(|peer, _| async move {
        std::future::pending::<()>().await;
        drop(peer);
    })
    .await;
    let (alive, alive_script) = always(|mut peer, script| async move {
        script.request(&mut peer.0).await;
        assert_eq!(peer.exactly(LENGTH).await, "x".repeat(LENGTH));
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nalive").await;
    })
    .await;
    let service = "max_body = \"64MiB\"\n[services.web.retry]\nreplay = \"32MiB\"\n\
                   [services.web.timeouts]\nfirst_byte = \"600s\"\nrequest = \"3600s\"\n";
    let text = config("", service, &[("frozen", frozen), ("alive", alive)]).replace("\"none\"", "\"tcp\"");
    let (proxy, sender) = Proxy::live_on(Engine::Native, &text).await;
    let mut client = Peer::connect(proxy.address).await;
    client.say(format!("PUT / HTTP/1.1\r\nHost: test\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
    let said = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&said);
    let client = tokio::spawn(async move {
        let piece = [b'x'; 64 << 10];
        for _ in 0..LENGTH / piece.len() {
            client.say(&piece).await;
            counted.fetch_add(piece.len(), Ordering::SeqCst);
        }
        client
    });
    // What the kernel takes is taken, and nothing moves any more.
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = said.load(Ordering::SeqCst);
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    assert!(before < LENGTH && alive_script.count() == 0);
    let began = Instant::now();
    found_down(&proxy, &sender, 0, 0).await;
    let mut client = client.await.unwrap();
    let answer = client.answer().await;
    assert_eq!((status(&answer.0), answer.1.as_str()), (200, "alive"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    ended(&proxy, 1, "answered", 200).await;
    assert_eq!(proxy.lines(1).await[0]["attempts"], 2);
}
