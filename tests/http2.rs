//! HTTP/2 from clients, over real sockets: by curl over TLS, by the h2 library, and frame by frame for what no good client sends.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use common::harness::{
    Proxy, answering, answering_once, config, listener, origin, raw, refusing, scripted, silent, status, until,
};
use common::http2::{connect, get, give, request, send, take};
use common::process::PATIENCE;
use h2::Reason;
use http::{HeaderMap, Request};
use meridian::config::{Engine, Listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TRUSTED: &str = "[client_ip]\ntrusted = [\"127.0.0.1\"]\n";

/// A listener that speaks HTTP/2 without TLS to this machine.
async fn proxy(config: &str) -> Proxy {
    Proxy::listening(Listen { http2: true, ..listener(Engine::Native) }, config, &[]).await
}

/// Over that one endpoint.
async fn over(endpoint: SocketAddr) -> Proxy {
    proxy(&config(TRUSTED, "", &[("only", endpoint)])).await
}

#[tokio::test]
async fn requests_are_served_at_once_and_logged_as_what_they_are() {
    let proxy = over(origin("only").await).await;
    let (client, _) = connect(proxy.address).await;
    let all = (0..100).map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move { get(&mut client, &format!("/{n}")).await })
    });
    for (n, answer) in all.collect::<Vec<_>>().into_iter().enumerate() {
        let (status, body) = answer.await.unwrap();
        assert_eq!(status, 200);
        assert!(body.contains(&format!("\"target\":\"/{n}\"")), "{body}");
        assert!(body.contains("\"via\":[\"2.0 meridian-test\"]") && body.contains("\"host\":[\"test\"]"), "{body}");
        assert!(!body.contains("connection") && !body.contains("transfer-encoding"), "{body}");
    }
    let lines = proxy.lines(100).await;
    assert!(
        lines
            .iter()
            .all(|line| line["protocol"] == "HTTP/2.0" && line["outcome"] == "answered" && line["mover"] == "native")
    );
    assert_eq!(proxy.drain.open(), 1);
}

#[tokio::test]
async fn the_rules_of_a_service_hold() {
    let rules = "https = \"redirect\"\nhsts = \"1d\"\nstrip_prefix = \"/api\"\n\
        headers.request.set = { X-Set = \"ours\" }\nheaders.response.set = { X-Set = \"ours\" }";
    let proxy = proxy(&config(TRUSTED, rules, &[("only", origin("only").await)])).await;
    let (mut client, _) = connect(proxy.address).await;
    let answer = send(&mut client, request("GET", "/api/x?y"), b"").await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (308, &"https://test/api/x?y".parse().unwrap())
    );
    let mut by_https = request("GET", "/api/x?y");
    by_https.headers_mut().insert("x-forwarded-proto", "https".parse().unwrap());
    let mut answer = send(&mut client, by_https, b"").await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["x-set"]), (200, &"ours".parse().unwrap()));
    assert_eq!(answer.headers()["strict-transport-security"], "max-age=86400");
    let body = String::from_utf8(take(answer.body_mut()).await.unwrap()).unwrap();
    assert!(body.contains("\"target\":\"/x?y\"") && body.contains("\"x-set\":[\"ours\"]"), "{body}");
    assert!(body.contains("\"x-forwarded-prefix\":[\"/api\"]"), "{body}");
}

