//! One fault from before it to after it: the processes, what is done to them, and what was seen.
//!
//! Must not know figures and bars: everything that is seen is handed on as it is.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use crate::drill::fault::{CAPACITY, Fault, Stage, What};
use crate::drill::hole::Hole;
use crate::drill::load::Load;
use crate::drill::process::{Origin, until};
use crate::drill::proxy::{DATABASE, Proxy, tail};
use crate::drill::seen::{self, Mark, REGIONS, Seen, VICTIM};
use crate::drill::{Setup, Who};
use crate::geo::builtin;

/// So many answers of a region tell what is slow there.
const KNOWN: u64 = 130;

/// That takes so long at least, so that there is a quiet time to compare with; with few requests a second it would take for ever.
const WARM_MS: std::ops::Range<f64> = 3_000.0..15_000.0;

/// How much of the proxy's log is kept for people.
const LOG_BYTES: usize = 64 << 10;

/// In the order in which they end.
struct Scene {
    proxy: Proxy,
    origins: Vec<Origin>,
    hole: Option<Hole>,
    journals: Vec<PathBuf>,
    program: PathBuf,
    marks: Vec<Mark>,
    _folder: tempfile::TempDir,
}

/// Plays a fault once, in the network that is here.
pub(super) async fn play(setup: &Setup, fault: &Fault, who: Who) -> Result<Seen, String> {
    let mut scene = Scene::build(setup, fault, who).await?;
    let load = Load::start(scene.proxy.listen, fault.rate(setup.rate));
    if fault.stage != Stage::Idle {
        let is_warm = async || match load.now_ms() {
            now if now < WARM_MS.start => false,
            now => now > WARM_MS.end || scene.is_warm().await,
        };
        until("traffic in every region", is_warm).await?;
    }
    for origin in &scene.origins {
        origin.control("peak=0").await?;
    }
    let fault_ms = load.now_ms();
    scene.note(fault_ms, fault.name);
    scene.begin(fault, &load).await?;
    let lasts_ms = fault.lasts.as_secs_f64() * 1000.0;
    let quiet_ms = fault.bars.quiet_after.map_or(lasts_ms, |after| after.as_secs_f64() * 1000.0);
    load.sleep_until(fault_ms + quiet_ms).await;
    let from = scene.proxy.attempts().await;
    load.sleep_until(fault_ms + lasts_ms).await;
    let to = scene.proxy.attempts().await;
    let end_ms = load.now_ms();
    let mut peaks = [None; 3];
    for (peak, origin) in peaks.iter_mut().zip(&scene.origins) {
        *peak = origin.stats().await.map(|stats| stats.peak);
    }
    let began = load.began_unix_ms;
    let requests = load.stop().await?;
    scene.end(fault).await?;
    Ok(Seen {
        requests,
        executed: scene.executed(began),
        fault_ms,
        end_ms,
        peaks,
        late_attempts: from.zip(to).map(|(from, to)| to.saturating_sub(from)),
        unsent_posts: scene.proxy.unsent_posts(),
        marks: scene.proxy.marks(began).into_iter().chain(std::mem::take(&mut scene.marks)).collect(),
        log: tail(&scene.proxy.log(), LOG_BYTES).to_owned(),
    })
}

