//! Endpoints that speak HTTP/2, with and without TLS: one connection for many requests, every rule of failing over, trailers both ways.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::authority::Authority;
use common::harness::{Proxy, config, found_down, listener, origin, raw, silent, status, until};
use common::http2::{connect, get, give, request, send, take};
use common::process::PATIENCE;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use meridian::config::{Engine, Listen};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

const H2C: &str = "[services.web.upstream]\nprotocol = \"h2c\"\n";

const TRUSTED: &str = "[client_ip]\ntrusted = [\"127.0.0.1\"]\n";

type Asked = Request<RecvStream>;
type Respond = SendResponse<Bytes>;

/// What an origin saw.
#[derive(Clone, Default)]
struct Seen {
    connections: Arc<AtomicUsize>,
    /// Connections that ended.
    ended: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    /// Of each request: method, URI and fields.
    heads: Arc<Mutex<Vec<String>>>,
}

/// An origin that speaks HTTP/2 by prior knowledge and hands each request to `serve`. `streams`: as many at once as it allows.
async fn h2c<F, T>(streams: u32, serve: F) -> (SocketAddr, Seen)
where
    F: Fn(Asked, Respond) -> T + Clone + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let told = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, serve) = (told.clone(), serve.clone());
            tokio::spawn(async move {
                seen.connections.fetch_add(1, SeqCst);
                let Ok(mut connection) = Builder::new().max_concurrent_streams(streams).handshake(stream).await else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    seen.requests.fetch_add(1, SeqCst);
                    seen.heads.lock().unwrap().push(format!(
                        "{} {} {:?}",
                        request.method(),
                        request.uri(),
                        request.headers()
                    ));
                    tokio::spawn(serve(request, respond));
                }
                seen.ended.fetch_add(1, SeqCst);
            });
        }
    });
    (address, seen)
}

/// Says back what it got.
async fn echo(mut request: Asked, mut respond: Respond) {
    let Ok(body) = take(request.body_mut()).await else { return };
    let client = request.headers().get("x-forwarded-for").map_or("-", |value| value.to_str().unwrap());
    let (method, path) = (request.method(), request.uri().path());
    let text = format!("{:?} {method} {path} {client} {}", request.version(), String::from_utf8_lossy(&body));
    let stream = respond.send_response(Response::new(()), false).unwrap();
    // Its client may have left.
    let _ = give(stream, Bytes::from(text)).await;
}

/// A proxy that speaks HTTP/2 to its clients as well.
async fn proxy(service: &str, regions: &[(&str, SocketAddr)]) -> Proxy {
    let listen = Listen { http2: true, ..listener(Engine::Native) };
    Proxy::listening(listen, &config(TRUSTED, service, regions), &[]).await
}

async fn over(endpoint: SocketAddr) -> Proxy {
    proxy(H2C, &[("only", endpoint)]).await
}

/// Of an HTTP/1.1 client.
fn plain(proxy: &Proxy, method: &str, body: &str) -> impl Future<Output = String> + Send + 'static {
    let length = body.len();
    let head = format!("{method} /x HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let (address, text) = (proxy.address, format!("{head}{body}"));
    async move { raw(address, text.as_bytes()).await }
}

#[tokio::test]
async fn one_client_connection_reaches_services_of_either_kind() {
    let (old, (new, _)) = (origin("plain").await, h2c(100, echo).await);
    let text = format!(
        "[regions.only]\n\
         [services.web.pools.only]\nendpoints = [\"{old}\"]\n\
         [services.rpc]\npaths = [\"/rpc\"]\n[services.rpc.upstream]\nprotocol = \"h2c\"\n\
         [services.rpc.pools.only]\nendpoints = [\"{new}\"]\n"
    );
    let proxy = Proxy::start(&text, &[]).await;
    let requests = "GET /one HTTP/1.1\r\nHost: test\r\n\r\n\
        POST /rpc/two HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n\
        GET /rpc/three HTTP/1.1\r\nHost: test\r\n\r\n\
        POST /rpc/four HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nfgh\
        GET /five HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    let answers = raw(proxy.address, requests.as_bytes()).await;
    let wanted = [
        "\"target\":\"/one\"",
        "HTTP/2.0 POST /rpc/two 127.0.0.1 abcde",
        "HTTP/2.0 GET /rpc/three 127.0.0.1 ",
        "HTTP/2.0 POST /rpc/four 127.0.0.1 fgh",
        "\"target\":\"/five\"",
    ];
    let places: Vec<_> = wanted.iter().map(|text| answers.find(text)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}\n{answers}");
    let lines = proxy.lines(5).await;
    assert!(lines.iter().all(|line| line["mover"] == "native" && line["status"] == 200), "{lines:?}");
}

