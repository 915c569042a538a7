//! The shells around the world, run for real: files that change, origins that answer or do not, operators who ask.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test: what fails here fails the test, and it lives in real time"
)]

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian::admin::{self, Admin};
use meridian::config::{AccessLines, AccessLog, Boot};
use meridian::load::Loader;
use meridian::state::{self, Lasting, Reader, ReloadRequest, Sender};
use meridian::steering::fleet::Intent;
use meridian::steering::{Override, RegionId, ServiceId, Snapshot, TakeReason, Target, Word};
use meridian::telemetry::{AccessLogger, AccessRecord, Metrics, Text};
use meridian::watch::Watch;
use meridian::{probe, resolve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

/// How long anything may take on a busy machine before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("in vain: {what}");
    }
}

/// A configuration of regions, and services with an endpoint in each of them.
fn config(services: &[(&str, &[(&str, &str)])], health: &str) -> String {
    let mut text = "[[listen]]\naddress = \"127.0.0.1:0\"\n".to_owned();
    let mut regions: Vec<_> = services.iter().flat_map(|(_, pools)| pools.iter().map(|(region, _)| *region)).collect();
    regions.sort();
    regions.dedup();
    for (index, region) in regions.iter().enumerate() {
        text += &format!("[regions.{region}]\nlocation = [{index}.0, 0.0]\n");
    }
    for (service, pools) in services {
        text += &format!("[services.{service}]\nhosts = [\"{service}.example\"]\n");
        text += &format!("[services.{service}.health]\n{health}\n");
        for (region, endpoint) in *pools {
            text += &format!("[services.{service}.pools.{region}]\nendpoints = [\"{endpoint}\"]\n");
        }
    }
    text
}

/// For tests that do not look at places: the builtin database takes its time to be compiled.
const NO_DATA: &str = "\n[geoip]\ndatabases = []\n";

const UNPROBED: &str = "kind = \"none\"";

/// A world under a writer, with everything that can be asked of it.
struct Stage {
    sender: Sender,
    reader: Reader,
    metrics: Metrics,
    loader: Loader,
    boot: Boot,
}

impl Stage {
    async fn new(path: &Path) -> Stage {
        let mut loader = Loader::default();
        let loaded = loader.load(path).unwrap_or_else(|error| panic!("{error}"));
        let metrics = Metrics::new();
        let (sender, reader, writer) = state::start(loaded.view, loaded.config.edge, metrics.clone());
        tokio::spawn(writer);
        Stage { sender, reader, metrics, loader, boot: loaded.config.boot }
    }

    async fn publish(&mut self, path: &Path) -> u64 {
        let loaded = self.loader.load(path).unwrap_or_else(|error| panic!("{error}"));
        self.sender.publish(loaded.view, loaded.config.edge).await
    }

    fn scrape(&self) -> Scrape {
        Scrape::of(self.metrics.render(std::time::SystemTime::now()))
    }
}

fn snapshot(reader: &Reader) -> Arc<Snapshot> {
    reader.load().snapshot.clone()
}

/// The state of each region of the first service.
fn states(reader: &Reader) -> HashMap<String, &'static str> {
    let snapshot = snapshot(reader);
    let fleet = snapshot.fleet();
    let pools = &fleet.services[0].pools;
    pools
        .iter()
        .map(|id| (fleet.region(fleet.pool(*id).region).name.clone(), snapshot.pool(*id).state.as_str()))
        .collect()
}

struct Scrape {
    text: String,
}

impl Scrape {
    fn of(text: String) -> Scrape {
        Scrape { text }
    }

    /// The value of the series that begins with this text.
    fn value(&self, series: &str) -> Option<f64> {
        let line =
            self.text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// `promtool check metrics` has nothing to say against it.
    fn check(&self) {
        let found = Command::new("promtool").arg("--version").output();
        if found.is_err() && std::env::var_os("MERIDIAN_REQUIRE_PROMTOOL").is_none() {
            // CI has it; a newcomer's machine need not.
            eprintln!("promtool is not installed (Debian: prometheus): the page's form is not checked");
            return;
        }
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool is installed (Debian: prometheus); see the project's setup");
        promtool.stdin.take().unwrap().write_all(self.text.as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success() && words.trim().is_empty(), "{words}\n{}", self.text);
    }
}

fn record(snapshot: &Arc<Snapshot>, service: Option<u16>, region: Option<u8>, status: u16) -> AccessRecord {
    AccessRecord {
        at_us: 1_700_000_000_123_456,
        peer: Some("192.0.2.1:1234".parse().unwrap()),
        client: Some("81.2.69.142".parse().unwrap()),
        place: Some(snapshot.view.atlas.place(meridian::geo::PlaceId::SPECIAL)),
        request_id: 7,
        method: http::Method::GET,
        text: Text::new("a.example", "/x?y=\"z\""),
        protocol: "HTTP/1.1",
        mover: meridian::telemetry::Mover::Pingora,
        service: service.map(ServiceId),
        region: region.map(RegionId),
        endpoint: region.map(|_| "127.0.0.1:9".parse().unwrap()),
        reason: region.map(|_| TakeReason::Nearest),
        attempts: if region.is_some() { 2 } else { 0 },
        status,
        outcome: if region.is_some() { "" } else { "no_region" },
        gave_up: None,
        bytes_in: 1,
        bytes_out: 2,
        total_us: 1500,
        first_byte_us: region.map(|_| 1000),
        connect_us: 10,
        traced: Default::default(),
    }
}

#[tokio::test]
async fn metrics_count_what_stays_and_forget_what_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let a: &[(&str, &str)] = &[("east", "127.0.0.1:9001"), ("west", "127.0.0.1:9002")];
    fs::write(&path, config(&[("a", a), ("b", a)], UNPROBED)).unwrap();
    let mut stage = Stage::new(&path).await;
    let published = stage.reader.load();
    let old_handles = published.handles.clone();
    for (service, region) in [(0, 0), (0, 0), (0, 1), (1, 0)] {
        old_handles.request(&record(&published.snapshot, Some(service), Some(region), 200));
        old_handles.attempt(ServiceId(service), RegionId(region));
    }
    old_handles.request(&record(&published.snapshot, Some(0), None, 503));
    old_handles.request(&record(&published.snapshot, None, None, 400));
    let under_way = old_handles.in_flight(ServiceId(0));
    stage.metrics.probed("a", "west", "127.0.0.1:9002", "pass", Duration::from_millis(3));

