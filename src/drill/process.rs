//! Children of a drill: each in a process group of its own, so that a Ctrl-C is ours to answer, and ended with its group when dropped.

#![expect(clippy::disallowed_methods, reason = "a shell: it waits for its children")]

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use crate::drill::http;
use crate::origin;

/// A process and its group.
pub(super) struct Child {
    child: std::process::Child,
    name: String,
}

impl Child {
    /// Starts it; an error says what did not start.
    pub(super) fn start(mut command: Command, name: &str) -> Result<Child, String> {
        // What a service manager told this process is not for its children.
        for variable in ["RUNTIME_DIRECTORY", "STATE_DIRECTORY", "NOTIFY_SOCKET"] {
            command.env_remove(variable);
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        let child = child.map_err(|error| format!("{name} did not start: {program}: {error}"))?;
        Ok(Child { child, name: name.to_owned() })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it and to what it started.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), String> {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let sent = group.map_or(Ok(()), |group| kill_process_group(group, signal));
        sent.map_err(|error| format!("{}: no signal could be sent: {error}", self.name))
    }

    /// Whether it ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and until it is gone.
    pub(super) fn kill(&mut self) {
        // One that ended has no group any more.
        if !self.has_ended() {
            let _ = self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `meridian origin NAME --troubled`.
pub(super) struct Origin {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    child: Child,
}

#[derive(Deserialize)]
pub(super) struct Stats {
    pub(super) requests: u64,
    pub(super) peak: u64,
}

impl Origin {
    /// Starts it and waits for its address. `before`: a command to run it by.
    pub(super) fn start(
        program: &Path,
        name: &'static str,
        address: SocketAddr,
        journal: &Path,
        before: &[String],
    ) -> Result<Origin, String> {
        let mut command = match before {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.args(["origin", name, "--anywhere", "--listen", &address.to_string(), "--troubled", "--journal"]);
        command.arg(journal).stdout(Stdio::piped());
        let mut child = Child::start(command, &format!("origin {name}"))?;
        let address = origin::announced(&mut child.child).map_err(|error| format!("origin {name} {error}"))?;
        Ok(Origin { name, address, child })
    }

    pub(super) fn kill(&mut self) {
        self.child.kill();
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), String> {
        self.child.signal(signal)
    }

    /// `POST /_control?QUERY`.
    pub(super) async fn control(&self, query: &str) -> Result<(), String> {
        let answer = http::request(self.address, "POST", &format!("/_control?{query}")).await;
        match answer {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(format!("origin {}: {}", self.name, answer.text())),
            Err(error) => Err(format!("origin {}: {error}", self.name)),
        }
    }

    /// What it counted, if it can be asked.
    pub(super) async fn stats(&self) -> Option<Stats> {
        let asked = tokio::time::timeout(Duration::from_millis(500), http::request(self.address, "GET", "/_stats"));
        serde_json::from_slice(&asked.await.ok()?.ok()?.body).ok()
    }
}

/// How long a condition may take that needs a moment. Long, for loaded machines; conditions are met much earlier.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
pub(super) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Result<(), String> {
    let begun = Instant::now();
    while !condition().await {
        if begun.elapsed() > PATIENCE {
            return Err(format!("waited {} s in vain: {what}", PATIENCE.as_secs()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
