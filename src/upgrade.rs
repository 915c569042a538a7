//! Another process takes the place of this one, with its sockets and with what it knows: a new binary, without a lost connection.
//!
//! The old process starts the program anew as it was started itself, gives it the listening sockets (`inherited`) and one stream, and both speak over
//! that. The old one: one line of JSON ([`Brought`]). The new one, when it could serve: `ready`; or why it cannot, to the end. The old one: `yours`. The
//! new one accepts connections and opens the admin doors: `taken`. The old one tells the service manager who is the main process now, closes the stream, and
//! drains. Until `taken` nothing has changed for the old one, whatever becomes of the other; sockets are the same in both, so that the kernel refuses
//! nobody at any time. Refused: binding the ports again beside the old process, which loses what waits in the queue of a socket that is closed.
//!
//! A process that is told to end meanwhile is replaced by nobody; from `yours` on it is, and the new one is told the same.
//!
//! Operators' words wait meanwhile, so that none is lost between the two. Must not know what it hands over beyond its form.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::inherited::PREDECESSOR;
use crate::notify::{Stage, tell};
use crate::state::{self, HandedOver, Reader, Sender, UpgradeRequest};

/// Within this the new process has to be ready: what the systemd unit gives a start.
const READY: Duration = Duration::from_secs(60);

/// Within this what is said after that has to be answered.
const ANSWER: Duration = Duration::from_secs(10);

/// Between two looks whether a process that was given up has ended.
const LOOK: Duration = Duration::from_millis(10);

/// The first descriptor of those given, by `sd_listen_fds(3)`.
const FIRST: i32 = 3;

/// More than any fleet needs; the most that is read.
const MOST_BYTES: u64 = 256 << 20;

/// The most that a process is heard when it says why it cannot serve.
const MOST_WHY: u64 = 64 << 10;

const ENDING: &str = "this process was told to end";

const READY_LINE: &str = "ready\n";
const YOURS: &str = "yours\n";
const TAKEN: &str = "taken\n";

/// What the old process brings beside its sockets.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Brought {
    /// Where any port was asked for, the one that was given: the address as configured, and as bound.
    pub ports: Vec<(SocketAddr, SocketAddr)>,
    /// A [`HandedOver`], unless the processes are of versions that do not understand each other.
    health: Value,
}

/// Listening sockets to give away, beside those that are listened on. While they are open, the kernel takes connections: whoever stops listening
/// closes these first.
#[derive(Clone, Debug, Default)]
pub struct Spare(Arc<Mutex<Vec<OwnedFd>>>);

impl Spare {
    /// Keeps these, too.
    pub fn keep(&self, sockets: Vec<OwnedFd>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(sockets);
    }

    /// Closes them.
    pub fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(OwnedFd::try_clone).collect()
    }
}

/// The side of the process that is to be replaced.
pub struct Upgrade {
    /// Whom words are kept from meanwhile.
    pub sender: Sender,
    /// What is known.
    pub reader: Reader,
    /// What is given away.
    pub spare: Spare,
    /// See [`Brought::ports`].
    pub ports: Vec<(SocketAddr, SocketAddr)>,
    /// Why nobody can take over, where that is so.
    pub alone: Option<&'static str>,
    /// Whether this process was told to end.
    pub draining: watch::Receiver<bool>,
}