#[tokio::test]
async fn many_requests_share_a_connection_and_no_more_than_it_may_carry() {
    for (streams, connections) in [(100, 1), (2, 3)] {
        let all = Arc::new(tokio::sync::Barrier::new(6));
        let shared = Arc::clone(&all);
        let (address, seen) = h2c(streams, move |request, respond| {
            let all = Arc::clone(&shared);
            async move {
                all.wait().await;
                echo(request, respond).await;
            }
        })
        .await;
        let proxy = over(address).await;
        // Nobody gets an answer before all are there.
        for _ in 0..2 {
            let requests: Vec<_> = (0..6).map(|_| tokio::spawn(plain(&proxy, "GET", ""))).collect();
            for request in requests {
                assert_eq!(status(&request.await.unwrap()), 200);
            }
        }
        let made = seen.connections.load(SeqCst);
        // Another worker makes its own, and who comes while one is being made may make one too many.
        assert!((connections..=2 * connections).contains(&made), "{made} for {streams} streams");
    }
}

#[tokio::test]
async fn heads_are_what_http_2_wants() {
    let (address, seen) = h2c(100, echo).await;
    let proxy = over(address).await;
    let request = "GET /a?b=c HTTP/1.1\r\nHost: a.test:81\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
        TE: trailers\r\nCookie: a=1\r\nX-Mixed-Case: 2\r\nUpgrade: h2c\r\n\r\nGET /<b> HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    let answers = raw(proxy.address, request.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    let heads = seen.heads.lock().unwrap().clone();
    assert!(heads[0].starts_with("GET http://a.test:81/a?b=c {"), "{heads:?}");
    for field in ["\"te\": \"trailers\"", "\"cookie\": \"a=1\"", "\"x-mixed-case\": \"2\"", "\"x-forwarded-host\""] {
        assert!(heads[0].contains(field), "{field} in {heads:?}");
    }
    for field in ["x-hop", "keep-alive", "connection", "\"host\"", "upgrade"] {
        assert!(!heads[0].contains(field), "{field} in {heads:?}");
    }
    assert!(heads[1].contains("/%3Cb%3E") && !heads[1].contains("\"te\""), "{heads:?}");
}

/// Sends what it gets back piece by piece, and trailers that say how much it was.
async fn mirror(mut request: Asked, mut respond: Respond) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    let body = request.body_mut();
    let mut length = 0;
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        length += piece.len();
        stream.send_data(piece, false).unwrap();
    }
    let mut trailers = body.trailers().await.unwrap().unwrap_or_default();
    trailers.insert("x-length", length.into());
    stream.send_trailers(trailers).unwrap();
}

#[tokio::test]
async fn streams_flow_both_ways_at_once_and_trailers_with_them() {
    let (address, _) = h2c(100, mirror).await;
    let proxy = over(address).await;
    let (mut client, _) = connect(proxy.address).await;
    let mut post = request("POST", "/pkg.Service/Chat");
    post.headers_mut().insert("te", "trailers".parse().unwrap());
    client = client.ready().await.unwrap();
    let (answer, mut stream) = client.send_request(post, false).unwrap();
    // The head of the answer comes before any of the request's body.
    let mut answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
    for message in ["one", "two", "three"] {
        stream.send_data(Bytes::from(message), false).unwrap();
        let piece = tokio::time::timeout(PATIENCE, answer.body_mut().data()).await.unwrap().unwrap().unwrap();
        assert_eq!(piece, message);
    }
    let trailers = HeaderMap::from_iter([("x-client".parse().unwrap(), "said".parse().unwrap())]);
    stream.send_trailers(trailers).unwrap();
    assert!(take(answer.body_mut()).await.unwrap().is_empty());
    let trailers = answer.body_mut().trailers().await.unwrap().unwrap();
    assert!(trailers["x-length"] == "11" && trailers["x-client"] == "said", "{trailers:?}");
    // The same for a client of HTTP/1.1.
    let text = "POST /x HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nConnection: te, close\r\nTransfer-Encoding: chunked\r\n\r\n\
        3\r\nabc\r\n0\r\nx-client: said\r\n\r\n";
    let answer = raw(proxy.address, text.as_bytes()).await;
    assert!(answer.contains("x-client: said\r\n") && answer.contains("x-length: 3\r\n"), "{answer}");
}