    let page = stage.scrape();
    page.check();
    let kept = "meridian_requests_total{code=\"2xx\",reason=\"nearest\",region=\"east\",service=\"a\"}";
    assert_eq!(page.value(kept), Some(2.0), "{}", page.text);
    for (series, want) in [
        ("meridian_requests_total{code=\"2xx\",reason=\"nearest\",region=\"east\",service=\"b\"}", 1.0),
        ("meridian_requests_total{code=\"5xx\",reason=\"no_region\",region=\"\",service=\"a\"}", 1.0),
        ("meridian_requests_total{code=\"4xx\",reason=\"no_region\",region=\"\",service=\"\"}", 1.0),
        ("meridian_attempts_total{region=\"west\",service=\"a\"}", 1.0),
        ("meridian_retries_total{service=\"a\"}", 3.0),
        ("meridian_requests_in_flight{service=\"a\"}", 1.0),
        ("meridian_request_duration_seconds_count{service=\"a\"}", 4.0),
        ("meridian_upstream_first_byte_seconds_count{region=\"east\",service=\"a\"}", 2.0),
        ("meridian_probes_total{endpoint=\"127.0.0.1:9002\",region=\"west\",result=\"pass\",service=\"a\"}", 1.0),
        ("meridian_geo_lookups_total{result=\"special\"}", 6.0),
        ("meridian_config_generation", 1.0),
        ("meridian_panic{service=\"a\"}", 0.0),
    ] {
        assert_eq!(page.value(series), Some(want), "{series}\n{}", page.text);
    }
    assert!(page.text.contains("meridian_geo_data_age_seconds{source=\"builtin\"} "), "{}", page.text);
    // What did not happen has no series.
    assert!(!page.text.contains("reason=\"nearest\",region=\"west\",service=\"b\""));

    // Service b and region west leave.
    fs::write(&path, config(&[("a", &a[..1])], UNPROBED)).unwrap();
    assert_eq!(stage.publish(&path).await, 2);
    // A straggler of the old configuration.
    old_handles.request(&record(&published.snapshot, Some(1), Some(1), 200));
    drop(under_way);
    let page = stage.scrape();
    page.check();
    assert_eq!(page.value("meridian_config_generation"), Some(2.0));
    assert_eq!(page.value(kept), Some(2.0), "{}", page.text);
    assert_eq!(page.value("meridian_requests_in_flight{service=\"a\"}"), Some(0.0));
    for gone in ["service=\"b\"", "region=\"west\"", "127.0.0.1:9002"] {
        assert!(!page.text.contains(gone), "{gone}\n{}", page.text);
    }
    let published = stage.reader.load();
    assert!(!Arc::ptr_eq(&published.handles, &old_handles));
    published.handles.request(&record(&published.snapshot, Some(0), Some(0), 200));
    assert_eq!(stage.scrape().value(kept), Some(3.0));
}

#[tokio::test]
async fn an_access_log_file_is_appended_to_and_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let config_path = folder.path().join("m.toml");
    fs::write(&config_path, config(&[("a", &[("east", "127.0.0.1:9001")])], UNPROBED)).unwrap();
    let stage = Stage::new(&config_path).await;
    let snapshot = snapshot(&stage.reader);
    let path = folder.path().join("access.log");
    fs::write(&path, "before\n").unwrap();
    let to = AccessLog::File(path.clone());
    let (logger, guard) = AccessLogger::start(&to, AccessLines::default(), None, &stage.metrics).unwrap();
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    logger.log(&snapshot, Box::new(record(&snapshot, Some(0), Some(0), 200)));
    until("the line", || read(&path).lines().count() == 2).await;
    let line: serde_json::Value = serde_json::from_str(read(&path).lines().nth(1).unwrap()).unwrap();
    for (key, want) in [
        ("ts", "2023-11-14T22:13:20.123Z"),
        ("client", "81.2.69.142"),
        ("service", "a"),
        ("region", "east"),
        ("reason", "nearest"),
        ("path", "/x?y=\"z\""),
    ] {
        assert_eq!(line[key], want, "{line}");
    }
    assert_eq!(line["place"]["source"], "special");
    assert_eq!(line["first_byte_ms"], 1.0);

    let moved = folder.path().join("access.log.1");
    fs::rename(&path, &moved).unwrap();
    logger.reopen();
    until("the new file", || path.exists()).await;
    logger.log(&snapshot, Box::new(record(&snapshot, None, None, 400)));
    drop(guard);
    assert_eq!(read(&moved).lines().count(), 2);
    assert_eq!(read(&path).lines().count(), 1);
    assert_eq!(stage.scrape().value("meridian_access_log_lines_total{result=\"written\"}"), Some(2.0));

    let nowhere = AccessLog::File(folder.path().join("none/access.log"));
    let error = AccessLogger::start(&nowhere, AccessLines::default(), None, &stage.metrics).unwrap_err().to_string();
    assert!(error.contains("none/access.log"), "{error}");
}

