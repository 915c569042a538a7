//! The play: two regions, clients of which 70 % are nearest to one and 30 % to the other, and an outage.

#![expect(clippy::disallowed_methods, reason = "a shell: it plays against the clock")]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::demo::say;
use crate::demo::stage::Stage;
use crate::geo::Canonical;
use crate::load::Loader;
use crate::steering::{Query, RegionSet, ServiceId, Snapshot};

/// The two regions and the percent of clients that are nearest to each.
const SHARES: [(&str, usize); 2] = [("us-east", 70), ("us-west", 30)];
const CLIENTS: usize = 1000;
const CONNECTIONS: usize = 8;
/// Requests a second of each connection.
const RATE: u64 = 50;

const KILL_AT: Duration = Duration::from_secs(8);
const RETURN_AT: Duration = Duration::from_secs(15);
const END_AT: Duration = Duration::from_secs(29);
const ROW: Duration = Duration::from_secs(1);

/// Runs the play; exit code 1 when a request failed.
pub(super) fn run(listen: SocketAddr, admin: SocketAddr) -> Result<ExitCode, String> {
    let regions = SHARES.map(|(name, _)| name);
    let mut stage = Stage::build(&regions, listen, admin, Stage::BRISK)?;
    let clients = clients(&stage)?;
    let proxy = Proxy::start(&stage)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let failed = runtime.block_on(play(&mut stage, listen, admin, clients));
    drop(proxy);
    failed.map(|failed| ExitCode::from(u8::from(failed > 0)))
}

/// Addresses whose nearest region is as `SHARES` says, found with the proxy's own decision.
fn clients(stage: &Stage) -> Result<Vec<Ipv4Addr>, String> {
    let view = Loader::default().load(&stage.config()).map_err(|error| error.to_string())?.view;
    let snapshot = Snapshot::assuming(view, RegionSet::EMPTY);
    let mut wanted = SHARES.map(|(name, share)| (name, CLIENTS * share / 100));
    let mut found = Vec::with_capacity(CLIENTS);
    let mut random = fastrand::Rng::with_seed(70);
    while wanted.iter().any(|(_, left)| *left > 0) {
        let address = Ipv4Addr::from(random.u32(..));
        let client = Canonical::new(IpAddr::V4(address));
        let place = snapshot.view.atlas.place(snapshot.view.atlas.locate(client).place);
        if place.point.is_none() {
            continue;
        }
        let mut walk =
            snapshot.walk(&Query { client, service: ServiceId(0), chance: 0, affinity: None, full: RegionSet::EMPTY });
        let Ok(take) = walk.take(&snapshot) else { continue };
        let name = snapshot.fleet().region(take.region).name.as_str();
        if let Some((_, left)) = wanted.iter_mut().find(|(wanted, left)| *wanted == name && *left > 0) {
            *left -= 1;
            found.push(address);
        }
    }
    random.shuffle(&mut found);
    Ok(found)
}

/// The proxy as a process of its own. Ended when dropped.
struct Proxy(Child);