impl Upgrade {
    /// Lets another process take over whenever that is asked for; returns when one has.
    pub async fn run(self, mut asked: mpsc::Receiver<UpgradeRequest>) {
        while let Some(UpgradeRequest { who, done }) = asked.recv().await {
            tracing::info!(who, "starting a process that is to take over");
            tell(Stage::Status("starting a process that is to take over"));
            let outcome = self.attempt().await;
            match &outcome {
                Ok(pid) => tracing::info!(pid, "another process took over"),
                Err(why) => {
                    tracing::error!("no process took over; this one goes on: {}", why.trim_end());
                    tell(Stage::Status("no process took over; see the log"));
                }
            }
            let taken = outcome.is_ok();
            if let Some(done) = done {
                // Who asked may have gone.
                let _ = done.send(outcome);
            }
            if taken {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// The process that took over, or why none did.
    async fn attempt(&self) -> Result<u32, String> {
        if let Some(why) = self.alone {
            return Err(why.to_owned());
        }
        if *self.draining.borrow() {
            return Err(ENDING.to_owned());
        }
        let Some((handover, words)) = self.sender.hand_over().await else {
            return Err(ENDING.to_owned());
        };
        state::remember_now(&self.reader, self.sender.kept()).await;
        let said = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let brought = line(&handover, &self.ports).map_err(said("what is known cannot be written down"))?;
        let (ours, theirs) = StdStream::pair().map_err(said("no stream to another process"))?;
        let child = self.start(theirs).map_err(said("the program cannot be started"))?;
        let mut child = Newcomer { child: Some(child) };
        let pid = child.pid();
        match self.convince(ours, &brought).await {
            Ok(stream) => {
                words.done();
                tell(Stage::MainPid(pid));
                // It serves now, and is nobody's child any more. What it waits for is that the manager was told.
                child.let_go();
                drop(stream);
                if *self.draining.borrow() {
                    tracing::info!(pid, "told to end: so is the process that took over");
                    end(pid);
                }
                Ok(pid)
            }
            Err(why) => Err(match child.end().await {
                Some(status) if why.is_empty() => {
                    format!("it ended ({status}) before it was ready; its log may say why")
                }
                _ => why,
            }),
        }
    }

    /// Speaks with the new process until it has taken over, or says why it has not (nothing: it is gone). The stream is what it still listens to.
    async fn convince(&self, stream: StdStream, brought: &[u8]) -> Result<UnixStream, String> {
        let mut stream = lines(stream).map_err(broken)?;
        let mut draining = self.draining.clone();
        tokio::select! {
            ready = until_ready(&mut stream, brought) => ready?,
            // An error: the process is ending, too.
            _ = draining.wait_for(|draining| *draining) => return Err(ENDING.to_owned()),
        }
        // From here on it may have taken connections: it is let.
        let taken = async {
            stream.write_all(YOURS.as_bytes()).await.map_err(broken)?;
            let mut said = String::new();
            (&mut stream).take(TAKEN.len() as u64).read_line(&mut said).await.map_err(broken)?;
            if said == TAKEN { Ok(()) } else { Err(String::new()) }
        };
        timeout(ANSWER, taken).await.unwrap_or_else(|_| Err("it was ready, but did not take over".to_owned()))?;
        Ok(stream.into_inner())
    }

    /// Starts the program as this process was started, with the sockets and a stream.
    fn start(&self, stream: StdStream) -> io::Result<Child> {
        let mut words = std::env::args_os();
        // As it was called, not as it was found: a link may lead to another binary now.
        let program = words.next().ok_or_else(|| io::Error::other("it is not known how this process was called"))?;
        let mut sockets = self.spare.copies()?;
        sockets.push(stream.into());
        let mut command = Command::new(program);
        command.args(words).env("LISTEN_FDS", sockets.len().to_string()).env(PREDECESSOR, "1");
        // Of this process alone.
        command.env_remove("LISTEN_PID").env_remove("LISTEN_FDNAMES").env_remove("WATCHDOG_PID");
        let mappings = (FIRST..).zip(sockets).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).map_err(io::Error::other)?;
        command.spawn()
    }
}

fn line(handover: &HandedOver, ports: &[(SocketAddr, SocketAddr)]) -> io::Result<Vec<u8>> {
    let brought = Brought { ports: ports.to_vec(), health: serde_json::to_value(handover)? };
    let mut line = serde_json::to_vec(&brought)?;
    line.push(b'\n');
    Ok(line)
}

/// The stream between the two, as each of them reads it while it does other things.
fn lines(stream: StdStream) -> io::Result<Stream> {
    stream.set_nonblocking(true)?;
    Ok(tokio::io::BufReader::new(UnixStream::from_std(stream)?))
}

type Stream = tokio::io::BufReader<UnixStream>;

/// Whoever is gone says nothing.
fn broken(_: io::Error) -> String {
    String::new()
}

/// Tells the new process what is known, and waits until it could serve; an error: why it cannot.
async fn until_ready(stream: &mut Stream, brought: &[u8]) -> Result<(), String> {
    let ready = async {
        stream.write_all(brought).await.map_err(broken)?;
        let mut said = String::new();
        let read = (&mut *stream).take(MOST_WHY).read_line(&mut said).await;
        if read.is_ok() && said == READY_LINE {
            return Ok(());
        }
        // Why not, to the end.
        let _ = stream.take(MOST_WHY).read_to_string(&mut said).await;
        Err(said)
    };
    timeout(READY, ready).await.unwrap_or_else(|_| Err(format!("it was not ready within {} s", READY.as_secs())))
}

/// Tells a process to end.
fn end(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(Err(error)) = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM)) {
        tracing::warn!(%error, "it cannot be told to end");
    }
}

