//! HTTP/2 connections to endpoints: each carries many requests at once, as [calls](super::call::Call).
//!
//! A worker keeps its own, as it keeps those of HTTP/1.1: under their endpoint's id, with the epoch of its pool and its TLS. Who needs one that is not there yet
//! makes it, and all who come meanwhile wait for the same one, as far as it may carry them. It is there once the endpoint has sent its SETTINGS: only then is it known that
//! HTTP/2 is spoken there, and to how many streams. No request begins on a connection that says farewell (GOAWAY), is too old, or is in doubt: a request got no answer there and
//! nothing else came either, so it is asked for a sign of life (PING) before others are sent after the first. What is not kept any more ends with its last call.
//!
//! It must not know requests.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep_until, timeout_at};

use super::call::Call;
use crate::proxy::Attempt;
use crate::proxy::engine::connecting::Coming;
use crate::proxy::engine::upstream::{Connect, Destination, Place, Upstream, worker};
use crate::proxy::engine::{Core, head, now};
use crate::steering::meter::Meter;
use crate::steering::snapshot::EndpointId;

/// Requests at once on one connection, as most servers allow.
const STREAMS: usize = 100;

/// What may lie here of one answer before somebody takes it. That of the connection is as much for all of its streams, so that answers that nobody takes do not hold up the others.
const WINDOW: u32 = 256 << 10;

/// What pieces of answers may take beside what is in them, of all that lie here: when it is more, the library ends the connection. As many as come when each stream has its
/// window full of pieces of 25 bytes: endpoints are ours, and a client that takes nothing must not cost others their answers.
const PIECES: usize = 256 << 20;

/// How long a connection has to be silent, towards a request too, before it is in doubt.
const SILENCE: Duration = Duration::from_secs(1);

/// How long a sign of life may take.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// The connections of all workers.
pub(in crate::proxy::engine) struct Sessions {
    shards: Box<[Mutex<Shard>]>,
}

type Shard = HashMap<EndpointId, Vec<Arc<Session>>>;

/// One connection, there or under way.
#[derive(Debug)]
pub(super) struct Session {
    epoch: u32,
    tls: u64,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    born: Instant,
    /// When it is too old to be used again.
    dies: Instant,
    idle: Duration,
    /// There once it is open.
    send: OnceLock<SendRequest<Bytes>>,
    told: Arc<Told>,
    /// Requests that are on it or wait for it.
    promised: AtomicUsize,
    /// When the last of them ended, in milliseconds since it was born.
    used_ms: AtomicU64,
}

/// What a connection's task tells of it, and is told.
#[derive(Debug)]
struct Told {
    stage: watch::Sender<Stage>,
    /// Streams that the endpoint allows.
    most: AtomicUsize,
    /// When something came last, in milliseconds since it was born.
    heard_ms: AtomicU64,
    in_doubt: AtomicBool,
    /// That it came into doubt.
    ask: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Coming,
    Open,
    Over,
}

/// A place on a connection, for one request.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) session: Arc<Session>,
    /// It was given back.
    is_void: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.used_ms.store(self.session.age_ms(), Relaxed);
        if !self.is_void {
            self.session.promised.fetch_sub(1, Relaxed);
        }
    }
}

impl Session {
    fn age_ms(&self) -> u64 {
        millis(now().saturating_duration_since(self.born))
    }

    fn stage(&self) -> Stage {
        *self.told.stage.borrow()
    }

    fn fits(&self, attempt: &Attempt) -> bool {
        (self.epoch, self.tls) == (attempt.epoch, attempt.tls)
    }

    /// How many requests it may carry.
    fn room(&self) -> usize {
        match self.stage() {
            Stage::Coming => STREAMS,
            Stage::Open => self.told.most.load(Relaxed).min(STREAMS),
            Stage::Over => 0,
        }
    }

    /// A place on it, if it has one.
    fn ticket(self: &Arc<Self>) -> Option<Ticket> {
        let room = self.room();
        let enter = self.promised.fetch_update(Relaxed, Relaxed, |promised| (promised < room).then_some(promised + 1));
        enter.ok().map(|_| Ticket { session: Arc::clone(self), is_void: false })
    }

    /// Whether a request can begin on it now.
    fn is_good(&self, now: Instant) -> bool {
        now < self.dies && !self.told.in_doubt.load(Relaxed) && self.stage() == Stage::Open && self.takes_requests()
    }

