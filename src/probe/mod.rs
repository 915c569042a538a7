//! Active checks: one task for each endpoint, each with its own clock; results go to the writer as observations.
//!
//! Each kind of probe is a file: `http`, `tls`, `grpc`; a TCP probe is the connection alone. Each says in a few words what was wrong; what
//! an answer tells beside that (`Learned`) goes to whom it concerns. None of them knows the `World`.
//!
//! Refused: a probe round shared by all endpoints, which waits for its slowest member and makes every PoP knock at every origin at the
//! same instant. What a result means is decided by the `World`; here it is only found out.
//!
//! An interval is an upper bound: the jitter shortens it by up to a tenth and never lengthens it, so that detection stays within
//! interval + (fall − 1) × fast + timeout. For the same reason a probe that is still unanswered after `fast_interval` does
//! not hold up the next: a hanging origin is found out by probes that overlap.

mod grpc;
mod http;
mod tls;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::Edge;
use crate::config::tls::UpstreamTls;
use crate::proxy_protocol;
use crate::state::{Reader, Sender};
use crate::steering::Snapshot;
use crate::steering::fleet::{HealthPolicy, Probe, Protocol};
use crate::steering::snapshot::{Asked, EndpointId};
use crate::steering::trip::Trips;
use crate::steering::world::ProbeResult;
use crate::telemetry::Metrics;

/// First probes of new endpoints are spread over this, or the interval if that is shorter.
const FIRST: Duration = Duration::from_millis(100);

/// A failure that came this much after its deadline says more about this process than about the endpoint: it was stopped, or its machine was
/// paused. Such a failure is thrown away and the probe runs anew.
const LATE: Duration = Duration::from_millis(500);

/// So many late failures in a row are believed all the same: a process that is always late must not be blind.
const LATE_AT_MOST: u32 = 3;

/// Unanswered probes of one endpoint at a time.
const OVERLAP: usize = 10;

/// Whom to probe and how. A change of it is picked up by the next probe.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    service: String,
    region: String,
    /// The endpoint, as metrics name it.
    endpoint: SocketAddr,
    /// The same with the port that is probed.
    address: SocketAddr,
    /// The endpoint as configured, for the Host field.
    name: Arc<str>,
    policy: HealthPolicy,
    /// What requests to it are within, and so its probes.
    secured: Option<Arc<UpstreamTls>>,
    /// What is spoken to it: what requests speak. Without TLS another `port` may be another server's, which speaks HTTP/1.1.
    protocol: Protocol,
    /// What goes before anything else, as before requests.
    preamble: Option<proxy_protocol::Version>,
    /// Where connects are counted.
    trips: Arc<Trips>,
    /// How often its traffic ejected it: each time it is probed at once.
    ejections: u32,
}

impl Target {
    /// Of what is asked within TLS, or without.
    fn scheme(&self) -> &'static str {
        if self.secured.is_some() { "https" } else { "http" }
    }
}

/// Probes the endpoints of every published snapshot until the future is dropped.
pub async fn run(mut reader: Reader, sender: Sender, metrics: Metrics) {
    let mut tasks = JoinSet::new();
    let mut running: HashMap<EndpointId, (watch::Sender<Target>, AbortHandle)> = HashMap::new();
    let tls = tls::Prober::new();
    loop {
        let mut wanted = {
            let published = reader.load();
            targets(&published.snapshot, &published.edge)
        };
        running.retain(|id, (target, task)| {
            // A task that ended (its endpoint was gone for a moment) is started again below.
            if task.is_finished() {
                return false;
            }
            let Some(new) = wanted.remove(id) else {
                task.abort();
                return false;
            };
            target.send_if_modified(|old| {
                let differs = *old != new;
                *old = new;
                differs
            });
            true
        });
        for (id, target) in wanted {
            let (target, watched) = watch::channel(target);
            let task = tasks.spawn(keep_probing(id, watched, tls.clone(), sender.clone(), metrics.clone()));
            running.insert(id, (target, task));
        }
        while tasks.try_join_next().is_some() {}
        reader.changed().await;
    }
}

/// Every endpoint whose service has probes.
fn targets(snapshot: &Snapshot, edge: &Edge) -> HashMap<EndpointId, Target> {
    let fleet = snapshot.fleet();
    let mut targets = HashMap::new();
    for (pool, view) in fleet.pools.iter().zip(&snapshot.pools) {
        let service = fleet.service(pool.service);
        if service.health.probe == Probe::None {
            continue;
        }
        for endpoint in view.endpoints.iter() {
            let mut address = endpoint.address;
            address.set_port(service.health.port.unwrap_or(address.port()));
            let target = Target {
                service: service.name.clone(),
                region: fleet.region(pool.region).name.clone(),
                endpoint: endpoint.address,
                address,
                name: endpoint.name.clone(),
                policy: service.health.clone(),
                secured: edge.upstream_tls(service.upstream.tls).cloned(),
                protocol: match service.upstream.protocol {
                    Protocol::H2c if address.port() != endpoint.address.port() => Protocol::Http1,
                    protocol => protocol,
                },
                preamble: service.upstream.proxy_protocol,
                trips: Arc::clone(endpoint.meter.trips()),
                ejections: endpoint.ejected.count,
            };
            targets.insert(endpoint.id, target);
        }
    }
    targets
}