/// An origin whose answer can be changed while it runs.
struct Origin {
    address: SocketAddr,
    healthy: Arc<AtomicBool>,
    /// Further lines of its head.
    asks: Arc<Mutex<&'static str>>,
    connections: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Origin {
    async fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (healthy, connections) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let asks = Arc::new(Mutex::new(""));
        let (ok, count, fields) = (healthy.clone(), connections.clone(), asks.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (ok, fields) = (ok.clone(), fields.clone());
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    let _ = stream.read(&mut head).await;
                    let status = if ok.load(Ordering::Relaxed) { "200 OK" } else { "500 Oops" };
                    let fields = *fields.lock().unwrap();
                    let answer = format!("HTTP/1.1 {status}\r\n{fields}content-length: 0\r\nconnection: close\r\n\r\n");
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        Origin { address, healthy, asks, connections, task }
    }
}

const QUICK: &str =
    "interval = \"50ms\"\nfast_interval = \"20ms\"\ntimeout = \"1s\"\nrise = 1\nhold = \"0s\"\nramp = \"0s\"";

#[tokio::test]
async fn probes_find_out_who_is_up_and_follow_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let (a, b, c) = (Origin::start().await, Origin::start().await, Origin::start().await);
    c.healthy.store(false, Ordering::Relaxed);
    let addresses = [&a, &b, &c].map(|origin| origin.address.to_string());
    let pools = [("a", addresses[0].as_str()), ("b", addresses[1].as_str()), ("c", addresses[2].as_str())];
    fs::write(&path, config(&[("web", &pools)], QUICK) + NO_DATA).unwrap();
    let mut stage = Stage::new(&path).await;
    assert!(!stage.reader.is_ready());
    tokio::spawn(probe::run(stage.reader.clone(), stage.sender.clone(), stage.metrics.clone()));
    tokio::time::timeout(PATIENCE, stage.reader.ready()).await.expect("the first round ends");
    let is = |region: &str, state: &str| states(&stage.reader)[region] == state;
    until("the verdicts", || is("a", "up") && is("b", "up") && is("c", "down")).await;

    b.healthy.store(false, Ordering::Relaxed);
    until("b to be down", || is("b", "down")).await;
    assert!(is("a", "up"));
    let (b_address, b_connections) = (b.address, b.connections.load(Ordering::Relaxed));
    assert!(b_connections > 0);
    b.task.abort();
    c.healthy.store(true, Ordering::Relaxed);
    until("c to be up", || is("c", "up")).await;
    let page = stage.scrape();
    page.check();
    let endpoint =
        |what: &str, to: &str| format!("{what}{{endpoint=\"{b_address}\",region=\"b\",service=\"web\"{to}}}");
    assert_eq!(page.value(&endpoint("meridian_endpoint_up", "")), Some(0.0), "{}", page.text);
    assert_eq!(
        page.value(&endpoint("meridian_endpoint_transitions_total", ",to=\"down\"")),
        Some(1.0),
        "{}",
        page.text
    );
    assert!(page.value(&endpoint("meridian_endpoint_last_change_timestamp_seconds", "")) > Some(1.7e9));
    assert_eq!(page.value("meridian_region_up{region=\"b\",service=\"web\"}"), Some(0.0));
    assert_eq!(page.value("meridian_region_state{region=\"b\",service=\"web\",state=\"down\"}"), Some(1.0));

    // A long interval, then a short one again: nobody sleeps out the long one.
    fs::write(&path, config(&[("web", &pools)], &QUICK.replace("50ms", "1h")) + NO_DATA).unwrap();
    stage.publish(&path).await;
    fs::write(&path, config(&[("web", &pools)], QUICK) + NO_DATA).unwrap();
    stage.publish(&path).await;
    let before = a.connections.load(Ordering::Relaxed);
    until("further probes", || a.connections.load(Ordering::Relaxed) > before + 3).await;

    // Who left is left alone, and a new service's endpoint is found.
    fs::write(&path, config(&[("other", &pools[2..])], QUICK) + NO_DATA).unwrap();
    stage.publish(&path).await;
    let probes =
        format!("meridian_probes_total{{endpoint=\"{}\",region=\"c\",result=\"pass\",service=\"other\"}}", c.address);
    until("probes for the new service", || stage.scrape().value(&probes) > Some(2.0)).await;
    let before = (a.connections.load(Ordering::Relaxed), stage.scrape().value(&probes));
    until("more of them", || stage.scrape().value(&probes) > before.1.map(|n| n + 5.0)).await;
    assert!(a.connections.load(Ordering::Relaxed) <= before.0 + 1, "at most the probe that was under way");
}

