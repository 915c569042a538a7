//! One fault from before it to after it, and what was seen of it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hole;
use super::load::{Done, OpenLoad};
use crate::common::process::{Origin, Proxy};

/// What happens to the region.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// SIGKILL: connections are reset, new ones refused.
    Kill,
    /// SIGSTOP: handshakes complete, nothing answers.
    Stop,
    /// The machine is gone: packets to it come to nothing. In a network namespace only.
    Vanish,
    /// As `meridian origin --troubled` says.
    Trouble(&'static str),
    /// Its health page answers with this status.
    Health(&'static str),
    /// The health pages of all regions answer with this status.
    HealthEverywhere(&'static str),
    /// Its health page is bad and good in turn, three probes each.
    Flap,
    /// SIGKILL, and a hundred reloads one after the other.
    KillAndReload,
    /// Meridian itself stands still for two seconds.
    Ourselves,
}

/// What has to hold.
#[derive(Clone, Copy, Debug)]
pub struct Bars {
    pub failed_gets: usize,
    pub failed_posts: usize,
    /// Answers slower than a second.
    pub slower: usize,
    /// So long after the fault nothing but probes goes to the region.
    pub quiet_after: Option<Duration>,
    /// Attempts ÷ requests.
    pub attempts: Option<f64>,
}

pub struct Seen {
    pub all: Vec<Done>,
    pub victim: String,
    pub fault: Instant,
    pub log: String,
    access_log: String,
    /// Attempts at the region from `quiet_after` on.
    late_attempts: u64,
    /// Attempts ÷ requests from the fault on.
    attempts: f64,
    journals: Vec<String>,
}

const REGIONS: [&str; 3] = ["us-east", "us-west", "eu-west"];
const VICTIM: &str = REGIONS[2];

/// Requests a second.
const RATE: u32 = 160;

/// The fault lasts so long.
const FAULT: Duration = Duration::from_secs(6);

const CONFIG: &str = r#"
[client_ip]
trusted = ["127.0.0.0/8"]

[regions.us-east]
location = [38.95, -77.45]

[regions.us-west]
location = [45.84, -119.70]

[regions.eu-west]
location = [53.35, -6.26]

[services.web.health]
interval = "500ms"

[services.web.timeouts]
first_byte = "3s"
"#;

/// Clients on three continents, from the embedded database.
fn clients() -> Arc<Vec<IpAddr>> {
    let bases = ["128.101.0.0", "140.142.0.0", "81.2.69.0", "46.4.0.0", "133.11.0.0", "210.130.0.0"];
    let of = |n: u32| {
        bases.iter().map(move |base| {
            let base: Ipv4Addr = base.parse().unwrap();
            IpAddr::from((u32::from(base) + n * 37 % 256).to_be_bytes())
        })
    };
    Arc::new((0..100).flat_map(of).collect())
}

struct Scene {
    origins: Vec<Origin>,
    journals: Vec<PathBuf>,
    proxy: Proxy,
    config: String,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let journals: Vec<PathBuf> = REGIONS.iter().map(|name| folder.path().join(name)).collect();
        let start = |(name, journal): (&&str, &PathBuf)| match hole::is_inside() && *name == VICTIM {
            true => hole::origin(name, journal),
            false => Origin::troubled(name, ([127, 0, 0, 1], 0).into(), journal, &[]),
        };
        let origins: Vec<Origin> = REGIONS.iter().zip(&journals).map(start).collect();
        let mut config = CONFIG.to_owned();
        for origin in &origins {
            let (name, address) = (&origin.name, origin.address);
            config += &format!("\n[services.web.pools.{name}]\nendpoints = [\"{address}\"]\n");
        }
        let proxy = Proxy::start(&config, |_| {}).await;
        Scene { origins, journals, proxy, config, _folder: folder }
    }

    fn victim(&mut self) -> &mut Origin {
        &mut self.origins[2]
    }

    async fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => self.victim().kill(),
            Fault::Stop => signal(self.victim().pid(), "STOP"),
            Fault::Vanish => hole::vanish(),
            Fault::Trouble(word) => self.victim().control(&format!("trouble={word}")).await,
            Fault::Health(status) => self.victim().control(&format!("health={status}")).await,
            Fault::HealthEverywhere(status) => {
                for origin in &self.origins {
                    origin.control(&format!("health={status}")).await;
                }
            }
            Fault::Flap => {
                for _ in 0..5 {
                    for status in ["500", "200"] {
                        self.victim().control(&format!("health={status}")).await;
                        tokio::time::sleep(Duration::from_millis(550)).await;
                    }
                }
            }
            Fault::KillAndReload => {
                self.victim().kill();
                let text = self.config.clone();
                for n in 1..=100 {
                    // Something that changes what is compiled.
                    let bias = format!("[regions.us-west]\nbias = {}", n % 2);
                    self.proxy.write_config(&text.replace("[regions.us-west]", &bias));
                    self.proxy.until("the next generation", async || self.proxy.generation().await > n).await;
                }
            }
            Fault::Ourselves => {
                signal(self.proxy.pid(), "STOP");
                tokio::time::sleep(Duration::from_secs(2)).await;
                signal(self.proxy.pid(), "CONT");
            }
        }
    }

    async fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Stop => signal(self.victim().pid(), "CONT"),
            Fault::Vanish => hole::appear(),
            _ => {}
        }
    }

    /// Attempts so far: at the region, and at all.
    async fn attempts(&self) -> (u64, u64) {
        let mut sum = 0;
        let mut own = 0;
        for region in REGIONS {
            let series = format!("meridian_attempts_total{{region=\"{region}\",service=\"web\"}}");
            let count = self.proxy.metric(&series).await.unwrap_or(0.0) as u64;
            sum += count;
            if region == VICTIM {
                own = count;
            }
        }
        (own, sum)
    }

    /// Until the region is down for the service; returns how long that took.
    async fn down(&self) -> Duration {
        let begun = Instant::now();
        let is_down = async || {
            let status = self.proxy.status().await;
            let regions = status["services"][0]["regions"].as_array().unwrap().clone();
            regions.iter().any(|region| region["name"] == VICTIM && region["state"] == "down")
        };
        self.proxy.until("the region down", is_down).await;
        begun.elapsed()
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap().success());
}

