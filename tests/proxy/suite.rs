//! The tests of both movers: a module of this file is named after the one it tests.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::common::harness::{
    Proxy, Script, answering, config, found_down, origin, raw, refusing, scripted, silent, status, until,
};
use super::common::http::{connect, request, send};
use super::common::process::PATIENCE;
use meridian::config::Engine;
use meridian::state::Sender;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
/// Far longer than a test is patient.
const PATIENT: &str = "[services.web.timeouts]\nfirst_byte = \"600s\"\nrequest = \"3600s\"\n";
const QUICK: &str = "[services.web.timeouts]\nfirst_byte = \"100ms\"\nconnect = \"1s\"\n";

/// The module's name is the mover's.
fn mover() -> &'static str {
    module_path!().rsplit("::").next().unwrap()
}

fn engine() -> Engine {
    if mover() == "native" { Engine::Native } else { Engine::Pingora }
}

async fn start(config: &str, down: &[&str]) -> Proxy {
    Proxy::start_on(engine(), config, down).await
}

async fn live(config: &str) -> (Proxy, Sender) {
    Proxy::live_on(engine(), config).await
}

async fn seen(proxy: &Proxy, headers: &[(&str, &str)]) -> Value {
    let answer = request(proxy.address, "GET", "/a?b=c", headers).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["via"], "1.1 meridian-lab");
    assert!(!answer.headers.contains_key("server"), "{:?}", answer.headers);
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn upstreams_see_what_we_say_of_a_stranger() {
    let only = origin("only").await;
    let proxy = start(&config("[pop]\nname = \"lab\"", "", &[("only", only)]), &[]).await;
    let claims = [
        ("x-forwarded-for", "1.2.3.4"),
        ("forwarded", "for=1.2.3.4"),
        ("x-request-id", "0123456789abcdef0123456789abcdef"),
        ("connection", "x-secret"),
        ("x-secret", "1"),
        ("te", "gzip"),
        ("upgrade", "h2c"),
        ("x_underscore", "1"),
        ("proxy", "x"),
    ];
    let report = seen(&proxy, &claims).await;
    let headers = &report["headers"];
    assert_eq!(report["target"], "/a?b=c");
    assert_eq!(headers["host"][0], "test");
    assert_eq!(headers["x-forwarded-for"], serde_json::json!(["127.0.0.1"]));
    assert_eq!(headers["x-forwarded-proto"][0], "http");
    assert_eq!(headers["x-forwarded-host"][0], "test");
    assert_eq!(headers["via"], serde_json::json!(["1.1 meridian-lab"]));
    let id = headers["x-request-id"][0].as_str().unwrap();
    assert!(id.len() == 32 && id != "0123456789abcdef0123456789abcdef");
    for gone in ["forwarded", "connection", "x-secret", "te", "upgrade", "x_underscore", "proxy", "transfer-encoding"] {
        assert!(headers.get(gone).is_none(), "{gone}: {headers}");
    }
    let line = &proxy.lines(1).await[0];
    assert_eq!(
        (&line["status"], &line["mover"], &line["attempts"]),
        (&200.into(), &mover().into(), &1.into()),
        "{line}"
    );
}

#[tokio::test]
async fn a_trusted_peer_is_believed_and_continued() {
    let only = origin("only").await;
    let more = "[pop]\nname = \"lab\"\n[client_ip]\ntrusted = [\"127.0.0.0/8\"]\nheader = \"forwarded\"";
    let proxy = start(&config(more, "", &[("only", only)]), &[]).await;
    let said = [
        ("forwarded", "for=81.2.69.142"),
        ("x-forwarded-for", "81.2.69.142"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "01234567-89ab-cdef-0123-456789abcdef"),
    ];
    let headers = &seen(&proxy, &said).await["headers"];
    assert_eq!(headers["forwarded"][0], "for=81.2.69.142, for=127.0.0.1;host=\"test\";proto=http");
    assert_eq!(headers["x-forwarded-for"][0], "81.2.69.142, 127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"][0], "https");
    assert_eq!(headers["x-request-id"][0], "01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(proxy.lines(1).await[0]["client"], "81.2.69.142");
}

#[tokio::test]
async fn a_new_name_of_the_pop_is_in_via_without_a_restart() {
    let only = origin("only").await;
    let text = config("[pop]\nname = \"one\"", "", &[("only", only)]);
    let (proxy, sender) = live(&text).await;
    assert_eq!(request(proxy.address, "GET", "/", &[]).await.unwrap().headers["via"], "1.1 meridian-one");
    let new = super::common::world::compile(&text.replace("\"one\"", "\"two\""));
    let atlas = std::sync::Arc::new(meridian::geo::AtlasBuilder::new().build());
    sender.publish(meridian::steering::View::compile(new.fleet, atlas, None), new.edge).await;
    assert_eq!(request(proxy.address, "GET", "/", &[]).await.unwrap().headers["via"], "1.1 meridian-two");
}