#[tokio::test]
async fn what_answers_to_probes_ask_for_is_in_force_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let (a, b) = (Origin::start().await, Origin::start().await);
    *a.asks.lock().unwrap() = "x-meridian-drain: yes\r\nX-Meridian-Weight: 50\r\n";
    *b.asks.lock().unwrap() = "x-meridian-drain: perhaps\r\n";
    let addresses = [&a, &b].map(|origin| origin.address.to_string());
    let pools = [("a", addresses[0].as_str()), ("b", addresses[1].as_str())];
    fs::write(&path, config(&[("web", &pools)], QUICK) + NO_DATA).unwrap();
    let stage = Stage::new(&path).await;
    tokio::spawn(probe::run(stage.reader.clone(), stage.sender.clone(), stage.metrics.clone()));
    let leaving = |region: u8| snapshot(&stage.reader).services[0].leaving.contains(RegionId(region));
    until("both to be up", || states(&stage.reader).values().all(|state| *state == "up")).await;
    assert!(leaving(0) && !leaving(1));
    let page = stage.scrape();
    page.check();
    let series = |what: &str, origin: &Origin, region: &str| {
        format!("meridian_endpoint_{what}{{endpoint=\"{}\",region=\"{region}\",service=\"web\"}}", origin.address)
    };
    assert_eq!(page.value(&series("draining", &a, "a")), Some(1.0));
    assert_eq!(page.value(&series("effective_weight", &a, "a")), Some(0.5));
    assert_eq!(page.value(&series("draining", &b, "b")), Some(0.0), "what is not understood counts for nothing");
    assert_eq!(page.value("meridian_events_total{kind=\"asked\"}"), Some(1.0));
    *a.asks.lock().unwrap() = "";
    until("a to take traffic again", || !leaving(0)).await;
    assert_eq!(states(&stage.reader)["a"], "up", "at once");
    assert_eq!(stage.scrape().value(&series("effective_weight", &a, "a")), Some(1.0));
}

#[tokio::test]
async fn probes_tell_how_far_a_region_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let origin = Origin::start().await;
    let address = origin.address.to_string();
    let text = config(&[("web", &[("a", address.as_str())]), ("far", &[("a", address.as_str())])], QUICK) + NO_DATA;
    fs::write(&path, text.replace("[services.web]", "[services.web]\nrtt_weight = 0.5")).unwrap();
    let stage = Stage::new(&path).await;
    tokio::spawn(probe::run(stage.reader.clone(), stage.sender.clone(), stage.metrics.clone()));
    until("a round trip", || snapshot(&stage.reader).pools[0].rtt_ms.is_some()).await;
    let rtt_ms = snapshot(&stage.reader).pools[0].rtt_ms.unwrap();
    assert!(rtt_ms > 0.0 && rtt_ms < 1000.0, "{rtt_ms}");
    let series = "meridian_region_rtt_seconds{region=\"a\",service=\"web\"}";
    assert_eq!(stage.scrape().value(series), Some(rtt_ms / 1000.0));
    assert_eq!(stage.scrape().value(&series.replace("web", "far")), None, "it does not count there");
}

#[tokio::test]
async fn the_end_of_a_certificate_is_a_metric_while_it_is_probed_for() {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["web.example".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2200, 1, 1);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let config_of = ServerConfig::builder().with_no_client_auth();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let acceptor =
        tokio_rustls::TlsAcceptor::from(Arc::new(config_of.with_single_cert(vec![certificate], key.into()).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        }
    });
    // The traffic goes to another port than the probes.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let pools = [("a", "127.0.0.1:9")];
    let health = |kind: &str| format!("{}\nkind = \"{kind}\"\nport = {port}", QUICK.replace("1s", "20s"));
    let text = |kind: &str| config(&[("web", &pools)], &health(kind)) + NO_DATA;
    fs::write(&path, text("tls")).unwrap();
    let mut stage = Stage::new(&path).await;
    tokio::spawn(probe::run(stage.reader.clone(), stage.sender.clone(), stage.metrics.clone()));
    until("a handshake", || states(&stage.reader)["a"] == "up").await;
    let end =
        "meridian_endpoint_certificate_expiry_timestamp_seconds{endpoint=\"127.0.0.1:9\",region=\"a\",service=\"web\"}";
    let page = stage.scrape();
    page.check();
    assert_eq!(page.value(end), Some(7_258_118_400.0), "{}", page.text);
    fs::write(&path, text("tcp")).unwrap();
    stage.publish(&path).await;
    until("it to be forgotten", || stage.scrape().value(end).is_none()).await;
}