/// Plays a fault once.
pub async fn run(fault: Fault) -> Seen {
    play(fault, None).await
}

async fn play(fault: Fault, quiet_after: Option<Duration>) -> Seen {
    let mut scene = Scene::new().await;
    let load = OpenLoad::start(scene.proxy.listen, RATE, clients());
    // Enough answers of each region are known to tell what is slow there.
    for region in REGIONS {
        let series = format!("meridian_attempts_total{{region=\"{region}\",service=\"web\"}}");
        scene.proxy.until("traffic", async || scene.proxy.metric(&series).await >= Some(130.0)).await;
    }
    let (_, before) = scene.attempts().await;
    let at = Instant::now();
    scene.begin(fault).await;
    let late = at + quiet_after.unwrap_or(FAULT);
    tokio::time::sleep_until(late.into()).await;
    let (from, _) = scene.attempts().await;
    tokio::time::sleep_until((at + FAULT).into()).await;
    let (to, sum) = scene.attempts().await;
    let all = load.stop().await;
    scene.end(fault).await;
    let requests = all.iter().filter(|done| done.due >= at && done.due <= at + FAULT).count();
    Seen {
        victim: VICTIM.to_owned(),
        fault: at,
        log: scene.proxy.log(),
        access_log: scene.proxy.access_log(),
        late_attempts: to - from,
        attempts: (sum - before) as f64 / requests as f64,
        journals: scene.journals.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect(),
        all,
    }
}

impl Seen {
    /// What was due while the fault lasted.
    pub fn during(&self) -> impl Iterator<Item = &Done> {
        self.all.iter().filter(|done| done.due + done.took >= self.fault)
    }

    /// POSTs that were executed more than once.
    pub fn duplicates(&self) -> Vec<String> {
        let mut counts: HashMap<&str, u32> = HashMap::new();
        let lines = self.journals.iter().flat_map(|journal| journal.lines());
        for id in lines.filter_map(|line| line.strip_prefix("POST ")) {
            *counts.entry(id).or_default() += 1;
        }
        counts.into_iter().filter(|(_, count)| *count > 1).map(|(id, _)| id.to_owned()).collect()
    }

