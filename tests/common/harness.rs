//! The listening service, the mover and the phases on real sockets, over a world that stands still.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meridian::config::{AccessLines, AccessLog, Engine, Listen};
use meridian::geo::AtlasBuilder;
use meridian::listen::{Drain, HttpService};
use meridian::origin;
use meridian::proxy::Shared;
use meridian::server;
use meridian::state::{self, Published, Reader, Sender};
use meridian::steering::snapshot::Asked;
use meridian::steering::world::ProbeResult;
use meridian::steering::{RegionSet, Snapshot, View};
use meridian::telemetry::{AccessLogGuard, AccessLogger, Metrics};
use pingora::services::Service;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::process::PATIENCE;
use super::world;

/// A proxy in this process.
pub struct Proxy {
    pub address: SocketAddr,
    pub drain: Drain,
    pub service: JoinHandle<()>,
    pub snapshot: Arc<Snapshot>,
    pub metrics: Metrics,
    log: PathBuf,
    _shutdown: watch::Sender<bool>,
    _folder: tempfile::TempDir,
    _guard: AccessLogGuard,
}

impl Proxy {
    /// Serves what `config` says through our engine, with no geo data: every client is nowhere, regions come in the order of the
    /// configuration. The regions of `down` are down.
    pub async fn start(config: &str, down: &[&str]) -> Proxy {
        Proxy::start_on(Engine::Native, config, down).await
    }

    /// The same through that mover.
    pub async fn start_on(engine: Engine, config: &str, down: &[&str]) -> Proxy {
        Proxy::listening(listener(engine), config, down).await
    }

    /// The same on a listener of that kind.
    pub async fn listening(listen: Listen, config: &str, down: &[&str]) -> Proxy {
        let config = world::compile(config);
        let atlas = Arc::new(AtlasBuilder::new().build());
        let down: RegionSet = down.iter().map(|name| config.fleet.region_named(name).expect("a region")).collect();
        let snapshot = Arc::new(Snapshot::assuming(View::compile(config.fleet, atlas, None), down));
        let metrics = Metrics::new();
        let handles = metrics.published(&snapshot, &config.edge, 0);
        let reader = Reader::fixed(Published { snapshot, edge: config.edge, handles });
        Proxy::over(listen, reader, &metrics).await
    }

    /// Over a living world, in which every endpoint passed its probes: regions come in the order of the configuration.
    pub async fn live_on(engine: Engine, config: &str) -> (Proxy, Sender) {
        let config = world::compile(config);
        let view = View::compile(config.fleet, Arc::new(AtlasBuilder::new().build()), None);
        let metrics = Metrics::new();
        let (sender, reader, writer) = state::start(view, config.edge, metrics.clone());
        tokio::spawn(writer);
        let pools = reader.load().snapshot.pools.clone();
        for endpoint in pools.iter().flat_map(|pool| pool.endpoints.iter()) {
            sender.probed(endpoint.id, ProbeResult::Pass(Asked::default()), Instant::now()).await;
            sender.probed(endpoint.id, ProbeResult::Pass(Asked::default()), Instant::now()).await;
        }
        (Proxy::over(listener(engine), reader, &metrics).await, sender)
    }

    async fn over(listen: Listen, reader: Reader, metrics: &Metrics) -> Proxy {
        let snapshot = reader.load().snapshot.clone();
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("access.log");
        let (access, guard) =
            AccessLogger::start(&AccessLog::File(log.clone()), AccessLines::default(), None, metrics).expect("a log");
        let shared = Arc::new(Shared::new(reader.clone(), access, Instant::now()));
        let listen = server::listeners(&[listen], &shared, metrics, 2);
        let mut service =
            HttpService::bind(listen, |_| Vec::new(), reader, metrics.clone(), 1, PATIENCE).expect("it can listen");
        let (address, drain) = (service.local_addresses()[0], service.drain());
        let (shutdown, watch) = watch::channel(false);
        let service = tokio::spawn(async move { service.start_service(None, watch, 1).await });
        let metrics = metrics.clone();
        Proxy { address, drain, service, snapshot, metrics, log, _shutdown: shutdown, _folder: folder, _guard: guard }
    }