#[tokio::test]
async fn requests_that_break_a_rule_are_refused() {
    let only = origin("only").await;
    let more = "[pop]\nname = \"lab\"\n[limits]\nuri = \"1KiB\"\nheaders = 20\nheader_bytes = \"2KiB\"";
    let service = "hosts = [\"test\", \"*.test\"]\npaths = [\"/good\"]\nmax_body = \"1KiB\"";
    let proxy = start(&config(more, service, &[("only", only)]), &[]).await;
    let long = "x".repeat(1100);
    let huge = "x".repeat(2100);
    let many = "a: b\r\n".repeat(21);
    let rows = [
        (200, "GET /good HTTP/1.1\r\nHost: TEST:80\r\n\r\n".to_owned()),
        (200, "GET http://a.test/good HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        (400, "GET /good HTTP/1.1\r\n\r\n".to_owned()),
        (400, "GET /good HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n".to_owned()),
        (400, "GET /good HTTP/1.1\r\nHost: te st\r\n\r\n".to_owned()),
        (400, "GET /good HTTP/1.1\r\nHost:\r\n\r\n".to_owned()),
        (400, "GET http://a.test/good HTTP/1.1\r\nHost: b.test\r\n\r\n".to_owned()),
        (400, "GET good HTTP/1.1\r\nHost: test\r\n\r\n".to_owned()),
        (400, "GET /good HTTP/1.1\r\nHost: test\r\nConnection: X-Forwarded-For\r\n\r\n".to_owned()),
        (400, "POST /good HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx".to_owned()),
        (400, "POST /good HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n".to_owned()),
        (400, "GET /good/../../x HTTP/1.1\r\nHost: test\r\n\r\n".to_owned()),
        (404, "GET /bad HTTP/1.1\r\nHost: test\r\n\r\n".to_owned()),
        (405, "CONNECT test:80 HTTP/1.1\r\nHost: test:80\r\n\r\n".to_owned()),
        (413, "POST /good HTTP/1.1\r\nHost: test\r\nContent-Length: 2000\r\n\r\n".to_owned()),
        (413, format!("POST /good HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n44c\r\n{long}\r\n")),
        (414, format!("GET /good?{long} HTTP/1.1\r\nHost: test\r\n\r\n")),
        (421, "GET /good HTTP/1.1\r\nHost: other\r\n\r\n".to_owned()),
        (431, format!("GET /good HTTP/1.1\r\nHost: test\r\na: {huge}\r\n\r\n")),
        (431, format!("GET /good HTTP/1.1\r\nHost: test\r\n{many}\r\n")),
        (508, "GET /good HTTP/1.1\r\nHost: test\r\nVia: 1.1 meridian-lab, 1.1 meridian-lab\r\n\r\n".to_owned()),
    ];
    for (expected, text) in &rows {
        let text = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        let answer = raw(proxy.address, text.as_bytes()).await;
        assert_eq!(status(&answer), *expected, "{text}\n{answer}");
        // Some pingora refuses itself, before anybody is asked; those have no body.
        assert!(!answer.contains("Pingora") || engine() == Engine::Pingora && answer.ends_with("\r\n\r\n"), "{answer}");
    }
    assert_eq!(proxy.in_flight(), 0);
}

#[tokio::test]
async fn regions_that_are_out_are_named_in_the_answer() {
    let only = origin("only").await;
    let service = "residency = [{ from = [\"continent:EU\"], to = [\"only\"] }]";
    let proxy = start(&config("", service, &[("only", only)]), &[]).await;
    let answer = raw(proxy.address, GET).await;
    assert_eq!(status(&answer), 451);
    assert!(answer.contains("residency"), "{answer}");

    let proxy = start(&config("", "panic = \"refuse\"", &[("only", only)]), &["only"]).await;
    let answer = raw(proxy.address, GET).await;
    assert!(status(&answer) == 503 && answer.contains("unhealthy"), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after:"), "{answer}");

    let text = config("", "", &[("only", only)]).replace("[regions.only]", "[regions.only]\nstate = \"maint\"");
    let proxy = start(&text, &[]).await;
    let answer = raw(proxy.address, GET).await;
    assert!(status(&answer) == 503 && answer.contains("no_region"), "{answer}");
    assert_eq!(proxy.lines(1).await[0]["outcome"], "no_region");
}

#[tokio::test]
async fn a_refused_connection_fails_over_whatever_the_method() {
    let (dead, _bound) = refusing();
    let alive = origin("alive").await;
    let proxy = start(&config("", "", &[("dead", dead), ("alive", alive)]), &[]).await;
    for request in [GET, POST] {
        let answer = raw(proxy.address, request).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.contains("\"region\":\"alive\""), "{answer}");
    }
    let line = &proxy.lines(2).await[1];
    assert_eq!((&line["attempts"], &line["reason"]), (&2.into(), &"failover".into()), "{line}");

    let proxy = start(&config("", "", &[("dead", dead)]), &[]).await;
    let mut connection = connect(proxy.address).await.unwrap();
    let answer = send(&mut connection, "GET", "/", &[]).await.unwrap();
    assert_eq!(answer.status, 502);
    match engine() {
        // Whole requests leave the client's connection as it was.
        Engine::Native => assert_eq!(send(&mut connection, "GET", "/", &[]).await.unwrap().status, 502),
        // With pingora it does not outlive a failed attempt, and a client that would keep it is told so.
        Engine::Pingora => assert_eq!(answer.headers["connection"], "close"),
    }
    assert_eq!(proxy.lines(1).await[0]["outcome"], "connect_failed");
}

#[tokio::test]
async fn a_connection_lost_before_the_answer_is_retried_for_get_only() {
    let (lossy, script) = scripted(|mut stream, script| async move {
        script.request(&mut stream).await;
    })
    .await;
    let alive = origin("alive").await;
    let proxy = start(&config("", "", &[("lossy", lossy), ("alive", alive)]), &[]).await;
    assert_eq!(status(&raw(proxy.address, GET).await), 200);
    let before = script.count();
    assert_eq!(status(&raw(proxy.address, POST).await), 502);
    assert_eq!(script.count(), before + 1);
    assert_eq!(proxy.lines(2).await[1]["outcome"], "reset");
}

#[tokio::test]
async fn an_idempotency_key_allows_what_the_service_allows() {
    let (busy, _) = answering(BUSY).await;
    let alive = origin("alive").await;
    let regions = [("busy", busy), ("alive", alive)];
    let post = "POST / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nIdempotency-Key: 1\r\nContent-Length: 0\r\n\r\n";
    let proxy = start(&config("", "[services.web.retry]\nidempotency_key = true", &regions), &[]).await;
    assert_eq!(status(&raw(proxy.address, post.as_bytes()).await), 200);
    let proxy = start(&config("", "", &regions), &[]).await;
    assert_eq!(status(&raw(proxy.address, post.as_bytes()).await), 503);
}

#[tokio::test]
async fn a_503_is_taken_elsewhere_for_get_and_passed_on_for_post() {
    let (busy, script) = answering(BUSY).await;
    let alive = origin("alive").await;
    let proxy = start(&config("", "", &[("busy", busy), ("alive", alive)]), &[]).await;
    assert_eq!(status(&raw(proxy.address, GET).await), 200);
    let answer = raw(proxy.address, POST).await;
    assert!(status(&answer) == 503 && answer.ends_with("busy"), "{answer}");
    assert_eq!(script.count(), 2);

    // Nowhere better to go: the upstream's own answer stands.
    let proxy = start(&config("", "[services.web.retry]\nattempts = 1", &[("busy", busy)]), &[]).await;
    let answer = raw(proxy.address, GET).await;
    assert!(status(&answer) == 503 && answer.ends_with("busy"), "{answer}");
    assert_eq!(proxy.lines(1).await[0]["outcome"], "answered");
}

#[tokio::test]
async fn nothing_is_retried_once_the_answer_has_begun() {
    let (half, _) = scripted(|mut stream, script| async move {
        script.request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
        // What pingora reads together with the end it does not pass on.
        tokio::time::sleep(Duration::from_millis(100)).await;
    })
    .await;
    let (other, script) = answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother").await;
    let proxy = start(&config("", "", &[("half", half), ("other", other)]), &[]).await;
    let answer = raw(proxy.address, GET).await;
    assert!(answer.ends_with("half") && answer.to_lowercase().contains("content-length: 100"), "{answer}");
    assert_eq!(script.count(), 0);
    assert_eq!(proxy.lines(1).await[0]["outcome"], "answer_broken");
}

#[tokio::test]
async fn what_is_no_answer_is_a_502() {
    for nonsense in ["HTTP/1.1 abc\r\n\r\n", "\0\0\0\0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"] {
        let (bad, _) = answering(nonsense).await;
        let proxy = start(&config("", "", &[("bad", bad)]), &[]).await;
        assert_eq!(status(&raw(proxy.address, POST).await), 502, "{nonsense:?}");
        assert_eq!(proxy.lines(1).await[0]["outcome"], "bad_answer", "{nonsense:?}");
    }
}

#[tokio::test]
async fn a_silent_upstream_is_left_in_time() {
    let (mute, script) = silent().await;
    let alive = origin("alive").await;
    let proxy = start(&config("", QUICK, &[("mute", mute), ("alive", alive)]), &[]).await;
    assert_eq!(status(&raw(proxy.address, GET).await), 200);
    assert_eq!(status(&raw(proxy.address, POST).await), 504);
    assert_eq!(proxy.lines(2).await[1]["outcome"], "first_byte_timeout");
    assert_eq!(script.count(), 2);

    // All attempts together are bounded too.
    let service = "[services.web.timeouts]\nfirst_byte = \"200ms\"\nrequest = \"300ms\"\n";
    let proxy = start(&config("", service, &[("mute", mute)]), &[]).await;
    let begun = Instant::now();
    assert_eq!(status(&raw(proxy.address, GET).await), 504);
    assert!(begun.elapsed() >= Duration::from_millis(150) && begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    proxy.lines(1).await;
}

#[tokio::test]
async fn a_waiting_get_leaves_an_endpoint_that_is_found_down() {
    let (mute, _) = silent().await;
    let alive = origin("alive").await;
    let text = config("", "", &[("mute", mute), ("alive", alive)]).replace("\"none\"", "\"tcp\"");
    let text = text + PATIENT;
    let (proxy, sender) = live(&text).await;
    let get = tokio::spawn(raw(proxy.address, GET));
    let post = tokio::spawn(raw(proxy.address, POST));
    until("both wait", || proxy.in_flight() == 2).await;
    found_down(&proxy, &sender, 0, 0).await;
    let answer = tokio::time::timeout(PATIENCE, get).await.unwrap().unwrap();
    assert!(status(&answer) == 200 && answer.contains("alive"), "{answer}");
    assert_eq!(proxy.in_flight(), 1, "the POST waits on");
    post.abort();
    proxy.lines(2).await;
}

/// An upstream that gives each connection's first request this answer, once the gate opens.
async fn gated(opened: watch::Receiver<bool>, answer: &'static str) -> (SocketAddr, Script) {
    scripted(move |mut stream, script| {
        let mut opened = opened.clone();
        async move {
            script.request(&mut stream).await;
            opened.wait_for(|open| *open).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn a_waiting_get_goes_to_the_endpoint_beside() {
    let (mute, there) = silent().await;
    let alive = origin("alive").await;
    let text = config("", PATIENT, &[("only", mute)]).replace("\"none\"", "\"tcp\"");
    let text = text.replace(&format!("[\"{mute}\"]"), &format!("[\"{mute}\", \"{alive}\"]"));
    let (proxy, sender) = live(&text).await;
    // Until one of them is where nobody answers.
    let mut asking = Vec::new();
    while there.count() == 0 {
        let get = tokio::spawn(raw(proxy.address, GET));
        until("it is there, or answered", || there.count() > 0 || get.is_finished()).await;
        asking.push(get);
    }
    found_down(&proxy, &sender, 0, 0).await;
    for get in asking {
        let answer = tokio::time::timeout(PATIENCE, get).await.unwrap().unwrap();
        assert!(status(&answer) == 200 && answer.contains("alive"), "{answer}");
    }
}

#[tokio::test]
async fn a_retry_is_not_where_it_is_known_to_be_in_vain() {
    let (gate, opened) = watch::channel(false);
    let (late, there) = gated(opened, BUSY).await;
    let (mute, fallen) = silent().await;
    let alive = origin("alive").await;
    let service = format!("[services.web.retry]\nattempts = 2\n{PATIENT}");
    let text = config("", &service, &[("a", late), ("b", mute), ("c", alive)]).replace("\"none\"", "\"tcp\"");
    let (proxy, sender) = live(&text).await;
    let get = tokio::spawn(raw(proxy.address, GET));
    until("it waits", || there.count() == 1).await;
    // Since it was decided where the request may go.
    found_down(&proxy, &sender, 1, 0).await;
    gate.send_replace(true);
    let answer = tokio::time::timeout(PATIENCE, get).await.unwrap().unwrap();
    assert!(status(&answer) == 200 && answer.contains("alive"), "{answer}");
    assert_eq!((fallen.count(), &proxy.lines(1).await[0]["attempts"]), (0, &2.into()));
}

#[tokio::test]
async fn a_long_answer_after_a_retry_takes_nothing_from_the_budget() {
    let (busy, _) = answering(BUSY).await;
    let (endless, there) = scripted(|mut stream, script| async move {
        script.request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nand then").await;
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let proxy = start(&config("", "", &[("busy", busy), ("endless", endless)]), &[]).await;
    let mut clients = Vec::new();
    for count in 1..=6 {
        if count == 4 {
            // Three may begin in a second, whatever else was asked for.
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        // Each has its answer's beginning, and none its end.
        let mut byte = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut byte)).await.unwrap().unwrap();
        assert_eq!((&byte, there.count()), (b"HTTP/1.1 200", count));
        clients.push(stream);
    }
}

#[tokio::test]
async fn a_waiting_get_without_leave_to_go_waits_on() {
    let (gate, opened) = watch::channel(false);
    let late = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlate";
    let ((one, first), (two, _second)) = (gated(opened.clone(), late).await, gated(opened, late).await);
    let alive = origin("alive").await;
    // The region stays up with one endpoint of two, so leaving it costs a budget that does not exist.
    let service = format!("[services.web.retry]\nbudget = 0\n{PATIENT}");
    let text = config("", &service, &[("home", one), ("away", alive)]).replace("\"none\"", "\"tcp\"");
    let text = text.replace(&format!("[\"{one}\"]"), &format!("[\"{one}\", \"{two}\"]"));
    let (proxy, sender) = live(&text).await;
    let get = tokio::spawn(raw(proxy.address, GET));
    until("it waits", || proxy.in_flight() == 1).await;
    let home = usize::from(first.count() == 0);
    let generation = proxy.snapshot.generation;
    found_down(&proxy, &sender, 0, home).await;
    assert_eq!(proxy.snapshot.generation, generation);
    // Long enough for several looks.
    tokio::time::sleep(Duration::from_millis(500)).await;
    gate.send_replace(true);
    let answer = tokio::time::timeout(PATIENCE, get).await.unwrap().unwrap();
    assert!(status(&answer) == 200 && answer.ends_with("late"), "{answer}");
    assert_eq!(proxy.lines(1).await[0]["attempts"], 1);
}

#[tokio::test]
async fn a_pipelining_client_does_not_hold_the_deadline_up() {
    let (mute, _) = silent().await;
    let alive = origin("alive").await;
    let proxy = start(&config("", QUICK, &[("mute", mute), ("alive", alive)]), &[]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"GET /1 HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    until("the first request is under way", || proxy.in_flight() == 1).await;
    stream.write_all(b"GET /2 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answers = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answers)).await.unwrap().unwrap();
    let (first, second) = (answers.find("\"target\":\"/1\""), answers.find("\"target\":\"/2\""));
    assert!(first.is_some() && first < second, "{answers}");
    proxy.lines(2).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let only = origin("only").await;
    let proxy = start(&config("", "", &[("only", only)]), &[]).await;
    let mut text = String::new();
    for n in 0..5 {
        text += &format!("POST /{n} HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc");
    }
    text += "GET /last HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    let answers = raw(proxy.address, text.as_bytes()).await;
    let targets: Vec<_> = answers.match_indices("\"target\":\"/").map(|(at, _)| &answers[at + 11..at + 12]).collect();
    assert_eq!(targets, ["0", "1", "2", "3", "4", "l"], "{answers}");
    proxy.lines(6).await;
}

#[tokio::test]
async fn a_client_connection_is_kept_and_ends_at_its_bound() {
    let only = origin("only").await;
    let proxy = start(&config("[limits]\nrequests = 3", "", &[("only", only)]), &[]).await;
    let mut connection = connect(proxy.address).await.unwrap();
    for n in 1..=3 {
        let answer = send(&mut connection, "GET", "/", &[]).await.unwrap();
        let closes = answer.headers.get("connection").is_some_and(|value| value == "close");
        assert_eq!((answer.status, closes), (200, n == 3), "{n}");
    }
    assert!(send(&mut connection, "GET", "/", &[]).await.is_err());
}

#[tokio::test]
async fn a_pooled_connection_that_closed_costs_a_fresh_one() {
    let (once, script) = scripted(|mut stream, script| async move {
        script.request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        // The second request on this connection gets no answer.
        script.request(&mut stream).await;
    })
    .await;
    let proxy = start(&config("", "", &[("once", once)]), &[]).await;
    for _ in 0..4 {
        let answer = raw(proxy.address, GET).await;
        assert_eq!(status(&answer), 200, "{answer}");
    }
    let lines = proxy.lines(4).await;
    assert!(lines.iter().any(|line| line["attempts"] == 2), "{lines:?}");
    assert!(script.count() > 4);
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    let (busy, _) = answering(BUSY).await;
    let (mute, held) = silent().await;
    let proxy = start(&config("", "", &[("busy", busy), ("mute", mute)]), &[]).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        clients.push(stream);
    }
    // Those without a retry get the upstream's own answer; the others wait.
    let mut lines = Vec::new();
    until("answers without a retry", || {
        lines = proxy.lines_now();
        lines.len() >= 16
    })
    .await;
    assert!(lines.iter().all(|line| line["status"] == 503), "{lines:?}");
    // Those that wait are on their way, or there.
    until("the retries", || held.count() >= 3).await;
    assert!(held.count() <= 4, "{}", held.count());
    drop(clients);
    proxy.lines(20).await;
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let only = origin("only").await;
    let proxy = start(&config("", "", &[("only", only)]), &[]).await;
    let answer = request(proxy.address, "GET", "/bytes/20000000", &[]).await.unwrap();
    assert_eq!(answer.body.len(), 20_000_000);

    let body = vec![b'x'; 3_000_000];
    let head =
        format!("POST /echo HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let sending = tokio::spawn(async move {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&body).await.unwrap();
        write
    });
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer.iter().filter(|byte| **byte == b'x').count() / 1_000_000, 3);
    drop(sending.await.unwrap());
    let lines = proxy.lines(2).await;
    assert_eq!((&lines[0]["bytes_out"], &lines[1]["bytes_in"]), (&20_000_000.into(), &3_000_000.into()), "{lines:?}");
}

#[tokio::test]
async fn a_slow_upload_is_not_taken_for_a_silent_upstream() {
    let only = origin("only").await;
    let service = "[services.web.timeouts]\nfirst_byte = \"100ms\"\nrequest = \"600s\"\n";
    let proxy = start(&config("", service, &[("only", only)]), &[]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = b"PUT / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 4\r\n\r\n";
    stream.write_all(head).await.unwrap();
    for _ in 0..4 {
        // Together far longer than an upstream may be silent.
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(proxy.lines(1).await[0]["attempts"], 1);

    // Once it is complete, the upstream's time runs; and a client that stalls is told so, not that an upstream was slow.
    let (mute, script) = silent().await;
    let service = "[services.web.timeouts]\nfirst_byte = \"100ms\"\nrequest = \"1s\"\n";
    let proxy = start(&config("", service, &[("mute", mute)]), &[]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(&POST[..POST.len() - 1]).await.unwrap();
    until("the head arrived", || script.count() == 1).await;
    stream.write_all(b"i").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(status(&answer), 504, "{answer}");
    assert_eq!(status(&raw(proxy.address, &POST[..POST.len() - 1]).await), 408);
    let lines = proxy.lines(2).await;
    let outcomes = [&lines[0]["outcome"], &lines[1]["outcome"]];
    assert_eq!(outcomes, ["first_byte_timeout", "request_timeout"]);
}

#[tokio::test]
async fn a_protocol_that_nobody_asked_for_is_no_answer() {
    let (bad, _) = answering("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
    let alive = origin("alive").await;
    let proxy = start(&config("", "", &[("bad", bad), ("alive", alive)]), &[]).await;
    assert_eq!(status(&raw(proxy.address, POST).await), 502);
    // Asked for, but not passed on: only WebSockets are.
    let h2c =
        b"POST / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(status(&raw(proxy.address, h2c).await), 502);
    let answer = raw(proxy.address, GET).await;
    assert!(status(&answer) == 200 && answer.contains("alive"), "{answer}");
    let lines = proxy.lines(3).await;
    assert_eq!((&lines[0]["outcome"], &lines[1]["outcome"]), (&"bad_answer".into(), &"bad_answer".into()), "{lines:?}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let (mute, _) = silent().await;
    let proxy = start(&config("", "", &[("mute", mute)]), &[]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(GET).await.unwrap();
    until("the request is under way", || proxy.in_flight() == 1).await;
    let counted = |count: u32| {
        let page = proxy.metrics.render(std::time::SystemTime::now());
        page.contains(&format!("meridian_requests_in_flight{{service=\"web\"}} {count}\n"))
    };
    assert!(counted(1));
    drop(stream);
    let line = &proxy.lines(1).await[0];
    assert_eq!((&line["outcome"], &line["status"]), (&"client_gone".into(), &0.into()), "{line}");
    assert!(counted(0));
}

#[tokio::test]
async fn a_websocket_becomes_a_tunnel() {
    let (echo, script) = scripted(|mut stream, script| async move {
        let Some(head) = script.request(&mut stream).await else { return };
        assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).await.is_ok() {
            stream.write_all(&byte).await.unwrap();
        }
    })
    .await;
    let service = "[services.web.timeouts]\nfirst_byte = \"100ms\"\nidle = \"100ms\"\ntunnel_idle = \"500ms\"\n";
    let proxy = start(&config("[limits]\nbody_timeout = \"100ms\"", service, &[("echo", echo)]), &[]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let ask = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    // Longer than any silence a body may have, in steps shorter than a tunnel may be silent.
    for _ in 0..4 {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Then silence ends it.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it ends");
    let line = &proxy.lines(1).await[0];
    assert_eq!((&line["status"], &line["outcome"]), (&101.into(), &"answered".into()), "{line}");
    assert_eq!(script.count(), 1);
}

#[tokio::test]
async fn a_drain_ends_idle_connections_and_lets_requests_finish() {
    let (gate, opened) = watch::channel(false);
    let (slow, _) = gated(opened, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let proxy = start(&config("", "", &[("slow", slow)]), &[]).await;
    let mut idle = TcpStream::connect(proxy.address).await.unwrap();
    let mut busy = TcpStream::connect(proxy.address).await.unwrap();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    until("the request is under way", || proxy.in_flight() == 1 && proxy.drain.open() == 2).await;
    proxy.drain.begin();
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0);
    until("only the busy one is left", || proxy.drain.open() == 1).await;
    // Nothing orders the listener's end and the connections'.
    while TcpStream::connect(proxy.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    gate.send(true).unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, busy.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("ok") && answer.to_lowercase().contains("connection: close"), "{answer}");
    drop((idle, busy));
    let service = proxy.service;
    tokio::time::timeout(PATIENCE, service).await.unwrap().unwrap();
    assert_eq!(proxy.drain.open(), 0);
}

#[tokio::test]
async fn too_many_connections_are_closed_at_once() {
    let only = origin("only").await;
    let proxy = start(&config("[limits]\nconnections = 2", "", &[("only", only)]), &[]).await;
    let first = TcpStream::connect(proxy.address).await.unwrap();
    let _second = TcpStream::connect(proxy.address).await.unwrap();
    until("two are open", || proxy.drain.open() == 2).await;
    let mut third = TcpStream::connect(proxy.address).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, third.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\n503 too many connections\n"), "{answer}");
    let page = proxy.metrics.render(std::time::SystemTime::now());
    assert!(page.contains("meridian_connections_refused_total{reason=\"too_many\"} 1\n"), "{page}");
    drop(first);
    until("one has left", || proxy.drain.open() == 1).await;
    assert_eq!(status(&raw(proxy.address, GET).await), 200);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks() {
    let (chunks, _) = answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
    let proxy = start(&config("", "", &[("chunks", chunks)]), &[]).await;
    let answer = raw(proxy.address, b"GET / HTTP/1.0\r\nHost: test\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\nok") && !answer.to_lowercase().contains("chunked"), "{answer}");
}

const AFFINITY: &str = "affinity = { kind = \"cookie\", ttl = \"1h\", keys = [\"0123456789abcdef0123456789abcdef\"] }";
const ROTATED: &str = "affinity = { kind = \"cookie\", ttl = \"1h\", keys = [\"fedcba9876543210fedcba9876543210\", \"0123456789abcdef0123456789abcdef\"] }";

/// Who answered, and the cookie that came with it: `name=value`, what clients send back.
async fn visit(address: SocketAddr, fields: &[(&str, &str)]) -> (String, Option<String>) {
    let answer = request(address, "GET", "/", fields).await.unwrap();
    assert_eq!(answer.status, 200);
    let cookie = answer.headers.get("set-cookie").map(|line| line.to_str().unwrap());
    let private = answer.headers.get("cache-control").is_some_and(|value| value == "private");
    assert_eq!(cookie.is_some(), private, "{:?}", answer.headers);
    let value = cookie.map(|line| {
        let (pair, attributes) = line.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; Max-Age=3600; Secure; HttpOnly; SameSite=Lax");
        pair.to_owned()
    });
    (answer.origin().unwrap(), value)
}

fn counted(proxy: &Proxy, result: &str) -> bool {
    let series = format!("meridian_affinity_total{{result=\"{result}\",service=\"web\"}} 1\n");
    proxy.metrics.render(std::time::SystemTime::now()).contains(&series)
}

#[tokio::test]
async fn a_cookie_brings_clients_back_and_forged_ones_do_not() {
    let regions = [("a", origin("a").await), ("b", origin("b").await)];
    // Where everybody goes without a cookie, and where nobody does.
    let there = start(&config("", AFFINITY, &regions), &["a"]).await;
    let here = start(&config("", AFFINITY, &regions), &[]).await;
    let (name, cookie) = visit(there.address, &[]).await;
    assert_eq!(name, "b");
    let cookie = cookie.unwrap();
    assert!(cookie.starts_with("meridian=A"), "{cookie}");
    let among = format!("x=1; {cookie}; y=2");
    assert_eq!(visit(here.address, &[("cookie", &among)]).await, ("b".to_owned(), None));
    assert_eq!(here.lines(1).await[0]["reason"], "affinity");
    let (name, first) = visit(here.address, &[]).await;
    assert!(name == "a" && first.is_some_and(|first| first != cookie));
    let forged = format!("{}{}", &cookie[..cookie.len() - 1], if cookie.ends_with('A') { 'E' } else { 'A' });
    let (name, another) = visit(here.address, &[("cookie", &forged)]).await;
    assert!(name == "a" && another.is_some());
    here.lines(3).await;
    for result in ["honoured", "absent", "broken"] {
        until(result, || counted(&here, result)).await;
    }
    // Keys that come first sign, keys that stay verify, keys that went do not.
    let rotated = start(&config("", ROTATED, &regions), &[]).await;
    assert_eq!(visit(rotated.address, &[("cookie", &cookie)]).await, ("b".to_owned(), None));
    let (_, new) = visit(rotated.address, &[]).await;
    let new = new.unwrap();
    assert!(visit(here.address, &[("cookie", &new)]).await.1.is_some(), "another key signed it");
    assert_eq!(visit(rotated.address, &[("cookie", &new)]).await, ("a".to_owned(), None));
}

#[tokio::test]
async fn after_a_failover_the_cookie_names_the_region_that_answered() {
    let (a, _held) = refusing();
    let b = origin("b").await;
    let there = start(&config("", AFFINITY, &[("a", origin("a").await), ("b", b)]), &[]).await;
    let (_, cookie) = visit(there.address, &[]).await;
    let cookie = cookie.unwrap();
    // Found down, or not yet: in both cases b answers.
    for down in [&["a"][..], &[]] {
        let proxy = start(&config("", AFFINITY, &[("a", a), ("b", b)]), down).await;
        let (name, new) = visit(proxy.address, &[("cookie", &cookie)]).await;
        let new = new.unwrap();
        assert!(name == "b" && new != cookie);
        assert_eq!(proxy.lines(1).await[0]["reason"], "failover");
        let result = if down.is_empty() { "honoured" } else { "unavailable" };
        until(result, || counted(&proxy, result)).await;
        assert_eq!(visit(there.address, &[("cookie", &new)]).await, ("b".to_owned(), None));
    }
}

#[tokio::test]
async fn a_drain_keeps_its_clients_for_a_while_and_maintenance_does_not() {
    let regions = [("a", origin("a").await), ("b", origin("b").await)];
    let service = format!("{AFFINITY}\ndrain_timeout = \"1s\"");
    let text = config("", &service, &regions);
    let (proxy, sender) = live(&text).await;
    let cookie = visit(proxy.address, &[]).await.1.unwrap();
    let fields = [("cookie", cookie.as_str())];
    let publish = async |state: &str| {
        let new = super::common::world::compile(
            &text.replace("[regions.a]\n", &format!("[regions.a]\nstate = \"{state}\"\n")),
        );
        let atlas = std::sync::Arc::new(meridian::geo::AtlasBuilder::new().build());
        sender.publish(meridian::steering::View::compile(new.fleet, atlas, None), new.edge).await;
    };
    publish("maint").await;
    assert_eq!(visit(proxy.address, &fields).await.0, "b");
    let began = Instant::now();
    publish("drain").await;
    assert_eq!(visit(proxy.address, &fields).await, ("a".to_owned(), None));
    assert_eq!(visit(proxy.address, &[]).await.0, "b");
    while visit(proxy.address, &fields).await.0 == "a" {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "it ended too early");
}

#[tokio::test]
async fn a_header_names_the_region() {
    let regions = [("a", origin("a").await), ("b", origin("b").await)];
    let service = "affinity = { kind = \"header\", name = \"X-Region\" }";
    let proxy = start(&config("", service, &regions), &[]).await;
    for (fields, want) in [(&[("x-region", "b")][..], "b"), (&[("x-region", "c")], "a"), (&[], "a")] {
        assert_eq!(visit(proxy.address, fields).await, (want.to_owned(), None));
    }
    proxy.lines(3).await;
    for result in ["honoured", "absent", "broken"] {
        until(result, || counted(&proxy, result)).await;
    }
}

#[tokio::test]
async fn what_is_said_of_caching_stays_beside_private() {
    const SAYS: &str =
        "HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nSet-Cookie: own=1\r\nContent-Length: 0\r\n\r\n";
    let (a, _script) = answering(SAYS).await;
    let proxy = start(&config("", AFFINITY, &[("a", a)]), &[]).await;
    let answer = request(proxy.address, "GET", "/", &[]).await.unwrap();
    assert_eq!(answer.headers["cache-control"], "public, max-age=60, private");
    let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
    assert!(cookies.len() == 2 && cookies[0] == "own=1", "{cookies:?}");
    let ours = cookies[1].to_str().unwrap().split(';').next().unwrap();
    let answer = request(proxy.address, "GET", "/", &[("cookie", ours)]).await.unwrap();
    assert_eq!(answer.headers["cache-control"], "public, max-age=60");
}
