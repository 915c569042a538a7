//! The PROXY protocol on listeners, over real sockets and both movers: whose connection it is, who may say so, and who is refused.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::harness::{Proxy, Script, config, listener, origin, raw, scripted, status, until};
use common::process::PATIENCE;
use meridian::config::{Engine, Listen};
use meridian::proxy_protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";

/// Behind a balancer on this machine, which is trusted by `trusted`.
async fn behind(engine: Engine, trusted: &str, limits: &str) -> Proxy {
    let origin = origin("only").await;
    let more = format!("[client_ip]\ntrusted = [{trusted}]\n[limits]\n{limits}");
    Proxy::listening(Listen { proxy_protocol: true, ..listener(engine) }, &config(&more, "", &[("only", origin)]), &[])
        .await
}

fn refused(proxy: &Proxy, reason: &str) -> f64 {
    let page = proxy.metrics.render(std::time::SystemTime::now());
    let series = format!("meridian_connections_refused_total{{reason=\"{reason}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0.0)
}

fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family, 0, body.len() as u8][..], body].concat()
}

#[tokio::test]
async fn the_client_is_whom_the_header_names() {
    let v4 = [198, 51, 100, 9, 203, 0, 113, 7, 0x8b, 0x3e, 0, 80];
    let mut v6 = [0; 36];
    (v6[0], v6[1], v6[2], v6[3], v6[15]) = (0x20, 0x01, 0x0d, 0xb8, 9);
    let rows: [(Vec<u8>, &str); 6] = [
        (b"PROXY TCP4 198.51.100.9 203.0.113.7 35646 80\r\n".to_vec(), "198.51.100.9"),
        (b"PROXY TCP6 2001:db8::9 2001:db8::2 35646 80\r\n".to_vec(), "2001:db8::9"),
        (binary(0x21, 0x11, &v4), "198.51.100.9"),
        (binary(0x21, 0x21, &v6), "2001:db8::9"),
        // The balancer speaks for itself.
        (binary(0x20, 0, &[]), "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
    ];
    for engine in [Engine::Native, Engine::Pingora] {
        let proxy = behind(engine, "\"127.0.0.1\"", "").await;
        for (n, (header, client)) in rows.iter().enumerate() {
            let answer = raw(proxy.address, &[header, GET.as_bytes()].concat()).await;
            assert_eq!(status(&answer), 200, "{engine:?} {client}: {answer}");
            assert!(answer.to_ascii_lowercase().contains(&format!("\"x-forwarded-for\":[\"{client}\"]")), "{answer}");
            assert_eq!(proxy.lines(n + 1).await[n]["client"], *client, "{engine:?}");
        }
    }
}

#[tokio::test]
async fn what_the_named_client_forwards_is_believed_only_if_it_is_trusted_itself() {
    let proxy = behind(Engine::Native, "\"127.0.0.1\", \"10.0.0.0/8\"", "").await;
    let rows = [("198.51.100.9", "198.51.100.9"), ("10.0.0.1", "192.0.2.1")];
    for (n, (source, expected)) in rows.iter().enumerate() {
        let request = format!(
            "PROXY TCP4 {source} 203.0.113.7 1 80\r\nGET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: close\r\n\r\n"
        );
        raw(proxy.address, request.as_bytes()).await;
        assert_eq!(proxy.lines(n + 1).await[n]["client"], *expected, "{source}");
    }
}

#[tokio::test]
async fn a_header_may_come_in_pieces_and_connections_stay_open_after_it() {
    let proxy = behind(Engine::Native, "\"127.0.0.1\"", "").await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in b"PROXY TCP4 198.51.100.9 203.0.113.7 35646 80\r\nGET" {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.write_all(b" / HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    stream.write_all(GET.as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    assert!(proxy.lines(2).await.iter().all(|line| line["client"] == "198.51.100.9"));
}

#[tokio::test]
async fn whoever_is_not_trusted_or_sends_no_header_is_refused() {
    let stranger = behind(Engine::Native, "\"192.0.2.1\"", "").await;
    let answer = raw(stranger.address, format!("PROXY TCP4 198.51.100.9 203.0.113.7 1 80\r\n{GET}").as_bytes()).await;
    assert_eq!(answer, "");
    until("it is counted", || refused(&stranger, "untrusted_peer") == 1.0).await;

    let proxy = behind(Engine::Native, "\"127.0.0.1\"", "").await;
    for (n, request) in
        [GET.as_bytes(), b"PROXY TCP4 1.2.3.4\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\0", b"\x16\x03\x01"]
            .iter()
            .enumerate()
    {
        assert_eq!(raw(proxy.address, request).await, "");
        until("it is counted", || refused(&proxy, "proxy_header") == (n + 1) as f64).await;
    }
    // A balancer that looks whether the port is open is nobody to blame.
    drop(TcpStream::connect(proxy.address).await.unwrap());
    let answer = raw(proxy.address, format!("PROXY UNKNOWN\r\n{GET}").as_bytes()).await;
    assert_eq!(status(&answer), 200);
    assert_eq!(refused(&proxy, "proxy_header"), 4.0);
    assert_eq!(proxy.lines(1).await.len(), 1);
}

#[tokio::test]
async fn whoever_is_slow_with_the_header_is_cut() {
    let proxy = behind(Engine::Native, "\"127.0.0.1\"", "handshake_timeout = \"200ms\"").await;
    assert_eq!(raw(proxy.address, b"PROXY TCP4 198.51").await, "");
    assert_eq!(raw(proxy.address, b"").await, "");
    until("both are counted", || refused(&proxy, "handshake_timeout") == 2.0).await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_headers() {
    let proxy = behind(Engine::Native, "\"127.0.0.1\"", "handshake_timeout = \"1h\"").await;
    let mut silent = TcpStream::connect(proxy.address).await.unwrap();
    let mut prompt = TcpStream::connect(proxy.address).await.unwrap();
    until("both are accepted", || proxy.drain.open() == 2).await;
    let begun = Instant::now();
    proxy.drain.begin();
    // Its client could not know of the drain.
    prompt.write_all(format!("PROXY UNKNOWN\r\n{GET}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    prompt.read_to_string(&mut answer).await.unwrap();
    assert_eq!(status(&answer), 200);
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(proxy.drain.wait(PATIENCE).await, 0);
    assert!(begun.elapsed() < PATIENCE / 2 && begun.elapsed() >= Duration::from_millis(500));
}

/// An origin that wants a PROXY header before each connection, and answers with whose it is said to be and how many requests it got before.
async fn wants_header() -> (SocketAddr, Script) {
    scripted(|mut stream, script| async move {
        let mut read = Vec::new();
        let header = loop {
            match proxy_protocol::read(&read) {
                Ok(Some(header)) => break header,
                Ok(None) => {}
                Err(_) => return,
            }
            let Ok(byte) = stream.read_u8().await else { return };
            read.push(byte);
        };
        let said = header.source.map_or("itself".to_owned(), |source| source.to_string());
        while script.request(&mut stream).await.is_some() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len());
            if stream.write_all(head.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn endpoints_are_told_whose_request_it_is() {
    for version in ["v1", "v2"] {
        let (address, script) = wants_header().await;
        let service = format!("[services.web.upstream]\nproxy_protocol = \"{version}\"\n");
        let text = config("[client_ip]\ntrusted = [\"127.0.0.1\"]\n", &service, &[("only", address)]);
        let proxy = Proxy::start(&text, &[]).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let own = stream.local_addr().unwrap().to_string();
        for (more, expected) in [
            ("", own.as_str()),
            ("X-Forwarded-For: 192.0.2.9\r\n", "192.0.2.9:0"),
            ("X-Forwarded-For: 2001:db8::9\r\n", "[2001:db8::9]:0"),
            ("Connection: close\r\n", own.as_str()),
        ] {
            let request = format!("GET / HTTP/1.1\r\nHost: test\r\n{more}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            while !answer.ends_with(expected) {
                assert!(answer.len() < 500, "{expected}: {answer}");
                answer.push(char::from(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap()));
            }
        }
        // Each of them on a connection of its own.
        assert_eq!(script.connections.load(SeqCst), 4);
    }
}

#[tokio::test]
async fn probes_say_that_they_are_nobody_elses() {
    for version in ["v1", "v2"] {
        let (address, script) = wants_header().await;
        let service = format!("[services.web.upstream]\nproxy_protocol = \"{version}\"\n");
        let text = config("", &service, &[("only", address)]);
        let text = text.replace("kind = \"none\"", "kind = \"http\"\nbody = \"itself\"\ninterval = \"20ms\"");
        let proxy = common::process::Proxy::start(&text, |_| {}).await;
        let count = async |result| {
            let labels = format!("endpoint=\"{address}\",region=\"only\",result=\"{result}\",service=\"web\"");
            proxy.metric(&format!("meridian_probes_total{{{labels}}}")).await.unwrap_or(0.0)
        };
        proxy.until("probes passed", async || count("pass").await > 2.0).await;
        assert!(script.count() > 2 && count("fail").await == 0.0);
    }
}

#[tokio::test]
async fn connections_from_before_it_was_asked_for_are_not_used() {
    let (address, script) = scripted(|mut stream, script| async move {
        while script.request(&mut stream).await.is_some() {
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                return;
            }
        }
    })
    .await;
    let text = |more: &str| config("", more, &[("only", address)]);
    let mut proxy = common::process::Proxy::start(&text(""), |_| {}).await;
    let get = async |listen| common::http::request(listen, "GET", "/", &[]).await.unwrap().status;
    assert_eq!((get(proxy.listen).await, script.connections.load(SeqCst)), (200, 1));
    proxy.write_config(&text("[services.web.upstream]\nproxy_protocol = \"v1\"\n"));
    proxy.signal("HUP");
    proxy.until("it is in force", async || proxy.generation().await > 1).await;
    assert_eq!(get(proxy.listen).await, 200);
    let heads = script.requests.lock().unwrap().clone();
    assert!(heads[1].starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{heads:?}");
    assert!(proxy.alive());
}
