//! What is refused of clients: the right status, the connection's end, and not a byte of it upstream.

use super::common::harness::{Proxy, config, status};
use super::kit::{Peer, before, field, witness};

/// Follows every refused request in the same write: nobody may ever take it for a request of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n";

/// Each of `rows` is refused with that status and outcome, in one piece and cut anywhere.
async fn refused(proxy: &Proxy, heard: &std::sync::Mutex<Vec<u8>>, rows: &[(Vec<u8>, u16, &str)]) {
    // All in one piece first: of those cut, what upstreams hear comes when it comes.
    for piece in [usize::MAX, 5] {
        for (bytes, code, _) in rows {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
            let mut client = Peer::connect(proxy.address).await;
            let all = [bytes.as_slice(), SMUGGLED.as_bytes()].concat();
            for part in all.chunks(piece.min(all.len()).max(all.len() / 50)) {
                // It may have been refused before all of it was said.
                if client.try_say(part).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let (answer, _) = client.rest().await;
            assert_eq!(status(&answer), *code, "{shown:?} in pieces of {piece}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "one answer only to {shown:?}: {answer}");
            assert_eq!(field(&answer, "connection"), Some("close"), "{shown:?}: {answer}");
            let length = field(&answer, "content-length").map(|length| length.parse::<usize>().unwrap());
            assert_eq!(length, Some(answer.split_once("\r\n\r\n").unwrap().1.len()), "{shown:?}: {answer}");
            let heard = String::from_utf8_lossy(&std::mem::take(&mut *heard.lock().unwrap())).into_owned();
            // Of a body in pieces, what came before the fault is on its way already.
            assert!(!heard.contains("smuggled"), "{shown:?} let through {heard:?}");
            assert!(piece == 5 || heard.is_empty(), "{shown:?} let through {heard:?}");
        }
    }
    // Each row was sent twice.
    let lines = proxy.lines(2 * rows.len()).await;
    for (at, line) in lines.iter().enumerate() {
        let (bytes, code, outcome) = &rows[at % rows.len()];
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
        assert_eq!((&line["outcome"], &line["status"]), (&(*outcome).into(), &(*code).into()), "{shown:?}: {line}");
    }
    assert_eq!((lines.len(), proxy.in_flight()), (2 * rows.len(), 0));
}

fn rows(code: u16, outcome: &'static str, texts: &[&str]) -> Vec<(Vec<u8>, u16, &'static str)> {
    texts.iter().map(|text| (text.as_bytes().to_vec(), code, outcome)).collect()
}

#[tokio::test]
async fn lines_and_fields_that_break_the_grammar() {
    let (upstream, heard) = witness().await;
    let proxy = before(upstream, "", "").await;
    let mut all = rows(
        400,
        "bad_request",
        &[
            // Line ends.
            "GET / HTTP/1.1\nHost: test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\n\n",
            "GET / HTTP/1.1\r\nHost: test\n\n",
            "GET / HTTP/1.1\r\rHost: test\r\n\r\n",
            "GET / HTTP/1.1\rHost: test\r\r",
            "GET / HTTP/1.1\r\nHost: test\r\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA: b\rX: c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA: b\r\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA: \r\r\n\r\n",
            "GET / HTTP/1.1\r\r\nHost: test\r\n\r\n",
            "GET /\r HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET\r/ HTTP/1.1\r\nHost: test\r\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: test\r\n\r\n",
            "\rGET / HTTP/1.1\r\nHost: test\r\n\r\n",
            "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: test\r\n\r\n",
            // Fields.
            "GET / HTTP/1.1\r\nHost: test\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA: b\r\n\tc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA:\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: test\r\n\r\n",
            "GET / HTTP/1.1\r\n\tA: b\r\nHost: test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA\t: b\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: test\r\nContent-Length : 2\r\n\r\nhi",
            "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\n:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA b: c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA(b): c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\n\"A\": c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nA;b: c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\n\u{e9}: c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding\u{b}: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding\u{a0}: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\u{c}\r\n\r\n0\r\n\r\n",
            // The request line.
            "GET  / HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET /  HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: test\r\n\r\n",
            "GET / HTTP/1.1 x\r\nHost: test\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET /\tHTTP/1.1\r\nHost: test\r\n\r\n",
            "GET / a HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET  HTTP/1.1\r\nHost: test\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET@ / HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET: / HTTP/1.1\r\nHost: test\r\n\r\n",
            // Versions.
            "GET /\r\n\r\n",
            "GET /\r\n",
            "GET / \r\n\r\n",
            "GET / HTTP/0.9\r\nHost: test\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: test\r\n\r\n",
            "GET / HTTP/1.\r\nHost: test\r\n\r\n",
            "GET / HTTP/1\r\nHost: test\r\n\r\n",
            "GET / HTTP/1.10\r\nHost: test\r\n\r\n",
            "GET / HTTP/01.1\r\nHost: test\r\n\r\n",
            "GET / HTTP/1.1.1\r\nHost: test\r\n\r\n",
            "GET / HTTP/2\r\nHost: test\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: test\r\n\r\n",
            "GET / HTTP/3.0\r\nHost: test\r\n\r\n",
            "GET / HTTP/9.9\r\nHost: test\r\n\r\n",
            "GET / http/1.1\r\nHost: test\r\n\r\n",
            "GET / HTTP 1.1\r\nHost: test\r\n\r\n",
            "GET / HTTP/1,1\r\nHost: test\r\n\r\n",
            "GET / HTTP/-1.1\r\nHost: test\r\n\r\n",
            "GET / HTTPS/1.1\r\nHost: test\r\n\r\n",
            "GET / ICY/1.1\r\nHost: test\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "SSH-2.0-OpenSSH_9.6\r\n",
            "hello\r\n",
            "{\"json\": 1}\r\n\r\n",
            // Nominations of what later hops rely on.
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: close, Host\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: X-Forwarded-For\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: authorization\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: test\r\nConnection: Content-Length\r\nContent-Length: 2\r\n\r\nhi",
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q\r\n\r\n",
        ],
    );
    // TLS, a proxy's binary preamble, and nothing at all in any protocol.
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"\r\n\r\n\0\r\nQUIT\n", b"\0\0\0\0", b"\xff"]
    {
        all.push((garbage.to_vec(), 400, "bad_request"));
    }
    refused(&proxy, &heard, &all).await;
}

#[tokio::test]
async fn control_bytes_anywhere() {
    let (upstream, heard) = witness().await;
    let proxy = before(upstream, "", "").await;
    let mut all = Vec::new();
    for byte in (0..=31).chain([127]) {
        for (before, after) in [
            ("GET /a", "b HTTP/1.1\r\nHost: test\r\n\r\n"),
            ("GE", "T / HTTP/1.1\r\nHost: test\r\n\r\n"),
            ("GET / HTTP/1", ".1\r\nHost: test\r\n\r\n"),
            ("GET / HTTP/1.1\r\nHost: te", "st\r\n\r\n"),
            ("GET / HTTP/1.1\r\nHost: test\r\nA", "b: c\r\n\r\n"),
            ("GET / HTTP/1.1\r\nHost: test\r\nA: b", "c\r\n\r\n"),
        ] {
            let in_value = before.ends_with(": b");
            let in_host = before.ends_with("te");
            // A tab is a space within values.
            if byte == b'\t' && in_value {
                continue;
            }
            let outcome = if byte == b'\t' && in_host { "bad_host" } else { "bad_request" };
            all.push(([before.as_bytes(), &[byte], after.as_bytes()].concat(), 400, outcome));
        }
    }
    // Targets are visible ASCII.
    for byte in [0x80, 0xa0, 0xc3, 0xff, b'#'] {
        all.push(([b"GET /a", &[byte][..], b"b HTTP/1.1\r\nHost: test\r\n\r\n"].concat(), 400, "bad_request"));
    }
    refused(&proxy, &heard, &all).await;
}

#[tokio::test]
async fn targets_and_hosts_that_name_nothing() {
    let (upstream, heard) = witness().await;
    let proxy = before(upstream, "", "").await;
    let mut all = rows(
        400,
        "bad_request",
        &[
            "GET a HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET test HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET test:80 HTTP/1.1\r\nHost: test:80\r\n\r\n",
            "GET ?a HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: test\r\n\r\n",
            "OPTIONS ** HTTP/1.1\r\nHost: test\r\n\r\n",
            "OPTIONS *?a HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET \\a HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET ftp://test/ HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET file:///etc/passwd HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET http:/test/ HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET http:test/ HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: test\r\n\r\n",
        ],
    );
    all.extend(rows(
        400,
        "bad_host",
        &[
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \t \r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\r\nhOST: other\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: test\r\nHost: test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test, other\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test,test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: te st\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user:pw@test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test:\u{e9}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: t\u{e9}st\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test:x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test:+80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test:-80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test:65536\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test:80:80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test:80 \t80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test/\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test/a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test\\a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test?a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: test#a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: http://test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \"test\"\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: <test>\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: te%st\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1%25lo]\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [test]\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: []\r\n\r\n",
            // The target's own authority.
            "GET http://test/ HTTP/1.1\r\nHost: other\r\n\r\n",
            "GET http://test/ HTTP/1.1\r\nHost: test:81\r\n\r\n",
            "GET http://test:443/ HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET https://test:80/ HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET http://test/ HTTP/1.1\r\n\r\n",
            "GET http://test/ HTTP/1.1\r\nHost:\r\n\r\n",
            "GET http://test/ HTTP/1.0\r\nHost: other\r\n\r\n",
            "GET http:/// HTTP/1.1\r\nHost:\r\n\r\n",
            "GET http:///a HTTP/1.0\r\n\r\n",
            "GET http://user@test/ HTTP/1.1\r\nHost: user@test\r\n\r\n",
            "GET http://user@test/ HTTP/1.1\r\nHost: test\r\n\r\n",
            "GET http://user@test/ HTTP/1.0\r\n\r\n",
            "GET http://te,st/ HTTP/1.0\r\n\r\n",
            "GET https://test:x/ HTTP/1.0\r\n\r\n",
        ],
    ));
    all.extend(rows(
        400,
        "bad_path",
        &["GET /../a HTTP/1.1\r\nHost: test\r\n\r\n", "GET /a/%2e%2e/../b HTTP/1.1\r\nHost: test\r\n\r\n"],
    ));
    refused(&proxy, &heard, &all).await;
}

#[tokio::test]
async fn bodies_that_can_be_read_in_two_ways() {
    let (upstream, heard) = witness().await;
    let proxy = before(upstream, "", "").await;
    let mut all = Vec::new();
    for framing in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\ncontent-length: 0",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\ncontent-length: 0",
        "Content-Length: 5, 5",
        "Content-Length: 5,6",
        "Content-Length: 5,",
        "Content-Length: ,5",
        "Content-Length:",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: -0",
        "Content-Length: 5.0",
        "Content-Length: 5e0",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 5\t5",
        "Content-Length: 5;",
        "Content-Length: \"5\"",
        "Content-Length: five",
        "Content-Length: \u{ff15}",
        "Content-Length: 1_0",
        "Content-Length: 9223372036854775808",
        "Content-Length: 18446744073709551616",
        "Content-Length: 18446744073709551621",
        "Content-Length: 00000000000000000005",
        "Content-Length: 99999999999999999999999999999999999999999",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: chunke",
        "Transfer-Encoding: chunked chunked",
        "Transfer-Encoding: cow",
        "Transfer-Encoding:",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:\r\nTransfer-Encoding: chunked",
    ] {
        for method in ["POST", "GET", "DELETE"] {
            let text = format!("{method} / HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n0\r\n\r\n");
            all.push((text.into_bytes(), 400, "bad_request"));
        }
    }
    for text in [
        "POST / HTTP/1.0\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: test\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: identity\r\n\r\n",
    ] {
        all.push((text.as_bytes().to_vec(), 400, "bad_request"));
    }
    refused(&proxy, &heard, &all).await;
}

