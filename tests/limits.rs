//! Limits on what strangers may take: connections and requests, in all and for each network, and how often.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;

use common::harness::{answering_once, status};
use common::http::request;
use common::process::{Origin, PATIENCE, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

const HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n";

fn config(limits: &str, service: &str, origin: SocketAddr) -> String {
    format!(
        "[limits]\n{limits}\n[regions.only]\n[services.web]\n{service}\n[services.web.health]\nkind = \"none\"\n\
         [services.web.pools.only]\nendpoints = [\"{origin}\"]\n"
    )
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// One request; the head of its answer.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> String {
    // Whoever is refused may be closed to already.
    let _ = stream.write_all(request).await;
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    String::from_utf8(head).unwrap()
}

fn refused(reason: &str) -> String {
    format!("meridian_connections_refused_total{{reason=\"{reason}\"}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_has_so_many_connections_and_no_more() {
    let origin = Origin::start("only");
    let limits = config("per_network = 2", "", origin.address);
    for trusted in [false, true] {
        let more = if trusted { "[client_ip]\ntrusted = [\"127.0.0.0/8\"]\n" } else { "" };
        let proxy = Proxy::start(&format!("{more}{limits}"), |_| {}).await;
        let (mut first, mut second) = (connect(proxy.listen).await, connect(proxy.listen).await);
        for stream in [&mut first, &mut second] {
            assert_eq!(status(&ask(stream, HEAD).await), 200);
        }
        let answer = ask(&mut connect(proxy.listen).await, HEAD).await;
        if trusted {
            assert_eq!(status(&answer), 200, "{answer}");
            assert_eq!(proxy.metric(&refused("per_network")).await, None);
            continue;
        }
        assert!(status(&answer) == 429 && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
        assert_eq!(proxy.metric(&refused("per_network")).await, Some(1.0));
        // Who is refused takes nobody's place, and who leaves makes room.
        assert_eq!(status(&ask(&mut second, HEAD).await), 200);
        drop(first);
        proxy.until("there is room", async || proxy.metric("meridian_connections").await == Some(1.0)).await;
        assert_eq!(status(&ask(&mut connect(proxy.listen).await, HEAD).await), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_header_it_is_the_network_in_it() {
    let origin = Origin::start("only");
    let config = config("per_network = 1", "", origin.address);
    let config = format!("[client_ip]\ntrusted = [\"127.0.0.0/8\"]\n{config}");
    let proxy = Proxy::start_with("proxy_protocol = \"required\"\n", &config, |_| {}).await;
    let from = async |client: &str| {
        let mut stream = connect(proxy.listen).await;
        let header = format!("PROXY TCP4 {client} 127.0.0.1 1000 80\r\n");
        let answer = ask(&mut stream, &[header.as_bytes(), HEAD].concat()).await;
        (stream, status(&answer))
    };
    let (_kept, status) = from("192.0.2.1").await;
    assert_eq!(status, 200);
    // On such a listener nobody is answered before it is known who it is.
    assert_eq!(from("192.0.2.2").await.1, 0);
    assert_eq!(from("192.0.3.1").await.1, 200);
    assert_eq!(proxy.metric(&refused("per_network")).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_makes_so_many_connections_a_second() {
    let origin = Origin::start("only");
    let proxy = Proxy::start(&config("connection_rate = 3", "", origin.address), |_| {}).await;
    let mut seen = Vec::new();
    for _ in 0..20 {
        seen.push(status(&ask(&mut connect(proxy.listen).await, HEAD).await));
    }
    assert!(seen[..3] == [200; 3] && seen.contains(&429), "{seen:?}");
    let count = seen.iter().filter(|status| **status == 429).count();
    assert_eq!(proxy.metric(&refused("connection_rate")).await, Some(count as f64));
    proxy.until("a second is over", async || status(&ask(&mut connect(proxy.listen).await, HEAD).await) == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_there_may_be_are_refused_at_once() {
    let (gate, opened) = watch::channel(false);
    let (slow, script) = answering_once(opened, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = Arc::new(Proxy::start(&config("in_flight = 2", "", slow), |_| {}).await);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let listen = proxy.listen;
            tokio::spawn(async move { status(&ask(&mut connect(listen).await, HEAD).await) })
        })
        .collect();
    proxy.until("both are there", async || script.count() == 2).await;
    let mut third = connect(proxy.listen).await;
    let answer = ask(&mut third, HEAD).await;
    assert!(status(&answer) == 503 && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    // What would be the body of a request that is refused is no request.
    let hidden = "GET /hidden HTTP/1.1\r\nHost: test\r\n\r\n";
    for (framing, body) in [
        (format!("Content-Length: {}", hidden.len()), hidden.to_owned()),
        ("Transfer-Encoding: chunked".to_owned(), format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len())),
    ] {
        let mut fourth = connect(proxy.listen).await;
        fourth.write_all(format!("POST / HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n{body}").as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let read = tokio::time::timeout(PATIENCE, fourth.read_to_end(&mut all)).await;
        read.expect("it is closed").unwrap();
        let all = String::from_utf8(all).unwrap();
        assert!(status(&all) == 503 && all.matches("HTTP/1.1 ").count() == 1, "{all}");
    }
    assert_eq!(proxy.admin("/readyz").await.unwrap().0, 200, "whoever runs it gets an answer");
    assert_eq!(script.count(), 2);
    gate.send_replace(true);
    for answered in waiting {
        assert_eq!(answered.await.unwrap(), 200);
    }
    // The connection is as good as before.
    assert_eq!(status(&ask(&mut third, HEAD).await), 200);
    let series = "meridian_requests_total{code=\"5xx\",reason=\"overloaded\",region=\"\",service=\"\"}";
    assert_eq!(proxy.metric(series).await, Some(3.0));
    let series = "meridian_requests_unanswered_total{outcome=\"overloaded\",region=\"\",service=\"\"}";
    assert_eq!(proxy.metric(series).await, Some(3.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_has_enough_memory_begins_nothing_more_until_it_may() {
    let origin = Origin::start("only");
    let with = |memory: &str| config(&format!("memory = \"{memory}\""), "", origin.address);
    for engine in ["native", "pingora"] {
        let proxy = Proxy::start_on(engine, &with("64GiB"), |_| {}).await;
        let pressure = async || proxy.metric("meridian_memory_pressure").await;
        let (mut kept, mut idle) = (connect(proxy.listen).await, connect(proxy.listen).await);
        for stream in [&mut kept, &mut idle] {
            assert_eq!(status(&ask(stream, HEAD).await), 200);
        }
        assert_eq!(pressure().await, Some(0.0));
        proxy.write_config(&with("1MiB"));
        proxy.until("it has too much", async || pressure().await == Some(1.0)).await;
        proxy.logged(&["WARN", "memory is short"]).await;

        // Whoever is there is told once more, and makes room.
        let answer = ask(&mut kept, HEAD).await.to_ascii_lowercase();
        assert!(status(&answer) == 503 && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert_eq!(kept.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is closed");
        let answer = ask(&mut connect(proxy.listen).await, HEAD).await;
        assert!(status(&answer) == 503 && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
        assert_eq!(proxy.metric(&refused("memory")).await, Some(1.0));
        let series = "meridian_requests_total{code=\"5xx\",reason=\"memory\",region=\"\",service=\"\"}";
        assert_eq!(proxy.metric(series).await, Some(1.0));
        assert_eq!(proxy.admin("/readyz").await.unwrap().0, 200, "whoever runs it gets an answer");

        proxy.write_config(&with("0B"));
        proxy.until("it may have more", async || pressure().await == Some(0.0)).await;
        // Nobody was closed who asked for nothing.
        assert_eq!(status(&ask(&mut idle, HEAD).await), 200);
        assert_eq!(status(&ask(&mut connect(proxy.listen).await, HEAD).await), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_ask_again() {
    let origin = Origin::start("only");
    let trusted = "[client_ip]\ntrusted = [\"127.0.0.0/8\"]\n";
    let service = "rate_limit = { requests = 2, per = \"1h\", ipv4_prefix = 24 }";
    let text = format!("{trusted}{}", config("", service, origin.address));
    for engine in ["native", "pingora"] {
        let proxy = Proxy::start_on(engine, &text, |_| {}).await;
        let from =
            async |client: &str| request(proxy.listen, "GET", "/", &[("x-forwarded-for", client)]).await.unwrap();
        assert_eq!((from("192.0.2.1").await.status, from("192.0.2.2").await.status), (200, 200));
        let answer = from("192.0.2.3").await;
        let field = |name| answer.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        assert_eq!(answer.status, 429, "{engine}");
        let seconds: u64 = field("retry-after").parse().unwrap();
        assert!((1700..=1800).contains(&seconds), "{seconds}");
        assert_eq!(field("ratelimit-policy"), "\"default\";q=2;w=3600");
        assert_eq!(field("ratelimit"), format!("\"default\";r=0;t={seconds}"));
        assert_eq!(from("198.51.100.1").await.status, 200, "another network");
        // Nobody gets new permits by a reload that leaves the limit alone.
        proxy.write_config(&text.replace("[regions.only]", "[regions.only]\nlocation = [1.0, 1.0]"));
        proxy.until("it is reloaded", async || proxy.generation().await == 2).await;
        assert_eq!(from("192.0.2.1").await.status, 429);
        proxy.write_config(&text.replace("requests = 2", "requests = 3"));
        proxy.until("the new limit", async || from("192.0.2.1").await.status == 200).await;
        let series = "meridian_requests_total{code=\"4xx\",reason=\"rate_limited\",region=\"\",service=\"web\"}";
        assert!(proxy.metric(series).await.unwrap() >= 2.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_strangers_are_refused_and_operators_are_not() {
    let origin = Origin::start("only");
    let proxy = Proxy::start_limited(80, &config("", "", origin.address), |_| {}).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(connect(proxy.listen).await);
    }
    proxy.until("some are refused", async || proxy.metric(&refused("descriptors")).await.unwrap_or(0.0) >= 20.0).await;
    assert_eq!(proxy.admin("/healthz").await.unwrap().0, 200);
    // Who is in is served, with what is kept for that.
    assert_eq!(status(&ask(&mut held[0], HEAD).await), 200);
    // So are strangers, while there is a descriptor for that; few are left for those who came before.
    proxy
        .until("a stranger is told", async || {
            let answer = ask(&mut connect(proxy.listen).await, HEAD).await;
            assert!(answer.is_empty() || answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
            answer.starts_with("HTTP/1.1 503 ")
        })
        .await;
    drop(held);
    proxy.until("there is room", async || status(&ask(&mut connect(proxy.listen).await, HEAD).await) == 200).await;
}
