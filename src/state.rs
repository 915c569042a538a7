//! The writer's task and what it publishes.
//!
//! One task owns the `World`; everything that changes it is a message to that task, so no two changes ever meet and no lock is
//! needed. Readers load one `Arc` and never wait. Refused: a lock around the world, which a probe could hold while a
//! request waits. What operators say goes the same way, and is written to a file (`kept`) by who brings it, not by the writer.
//!
//! Must not know who sends: probes, resolvers and reloads are all just messages.

mod kept;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Edge;
use crate::steering::brake::{self, Moves};
use crate::steering::snapshot::EndpointId;
use crate::steering::world::{LOOK, ProbeResult};
use crate::steering::{Change, Handover, Now, Objection, Overrides, Snapshot, View, Word, World};
use crate::telemetry::{Handles, Metrics};

pub use kept::{Kept, Remembered, write_whole};

/// Messages that may wait for the writer; senders beyond that wait in turn.
const QUEUE: usize = 1024;

/// Messages applied before one snapshot is published for all of them.
const BATCH: usize = 64;

/// Hold, ramp and slow start move in steps of this.
const TICK: Duration = Duration::from_millis(250);

/// What was seen of clients is kept so often: it is worth hours.
const REMEMBER: Duration = Duration::from_secs(600);

/// What a request reads, all of one moment.
#[derive(Debug)]
pub struct Published {
    /// The decision's input.
    pub snapshot: Arc<Snapshot>,
    /// Client address rules and limits.
    pub edge: Arc<Edge>,
    /// Metric handles of that snapshot.
    pub handles: Arc<Handles>,
}

/// The writer's clock beside the calendar: how a [`Now`] becomes a time of day.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    began: Instant,
    origin_ms: u64,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "a shell: the one place where the writer's clock begins")]
    fn start() -> Clock {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { began: Instant::now(), origin_ms: since_epoch.as_millis() as u64 }
    }

    /// That of another process of this machine, whose moments stay what they were.
    fn continued(zero: Zero) -> Clock {
        let started = Clock::start();
        let since = Duration::from_nanos(monotonic_ns().saturating_sub(zero.monotonic_ns));
        match started.began.checked_sub(since) {
            Some(began) => Clock { began, origin_ms: zero.unix_ms },
            None => started,
        }
    }

    fn zero(&self) -> Zero {
        Zero { monotonic_ns: monotonic_ns().saturating_sub(self.nanos_now()), unix_ms: self.origin_ms }
    }

    /// The writer's time now.
    pub fn now(&self) -> Now {
        Now(self.began.elapsed().as_millis() as u64)
    }

    /// Nanoseconds from the writer's start to that instant, for what is bounded by a rate; 0 for one before it.
    pub fn nanos(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.began).as_nanos() as u64
    }

    /// The same of now.
    pub fn nanos_now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// The writer's time at that instant; the start for one before it.
    fn at(&self, instant: Instant) -> Now {
        Now(instant.saturating_duration_since(self.began).as_millis() as u64)
    }

    /// Unix milliseconds of a moment of the writer's clock. Steps of the calendar since the start do not show.
    pub fn unix_ms(&self, moment_ms: u64) -> u64 {
        self.origin_ms.saturating_add(moment_ms)
    }
}

/// The clock by which [`Instant`] goes, the same for all processes of a machine.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// When a [`Clock`] read 0.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Zero {
    monotonic_ns: u64,
    unix_ms: u64,
}

/// What one process hands over to the next.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HandedOver {
    world: Handover,
    clock: Zero,
}

/// The readers' door. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    current: Arc<ArcSwap<Published>>,
    changed: watch::Receiver<u64>,
    ready: watch::Receiver<bool>,
    clock: Clock,
}

impl Reader {
    /// A reader of what never changes, for parts that run on their own, as tests do.
    pub fn fixed(published: Published) -> Reader {
        let current = Arc::new(ArcSwap::from_pointee(published));
        Reader { current, changed: watch::channel(0).1, ready: watch::channel(true).1, clock: Clock::start() }
    }

    /// What is published now. A request calls this once.
    pub fn load(&self) -> Arc<Published> {
        self.current.load_full()
    }

    /// Resolves when something was published since the last call; never again once the writer has stopped.
    pub async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether every name and every endpoint that is probed has answered, or failed to, at least once since the start.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Resolves when [`Reader::is_ready`] is true; never if the writer stops before.
    pub async fn ready(&mut self) {
        if self.ready.wait_for(|ready| *ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The writer's clock, for showing moments found in snapshots.
    pub fn clock(&self) -> Clock {
        self.clock
    }
}

/// The writers' door: messages to the one writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sender {
    messages: mpsc::Sender<Message>,
    current: Arc<ArcSwap<Published>>,
    keeper: Arc<Keeper>,
}

/// Where operators' words are kept, and whose turn it is to say one: the file has them in the order in which they came into force.
#[derive(Debug)]
struct Keeper {
    kept: Kept,
    /// Whether words may be said still.
    turn: tokio::sync::Mutex<Turn>,
}

/// Who holds the turn to say words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Ours,
    /// Another process has the state now, and the file.
    HandedOver,
}