/// What a probe brought home.
struct Done {
    began: Instant,
    took: Duration,
    deadline: Duration,
    result: Result<(), String>,
    learned: Learned,
}

/// What an answer tells beside the verdict.
#[derive(Clone, Debug, Default, PartialEq)]
struct Learned {
    /// What the endpoint asks for; counts with a pass only.
    asked: Asked,
    /// What it asks for and cannot be understood, in a few words.
    odd: Option<String>,
    /// When its certificate ends, Unix seconds.
    certificate: Option<i64>,
}

/// An endpoint whose certificate is shown as long as it is probed.
struct Certified {
    target: Target,
    metrics: Metrics,
}

impl Certified {
    fn show(&self, expiry: Option<i64>) {
        let Target { service, region, endpoint, .. } = &self.target;
        self.metrics.certificate(service, region, &endpoint.to_string(), expiry);
    }
}

impl Drop for Certified {
    /// The endpoint may be there still, and be probed in another way.
    fn drop(&mut self) {
        self.show(None);
    }
}

/// The life of one endpoint's probes.
async fn keep_probing(
    id: EndpointId,
    mut target: watch::Receiver<Target>,
    tls: tls::Prober,
    sender: Sender,
    metrics: Metrics,
) {
    let mut under_way = JoinSet::new();
    let first = target.borrow().policy.interval.min(FIRST);
    let mut next = Instant::now() + first.mul_f64(fastrand::f64());
    let mut began = next;
    let mut late = 0;
    let mut ejections = target.borrow().ejections;
    let mut odd_told = false;
    let certified = Certified { target: target.borrow().clone(), metrics: metrics.clone() };
    loop {
        tokio::select! {
            () = sleep_until(next), if under_way.len() < OVERLAP => {
                began = Instant::now();
                let now = target.borrow_and_update().clone();
                next = began + shortened(now.policy.fast_interval);
                let tls = tls.clone();
                under_way.spawn(async move {
                    let deadline = now.policy.timeout;
                    let mut learned = Learned::default();
                    let result = probe(&now, &tls, &mut learned).await;
                    Done { began, took: began.elapsed(), deadline, result, learned }
                });
            }
            Some(Ok(done)) = under_way.join_next() => {
                let (service, region, address) = {
                    let target = target.borrow();
                    (target.service.clone(), target.region.clone(), target.endpoint.to_string())
                };
                let count = |result| metrics.probed(&service, &region, &address, result, done.took);
                if done.result.is_err() && done.took > done.deadline + LATE && late < LATE_AT_MOST {
                    late += 1;
                    count("late");
                    next = Instant::now();
                    continue;
                }
                late = 0;
                count(if done.result.is_ok() { "pass" } else { "fail" });
                if done.learned.certificate.is_some() {
                    certified.show(done.learned.certificate);
                }
                if let Some(odd) = done.learned.odd.filter(|_| !odd_told) {
                    odd_told = true;
                    tracing::warn!(service, region, endpoint = address, odd, "what a probe's answer asks for is ignored");
                }
                let asked = done.learned.asked;
                let result = done.result.map_or_else(ProbeResult::Fail, |()| ProbeResult::Pass(asked));
                let Some(delay) = sender.probed(id, result, done.began.into_std()).await else { return };
                // From the start of the last probe: an answer that took its time does not stretch the interval.
                next = began.max(done.began) + shortened(delay);
            }
            changed = target.changed() => {
                if changed.is_err() {
                    return;
                }
                // An hour's sleep under the old policy must not outlive it.
                let (interval, count) = {
                    let target = target.borrow_and_update();
                    (target.policy.interval, target.ejections)
                };
                let wait = if std::mem::replace(&mut ejections, count) == count { fastrand::f64() } else { 0.0 };
                next = next.min(Instant::now() + interval.mul_f64(wait));
            }
        }
    }
}

fn shortened(delay: Duration) -> Duration {
    delay.mul_f64(0.9 + 0.1 * fastrand::f64())
}

/// One probe within its deadline; the error says in a few words what was wrong.
async fn probe(target: &Target, tls: &tls::Prober, learned: &mut Learned) -> Result<(), String> {
    let deadline = target.policy.timeout;
    match timeout(deadline, attempt(target, tls, learned)).await {
        Ok(result) => result,
        Err(_) => Err(format!("timeout after {} ms", deadline.as_millis())),
    }
}