#[tokio::test]
async fn long_bodies_pass_in_both_directions_as_they_are_taken() {
    let (address, _) = h2c(100, |mut request, mut respond| async move {
        let body = take(request.body_mut()).await.unwrap();
        let response = Response::builder().header("content-length", body.len()).body(()).unwrap();
        let stream = respond.send_response(response, false).unwrap();
        let _ = give(stream, body.into()).await;
    })
    .await;
    let proxy = proxy(&format!("max_body = \"32MiB\"\n{H2C}"), &[("only", address)]).await;
    let body: Vec<u8> = (0..12 << 20).map(|n: u32| (n / 7) as u8).collect();
    let (mut client, _) = connect(proxy.address).await;
    let requests: Vec<_> = (0..3)
        .map(|_| {
            let (mut client, body) = (client.clone(), body.clone());
            tokio::spawn(async move {
                let mut answer = send(&mut client, request("POST", "/"), &body).await.unwrap();
                take(answer.body_mut()).await.unwrap() == body
            })
        })
        .collect();
    for request in requests {
        assert!(request.await.unwrap());
    }
    assert_eq!(get(&mut client, "/").await.0, 200);
}

#[tokio::test]
async fn answers_without_a_body_and_informational_ones() {
    let (address, _) = h2c(100, |request, mut respond| async move {
        let status: u16 = request.uri().path()[1..].parse().unwrap();
        if request.method() == "GET" {
            let early = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
            respond.send_informational(early).unwrap();
        }
        let head = Response::builder().status(status);
        let head = if request.method() == "HEAD" { head.header("content-length", 1000) } else { head };
        respond.send_response(head.body(()).unwrap(), true).unwrap();
    })
    .await;
    let proxy = over(address).await;
    let text = "HEAD /200 HTTP/1.1\r\nHost: a\r\n\r\nGET /204 HTTP/1.1\r\nHost: a\r\n\r\nGET /304 HTTP/1.1\r\nHost: a\r\n\r\n\
        GET /200 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = raw(proxy.address, text.as_bytes()).await;
    let lines: Vec<_> = answer.lines().filter(|line| line.starts_with("HTTP/1.1")).collect();
    let codes: Vec<_> = lines.iter().map(|line| &line[9..12]).collect();
    assert_eq!(codes, ["200", "103", "204", "103", "304", "103", "200"], "{answer}");
    assert!(answer.contains("Content-Length: 1000\r\n") && answer.contains("link: </a>\r\n"), "{answer}");
    assert_eq!(answer.matches("Content-Length: 0\r\n").count(), 1, "{answer}");
}

/// Refuses the first request of each connection in that way, after its head came, and serves the others.
async fn refusing(how: fn(&mut h2::server::Connection<TcpStream, Bytes>, Respond)) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let refused = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&refused);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                if let Some(Ok((_, respond))) = connection.accept().await {
                    count.fetch_add(1, SeqCst);
                    how(&mut connection, respond);
                }
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(echo(request, respond));
                }
            });
        }
    });
    (address, refused)
}

#[tokio::test]
async fn what_was_not_looked_at_is_sent_again_whatever_it_does() {
    let (good, _) = h2c(100, echo).await;
    let (address, refused) = refusing(|_, mut respond| respond.send_reset(Reason::REFUSED_STREAM)).await;
    let proxy = proxy(H2C, &[("near", address), ("far", good)]).await;
    let answer = plain(&proxy, "POST", "once").await;
    assert!(status(&answer) == 200 && answer.contains(" once\r\n"), "{answer}");
    assert_eq!(refused.load(SeqCst), 1);
    // An answer that was cut after it had been looked at is another matter.
    let (address, seen) =
        h2c(100, |_, mut respond: Respond| async move { respond.send_reset(Reason::INTERNAL_ERROR) }).await;
    let proxy = self::proxy(H2C, &[("near", address), ("far", good)]).await;
    assert_eq!(status(&plain(&proxy, "POST", "once").await), 502);
    assert_eq!(seen.requests.load(SeqCst), 1);
    assert_eq!(status(&plain(&proxy, "GET", "").await), 200);
}