impl Scene {
    async fn build(setup: &Setup, fault: &Fault, who: Who) -> Result<Scene, String> {
        let folder = tempfile::Builder::new().prefix("meridian-drill-").tempdir();
        let folder = folder.map_err(|error| format!("no folder: {error}"))?;
        let hole = if fault.needs_a_hole() { Some(Hole::open().await?) } else { None };
        let journals: Vec<PathBuf> = REGIONS.iter().map(|name| folder.path().join(format!("{name}.journal"))).collect();
        let mut origins = Vec::new();
        for (index, name) in REGIONS.into_iter().enumerate() {
            let (address, before) = match hole.as_ref().filter(|_| index == VICTIM) {
                Some(hole) => (hole.address(), hole.enter()),
                None => ([127, 0, 0, 1].into(), Vec::new()),
            };
            let origin = Origin::start(&setup.program, name, (address, 0).into(), &journals[index], &before)?;
            if let Stage::Bounded(_) = fault.stage {
                origin.control(&capacity(0)).await?;
            }
            origins.push(origin);
        }
        // A folder of its own for the configuration: it is watched.
        let own = folder.path().join("proxy");
        std::fs::create_dir(&own).map_err(|error| format!("{}: {error}", own.display()))?;
        if fault.stage == Stage::Database {
            let bytes = builtin::bytes().map_err(|error| format!("the embedded database: {error}"))?;
            std::fs::write(own.join(DATABASE), bytes).map_err(|error| format!("{DATABASE}: {error}"))?;
        }
        let proxy = Proxy::start(setup, fault, who, &origins, &own).await?;
        let program = setup.program.clone();
        Ok(Scene { proxy, origins, hole, journals, program, marks: Vec::new(), _folder: folder })
    }

    async fn is_warm(&self) -> bool {
        for origin in &self.origins {
            if origin.stats().await.is_none_or(|stats| stats.requests < KNOWN) {
                return false;
            }
        }
        true
    }

    /// Notes something that the drill does.
    fn note(&mut self, at_ms: f64, text: &str) {
        let (kind, region, to) = (String::new(), String::new(), String::new());
        self.marks.push(Mark { at_ms, kind, region, to, text: text.to_owned() });
    }

    async fn begin(&mut self, fault: &Fault, load: &Load) -> Result<(), String> {
        match fault.what {
            What::Kill => self.origins[VICTIM].kill(),
            What::Stop => self.origins[VICTIM].signal(Signal::STOP)?,
            What::Vanish => self.hole.as_ref().map_or(Ok(()), Hole::vanish)?,
            What::Trouble(word) => self.origins[VICTIM].control(&format!("trouble={word}")).await?,
            What::Everything(status) => {
                self.origins[VICTIM].control(&format!("trouble={status}&health={status}")).await?;
            }
            What::Health(status) => self.origins[VICTIM].control(&format!("health={status}")).await?,
            What::HealthEverywhere(status) => self.tell_all(&format!("health={status}")).await?,
            What::TroubleEverywhere(word) => self.tell_all(&format!("trouble={word}")).await?,
            What::Flap(each) => {
                for _ in 0..5 {
                    for status in ["500", "200"] {
                        self.origins[VICTIM].control(&format!("health={status}")).await?;
                        sleep(each).await;
                    }
                }
            }
            What::KillAndReload(times) => {
                self.origins[VICTIM].kill();
                self.reload(times).await?;
            }
            What::Ourselves(time) => {
                self.proxy.signal(Signal::STOP)?;
                sleep(time).await;
                self.proxy.signal(Signal::CONT)?;
                self.note(load.now_ms(), "goes on");
            }
            What::ColdReturn(after, grow) => {
                self.origins[VICTIM].kill();
                sleep(after).await;
                let victim = &self.origins[VICTIM];
                let fresh = Origin::start(&self.program, victim.name, victim.address, &self.journals[VICTIM], &[])?;
                fresh.control(&capacity(grow)).await?;
                self.origins[VICTIM] = fresh;
                self.note(load.now_ms(), "is back, cold");
            }
            What::CutConfig => {
                let whole = self.proxy.config().to_owned();
                let path = self.proxy.folder().join("meridian.toml");
                std::fs::write(&path, cut(&whole)).map_err(|error| format!("{}: {error}", path.display()))?;
                sleep(MOMENT).await;
                self.proxy.replace("meridian.toml", whole.as_bytes())?;
                self.note(load.now_ms(), "is whole again");
            }
            What::SwapDatabase => {
                let bytes = builtin::bytes().map_err(|error| format!("the embedded database: {error}"))?;
                self.proxy.replace(DATABASE, &bytes[..bytes.len() / 2])?;
                sleep(MOMENT).await;
                self.note(load.now_ms(), "another, whole one");
                self.proxy.replace(DATABASE, &another(bytes))?;
            }
            What::DeleteDatabase => {
                let path = self.proxy.folder().join(DATABASE);
                std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                sleep(MOMENT).await;
                self.note(load.now_ms(), "the configuration changes");
                let changed = self.proxy.config().replace("[regions.us-west]", "[regions.us-west]\nbias = 1");
                self.proxy.replace("meridian.toml", changed.as_bytes())?;
            }
        }
        Ok(())
    }