#[tokio::test]
async fn a_manual_return_waits_for_an_operator() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let (a, b) = (Origin::start().await, Origin::start().await);
    let addresses = [&a, &b].map(|origin| origin.address.to_string());
    let pools = [("a", addresses[0].as_str()), ("b", addresses[1].as_str())];
    let text = config(&[("web", &pools)], QUICK) + NO_DATA;
    fs::write(&path, text.replace("[services.web]", "[services.web]\nfailback = \"manual\"")).unwrap();
    let stage = Stage::new(&path).await;
    tokio::spawn(probe::run(stage.reader.clone(), stage.sender.clone(), stage.metrics.clone()));
    let is = |region: &str, state: &str| states(&stage.reader)[region] == state;
    until("both to be up", || is("a", "up") && is("b", "up")).await;
    b.healthy.store(false, Ordering::Relaxed);
    until("b to be down", || is("b", "down")).await;
    b.healthy.store(true, Ordering::Relaxed);
    until("b to be back", || is("b", "holding")).await;
    let probes = b.connections.load(Ordering::Relaxed);
    until("further probes", || b.connections.load(Ordering::Relaxed) > probes + 10).await;
    assert!(is("b", "holding"), "`hold` is 0s, but nobody said a word");
    let word = Word::Set(Override {
        kind: Target::Region,
        name: "b".to_owned(),
        state: Intent::Ready,
        reason: String::new(),
        who: "test".to_owned(),
        set_ms: 0,
        until_ms: None,
    });
    assert_eq!(stage.sender.say(word, false).await, Ok(Lasting::NoDirectory));
    until("b to take traffic", || is("b", "up")).await;
}

#[tokio::test]
async fn names_are_resolved_and_probed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let origin = Origin::start().await;
    let name = format!("localhost:{}", origin.address.port());
    fs::write(&path, config(&[("web", &[("a", name.as_str())])], QUICK) + NO_DATA).unwrap();
    let stage = Stage::new(&path).await;
    tokio::spawn(resolve::run(stage.reader.clone(), stage.sender.clone()));
    tokio::spawn(probe::run(stage.reader.clone(), stage.sender.clone(), stage.metrics.clone()));
    let has = || snapshot(&stage.reader).pools[0].endpoints.iter().any(|endpoint| endpoint.address == origin.address);
    until("the address", has).await;
    until("a probe of it", || origin.connections.load(Ordering::Relaxed) > 0).await;
}

/// A watch at work over the files in a folder.
struct Watched {
    folder: tempfile::TempDir,
    reader: Reader,
    metrics: Metrics,
    asked: mpsc::Sender<ReloadRequest>,
}

impl Watched {
    async fn over(folder: tempfile::TempDir, path: PathBuf) -> Watched {
        let stage = Stage::new(&path).await;
        let (asked, questions) = mpsc::channel(1);
        let (reader, metrics) = (stage.reader.clone(), stage.metrics.clone());
        let Stage { loader, boot, sender, reader: own, metrics: counted } = stage;
        tokio::spawn(Watch { path, loader, boot, sender, reader: own, metrics: counted }.run(questions));
        Watched { folder, reader, metrics, asked }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn generation(&self) -> u64 {
        snapshot(&self.reader).generation
    }

    fn weight(&self) -> u32 {
        snapshot(&self.reader).fleet().pools[0].weight
    }

    fn value(&self, series: &str) -> Option<f64> {
        Scrape::of(self.metrics.render(std::time::SystemTime::now())).value(series)
    }

    fn rename_over(&self, name: &str, content: &[u8]) {
        fs::write(self.path(".new"), content).unwrap();
        fs::rename(self.path(".new"), self.path(name)).unwrap();
    }
}

fn weighing(weight: u32) -> String {
    config(&[("web", &[("a", "127.0.0.1:9001"), ("b", "127.0.0.1:9002")])], UNPROBED)
        .replace("[services.web.pools.a]", &format!("[services.web.pools.a]\nweight = {weight}"))
        + NO_DATA
}

#[tokio::test]
async fn renamed_written_and_broken_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    fs::write(&path, weighing(1)).unwrap();
    let watched = Watched::over(folder, path.clone()).await;

    watched.rename_over("m.toml", weighing(2).as_bytes());
    until("the renamed file", || watched.weight() == 2).await;
    fs::write(&path, weighing(3)).unwrap();
    until("the file written in place", || watched.weight() == 3).await;

    fs::write(&path, weighing(4).replace("weight", "wieght")).unwrap();
    let success = "meridian_config_last_reload_success";
    until("the refusal", || watched.value(success) == Some(0.0)).await;
    assert_eq!(watched.weight(), 3);
    let said = watched.metrics.last_reload().unwrap().error.clone().unwrap();
    assert!(said.contains("wieght") && said.contains("m.toml"), "{said}");
    fs::remove_file(&path).unwrap();
    until("a second refusal", || watched.metrics.last_reload().unwrap().error.as_ref() != Some(&said)).await;
    assert_eq!(watched.weight(), 3);
    fs::write(&path, weighing(5)).unwrap();
    until("the mended file", || watched.weight() == 5 && watched.value(success) == Some(1.0)).await;

    // Noise in the folder is no change; a question is one, whether a file changed or not.
    let generation = watched.generation();
    for n in 0..50 {
        fs::write(watched.path("noise"), n.to_string()).unwrap();
    }
    let reloads = watched.value("meridian_config_reloads_total{result=\"success\"}");
    watched.asked.send(ReloadRequest::default()).await.unwrap();
    until("the asked reload", || watched.generation() > generation).await;
    assert_eq!(watched.generation(), generation + 1);
    until("its count", || watched.value("meridian_config_reloads_total{result=\"success\"}") > reloads).await;
    assert_eq!(watched.value("meridian_config_reloads_total{result=\"success\"}"), reloads.map(|n| n + 1.0));
}