/// Whether a word that is in force will be after a restart, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// It is in the state file.
    Yes,
    /// There is no state directory.
    NoDirectory,
    /// The state file cannot be written; why.
    No(String),
}

/// Why a word is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The world objects.
    Objection(Objection),
    /// This process is ending.
    Ending,
}

/// Somebody asks for a reload. Not for the writer: who reloads reads files first.
#[derive(Debug, Default)]
pub struct ReloadRequest {
    /// Whether the brake shall let it pass.
    pub force: bool,
    /// Who asks; empty for a signal.
    pub who: String,
    /// Gets what is in force then, or why it is not as it was asked for.
    pub done: Option<oneshot::Sender<Result<Reloaded, String>>>,
}

/// What a reload brought into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// What is published now.
    pub generation: u64,
    /// Keys that were changed and stay as they were, for only a new process can follow them.
    pub needs_restart: Vec<&'static str>,
}

/// Somebody asks for another process to take the place of this one. Not for the writer.
#[derive(Debug, Default)]
pub struct UpgradeRequest {
    /// Who asks; empty for a signal.
    pub who: String,
    /// Gets the process id of the one that took over, or why none did.
    pub done: Option<oneshot::Sender<Result<u32, String>>>,
}

#[derive(Debug)]
enum Message {
    Publish { view: View, edge: Arc<Edge>, done: oneshot::Sender<u64> },
    Probed { endpoint: EndpointId, result: ProbeResult, began: Instant, next: oneshot::Sender<Option<Duration>> },
    Resolved { host: String, addresses: Vec<IpAddr> },
    HandOver { done: oneshot::Sender<HandedOver> },
    Said { word: Word, force: bool, moves: Vec<Moves>, done: oneshot::Sender<Result<Arc<Overrides>, Objection>> },
}

impl Sender {
    /// Publishes a new configuration or new geo data; returns its generation once readers see it, 0 when the writer has stopped.
    pub async fn publish(&self, view: View, edge: Arc<Edge>) -> u64 {
        let (done, generation) = oneshot::channel();
        let _ = self.messages.send(Message::Publish { view, edge, done }).await;
        generation.await.unwrap_or(0)
    }

    /// Hands in the result of a probe that began then; returns how long to wait before the next one (`None`: the endpoint is gone, or the writer).
    pub async fn probed(&self, endpoint: EndpointId, result: ProbeResult, began: Instant) -> Option<Duration> {
        let (next, delay) = oneshot::channel();
        let _ = self.messages.send(Message::Probed { endpoint, result, began, next }).await;
        delay.await.ok().flatten()
    }

    /// A host name resolved; without `addresses`, it was tried in vain.
    pub async fn resolved(&self, host: String, addresses: Vec<IpAddr>) {
        let _ = self.messages.send(Message::Resolved { host, addresses }).await;
    }

    /// Puts an operator's word in force and keeps it; returns once readers see it. `force` overrules what may be overruled. What was begun
    /// is finished though the caller is dropped.
    pub async fn say(&self, word: Word, force: bool) -> Result<Lasting, Refused> {
        let sender = self.clone();
        // A task of its own: who asks over HTTP may hang up between the word and the file.
        let said = tokio::spawn(async move {
            let turn = sender.keeper.turn.lock().await;
            if *turn == Turn::HandedOver {
                return Err(Refused::Ending);
            }
            let moves = if force { Vec::new() } else { sender.moves(&word).await };
            let (done, overrides) = oneshot::channel();
            let _ = sender.messages.send(Message::Said { word, force, moves, done }).await;
            let overrides = overrides.await.map_err(|_| Refused::Ending)?.map_err(Refused::Objection)?;
            let kept = sender.keeper.kept.clone();
            Ok(match kept.file() {
                None => Lasting::NoDirectory,
                Some(_) => keep(kept, overrides).await,
            })
        });
        said.await.unwrap_or(Err(Refused::Ending))
    }