#[tokio::test]
async fn bodies_pass_whole_in_both_directions_with_and_without_a_length() {
    const LENGTH: usize = 3 << 20;
    let body: Vec<u8> = (0..LENGTH).map(|n| ((n * 31) >> 3) as u8).collect();
    let (origin, script) = scripted(|mut stream, script| async move {
        while let Some(head) = script.request(&mut stream).await {
            let mut got = Vec::new();
            if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
                loop {
                    let mut line = Vec::new();
                    while !line.ends_with(b"\r\n") {
                        line.push(stream.read_u8().await.unwrap());
                    }
                    let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
                    let mut piece = vec![0; size + 2];
                    stream.read_exact(&mut piece).await.unwrap();
                    if size == 0 {
                        break;
                    }
                    got.extend_from_slice(&piece[..size]);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
                for piece in got.chunks(50_000) {
                    stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.unwrap();
                    stream.write_all(piece).await.unwrap();
                    stream.write_all(b"\r\n").await.unwrap();
                }
                stream.write_all(b"0\r\nx-sum: 7\r\n\r\n").await.unwrap();
            } else {
                got.resize(LENGTH, 0);
                stream.read_exact(&mut got).await.unwrap();
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
                stream.write_all(&got).await.unwrap();
            }
        }
    })
    .await;
    let proxy = over(origin).await;
    let (mut client, _) = connect(proxy.address).await;
    for with_length in [true, false] {
        let mut request = request("POST", "/");
        if with_length {
            request.headers_mut().insert("content-length", LENGTH.into());
        }
        client = client.ready().await.unwrap();
        let (answer, stream) = client.send_request(request, false).unwrap();
        let sending = tokio::spawn(give(stream, Bytes::from(body.clone())));
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().contains_key("content-length"), with_length);
        assert!(!answer.headers().contains_key("transfer-encoding"));
        let got = take(answer.body_mut()).await.unwrap();
        assert!(got == body, "{} bytes, with a length: {with_length}", got.len());
        sending.await.unwrap().unwrap();
        let trailers = answer.body_mut().trailers().await.unwrap();
        assert_eq!(
            trailers.and_then(|trailers| trailers.get("x-sum").cloned()),
            (!with_length).then(|| "7".parse().unwrap())
        );
    }
    assert_eq!(script.count(), 2);
}