/// A split between two regions with these weights.
fn splitting(a: u32, b: u32, process: &str) -> String {
    weighing(a)
        .replace("hosts =", "steering = \"split\"\nhosts =")
        .replace("[services.web.pools.b]", &format!("[services.web.pools.b]\nweight = {b}"))
        + "[process]\n"
        + process
}

#[tokio::test]
async fn a_reload_that_moves_too_many_is_refused_unless_it_is_forced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    fs::write(&path, splitting(90, 10, "")).unwrap();
    let watched = Watched::over(folder, path.clone()).await;
    let refused = || {
        let last = watched.metrics.last_reload();
        last.and_then(|last| last.error.clone()).unwrap_or_default()
    };
    let ask = async |force| {
        let (done, outcome) = oneshot::channel();
        let request = ReloadRequest { force, who: "alice".into(), done: Some(done) };
        watched.asked.send(request).await.unwrap();
        tokio::time::timeout(PATIENCE, outcome).await.unwrap().unwrap().map(|reloaded| reloaded.generation)
    };

    watched.rename_over("m.toml", splitting(10, 90, "").as_bytes());
    until("the refusal", || refused().contains("`meridian reload --force`")).await;
    let said = refused();
    let figures = said.split("it would move ").nth(1).unwrap().split(' ').next().unwrap().parse::<u32>().unwrap();
    assert!(
        (76..=84).contains(&figures) && said.contains("from `a` to `b`") && said.contains("of service `web`"),
        "{said}"
    );
    assert_eq!((watched.weight(), watched.generation()), (90, 1));
    // Asking is not forcing.
    assert_eq!(ask(false).await, Err(said.clone()));
    assert_eq!((watched.weight(), watched.generation()), (90, 1));
    assert_eq!(ask(true).await, Ok(2));
    assert_eq!(watched.weight(), 10);
    assert_eq!(watched.value("meridian_config_last_reload_success"), Some(1.0));

    // Little by little nobody minds; and who writes that nothing is too much is believed at once.
    watched.rename_over("m.toml", splitting(50, 50, "").as_bytes());
    until("less than half", || watched.weight() == 50).await;
    watched.rename_over("m.toml", splitting(100, 0, "brake = 40").as_bytes());
    until("the refusal by a lower bound", || refused().contains("brake = 40")).await;
    watched.rename_over("m.toml", splitting(1000, 0, "brake = 100").as_bytes());
    until("no brake", || watched.weight() == 1000).await;
    watched.rename_over("m.toml", splitting(0, 1, "brake = 100").as_bytes());
    until("no brake again", || watched.weight() == 0).await;
    // A broken file is no question of force.
    watched.rename_over("m.toml", splitting(1, 0, "brakes = 100").as_bytes());
    let why = ask(true).await.unwrap_err();
    assert!(why.contains("did you mean `brake`?"), "{why}");
}

#[tokio::test]
async fn a_config_map_swaps_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    let version = |name: &str, weight| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("m.toml"), weighing(weight)).unwrap();
    };
    version("..1", 1);
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/m.toml", root.join("m.toml")).unwrap();
    let watched = Watched::over(folder, root.join("m.toml")).await;
    for n in 2..5 {
        version(&format!("..{n}"), n);
        symlink(format!("..{n}"), root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        fs::remove_dir_all(root.join(format!("..{}", n - 1))).unwrap();
        until("the swapped link", || watched.weight() == n).await;
    }
}

#[tokio::test]
async fn new_files_in_an_included_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    let text = weighing(1);
    let (head, tail) = text.split_once("[services.web.pools.b]").unwrap();
    let tail = tail.replace(NO_DATA, "");
    fs::write(root.join("m.toml"), format!("include = [\"conf.d/*.toml\"]\n{head}{NO_DATA}")).unwrap();
    let watched = Watched::over(folder, root.join("m.toml")).await;
    let pools = || snapshot(&watched.reader).fleet().pools.len();
    assert_eq!(pools(), 1);
    // The folder itself comes later, too.
    fs::create_dir(root.join("conf.d")).unwrap();
    fs::write(root.join("conf.d/b.toml"), format!("[services.web.pools.b]{tail}")).unwrap();
    until("the new file", || pools() == 2).await;
    fs::remove_file(root.join("conf.d/b.toml")).unwrap();
    until("its removal", || pools() == 1).await;
}

