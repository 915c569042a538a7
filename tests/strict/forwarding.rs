//! What passes and what does not: fields, interim answers, upgrades, and the order of answers.

use super::common::harness::{Proxy, answering, status};
use super::kit::{GET, OK, Peer, always, ask, before, ended, field, fields};

/// The head that an upstream gets of a request without a body.
async fn forwarded(proxy: &Proxy, script: &super::common::harness::Script, request: &str) -> String {
    let before = script.count();
    let mut client = Peer::connect(proxy.address).await;
    client.say(request).await;
    let (head, body) = client.answer().await;
    assert!(status(&head) == 200 && body == "good", "{request}: {head}");
    assert_eq!(script.count(), before + 1);
    script.requests.lock().unwrap()[before].clone()
}

#[tokio::test]
async fn what_concerns_one_connection_does_not_pass() {
    let (upstream, script) = answering(OK).await;
    let proxy = before(upstream, "", "").await;
    let rows: &[(&str, &[&str])] = &[
        ("Connection: X-Secret\r\nX-Secret: 1", &["connection", "x-secret"]),
        ("X-Secret: 1\r\nConnection: keep-alive\r\nConnection: x-SECRET", &["connection", "x-secret"]),
        ("X-Secret: 1\r\nConnection: ,, x-secret ,\t,close", &["connection", "x-secret"]),
        ("Connection: keep-alive\r\nKeep-Alive: timeout=5", &["connection", "keep-alive"]),
        ("Keep-Alive: timeout=5", &["keep-alive"]),
        ("Proxy-Connection: keep-alive", &["proxy-connection"]),
        ("Proxy-Authorization: Basic eDp5", &["proxy-authorization"]),
        ("Proxy-Authenticate: Basic", &["proxy-authenticate"]),
        ("Proxy: http://evil", &["proxy"]),
        ("TE: gzip", &["te"]),
        ("TE: gzip, deflate;q=0.5\r\nConnection: TE", &["te", "connection"]),
        (
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
            &["upgrade", "connection", "http2-settings"],
        ),
        ("Upgrade: h2c", &["upgrade"]),
        ("Upgrade: TLS/1.0, HTTP/1.1\r\nConnection: Upgrade", &["upgrade", "connection"]),
        ("Upgrade: websocket, h2c\r\nConnection: Upgrade", &["upgrade", "connection"]),
        ("Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade", &["upgrade", "connection"]),
        ("Upgrade: websocket", &["upgrade", "connection"]),
        ("Expect: 100-continue", &["expect"]),
        ("Content_Length: 5", &["content_length"]),
        ("Transfer_Encoding: chunked", &["transfer_encoding"]),
        ("X-Forwarded-For: 1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nForwarded: for=1.2.3.4", &["x-real-ip", "forwarded"]),
    ];
    for (lines, gone) in rows {
        let head =
            forwarded(&proxy, &script, &format!("GET /a?b HTTP/1.1\r\nHost: test\r\nX-Kept: 1\r\n{lines}\r\n\r\n"))
                .await;
        assert!(head.starts_with("GET /a?b HTTP/1.1\r\n"), "{head}");
        for name in *gone {
            assert_eq!(fields(&head, name).count(), 0, "{lines} passed on {name}: {head}");
        }
        for name in ["x-kept", "host", "x-forwarded-for", "via"] {
            assert!(field(&head, name).is_some(), "{lines}: {name}: {head}");
        }
        let framed = fields(&head, "content-length").count() + fields(&head, "transfer-encoding").count();
        assert_eq!(framed, 0, "{head}");
    }
    let head = forwarded(&proxy, &script, "GET / HTTP/1.1\r\nHost: test\r\nTE: gzip, Trailers\r\n\r\n").await;
    assert_eq!((field(&head, "te"), field(&head, "connection")), (Some("trailers"), Some("TE")), "{head}");
    // The order and case of fields, empty values and bytes beyond ASCII are the client's own.
    let head =
        forwarded(&proxy, &script, "GET / HTTP/1.1\r\nHost: test\r\nx-B: \t2 \t 2\t\r\nX-a:\r\nX-b: \u{e9}\r\n\r\n")
            .await;
    assert!(head.contains("\r\nx-B: 2 \t 2\r\nX-a: \r\nX-b: \u{e9}\r\n"), "{head}");
    assert_eq!(proxy.in_flight(), 0);
}

