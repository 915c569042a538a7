//! A whole exchange over pipes in memory: our engine between a client and upstreams that follow a script, on a clock that nobody waits for.
//!
//! The pipes are state machines without tasks: a read gets the next piece, and after each one the reader is told to come again, as after a
//! packet; a script's turn begins when the engine has sent what it waits for. Everything happens in one task on a paused
//! clock, with chance of a fixed seed: the same script gives the same bytes, and a deadline of a minute takes no time.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use meridian::config::{AccessLines, AccessLog};
use meridian::geo::AtlasBuilder;
use meridian::proxy::Shared;
use meridian::proxy::engine::{Connect, Destination, Downstream, Mover, Served, Side};
use meridian::state::{Published, Reader};
use meridian::steering::{RegionSet, Snapshot, View};
use meridian::telemetry::{AccessLogGuard, AccessLogger, Metrics};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::model::{self, Front, Manner};
use super::world;

/// Two regions, so that there is somewhere else to go.
const CONFIG: &str = r#"
[pop]
name = "lab"
[regions.a]
[regions.b]
[services.web]
max_body = "64KiB"
[services.web.health]
kind = "none"
[services.web.pools.a]
endpoints = ["192.0.2.1:80"]
[services.web.pools.b]
endpoints = ["192.0.2.2:80"]
"#;

/// What a turn waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The head of a request.
    Head,
    /// A whole request.
    Request,
}

/// What an upstream sends for one request.
#[derive(Clone, Debug)]
pub struct Turn {
    pub when: When,
    pub pieces: Vec<Vec<u8>>,
}

/// What an upstream does after its last turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Stays,
    Closes,
    /// Reading from it panics, as a mistake of ours would.
    Panics,
}

/// What becomes of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Connects,
    Refused,
    /// As [`End::Panics`].
    Panics,
}

/// One upstream connection.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub fate: Fate,
    /// For its first request, its second, …
    pub turns: Vec<Turn>,
    pub end: End,
    /// It breaks when more bytes than this come.
    pub takes: usize,
}

impl Upstream {
    /// One that answers each whole request with the next of `answers`.
    pub fn answering(answers: &[&[u8]], end: End) -> Upstream {
        let turn = |answer: &&[u8]| Turn { when: When::Request, pieces: vec![answer.to_vec()] };
        Upstream { fate: Fate::Connects, turns: answers.iter().map(turn).collect(), end, takes: usize::MAX }
    }
}

/// All that goes in.
#[derive(Clone, Debug)]
pub struct Given {
    pub client: Vec<Vec<u8>>,
    /// The client closes its side after its last piece.
    pub closes: bool,
    /// In the order in which they are connected to; further ones are refused.
    pub upstreams: Vec<Upstream>,
    /// The most bytes that a write takes before it has to come again; 0: any.
    pub grain: usize,
}

/// All that came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    pub client: Vec<u8>,
    /// The client's connection was to be reset.
    pub reset: bool,
    pub upstreams: Vec<Vec<u8>>,
    /// Writes to upstreams: to which connection, and from which of its bytes on.
    pub order: Vec<(usize, usize)>,
}

impl Got {
    /// All of an exchange, to look at.
    pub fn shown(&self, given: &Given) -> String {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string().replace("\\n", "\\n\n    ");
        let cuts: Vec<_> = given.client.iter().map(Vec::len).collect();
        let mut shown = format!(
            "client, closes: {}, pieces {cuts:?}, grain {}:\n    {}\n",
            given.closes,
            given.grain,
            text(&given.client.concat())
        );
        for (index, script) in given.upstreams.iter().enumerate() {
            let received = self.upstreams.get(index).map(|bytes| text(bytes)).unwrap_or_default();
            shown += &format!("upstream {index}, {:?}, {:?}, got:\n    {received}\n", script.fate, script.end);
            for turn in &script.turns {
                let cuts: Vec<_> = turn.pieces.iter().map(Vec::len).collect();
                shown += &format!(
                    "  answers after {:?}, pieces {cuts:?}:\n    {}\n",
                    turn.when,
                    text(&turn.pieces.concat())
                );
            }
        }
        shown + &format!("client got, reset: {}:\n    {}\n", self.reset, text(&self.client))
    }
}