    /// Whose turn it is to change what operators decide: no word comes into force until what is returned is dropped.
    pub async fn turn(&self) -> impl Drop + '_ {
        self.keeper.turn.lock().await
    }

    /// What is known of health and in force by words, for a process that takes the place of this one; no word comes into force until what
    /// comes with it is dropped, or ever if it is told that the other one took over. `None`: the writer has stopped.
    pub async fn hand_over(&self) -> Option<(HandedOver, HandingOver<'_>)> {
        let turn = self.keeper.turn.lock().await;
        let (done, handover) = oneshot::channel();
        let _ = self.messages.send(Message::HandOver { done }).await;
        Some((handover.await.ok()?, HandingOver(turn)))
    }

    /// What a word would move that is too much. Worked out here: it takes milliseconds, which the writer does not have.
    async fn moves(&self, word: &Word) -> Vec<Moves> {
        let (snapshot, word) = (Arc::clone(&self.current.load().snapshot), word.clone());
        let moves = tokio::task::spawn_blocking(move || brake::word(&snapshot, &word)).await;
        // Who takes a region out in need must not be kept from it by a mistake of ours.
        moves.inspect_err(|panic| tracing::error!(%panic, "what a word would move cannot be told")).unwrap_or_default()
    }

    /// The file in which operators' words are kept, if there is one.
    pub fn kept(&self) -> &Kept {
        &self.keeper.kept
    }
}

/// Words wait.
#[derive(Debug)]
pub struct HandingOver<'a>(tokio::sync::MutexGuard<'a, Turn>);

impl HandingOver<'_> {
    /// The other process has the state: nothing may be said here any more.
    pub fn done(mut self) {
        *self.0 = Turn::HandedOver;
    }
}

async fn keep(kept: Kept, overrides: Arc<Overrides>) -> Lasting {
    let file = kept.file().map(|file| file.display().to_string()).unwrap_or_default();
    // Syncing may take a disk's time.
    let written = tokio::task::spawn_blocking(move || kept.write(&overrides)).await;
    let why = match written {
        Ok(Ok(())) => return Lasting::Yes,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    };
    tracing::error!(
        file,
        why,
        "overrides are in force, but will not be after a restart: the state file cannot be written"
    );
    Lasting::No(format!("{file}: {why}"))
}

/// Keeps what is seen of clients from time to time, until the future is dropped; the last is to be kept by who drops it.
pub async fn remember(reader: Reader, kept: Kept) {
    let mut times = interval(REMEMBER);
    // The first is at once.
    times.tick().await;
    loop {
        times.tick().await;
        remember_now(&reader, &kept).await;
    }
}

/// Keeps what was seen of clients until now.
pub async fn remember_now(reader: &Reader, kept: &Kept) {
    let (snapshot, kept) = (reader.load().snapshot.clone(), kept.clone());
    let written = tokio::task::spawn_blocking(move || kept.write_clients(&snapshot)).await;
    match written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "what was seen of clients cannot be kept"),
        Err(panic) => tracing::error!(%panic, "what was seen of clients was not kept, by a mistake of ours"),
    }
}

/// Makes the world of `view` and both doors to it, published at once as generation 1. The future is the writer: it runs until every
/// [`Sender`] is dropped. What operators say is kept in memory only.
pub fn start(view: View, edge: Arc<Edge>, metrics: Metrics) -> (Sender, Reader, impl Future<Output = ()> + Send) {
    start_with(view, edge, metrics, Kept::default(), Remembered::default(), None)
}

/// The same, with what operators said before in force from the first snapshot on, and what they will say kept there; or
/// with all that another process knew, whose clock and words go on. Reads a file.
pub fn start_with(
    view: View,
    edge: Arc<Edge>,
    metrics: Metrics,
    kept: Kept,
    remembered: Remembered,
    handover: Option<HandedOver>,
) -> (Sender, Reader, impl Future<Output = ()> + Send) {
    let clock = handover.as_ref().map_or_else(Clock::start, |handover| Clock::continued(handover.clock));
    let mut world = World::new(view, clock.now());
    match handover {
        Some(handover) => {
            for event in world.apply(Change::HandedOver(Box::new(handover.world)), clock.now()) {
                metrics.event(&event, today());
            }
        }
        None => recall(&mut world, &kept, clock, &metrics),
    }
    let snapshot = world.snapshot();
    remembered.recall(&snapshot);
    let handles = metrics.published(&snapshot, &edge, clock.origin_ms);
    let published = Published { snapshot: snapshot.clone(), edge: edge.clone(), handles };
    let current = Arc::new(ArcSwap::from_pointee(published));
    let (changed_sender, changed) = watch::channel(0);
    let (ready_sender, ready) = watch::channel(world.first_round_done());
    let (messages, inbox) = mpsc::channel(QUEUE);
    let writer =
        Writer { world, edge, clock, metrics, current: current.clone(), changed: changed_sender, ready: ready_sender };
    let keeper = Arc::new(Keeper { kept, turn: tokio::sync::Mutex::new(Turn::Ours) });
    (
        Sender { messages, current: Arc::clone(&current), keeper },
        Reader { current, changed, ready, clock },
        writer.run(inbox),
    )
}