#[tokio::test]
async fn targets_reach_the_upstream_in_origin_form() {
    let (upstream, script) = answering(OK).await;
    let proxy = before(upstream, "", "").await;
    for (line, host, wanted) in [
        ("GET http://test/a?b HTTP/1.1", "test", "GET /a?b HTTP/1.1"),
        ("GET http://test HTTP/1.1", "test", "GET / HTTP/1.1"),
        ("GET http://test?b HTTP/1.1", "test", "GET /?b HTTP/1.1"),
        ("GET https://test:8443/ HTTP/1.1", "test:8443", "GET / HTTP/1.1"),
        ("OPTIONS http://test HTTP/1.1", "test", "OPTIONS * HTTP/1.1"),
        ("OPTIONS * HTTP/1.1", "test", "OPTIONS * HTTP/1.1"),
        ("GET //evil/a HTTP/1.1", "test", "GET //evil/a HTTP/1.1"),
        ("GET /http://evil/ HTTP/1.1", "test", "GET /http://evil/ HTTP/1.1"),
        ("GET /%2e%2E/%00 HTTP/1.1", "test", ""),
        ("GET / HTTP/1.0", "test", "GET / HTTP/1.1"),
    ] {
        let request = format!("{line}\r\nHost: {host}\r\n\r\n");
        if wanted.is_empty() {
            assert_eq!(status(&ask(proxy.address, request).await.0), 400);
            continue;
        }
        let head = forwarded(&proxy, &script, &request).await;
        assert!(head.starts_with(&format!("{wanted}\r\n")), "{line}: {head}");
        assert_eq!(field(&head, "host"), Some(host), "{line}: {head}");
    }
    // Without Host, the target names it; without either it is empty, for HTTP/1.1 demands the field.
    let head = forwarded(&proxy, &script, "GET http://test/ HTTP/1.0\r\n\r\n").await;
    assert_eq!(field(&head, "host"), Some("test"), "{head}");
    let head = forwarded(&proxy, &script, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(head.contains("\r\nhost: \r\n"), "{head}");
}

#[tokio::test]
async fn a_client_waits_for_leave_to_continue() {
    let (upstream, _) = always(|mut peer, script| async move {
        let head = script.request(&mut peer.0).await.unwrap();
        assert_eq!(field(&head, "expect"), Some("100-Continue"), "{head}");
        peer.hears_nothing().await;
        peer.say("HTTP/1.1 100 Continue\r\nX-A: b\r\nContent-Length: 7\r\n\r\n").await;
        assert_eq!(peer.exactly(2).await, "hi");
        peer.say(OK).await;
        peer.rest().await;
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let head = "POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
    let mut client = Peer::connect(proxy.address).await;
    client.say(head).await;
    let interim = client.head().await;
    assert!(interim.starts_with("HTTP/1.1 100 Continue\r\n") && interim.contains("X-A: b"), "{interim}");
    assert_eq!(field(&interim, "content-length"), None, "{interim}");
    client.say("hi").await;
    let (head, body) = client.answer().await;
    assert_eq!((status(&head), body.as_str(), field(&head, "connection")), (200, "good", None), "{head}");
    ended(&proxy, 1, "answered", 200).await;
}

#[tokio::test]
async fn an_upstream_may_answer_instead_of_asking_for_the_body() {
    let (upstream, script) = always(|mut peer, script| async move {
        script.request(&mut peer.0).await;
        peer.say("HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno").await;
        // The body may follow all the same; whatever comes is no request.
        peer.rest().await;
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let head = "POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 38\r\n\r\n";
    for body in ["", "GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"] {
        let mut client = Peer::connect(proxy.address).await;
        client.say(head).await;
        let (answer, _) = client.answer().await;
        // The body was not sent, so the connection cannot be used again, nor can the upstream's.
        assert_eq!((status(&answer), field(&answer, "connection")), (417, Some("close")), "{answer}");
        let _ = client.try_say(body).await;
        client.rest().await;
    }
    ended(&proxy, 2, "answered", 417).await;
    assert_eq!(script.count(), 2);
    assert_eq!(script.connections.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test]
async fn informational_answers_pass_to_whom_knows_them() {
    let hints =
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (upstream, _) = always(move |mut peer, script| async move {
        while script.request(&mut peer.0).await.is_some() {
            peer.say("HTTP/1.1 100 Continue\r\n\r\n").await;
            peer.say(hints.repeat(2)).await;
            peer.say("HTTP/1.1 199 Odd\r\n\r\n").await;
            peer.say(OK).await;
        }
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let mut client = Peer::connect(proxy.address).await;
    for _ in 0..2 {
        client.say(GET).await;
        for _ in 0..2 {
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n"), "{head}");
            assert!(!head.contains("X-Hop") && field(&head, "transfer-encoding").is_none(), "{head}");
        }
        assert_eq!(status(&client.head().await), 199);
        assert_eq!(client.answer().await.1, "good");
    }
    for request in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"] {
        let (answer, _) = ask(proxy.address, request).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.matches("HTTP/1.1 ").count() == 1, "{answer}");
    }
    ended(&proxy, 4, "answered", 200).await;
}

#[tokio::test]
async fn answers_without_a_body_leave_both_connections_in_use() {
    let (upstream, script) = always(|mut peer, script| async move {
        while let Some(head) = script.request(&mut peer.0).await {
            let target = head.split(' ').nth(1).unwrap().to_owned();
            peer.say(match target.as_str() {
                "/204" => "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
                "/204c" => "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\nETag: \"a\"\r\n\r\n",
                "/304c" => "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
                "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
                "/headc" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "/headn" => "HTTP/1.1 200 OK\r\n\r\n",
                _ => OK,
            })
            .await;
        }
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let mut client = Peer::connect(proxy.address).await;
    for (method, target, code, length) in [
        ("GET", "/204", 204, None),
        ("POST", "/204c", 204, None),
        ("GET", "/304", 304, Some("100")),
        ("GET", "/304c", 304, None),
        ("HEAD", "/head", 200, Some("100")),
        ("HEAD", "/headc", 200, None),
        ("HEAD", "/headn", 200, None),
    ] {
        client.say(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
        let head = client.head().await;
        assert_eq!((status(&head), field(&head, "content-length")), (code, length), "{target}: {head}");
        assert_eq!(fields(&head, "transfer-encoding").count(), 0, "{target}: {head}");
        assert_eq!(field(&head, "connection"), None, "{target}: {head}");
        client.say(GET).await;
        assert_eq!(client.answer().await.1, "good", "after {target}");
    }
    ended(&proxy, 14, "answered", 200).await;
    assert_eq!(script.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn many_requests_in_one_write_are_answered_in_order() {
    let (upstream, script) = always(|mut peer, script| async move {
        while let Some(head) = script.request(&mut peer.0).await {
            let target = head.split(' ').nth(1).unwrap().to_owned();
            let body = match (field(&head, "content-length"), field(&head, "transfer-encoding")) {
                (Some(length), None) => peer.exactly(length.parse().unwrap()).await,
                (None, Some("chunked")) => {
                    let mut body = peer.exactly(5).await;
                    while !body.ends_with("0\r\n\r\n") {
                        body += &peer.exactly(1).await;
                    }
                    body
                }
                framing => {
                    assert_eq!(framing, (None, None));
                    String::new()
                }
            };
            let answer = format!("{target}={}", body.len());
            peer.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())).await;
        }
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let (mut text, mut wanted) = (String::new(), Vec::new());
    for n in 0..60 {
        let (framing, body, size) = match n % 4 {
            0 => ("X: y".to_owned(), String::new(), 0),
            1 => ("Content-Length: 0".to_owned(), String::new(), 0),
            2 => (format!("Content-Length: {}", n * 40), "y".repeat(n * 40), n * 40),
            // What is sent on is one chunk a piece, so its length depends on how it is cut: here it is one byte.
            _ => ("Transfer-Encoding: chunked".to_owned(), "01\r\nz\r\n0\r\n\r\n".to_owned(), 11),
        };
        text += &format!("POST /{n} HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n{body}");
        wanted.push(format!("/{n}={size}"));
    }
    for half_closed in [false, true] {
        let mut client = Peer::connect(proxy.address).await;
        client.say(&text).await;
        if half_closed {
            client.end().await;
        }
        for wanted in &wanted {
            assert_eq!(&client.answer().await.1, wanted);
        }
        if half_closed {
            assert_eq!(client.rest().await, (String::new(), false));
        }
    }
    ended(&proxy, 120, "answered", 200).await;
    assert_eq!(script.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_trace_or_options_goes_no_further_than_it_may() {
    let (upstream, script) = answering(OK).await;
    let proxy = before(upstream, "", "").await;
    for method in ["TRACE", "OPTIONS"] {
        let head =
            forwarded(&proxy, &script, &format!("{method} / HTTP/1.1\r\nHost: test\r\nMax-Forwards: 5\r\n\r\n")).await;
        assert_eq!(field(&head, "max-forwards"), Some("4"), "{head}");
        let last = format!("{method} / HTTP/1.1\r\nHost: test\r\nMax-Forwards: 0\r\nConnection: close\r\n\r\n");
        let (answer, _) = ask(proxy.address, &last).await;
        assert!(status(&answer) == 405 && field(&answer, "allow").is_some(), "{answer}");
    }
    assert_eq!(script.count(), 2);
    // To other methods it means nothing (RFC 9110, 7.6.2).
    let head = forwarded(&proxy, &script, "GET / HTTP/1.1\r\nHost: test\r\nMax-Forwards: 0\r\n\r\n").await;
    assert_eq!(field(&head, "max-forwards"), Some("0"), "{head}");
}

#[tokio::test]
async fn nominated_trailers_do_not_pass() {
    let (upstream, heard) = super::kit::witness().await;
    let proxy = before(upstream, "", "").await;
    let post = |fields: &str| {
        format!(
            "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n{fields}\r\n1\r\nx\r\n0\r\nX-Hop: 1\r\n\r\n"
        )
    };
    ask(proxy.address, post("Connection: close\r\n")).await;
    assert!(String::from_utf8_lossy(&heard.lock().unwrap()).ends_with("0\r\nX-Hop: 1\r\n\r\n"));
    ask(proxy.address, post("Connection: close, X-Hop\r\n")).await;
    assert!(String::from_utf8_lossy(&heard.lock().unwrap()).ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn what_a_request_rests_on_cannot_be_nominated_away() {
    let (upstream, heard) = super::kit::witness().await;
    let proxy = before(upstream, "", "").await;
    for name in ["Host", "Idempotency-Key", "Cookie", "Sec-WebSocket-Key", "X-Forwarded-For", "Authorization"] {
        let (answer, _) =
            ask(proxy.address, format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: {name}\r\n\r\n")).await;
        assert_eq!(status(&answer), 400, "{name}: {answer}");
    }
    assert!(heard.lock().unwrap().is_empty());
}