/// Cuts `bytes` before each of these places.
pub fn cut(bytes: &[u8], places: &[usize]) -> Vec<Vec<u8>> {
    let mut places: Vec<_> = places.iter().copied().filter(|place| (1..bytes.len()).contains(place)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.dedup();
    places.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
}

/// Cuts `bytes` every `step`; 0: nowhere.
pub fn cut_every(bytes: &[u8], step: usize) -> Vec<Vec<u8>> {
    bytes.chunks(if step == 0 { bytes.len().max(1) } else { step }).map(<[u8]>::to_vec).collect()
}

impl Given {
    /// What a fuzzer's bytes stand for. Two bytes of settings, the client's bytes, then after each `FE 55` an upstream connection and after each
    /// `FE 54` its next turn; a connection begins with one byte of settings.
    pub fn from_bytes(data: &[u8]) -> Option<Given> {
        let [how, steps, rest @ ..] = data else { return None };
        let (client_step, upstream_step) = (usize::from(steps & 15), usize::from(steps >> 4));
        let mut connections = split(rest, b"\xfe\x55").into_iter();
        let client = cut_every(connections.next()?, client_step);
        let upstreams = connections.take(4).filter_map(|bytes| {
            let (how, rest) = bytes.split_first()?;
            let when = if how & 1 == 0 { When::Request } else { When::Head };
            let turn = |bytes: &[u8]| Turn { when, pieces: cut_every(bytes, upstream_step) };
            Some(Upstream {
                fate: if how & 4 == 0 { Fate::Connects } else { Fate::Refused },
                turns: split(rest, b"\xfe\x54").into_iter().map(turn).collect(),
                end: if how & 2 == 0 { End::Stays } else { End::Closes },
                takes: if how & 8 == 0 { usize::MAX } else { usize::from(how >> 4) * 32 },
            })
        });
        Some(Given { client, closes: how & 1 != 0, upstreams: upstreams.collect(), grain: usize::from(how >> 1 & 15) })
    }
}

fn split<'a>(mut bytes: &'a [u8], by: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    while let Some(at) = bytes.windows(by.len()).position(|window| window == by) {
        parts.push(&bytes[..at]);
        bytes = &bytes[at + by.len()..];
    }
    parts.push(bytes);
    parts
}

/// What engines share: a configuration that stands still.
pub struct World {
    reader: Reader,
    access: AccessLogger,
    pub metrics: Metrics,
    /// Kept only; in a lock because it cannot be shared.
    _guard: Mutex<AccessLogGuard>,
}

impl World {
    pub fn new(log: &AccessLog) -> World {
        World::of(CONFIG, log)
    }

    /// Of that configuration: nothing is probed, and everything is up.
    pub fn of(config: &str, log: &AccessLog) -> World {
        let config = world::compile(config);
        let view = View::compile(config.fleet, Arc::new(AtlasBuilder::new().build()), None);
        let snapshot = Arc::new(Snapshot::assuming(view, RegionSet::default()));
        let metrics = Metrics::new();
        let handles = metrics.published(&snapshot, &config.edge, 0);
        let reader = Reader::fixed(Published { snapshot, edge: config.edge, handles });
        let (access, guard) = AccessLogger::start(log, AccessLines::default(), None, &metrics).expect("a log");
        World { reader, access, metrics, _guard: Mutex::new(guard) }
    }

    /// One for all exchanges of a process that look at bytes only.
    fn common() -> &'static World {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(|| World::new(&AccessLog::Off))
    }

    /// An engine over these upstreams. Only on a runtime.
    pub fn engine(&self, upstreams: &[Upstream], grain: usize) -> Engine {
        let net = Net(Arc::new(Mutex::new(Wires { scripts: upstreams.to_vec().into(), grain, ..Wires::default() })));
        Engine { mover: self.mover(net.clone()), net }
    }

    /// The mover of an engine that connects like that. Only on a runtime.
    pub fn mover<C: Connect>(&self, connect: C) -> Mover<C> {
        let now = tokio::time::Instant::now().into_std();
        let shared = Arc::new(Shared::new(self.reader.clone(), self.access.clone(), now));
        Mover::over(connect, shared, self.metrics.clone(), 1)
    }
}

/// An engine between pipes.
pub struct Engine {
    mover: Mover<Net>,
    net: Net,
}

impl Engine {
    /// Serves one client to its end: what it got, and whether it was to be reset.
    pub async fn serve(&self, client: Vec<Vec<u8>>, closes: bool) -> (Vec<u8>, bool) {
        let got = Arc::new(Mutex::new(Vec::new()));
        let grain = locked(&self.net.0).grain;
        let source = Source { pieces: client.into_iter().filter(|piece| !piece.is_empty()).collect(), rests: false };
        let pipe = ClientPipe { source, closes, sink: Sink { grain, rests: false }, got: Arc::clone(&got) };
        let peer = Some(SocketAddr::from(([192, 0, 2, 77], 4711)));
        let (_keep, draining) = watch::channel(false);
        let served = self.mover.serve(pipe, Downstream { peer, scheme: "http", http2: false, bound: &[] }, &draining);
        // No deadline of ours is longer than this.
        let served = tokio::time::timeout(Duration::from_secs(36_000), served).await.expect("it ends");
        let reset = matches!(served, Served::Reset(_));
        let got = locked(&got).clone();
        (got, reset)
    }
}

/// A runtime whose clock moves only when there is nothing else to do.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// Runs an exchange to its end.
pub fn exchange(given: &Given) -> Got {
    let runtime = runtime();
    fastrand::seed(1);
    runtime.block_on(async {
        let engine = World::common().engine(&given.upstreams, given.grain);
        let (client, reset) = engine.serve(given.client.clone(), given.closes).await;
        let wires = locked(&engine.net.0);
        let upstreams = wires.open.iter().map(|wire| wire.received.clone()).collect();
        Got { client, reset, upstreams, order: wires.order.clone() }
    })
}