impl Proxy {
    fn start(stage: &Stage) -> Result<Proxy, String> {
        let program = std::env::current_exe().map_err(|error| format!("own program not found: {error}"))?;
        let config = stage.config();
        let log = std::fs::File::create(config.with_extension("log")).map_err(|error| format!("log: {error}"))?;
        let child = Command::new(program)
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        child.map(Proxy).map_err(|error| format!("meridian did not start: {error}"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What happened since the last row.
#[derive(Default)]
struct Tally {
    by_region: HashMap<String, u64>,
    failed: u64,
    slowest: Duration,
}

async fn play(stage: &mut Stage, listen: SocketAddr, admin: SocketAddr, clients: Vec<Ipv4Addr>) -> Result<u64, String> {
    until_ready(admin).await?;
    let tally = Arc::new(Mutex::new(Tally::default()));
    let clients = Arc::new(clients);
    for n in 0..CONNECTIONS {
        tokio::spawn(traffic(n, listen, Arc::clone(&clients), Arc::clone(&tally)));
    }
    say(&format!(
        "clients: {CLIENTS} addresses, 70 % nearest to us-east, 30 % nearest to us-west; steering: nearest\n"
    ));
    say("  time   requests   us-east   us-west   failed   slowest");
    let start = Instant::now();
    let mut failed = 0;
    let (mut killed, mut returned) = (false, false);
    let mut rows = interval(ROW);
    rows.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rows.tick().await;
    while start.elapsed() < END_AT {
        let mut note = String::new();
        if !killed && start.elapsed() >= KILL_AT {
            killed = true;
            let origin = stage.origin_mut("us-east")?;
            note = format!("   <- us-east is killed (process {})", origin.id());
            origin.kill();
        }
        if !returned && start.elapsed() >= RETURN_AT {
            returned = true;
            stage.origin_mut("us-east")?.restart()?;
            note = "   <- us-east is started again: probes, hold 2 s, ramp 5 s".to_owned();
        }
        if !note.is_empty() {
            say(&note);
        }
        rows.tick().await;
        failed += row(start.elapsed(), &tally);
    }
    say(&format!("\nfailed requests: {failed}"));
    Ok(failed)
}

/// Prints a row and starts the next; returns the failures of this one.
fn row(elapsed: Duration, tally: &Mutex<Tally>) -> u64 {
    let tally = std::mem::take(&mut *tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    let total: u64 = tally.by_region.values().sum();
    let share = |name: &str| {
        let part = tally.by_region.get(name).copied().unwrap_or(0);
        format!("{:.1} %", part as f64 * 100.0 / total.max(1) as f64)
    };
    say(&format!(
        "{:>5.1}s   {:>8}   {:>7}   {:>7}   {:>6}   {:>4} ms",
        elapsed.as_secs_f64(),
        total,
        share("us-east"),
        share("us-west"),
        tally.failed,
        tally.slowest.as_millis(),
    ));
    tally.failed
}

/// One client connection that sends requests at a fixed pace, each for another client address.
async fn traffic(n: usize, listen: SocketAddr, clients: Arc<Vec<Ipv4Addr>>, tally: Arc<Mutex<Tally>>) {
    let mut pace = interval(Duration::from_micros(1_000_000 / RATE));
    let mut sender = None;
    for client in clients.iter().cycle().skip(n * CLIENTS / CONNECTIONS) {
        pace.tick().await;
        let begun = Instant::now();
        let answer = request(&mut sender, listen, *client).await;
        let mut tally = tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tally.slowest = tally.slowest.max(begun.elapsed());
        match answer {
            Ok(region) => *tally.by_region.entry(region).or_default() += 1,
            Err(_) => {
                tally.failed += 1;
                sender = None;
            }
        }
    }
}

/// The region that answered.
async fn request(
    sender: &mut Option<SendRequest<Empty<Bytes>>>,
    listen: SocketAddr,
    client: Ipv4Addr,
) -> Result<String, String> {
    let connection = match sender {
        Some(connection) => connection,
        None => sender.insert(connect(listen).await?),
    };
    let request = Request::get("/")
        .header("host", listen.to_string())
        .header("x-forwarded-for", client.to_string())
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    connection.ready().await.map_err(|error| error.to_string())?;
    let answer = connection.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let region = answer.headers().get("x-origin").and_then(|v| v.to_str().ok()).map(str::to_owned);
    answer.into_body().collect().await.map_err(|error| error.to_string())?;
    match region {
        Some(region) if status == StatusCode::OK => Ok(region),
        _ => Err(format!("status {status}")),
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Waits until `/readyz` says 200.
async fn until_ready(admin: SocketAddr) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if ready(admin).await == Ok(StatusCode::OK) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("meridian is not ready after 30 s (http://{admin}/readyz)"));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn ready(admin: SocketAddr) -> Result<StatusCode, String> {
    let mut sender = connect(admin).await?;
    let request = Request::get("/readyz").header("host", admin.to_string()).body(Empty::new());
    let request: Request<Empty<Bytes>> = request.map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    Ok(answer.status())
}