#[tokio::test]
async fn a_farewell_lets_requests_end_and_begins_no_others() {
    let go = Arc::new(Notify::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connections, requests) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (count, counted, waits) = (Arc::clone(&connections), Arc::clone(&requests), Arc::clone(&go));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, SeqCst);
            let (waits, counted) = (Arc::clone(&waits), Arc::clone(&counted));
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let is_first = counted.fetch_add(1, SeqCst) == 0;
                    if is_first {
                        connection.graceful_shutdown();
                    }
                    let waits = Arc::clone(&waits);
                    tokio::spawn(async move {
                        if is_first {
                            waits.notified().await;
                        }
                        echo(request, respond).await;
                    });
                }
            });
        }
    });
    let proxy = over(address).await;
    let waiting = tokio::spawn(plain(&proxy, "POST", "slow"));
    until("the first request is there", || requests.load(SeqCst) == 1).await;
    // It says farewell, and requests that come then go by another connection, once that is known.
    for _ in 0..1000 {
        assert_eq!(status(&plain(&proxy, "POST", "quick").await), 200);
        if connections.load(SeqCst) == 2 {
            break;
        }
    }
    assert_eq!(connections.load(SeqCst), 2);
    go.notify_one();
    let answer = waiting.await.unwrap();
    assert!(answer.contains(" slow\r\n"), "{answer}");
}

#[tokio::test]
async fn connections_that_break_are_treated_as_those_of_http_1() {
    let (good, _) = h2c(100, echo).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let _request = connection.accept().await;
            });
        }
    });
    let proxy = proxy(H2C, &[("near", address), ("far", good)]).await;
    assert_eq!(status(&plain(&proxy, "GET", "").await), 200);
    assert_eq!(status(&plain(&proxy, "POST", "once").await), 502);
    let lines = proxy.lines(2).await;
    assert_eq!((&lines[0]["region"], &lines[1]["region"]), (&"far".into(), &"near".into()), "{lines:?}");
    // Whatever does not speak HTTP/2 was sent nothing.
    for endpoint in [origin("plain").await, silent().await.0] {
        let proxy =
            self::proxy(&format!("timeouts.connect = \"500ms\"\n{H2C}"), &[("near", endpoint), ("far", good)]).await;
        let answer = plain(&proxy, "POST", "once").await;
        assert!(status(&answer) == 200 && answer.contains(" once\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_is_cancelled_and_the_connection_goes_on() {
    let reset = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&reset);
    let (address, seen) = h2c(100, move |request, mut respond| {
        let count = Arc::clone(&count);
        async move {
            if request.uri().path() != "/silent" {
                return echo(request, respond).await;
            }
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            count.fetch_add(1, SeqCst);
        }
    })
    .await;
    let proxy =
        proxy(&format!("timeouts.first_byte = \"200ms\"\nretry.attempts = 1\n{H2C}"), &[("only", address)]).await;
    let (mut client, _) = connect(proxy.address).await;
    assert_eq!(get(&mut client, "/silent").await.0, 504);
    until("it is cancelled", || reset.load(SeqCst) == 1).await;
    // A client that leaves cancels too.
    client = client.ready().await.unwrap();
    let (answer, mut stream) = client.send_request(request("GET", "/silent"), true).unwrap();
    until("it is there", || seen.requests.load(SeqCst) == 2).await;
    stream.send_reset(Reason::CANCEL);
    drop(answer);
    until("the second is cancelled", || reset.load(SeqCst) == 2).await;
    assert_eq!(get(&mut client, "/x").await.0, 200);
    assert_eq!(seen.connections.load(SeqCst), 1);
}

/// A way to an address that can be made to lose everything.
async fn way_to(address: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>, tokio::sync::watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = listener.local_addr().unwrap();
    let (lost, is_lost) = tokio::sync::watch::channel(false);
    let connections = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            // Those that come later are not lost.
            let mut is_lost = is_lost.clone();
            is_lost.mark_unchanged();
            count.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(address).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    _ = is_lost.changed() => std::future::pending().await,
                }
            });
        }
    });
    (near, connections, lost)
}

