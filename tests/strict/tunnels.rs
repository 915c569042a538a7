//! WebSocket tunnels: who gets one, what passes through it, and how it ends.

use super::common::harness::{status, until};
use super::kit::{Peer, always, before, ended, field, fields};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: x\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\nContent-Length: 5\r\n\r\n";

#[tokio::test]
async fn early_bytes_pass_and_either_side_may_close_first() {
    for client_first in [true, false] {
        let (upstream, script) = always(move |mut peer, script| async move {
            let head = script.request(&mut peer.0).await.unwrap();
            assert_eq!(
                (field(&head, "connection"), field(&head, "upgrade")),
                (Some("Upgrade"), Some("websocket")),
                "{head}"
            );
            assert_eq!(field(&head, "sec-websocket-key"), Some("x"), "{head}");
            // What the client said with its request is not read as a request.
            peer.say([AGREE, "early down"].concat()).await;
            assert_eq!(peer.exactly(8).await, "early up");
            if client_first {
                assert_eq!(peer.rest().await.0, "last up");
                peer.say("last down").await;
            } else {
                peer.say("last down").await;
                peer.end().await;
                assert_eq!(peer.rest().await.0, "last up");
            }
        })
        .await;
        let proxy = before(upstream, "[limits]\nbody_timeout = \"600s\"", "").await;
        let mut client = Peer::connect(proxy.address).await;
        client.say([ASK, "early up"].concat()).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        assert_eq!(
            (field(&head, "connection"), field(&head, "upgrade")),
            (Some("Upgrade"), Some("websocket")),
            "{head}"
        );
        assert_eq!(
            (field(&head, "sec-websocket-accept"), fields(&head, "content-length").count()),
            (Some("y"), 0),
            "{head}"
        );
        assert_eq!(client.exactly(10).await, "early down");
        if client_first {
            client.say("last up").await;
            client.end().await;
            assert_eq!(client.rest().await, ("last down".to_owned(), false));
        } else {
            assert_eq!(client.rest().await, ("last down".to_owned(), false));
            client.say("last up").await;
            client.end().await;
        }
        ended(&proxy, 1, "answered", 101).await;
        let line = &proxy.lines(1).await[0];
        assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&15.into(), &19.into()), "{line}");
        assert_eq!(script.count(), 1);
        until("the connection is gone", || proxy.drain.open() == 0).await;
    }
}

#[tokio::test]
async fn a_silent_tunnel_ends_and_so_does_a_broken_one() {
    let (upstream, _) = always(|mut peer, script| async move {
        script.request(&mut peer.0).await;
        peer.say(AGREE).await;
        if peer.rest().await.0.starts_with("reset") {
            peer.reset();
        }
    })
    .await;
    let proxy = before(upstream, "", "[services.web.timeouts]\ntunnel_idle = \"200ms\"").await;
    for count in 1..3 {
        let mut client = Peer::connect(proxy.address).await;
        client.say(ASK).await;
        assert_eq!(status(&client.head().await), 101);
        if count == 2 {
            client.reset();
        } else {
            client.rest().await;
        }
        ended(&proxy, count, "answered", 101).await;
    }
    until("the connections are gone", || proxy.drain.open() == 0).await;
}

#[tokio::test]
async fn answers_to_an_upgrade_that_are_none() {
    // Refused by the upstream: an ordinary answer on connections that go on.
    let (upstream, script) = super::common::harness::answering(
        "HTTP/1.1 426 No\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 4\r\n\r\ngood",
    )
    .await;
    let proxy = before(upstream, "", "").await;
    let mut client = Peer::connect(proxy.address).await;
    for _ in 0..2 {
        client.say(ASK).await;
        let (head, body) = client.answer().await;
        assert_eq!((status(&head), body.as_str(), field(&head, "connection")), (426, "good", None), "{head}");
    }
    assert_eq!(script.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    ended(&proxy, 2, "answered", 426).await;
    // A protocol that was not asked for, or none.
    for lines in [
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\n",
        "Upgrade: websocket\r\n",
        "Connection: close\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
    ] {
        let (upstream, _) = always(move |mut peer, script| async move {
            script.request(&mut peer.0).await;
            peer.say(format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\nevil")).await;
            peer.rest().await;
        })
        .await;
        let proxy = before(upstream, "", "").await;
        let mut client = Peer::connect(proxy.address).await;
        client.say(ASK).await;
        let (head, body) = client.answer().await;
        assert!(status(&head) == 502 && !body.contains("evil"), "{lines}: {head}{body}");
        ended(&proxy, 1, "bad_answer", 502).await;
    }
    // Whoever asks with a body, in HTTP/1.0 or by another method is not passed on as asking.
    let (upstream, script) = super::common::harness::answering(super::kit::OK).await;
    let proxy = before(upstream, "", "").await;
    for (from, to) in [
        ("GET", "POST"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("Upgrade: WebSocket", "Upgrade: websocket\r\nTransfer-Encoding: chunked"),
    ] {
        let mut client = Peer::connect(proxy.address).await;
        client.say([&ASK.replacen(from, to, 1), "0\r\n\r\n"].concat()).await;
        let (head, _) = client.answer().await;
        assert_eq!(status(&head), 200, "{to}: {head}");
        let asked = script.requests.lock().unwrap()[0].clone();
        script.requests.lock().unwrap().clear();
        assert_eq!(fields(&asked, "upgrade").count(), 0, "{to}: {asked}");
    }
}
