//! A machine that vanishes, without leave of anybody: a network namespace for the drill, one inside it for the region, a pair of
//! virtual cables between them, and a neighbour entry that stays. When the far address is taken away, packets to it still
//! leave and come to nothing: no refusal, no reset, no ICMP.
//!
//! The drill is played by this same program started anew in the outer namespace, and what it saw is read from its output.

#![expect(clippy::disallowed_methods, reason = "a shell: it waits for its children")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::drill::process::{Child, until};
use crate::drill::{Fault, Seen, Setup, Who};

const FAR: &str = "10.213.0.2";

/// Plays it in a namespace of its own.
pub(super) async fn play(setup: &Setup, fault: &Fault, who: Who) -> Result<Seen, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("no folder: {error}"))?;
    let [output, errors] = ["output", "errors"].map(|name| folder.path().join(name));
    let create = |path| std::fs::File::create(path).map_err(|error| format!("no file: {error}"));
    let mut command = Command::new("unshare");
    command.arg("-rn").arg(&setup.program).args(["drill", "--fault", fault.name, "--inside", who.as_str()]);
    command.args(["--rate", &setup.rate.to_string()]);
    if let Some(envoy) = &setup.envoy {
        command.arg("--envoy").arg(envoy);
    }
    command.stdout(create(&output)?).stderr(create(&errors)?);
    let child = Child::start(command, "the drill in a network namespace (Debian: util-linux, iproute2)")?;
    let mut inside = Inside(child);
    while !inside.0.has_ended() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let said = std::fs::read_to_string(&output).unwrap_or_default();
    serde_json::from_str(&said).map_err(|_| {
        let errors = std::fs::read_to_string(&errors).unwrap_or_default();
        let errors = errors.trim().trim_start_matches("error: ");
        format!("`{}` needs a network namespace, and there it said: {errors}", fault.name)
    })
}

/// The drill inside, which has children of its own to end.
struct Inside(Child);

impl Drop for Inside {
    fn drop(&mut self) {
        if self.0.has_ended() {
            return;
        }
        let _ = self.0.signal(Signal::TERM);
        let begun = Instant::now();
        while !self.0.has_ended() && begun.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The region's namespace, which ends when this is dropped.
pub(super) struct Hole {
    keeper: Child,
}

impl Hole {
    pub(super) async fn open() -> Result<Hole, String> {
        run("ip link set lo up")?;
        let mut command = Command::new("unshare");
        command.args(["-n", "sleep", "600"]).stdout(Stdio::null());
        let hole = Hole { keeper: Child::start(command, "a network namespace")? };
        let id = hole.keeper.id();
        // It has its own namespace a moment after it was started.
        let own = std::fs::read_link("/proc/self/ns/net").map_err(|error| format!("/proc/self/ns/net: {error}"))?;
        let there = format!("/proc/{id}/ns/net");
        until("a namespace for the region", async || std::fs::read_link(&there).is_ok_and(|there| there != own))
            .await?;
        run("ip link add near type veth peer name far address 02:00:00:00:00:02")?;
        run(&format!("ip link set far netns {id}"))?;
        run("ip addr add 10.213.0.1/24 dev near")?;
        run("ip link set near up")?;
        hole.there("ip link set lo up")?;
        hole.there("ip link set far up")?;
        hole.appear()?;
        run(&format!("ip neigh replace {FAR} lladdr 02:00:00:00:00:02 dev near nud permanent"))?;
        Ok(hole)
    }

    /// Where the region listens.
    pub(super) fn address(&self) -> std::net::IpAddr {
        std::net::Ipv4Addr::new(10, 213, 0, 2).into()
    }

    /// What a command is run by, to run there.
    pub(super) fn enter(&self) -> Vec<String> {
        let id = self.keeper.id().to_string();
        ["nsenter", "-t", &id, "-n"].map(str::to_owned).to_vec()
    }

    fn there(&self, words: &str) -> Result<(), String> {
        run(&format!("{} {words}", self.enter().join(" ")))
    }

    pub(super) fn vanish(&self) -> Result<(), String> {
        self.there(&format!("ip addr del {FAR}/24 dev far"))
    }

    pub(super) fn appear(&self) -> Result<(), String> {
        self.there(&format!("ip addr add {FAR}/24 dev far"))
    }
}

fn run(words: &str) -> Result<(), String> {
    let mut split = words.split_whitespace();
    let output = Command::new(split.next().unwrap_or_default()).args(split).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("`{words}`: {error} (Debian: util-linux, iproute2)"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("`{words}`: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