    async fn end(&mut self, fault: &Fault) -> Result<(), String> {
        match fault.what {
            What::Stop => {
                self.origins[VICTIM].signal(Signal::CONT)?;
                // It executes what it was sent.
                sleep(Duration::from_millis(300)).await;
            }
            What::Vanish => self.hole.as_ref().map_or(Ok(()), Hole::appear)?,
            // The last lines of the access log.
            _ => sleep(Duration::from_millis(50)).await,
        }
        Ok(())
    }

    async fn tell_all(&self, query: &str) -> Result<(), String> {
        for origin in &self.origins {
            origin.control(query).await?;
        }
        Ok(())
    }

    /// One reload after the other, each of something that changes what is compiled.
    async fn reload(&self, times: u64) -> Result<(), String> {
        const GENERATION: &str = "meridian_config_generation";
        for n in 0..times {
            let before = self.proxy.metric(GENERATION).await.unwrap_or_default();
            let bias = format!("[regions.us-west]\nbias = {}", n % 2 + 1);
            self.proxy.replace("meridian.toml", self.proxy.config().replace("[regions.us-west]", &bias).as_bytes())?;
            until("the next generation", async || self.proxy.metric(GENERATION).await > Some(before)).await?;
        }
        Ok(())
    }

    /// What the journals say.
    fn executed(&self, began_unix_ms: f64) -> Vec<seen::Executed> {
        let read = |(region, path): (usize, &PathBuf)| {
            seen::executed(&std::fs::read_to_string(path).unwrap_or_default(), region, began_unix_ms)
        };
        self.journals.iter().enumerate().flat_map(read).collect()
    }
}

/// Between the steps of a fault.
const MOMENT: Duration = Duration::from_secs(2);

/// What an origin is told of its capacity; cold, if that takes time to grow.
fn capacity(grow_seconds: u32) -> String {
    format!("service={}&grow={grow_seconds}&capacity={}", CAPACITY.service.as_millis(), CAPACITY.slots)
}

/// A configuration that ends soon after its middle, within quotes: what is left is surely not valid.
fn cut(text: &str) -> &str {
    let mut quotes = 0;
    for (at, c) in text.char_indices() {
        quotes += u32::from(c == '"');
        if at >= text.len() / 2 && quotes % 2 == 1 {
            return &text[..at + c.len_utf8()];
        }
    }
    text
}

/// The same database with another time of its making.
fn another(mut bytes: Vec<u8>) -> Vec<u8> {
    const KEY: &[u8] = b"build_epoch";
    // In MMDB the value follows its key: a byte of size, one of its type, then so many bytes.
    let at = memchr::memmem::rfind(&bytes, KEY).map_or(bytes.len(), |at| at + KEY.len());
    let size = usize::from(bytes.get(at).copied().unwrap_or(0) & 0x1f);
    if let Some(last) = bytes.get_mut(at + 1 + size).filter(|_| size > 0) {
        *last ^= 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geo::AtlasBuilder;

    #[test]
    fn a_cut_is_within_quotes() {
        assert_eq!(cut("a = \"b\"\nc = \"de\"\n"), "a = \"b\"\nc = \"");
        assert_eq!(cut("a = \"bcdéfgh\"\n"), "a = \"bcd");
        assert_eq!(cut("abc"), "abc");
    }

    #[test]
    fn another_database_is_another_one_and_whole() {
        let one = builtin::bytes().unwrap();
        let other = another(one.clone());
        assert_eq!(one.iter().zip(&other).filter(|(one, other)| one != other).count(), 1);
        let atlas = |bytes: &[u8]| AtlasBuilder::new().database("test", bytes).unwrap().build();
        let (one, other) = (atlas(&one), atlas(&other));
        assert_eq!(one.databases()[0].networks, other.databases()[0].networks);
    }
}