async fn attempt(target: &Target, tls: &tls::Prober, learned: &mut Learned) -> Result<(), String> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(target.address).await.map_err(|error| format!("connect {}", words(&error)))?;
    target.trips.record(began.elapsed());
    // A small request must not wait for anything; without the option it is only slower.
    let _ = stream.set_nodelay(true);
    if let Some(version) = target.preamble {
        let own = proxy_protocol::write_own(version);
        stream.write_all(&own).await.map_err(|error| format!("connection {}", words(&error)))?;
    }
    let stream = Bounded { stream, left: ANSWER };
    match &target.policy.probe {
        Probe::None | Probe::Tcp => Ok(()),
        Probe::Tls { host } => tls.handshake(stream, target, host, learned).await,
        Probe::Grpc { host } => match &target.secured {
            None => grpc::check(stream, target, host).await,
            Some(secured) => grpc::check(tls::within(secured, stream, target, learned).await?, target, host).await,
        },
        Probe::Http { path, method, host, headers, status, body } => {
            let (status, body) = (status.as_slice(), body.as_bytes());
            let request = |http2| http::request(target, path, method, host, headers, http2);
            match &target.secured {
                None => {
                    let http2 = target.protocol == Protocol::H2c;
                    http::exchange(stream, request(http2)?, status, body, learned).await
                }
                Some(secured) => {
                    let stream = tls::within(secured, stream, target, learned).await?;
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    http::exchange(stream, request(http2)?, status, body, learned).await
                }
            }
        }
    }
}

/// Bytes that an endpoint may answer a probe with, whatever it says in them.
const ANSWER: usize = 256 * 1024;

/// A connection that gives so many bytes and no more. An endpoint that floods would otherwise keep the thread busy that all probes share, beyond their
/// deadlines too.
#[derive(Debug)]
struct Bounded {
    stream: TcpStream,
    left: usize,
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::other(format!("brings more than {} KiB", ANSWER / 1024))));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.left = self.left.saturating_sub(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Runs an exchange beside the connection that carries it.
async fn carried<T>(exchange: impl Future<Output = T>, connection: impl Future) -> T {
    let mut exchange = pin!(exchange);
    let mut connection = pin!(connection);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            result = &mut exchange => return result,
            // When the connection ended, what it brought still waits in the exchange.
            _ = &mut connection, if open => open = false,
        }
    }
}

/// What probes call themselves.
const USER_AGENT: &str = concat!("meridian/", env!("CARGO_PKG_VERSION"), " probe");

/// The authority of a probe: `host` if given, else the endpoint's name as configured, with the port that is probed.
fn authority(target: &Target, host: &str) -> String {
    if !host.is_empty() {
        return host.to_owned();
    }
    match bare(&target.name) {
        Ok(ip) => SocketAddr::new(ip, target.address.port()).to_string(),
        Err(name) => format!("{name}:{}", target.address.port()),
    }
}