/// A process that has not taken over: it ends when this is dropped.
struct Newcomer {
    child: Option<Child>,
}

impl Newcomer {
    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    fn let_go(&mut self) {
        self.child = None;
    }

    /// How it ended, at once or because it had to; `None`: it had to.
    async fn end(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        let by_itself = async {
            loop {
                match child.try_wait() {
                    Ok(None) => sleep(LOOK).await,
                    ended => return ended.ok().flatten(),
                }
            }
        };
        // Whoever said why not is about to end.
        timeout(Duration::from_secs(1), by_itself).await.ok().flatten()
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The side of the process that takes over: the one before it.
#[derive(Debug)]
pub struct Predecessor(StdStream);

impl Predecessor {
    /// The process at the other end.
    pub fn new(stream: StdStream) -> Predecessor {
        Predecessor(stream)
    }

    /// What it brings. Blocks until it is here.
    pub fn brought(&self) -> io::Result<Brought> {
        self.0.set_read_timeout(Some(ANSWER))?;
        let mut line = Vec::new();
        BufReader::new((&self.0).take(MOST_BYTES)).read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }

    /// Tells it why its place cannot be taken.
    pub fn refuse(&self, why: &str) {
        // Who is gone need not be told.
        let _ = (&self.0).write_all(why.as_bytes());
    }

    /// Takes its place once this process is ready: `begin` opens what it has opened. Returns when it has left its place; an error: it has not, and stays.
    pub async fn relieve(self, mut reader: Reader, begin: impl FnOnce()) -> Result<(), String> {
        let gone = |_: io::Error| "the process that was to be replaced is gone".to_owned();
        let mut stream = lines(self.0).map_err(gone)?;
        let mut said = String::new();
        tokio::select! {
            () = reader.ready() => {}
            // It has nothing to say before.
            _ = stream.read_line(&mut said) => return Err("the process that was to be replaced stays".to_owned()),
        }
        stream.write_all(READY_LINE.as_bytes()).await.map_err(gone)?;
        stream.read_line(&mut said).await.map_err(gone)?;
        if said != YOURS {
            return Err("the process that was to be replaced stays".to_owned());
        }
        begin();
        stream.write_all(TAKEN.as_bytes()).await.map_err(gone)?;
        // It closes the stream when the service manager was told.
        let _ = timeout(ANSWER, stream.read_line(&mut said)).await;
        Ok(())
    }
}

impl Brought {
    /// What it knew of health; `None`, and told: this version does not understand it, or it brought nothing.
    pub fn handover(&mut self) -> Option<HandedOver> {
        let health = self.health.take();
        serde_json::from_value(health)
            .inspect_err(|error| {
                tracing::warn!(%error, "what the process before knew of health cannot be understood: everything is probed anew");
            })
            .ok()
    }
}