#[tokio::test]
async fn geo_data_is_replaced_and_broken_data_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    let data = fs::read("tests/data/geo/oracle-city.mmdb").expect("the test database");
    fs::write(root.join("geo.mmdb"), &data).unwrap();
    let with_data = |weight| weighing(weight).replace("[]", "[\"geo.mmdb\"]");
    fs::write(root.join("m.toml"), with_data(1)).unwrap();
    let watched = Watched::over(folder, root.join("m.toml")).await;
    let success = "meridian_config_last_reload_success";
    let atlas = || snapshot(&watched.reader).view.atlas.clone();
    let first = atlas();

    // Half a file: the data and everything else stays.
    watched.rename_over("geo.mmdb", &data[..data.len() / 2]);
    until("the refusal", || watched.value(success) == Some(0.0)).await;
    assert_eq!(watched.generation(), 1);
    assert!(Arc::ptr_eq(&first, &atlas()));
    // A weight still comes into force beside the broken data, and the refusal stays visible.
    watched.rename_over("m.toml", with_data(2).as_bytes());
    until("the weight", || watched.weight() == 2).await;
    assert!(Arc::ptr_eq(&first, &atlas()));
    assert_eq!(watched.value(success), Some(0.0));
    // Whole again.
    watched.rename_over("geo.mmdb", &data);
    until("the new data", || watched.value(success) == Some(1.0)).await;
    assert!(!Arc::ptr_eq(&first, &atlas()));
    let (generation, second) = (watched.generation(), atlas());
    // Data that did not change is not read again.
    watched.rename_over("m.toml", with_data(3).as_bytes());
    until("the next weight", || watched.generation() > generation).await;
    assert!(Arc::ptr_eq(&second, &atlas()));
    // A configuration that names data nobody can read is refused as a whole.
    watched.rename_over("m.toml", with_data(4).replace("geo.mmdb", "none.mmdb").as_bytes());
    until("the second refusal", || watched.value(success) == Some(0.0)).await;
    assert_eq!(watched.weight(), 3);
}

/// Status and body of a GET written by hand.
async fn get<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn operators_ask() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let origin = Origin::start().await;
    let address = origin.address.to_string();
    fs::write(&path, config(&[("web", &[("a", address.as_str())])], QUICK)).unwrap();
    let mut stage = Stage::new(&path).await;
    let socket = folder.path().join("admin.sock");
    let (drains, draining) = watch::channel(false);
    let asked = Admin {
        reader: stage.reader.clone(),
        sender: stage.sender.clone(),
        token: None,
        metrics: stage.metrics.clone(),
        draining,
        ask: mpsc::channel(1).0,
        upgrade: mpsc::channel(1).0,
        listen: Arc::new(["127.0.0.1:8080".parse().unwrap()]),
        config: path.as_path().into(),
    };
    // Without any door nobody is answered, and that for ever.
    let none = admin::open(None, None).await.unwrap();
    tokio::select! {
        biased;
        () = none.serve(asked.clone()) => panic!("it ends"),
        () = tokio::task::yield_now() => {}
    }
    // What a killed process left behind is taken over.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let doors = admin::open(Some("127.0.0.1:0".parse().unwrap()), Some(&socket)).await.unwrap();
    let tcp = doors.address().unwrap();
    let serving = tokio::spawn(doors.serve(asked));
    let ask = async |path: &str, host: &str, method: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        get(TcpStream::connect(tcp).await.unwrap(), &request).await
    };
    let over_socket = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: meridian\r\nconnection: close\r\n\r\n");
        get(UnixStream::connect(&socket).await.unwrap(), &request).await
    };

    assert_eq!(ask("/healthz", "localhost", "GET").await, (200, "ok\n".to_owned()));
    let (status, why) = over_socket("/readyz").await;
    assert_eq!((status, why.contains("first round")), (503, true), "{why}");
    tokio::spawn(probe::run(stage.reader.clone(), stage.sender.clone(), stage.metrics.clone()));
    tokio::time::timeout(PATIENCE, stage.reader.ready()).await.expect("the first round ends");
    assert_eq!(over_socket("/readyz").await.0, 200);

    let (status, page) = ask("/metrics", "127.0.0.1", "GET").await;
    assert_eq!(status, 200);
    assert!(page.contains("# TYPE meridian_config_generation gauge\nmeridian_config_generation 1\n"), "{page}");
    until("the region to be up", || states(&stage.reader)["a"] == "up").await;
    let (status, body) = over_socket("/api/status").await;
    assert_eq!(status, 200);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["listen"][0], "127.0.0.1:8080");
    assert_eq!(body["services"][0]["name"], "web");
    let region = &body["services"][0]["regions"][0];
    assert_eq!((&region["name"], &region["state"], &region["intent"]), (&"a".into(), &"up".into(), &"ready".into()));
    assert_eq!(region["endpoints"][0]["address"], address);
    assert_eq!(body["geo"][0]["name"], "builtin");
    assert_eq!(body["reload"], serde_json::Value::Null);

    assert_eq!(ask("/nothing", "127.0.0.1", "GET").await.0, 404);
    assert_eq!(ask("/metrics", "127.0.0.1", "POST").await.0, 405);
    assert_eq!(ask("/metrics", "rebound.example", "GET").await.0, 421);
    drains.send_replace(true);
    assert_eq!(over_socket("/readyz").await, (503, "draining\n".to_owned()));

    // Nobody steals a socket that answers, or a file that is none.
    let error = admin::open(None, Some(&socket)).await.unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    assert!(admin::open(None, Some(&path)).await.unwrap_err().to_string().contains("no socket"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);

    // Who asks takes the place of who has said nothing for longest; the others stay.
    let mut crowd = Vec::new();
    for _ in 0..64 {
        crowd.push(TcpStream::connect(tcp).await.unwrap());
    }
    assert_eq!(ask("/healthz", "localhost", "GET").await, (200, "ok\n".to_owned()));
    let mut nothing = [0; 1];
    let read = tokio::time::timeout(PATIENCE, crowd[0].read(&mut nothing)).await.expect("an end");
    assert!(matches!(read, Ok(0) | Err(_)));
    for stream in &mut crowd[40..] {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut nothing).await.unwrap() > 0, "it is answered");
    }
    drop(crowd);
    serving.abort();
    assert!(serving.await.is_err());
    assert!(!socket.exists(), "the socket file goes with the process");
}