    /// Whether its endpoint takes new requests: it did not say farewell.
    fn takes_requests(&self) -> bool {
        let Some(mut send) = self.send.get().cloned() else { return false };
        // A place was not asked for, so it is ready unless it never will be.
        !matches!(send.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    /// How to send a request on it. Only once it is open.
    pub(super) fn send(&self) -> Option<SendRequest<Bytes>> {
        self.send.get().cloned()
    }

    /// A request that was sent at `asked` is given up without an answer.
    pub(super) fn unanswered(&self, asked: Instant) {
        let heard = self.born + Duration::from_millis(self.told.heard_ms.load(Relaxed));
        if now().saturating_duration_since(heard.max(asked)) >= SILENCE && !self.told.in_doubt.swap(true, Relaxed) {
            self.told.ask.notify_one();
        }
    }

    /// Whether it is to be kept: neither over nor too old, nor unused for too long.
    fn is_kept(&self, now: Instant) -> bool {
        let used = self.born + Duration::from_millis(self.used_ms.load(Relaxed));
        match self.stage() {
            Stage::Coming => true,
            Stage::Open => {
                now < self.dies
                    && (self.promised.load(Relaxed) > 0 || now < used + self.idle)
                    && (self.told.in_doubt.load(Relaxed) || self.takes_requests())
            }
            Stage::Over => false,
        }
    }
}

impl Sessions {
    /// For a runtime of that many workers.
    pub(in crate::proxy::engine) fn new(workers: usize) -> Sessions {
        Sessions { shards: (0..workers.max(1)).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        self.shards[index % self.shards.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on a connection of this worker that is there, for that attempt.
    fn take(&self, attempt: &Attempt, now: Instant) -> Option<Ticket> {
        self.take_from(worker(), attempt, now)
    }

    fn take_from_others(&self, attempt: &Attempt, now: Instant) -> Option<Ticket> {
        let own = worker();
        (1..self.shards.len()).find_map(|offset| self.take_from(own + offset, attempt, now))
    }

    fn take_from(&self, shard: usize, attempt: &Attempt, now: Instant) -> Option<Ticket> {
        let shard = self.shard(shard);
        let mut good = shard.get(&attempt.endpoint)?.iter().filter(|session| session.fits(attempt));
        // The fullest first would let the others be closed; the first one comes to the same, and they stand in the order in which they were made.
        good.find_map(|session| session.is_good(now).then(|| session.ticket()).flatten())
    }

    /// A place on a connection that is under way.
    fn coming(&self, attempt: &Attempt) -> Option<Ticket> {
        let shard = self.shard(worker());
        let mut fit = shard.get(&attempt.endpoint)?.iter().filter(|session| session.fits(attempt));
        fit.find_map(|session| (session.stage() == Stage::Coming).then(|| session.ticket()).flatten())
    }

    /// A request on a connection of this worker that is there, for that attempt.
    pub(in crate::proxy::engine) fn call<U>(
        &self,
        attempt: &Attempt,
        now: Instant,
        shared: fn(Call) -> Option<U>,
    ) -> Option<Box<Upstream<U>>> {
        upstream(self.take(attempt, now)?, attempt, now, shared)
    }

    /// The same of another worker's.
    pub(in crate::proxy::engine) fn call_of_others<U>(
        &self,
        attempt: &Attempt,
        now: Instant,
        shared: fn(Call) -> Option<U>,
    ) -> Option<Box<Upstream<U>>> {
        upstream(self.take_from_others(attempt, now)?, attempt, now, shared)
    }

    /// A place on a connection that is made for that attempt, or that is being made. `None`: no more may be made than there are. `connect` is for one that is made here.
    fn join<S, F>(
        &self,
        attempt: &Attempt,
        began: Instant,
        place: impl FnOnce() -> Option<Place>,
        connect: impl FnOnce() -> F,
    ) -> Option<Ticket>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        if let Some(ticket) = self.coming(attempt) {
            return Some(ticket);
        }
        let place = place()?;
        let told = Arc::new(Told {
            stage: watch::Sender::new(Stage::Coming),
            most: AtomicUsize::new(0),
            heard_ms: AtomicU64::new(0),
            in_doubt: AtomicBool::new(false),
            ask: Notify::new(),
        });
        let session = Arc::new(Session {
            epoch: attempt.epoch,
            tls: attempt.tls,
            scheme: if attempt.tls == 0 { "http" } else { "https" },
            born: began,
            dies: began + attempt.max_age,
            idle: attempt.pool_idle,
            send: OnceLock::new(),
            told: Arc::clone(&told),
            promised: AtomicUsize::new(0),
            used_ms: AtomicU64::new(0),
        });
        let ticket = session.ticket();
        let mut shard = self.shard(worker());
        let kept = shard.entry(attempt.endpoint).or_default();
        kept.retain(|session| session.stage() != Stage::Over);
        kept.push(Arc::clone(&session));
        drop(shard);
        tokio::spawn(run(session, told, connect(), began + attempt.connect, place));
        ticket
    }

    /// Keeps no connection of another epoch than the endpoint's pool has in `snapshot`, nor, when it is told the time, what is too old, unused or over.
    pub(in crate::proxy::engine) fn sweep(&self, epochs: &HashMap<EndpointId, u32>, now: Option<Instant>) {
        for index in 0..self.shards.len() {
            self.shard(index).retain(|endpoint, kept| {
                let epoch = epochs.get(endpoint);
                kept.retain(|session| epoch == Some(&session.epoch) && now.is_none_or(|now| session.is_kept(now)));
                !kept.is_empty()
            });
        }
    }
}

impl Ticket {
    /// Waits until its connection is there. `None`: it carries fewer requests than were promised one, of which this is one too many.
    async fn opened(mut self) -> io::Result<Option<Ticket>> {
        let session = Arc::clone(&self.session);
        let mut stage = session.told.stage.subscribe();
        let stage = stage.wait_for(|stage| *stage != Stage::Coming).await.map_or(Stage::Over, |stage| *stage);
        if stage != Stage::Open {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let room = session.room();
        let leave = session.promised.fetch_update(Relaxed, Relaxed, |promised| (promised > room).then(|| promised - 1));
        self.is_void = leave.is_ok();
        Ok((!self.is_void).then_some(self))
    }
}

/// A request on a connection that is there, one that others used before.
fn upstream<U>(
    ticket: Ticket,
    attempt: &Attempt,
    now: Instant,
    shared: fn(Call) -> Option<U>,
) -> Option<Box<Upstream<U>>> {
    let stream = shared(Call::new(ticket, attempt.address))?;
    let mut upstream = Upstream::new(stream, attempt, None, now);
    upstream.reused = true;
    Some(upstream)
}

/// A request on a connection that is made for that attempt, or is being made. `None`: no more may be made.
pub(in crate::proxy::engine) fn call<C: Connect>(
    core: &Arc<Core<C>>,
    attempt: Attempt,
    began: Instant,
    meter: Arc<Meter>,
    to: Destination,
) -> Option<Coming<C::Stream>> {
    let join = move |core: &Arc<Core<C>>, began| {
        let connect = || {
            let (core, to) = (Arc::clone(core), to.clone());
            async move { core.connect.connect(to).await }
        };
        core.sessions.join(&attempt, began, || Place::take(&meter, attempt.max_connections), connect)
    };
    let (core, mut ticket) = (Arc::clone(core), join(core, began)?);
    Some(Box::pin(async move {
        loop {
            if let Some(ticket) = ticket.opened().await? {
                return C::shared(Call::new(ticket, attempt.address)).ok_or(io::ErrorKind::Unsupported.into());
            }
            let (now, full) = (now(), io::ErrorKind::QuotaExceeded);
            ticket = core.sessions.take(&attempt, now).or_else(|| join(&core, now)).ok_or(full)?;
        }
    }))
}

/// A connection from before it is there to its end.
async fn run<S, F>(session: Arc<Session>, told: Arc<Told>, connect: F, due: Instant, place: Place)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
{
    let born = session.born;
    let opening = open(connect, Arc::clone(&told), born);
    match timeout_at(due.into(), opening).await {
        Ok(Ok((send, connection))) => {
            told.most.store(connection.max_concurrent_send_streams(), Relaxed);
            session.used_ms.store(session.age_ms(), Relaxed);
            let _ = session.send.set(send);
            told.stage.send_replace(Stage::Open);
            // From here on it lives for as long as somebody else has it.
            drop(session);
            serve(connection, &told).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "no HTTP/2 connection to an endpoint"),
        Err(_) => tracing::debug!("no HTTP/2 connection to an endpoint in time"),
    }
    told.stage.send_replace(Stage::Over);
    drop(place);
}

/// Connects, and waits for the endpoint's SETTINGS.
async fn open<S, F>(
    connect: F,
    told: Arc<Told>,
    born: Instant,
) -> io::Result<(SendRequest<Bytes>, Connection<Listened<S>, Bytes>)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let stream = Listened { inner: connect.await?, told, born };
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * STREAMS as u32)
        .data_frame_budget(PIECES)
        .max_header_list_size(head::RESPONSE_BYTES as u32)
        // Not known before SETTINGS came.
        .initial_max_send_streams(0);
    let (send, mut connection) = builder.handshake(stream).await.map_err(io_error)?;
    poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(io_error(error))),
        Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await?;
    Ok((send, connection))
}

/// Runs an open connection to its end.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut connection: Connection<Listened<S>, Bytes>, told: &Told) {
    let mut pings = connection.ping_pong();
    let mut asked = pin!(told.ask.notified());
    let mut timer = pin!(sleep_until(now().into()));
    let mut waits = false;
    poll_fn(|cx| {
        loop {
            if Pin::new(&mut connection).poll(cx).is_ready() {
                return Poll::Ready(());
            }
            told.most.store(connection.max_concurrent_send_streams(), Relaxed);
            let Some(pings) = &mut pings else { return Poll::Pending };
            if waits {
                if answered(pings, cx) {
                    waits = false;
                    told.in_doubt.store(false, Relaxed);
                } else {
                    return timer.as_mut().poll(cx);
                }
            }
            ready!(asked.as_mut().poll(cx));
            asked.set(told.ask.notified());
            if pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            waits = true;
            timer.as_mut().reset((now() + SIGN_OF_LIFE).into());
        }
    })
    .await;
}

fn answered(pings: &mut PingPong, cx: &mut Context<'_>) -> bool {
    matches!(pings.poll_pong(cx), Poll::Ready(Ok(_)))
}

/// A connection that tells when something came.
struct Listened<S> {
    inner: S,
    told: Arc<Told>,
    born: Instant,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listened<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.told.heard_ms.store(millis(now().saturating_duration_since(this.born)), Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listened<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn io_error(error: h2::Error) -> io::Error {
    io::Error::other(error)
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
