//! Connections on both sides: when they are used again, how many there may be, and how they end.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::common::harness::{Proxy, Script, answering, config, status, until};
use super::kit::{GET, OK, POST, Peer, always, ask, before, ended, field};

fn connections(script: &Script) -> usize {
    script.connections.load(Ordering::SeqCst)
}

#[tokio::test]
async fn an_upstream_connection_is_used_again_only_after_a_clean_end() {
    for (answer, body, again) in [
        (OK, "good", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n", "4\r\ngood\r\n0\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\ngood", "good", true),
        ("HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\ngood", "good", true),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ngood", "good", false),
        ("HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 4\r\n\r\ngood", "good", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ngood", "good", false),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\ngood", "good", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood!", "good", false),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n!",
            "4\r\ngood\r\n0\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            "4\r\ngood\r\n0\r\n\r\n",
            false,
        ),
    ] {
        // Nobody closes here but the proxy.
        let (upstream, script) = answering(answer).await;
        let proxy = before(upstream, "", "").await;
        let mut client = Peer::connect(proxy.address).await;
        for _ in 0..3 {
            client.say(GET).await;
            assert_eq!(field(&client.head().await, "connection"), None, "{answer:?}");
            assert_eq!(client.exactly(body.len()).await, body, "{answer:?}");
        }
        ended(&proxy, 3, "answered", status(answer)).await;
        assert_eq!(connections(&script), if again { 1 } else { 3 }, "{answer:?}");
        // A client that ends its connection does not end the upstream's.
        let (_, _) = ask(proxy.address, GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        ended(&proxy, 4, "answered", status(answer)).await;
        assert_eq!(connections(&script), if again { 1 } else { 4 }, "{answer:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_inside_an_answer_takes_the_upstream_connection_with_it() {
    let (upstream, script) = always(|mut peer, script| async move {
        script.request(&mut peer.0).await;
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome").await;
        // Ends when the proxy does.
        while peer.try_say("").await.is_ok() && peer.0.readable().await.is_ok() {
            if peer.0.try_read(&mut [0; 16]).is_ok_and(|count| count == 0) {
                break;
            }
        }
        script.requests.lock().unwrap().push("gone".to_owned());
    })
    .await;
    let proxy = before(upstream, "", "[services.web.timeouts]\nidle = \"300ms\"").await;
    let mut client = Peer::connect(proxy.address).await;
    client.say(GET).await;
    assert_eq!(status(&client.head().await), 200);
    client.reset();
    ended(&proxy, 1, "client_gone", 200).await;
    until("the upstream's connection ends", || script.count() == 2).await;
}

#[tokio::test]
async fn no_more_connections_than_allowed() {
    let (gate, opened) = tokio::sync::watch::channel(false);
    let (upstream, script) = always(move |mut peer, script| {
        let mut opened = opened.clone();
        async move {
            while script.request(&mut peer.0).await.is_some() {
                opened.wait_for(|open| *open).await.unwrap();
                peer.say(OK).await;
            }
        }
    })
    .await;
    let service = "[services.web.upstream]\nmax_connections = 2";
    let proxy = before(upstream, "", service).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Peer::connect(proxy.address).await;
        client.say(GET).await;
        clients.push(client);
    }
    until("both are at the upstream", || script.count() == 2).await;
    let mut third = Peer::connect(proxy.address).await;
    third.say(GET).await;
    let (head, body) = third.answer().await;
    assert_eq!((status(&head), field(&head, "retry-after")), (503, Some("1")), "{head}");
    assert!(body.starts_with("503 full"), "{body}");
    ended_in(&proxy, 1, "full").await;
    gate.send_replace(true);
    for client in &mut clients {
        assert_eq!(client.answer().await.1, "good");
    }
    // The refused client's connection is as good as before, and so are the upstream's two.
    third.say(GET).await;
    assert_eq!(third.answer().await.1, "good");
    ended(&proxy, 4, "answered", 200).await;
    assert_eq!(connections(&script), 2);

    // Full here, and served elsewhere.
    let (full, held) = super::common::harness::silent().await;
    let (free, _) = answering(OK).await;
    let text = config("", "[services.web.upstream]\nmax_connections = 1", &[("full", full), ("free", free)]);
    let proxy = Proxy::start(&text, &[]).await;
    let mut waiting = Peer::connect(proxy.address).await;
    waiting.say(POST).await;
    until("the first one waits", || held.count() == 1).await;
    let mut other = Peer::connect(proxy.address).await;
    other.say(POST).await;
    assert_eq!(other.answer().await.1, "good");
    drop(waiting);
    ended_in(&proxy, 2, "client_gone").await;
    assert_eq!(connections(&held), 1);
}

async fn ended_in(proxy: &Proxy, count: usize, outcome: &str) {
    until("the log says so", || {
        let lines = proxy.lines_now();
        lines.len() >= count && lines[count - 1]["outcome"] == outcome
    })
    .await;
}

#[tokio::test]
async fn connections_grow_old() {
    for service in ["[services.web.upstream]\nmax_age = \"1s\"", "[services.web.upstream]\nidle = \"1s\""] {
        let (upstream, script) = answering(OK).await;
        let proxy = before(upstream, "", service).await;
        let mut client = Peer::connect(proxy.address).await;
        for (wait, wanted) in [(0, 1), (0, 1), (1_200, 2), (0, 2)] {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            client.say(GET).await;
            assert_eq!(client.answer().await.1, "good");
            assert!(connections(&script) >= wanted, "{service}: {}", connections(&script));
        }
        ended(&proxy, 4, "answered", 200).await;
        // Nobody uses it any more: it is closed by itself.
        let endpoint = proxy.snapshot.pools[0].endpoints[0].meter.clone();
        until("no connection is kept", || endpoint.connections() == 0).await;
    }
}

#[tokio::test]
async fn a_kept_connection_that_the_upstream_closed_is_not_used() {
    let (upstream, script) = always(|mut peer, script| async move {
        script.request(&mut peer.0).await;
        peer.say(OK).await;
        // No word of its closing.
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let endpoint = proxy.snapshot.pools[0].endpoints[0].meter.clone();
    let mut client = Peer::connect(proxy.address).await;
    for count in 1..4 {
        // A POST could not be sent again.
        client.say("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(client.answer().await.1, "good");
        ended(&proxy, count, "answered", 200).await;
        until("the closed one is swept", || endpoint.connections() == 0).await;
    }
    assert_eq!(connections(&script), 3);
}

#[tokio::test]
async fn the_last_request_of_a_connection_is_told_so() {
    let (upstream, script) = answering(OK).await;
    let proxy = before(upstream, "[limits]\nrequests = 2", "").await;
    let mut client = Peer::connect(proxy.address).await;
    // More than may be served, all at once: the third is not even looked at.
    client.say(GET.repeat(3)).await;
    assert_eq!(field(&client.answer().await.0, "connection"), None);
    assert_eq!(field(&client.answer().await.0, "connection"), Some("close"));
    assert_eq!(client.rest().await, (String::new(), false));
    ended(&proxy, 2, "answered", 200).await;
    assert_eq!(script.count(), 2);
    // Whoever asks for the end gets it, whatever else is in the same write.
    for connection in ["close", "Close", "keep-alive, close", "x,close"] {
        let before = script.count();
        let request = GET.replace("\r\n\r\n", &format!("\r\nConnection: {connection}\r\n\r\n"));
        let (answer, reset) = ask(proxy.address, [request.as_str(), GET].concat()).await;
        assert!(answer.ends_with("good") && answer.matches("HTTP/1.1 ").count() == 1 && !reset, "{answer}");
        assert_eq!((field(&answer, "connection"), script.count()), (Some("close"), before + 1), "{connection}");
    }
}

#[tokio::test]
async fn whoever_connected_before_a_drain_is_served() {
    let (upstream, _) = always(async |mut peer, script| {
        while script.request(&mut peer.0).await.is_some() {
            peer.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
        }
    })
    .await;
    let proxy = before(upstream, "", "").await;
    // Nothing was awaited since the proxy's task was made, which is to start its workers: the kernel alone has accepted these.
    let peers: Vec<_> = (0..200)
        .map(|_| {
            let mut peer = std::net::TcpStream::connect(proxy.address).unwrap();
            io::Write::write_all(&mut peer, GET.as_bytes()).unwrap();
            peer.set_nonblocking(true).unwrap();
            peer
        })
        .collect();
    proxy.drain.begin();
    for peer in peers {
        let (answer, _) = Peer(TcpStream::from_std(peer).unwrap()).rest().await;
        assert_eq!((status(&answer), field(&answer, "connection")), (200, Some("close")), "{answer}");
    }
    until("all are gone", || proxy.drain.open() == 0).await;
}

#[tokio::test]
async fn whoever_speaks_a_moment_after_a_drain_is_served() {
    loop {
        let (upstream, _) = answering(OK).await;
        let proxy = before(upstream, "", "").await;
        let connected = Instant::now();
        let mut peer = Peer::connect(proxy.address).await;
        until("it is accepted", || proxy.drain.open() == 1).await;
        proxy.drain.begin();
        // It has a second. Nothing can be told if this machine took longer.
        let said = peer.try_say(GET).await;
        if connected.elapsed() >= Duration::from_secs(1) {
            continue;
        }
        said.unwrap();
        let (answer, _) = peer.rest().await;
        assert_eq!((status(&answer), field(&answer, "connection")), (200, Some("close")), "{answer}");
        return;
    }
}

#[tokio::test]
async fn a_drain_ends_what_is_idle_and_nothing_else() {
    let (gate, opened) = tokio::sync::watch::channel(false);
    let (upstream, _) = always(move |mut peer, script| {
        let mut opened = opened.clone();
        async move {
            while script.request(&mut peer.0).await.is_some() {
                opened.wait_for(|open| *open).await.unwrap();
                peer.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n").await;
            }
        }
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let mut silent = Peer::connect(proxy.address).await;
    let mut begun = Peer::connect(proxy.address).await;
    begun.say("GET / HTTP/1.1\r\n").await;
    let mut busy = Peer::connect(proxy.address).await;
    busy.say([GET, GET].concat()).await;
    until("all are there", || proxy.in_flight() == 1 && proxy.drain.open() == 3).await;
    proxy.drain.begin();
    assert_eq!(silent.rest().await, (String::new(), false));
    gate.send_replace(true);
    // The one under way is served to its end, the one behind it is not begun.
    let (answer, _) = busy.rest().await;
    assert_eq!(field(&answer, "connection"), Some("close"), "{answer}");
    assert!(answer.ends_with("4\r\ngood\r\n0\r\n\r\n") && answer.matches("HTTP/1.1 ").count() == 1, "{answer}");
    // Who had begun to ask may go on.
    begun.say("Host: test\r\n\r\n").await;
    let (answer, _) = begun.rest().await;
    assert_eq!((status(&answer), field(&answer, "connection")), (200, Some("close")), "{answer}");
    ended(&proxy, 2, "answered", 200).await;
    until("all are gone", || proxy.drain.open() == 0).await;
}