    /// Requests in flight, over all endpoints.
    pub fn in_flight(&self) -> u32 {
        let endpoints = self.snapshot.pools.iter().flat_map(|pool| pool.endpoints.iter());
        endpoints.map(|endpoint| endpoint.meter.in_flight()).sum()
    }

    /// The lines of the access log so far.
    pub fn lines_now(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the access log to have `count` lines, whatever is still in flight.
    pub async fn lines_of(&self, count: usize) -> Vec<Value> {
        let mut lines = Vec::new();
        until("lines in the access log", || {
            lines = self.lines_now();
            lines.len() >= count
        })
        .await;
        lines
    }

    /// Waits for the access log to have `count` lines, and that nothing is in flight any more.
    pub async fn lines(&self, count: usize) -> Vec<Value> {
        let lines = self.lines_of(count).await;
        until("nothing is in flight", || self.in_flight() == 0).await;
        lines
    }
}

/// A plain listener on any port.
pub fn listener(engine: Engine) -> Listen {
    Listen { address: SocketAddr::from(([127, 0, 0, 1], 0)), engine, http2: false, tls: false, proxy_protocol: false }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A real origin in this process.
pub async fn origin(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("it can listen");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { origin::serve(name, listener).await });
    address
}

/// An address that refuses connections: bound, so that nobody else gets it, but not listening.
pub fn refusing() -> (SocketAddr, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("it can be bound");
    (socket.local_addr().expect("an address").as_socket().expect("an IP address"), socket)
}

/// An upstream that follows a script: the heads of the requests it got, and what it does with each connection.
#[derive(Clone, Default)]
pub struct Script {
    pub requests: Arc<Mutex<Vec<String>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Script {
    /// Requests so far.
    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// Reads one request head; `None` when the connection ends before one is whole.
    pub async fn request(&self, stream: &mut TcpStream) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        self.requests.lock().unwrap().push(head.clone());
        Some(head)
    }
}

/// Starts an upstream that hands each connection to `serve`.
pub async fn scripted<F, T>(serve: F) -> (SocketAddr, Script)
where
    F: Fn(TcpStream, Script) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("it can listen");
    let address = listener.local_addr().expect("an address");
    let script = Script::default();
    let shared = script.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            shared.connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream, shared.clone()));
        }
    });
    (address, script)
}

/// An upstream that gives the same answer to every request.
pub async fn answering(answer: &'static str) -> (SocketAddr, Script) {
    scripted(move |mut stream, script| async move {
        while script.request(&mut stream).await.is_some() {
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// An upstream that gives the same answer to every request, once that is true.
pub async fn answering_once(opened: watch::Receiver<bool>, answer: &'static str) -> (SocketAddr, Script) {
    scripted(move |mut stream, script| {
        let mut opened = opened.clone();
        async move {
            while script.request(&mut stream).await.is_some() {
                opened.wait_for(|open| *open).await.expect("somebody can open it");
                stream.write_all(answer.as_bytes()).await.expect("the proxy reads it");
            }
        }
    })
    .await
}

/// An upstream that reads requests and never answers.
pub async fn silent() -> (SocketAddr, Script) {
    scripted(|mut stream, script| async move { while script.request(&mut stream).await.is_some() {} }).await
}

/// That endpoint of that region is found down.
pub async fn found_down(proxy: &Proxy, sender: &Sender, region: usize, endpoint: usize) {
    let id = proxy.snapshot.pools[region].endpoints[endpoint].id;
    for _ in 0..3 {
        sender.probed(id, ProbeResult::Fail("silent".into()), Instant::now()).await;
    }
}

/// Sends bytes as they are and reads to the end of the connection.
pub async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it accepts");
    stream.write_all(request).await.expect("it reads");
    let mut answer = Vec::new();
    // A connection cut by the other side ends the answer too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status of a raw answer; 0 when there is none.
pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// A configuration of one service over these regions, in this order. `more` is put before everything.
pub fn config(more: &str, service: &str, regions: &[(&str, SocketAddr)]) -> String {
    let mut text = format!("{more}\n");
    for (name, _) in regions {
        text += &format!("[regions.{name}]\n");
    }
    text += &format!("[services.web]\n{service}\n[services.web.health]\nkind = \"none\"\n");
    for (name, address) in regions {
        text += &format!("[services.web.pools.{name}]\nendpoints = [\"{address}\"]\n");
    }
    text
}