/// What a panic interrupted is looked at all the same.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is read, piece by piece.
#[derive(Debug, Default)]
struct Source {
    pieces: VecDeque<Vec<u8>>,
    rests: bool,
}

impl Source {
    /// The next piece, or as much of it as there is room for. `None`: there is none.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Option<Poll<io::Result<()>>> {
        let piece = self.pieces.front_mut()?;
        // Whoever looks without waiting sees what is there.
        let looks = cx.waker().data() == Waker::noop().data();
        if std::mem::take(&mut self.rests) && !looks {
            cx.waker().wake_by_ref();
            return Some(Poll::Pending);
        }
        let count = piece.len().min(buf.remaining());
        buf.put_slice(&piece[..count]);
        piece.drain(..count);
        if piece.is_empty() {
            self.pieces.pop_front();
            self.rests = true;
        }
        Some(Poll::Ready(Ok(())))
    }
}

/// How much a write takes.
#[derive(Debug, Default)]
struct Sink {
    grain: usize,
    rests: bool,
}

impl Sink {
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        if self.grain == 0 {
            return Poll::Ready(wanted);
        }
        self.rests = !self.rests;
        if self.rests {
            return Poll::Ready(wanted.min(self.grain));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

struct ClientPipe {
    source: Source,
    closes: bool,
    sink: Sink,
    got: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for ClientPipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let closes = self.closes;
        self.source.poll_read(cx, buf).unwrap_or(if closes { Poll::Ready(Ok(())) } else { Poll::Pending })
    }
}

impl Side for ClientPipe {}

impl AsyncWrite for ClientPipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.sink.poll_room(cx, buf.len()).map(|room| {
            locked(&self.got).extend_from_slice(&buf[..room]);
            Ok(room)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// All upstream connections of an engine.
#[derive(Debug, Default)]
struct Wires {
    scripts: VecDeque<Upstream>,
    grain: usize,
    open: Vec<Wire>,
    order: Vec<(usize, usize)>,
}

#[derive(Debug)]
struct Wire {
    turns: VecDeque<Turn>,
    end: End,
    takes: usize,
    source: Source,
    sink: Sink,
    received: Vec<u8>,
    /// Bytes, heads and whole requests among what was received.
    read: usize,
    heads: usize,
    requests: usize,
    /// Turns that began.
    begun: usize,
    reader: Option<Waker>,
}

impl Wire {
    /// Counts what came, and begins the turns that waited for it.
    fn advance(&mut self) {
        while let Front::Message(request) = model::request(&self.received[self.read..], Manner::Ours) {
            self.heads = self.requests + 1;
            if !request.body.whole {
                break;
            }
            self.requests += 1;
            self.read += request.length;
        }
        while let Some(turn) = self.turns.front() {
            let seen = if turn.when == When::Head { self.heads } else { self.requests };
            if seen <= self.begun {
                return;
            }
            self.begun += 1;
            let pieces = self.turns.pop_front().map(|turn| turn.pieces).unwrap_or_default();
            self.source.pieces.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
    }
}

#[derive(Clone)]
struct Net(Arc<Mutex<Wires>>);

impl Connect for Net {
    type Stream = UpstreamPipe;

    async fn connect(&self, _: Destination) -> io::Result<UpstreamPipe> {
        let mut wires = locked(&self.0);
        let script = wires.scripts.pop_front().ok_or(io::ErrorKind::ConnectionRefused)?;
        let index = wires.open.len();
        let grain = wires.grain;
        wires.open.push(Wire {
            turns: script.turns.into(),
            end: script.end,
            takes: script.takes,
            source: Source::default(),
            sink: Sink { grain, rests: false },
            received: Vec::new(),
            read: 0,
            heads: 0,
            requests: 0,
            begun: 0,
            reader: None,
        });
        drop(wires);
        match script.fate {
            Fate::Connects => Ok(UpstreamPipe { net: self.clone(), index }),
            Fate::Refused => Err(io::ErrorKind::ConnectionRefused.into()),
            Fate::Panics => panic!("connecting panics, as its script says"),
        }
    }
}

struct UpstreamPipe {
    net: Net,
    index: usize,
}

impl AsyncRead for UpstreamPipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wires = locked(&self.net.0);
        let wire = &mut wires.open[self.index];
        if let Some(read) = wire.source.poll_read(cx, buf) {
            return read;
        }
        match wire.end {
            End::Closes if wire.turns.is_empty() => Poll::Ready(Ok(())),
            End::Panics if wire.turns.is_empty() => panic!("reading panics, as its script says"),
            _ => {
                wire.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Side for UpstreamPipe {}

impl AsyncWrite for UpstreamPipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut wires = locked(&self.net.0);
        let wire = &mut wires.open[self.index];
        let from = wire.received.len();
        if from >= wire.takes {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let Poll::Ready(room) = wire.sink.poll_room(cx, buf.len().min(wire.takes - from)) else { return Poll::Pending };
        wire.received.extend_from_slice(&buf[..room]);
        wire.advance();
        wires.order.push((self.index, from));
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