#[tokio::test]
async fn chunks_that_break_a_rule() {
    let (upstream, heard) = witness().await;
    let proxy = before(upstream, "", "").await;
    let long_extension = format!("2;{}\r\nhi\r\n0\r\n\r\n", "a".repeat(300));
    let long_trailer = format!("0\r\nA: {}\r\n\r\n", "a".repeat(9_000));
    let mut all = Vec::new();
    for body in [
        "\r\n0\r\n\r\n",
        "\n",
        ";a\r\n",
        "g\r\n",
        "-2\r\nhi\r\n0\r\n\r\n",
        "+2\r\nhi\r\n0\r\n\r\n",
        "0x2\r\nhi\r\n0\r\n\r\n",
        "2h\r\nhi\r\n0\r\n\r\n",
        "2.\r\nhi\r\n0\r\n\r\n",
        "2_0\r\nhi\r\n0\r\n\r\n",
        " 2\r\nhi\r\n0\r\n\r\n",
        "2 \r\nhi\r\n0\r\n\r\n",
        "2\t\r\nhi\r\n0\r\n\r\n",
        "2\0\r\nhi\r\n0\r\n\r\n",
        "2\nhi\r\n0\r\n\r\n",
        "2\rhi\r\n0\r\n\r\n",
        "2\r\r\nhi\r\n0\r\n\r\n",
        "2\r\nhi\n0\r\n\r\n",
        "2\r\nhi\r0\r\n\r\n",
        "2\r\nhi0\r\n\r\n",
        "2\r\nhi!\r\n0\r\n\r\n",
        "2\r\nh\r\n0\r\n\r\n",
        "2\r\nhi\r\n\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\n\r\n",
        "2\r\nhi\r\n0\r\n\n",
        "2\r\nhi\r\n0\r\nx\r\n\r\n",
        "2\r\nhi\r\n0\r\n0\r\n\r\n",
        "2\r\nhi\r\n-0\r\n\r\n",
        // Sizes that overflow something.
        "8000000000000000\r\nhi",
        "ffffffffffffffff\r\nhi",
        "fffffffffffffffff\r\nhi",
        "10000000000000000\r\nhi",
        "10000000000000002\r\nhi\r\n0\r\n\r\n",
        "00000000000000002\r\nhi\r\n0\r\n\r\n",
        "100000002\u{b0}\r\nhi\r\n0\r\n\r\n",
        // Extensions.
        "2;\r\nhi\r\n0\r\n\r\n",
        "2;a=\r\nhi\r\n0\r\n\r\n",
        "2;=b\r\nhi\r\n0\r\n\r\n",
        "2;a=b=c\r\nhi\r\n0\r\n\r\n",
        "2;a b\r\nhi\r\n0\r\n\r\n",
        "2;a=\"b\r\nhi\r\n0\r\n\r\n",
        "2;a=\"b\"c\r\nhi\r\n0\r\n\r\n",
        "2;a=\"\\\r\nhi\r\n0\r\n\r\n",
        "2;a\nhi\r\n0\r\n\r\n",
        "2;a\rb\r\nhi\r\n0\r\n\r\n",
        "2;\nhi\r\n0\r\n\r\n",
        "2;a\0b\r\nhi\r\n0\r\n\r\n",
        "2,a\r\nhi\r\n0\r\n\r\n",
        // Trailers.
        "0\r\nA : b\r\n\r\n",
        "0\r\n A: b\r\n\r\n",
        "0\r\nA: b\r\n c\r\n\r\n",
        "0\r\nA: b\n\r\n",
        "0\r\nA: b\0\r\n\r\n",
        "0\r\nA: b\rc\r\n\r\n",
        "0\r\n: b\r\n\r\n",
        "0\r\nGET /smuggle HTTP/1.1\r\nHost: test\r\n\r\n",
        &long_extension,
        &long_trailer,
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        all.push((text.into_bytes(), 400, "bad_request"));
    }
    refused(&proxy, &heard, &all).await;
}

