//! The writer's task and what it publishes.
//!
//! One task owns the `World`; everything that changes it is a message to that task, so no two changes ever meet and no lock is
//! needed. Readers load one `Arc` and never wait. Refused: a lock around the world, which a probe could hold while a
//! request waits.
//!
//! Must not know who sends: probes, resolvers and reloads are all just messages.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Edge;
use crate::steering::snapshot::{EndpointId, PoolState};
use crate::steering::world::{LOOK, ProbeResult};
use crate::steering::{Change, Event, Now, Snapshot, View, World};
use crate::telemetry::{Handles, Metrics};

/// Messages that may wait for the writer; senders beyond that wait in turn.
const QUEUE: usize = 1024;

/// Messages applied before one snapshot is published for all of them.
const BATCH: usize = 64;

/// Hold, ramp and slow start move in steps of this.
const TICK: Duration = Duration::from_millis(250);

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

    /// The writer's time now.
    pub fn now(&self) -> Now {
        Now(self.began.elapsed().as_millis() as u64)
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
}

#[derive(Debug)]
enum Message {
    Publish { view: View, edge: Arc<Edge>, done: oneshot::Sender<u64> },
    Probed { endpoint: EndpointId, result: ProbeResult, began: Instant, next: oneshot::Sender<Option<Duration>> },
    Resolved { host: String, addresses: Vec<IpAddr> },
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
}

/// Makes the world of `view` and both doors to it, published at once as generation 1. The future is the writer: it runs until every
/// [`Sender`] is dropped.
pub fn start(view: View, edge: Arc<Edge>, metrics: Metrics) -> (Sender, Reader, impl Future<Output = ()> + Send) {
    let clock = Clock::start();
    let world = World::new(view, clock.now());
    let snapshot = world.snapshot();
    let handles = metrics.published(&snapshot, clock.origin_ms);
    let published = Published { snapshot: snapshot.clone(), edge: edge.clone(), handles };
    let current = Arc::new(ArcSwap::from_pointee(published));
    let (changed_sender, changed) = watch::channel(0);
    let (ready_sender, ready) = watch::channel(world.first_round_done());
    let (messages, inbox) = mpsc::channel(QUEUE);
    let writer =
        Writer { world, edge, clock, metrics, current: current.clone(), changed: changed_sender, ready: ready_sender };
    (Sender { messages }, Reader { current, changed, ready, clock }, writer.run(inbox))
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
                _ = ticks.tick(), if self.world.wants_tick() => self.apply(Change::Tick),
                _ = looks.tick() => self.apply(Change::Look),
            }
            self.publish();
            for answer in waiting {
                // Who asked may have gone; the change stands all the same.
                match answer {
                    Waiting::Generation(done) => drop(done.send(self.world.snapshot().generation)),
                    Waiting::Delay(endpoint, next) => drop(next.send(self.world.next_probe(endpoint))),
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
            Message::Resolved { host, addresses } => {
                self.apply(Change::Resolved { host, addresses });
                None
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a shell: events are dated")]
    fn apply(&mut self, change: Change) {
        let events = self.world.apply(change, self.clock.now());
        for event in &events {
            self.metrics.event(event, SystemTime::now());
            log(event);
        }
    }

    /// Lets readers see the world as it is now, if that differs from what they see.
    fn publish(&mut self) {
        let snapshot = self.world.snapshot();
        let seen = self.current.load();
        if !Arc::ptr_eq(&seen.snapshot, &snapshot) || !Arc::ptr_eq(&seen.edge, &self.edge) {
            let handles = self.metrics.published(&snapshot, self.clock.origin_ms);
            self.current.store(Arc::new(Published { snapshot, edge: self.edge.clone(), handles }));
            self.changed.send_modify(|version| *version += 1);
        }
        // Readiness is reached once: a reload that brings new endpoints does not take the PoP out of service.
        if !*self.ready.borrow() && self.world.first_round_done() {
            self.ready.send_replace(true);
        }
    }
}

fn log(event: &Event) {
    match event {
        Event::Endpoint { service, region, address, up, first, cause } => {
            let verdict = if *up { "up" } else { "down" };
            match (up, first) {
                (true, true) => tracing::debug!(%service, %region, %address, cause, "endpoint {verdict}"),
                (true, false) => tracing::info!(%service, %region, %address, cause, "endpoint {verdict}"),
                (false, _) => tracing::warn!(%service, %region, %address, cause, "endpoint {verdict}"),
            }
        }
        Event::Region { service, region, from, to } => {
            let (from, now) = (from.as_str(), to.as_str());
            match to {
                PoolState::Down => tracing::warn!(%service, %region, from, "region {now}"),
                _ => tracing::info!(%service, %region, from, "region {now}"),
            }
        }
        Event::Ejection { service, region, address, time: Some(time), cause } => {
            let seconds = time.as_secs();
            tracing::warn!(%service, %region, %address, cause, seconds, "endpoint ejected");
        }
        Event::Ejection { service, region, address, time: None, cause } => {
            tracing::info!(%service, %region, %address, cause, "endpoint no longer ejected");
        }
        Event::Late { by } => {
            tracing::warn!(
                ms = by.as_millis() as u64,
                "this process stood still: what it saw meanwhile does not count"
            );
        }
        Event::SelfSuspicion { on: true } => {
            tracing::error!(
                "everything went down at once: the cause may be here, so all is served on as if it were up"
            );
        }
        Event::SelfSuspicion { on: false } => tracing::info!("not everything is down any more"),
        Event::Panic { service, on: true } => {
            tracing::error!(%service, "no region is up: the service panics");
        }
        Event::Panic { service, on: false } => tracing::info!(%service, "a region is up again: panic is over"),
        Event::Published { generation } => tracing::info!(generation, "configuration published"),
    }
}