    /// Lines of POSTs that failed although nothing of them was sent.
    fn unsent_posts(&self) -> Vec<&str> {
        let unsent = ["connect_failed", "connect_timeout", "unhealthy", "no_region"];
        let is = |line: &&str| {
            line.contains("\"method\":\"POST\"")
                && unsent.iter().any(|outcome| line.contains(&format!("\"{outcome}\"")))
        };
        self.access_log.lines().filter(is).collect()
    }
}

/// What is held to the bars, of one run.
struct Row {
    gets: usize,
    posts: usize,
    slower: usize,
    late: usize,
    attempts: f64,
    told: String,
}

/// Plays a fault as often as is asked for, and holds the medians to the bars; what must never be is held to each run.
pub async fn judge(fault: Fault, bars: &Bars) {
    let runs = std::env::var("FAILOVER_RUNS").map_or(1, |text| text.parse().unwrap());
    let mut rows = Vec::new();
    for _ in 0..runs {
        let seen = play(fault, bars.quiet_after).await;
        let count = |is: &dyn Fn(&Done) -> bool| seen.during().filter(|done| is(done)).count();
        let gets = count(&|done| done.failed() && !done.post);
        let posts = count(&|done| done.failed() && done.post);
        let slower = count(&|done| !done.failed() && done.took > Duration::from_secs(1));
        let slowest = seen.during().map(|done| done.took).max().unwrap_or_default();
        let trouble = seen.during().filter(|done| done.failed() || done.took > Duration::from_millis(200));
        let last = trouble.map(|done| done.due.saturating_duration_since(seen.fault)).max().unwrap_or_default();
        println!(
            "{fault:?}: {gets} GETs and {posts} POSTs failed of {}, {slower} slower than 1 s, slowest {slowest:?}, last trouble \
             after {last:?}, {} late attempts, attempts ÷ requests {:.3}",
            seen.during().count(),
            seen.late_attempts,
            seen.attempts
        );
        let failures: Vec<_> =
            seen.all.iter().filter(|done| done.failed()).map(|done| (&done.result, done.took)).collect();
        let told = format!("{failures:?}\n{}", seen.log);
        assert!(seen.all.iter().all(|done| done.due + done.took >= seen.fault || !done.failed()), "before it: {told}");
        assert_eq!(seen.duplicates(), Vec::<String>::new(), "executed twice: {told}");
        assert_eq!(seen.unsent_posts(), Vec::<&str>::new(), "never sent: {told}");
        rows.push(Row { gets, posts, slower, late: seen.late_attempts as usize, attempts: seen.attempts, told });
    }
    let median = |of: &dyn Fn(&Row) -> usize| {
        let mut values: Vec<usize> = rows.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    let told = &rows[0].told;
    assert!(median(&|row| row.gets) <= bars.failed_gets, "{fault:?}: GETs failed: {told}");
    assert!(median(&|row| row.posts) <= bars.failed_posts, "{fault:?}: POSTs failed: {told}");
    assert!(median(&|row| row.slower) <= bars.slower, "{fault:?}: slow answers: {told}");
    if bars.quiet_after.is_some() {
        assert_eq!(median(&|row| row.late), 0, "{fault:?}: attempts at the region long after: {told}");
    }
    if let Some(most) = bars.attempts {
        assert!(
            median(&|row| (row.attempts * 1000.0) as usize) <= (most * 1000.0) as usize,
            "{fault:?}: {} {told}",
            rows[0].attempts
        );
    }
}

/// How long it takes until a region that refuses connections is down when there is no traffic.
pub async fn found_by_probes() -> Duration {
    found(Fault::Kill).await
}

/// The same for one that is gone.
pub async fn found_by_probes_in_the_hole() -> Duration {
    found(Fault::Vanish).await
}

async fn found(fault: Fault) -> Duration {
    let runs = std::env::var("FAILOVER_RUNS").map_or(1, |text| text.parse().unwrap());
    let mut times = Vec::new();
    for _ in 0..runs {
        let mut scene = Scene::new().await;
        scene.begin(fault).await;
        let took = scene.down().await;
        scene.end(fault).await;
        println!("{fault:?}, no traffic: down after {took:?}");
        times.push(took);
    }
    times.sort_unstable();
    times[times.len() / 2]
}