#[tokio::test]
async fn a_connection_that_went_silent_gets_no_more_requests() {
    let (address, _) = h2c(100, echo).await;
    let (way, connections, lost) = way_to(address).await;
    let service = format!("timeouts.first_byte = \"1200ms\"\n[services.web.retry]\nattempts = 1\n{H2C}");
    let proxy = proxy(&service, &[("only", way)]).await;
    assert_eq!(status(&plain(&proxy, "GET", "").await), 200);
    lost.send_replace(true);
    assert_eq!(status(&plain(&proxy, "GET", "").await), 504);
    // One request found out.
    for _ in 0..3 {
        assert_eq!(status(&plain(&proxy, "GET", "").await), 200);
    }
    assert_eq!(connections.load(SeqCst), 2);
}

#[tokio::test]
async fn what_is_not_used_is_closed_and_what_is_too_old_is_not_used() {
    let (address, seen) = h2c(100, echo).await;
    let upstream = format!("{H2C}idle = \"100ms\"\n");
    let proxy = proxy(&upstream, &[("only", address)]).await;
    assert_eq!(status(&plain(&proxy, "GET", "").await), 200);
    until("it is closed", || seen.ended.load(SeqCst) == 1).await;
    assert_eq!(status(&plain(&proxy, "GET", "").await), 200);

    let (address, seen) = h2c(100, echo).await;
    let proxy = self::proxy(&format!("{H2C}max_age = \"1ms\"\n"), &[("only", address)]).await;
    for _ in 0..3 {
        assert_eq!(status(&plain(&proxy, "GET", "").await), 200);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(seen.connections.load(SeqCst), 3);
}

#[tokio::test]
async fn a_region_that_falls_takes_its_connections_with_it() {
    let (address, seen) = h2c(100, echo).await;
    let (good, _) = h2c(100, echo).await;
    let text = config(TRUSTED, H2C, &[("near", address), ("far", good)]).replace("\"none\"", "\"tcp\"");
    let (proxy, sender) = Proxy::live_on(Engine::Native, &text).await;
    assert_eq!(status(&plain(&proxy, "GET", "").await), 200);
    found_down(&proxy, &sender, 0, 0).await;
    until("its connection is closed", || seen.ended.load(SeqCst) == 1).await;
    assert_eq!(status(&plain(&proxy, "POST", "x").await), 200);
    assert_eq!(seen.requests.load(SeqCst), 1);
}

#[tokio::test]
async fn rules_hold_as_for_any_upstream() {
    let (address, seen) = h2c(100, echo).await;
    let text = format!(
        "[regions.only]\n[client_ip]\ntrusted = [\"127.0.0.1\"]\n\
         [services.rpc]\nhttps = \"redirect\"\nhsts = \"1d\"\nstrip_prefix = \"/rpc\"\nadd_prefix = \"/v2\"\n\
         headers.response.set = {{ X-Set = \"ours\" }}\n\
         [services.rpc.upstream]\nprotocol = \"h2c\"\n[services.rpc.pools.only]\nendpoints = [\"{address}\"]\n"
    );
    let proxy = Proxy::start(&text, &[]).await;
    let requests = "GET /rpc/one HTTP/1.1\r\nHost: test\r\n\r\n\
        GET /rpc/two HTTP/1.1\r\nHost: test\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n";
    let answers = raw(proxy.address, requests.as_bytes()).await;
    let (first, second) = answers.split_once("by https\n").unwrap();
    assert!(status(first) == 308 && first.contains("https://test/rpc/one\r\n") && !first.contains("ours"), "{first}");
    assert!(status(second) == 200 && second.contains("HTTP/2.0 GET /v2/two "), "{second}");
    assert!(second.contains(": ours\r\n") && second.contains(": max-age=86400\r\n"), "{second}");
    // What is ambiguous reaches nobody, and a body that breaks a rule ends the connection.
    for head in [
        "POST /rpc HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /rpc HTTP/1.1\nHost: test\r\n\r\n",
        "GET /rpc HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(status(&raw(proxy.address, head.as_bytes()).await), 400, "{head:?}");
    }
    let broken = "POST /rpc HTTP/1.1\r\nHost: test\r\nX-Forwarded-Proto: https\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n\
        GET /rpc/never HTTP/1.1\r\nHost: test\r\nX-Forwarded-Proto: https\r\n\r\n";
    assert!(!raw(proxy.address, broken.as_bytes()).await.contains("200 OK"));
    let heads = seen.heads.lock().unwrap().clone();
    assert!(!heads.iter().any(|head| head.contains("never")), "{heads:?}");
    // HTTP/2 has another way to WebSockets, which is not gone: as by a proxy that knows no upgrades.
    let upgrade = "GET /rpc/ws HTTP/1.1\r\nHost: test\r\nX-Forwarded-Proto: https\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    assert_eq!(status(&raw(proxy.address, upgrade.as_bytes()).await), 200);
}

#[tokio::test]
async fn clients_that_take_nothing_cost_others_nothing() {
    let (address, seen) = h2c(100, |request, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        let count = if request.uri().path() == "/slow" { usize::MAX } else { 200 };
        for n in 0..count {
            // As a server of small messages does, until nobody takes them any more.
            stream.reserve_capacity(30);
            while stream.capacity() < 30 {
                if !matches!(std::future::poll_fn(|cx| stream.poll_capacity(cx)).await, Some(Ok(_))) {
                    return;
                }
            }
            if stream.send_data(Bytes::from_static(&[b'x'; 30]), n + 1 == count).is_err() {
                return;
            }
            if n % 1000 == 0 {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let proxy = over(address).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
        slow.push(stream);
    }
    until("all are there", || seen.requests.load(SeqCst) == 20).await;
    for _ in 0..20 {
        let answer = plain(&proxy, "GET", "").await;
        assert!(answer.ends_with("\r\n0\r\n\r\n") && answer.matches('x').count() >= 6_000, "{}", answer.len());
    }
    assert_eq!((seen.connections.load(SeqCst), proxy.in_flight()), (1, 20));
}

#[tokio::test]
async fn streams_that_are_reset_speak_against_their_endpoint() {
    let (good, _) = h2c(100, echo).await;
    let (bad, seen) =
        h2c(100, |_, mut respond: Respond| async move { respond.send_reset(Reason::INTERNAL_ERROR) }).await;
    let text = config(TRUSTED, H2C, &[("only", bad)]).replace(&format!("\"{bad}\""), &format!("\"{bad}\", \"{good}\""));
    let (proxy, _sender) = Proxy::live_on(Engine::Native, &text).await;
    // Of several clients: one alone may be at fault itself.
    for n in 0..60 {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 192.0.2.{n}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        raw(proxy.address, head.as_bytes()).await;
    }
    // In doubt after the first, and ejected after five in a row.
    assert!((1..20).contains(&seen.requests.load(SeqCst)), "{}", seen.requests.load(SeqCst));
    assert_eq!(seen.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_host_that_cannot_be_said_is_refused_at_once() {
    let (address, seen) = h2c(100, echo).await;
    let proxy = over(address).await;
    let answer = raw(proxy.address, b"GET / HTTP/1.1\r\nHost: %41\r\nConnection: close\r\n\r\n").await;
    assert_eq!((status(&answer), seen.requests.load(SeqCst)), (400, 0));
}

#[tokio::test]
async fn hedges_and_answers_that_are_taken_elsewhere() {
    let (good, _) = h2c(100, echo).await;
    let (bad, seen) = h2c(100, |_, mut respond: Respond| async move {
        let response = Response::builder().status(503).body(()).unwrap();
        let mut stream = respond.send_response(response, false).unwrap();
        let _ = stream.send_data(Bytes::from_static(b"busy"), true);
    })
    .await;
    let proxy = proxy(H2C, &[("near", bad), ("far", good)]).await;
    assert_eq!(status(&plain(&proxy, "GET", "").await), 200);
    assert_eq!(status(&plain(&proxy, "POST", "x").await), 503);
    assert_eq!((seen.requests.load(SeqCst), seen.connections.load(SeqCst)), (2, 1));
}

/// An origin within TLS that shows `site.pem`, speaks HTTP/2 if that is asked for and it `may`, and answers with what was spoken.
async fn within_tls(folder: &Path, may: bool) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = CertificateDer::pem_file_iter(folder.join("site.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(folder.join("site.key")).unwrap();
    let mut tls = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    tls.alpn_protocols = if may { vec![b"h2".to_vec()] } else { Vec::new() };
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let told = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, heads) = (acceptor.clone(), Arc::clone(&told));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    heads.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
                    tokio::spawn(echo(request, respond));
                }
            });
        }
    });
    (address, heads)
}