#[tokio::test]
async fn trailers_and_informational_answers_pass() {
    let (origin, _) = scripted(|mut stream, script| async move {
        while script.request(&mut stream).await.is_some() {
            let mut rest = Vec::new();
            while !rest.ends_with(b"\r\n\r\n") {
                rest.push(stream.read_u8().await.unwrap());
            }
            let seen = String::from_utf8_lossy(&rest).replace("\r\n", "|");
            let answer = format!(
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}",
                seen.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = over(origin).await;
    let (client, _) = connect(proxy.address).await;
    let mut client = client.ready().await.unwrap();
    let mut asked = request("POST", "/");
    asked.headers_mut().insert("te", "trailers".parse().unwrap());
    let (answer, mut stream) = client.send_request(asked, false).unwrap();
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
    let mut answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(take(answer.body_mut()).await.unwrap(), b"3|abc|0|x-sum: 7||");
}

#[tokio::test]
async fn answers_without_a_body_end_at_once() {
    let (origin, _) = scripted(|mut stream, script| async move {
        while let Some(head) = script.request(&mut stream).await {
            let answer: &[u8] = match head.split(' ').nth(1).unwrap() {
                "/204" => b"HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
                _ => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            };
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let proxy = over(origin).await;
    let (mut client, _) = connect(proxy.address).await;
    for (method, path, expected) in [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/head", 200)] {
        let answer = send(&mut client, request(method, path), b"").await.unwrap();
        assert_eq!(answer.status(), expected);
        assert!(answer.body().is_end_stream(), "{method} {path}");
    }
}

#[tokio::test]
async fn a_region_that_refuses_is_left_as_for_any_client() {
    let (refuses, _socket) = refusing();
    let serves = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.0;
    let proxy = proxy(&config(TRUSTED, "", &[("near", refuses), ("far", serves)])).await;
    let (mut client, _) = connect(proxy.address).await;
    assert_eq!(get(&mut client, "/").await, (200, "ok".to_owned()));
    let answer = send(&mut client, request("POST", "/"), b"abc").await.unwrap();
    assert_eq!(answer.status(), 200);
    let lines = proxy.lines(2).await;
    assert!(lines.iter().all(|line| line["region"] == "far" && line["attempts"] == 2), "{lines:?}");
}

#[tokio::test]
async fn an_answer_that_breaks_resets_its_stream_and_no_other() {
    let (origin, _) = scripted(|mut stream, script| async move {
        while let Some(head) = script.request(&mut stream).await {
            let answer: &[u8] = match head.contains("/broken") {
                true => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
                false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            stream.write_all(answer).await.unwrap();
            if head.contains("/broken") {
                return;
            }
        }
    })
    .await;
    let proxy = over(origin).await;
    let (mut client, _) = connect(proxy.address).await;
    // A reset may overtake the answer's head.
    let error = match send(&mut client, request("GET", "/broken"), b"").await {
        Ok(mut answer) => take(answer.body_mut()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
    assert_eq!(get(&mut client, "/").await, (200, "ok".to_owned()));
    assert_eq!(proxy.lines(2).await[0]["outcome"], "answer_broken");
}

#[tokio::test]
async fn a_client_that_cancels_is_gone() {
    let (origin, script) = silent().await;
    let proxy = over(origin).await;
    let (client, _) = connect(proxy.address).await;
    let mut client = client.ready().await.unwrap();
    let (answer, mut stream) = client.send_request(request("GET", "/"), true).unwrap();
    until("the upstream has it", || script.count() == 1).await;
    stream.send_reset(Reason::CANCEL);
    drop(answer);
    let lines = proxy.lines(1).await;
    assert_eq!((lines[0]["outcome"].as_str(), lines[0]["status"].as_u64()), (Some("client_gone"), Some(0)));
}

#[tokio::test]
async fn what_http_1_refuses_is_refused_here_too() {
    let proxy = over(answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.0).await;
    let (mut client, _) = connect(proxy.address).await;
    let mut rows: Vec<(Request<()>, u16)> = vec![
        (Request::builder().uri("http://test/../x").body(()).unwrap(), 400),
        (Request::builder().uri("http://te_st:99999/").body(()).unwrap(), 400),
        (Request::builder().method("CONNECT").uri("test:443").body(()).unwrap(), 405),
        (request("GET", "/"), 200),
    ];
    let mut other_host = request("GET", "/");
    other_host.headers_mut().insert("host", "other".parse().unwrap());
    rows.push((other_host, 400));
    for (request, expected) in rows {
        let shown = format!("{request:?}");
        let answer = send(&mut client, request, b"").await.unwrap();
        assert_eq!(answer.status().as_u16(), expected, "{shown}");
    }
    // Blanks around a value cannot be passed on.
    let mut blank = request("GET", "/");
    blank.headers_mut().insert("x", http::HeaderValue::from_bytes(b" a").unwrap());
    assert_eq!(send(&mut client, blank, b"").await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR));
    // A head that is too long.
    let mut long = request("GET", "/");
    long.headers_mut().insert("x", "y".repeat(40 << 10).parse().unwrap());
    assert_eq!(send(&mut client, long, b"").await.unwrap().status(), 431);
    assert_eq!(get(&mut client, "/").await.0, 200);
}

/// A connection that speaks in frames.
struct Frames(TcpStream);

impl Frames {
    async fn connect(address: SocketAddr) -> Frames {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut frames = Frames(stream);
        frames.send(4, 0, 0, &[]).await.unwrap();
        frames
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.0.write_all(&frame).await
    }

    /// The reason of the farewell. Whatever else comes is read over.
    async fn farewell(&mut self) -> Option<u32> {
        self.first(|kind, payload| (kind == 7 && payload[7] != 0).then(|| u32::from(payload[7]))).await
    }

    /// The first frame of which something is made; `None`: the connection ended before.
    async fn first<T>(&mut self, made: impl Fn(u8, &[u8]) -> Option<T>) -> Option<T> {
        let read = async {
            loop {
                let mut header = [0; 9];
                self.0.read_exact(&mut header).await.ok()?;
                let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
                self.0.read_exact(&mut payload).await.ok()?;
                if let Some(made) = made(header[3], &payload) {
                    return Some(made);
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("it comes")
    }
}

#[tokio::test]
async fn what_the_library_lets_pass_is_refused() {
    let (origin, script) = silent().await;
    let proxy = over(origin).await;
    let get = [0x82, 0x86, 0x84, 0x41, 4, b't', b'e', b's', b't'];
    // Trailers with a pseudo-header field among them end their stream, and no other.
    let mut frames = Frames::connect(proxy.address).await;
    frames.send(1, 4, 1, &get).await.unwrap();
    frames.send(1, 5, 1, &[0x42, 3, b'2', b'0', b'0']).await.unwrap();
    let reset = |kind: u8, payload: &[u8]| (kind == 3).then(|| payload.to_vec());
    assert_eq!(frames.first(reset).await, Some(vec![0, 0, 0, 1]));
    frames.send(1, 5, 3, &get).await.unwrap();
    until("the next request is there", || script.requests.lock().unwrap().iter().any(|head| !head.contains("chunked")))
        .await;
    // SETTINGS come first.
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut frames = Frames(stream);
    frames.send(6, 0, 0, &[0; 8]).await.unwrap();
    assert_eq!(frames.farewell().await, Some(1));
}

#[tokio::test]
async fn floods_are_told_to_calm_down() {
    let (origin, _) = silent().await;
    let proxy = over(origin).await;
    // `GET http://test/`, by the static table: method, scheme, path, and the authority as a literal.
    let get = [0x82, 0x86, 0x84, 0x41, 4, b't', b'e', b's', b't'];
    let floods: [(&str, u8, u8, &[u8]); 5] = [
        ("ping", 6, 0, &[0; 8]),
        ("settings", 4, 0, &[]),
        ("priority", 2, 0, &[0, 0, 0, 0, 7]),
        ("window", 8, 0, &[0, 0, 0, 1]),
        ("unknown", 0x77, 0, &[]),
    ];
    for (what, kind, flags, payload) in floods {
        let mut frames = Frames::connect(proxy.address).await;
        let stream = if kind == 2 { 1 } else { 0 };
        for _ in 0..4_000 {
            if frames.send(kind, flags, stream, payload).await.is_err() {
                break;
            }
        }
        assert_eq!(frames.farewell().await, Some(11), "{what}");
    }
    // Requests that are cancelled as soon as they are made.
    let mut frames = Frames::connect(proxy.address).await;
    for n in 0..4_000u32 {
        if frames.send(1, 5, 2 * n + 1, &get).await.is_err()
            || frames.send(3, 0, 2 * n + 1, &[0, 0, 0, 8]).await.is_err()
        {
            break;
        }
    }
    assert_eq!(frames.farewell().await, Some(11), "rapid reset");
    // An endless body of nothing.
    let mut frames = Frames::connect(proxy.address).await;
    frames.send(1, 4, 1, &get).await.unwrap();
    for _ in 0..4_000 {
        if frames.send(0, 0, 1, &[]).await.is_err() {
            break;
        }
    }
    assert_eq!(frames.farewell().await, Some(11), "empty data");
    // An endless head.
    let mut frames = Frames::connect(proxy.address).await;
    frames.send(1, 0, 1, &get).await.unwrap();
    for _ in 0..4_000 {
        if frames.send(9, 0, 1, &[]).await.is_err() {
            break;
        }
    }
    assert!(frames.farewell().await.is_some(), "continuation");
    // Cancelled with some patience: more than come with their requests.
    let mut frames = Frames::connect(proxy.address).await;
    for n in 0..4_000u32 {
        if n % 60 == 59 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if frames.send(1, 5, 2 * n + 1, &get).await.is_err() {
            break;
        }
        if n >= 60 && frames.send(3, 0, 2 * (n - 60) + 1, &[0, 0, 0, 8]).await.is_err() {
            break;
        }
    }
    assert_eq!(frames.farewell().await, Some(11), "requests taken back");
    // Streams that were cancelled are over.
    until("nothing is in flight", || proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn what_good_clients_do_ends_no_connection() {
    let (origin, _) = scripted(|mut stream, script| async move {
        while let Some(head) = script.request(&mut stream).await {
            if head.starts_with("POST") {
                // Chunks of a body, read away to the last.
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n0\r\n\r\n") {
                    seen.push(stream.read_u8().await.unwrap());
                }
            }
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                return;
            }
        }
    })
    .await;
    let proxy = over(origin).await;
    let (mut client, _) = connect(proxy.address).await;
    // Many small pieces of a body, faster than they are read.
    client = client.ready().await.unwrap();
    let (answer, mut stream) = client.send_request(request("POST", "/"), false).unwrap();
    for n in 0..3_000 {
        stream.send_data(Bytes::from_static(b"twenty bytes of this"), n == 2_999).unwrap();
    }
    assert_eq!(tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap().status(), 200);
    // Malformed requests, one after the other.
    for _ in 0..200 {
        let mut odd = request("GET", "/");
        odd.headers_mut().insert("x", http::HeaderValue::from_bytes(b" a").unwrap());
        assert!(send(&mut client, odd, b"").await.is_err());
    }
    assert_eq!(get(&mut client, "/").await, (200, "ok".to_owned()));
    // More streams at once than there may be.
    let mut frames = Frames::connect(proxy.address).await;
    let get = [0x82, 0x86, 0x84, 0x41, 4, b't', b'e', b's', b't'];
    for n in 0..300u32 {
        frames.send(1, 5, 2 * n + 1, &get).await.unwrap();
    }
    let mut answered = 0;
    while answered < 128 {
        let mut header = [0; 9];
        frames.0.read_exact(&mut header).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
        frames.0.read_exact(&mut payload).await.unwrap();
        assert_ne!(header[3], 7, "a farewell: {payload:?}");
        answered += usize::from(header[3] == 1);
    }
}

#[tokio::test]
async fn answers_on_their_way_are_not_cut_by_the_idle_timeout() {
    const LENGTH: usize = 60_000;
    let body: &'static str = Box::leak(
        format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n{}", "x".repeat(LENGTH)).into_boxed_str(),
    );
    let origin = answering(body).await.0;
    let limits = "[limits]\nidle_timeout = \"200ms\"\n";
    let proxy = proxy(&config(&format!("{TRUSTED}{limits}"), "", &[("only", origin)])).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut frames = Frames(socket.connect(proxy.address).await.unwrap());
    frames.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    // A window of 16 MiB for each stream and for all.
    frames.send(4, 0, 0, &[0, 4, 1, 0, 0, 0]).await.unwrap();
    frames.send(8, 0, 0, &[1, 0, 0, 0]).await.unwrap();
    let get = [0x82, 0x86, 0x84, 0x41, 4, b't', b'e', b's', b't'];
    for n in 0..20u32 {
        frames.send(1, 5, 2 * n + 1, &get).await.unwrap();
    }
    // Far slower than it could be, but steadily.
    let (mut ended, mut bytes) = (0, 0);
    while ended < 20 {
        let mut header = [0; 9];
        frames.0.read_exact(&mut header).await.expect("it goes on");
        let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
        frames.0.read_exact(&mut payload).await.expect("it goes on");
        if header[3] == 0 {
            bytes += payload.len();
            ended += usize::from(header[4] & 1);
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }
    assert_eq!(bytes, 20 * LENGTH);
}

#[tokio::test]
async fn silence_ends_a_connection() {
    let origin = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.0;
    let limits = "[limits]\nheader_timeout = \"200ms\"\nidle_timeout = \"300ms\"\n";
    let proxy = proxy(&config(&format!("{TRUSTED}{limits}"), "", &[("only", origin)])).await;
    // Before a request, and between requests; pings are no requests.
    let mut silent = Frames::connect(proxy.address).await;
    let pinging = async {
        while silent.send(6, 0, 0, &[0; 8]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, pinging).await.expect("it ends");
    let (mut client, connection) = connect(proxy.address).await;
    assert_eq!(get(&mut client, "/").await.0, 200);
    tokio::time::timeout(PATIENCE, connection).await.expect("it ends").unwrap().unwrap();
    until("nobody is left", || proxy.drain.open() == 0).await;
}

#[tokio::test]
async fn a_head_that_does_not_end_ends_its_connection_whichever_it_is() {
    let origin = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.0;
    let limits = "[limits]\nheader_timeout = \"300ms\"\nidle_timeout = \"1h\"\n";
    let proxy = proxy(&config(&format!("{TRUSTED}{limits}"), "", &[("only", origin)])).await;
    let get = [0x82, 0x86, 0x84, 0x41, 4, b't', b'e', b's', b't'];
    let ended = |kind: u8, _: &[u8]| (kind == 0).then_some(());
    // Cut between two frames, and within one; the second is dripped on.
    for (flags, sent) in [(1, &get[..]), (5, &get[..3])] {
        let mut frames = Frames::connect(proxy.address).await;
        frames.send(1, 5, 1, &get).await.unwrap();
        frames.first(ended).await.expect("the first request is answered");
        let header = [&[0, 0, get.len() as u8, 1, flags, 0, 0, 0, 3], sent].concat();
        frames.0.write_all(&header).await.unwrap();
        assert_eq!(frames.farewell().await, Some(11), "{flags}");
    }
    // One that comes in pieces but in time is as good as any other.
    let mut frames = Frames::connect(proxy.address).await;
    for stream in [1, 3, 5] {
        frames.send(1, 1, stream, &get[..3]).await.unwrap();
        tokio::task::yield_now().await;
        frames.send(9, 4, stream, &get[3..]).await.unwrap();
        frames.first(ended).await.expect("it is answered");
    }
    until("nobody else is left", || proxy.drain.open() == 1).await;
}

#[tokio::test]
async fn a_connection_ends_after_so_many_requests() {
    let origin = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.0;
    let proxy = proxy(&config(&format!("{TRUSTED}[limits]\nrequests = 3\n"), "", &[("only", origin)])).await;
    let (mut client, connection) = connect(proxy.address).await;
    for _ in 0..3 {
        assert_eq!(get(&mut client, "/").await.0, 200);
    }
    drop(client);
    tokio::time::timeout(PATIENCE, connection).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn only_trusted_peers_speak_it_without_tls() {
    let origin = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.0;
    let stranger = proxy(&config("[client_ip]\ntrusted = [\"192.0.2.1\"]\n", "", &[("only", origin)])).await;
    let answer = raw(stranger.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(status(&answer), 400, "{answer}");
    // HTTP/1.1 is spoken beside it, also when it begins alike and comes in pieces.
    let proxy = over(origin).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in ["P", "RI", "VATE / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"] {
        stream.write_all(piece.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    let mut frames = TcpStream::connect(proxy.address).await.unwrap();
    frames.set_nodelay(true).unwrap();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        frames.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    // Settings.
    let mut header = [0; 9];
    frames.read_exact(&mut header).await.unwrap();
    assert_eq!(header[3], 4);
}

#[tokio::test]
async fn a_drain_says_farewell_and_lets_requests_end() {
    let (gate, open) = tokio::sync::watch::channel(false);
    let (origin, script) = answering_once(open, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let proxy = over(origin).await;
    let (client, connection) = connect(proxy.address).await;
    let (idle, idles) = connect(proxy.address).await;
    let mut asking = client.clone();
    let answer = tokio::spawn(async move { get(&mut asking, "/").await });
    until("the upstream has it", || script.count() == 1).await;
    proxy.drain.begin();
    tokio::time::timeout(PATIENCE, idles).await.expect("it ends").unwrap().unwrap();
    drop(idle);
    // No further request is taken.
    until("the farewell came", || {
        let ready = std::pin::pin!(client.clone().ready());
        matches!(futures_poll(ready), Some(Err(_)))
    })
    .await;
    gate.send(true).unwrap();
    assert_eq!(answer.await.unwrap(), (200, "ok".to_owned()));
    drop(client);
    tokio::time::timeout(PATIENCE, connection).await.expect("it ends").unwrap().unwrap();
    assert_eq!(proxy.drain.wait(PATIENCE).await, 0);
}

/// What a future is when polled once.
fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn one_who_takes_nothing_holds_up_nobody_else() {
    const LENGTH: usize = 8 << 20;
    let (origin, _) = scripted(|mut stream, script| async move {
        while let Some(head) = script.request(&mut stream).await {
            let length = if head.contains("/long") { LENGTH } else { 2 };
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await.unwrap();
            if stream.write_all(&vec![b'x'; length]).await.is_err() {
                return;
            }
        }
    })
    .await;
    let limits = "[limits]\nbody_timeout = \"60s\"\n";
    let proxy = proxy(&config(
        &format!("{TRUSTED}{limits}"),
        "[services.web.timeouts]\nidle = \"500ms\"\n",
        &[("only", origin)],
    ))
    .await;
    let (mut client, _) = connect(proxy.address).await;
    let mut long = send(&mut client, request("GET", "/long"), b"").await.unwrap();
    assert_eq!(get(&mut client, "/").await.0, 200);
    // Its window never opens: it is cut, and what it was sent is not whole.
    let lines = proxy.lines(2).await;
    assert!(lines.iter().any(|line| line["outcome"] == "client_slow"), "{lines:?}");
    assert!(take(long.body_mut()).await.is_err());
    assert_eq!(get(&mut client, "/").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_speaks_it_over_tls() {
    let (origin, script) = answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
    let text = format!(
        "[regions.only]\n[services.web]\n[services.web.health]\nkind = \"none\"\n[services.web.pools.only]\nendpoints = [\"{origin}\"]\n"
    );
    let listen = "tls = { certificates = [{ cert = \"site.pem\", key = \"site.key\" }] }\n";
    let proxy = common::process::Proxy::start_with(listen, &text, |folder| {
        let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-subj",
                "/CN=x",
            ])
            .args([
                "-addext",
                "subjectAltName=DNS:www.example.com",
                "-days",
                "9",
                "-keyout",
                &at("site.key"),
                "-out",
                &at("site.pem"),
            ])
            .output()
            .expect("openssl is needed (tests/setup.sh)");
        assert!(made.status.success(), "{made:?}");
    })
    .await;
    let port = proxy.listen.port();
    let url = format!("https://www.example.com:{port}/");
    let output = Command::new("curl")
        .args(["-sS", "--http2", "--cacert"])
        .arg(proxy.folder().join("site.pem"))
        .args(["--resolve", &format!("www.example.com:{port}:127.0.0.1"), "-w", " %{http_version} %{http_code}\n"])
        .args([&url, "--next", "-sS", "--http2", "--cacert"])
        .arg(proxy.folder().join("site.pem"))
        .args([
            "--resolve",
            &format!("www.example.com:{port}:127.0.0.1"),
            "-w",
            " %{http_version} %{http_code}\n",
            "-d",
            "abc",
            &url,
        ])
        .output()
        .expect("curl is needed (tests/setup.sh)");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "hello 2 200\nhello 2 200\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(script.requests.lock().unwrap().iter().all(|head| head.contains("x-forwarded-proto: https")));
    proxy.until("both lines", async || proxy.access_log().matches("\"protocol\":\"HTTP/2.0\"").count() == 2).await;
}

#[tokio::test]
async fn behind_a_proxy_header_it_is_spoken_for_whoever_is_named() {
    let origin = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.0;
    let listen = Listen { http2: true, proxy_protocol: true, ..listener(Engine::Native) };
    let proxy = Proxy::listening(listen, &config(TRUSTED, "", &[("only", origin)]), &[]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"PROXY TCP4 198.51.100.9 203.0.113.7 1 80\r\n").await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let _connection = tokio::spawn(connection);
    assert_eq!(get(&mut client, "/").await, (200, "ok".to_owned()));
    let line = &proxy.lines(1).await[0];
    assert_eq!((line["client"].as_str(), line["protocol"].as_str()), (Some("198.51.100.9"), Some("HTTP/2.0")));
}