#[tokio::test]
async fn what_is_too_long_or_not_served() {
    let (upstream, heard) = witness().await;
    let more = "[limits]\nuri = \"1KiB\"\nheaders = 20\nheader_bytes = \"4KiB\"";
    let proxy = before(upstream, more, "max_body = \"1KiB\"").await;
    let long = |count: usize| "x".repeat(count);
    let all = [
        (431, "head_too_large", format!("GET / HTTP/1.1\r\nHost: test\r\nA: {}\r\n\r\n", long(4_096))),
        (431, "head_too_large", format!("GET / HTTP/1.1\r\nHost: test\r\nA: {}\r\n\r\n", long(400_000))),
        (431, "head_too_large", format!("GET / HTTP/1.1\r\nHost: test\r\n{}: a\r\n\r\n", long(5_000))),
        (431, "head_too_large", format!("GET / HTTP/1.1\r\nHost: test\r\n{}", "A: b\r\n".repeat(1_000))),
        (431, "head_too_large", format!("GET / HTTP/1.1\r\nHost: test\r\n{}\r\n", "A: b\r\n".repeat(20))),
        (431, "head_too_large", format!("GET / HTTP/1.1\r\nHost: test\r\n{}\r\n", "A:\r\n".repeat(200))),
        (414, "target_too_long", format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", long(1_024))),
        (414, "target_too_long", format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", long(400_000))),
        (414, "target_too_long", format!("GET /?{} HTTP/1.1\r\nHost: test\r\n\r\n", long(4_500))),
        (413, "body_too_large", "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1025\r\n\r\n".to_owned()),
        (413, "body_too_large", "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 999999999999999999\r\n\r\n".into()),
        (
            413,
            "body_too_large",
            "POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 1025\r\n\r\n".to_owned(),
        ),
        (
            413,
            "body_too_large",
            format!(
                "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n401\r\n{}\r\n0\r\n\r\n",
                long(0x401)
            ),
        ),
        (
            413,
            "body_too_large",
            format!(
                "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n{}\r\n1\r\nx\r\n0\r\n\r\n",
                long(0x400)
            ),
        ),
        (405, "connect", "CONNECT test:443 HTTP/1.1\r\nHost: test:443\r\n\r\n".to_owned()),
        (405, "connect", "CONNECT / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned()),
        (405, "connect", "CONNECT test:443 HTTP/1.0\r\n\r\n".to_owned()),
        (
            405,
            "connect",
            "CONNECT test:443 HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
        ),
    ];
    let all: Vec<_> = all.into_iter().map(|(code, outcome, text)| (text.into_bytes(), code, outcome)).collect();
    refused(&proxy, &heard, &all).await;
}

#[tokio::test]
async fn what_is_just_inside_the_rules_is_served() {
    let (upstream, _) = super::kit::always(|mut peer, script| async move {
        while let Some(head) = script.request(&mut peer.0).await {
            if let Some(length) = field(&head, "content-length") {
                peer.exactly(length.parse().unwrap()).await;
            } else if field(&head, "transfer-encoding").is_some() {
                while !peer.head().await.ends_with("0\r\n\r\n") {}
            }
            peer.say(super::kit::OK).await;
        }
    })
    .await;
    let more = "[limits]\nuri = \"1KiB\"\nheaders = 20\nheader_bytes = \"4KiB\"";
    let proxy = before(upstream, more, "max_body = \"1KiB\"").await;
    let long = |count: usize| "x".repeat(count);
    let rows = [
        "GET / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost:test\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhOsT: \t test \t \r\nA:\r\nB: \tc\td\t\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: test:\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: test:65535\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: test.\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a_b.test\r\n\r\n".to_owned(),
        "GET //a//b HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "GET /?a=/../b HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "GET /~a;b=c:d@e!$&'()*+,=[]|^`{}<>\" HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "M-SEARCH / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "get / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "GET HTTP://TEST/ HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "GET http://test:80/ HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "GET http://test/ HTTP/1.1\r\nHost: test:80\r\n\r\n".to_owned(),
        "GET https://test/ HTTP/1.1\r\nHost: test:443\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: test\r\nA: \u{e9}\u{ff}\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", long(1_023)),
        format!("GET / HTTP/1.1\r\nHost: test\r\nA: {}\r\n\r\n", long(4_000)),
        format!("GET / HTTP/1.1\r\nHost: test\r\n{}\r\n", "A: b\r\n".repeat(19)),
        format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1024\r\n\r\n{}", long(1_024)),
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 000000000000000002\r\n\r\nhi".to_owned(),
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n".to_owned(),
        format!(
            "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: CHUNKED\r\n\r\n400\r\n{}\r\n0\r\n\r\n",
            long(0x400)
        ),
        "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: \tchunked \r\n\r\n0000000000000002;a=\"b\\\"\";c\r\nhi\r\n000;x\r\n\r\n"
            .to_owned(),
    ];
    // All on one connection: each ended where the engine thought it ended.
    let mut client = Peer::connect(proxy.address).await;
    for text in &rows {
        client.say(text).await;
        let (head, body) = client.answer().await;
        assert!(status(&head) == 200 && body == "good", "{text}: {head}");
    }
    super::kit::ended(&proxy, rows.len(), "answered", 200).await;
}

#[tokio::test]
async fn a_refusal_without_a_fault_of_form_keeps_the_connection() {
    let (upstream, _) = witness().await;
    let proxy = Proxy::start(&config("", "hosts = [\"test\"]\npaths = [\"/a\"]", &[("only", upstream)]), &[]).await;
    let mut client = Peer::connect(proxy.address).await;
    for (request, code) in [
        ("GET /b HTTP/1.1\r\nHost: test\r\n\r\n", 404),
        ("GET /a HTTP/1.1\r\nHost: other\r\n\r\n", 421),
        ("GET /a HTTP/1.1\r\nHost: test\r\n\r\n", 200),
    ] {
        client.say(request).await;
        let (head, _) = client.answer().await;
        assert_eq!((status(&head), field(&head, "connection")), (code, None), "{head}");
    }
    // The answer to a HEAD has no body, also when it is ours.
    client.say("HEAD /b HTTP/1.1\r\nHost: test\r\n\r\nGET /a HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let head = client.head().await;
    assert!(status(&head) == 404 && field(&head, "content-length").is_some_and(|length| length != "0"), "{head}");
    assert_eq!(status(&client.answer().await.0), 200);
    // With a body that nobody read, it ends.
    client
        .say("POST /b HTTP/1.1\r\nHost: test\r\nContent-Length: 36\r\n\r\nGET /a HTTP/1.1\r\nHost: smuggled\r\n\r\n")
        .await;
    let (answer, _) = client.rest().await;
    assert_eq!((status(&answer), field(&answer, "connection")), (404, Some("close")), "{answer}");
    super::kit::ended(&proxy, 6, "no_path", 404).await;
}
