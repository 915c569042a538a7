//! Bodies both ways: framing written anew, trailers, early answers, halves closed, and HTTP/1.0.

use super::common::harness::{status, until};
use super::kit::{GET, OK, Peer, always, before, ended, field, fields};

#[tokio::test]
async fn trailers_pass_both_ways() {
    let (upstream, script) = always(|mut peer, script| async move {
        script.request(&mut peer.0).await;
        let got = peer.exactly("2\r\nhi\r\n0\r\nX-Sum: 1\r\nx-b: \r\n\r\n".len()).await;
        assert_eq!(got, "2\r\nhi\r\n0\r\nX-Sum: 1\r\nx-b: \r\n\r\n");
        peer.say("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2;a\r\nhi\r\n0;b\r\nX-Sum: 2\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\nSet-Cookie: a=b\r\n\r\n").await;
        script.request(&mut peer.0).await;
        peer.say(OK).await;
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let mut client = Peer::connect(proxy.address).await;
    let body = "2;ext=\"a;b\"\r\nhi\r\n00;last\r\nX-Sum: 1\r\nContent-Length: 7\r\nHost: evil\r\nTransfer-Encoding: x\r\nX-Forwarded-For: 1\r\nAuthorization: x\r\nx_y: 1\r\nx-b:\r\n\r\n";
    client
        .say(format!("POST / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))
        .await;
    let head = client.head().await;
    assert_eq!((field(&head, "transfer-encoding"), field(&head, "content-length")), (Some("chunked"), None), "{head}");
    assert_eq!(client.exactly(22).await, "2\r\nhi\r\n0\r\nX-Sum: 2\r\n\r\n", "{head}");
    client.say(GET).await;
    assert_eq!(client.answer().await.1, "good");
    ended(&proxy, 2, "answered", 200).await;
    assert_eq!(script.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_is_whole() {
    // The upload goes on while the answer comes, and whoever ends first: the answer is whole.
    let (upstream, _) = always(|mut peer, script| async move {
        script.request(&mut peer.0).await;
        peer.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n").await;
        assert_eq!(peer.exactly(4).await, "body");
        peer.say("3\r\nbye\r\n0\r\n\r\n").await;
        peer.rest().await;
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let mut client = Peer::connect(proxy.address).await;
    client.say("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((status(&head), field(&head, "connection")), (200, Some("close")), "{head}");
    assert_eq!(client.exactly(7).await, "2\r\nhi\r\n");
    client.say("body").await;
    assert_eq!(client.rest().await.0, "3\r\nbye\r\n0\r\n\r\n");
    ended(&proxy, 1, "answered", 200).await;

    // An upstream that answers and reads no more: the client gets the answer, however much it still sends.
    for then_closes in [false, true] {
        let (upstream, _) = always(move |mut peer, script| async move {
            script.request(&mut peer.0).await;
            peer.say("HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch").await;
            if !then_closes {
                std::future::pending::<()>().await;
            }
            peer.end().await;
        })
        .await;
        let proxy = before(upstream, "", "[services.web.timeouts]\nidle = \"600s\"").await;
        let mut client = Peer::connect(proxy.address).await;
        client.say("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2000000\r\n\r\n").await;
        let _ = client.try_say(vec![b'x'; 1_000_000]).await;
        let (head, body) = client.answer().await;
        assert_eq!((status(&head), body.as_str(), field(&head, "connection")), (413, "much", Some("close")), "{head}");
        ended(&proxy, 1, "answered", 413).await;
    }
}

#[tokio::test]
async fn a_client_may_close_its_side_after_the_request() {
    let (upstream, _) = always(|mut peer, script| async move {
        while let Some(head) = script.request(&mut peer.0).await {
            let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            peer.exactly(length).await;
            peer.hears_nothing().await;
            peer.say(OK).await;
        }
    })
    .await;
    let proxy = before(upstream, "", "").await;
    for request in [GET, super::kit::POST, "GET / HTTP/1.0\r\n\r\n"] {
        let mut client = Peer::connect(proxy.address).await;
        client.say(request).await;
        client.end().await;
        let (answer, reset) = client.rest().await;
        assert!(status(&answer) == 200 && answer.ends_with("good") && !reset, "{request}: {answer}");
    }
    ended(&proxy, 3, "answered", 200).await;
    // Inside the body it means that the client has left: nothing of it is a request.
    for part in [
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nhi",
        "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
    ] {
        let mut client = Peer::connect(proxy.address).await;
        client.say(part).await;
        client.end().await;
        let (answer, _) = client.rest().await;
        assert!(!answer.contains("200"), "{answer}");
    }
    ended(&proxy, 5, "client_gone", 0).await;
    // Inside a head nothing was asked for.
    for part in ["GET / HT", "GET / HTTP/1.1\r\nHost: test\r\n"] {
        let mut client = Peer::connect(proxy.address).await;
        client.say(part).await;
        client.end().await;
        assert!(!client.rest().await.0.contains("200"));
    }
    until("all are gone", || proxy.drain.open() == 0).await;
}

#[tokio::test]
async fn clients_of_http_1_0() {
    let (upstream, script) = always(|mut peer, script| async move {
        while let Some(head) = script.request(&mut peer.0).await {
            match head.split(' ').nth(1).unwrap() {
                "/chunked" => {
                    peer.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\nA: b\r\n\r\n")
                        .await
                }
                "/close" => return peer.say("HTTP/1.0 200 OK\r\n\r\ngood").await,
                "/old" => return peer.say("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ngood").await,
                _ => peer.say(OK).await,
            }
        }
    })
    .await;
    let proxy = before(upstream, "", "").await;
    let mut count = 0;
    for (target, has_length) in [("/", true), ("/chunked", false), ("/close", false), ("/old", true)] {
        for keep in [false, true] {
            let mut client = Peer::connect(proxy.address).await;
            let connection = if keep { "Connection: Keep-Alive\r\n" } else { "" };
            client.say(format!("GET {target} HTTP/1.0\r\nHost: test\r\n{connection}\r\n")).await;
            let head = client.head().await;
            assert_eq!(fields(&head, "transfer-encoding").count(), 0, "{head}");
            assert_eq!(field(&head, "content-length").is_some(), has_length, "{head}");
            let kept = keep && has_length;
            assert_eq!(field(&head, "connection"), Some(if kept { "keep-alive" } else { "close" }), "{target}: {head}");
            assert_eq!(client.exactly(4).await, "good", "{target}");
            count += 1;
            if kept {
                client.say("GET / HTTP/1.0\r\n\r\n").await;
                count += 1;
                assert!(client.rest().await.0.ends_with("\r\n\r\ngood"));
            } else {
                assert_eq!(client.rest().await, (String::new(), false), "{target}");
            }
        }
    }
    ended(&proxy, count, "answered", 200).await;
    assert!(script.requests.lock().unwrap().iter().all(|head| head.contains(" HTTP/1.1\r\n")));
}

#[tokio::test]
async fn bodies_until_the_close_become_chunks() {
    for said in [
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n",
        "HTTP/1.1 404 No\r\nConnection: close\r\n\r\n",
    ] {
        for body in ["", "good"] {
            let (upstream, script) = always(move |mut peer, script| async move {
                script.request(&mut peer.0).await;
                peer.say([said, body].concat()).await;
            })
            .await;
            let proxy = before(upstream, "", "").await;
            let mut client = Peer::connect(proxy.address).await;
            for _ in 0..2 {
                client.say(GET).await;
                let head = client.head().await;
                assert_eq!(field(&head, "transfer-encoding"), Some("chunked"), "{said:?}: {head}");
                assert_eq!((field(&head, "connection"), fields(&head, "keep-alive").count()), (None, 0), "{head}");
                let wanted = if body.is_empty() { "0\r\n\r\n" } else { "4\r\ngood\r\n0\r\n\r\n" };
                assert_eq!(client.exactly(wanted.len()).await, wanted, "{said:?}");
            }
            ended(&proxy, 2, "answered", status(said)).await;
            assert_eq!(script.connections.load(std::sync::atomic::Ordering::SeqCst), 2);
        }
    }
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    const LENGTH: usize = 3_000_000;
    let byte = |at: usize| (at * 31 % 251) as u8;
    let all: std::sync::Arc<Vec<u8>> = std::sync::Arc::new((0..LENGTH).map(byte).collect());
    let expected = std::sync::Arc::clone(&all);
    let (upstream, _) = always(move |mut peer, script| {
        let all = std::sync::Arc::clone(&expected);
        async move {
            // An echo, chunk by chunk of odd sizes, of a body whose framing we wrote.
            while let Some(head) = script.request(&mut peer.0).await {
                assert_eq!(field(&head, "content-length"), Some("3000000"), "{head}");
                let mut got = vec![0; LENGTH];
                tokio::io::AsyncReadExt::read_exact(&mut peer.0, &mut got).await.unwrap();
                assert!(got == *all);
                peer.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                for piece in got.chunks(33_333) {
                    peer.say(format!("{:X}\r\n", piece.len())).await;
                    peer.say(piece).await;
                    peer.say("\r\n").await;
                }
                peer.say("0\r\n\r\n").await;
            }
        }
    })
    .await;
    let proxy = before(upstream, "", "").await;
    for version in ["1.0", "1.1"] {
        let mut client = Peer::connect(proxy.address).await;
        client
            .say(format!("PUT / HTTP/{version}\r\nHost: test\r\nConnection: close\r\nContent-Length: {LENGTH}\r\n\r\n"))
            .await;
        client.say(all.as_slice()).await;
        assert_eq!(status(&client.head().await), 200);
        let (mut body, mut piece) = (Vec::new(), vec![0; 1 << 16]);
        // A slow reader: smaller and smaller sips.
        loop {
            let sip = 1 + (LENGTH - body.len().min(LENGTH)) % piece.len();
            let count = tokio::io::AsyncReadExt::read(&mut client.0, &mut piece[..sip]).await.unwrap();
            if count == 0 {
                break;
            }
            body.extend_from_slice(&piece[..count]);
            tokio::task::yield_now().await;
        }
        if version == "1.1" {
            body = unchunked(&body);
        }
        assert!(body == *all, "HTTP/{version}: {} bytes", body.len());
    }
    let lines = proxy.lines(2).await;
    assert_eq!((&lines[1]["bytes_in"], &lines[1]["bytes_out"]), (&LENGTH.into(), &LENGTH.into()), "{}", lines[1]);
    ended(&proxy, 2, "answered", 200).await;
}

/// The payload of a whole chunked body without trailers.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    loop {
        let end = body.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        body = &body[end + 2..];
        if size == 0 {
            assert_eq!(body, b"\r\n");
            return payload;
        }
        payload.extend_from_slice(&body[..size]);
        assert_eq!(&body[size..size + 2], b"\r\n");
        body = &body[size + 2..];
    }
}