/// Puts in force what operators said before this process. What was over meanwhile is told once, and kept no longer.
fn recall(world: &mut World, kept: &Kept, clock: Clock, metrics: &Metrics) {
    let (words, lost) = kept.read();
    let (today, count) = (today(), words.len());
    if let Some(event) = &lost {
        metrics.event(event, today);
    }
    for change in [Change::Recalled(words), Change::Date(unix_ms(today))] {
        for event in world.apply(change, clock.now()) {
            metrics.event(&event, today);
        }
    }
    if world.overrides().iter().len() < count
        && let Err(error) = kept.write(world.overrides())
    {
        tracing::warn!(%error, "overrides that are over stay in the state file");
    }
}

/// The calendar. Unlike [`Clock`], it follows the steps of the system's: what an operator said until when is said by that.
#[expect(clippy::disallowed_methods, reason = "a shell: events are dated, and overrides end by the calendar")]
fn today() -> SystemTime {
    SystemTime::now()
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

struct Writer {
    world: World,
    edge: Arc<Edge>,
    clock: Clock,
    metrics: Metrics,
    current: Arc<ArcSwap<Published>>,
    changed: watch::Sender<u64>,
    ready: watch::Sender<bool>,
}

/// Who waits for an answer that may be given only when readers see the change.
enum Waiting {
    Generation(oneshot::Sender<u64>),
    Delay(EndpointId, oneshot::Sender<Option<Duration>>),
    Word(oneshot::Sender<Result<Arc<Overrides>, Objection>>, Result<(), Objection>),
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let mut waiting = Vec::new();
            tokio::select! {
                received = inbox.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    waiting.extend(batch.drain(..).filter_map(|message| self.take(message)));
                }
                _ = ticks.tick(), if self.world.wants_tick() || self.world.overrides().next_expiry().is_some() => {
                    if self.world.wants_tick() {
                        self.apply(Change::Tick);
                    }
                    self.apply(Change::Date(unix_ms(today())));
                }
                _ = looks.tick() => self.apply(Change::Look),
            }
            self.publish();
            for answer in waiting {
                // Who asked may have gone; the change stands all the same.
                match answer {
                    Waiting::Generation(done) => drop(done.send(self.world.snapshot().generation)),
                    Waiting::Delay(endpoint, next) => drop(next.send(self.world.next_probe(endpoint))),
                    Waiting::Word(done, taken) => {
                        drop(done.send(taken.map(|()| Arc::clone(self.world.overrides()))));
                    }
                }
            }
        }
    }

    fn take(&mut self, message: Message) -> Option<Waiting> {
        match message {
            Message::Publish { view, edge, done } => {
                self.edge = edge;
                self.apply(Change::View(view));
                Some(Waiting::Generation(done))
            }
            Message::Probed { endpoint, result, began, next } => {
                let began = self.clock.at(began);
                self.apply(Change::Probed { endpoint, result, began });
                Some(Waiting::Delay(endpoint, next))
            }
            Message::HandOver { done } => {
                let _ = done.send(HandedOver { world: self.world.handover(), clock: self.clock.zero() });
                None
            }
            Message::Resolved { host, addresses } => {
                self.apply(Change::Resolved { host, addresses });
                None
            }
            Message::Said { word, force, moves, done } => Some(Waiting::Word(done, self.said(word, force, moves))),
        }
    }

    fn said(&mut self, word: Word, force: bool, moves: Vec<Moves>) -> Result<(), Objection> {
        let braked = (!moves.is_empty()).then_some(Objection::Brake(moves));
        match self.world.objection(&word).or(braked) {
            Some(objection) if !(force && objection.may_be_overruled()) => Err(objection),
            _ => {
                self.apply(Change::Said(word));
                Ok(())
            }
        }
    }

    fn apply(&mut self, change: Change) {
        let events = self.world.apply(change, self.clock.now());
        for event in &events {
            self.metrics.event(event, today());
        }
    }

    /// Lets readers see the world as it is now, if that differs from what they see.
    fn publish(&mut self) {
        let snapshot = self.world.snapshot();
        let seen = self.current.load();
        if !Arc::ptr_eq(&seen.snapshot, &snapshot) || !Arc::ptr_eq(&seen.edge, &self.edge) {
            let handles = self.metrics.published(&snapshot, &self.edge, self.clock.origin_ms);
            self.current.store(Arc::new(Published { snapshot, edge: self.edge.clone(), handles }));
            self.changed.send_modify(|version| *version += 1);
        }
        // Readiness is reached once: a reload that brings new endpoints does not take the PoP out of service.
        if !*self.ready.borrow() && self.world.first_round_done() {
            self.ready.send_replace(true);
        }
    }
}
