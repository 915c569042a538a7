//! Operators' words: what they mean for the world whatever health does, and how they reach a running process and outlast it.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Output};
use std::time::Instant;

use common::dice::Dice;
use common::process::{PATIENCE, meridian, write};
use common::world::over;
use common::{http, world as worlds};
use meridian::steering::fleet::Intent;
use meridian::steering::snapshot::{Asked, EndpointId, EndpointState, PoolState};
use meridian::steering::world::ProbeResult;
use meridian::steering::{Change, Event, Now, Objection, Override, PassReason, Refusal, RegionId, ServiceId, Step};
use meridian::steering::{Snapshot, Target, Word, World};
use serde_json::Value;

// ---- the world ----

/// Two services over three regions, two endpoints each; the region `ap` has only `web`.
const FLEET: &str = "
[regions.us]
location = [38.95, -77.45]
[regions.eu]
location = [53.35, -6.26]
[regions.ap]
location = [35.62, 139.78]
[services.web]
hosts = [\"web.test\"]
[services.web.health]
[services.web.pools.us]
endpoints = [\"10.0.0.1:80\", \"10.0.0.2:80\"]
[services.web.pools.eu]
endpoints = [\"10.0.1.1:80\", \"10.0.1.2:80\"]
[services.web.pools.ap]
endpoints = [\"10.0.2.1:80\", \"10.0.2.2:80\"]
[services.api]
hosts = [\"api.test\"]
[services.api.health]
[services.api.pools.us]
endpoints = [\"10.1.0.1:80\", \"10.1.0.2:80\"]
[services.api.pools.eu]
endpoints = [\"10.1.1.1:80\", \"10.1.1.2:80\"]
";

fn region(name: &str, state: Intent) -> Word {
    Word::Set(over(Target::Region, name, state))
}

fn endpoint(name: &str, state: Intent) -> Word {
    Word::Set(over(Target::Endpoint, name, state))
}

fn auto(kind: Target, name: &str) -> Word {
    Word::Auto { kind, name: name.to_owned(), reason: String::new(), who: "bob".to_owned() }
}

struct Play {
    world: World,
    now: Now,
}

impl Play {
    /// A world in which everything is up.
    fn new(text: &str) -> Play {
        let mut play = Play { world: World::new(worlds::view(text), Now(0)), now: Now(0) };
        for id in play.ids() {
            play.probe(id, true);
        }
        play
    }

    fn ids(&self) -> Vec<EndpointId> {
        self.snapshot().pools.iter().flat_map(|pool| pool.endpoints.iter().map(|e| e.id)).collect()
    }

    fn id(&self, address: &str) -> EndpointId {
        let snapshot = self.snapshot();
        let mut endpoints = snapshot.pools.iter().flat_map(|pool| pool.endpoints.iter());
        endpoints.find(|endpoint| endpoint.address.to_string() == address).unwrap().id
    }

    fn snapshot(&self) -> std::sync::Arc<Snapshot> {
        self.world.snapshot()
    }

    fn apply(&mut self, change: Change) -> Vec<Event> {
        self.world.apply(change, self.now)
    }

    fn say(&mut self, word: Word) -> Vec<Event> {
        self.apply(Change::Said(word))
    }

    fn probe(&mut self, endpoint: EndpointId, pass: bool) {
        let result = if pass { ProbeResult::Pass(Asked::default()) } else { ProbeResult::Fail("refused".into()) };
        self.apply(Change::Probed { endpoint, result, began: Now(u64::MAX) });
    }

    /// Probes of all these, as often as a verdict needs.
    fn verdict(&mut self, addresses: &[&str], pass: bool) {
        for address in addresses {
            let id = self.id(address);
            (0..3).for_each(|_| self.probe(id, pass));
        }
    }

    fn pass(&mut self, seconds: u64) -> Vec<Event> {
        (0..seconds)
            .flat_map(|_| {
                self.now = Now(self.now.0 + 1000);
                self.apply(Change::Tick)
            })
            .collect()
    }

    /// The intent of each region for a service, in words.
    fn intents(&self, service: u16) -> Vec<&'static str> {
        let snapshot = self.snapshot();
        let view = snapshot.service(ServiceId(service));
        (0..3).map(|index| view.intent(RegionId(index)).as_str()).collect()
    }

    fn states(&self) -> Vec<PoolState> {
        self.snapshot().pools.iter().map(|pool| pool.state).collect()
    }

    /// The steps of a walk of `web` for somebody in London, and how it ended.
    fn walk(&self) -> (Vec<(String, String)>, Option<Refusal>) {
        let snapshot = self.snapshot();
        let mut walk = snapshot.walk(&worlds::query("81.2.69.142".parse().unwrap()));
        let mut steps = Vec::new();
        loop {
            match walk.step(&snapshot) {
                Some(Step::Pass(region, why)) => {
                    steps.push((snapshot.fleet().region(region).name.clone(), why.as_str().to_owned()));
                }
                Some(Step::Take(take)) => {
                    let at = &snapshot.pool(take.pool).endpoints[usize::from(take.endpoint)];
                    steps.push((snapshot.fleet().region(take.region).name.clone(), at.address.to_string()));
                    return (steps, None);
                }
                None => return (steps, Some(walk.refusal())),
            }
        }
    }
}

#[test]
fn a_region_is_out_for_every_service_until_auto() {
    let mut play = Play::new(FLEET);
    assert_eq!(play.walk().0[0].0, "eu");
    let events = play.say(region("eu", Intent::Drain));
    assert_eq!(events[0].to_string(), "alice set region eu drain: test");
    assert_eq!((play.intents(0), play.intents(1)), (vec!["ready", "drain", "ready"], vec!["ready", "drain", "ready"]));
    let steps = play.walk().0;
    assert_eq!(steps[0], ("eu".to_owned(), PassReason::Drained.as_str().to_owned()));
    assert_eq!(steps[1].0, "us");
    play.say(region("?u", Intent::Maint));
    assert_eq!(play.intents(0), ["ready", "drain", "ready"], "a name in full goes before a pattern");
    play.say(auto(Target::Region, "eu"));
    assert_eq!(play.intents(0), ["ready", "maint", "ready"]);
    let events = play.say(auto(Target::Region, "?u"));
    assert_eq!(events[0].to_string(), "bob set region ?u auto");
    assert_eq!(play.intents(0), ["ready", "ready", "ready"]);
    assert!(play.say(auto(Target::Region, "?u")).is_empty());
}

#[test]
fn a_word_goes_before_the_configuration_and_outlives_reloads() {
    let drained = FLEET.replace("[53.35, -6.26]", "[53.35, -6.26]\nstate = \"drain\"");
    let mut play = Play::new(&drained);
    assert_eq!(play.intents(0), ["ready", "drain", "ready"]);
    play.say(region("eu*", Intent::Ready));
    assert_eq!(play.intents(0), ["ready", "ready", "ready"]);
    assert_eq!(play.walk().0[0].0, "eu");
    play.apply(Change::View(worlds::view(&drained.replace("drain", "maint"))));
    assert_eq!(play.intents(0), ["ready", "ready", "ready"]);
    // A new name is matched, and an old one is forgotten by nobody.
    play.say(region("us", Intent::Drain));
    play.apply(Change::View(worlds::view(
        &FLEET.replace("regions.us", "regions.usa").replace("pools.us", "pools.usa"),
    )));
    assert_eq!(play.intents(0), ["ready", "ready", "ready"]);
    play.apply(Change::View(worlds::view(FLEET)));
    assert_eq!(play.intents(0), ["drain", "ready", "ready"]);
    assert_eq!(play.world.overrides().iter().len(), 2);
}

#[test]
fn what_is_drained_of_a_pool_counts_as_if_it_were_not_there() {
    let mut play = Play::new(FLEET);
    play.say(endpoint("10.0.1.1:80", Intent::Drain));
    for _ in 0..20 {
        assert_eq!(play.walk().0, [("eu".to_owned(), "10.0.1.2:80".to_owned())]);
    }
    let pool = &play.snapshot().pools[1].clone();
    assert_eq!((pool.state, pool.spill), (PoolState::Up, 1.0));
    // The last one of it fails: now the region has nothing left.
    play.verdict(&["10.0.1.2:80"], false);
    assert_eq!(play.states()[1], PoolState::Down);
    play.verdict(&["10.0.1.2:80"], true);
    assert_eq!(play.states()[1], PoolState::Holding);

    // All of it: out for this service, though what was observed stays and goes on being observed.
    let mut play = Play::new(FLEET);
    play.say(endpoint("10.0.1.*", Intent::Maint));
    assert_eq!((play.intents(0), play.intents(1)), (vec!["ready", "maint", "ready"], vec!["ready", "ready", "ready"]));
    assert_eq!(play.states()[1], PoolState::Up);
    assert_eq!(play.walk().0[0], ("eu".to_owned(), "maint".to_owned()));
    play.verdict(&["10.0.1.1:80", "10.0.1.2:80"], false);
    assert_eq!(play.states()[1], PoolState::Down);
    assert_eq!(play.intents(0), ["ready", "maint", "ready"]);
    // One is excepted: the region is in with it alone.
    play.verdict(&["10.0.1.1:80", "10.0.1.2:80"], true);
    play.say(endpoint("10.0.1.2:80", Intent::Ready));
    assert_eq!(play.intents(0), ["ready", "ready", "ready"]);
    play.pass(100);
    assert_eq!(play.walk().0, [("eu".to_owned(), "10.0.1.2:80".to_owned())]);
    play.say(auto(Target::Endpoint, "10.0.1.*"));
    play.say(auto(Target::Endpoint, "10.0.1.2:80"));
    assert!(play.snapshot().pools.iter().flat_map(|p| p.endpoints.iter()).all(|e| e.intent == Intent::Ready));
}

#[test]
fn panic_lifts_no_word() {
    let mut play = Play::new(FLEET);
    play.say(region("eu", Intent::Drain));
    play.say(endpoint("10.0.0.1:80", Intent::Maint));
    let all = ["10.0.0.1:80", "10.0.0.2:80", "10.0.1.1:80", "10.0.1.2:80", "10.0.2.1:80", "10.0.2.2:80"];
    play.verdict(&all, false);
    assert!(play.snapshot().services[0].panicking);
    assert_eq!(play.walk().0, [("eu".to_owned(), "drained".to_owned()), ("us".to_owned(), "10.0.0.2:80".to_owned())]);
    play.say(region("*", Intent::Maint));
    assert_eq!(play.walk().1, Some(Refusal::NoRegion));
}

#[test]
fn a_word_is_over_in_time() {
    let mut play = Play::new(FLEET);
    play.say(Word::Set(Override { until_ms: Some(5_000), ..over(Target::Region, "eu", Intent::Drain) }));
    play.say(Word::Set(Override { until_ms: Some(9_000), ..over(Target::Endpoint, "10.0.0.1:80", Intent::Drain) }));
    assert!(play.apply(Change::Date(4_999)).is_empty());
    assert_eq!(play.intents(0), ["ready", "drain", "ready"]);
    let events = play.apply(Change::Date(5_000));
    assert_eq!(events[0].to_string(), "region eu is no longer drain, as alice had set it: its time is over");
    assert_eq!(play.intents(0), ["ready", "ready", "ready"]);
    play.apply(Change::Date(1 << 50));
    assert_eq!(play.world.overrides().iter().len(), 0);
    assert!(play.snapshot().pools[0].endpoints.iter().all(|e| e.intent == Intent::Ready));
}

#[test]
fn what_was_said_before_is_in_force_at_once() {
    let mut world = World::new(worlds::view(FLEET), Now(0));
    let events = world.apply(Change::Recalled(vec![over(Target::Region, "eu", Intent::Drain)]), Now(0));
    assert_eq!(events[0].to_string(), "region eu is drain as before, set by alice: test");
    assert_eq!(world.snapshot().services[0].intent(RegionId(1)), Intent::Drain);
}

#[test]
fn the_last_ready_region_is_not_taken_by_mistake() {
    let mut play = Play::new(FLEET);
    let refused = |play: &Play, word: &Word| play.world.objection(word);
    let last = |services: &[&str]| Some(Objection::LastRegion(services.iter().map(|s| (*s).to_owned()).collect()));
    assert_eq!(refused(&play, &region("asia", Intent::Drain)), Some(Objection::NoSuchName));
    assert_eq!(refused(&play, &endpoint("10.9.*", Intent::Drain)), Some(Objection::NoSuchName));
    assert_eq!(refused(&play, &auto(Target::Region, "eu")), Some(Objection::NotSet));
    assert_eq!(refused(&play, &region("*", Intent::Drain)), last(&["web", "api"]));
    assert_eq!(refused(&play, &endpoint("10.1.*", Intent::Drain)), last(&["api"]));
    assert_eq!(refused(&play, &region("eu", Intent::Drain)), None);
    play.say(region("eu", Intent::Drain));
    assert_eq!(refused(&play, &region("us", Intent::Maint)), last(&["api"]));
    assert_eq!(refused(&play, &endpoint("10.1.0.*", Intent::Maint)), last(&["api"]));
    assert_eq!(refused(&play, &endpoint("10.1.0.1:80", Intent::Maint)), None);
    assert_eq!(refused(&play, &region("us", Intent::Ready)), None);
    // A word that is taken back may be what kept a region in.
    let text = FLEET.replace("[38.95, -77.45]", "[38.95, -77.45]\nstate = \"maint\"");
    let mut configured = Play::new(&text);
    configured.say(region("us", Intent::Ready));
    configured.say(region("eu", Intent::Drain));
    assert_eq!(refused(&configured, &auto(Target::Region, "us")), last(&["api"]));
    assert_eq!(refused(&configured, &auto(Target::Region, "eu")), None);
    // What is lost already is not lost by this.
    play.say(region("*", Intent::Maint));
    assert_eq!(refused(&play, &region("us", Intent::Drain)), None);
}

#[test]
fn the_last_region_that_could_serve_is_not_taken_by_mistake() {
    let mut play = Play::new(FLEET);
    let last = |service: &str| Some(Objection::LastRegion(vec![service.to_owned()]));
    play.verdict(&["10.0.0.1:80", "10.0.0.2:80", "10.0.2.1:80", "10.0.2.2:80"], false);
    // Two more regions of `web` are ready, and neither is alive.
    assert_eq!(play.world.objection(&region("eu", Intent::Drain)), last("web"));
    assert_eq!(play.world.objection(&endpoint("10.0.1.*", Intent::Maint)), last("web"));
    assert_eq!(play.world.objection(&endpoint("10.0.1.1:80", Intent::Maint)), None);
    assert_eq!(play.world.objection(&region("us", Intent::Maint)), None);
    play.verdict(&["10.0.2.1:80", "10.0.2.2:80"], true);
    assert_eq!(play.world.objection(&region("eu", Intent::Drain)), None);
    play.verdict(&["10.0.2.1:80", "10.0.2.2:80", "10.0.1.1:80", "10.0.1.2:80"], false);
    // A name that does not resolve is no endpoint, and its region not up.
    let mut named = Play::new(&FLEET.replace("[\"10.0.1.1:80\", \"10.0.1.2:80\"]", "[\"gone.test:80\"]"));
    assert_eq!(named.states()[1], PoolState::Unknown);
    assert_eq!(named.world.objection(&region("us", Intent::Drain)), None);
    named.verdict(&["10.0.2.1:80", "10.0.2.2:80"], false);
    let cause = named.snapshot().pools[2].endpoints[0].cause.clone();
    assert_eq!(cause.as_deref(), Some("3 failures in a row: refused"));
    assert_eq!(named.world.objection(&region("us", Intent::Drain)), last("web"));
    // Nobody is left to be lost but in panic, where all are.
    assert_eq!(play.world.objection(&region("eu", Intent::Drain)), None);
}

#[test]
fn a_manual_return_waits_for_its_word_and_then_ramps() {
    let text = FLEET.replace("[services.web]", "[services.web]\nfailback = \"manual\"");
    let mut play = Play::new(&text);
    let eu = ["10.0.1.1:80", "10.0.1.2:80", "10.1.1.1:80", "10.1.1.2:80"];
    play.verdict(&eu, false);
    play.verdict(&eu, true);
    play.pass(1_000);
    let (web, api) = (1, 4);
    assert_eq!((play.states()[web], play.states()[api]), (PoolState::Holding, PoolState::Up));
    // A word for another region, or one that another word keeps from meaning anything, ends nothing.
    play.say(region("us", Intent::Ready));
    play.say(region("eu", Intent::Drain));
    play.say(region("e*", Intent::Ready));
    assert_eq!(play.states()[web], PoolState::Holding);
    let events = play.say(region("eu", Intent::Ready));
    let said: Vec<String> = events.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["alice set region eu ready: test", "service web: region eu is ramping, was holding"]);
    play.pass(30);
    assert_eq!(play.snapshot().pools[web].ramp, 0.5);
    play.pass(31);
    assert_eq!(play.states()[web], PoolState::Up);
    // The word still stands, but it was about that return.
    play.verdict(&eu, false);
    play.verdict(&eu, true);
    play.pass(1_000);
    assert_eq!(play.states()[web], PoolState::Holding);
    play.say(region("eu", Intent::Ready));
    assert_eq!(play.states()[web], PoolState::Ramping);
}

/// Random words, probes, time and reloads: the intents are what words and configuration say, whatever health did; and verdicts are
/// those of a world in which nobody said anything.
#[test]
fn health_undoes_no_word_and_no_word_touches_a_verdict() {
    let configured = ["", "\nstate = \"drain\"", "\nstate = \"maint\""];
    let texts = configured.map(|state| FLEET.replace("[53.35, -6.26]", &format!("[53.35, -6.26]{state}")));
    let views = texts.each_ref().map(|text| worlds::view(text));
    let patterns = ["us", "eu", "ap", "*", "?u", "e*", "10.0.0.1:80", "10.0.*", "10.?.1.*", "10.1.1.2:80"];
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let mut state = 0;
        let mut play = Play::new(&texts[0]);
        let mut twin = Play::new(&texts[0]);
        let mut said: Vec<Override> = Vec::new();
        for _ in 0..60 {
            match dice.roll(0..10) {
                0..6 => {
                    let ids = play.ids();
                    let (id, pass) = (dice.roll(0..ids.len() as u64) as usize, dice.percent(40));
                    let other = twin.ids()[id];
                    play.probe(ids[id], pass);
                    twin.probe(other, pass);
                }
                6 => {
                    let seconds = dice.roll(1..40);
                    play.pass(seconds);
                    twin.pass(seconds);
                }
                7 => {
                    state = dice.roll(0..3) as usize;
                    play.apply(Change::View(views[state].clone()));
                    twin.apply(Change::View(views[state].clone()));
                }
                _ => {
                    let name = *dice.pick(&patterns);
                    let kind = if name.starts_with("10") { Target::Endpoint } else { Target::Region };
                    said.retain(|word| (word.kind, word.name.as_str()) != (kind, name));
                    if dice.percent(70) {
                        let word = over(kind, name, *dice.pick(&Intent::ALL));
                        said.push(word.clone());
                        play.say(Word::Set(word));
                    } else {
                        play.say(auto(kind, name));
                    }
                }
            }
            check(seed, &play, &said, Intent::ALL[state]);
            let verdicts = |play: &Play| -> Vec<EndpointState> {
                play.snapshot().pools.iter().flat_map(|pool| pool.endpoints.iter().map(|e| e.state)).collect()
            };
            assert_eq!(verdicts(&play), verdicts(&twin), "seed {seed}");
        }
    }
}

fn check(seed: u64, play: &Play, said: &[Override], eu: Intent) {
    let snapshot = play.snapshot();
    let ruling = |kind: Target, name: &str| {
        let fits = |word: &&Override| word.is_over(kind, &[name]);
        let full = said.iter().rev().filter(|word| word.name == name).find(fits);
        full.or_else(|| said.iter().rev().filter(|word| word.name.contains(['*', '?'])).find(fits)).map(|w| w.state)
    };
    let mut pools: HashMap<(u16, u8), Intent> = HashMap::new();
    for (spec, view) in snapshot.fleet().pools.iter().zip(&snapshot.pools) {
        let name = &snapshot.fleet().region(spec.region).name;
        let configured = if name == "eu" { eu } else { Intent::Ready };
        let region = ruling(Target::Region, name).unwrap_or(configured);
        let of = |address: String| ruling(Target::Endpoint, &address).unwrap_or_default();
        for endpoint in view.endpoints.iter() {
            assert_eq!(endpoint.intent, of(endpoint.address.to_string()), "seed {seed}: {}", endpoint.address);
        }
        let endpoints = view.endpoints.iter().map(|endpoint| endpoint.intent).min().unwrap();
        pools.insert((spec.service.0, spec.region.0), region.max(endpoints));
    }
    for ((service, region), want) in pools {
        let got = snapshot.service(ServiceId(service)).intent(RegionId(region));
        assert_eq!(got, want, "seed {seed}: service {service}, region {region}");
    }
}

// ---- processes ----

/// As small as `conf/minimal.toml`, on ports that the system chooses, with a second region and no geo data.
const SMALL: &str = "\
[[listen]]
address = \"127.0.0.1:0\"
[admin]
address = \"\"
[process]
brake = 100
[geoip]
databases = []
[regions.home]
[regions.away]
[services.web.pools.home]
endpoints = [\"127.0.0.1:1\"]
[services.web.pools.away]
endpoints = [\"127.0.0.1:2\", \"127.0.0.1:3\"]
";

/// A process and its folders; what it is told is told by the command line.
struct Running {
    folder: tempfile::TempDir,
    child: Option<Child>,
    keeps: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Running {
    async fn start(config: &str, keeps: bool) -> Running {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("m.toml"), config);
        for name in ["run", "state"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let mut running = Running { folder, child: None, keeps };
        running.again().await;
        running
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and its end.
    async fn end(&mut self) {
        let mut child = self.child.take().unwrap();
        let told = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(told.success());
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "it does not end\n{}", self.log());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Starts it, once more perhaps, after a SIGKILL.
    async fn again(&mut self) {
        self.kill();
        let log = std::fs::File::options().append(true).create(true).open(self.path("log")).unwrap();
        let mut command = meridian();
        command.arg("run").arg("--config").arg(self.path("m.toml")).env("RUNTIME_DIRECTORY", self.path("run"));
        if self.keeps {
            command.env("STATE_DIRECTORY", self.path("state"));
        }
        self.child = Some(command.stdout(std::process::Stdio::null()).stderr(log).spawn().unwrap());
        self.wait("it starts", async || self.get("/readyz").await.is_some_and(|(status, _)| status == 200)).await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// Waits until the log says all of it: a thread of its own writes it, after the answer perhaps.
    async fn logged(&self, words: &[&str]) {
        let all = || words.iter().all(|word| self.log().contains(word));
        self.wait(&words.join(" and "), async || all()).await;
    }

    async fn get(&self, target: &str) -> Option<(u16, Value)> {
        let answer = http::request_unix(&self.path("run/admin.sock"), target).await.ok()?;
        Some((answer.status, serde_json::from_slice(&answer.body).unwrap_or_default()))
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = meridian();
        command.args(args).arg("--config").arg(self.path("m.toml")).env("RUNTIME_DIRECTORY", self.path("run"));
        let Output { status, stdout, stderr } = command.env("SUDO_USER", "alice").output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    async fn intents(&self) -> Vec<String> {
        let status = self.get("/api/status").await.unwrap().1;
        let regions = status["services"][0]["regions"].as_array().unwrap();
        regions.iter().map(|region| region["intent"].as_str().unwrap().to_owned()).collect()
    }

    async fn until(&self, what: &str, intents: &[&str]) {
        self.wait(what, async || self.intents().await == intents).await;
    }

    async fn wait(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !condition().await {
            assert!(begun.elapsed() < PATIENCE, "in vain: {what}\n{}", self.log());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn an_operator_sets_and_sees_over_the_socket() {
    let running = Running::start(SMALL, false).await;
    let (code, said, noted) =
        running.run(&["set", "region", "home", "drain", "--for", "30m", "--reason", "new switch"]);
    assert_eq!(code, Some(0), "{noted}");
    assert!(said.starts_with("region home: drain until 20") && noted.contains("kept in memory only"), "{said}{noted}");
    assert_eq!(running.intents().await, ["drain", "ready"]);
    let (_, table, _) = running.run(&["states"]);
    let row = table.lines().find(|line| line.contains("home")).unwrap();
    assert!(row.contains(" up ") && row.contains("drain by alice (") && row.ends_with(": new switch"), "{table}");
    let (code, json, _) = running.run(&["states", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["overrides"][0]["reason"]), (Some(0), &"new switch".into()));
    let (_, told, _) = running.run(&["explain", "--live", "--ip", "192.0.2.1"]);
    assert!(told.contains("drain by alice (") && told.contains("pass") && told.contains("drained"), "{told}");
    let status = running.get("/api/status").await.unwrap().1;
    let word = &status["services"][0]["regions"][0]["override"];
    assert_eq!((&word["state"], &word["name"]), (&"drain".into(), &"home".into()));
    assert!(word["until"].as_str().unwrap() > word["set"].as_str().unwrap());

    // The last one only by force.
    let (code, _, said) = running.run(&["set", "region", "away", "maint"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("`web`") && said.contains("--force"), "{said}");
    let (code, _, said) = running.run(&["set", "endpoint", "127.0.0.1:?", "drain"]);
    assert!(code == Some(1) && said.contains("`web`"), "{said}");
    assert_eq!(running.intents().await, ["drain", "ready"]);
    assert_eq!(running.run(&["set", "region", "away", "maint", "--force"]).0, Some(0));
    assert_eq!(running.intents().await, ["drain", "maint"]);
    let (code, said, _) = running.run(&["set", "region", "*", "ready"]);
    assert_eq!((code, said.as_str()), (Some(0), "region *: ready (away, home)\n"));
    assert_eq!(running.intents().await, ["drain", "maint"], "names in full go before");

    // What is wrong is said with what was expected.
    for (args, code, words) in [
        (&["region", "hoem", "drain"][..], 1, "did you mean `home`?"),
        (&["region", "x", "auto"], 1, "nothing is set over region `x`"),
        (&["endpoint", "127.0.0.1:9", "drain"], 1, "there is no endpoint"),
        (&["region", "home", "drain", "--for", "soon"], 2, "no time"),
        (&["region", "home", "auto", "--for", "5m"], 2, "auto has no end"),
        (&["region", "home", "drain", "--reason", "two\nlines"], 2, "one line"),
        (&["region", "home", "away"], 2, "possible values"),
        (&["cluster", "home", "drain"], 2, "possible values"),
    ] {
        let (got, _, said) = running.run(&[&["set"], args].concat());
        assert!(got == Some(code) && said.contains(words), "{args:?}: {got:?} {said}");
    }
    let mut gone = meridian();
    gone.args(["states", "--admin", "/nowhere/admin.sock", "--config"]).arg(running.path("m.toml"));
    assert_eq!(gone.output().unwrap().status.code(), Some(2));
    // A mistake elsewhere in the file is no hindrance; without a word of the file on it, nobody is asked.
    let socket = running.path("run/admin.sock");
    for (text, code) in [("[services.web.pools.gone]\n", 0), ("[pop\n", 2)] {
        let other = running.path("other.toml");
        write(&other, &SMALL.replace("address = \"\"", &format!("address = \"\"\nsocket = {socket:?}\n{text}")));
        let mut states = meridian();
        let output = states.args(["states", "--config"]).arg(&other).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && said.contains("--admin") == (code == 2), "{said}");
    }

    for name in ["home", "away", "*"] {
        assert_eq!(running.run(&["set", "region", name, "auto"]).0, Some(0));
    }
    assert_eq!(running.run(&["set", "endpoint", "127.0.0.1:3", "drain"]).0, Some(0));
    let (_, table, _) = running.run(&["states"]);
    assert!(
        table.contains("1 of 2 endpoints out") && table.contains("endpoint 127.0.0.1:3: drain by alice"),
        "{table}"
    );
    let metrics = http::request_unix(&running.path("run/admin.sock"), "/metrics").await.unwrap().text();
    assert!(metrics.contains("meridian_overrides{state=\"drain\",target=\"endpoint\"} 1"), "{metrics}");

    // Each of them was an event, here and in the log, as the same line.
    let events = running.get("/api/events").await.unwrap().1;
    let words: Vec<&Value> =
        events["events"].as_array().unwrap().iter().filter(|event| event["kind"] == "override").collect();
    assert_eq!(words.len(), 7, "{events}");
    assert_eq!(
        (&words[0]["state"], &words[0]["reason"], &words[0]["how"]),
        (&"drain".into(), &"new switch".into(), &"set".into())
    );
    assert!(words[0]["who"].as_str().unwrap().starts_with("alice (") && words[0]["until"].is_string());
    let line = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|line| line == *words[0]);
    running.wait("its line in the log", async || running.log().lines().any(line)).await;
    let log = running.log();
    let whole = &log[..=log.rfind('\n').unwrap()];
    for line in whole.lines().filter(|line| line.starts_with('{')) {
        serde_json::from_str::<Value>(line).unwrap();
    }
    let last = events["last"].as_u64().unwrap();
    let later = running.get(&format!("/api/events?since={}", last - 1)).await.unwrap().1;
    assert_eq!((later["events"].as_array().unwrap().len(), &later["events"][0]["seq"]), (1, &last.into()));
    assert_eq!(running.get("/api/events?sinse=1").await.unwrap().0, 400);
}

#[tokio::test]
async fn words_outlast_a_kill_a_reload_and_a_broken_file() {
    let mut running = Running::start(SMALL, true).await;
    let (code, _, noted) = running.run(&["set", "region", "aw*", "drain", "--reason", "r"]);
    assert_eq!((code, noted.as_str()), (Some(0), ""));
    assert_eq!(running.run(&["set", "endpoint", "127.0.0.1:2", "maint", "--for", "1s"]).0, Some(0));
    assert_eq!(running.intents().await, ["ready", "drain"]);
    running.again().await;
    assert_eq!(running.intents().await, ["ready", "drain"]);
    running.logged(&["\"how\":\"recalled\""]).await;

    // A reload that adds a region to which the pattern fits.
    let more = "[regions.awful]\n[services.web.pools.awful]\nendpoints = [\"127.0.0.1:4\"]\n";
    write(&running.path("m.toml"), &format!("{SMALL}{more}"));
    running.until("the new region", &["ready", "drain", "drain"]).await;
    // One that is refused is an event, too.
    write(&running.path("m.toml"), &format!("{SMALL}wrong = 1\n"));
    running.logged(&["\"kind\":\"reload_refused\""]).await;
    write(&running.path("m.toml"), SMALL);

    // What is over in the meantime does not come back.
    let kept = async || running.get("/api/overrides").await.unwrap().1["overrides"].as_array().unwrap().len();
    running.wait("it is over", async || kept().await <= 1).await;
    running.logged(&["\"how\":\"expired\""]).await;
    running.again().await;
    let page = running.get("/api/overrides").await.unwrap().1;
    assert_eq!((page["overrides"].as_array().unwrap().len(), &page["overrides"][0]["name"]), (1, &"aw*".into()));
    assert!(page["kept"].as_str().unwrap().ends_with("state/overrides.json"));

    let file = running.path("state/overrides.json");
    let text = std::fs::read(&file).unwrap();
    assert!(!String::from_utf8_lossy(&text).contains("127.0.0.1:2"), "it is over");
    running.kill();
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    running.again().await;
    assert_eq!(running.intents().await, ["ready", "ready"]);
    running.logged(&["\"kind\":\"overrides_lost\"", "overrides.json.broken"]).await;
    assert_eq!(running.run(&["set", "region", "away", "drain"]).0, Some(0));
    running.again().await;
    assert_eq!(running.intents().await, ["ready", "drain"]);

    // A file that cannot be written is told; the word is in force all the same.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    std::fs::write(file.join("x"), "").unwrap();
    let (code, _, noted) = running.run(&["set", "region", "away", "maint"]);
    assert!(code == Some(0) && noted.contains("not after a restart"), "{noted}");
    assert_eq!(running.intents().await, ["ready", "maint"]);
}

#[tokio::test]
async fn who_moves_too_many_at_once_has_to_insist() {
    let braked = SMALL.replace("brake = 100\n", "");
    let mut running = Running::start(&braked, true).await;
    let (code, _, said) = running.run(&["set", "region", "home", "drain"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains(
            "it would move 100 % of the clients (by the addresses of geo data: hardly any were seen yet) of service `web`: 100 % from `home` to `away`"
        ),
        "{said}"
    );
    assert!(said.contains("brake = 50") && said.contains("--force"), "{said}");
    assert_eq!(running.intents().await, ["ready", "ready"]);
    // Nobody lives there.
    assert_eq!(running.run(&["set", "region", "away", "drain"]).0, Some(0));
    let (code, _, said) = running.run(&["set", "region", "*", "drain"]);
    assert!(code == Some(1) && said.contains("without any ready region"), "{said}");
    assert_eq!(running.run(&["set", "region", "away", "auto"]).0, Some(0));
    assert_eq!(running.run(&["set", "region", "home", "drain", "--force"]).0, Some(0));
    assert_eq!(running.intents().await, ["drain", "ready"]);
    // And back: that moves as many.
    assert_eq!(running.run(&["set", "region", "home", "auto"]).0, Some(1));
    assert_eq!(running.run(&["set", "region", "home", "auto", "--force"]).0, Some(0));

    // The same of a file, and of whoever asks for it to be read.
    write(&running.path("m.toml"), &braked.replace("[regions.home]", "[regions.home]\nstate = \"drain\""));
    running.logged(&["reload refused"]).await;
    let (code, _, said) = running.run(&["reload"]);
    assert!(
        code == Some(1) && said.contains("100 % from `home` to `away`") && said.contains("`meridian reload --force`"),
        "{said}"
    );
    assert_eq!(running.intents().await, ["ready", "ready"]);
    let (code, said, _) = running.run(&["reload", "--force"]);
    assert_eq!((code, said.as_str()), (Some(0), "reloaded: generation 2\n"));
    assert_eq!(running.intents().await, ["drain", "ready"]);
    running.logged(&["alice", "past the brake"]).await;
    let events = running.get("/api/events").await.unwrap().1.to_string();
    assert!(events.contains("reload_refused") && events.contains("it would move 100 %"), "{events}");

    write(&running.path("m.toml"), &format!("{braked}nonsense = 1\n"));
    let (code, _, said) = running.run(&["reload", "--force"]);
    assert!(code == Some(1) && said.contains("nonsense"), "{said}");
    let (code, _, said) = running.run(&["reload", "--admin", "127.0.0.1:1"]);
    assert!(code == Some(2) && said.contains("cannot be reached"), "{said}");
    running.kill();
}

/// Who was seen of a service's clients outlasts an orderly end.
#[tokio::test]
async fn a_sample_of_clients_is_kept() {
    use std::os::unix::fs::PermissionsExt;
    let text =
        SMALL.replace("brake = 100\n", "").replace("[geoip]", "[client_ip]\ntrusted = [\"127.0.0.0/8\"]\n[geoip]");
    let mut running = Running::start(&text, true).await;
    let said = |line: &&str| line.contains("listening") && line.contains("address=");
    running.wait("it says its address", async || running.log().lines().any(|line| said(&line))).await;
    let log = running.log();
    let address = log.lines().find(said).unwrap().rsplit("address=").next().unwrap().trim().parse().unwrap();
    let mut connection = http::connect(address).await.unwrap();
    for n in 0..600 {
        let client = format!("198.51.{}.7", n % 200);
        if connection.is_closed() {
            connection = http::connect(address).await.unwrap();
        }
        // Nobody is behind it: 502, and that is an answer, too.
        http::send(&mut connection, "GET", "/", &[("x-forwarded-for", &client)]).await.unwrap();
    }
    running.end().await;
    let file = running.path("state/clients.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let networks = kept["services"]["web"]["networks"].as_array().unwrap();
    assert!(networks.len() == 600 && networks.contains(&"198.51.7.0".into()), "{networks:?}");
    running.again().await;
    let (code, _, said) = running.run(&["set", "region", "home", "drain"]);
    assert!(code == Some(1) && said.contains("100 % of the clients of the last hours"), "{said}");
    // What cannot be read is not there.
    running.kill();
    write(&file, "{\"version\": 1, \"serv");
    running.again().await;
    let (_, _, said) = running.run(&["set", "region", "home", "drain"]);
    assert!(said.contains("by the addresses of geo data"), "{said}");
    running.logged(&["the sample of clients cannot be read"]).await;
}

#[tokio::test]
async fn over_tcp_the_token_is_asked_for() {
    // Over TCP: the process says its port in the log.
    let config = SMALL.replace("address = \"\"", "address = \"127.0.0.1:0\"\ntoken = \"0123456789abcdef\"");
    let running = Running::start(&config, false).await;
    // The log is written by a thread of its own.
    let said = |line: &&str| line.contains("admin pages") && line.contains("address=");
    running.wait("it says its address", async || running.log().lines().any(|line| said(&line))).await;
    let log = running.log();
    let line = log.lines().find(said).unwrap();
    let address = line.rsplit("address=").next().unwrap().trim().to_owned();
    // The token is that of the configuration, or of the environment.
    assert_eq!(running.run(&["set", "region", "home", "drain", "--admin", &address]).0, Some(0));
    let words = running.get("/api/overrides").await.unwrap().1;
    assert_eq!(words["overrides"][0]["who"], "alice (token from 127.0.0.1)");
    let other = running.path("other.toml");
    write(&other, SMALL);
    let set = |token: &str| {
        let mut command = meridian();
        command.args(["set", "region", "home", "auto", "--admin", &address, "--config"]).arg(&other);
        command.env("MERIDIAN_ADMIN_TOKEN", token).output().unwrap()
    };
    for token in ["", "0123456789abcdeF"] {
        let output = set(token);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("Bearer"), "{said}");
    }
    assert_eq!(set("0123456789abcdef").status.code(), Some(0));
    // Whoever fills that door does not keep an operator from the other one.
    let address: std::net::SocketAddr = address.parse().unwrap();
    let mut idle: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    let last = idle.last_mut().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(std::io::Read::read(last, &mut [0]), Ok(0)), "it is full");
    assert_eq!(running.run(&["set", "region", "home", "drain"]).0, Some(0));
    assert_eq!(running.intents().await, ["drain", "ready"]);
    drop(idle);
    assert!(!running.log().contains("0123456789abcdef"));
}
