//! Requests that wait at a place that falls, and whatever of them had been sent.

use meridian::config::Engine;

use super::common::harness::{Proxy, config, found_down, status, until};
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
    let (alive, _) = always(|mut peer, script| async move {
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
    let mut client = tokio::spawn(async move {
        client.say("x".repeat(LENGTH)).await;
        client
    });
    let meter = proxy.snapshot.pools[0].endpoints[0].meter.clone();
    until("it is at the frozen one", || meter.in_flight() == 1).await;
    // All of it is kept, so the client can send it all, whatever the endpoint reads.
    let mut client = (&mut client).await.unwrap();
    found_down(&proxy, &sender, 0, 0).await;
    let answer = client.answer().await;
    assert_eq!((status(&answer.0), answer.1.as_str()), (200, "alive"));
    ended(&proxy, 1, "answered", 200).await;
    assert_eq!(proxy.lines(1).await[0]["attempts"], 2);
}