/// A host with or without a port: an address, or else a name. An endpoint configured by address carries that as its name.
fn bare(host: &str) -> Result<IpAddr, &str> {
    let ip = host.parse::<SocketAddr>().map(|address| address.ip());
    ip.or_else(|_| host.trim_start_matches('[').trim_end_matches(']').parse())
        .map_err(|_| host.split(':').next().unwrap_or(host))
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset => "reset".to_owned(),
        io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steering::fleet::Passive;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers each connection's head with `answer` and closes it; `None`: says nothing and keeps it open. Returns what it was sent.
    async fn server(answer: Option<&'static str>) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heads, received) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let _ = heads.send(String::from_utf8(head).unwrap()).await;
                match answer {
                    Some(answer) => drop(stream.write_all(answer.as_bytes()).await),
                    None => kept.push(stream),
                }
            }
        });
        (address, received)
    }

    fn target(address: SocketAddr, body: &str) -> Target {
        let probe = Probe::Http {
            path: "/healthz?deep=1".to_owned(),
            method: "GET".to_owned(),
            host: String::new(),
            headers: vec![("x-probe".to_owned(), "yes".to_owned())],
            status: vec![(200, 299), (401, 401)],
            body: body.to_owned(),
        };
        target_of(address, probe)
    }

    /// One probe: its verdict, and what else was learned.
    pub(super) async fn once(target: &Target) -> (Result<(), String>, Learned) {
        let mut learned = Learned::default();
        let result = probe(target, &tls::Prober::new(), &mut learned).await;
        (result, learned)
    }

    pub(super) fn target_of(address: SocketAddr, probe: Probe) -> Target {
        let policy = HealthPolicy {
            probe,
            port: None,
            interval: Duration::from_secs(1),
            fast_interval: Duration::from_millis(200),
            timeout: Duration::from_millis(300),
            rise: 2,
            fall: 3,
            min_healthy: 50,
            overprovision: 1.4,
            hold: Duration::ZERO,
            ramp: Duration::ZERO,
            passive: Passive::default(),
            stall: true,
        };
        Target {
            service: "web".into(),
            region: "r".into(),
            endpoint: address,
            address,
            name: "origin.example:80".into(),
            policy,
            secured: None,
            protocol: Protocol::Http1,
            preamble: None,
            trips: Arc::default(),
            ejections: 0,
        }
    }

    #[tokio::test]
    async fn answers_and_what_is_said_of_them() {
        for (answer, body, want) in [
            (Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), "", Ok(())),
            (Some("HTTP/1.1 204 No Content\r\n\r\n"), "", Ok(())),
            (Some("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"), "", Ok(())),
            (Some("HTTP/1.1 200 OK\r\n\r\nall is well"), "is well", Ok(())),
            (
                Some("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbusy"),
                "well",
                Err("the wanted text is not in the body"),
            ),
            (Some("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"), "", Err("status 500")),
            (Some("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n"), "", Err("status 302")),
            (Some("SSH-2.0-OpenSSH_9.9\r\n\r\n"), "", Err("an answer that is not HTTP/1.1")),
            (Some(""), "", Err("connection closed before the answer")),
            (None, "", Err("timeout after 300 ms")),
        ] {
            let (address, _heads) = server(answer).await;
            assert_eq!(once(&target(address, body)).await.0, want.map_err(str::to_owned), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn who_floods_holds_nobody_up() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n";
        for (begin, endless) in [
            (String::new(), "HTTP/1.1 103 Early Hints\r\n\r\n"),
            (chunked.to_owned(), "x: y\r\n"),
            (format!("{chunked}\r\n"), "1\r\nx\r\n"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let target = target(listener.local_addr().unwrap(), "nowhere");
            let flood = async {
                let mut stream = listener.accept().await.unwrap().0;
                stream.write_all(begin.as_bytes()).await.unwrap();
                let more = endless.repeat(64 * 1024 / endless.len());
                while stream.write_all(more.as_bytes()).await.is_ok() {}
            };
            let (result, ()) = tokio::join!(once(&target), flood);
            let why = result.0.unwrap_err();
            assert!(
                ["256 KiB", "64 KiB", "not HTTP/1.1"].iter().any(|words| why.contains(words)),
                "{endless:?}: {why}"
            );
        }
    }

    #[tokio::test]
    async fn an_answer_that_passes_may_ask_for_something() {
        let fields = "x-meridian-drain: yes\r\nx-meridian-weight: 25\r\ncontent-length: 0\r\n\r\n";
        let answers = [
            ("HTTP/1.1 200 OK\r\n", Ok(()), Asked { drain: true, weight: 25 }),
            ("HTTP/1.1 500 Oops\r\n", Err("status 500".to_owned()), Asked::default()),
        ];
        for (line, want, asked) in answers {
            let (address, _heads) = server(Some(format!("{line}{fields}").leak())).await;
            let (result, learned) = once(&target(address, "")).await;
            assert_eq!((result, learned.asked, learned.odd), (want, asked, None));
        }
    }

    #[tokio::test]
    async fn nobody_there_is_refused() {
        // Bound and not listening: nobody else gets the port meanwhile.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        assert_eq!(once(&target(address, "")).await.0, Err("connect refused".to_owned()));
    }

    #[tokio::test]
    async fn the_request_is_the_configured_one() {
        let (address, mut heads) = server(Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).await;
        once(&target(address, "")).await.0.unwrap();
        let head = heads.recv().await.unwrap().to_ascii_lowercase();
        assert!(head.starts_with("get /healthz?deep=1 http/1.1\r\n"), "{head}");
        for line in [
            format!("host: origin.example:{}", address.port()),
            "connection: close".to_owned(),
            format!("user-agent: meridian/{} probe", env!("CARGO_PKG_VERSION")),
            "x-probe: yes".to_owned(),
        ] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
        }
    }

    #[test]
    fn hosts_of_endpoints() {
        let mut target = target("127.0.0.1:8080".parse().unwrap(), "");
        for (name, want) in [
            ("origin.example", "origin.example:8080"),
            ("origin.example:80", "origin.example:8080"),
            ("10.0.0.1", "10.0.0.1:8080"),
            ("10.0.0.1:80", "10.0.0.1:8080"),
            ("2001:db8::1", "[2001:db8::1]:8080"),
            ("[2001:db8::1]:80", "[2001:db8::1]:8080"),
        ] {
            target.name = name.into();
            assert_eq!(authority(&target, ""), want);
        }
    }
}