/// A word over TCP, written by hand; `fields` are further lines of the head.
async fn post(tcp: SocketAddr, fields: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "POST /api/overrides HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {length}\r\n{fields}\r\n{body}"
    );
    get(TcpStream::connect(tcp).await.unwrap(), &request).await
}

#[tokio::test]
async fn operators_speak_over_tcp_only_with_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let token = "0123456789abcdef-token";
    let pools = [("a", "127.0.0.1:9001"), ("b", "127.0.0.1:9002")];
    fs::write(
        &path,
        config(&[("web", &pools)], UNPROBED)
            + NO_DATA
            + &format!("[process]\nbrake = 100\n[admin]\ntoken = \"{token}\"\n"),
    )
    .unwrap();
    let stage = Stage::new(&path).await;
    let serve = async |token| {
        let admin = Admin {
            reader: stage.reader.clone(),
            sender: stage.sender.clone(),
            token,
            metrics: stage.metrics.clone(),
            draining: watch::channel(false).1,
            ask: mpsc::channel(1).0,
            upgrade: mpsc::channel(1).0,
            listen: Arc::new([]),
            config: path.as_path().into(),
        };
        let doors = admin::open(Some("127.0.0.1:0".parse().unwrap()), None).await.unwrap();
        let address = doors.address().unwrap();
        tokio::spawn(doors.serve(admin));
        address
    };
    let (with, without) = (serve(stage.boot.admin_token.clone()).await, serve(None).await);
    let word = "{\"kind\":\"region\",\"name\":\"a\",\"state\":\"drain\"}";
    let json = "content-type: application/json\r\n";
    let bearer = |token: &str| format!("authorization: Bearer {token}\r\n");
    let intent = || snapshot(&stage.reader).services[0].intent(RegionId(0)).as_str();

    // A page in a browser can send neither; and without a token in the configuration nobody can.
    assert_eq!(post(with, "", word).await.0, 401);
    assert_eq!(post(with, json, word).await.0, 401);
    for wrong in ["", "0123456789abcdef-tokem", "0123456789abcdef-token2", "0123456789abcdef-toke"] {
        assert_eq!(post(with, &(bearer(wrong) + json), word).await.0, 401, "{wrong}");
    }
    assert_eq!(post(with, &format!("authorization: Basic {token}\r\n{json}"), word).await.0, 401);
    assert_eq!(post(with, &(bearer(token) + "content-type: text/plain\r\n"), word).await.0, 415);
    assert_eq!(post(with, &bearer(token), word).await.0, 415);
    let page = format!("{}{json}origin: http://evil.example\r\n", bearer(token));
    assert_eq!(post(with, &page, word).await.0, 403);
    assert_eq!(post(without, &(bearer(token) + json), word).await.0, 403);
    assert_eq!(intent(), "ready");
    let (status, page) = post(with, &(bearer(token) + json), word).await;
    assert_eq!(status, 200, "{page}");
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!((&page["override"]["who"], &page["targets"][0]), (&"token from 127.0.0.1".into(), &"a".into()));
    assert_eq!(intent(), "drain");

    // What is wrong is said with what was expected, and changes nothing.
    let fields = bearer(token) + json;
    for (body, status, words) in [
        ("", 400, "expected {"),
        ("[]", 400, "expected {"),
        ("{\"kind\":\"region\",\"name\":\"a\",\"state\":\"off\"}", 400, "state \"off\" is none"),
        ("{\"kind\":\"city\",\"name\":\"a\",\"state\":\"drain\"}", 400, "kind \"city\" is none"),
        ("{\"kind\":\"region\",\"name\":\"\",\"state\":\"drain\"}", 400, "name is empty"),
        ("{\"kind\":\"region\",\"name\":\"a\",\"state\":\"drain\",\"until\":1}", 400, "unknown field"),
        ("{\"kind\":\"region\",\"name\":\"a\",\"state\":\"drain\",\"for\":\"0s\"}", 400, "longer than nothing"),
        ("{\"kind\":\"region\",\"name\":\"c\",\"state\":\"drain\"}", 404, "there is no region `c`"),
        ("{\"kind\":\"region\",\"name\":\"b\",\"state\":\"maint\"}", 409, "`web`"),
    ] {
        let (got, said) = post(with, &fields, body).await;
        assert!(got == status && said.contains(words), "{body}: {got} {said}");
    }
    let list = get(TcpStream::connect(with).await.unwrap(), "GET /api/overrides HTTP/1.0\r\n\r\n").await;
    let list: serde_json::Value = serde_json::from_str(&list.1).unwrap();
    assert_eq!((list["overrides"].as_array().unwrap().len(), &list["kept"]), (1, &serde_json::Value::Null));
    let shown = format!("{:?} {:?}", stage.boot, stage.boot.admin_token);
    assert!(!shown.contains("token\""), "{shown}");
    stage.scrape().check();
}