#[tokio::test]
async fn within_tls_it_is_agreed_on_and_probed_alike() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new("the tests'");
    ca.issue(folder.path(), "site", &["site.test"]);
    let (good, heads) = within_tls(folder.path(), true).await;
    let (old, _) = within_tls(folder.path(), false).await;
    let service = |pools: &str| {
        format!(
            "[regions.near]\n[regions.far]\n[services.web.health]\nbody = \"HTTP/2.0\"\ninterval = \"50ms\"\ntimeout = \"2s\"\n\
             [services.web.upstream]\nprotocol = \"h2\"\ntls = {{ ca = \"ca.pem\", sni = \"site.test\" }}\n{pools}"
        )
    };
    let pools = format!(
        "[services.web.pools.near]\nendpoints = [\"{old}\"]\n[services.web.pools.far]\nendpoints = [\"{good}\"]\n"
    );
    let proxy = common::process::Proxy::start(&service(&pools), |folder| ca.write(&folder.join("ca.pem"))).await;
    assert_eq!(common::http::request(proxy.listen, "POST", "/x", &[]).await.unwrap().status, 200);
    let count = async |endpoint: SocketAddr, region: &str, result: &str| {
        let labels = format!("endpoint=\"{endpoint}\",region=\"{region}\",result=\"{result}\",service=\"web\"");
        proxy.metric(&format!("meridian_probes_total{{{labels}}}")).await.unwrap_or(0.0)
    };
    proxy.until("probes pass", async || count(good, "far", "pass").await > 1.0).await;
    proxy.until("probes fail", async || count(old, "near", "fail").await > 1.0).await;
    let heads = heads.lock().unwrap().clone();
    assert!(heads.iter().any(|head| head.starts_with("POST https://") && head.ends_with("/x")), "{heads:?}");
    assert!(heads.iter().any(|head| head.starts_with("GET https://") && head.ends_with("/healthz")), "{heads:?}");
}

