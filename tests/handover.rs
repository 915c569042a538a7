//! Requests for services that speak HTTP/2 upstream: checked by the engine, moved by pingora, on a client connection that both take turns on.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::convert::Infallible;
use std::net::SocketAddr;

use common::harness::{Proxy, origin, raw, status};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// An origin that speaks HTTP/2 by prior knowledge, and says back what it got.
async fn h2c() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let echo = service_fn(|request: Request<Incoming>| async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let client = head.headers.get("x-forwarded-for").map_or("-", |value| value.to_str().unwrap());
                let text = format!(
                    "{:?} {} {} {client} {}",
                    head.version,
                    head.method,
                    head.uri.path(),
                    String::from_utf8_lossy(&body)
                );
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), echo));
        }
    });
    address
}

async fn proxy() -> Proxy {
    let (plain, h2c) = (origin("plain").await, h2c().await);
    let text = format!(
        "[regions.only]\n\
         [services.web.pools.only]\nendpoints = [\"{plain}\"]\n\
         [services.rpc]\npaths = [\"/rpc\"]\n[services.rpc.upstream]\nprotocol = \"h2c\"\n\
         [services.rpc.pools.only]\nendpoints = [\"{h2c}\"]\n"
    );
    Proxy::start(&text, &[]).await
}

#[tokio::test]
async fn both_movers_serve_one_connection_in_order() {
    let proxy = proxy().await;
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
    let movers: Vec<_> = proxy.lines(5).await.iter().map(|line| line["mover"].as_str().unwrap().to_owned()).collect();
    assert_eq!(movers, ["native", "pingora", "pingora", "pingora", "native"]);
}

#[tokio::test]
async fn rules_hold_whoever_serves() {
    let h2c = h2c().await;
    let text = format!(
        "[regions.only]\n[client_ip]\ntrusted = [\"127.0.0.1\"]\n\
         [services.rpc]\nhttps = \"redirect\"\nhsts = \"1d\"\nstrip_prefix = \"/rpc\"\nadd_prefix = \"/v2\"\n\
         headers.response.set = {{ X-Set = \"ours\" }}\n\
         [services.rpc.upstream]\nprotocol = \"h2c\"\n[services.rpc.pools.only]\nendpoints = [\"{h2c}\"]\n"
    );
    let proxy = Proxy::start(&text, &[]).await;
    let requests = "GET /rpc/one HTTP/1.1\r\nHost: test\r\n\r\n\
        GET /rpc/two HTTP/1.1\r\nHost: test\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n";
    let answers = raw(proxy.address, requests.as_bytes()).await;
    let (first, second) = answers.split_once("by https\n").unwrap();
    assert!(status(first) == 308 && first.contains("https://test/rpc/one\r\n") && !first.contains("ours"), "{first}");
    assert!(status(second) == 200 && second.contains("HTTP/2.0 GET /v2/two "), "{second}");
    assert!(second.contains(": ours\r\n") && second.contains(": max-age=86400\r\n"), "{second}");
}

#[tokio::test]
async fn a_connection_ends_at_its_bound_whoever_serves_the_last_request() {
    let (plain, h2c) = (origin("plain").await, h2c().await);
    let text = format!(
        "[limits]\nrequests = 3\n[regions.only]\n\
         [services.web.pools.only]\nendpoints = [\"{plain}\"]\n\
         [services.rpc]\npaths = [\"/rpc\"]\n[services.rpc.upstream]\nprotocol = \"h2c\"\n\
         [services.rpc.pools.only]\nendpoints = [\"{h2c}\"]\n"
    );
    let proxy = Proxy::start(&text, &[]).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    for paths in [["/1", "/2", "/rpc/3", "/4"], ["/rpc/1", "/rpc/2", "/rpc/3", "/rpc/4"], ["/rpc/1", "/2", "/3", "/4"]]
    {
        let requests = paths.map(get).concat();
        let answers = raw(proxy.address, requests.as_bytes()).await;
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{paths:?}\n{answers}");
        assert_eq!(answers.to_ascii_lowercase().matches("connection: close").count(), 1, "{paths:?}\n{answers}");
    }
}

#[tokio::test]
async fn the_engines_rules_hold_for_what_is_handed_over() {
    let proxy = proxy().await;
    for head in [
        "POST /rpc HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /rpc HTTP/1.1\nHost: test\r\n\r\n",
        "GET /rpc HTTP/1.1\r\n\r\n",
    ] {
        let answer = raw(proxy.address, head.as_bytes()).await;
        assert_eq!(status(&answer), 400, "{head:?}\n{answer}");
    }
    // A body that breaks a rule ends the connection, and what follows is never served.
    let broken = "POST /rpc HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n\
        GET /one HTTP/1.1\r\nHost: test\r\n\r\n";
    let answer = raw(proxy.address, broken.as_bytes()).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    proxy.lines(4).await;
}
