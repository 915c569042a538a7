//! Our engine over pipes, under the laws of a model that reads HTTP by itself: however bytes are cut, whatever they are and even when
//! serving panics.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

#[path = "fuzz/checks.rs"]
#[allow(dead_code, unused_imports, reason = "the fuzz targets make each check by name")]
mod checks;
mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::model;
use common::pipes::{End, Fate, Given, Got, Turn, Upstream, When, World, cut, cut_every, exchange, runtime};
use meridian::config::AccessLog;
use proptest::prelude::*;
use proptest::sample::Index;

/// What a client sends, what each upstream connection answers to its requests, and the statuses that the client gets.
type Case = (&'static [u8], &'static [(&'static [&'static [u8]], End)], &'static [u16]);

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Up: 1\r\n\r\nhi";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5;a=b\r\nhello\r\n007\r\n, world\r\n0\r\nX-Sum: 1\r\n\r\n";
const UNTIL_CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nto the end\r\n0\r\n\r\n";
const UPGRADE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n\x81\x02yo\x88\x00";

/// Good messages.
const CASES: &[Case] = &[
    (b"GET /a?b=c HTTP/1.1\r\nHost: test\r\nAccept: */*\r\n\r\n", &[(&[OK], End::Stays)], &[200]),
    (b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", &[(&[OK], End::Closes)], &[200]),
    (b"\r\nGET http://test/abs HTTP/1.1\r\nHost: test\r\nTE: trailers\r\n\r\n", &[(&[CHUNKED], End::Stays)], &[200]),
    (b"POST /p HTTP/1.1\r\nHost: test\r\nContent-Length: 11\r\n\r\nhello world", &[(&[OK], End::Stays)], &[200]),
    (
        b"POST /c HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=\"a;b\"\r\nhello\r\n0006\r\n world\r\n0\r\nX-Trailer: t\r\nHost: evil\r\n\r\n",
        &[(&[CHUNKED], End::Stays)],
        &[200],
    ),
    (
        b"GET /1 HTTP/1.1\r\nHost: test\r\n\r\nPOST /2 HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        &[(&[OK, CHUNKED, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"], End::Stays)],
        &[200, 200, 404],
    ),
    (
        b"HEAD /h HTTP/1.1\r\nHost: test\r\n\r\nGET /g HTTP/1.1\r\nHost: test\r\n\r\n",
        &[(&[b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", OK], End::Stays)],
        &[200, 200],
    ),
    (
        b"HEAD /h HTTP/1.1\r\nHost: test\r\n\r\nGET /g HTTP/1.1\r\nHost: test\r\n\r\n",
        &[(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", UNTIL_CLOSE], End::Closes)],
        &[200, 200],
    ),
    (
        b"POST /e HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
        &[(&[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"], End::Stays)],
        &[100, 201],
    ),
    (
        b"GET /hints HTTP/1.1\r\nHost: test\r\n\r\n",
        &[(&[b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 \r\n\r\nHTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx"], End::Stays)],
        &[103, 102, 200],
    ),
    (b"GET /u HTTP/1.1\r\nHost: test\r\n\r\n", &[(&[UNTIL_CLOSE], End::Closes)], &[200]),
    (b"GET /u HTTP/1.0\r\n\r\n", &[(&[UNTIL_CLOSE], End::Closes)], &[200]),
    (b"GET /c HTTP/1.0\r\nHost: test\r\nConnection: keep-alive\r\n\r\n", &[(&[CHUNKED], End::Stays)], &[200]),
    (
        b"GET /k HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /l HTTP/1.0\r\n\r\n",
        &[(&[OK], End::Closes), (&[b"HTTP/1.0 200 OK\r\n\r\nold"], End::Closes)],
        &[200, 200],
    ),
    (
        b"GET /n HTTP/1.1\r\nHost: test\r\n\r\nGET /m HTTP/1.1\r\nHost: test\r\n\r\nGET /o HTTP/1.1\r\nHost: test\r\n\r\n",
        &[(&[b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: \"a\"\r\n\r\n", OK], End::Stays)],
        &[204, 304, 200],
    ),
    (
        b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n\x81\x82abcdGET / HTTP/1.1\r\n",
        &[(&[UPGRADE], End::Closes)],
        &[101],
    ),
    // An answer with more bytes behind it, one that breaks off, one that is none: all on connections that are not used again.
    (
        b"GET /x HTTP/1.1\r\nHost: test\r\n\r\nGET /y HTTP/1.1\r\nHost: test\r\n\r\n",
        &[(&[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", OK], End::Stays), (&[OK], End::Stays)],
        &[200, 200],
    ),
    (b"GET /b HTTP/1.1\r\nHost: test\r\n\r\n", &[(&[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbroken"], End::Closes)], &[200]),
    (b"GET /b HTTP/1.1\r\nHost: test\r\n\r\n", &[(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX"], End::Stays)], &[200]),
    (b"GET /b HTTP/1.0\r\n\r\n", &[(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello"], End::Closes)], &[200]),
    (b"GET /r HTTP/1.1\r\nHost: test\r\n\r\n", &[(&[b"HTTP/2 200\r\n\r\n"], End::Stays), (&[b""], End::Closes), (&[OK], End::Stays)], &[200]),
    (b"GET /r HTTP/1.1\r\nHost: test\r\n\r\n", &[(&[b"what?\n"], End::Stays), (&[OK], End::Stays)], &[200]),
    // The answer of our own begins where the informational one ends.
    (b"GET /i HTTP/1.1\r\nHost: test\r\n\r\n", &[(&[b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/2\n"], End::Stays)], &[103, 502]),
    (b"GET / HTTP/1.1\r\nHost: test\r\n\r\nGET / HTTP/1.1\nHost: test\n\n", &[(&[OK], End::Stays)], &[200, 400]),
    (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nHost: test\r\n\r\n", &[], &[400]),
];

fn given(case: &Case) -> Given {
    let upstreams = case.1.iter().map(|(answers, end)| Upstream::answering(answers, *end)).collect();
    Given { client: vec![case.0.to_vec()], closes: false, upstreams, grain: 0 }
}

fn checked(given: &Given) -> Got {
    let got = exchange(given);
    if let Err(broken) = model::check(given, &got) {
        panic!("{broken}\n{}", got.shown(given));
    }
    got
}

fn recut(given: &Given, client: impl Fn(&[u8]) -> Vec<Vec<u8>>, upstream: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> Given {
    let mut again = given.clone();
    again.client = client(&given.client.concat());
    for turn in again.upstreams.iter_mut().flat_map(|upstream| &mut upstream.turns) {
        turn.pieces = upstream(&turn.pieces.concat());
    }
    again
}

#[test]
fn good_messages_pass_and_cuts_change_nothing() {
    for case in CASES {
        let given = given(case);
        let got = checked(&given);
        let want = model::understood(&given, &got);
        let statuses: Vec<_> = want.1.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, case.2, "{}", got.shown(&given));
        let same = |again: &Given| {
            let cut = checked(again);
            assert_eq!(model::understood(again, &cut), want, "{}", cut.shown(again));
            assert_eq!(cut.reset, got.reset);
        };
        for at in 1..case.0.len() {
            same(&recut(&given, |bytes| cut(bytes, &[at]), |bytes| cut(bytes, &[])));
        }
        let longest =
            given.upstreams.iter().flat_map(|upstream| &upstream.turns).map(|turn| turn.pieces[0].len()).max();
        for at in 1..longest.unwrap_or(0) {
            same(&recut(&given, |bytes| cut(bytes, &[]), |bytes| cut(bytes, &[at])));
        }
        for (step, grain) in [(0, 1), (1, 0), (1, 1), (2, 3), (3, 2), (7, 5)] {
            same(&Given { grain, ..recut(&given, |bytes| cut_every(bytes, step), |bytes| cut_every(bytes, step)) });
        }
    }
}

/// Replaces the first `from`, which is there.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

#[test]
fn the_model_sees_what_it_is_for() {
    let pipelined = CASES.iter().find(|case| case.2 == [200, 200, 404]).unwrap();
    let given = given(pipelined);
    let got = checked(&given);
    let refused = |what: &str, got: Got| assert!(model::check(&given, &got).is_err(), "{what}");
    let sent = |from, to| Got { upstreams: vec![replaced(&got.upstreams[0], from, to)], ..got.clone() };
    let answered = |from, to| Got { client: replaced(&got.client, from, to), ..got.clone() };
    refused("a request that nobody sent", sent("GET /3 ", "GET /evil "));
    refused("a request cut in two", sent("Content-Length: 3", "Content-Length: 0"));
    refused("another body", sent("abc", "abd"));
    refused("a field that nobody sent", sent("Host: test", "X-Evil: 1\r\nHost: test"));
    refused("two framings", sent("Content-Length: 3", "Content-Length: 3\r\nTransfer-Encoding: chunked"));
    refused("a bare LF", sent("Host: test\r\n", "Host: test\n"));
    refused("an answer of nobody's", answered("200 OK", "201 OK"));
    refused("another answer's body", answered("hi", "ho"));
    refused("a body without its framing", answered("Content-Length: 2\r\n", ""));
    refused("a size with zeros before it", answered("\r\n5\r\nhello", "\r\n05\r\nhello"));
    refused("an answer too many", Got { client: [&got.client[..], OK].concat(), ..got.clone() });
    let mut more = given.clone();
    more.upstreams[0].turns[0].pieces.push(OK.to_vec());
    assert!(model::check(&more, &got).is_err(), "a connection used again with bytes that nobody asked for");
}

/// One change of some bytes.
#[derive(Clone, Debug)]
enum Change {
    Insert(Index, Vec<u8>),
    Replace(Index, u8),
    Delete(Index, usize),
    Duplicate(Index, Index),
    Swap(Index, Index),
    /// A whole line, after one of the lines.
    Line(Index, &'static str),
}

const ODD: &[u8] = b"\r\n\0 \t:;,+-0123456789aAfFxX\"\\/#?*%_\x7f\x80\xff";
const BITS: &[&str] = &[
    "\r\n",
    "\r\n\r\n",
    "\n\n",
    "\r",
    "0\r\n\r\n",
    "chunked",
    "close",
    " HTTP/1.1",
    "HTTP/1.0",
    "\r\n ",
    "GET /evil HTTP/1.1\r\nHost: test\r\n\r\n",
    "HTTP/1.1 200 OK\r\n",
    "100",
    "204",
    "304",
    "HEAD",
];
const LINES: &[&str] = &[
    "Content-Length: 0",
    "Content-Length: 3",
    "Content-Length: 3, 3",
    "Content-Length: +3",
    "Content-Length : 3",
    "content-length:3",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding:\tchunked ",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer_Encoding: chunked",
    "Connection: close",
    "Connection: keep-alive",
    "Connection: Upgrade",
    "Connection: Content-Length",
    "Connection: x-up, transfer-encoding",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "Host: test",
    "Trailer: x",
    "TE: trailers",
    " folded",
    "no colon",
    ": no name",
];

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let index = any::<Index>;
    let odd = || prop::sample::select(ODD);
    let bits = prop_oneof![
        prop::collection::vec(odd(), 1..3),
        prop::sample::select(BITS).prop_map(|bits| bits.as_bytes().to_vec())
    ];
    let change = prop_oneof![
        (index(), bits).prop_map(|(at, bits)| Change::Insert(at, bits)),
        (index(), odd()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        (index(), 1usize..4).prop_map(|(at, count)| Change::Delete(at, count)),
        (index(), index()).prop_map(|(from, to)| Change::Duplicate(from, to)),
        (index(), index()).prop_map(|(a, b)| Change::Swap(a, b)),
        (index(), prop::sample::select(LINES)).prop_map(|(at, line)| Change::Line(at, line)),
    ];
    // Mostly good ones, or little would pass the first check.
    prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(change, 1..4)]
}

fn changed(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes {
        let length = bytes.len();
        if length == 0 {
            return bytes;
        }
        match change {
            Change::Insert(at, bits) => drop(bytes.splice(at.index(length)..at.index(length), bits.iter().copied())),
            Change::Replace(at, byte) => bytes[at.index(length)] = *byte,
            Change::Delete(at, count) => {
                let at = at.index(length);
                bytes.drain(at..(at + count).min(length));
            }
            Change::Duplicate(from, to) => {
                let (from, to) = (from.index(length).min(to.index(length)), from.index(length).max(to.index(length)));
                let part = bytes[from..to].to_vec();
                bytes.splice(to..to, part);
            }
            Change::Swap(a, b) => bytes.swap(a.index(length), b.index(length)),
            Change::Line(at, line) => {
                let ends: Vec<_> = (0..length).filter(|at| bytes[*at] == b'\n').map(|at| at + 1).collect();
                let at = if ends.is_empty() { length } else { *at.get(&ends) };
                bytes.splice(at..at, [line.as_bytes(), b"\r\n"].concat());
            }
        }
    }
    bytes
}

/// One request or more, and one answer, of the good ones.
fn parts() -> (Vec<&'static [u8]>, Vec<&'static [u8]>) {
    let answers = CASES.iter().flat_map(|case| case.1).flat_map(|(answers, _)| answers.iter().copied());
    (CASES.iter().map(|case| case.0).collect(), answers.collect())
}

fn upstreams() -> impl Strategy<Value = Vec<Upstream>> {
    let turn = (prop::sample::select(parts().1), changes(), prop::collection::vec(any::<Index>(), 0..3), any::<bool>())
        .prop_map(|(answer, changes, cuts, early)| {
            let bytes = changed(answer, &changes);
            let cuts: Vec<_> = cuts.iter().map(|at| at.index(bytes.len() + 1)).collect();
            Turn { when: if early { When::Head } else { When::Request }, pieces: cut(&bytes, &cuts) }
        });
    let fate = prop_oneof![8 => Just(Fate::Connects), 1 => Just(Fate::Refused)];
    let end = prop_oneof![Just(End::Stays), Just(End::Closes)];
    let takes = prop_oneof![8 => Just(usize::MAX), 1 => 0usize..300];
    let upstream = (fate, prop::collection::vec(turn, 0..4), end, takes)
        .prop_map(|(fate, turns, end, takes)| Upstream { fate, turns, end, takes });
    prop::collection::vec(upstream, 1..4)
}

fn odd_exchanges() -> impl Strategy<Value = Given> {
    let request = (prop::sample::select(parts().0), changes());
    let client = prop::collection::vec(request, 1..4);
    (
        client,
        prop::collection::vec(any::<Index>(), 0..4),
        any::<bool>(),
        upstreams(),
        prop_oneof![Just(0usize), 1usize..40],
    )
        .prop_map(|(client, cuts, closes, upstreams, grain)| {
            let bytes = client.iter().flat_map(|(request, changes)| changed(request, changes)).collect::<Vec<_>>();
            let cuts: Vec<_> = cuts.iter().map(|at| at.index(bytes.len() + 1)).collect();
            Given { client: cut(&bytes, &cuts), closes, upstreams, grain }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_odd_message_breaks_a_law(given in odd_exchanges()) {
        let got = exchange(&given);
        if let Err(broken) = model::check(&given, &got) {
            prop_assert!(false, "{broken}\n{}", got.shown(&given));
        }
    }
}

#[test]
fn seeds_of_the_fuzz_targets_hold() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds");
    for (name, check) in checks::ALL {
        let files: Vec<_> = fs::read_dir(seeds.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty());
        files.iter().for_each(|file| check(&fs::read(file).unwrap()));
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// The lines of the access log, once there are so many.
fn lines(path: &Path, count: usize) -> Vec<serde_json::Value> {
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(begun.elapsed() < common::process::PATIENCE, "only {lines:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_panic_ends_its_request_only() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let world = World::new(&AccessLog::File(log.clone()));
    let ok = || Upstream::answering(&[OK, OK], End::Stays);
    let connecting = Upstream { fate: Fate::Panics, ..ok() };
    let waiting = Upstream::answering(&[b"HTTP/1.1 200"], End::Panics);
    let hinting = Upstream::answering(&[b"HTTP/1.1 103 Early Hints\r\n\r\n"], End::Panics);
    let answering = Upstream::answering(&[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbro"], End::Panics);
    runtime().block_on(async {
        let engine = world.engine(&[ok(), connecting, waiting, hinting, answering, ok()], 0);
        let serve = async |bytes: &[u8]| {
            let (answer, reset) = engine.serve(vec![bytes.to_vec()], false).await;
            (String::from_utf8(answer).unwrap(), reset)
        };
        // A client that is in the middle of its connection while another one's request panics: its second request comes later.
        let (first, reset) = serve(&[GET, GET].concat()).await;
        assert!(first.matches("HTTP/1.1 200 OK").count() == 2 && !reset, "{first}");
        for _ in 0..2 {
            // What follows the request is not served: nobody knows where its body ends.
            let (answer, reset) = serve(&[GET, GET].concat()).await;
            assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("\r\nConnection: close\r\n"), "{answer}");
            assert!(answer.ends_with("500 internal error\n") && !reset, "{answer}");
        }
        let (answer, reset) = serve(GET).await;
        assert!(answer.starts_with("HTTP/1.1 103 ") && !answer.contains(" 200 ") && reset, "{answer}");
        let (answer, reset) = serve(GET).await;
        assert!(answer.ends_with("\r\n\r\nbro") && reset, "{answer}");
        let (answer, reset) = serve(GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && !reset, "{answer}");
    });
    let text = world.metrics.render(SystemTime::now());
    assert!(text.contains("meridian_request_panics_total{mover=\"native\"} 4"), "{text}");
    let lines = lines(&log, 7);
    let told: Vec<_> =
        lines.iter().map(|line| (line["status"].as_u64().unwrap(), line["outcome"].as_str().unwrap())).collect();
    assert_eq!(told[..2], [(200, "answered"), (200, "answered")]);
    assert_eq!(told[2..6], [(500, "internal"), (500, "internal"), (0, "internal"), (0, "internal")]);
    assert_eq!(told[6..], [(200, "answered")]);
}