#[tokio::test]
async fn probes_without_tls_speak_what_requests_do() {
    let (address, seen) = h2c(100, echo).await;
    let text = config("", H2C, &[("only", address)]);
    let text = text.replace("kind = \"none\"", "kind = \"http\"\nbody = \"HTTP/2.0\"\ninterval = \"50ms\"");
    let proxy = common::process::Proxy::start(&text, |_| {}).await;
    let count = async |result: &str| {
        let labels = format!("endpoint=\"{address}\",region=\"only\",result=\"{result}\",service=\"web\"");
        proxy.metric(&format!("meridian_probes_total{{{labels}}}")).await.unwrap_or(0.0)
    };
    proxy.until("probes pass", async || count("pass").await > 1.0).await;
    assert_eq!(count("fail").await, 0.0);
    let heads = seen.heads.lock().unwrap().clone();
    assert!(heads.iter().all(|head| head.starts_with(&format!("GET http://{address}/healthz"))), "{heads:?}");
}

/// A call's status: of HTTP, and its own, from the head of an answer that has no body.
async fn call(proxy: &Proxy, timeout: Option<&'static str>) -> (u16, String) {
    let (mut client, _) = connect(proxy.address).await;
    let mut call = request("POST", "/pkg.Service/Method");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    call.headers_mut().insert("te", "trailers".parse().unwrap());
    timeout.map(|timeout| call.headers_mut().insert("grpc-timeout", timeout.parse().unwrap()));
    let answer = send(&mut client, call, b"\0\0\0\0\0").await.unwrap();
    assert!(answer.body().is_end_stream() && answer.headers()["content-type"] == "application/grpc", "{answer:?}");
    (answer.status().as_u16(), answer.headers()["grpc-status"].to_str().unwrap().to_owned())
}

#[tokio::test]
async fn calls_are_answered_in_their_own_words_and_not_kept_waiting() {
    let (address, _) = h2c(100, |request, _respond| async move {
        let _request = request;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = over(address).await;
    let begun = std::time::Instant::now();
    assert_eq!(call(&proxy, Some("100m")).await, (200, "4".to_owned()));
    assert!(begun.elapsed() < Duration::from_secs(4), "its own deadline counts");
    let line = &proxy.lines(1).await[0];
    assert_eq!((&line["status"], &line["outcome"]), (&200.into(), &"deadline".into()), "{line}");

    let (nobody, _socket) = common::harness::refusing();
    let proxy = over(nobody).await;
    assert_eq!(call(&proxy, None).await, (200, "14".to_owned()));
    // Others are told as ever.
    assert_eq!(status(&plain(&proxy, "POST", "x").await), 502);
}
