//! Connections to endpoints: made, kept while nobody uses them, and used again only while that is safe.
//!
//! The pool has a shard for each worker, whose lock nobody else wants but the sweep and a worker that may make no more connections. A connection is
//! kept under its endpoint's id, and with the epoch of its pool: when a region goes down its epoch rises, and no connection from before is used
//! again. Before one is used it is looked at: bytes that nobody asked for, or an end, and it is dropped. What came
//! before the worker's last look at its sockets, or before the last read of the connection, is known without asking the kernel again.
//! A sweep a second closes what is too old and what the upstream closed; what is of another epoch goes as soon as that is published.
//!
//! How a connection is made is a trait, so that tests and fuzz targets run the whole engine over pipes.

use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::buffer::Buffer;
use super::h2::Call;
use super::splice::{Broke, Side};
use crate::config::tls::UpstreamTls;
use crate::proxy::Attempt;
use crate::socket::Socket;
use crate::steering::meter::Meter;
use crate::steering::snapshot::EndpointId;

/// Makes connections to endpoints.
pub trait Connect: Send + Sync + 'static {
    /// A connection.
    type Stream: Side + 'static;

    /// Connects, and shakes hands if there is TLS. Who calls bounds how long it may take.
    fn connect(&self, to: Destination) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// A request on a connection that many share, as a connection of its own. `None`: there are no such connections.
    fn shared(_: Call) -> Option<Self::Stream> {
        None
    }

    /// Whether nothing came on a connection that nobody uses: no byte, and no end.
    fn is_quiet(stream: &mut Self::Stream) -> bool {
        has_nothing(stream)
    }
}

/// Whether neither a byte nor an end is there to be read.
fn has_nothing(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut byte = [0];
    let mut look = ReadBuf::new(&mut byte);
    // Not a task's own reading: it must not be told to wait because that task did much already.
    let mut read = tokio::task::unconstrained(poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut look)));
    Pin::new(&mut read).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

/// Where a connection is to go.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Address.
    pub address: SocketAddr,
    /// The TLS that it is to be within.
    pub tls: Option<Within>,
    /// What is sent before anything else.
    pub preamble: Option<Arc<[u8]>>,
}

/// The TLS that a connection is to be within.
#[derive(Clone, Debug)]
pub struct Within {
    /// By its configuration,
    pub tls: Arc<UpstreamTls>,
    /// to that endpoint, as it was configured.
    pub endpoint: Arc<str>,
}

/// TCP, with or without TLS, and with HTTP/2 on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

/// A connection by [`Tcp`].
#[derive(Debug)]
pub enum TcpOrTls {
    /// Plain.
    Tcp(Socket),
    /// Within TLS. Larger by far, and rarer.
    Tls(Box<TlsStream<Socket>>),
    /// One request of many on a connection.
    Call(Box<Call>),
}

impl Side for TcpOrTls {
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            TcpOrTls::Tcp(socket) => Some(socket.stream()),
            TcpOrTls::Tls(_) | TcpOrTls::Call(_) => None,
        }
    }

    fn broke(&self) -> Broke {
        match self {
            TcpOrTls::Call(call) => call.broke(),
            TcpOrTls::Tcp(_) | TcpOrTls::Tls(_) => Broke::Connection,
        }
    }
}

impl AsyncRead for TcpOrTls {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            TcpOrTls::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            TcpOrTls::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            TcpOrTls::Call(call) => Pin::new(call).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for TcpOrTls {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            TcpOrTls::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            TcpOrTls::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            TcpOrTls::Call(call) => Pin::new(call).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            TcpOrTls::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            TcpOrTls::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            TcpOrTls::Call(call) => Pin::new(call).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            TcpOrTls::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            TcpOrTls::Tls(stream) => Pin::new(stream).poll_flush(cx),
            TcpOrTls::Call(call) => Pin::new(call).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            TcpOrTls::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            TcpOrTls::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            TcpOrTls::Call(call) => Pin::new(call).poll_shutdown(cx),
        }
    }
}

impl Connect for Tcp {
    type Stream = TcpOrTls;

    async fn connect(&self, Destination { address, tls, preamble }: Destination) -> io::Result<TcpOrTls> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        // An upstream whose machine vanished is noticed, whatever the state of the connection.
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(20)).with_interval(Duration::from_secs(5));
        socket.set_tcp_keepalive(&keepalive.with_retries(3))?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(Duration::from_secs(20)))?;
        if let Some(preamble) = preamble {
            stream.write_all(&preamble).await?;
        }
        let Some(Within { tls, endpoint }) = tls else { return Ok(TcpOrTls::Tcp(stream.into())) };
        let Some(name) = tls.name_of(&endpoint) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let connector = TlsConnector::from(Arc::clone(&tls.config));
        let stream = connector.connect(name, stream.into()).await.inspect_err(|error| {
            tracing::debug!(%error, %endpoint, "no TLS with an endpoint");
        })?;
        // Who was told that HTTP/2 will be spoken, and said nothing to it, speaks something else.
        if tls.config.alpn_protocols.iter().all(|protocol| protocol == b"h2")
            && stream.get_ref().1.alpn_protocol() != Some(b"h2")
        {
            tracing::debug!(%endpoint, "an endpoint does not speak HTTP/2 within TLS");
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(TcpOrTls::Tls(Box::new(stream)))
    }

    fn shared(call: Call) -> Option<TcpOrTls> {
        Some(TcpOrTls::Call(Box::new(call)))
    }

    /// By what the runtime knows. It looks at all sockets of this worker whenever its tasks have run, and after some dozens of them at the
    /// latest, and the last read of this one found its end; so what it does not know came a moment ago. Asking the kernel each time would only make that
    /// moment shorter, for a system call per request: HTTP/1.1 cannot tell such bytes from an answer.
    fn is_quiet(stream: &mut TcpOrTls) -> bool {
        match stream {
            TcpOrTls::Tcp(socket) => {
                socket.stream().try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            // Tickets may come, which are no bytes of an answer.
            TcpOrTls::Tls(stream) => has_nothing(stream),
            // It is never kept.
            TcpOrTls::Call(_) => false,
        }
    }
}

/// A connection in use.
#[derive(Debug)]
pub(super) struct Upstream<U> {
    pub(super) stream: U,
    /// What came and was not used yet.
    pub(super) input: Buffer,
    /// Whether it served a request before.
    pub(super) reused: bool,
    endpoint: EndpointId,
    epoch: u32,
    tls: u64,
    idle: Duration,
    /// When it is too old to be used again.
    dies: Instant,
    /// Counts it at its endpoint.
    _place: Option<Place>,
}

/// A connection counted at its endpoint.
#[derive(Debug)]
pub(super) struct Place(Arc<Meter>);

impl Place {
    /// Counts one in, unless as many are open as may be.
    pub(super) fn take(meter: &Arc<Meter>, limit: u32) -> Option<Place> {
        meter.try_connect(limit).then(|| Place(Arc::clone(meter)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.disconnect();
    }
}

impl<U> Upstream<U> {
    /// A new connection for that attempt, and its place, unless it shares another's. Boxed, because it is handed on several times with each request.
    pub(super) fn new(stream: U, attempt: &Attempt, place: Option<Place>, now: Instant) -> Box<Upstream<U>> {
        Box::new(Upstream {
            stream,
            input: Buffer::default(),
            reused: false,
            endpoint: attempt.endpoint,
            epoch: attempt.epoch,
            tls: attempt.tls,
            idle: attempt.pool_idle,
            dies: now + attempt.max_age,
            _place: place,
        })
    }
}

struct Idle<U> {
    upstream: Box<Upstream<U>>,
    /// When it is too old, or was not used for too long.
    until: Instant,
}

impl<U> Idle<U> {
    /// Whether it may be used at `now`: young enough, and quiet.
    fn is_good<C: Connect<Stream = U>>(&mut self, now: Instant) -> bool {
        now < self.until && C::is_quiet(&mut self.upstream.stream)
    }
}

/// Ids are numbers given out in turn: spread well enough by one multiplication, and nobody chooses them.
#[derive(Clone, Copy, Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Shard<U> = HashMap<EndpointId, Vec<Idle<U>>, BuildHasherDefault<Spread>>;

/// Connections that nobody uses.
pub(super) struct Pool<C: Connect> {
    shards: Box<[Mutex<Shard<C::Stream>>]>,
}

impl<C: Connect> Pool<C> {
    /// A pool for a runtime of that many workers.
    pub(super) fn new(workers: usize) -> Pool<C> {
        Pool { shards: (0..workers.max(1)).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, Shard<C::Stream>> {
        self.shards[index % self.shards.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of this worker for that attempt, the one used last first: it is the least likely to be closing.
    pub(super) fn take(&self, attempt: &Attempt, now: Instant) -> Option<Box<Upstream<C::Stream>>> {
        self.take_from(worker(), attempt, now)
    }

    /// A connection that another worker keeps.
    pub(super) fn take_from_others(&self, attempt: &Attempt, now: Instant) -> Option<Box<Upstream<C::Stream>>> {
        let own = worker();
        (1..self.shards.len()).find_map(|offset| self.take_from(own + offset, attempt, now))
    }

    fn take_from(&self, shard: usize, attempt: &Attempt, now: Instant) -> Option<Box<Upstream<C::Stream>>> {
        let mut shard = self.shard(shard);
        let kept = shard.get_mut(&attempt.endpoint)?;
        while let Some(mut idle) = kept.pop() {
            if idle.upstream.epoch > attempt.epoch {
                // From after an outage that this request has not seen. All others of the shard may be so too.
                kept.push(idle);
                return None;
            }
            // Made by another configuration of TLS, it may be to whom that one trusted; and where none is kept, none is used that was made while some were.
            if !attempt.pool_idle.is_zero()
                && (idle.upstream.epoch, idle.upstream.tls) == (attempt.epoch, attempt.tls)
                && idle.is_good::<C>(now)
            {
                idle.upstream.reused = true;
                return Some(idle.upstream);
            }
        }
        None
    }

    /// Keeps a connection whose last exchange ended cleanly.
    pub(super) fn put(&self, upstream: Box<Upstream<C::Stream>>, now: Instant) {
        debug_assert!(upstream.input.is_empty());
        if upstream.idle.is_zero() {
            return;
        }
        let mut shard = self.shard(worker());
        let until = (now + upstream.idle).min(upstream.dies);
        shard.entry(upstream.endpoint).or_default().push(Idle { upstream, until });
    }

    /// Closes what must not be used any more: of another epoch than the endpoint's pool has, and, when it is told the time,
    /// too old, closed or speaking unasked.
    pub(super) fn sweep(&self, epochs: &HashMap<EndpointId, u32>, now: Option<Instant>) {
        for index in 0..self.shards.len() {
            let mut shard = self.shard(index);
            shard.retain(|endpoint, kept| {
                let epoch = epochs.get(endpoint);
                kept.retain_mut(|idle| {
                    epoch.is_some_and(|epoch| *epoch == idle.upstream.epoch)
                        && now.is_none_or(|now| idle.is_good::<C>(now))
                });
                !kept.is_empty()
            });
        }
    }

    /// Connections kept now.
    #[cfg(test)]
    fn len(&self) -> usize {
        (0..self.shards.len()).map(|index| self.shard(index).values().map(Vec::len).sum::<usize>()).sum()
    }
}

/// A number of this thread, small and steady: which shard is its own.
pub(super) fn worker() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static WORKER: usize = NEXT.fetch_add(1, Relaxed);
    }
    WORKER.with(|worker| *worker)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an instant can only be had from the clock")]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    fn attempt(endpoint: u64, epoch: u32) -> Attempt {
        let mut attempt = Attempt::for_tests();
        (attempt.endpoint, attempt.epoch) = (EndpointId(endpoint), epoch);
        attempt
    }

    struct Pipes;

    impl Connect for Pipes {
        type Stream = DuplexStream;

        async fn connect(&self, _: Destination) -> io::Result<DuplexStream> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn kept(pool: &Pool<Pipes>, attempt: &Attempt, meter: &Arc<Meter>, now: Instant) -> DuplexStream {
        let (near, far) = duplex(64);
        pool.put(Upstream::new(near, attempt, Place::take(meter, 0), now), now);
        far
    }

    #[tokio::test]
    async fn only_what_is_safe_is_used_again() {
        let (pool, meter, now) = (Pool::new(2), Arc::new(Meter::default()), Instant::now());
        let first = attempt(1, 0);
        let far = kept(&pool, &first, &meter, now);
        assert!(pool.take(&attempt(2, 0), now).is_none(), "another endpoint's");
        let upstream = pool.take(&first, now).unwrap();
        assert!(upstream.reused && meter.connections() == 1);
        drop((upstream, far));
        assert_eq!(meter.connections(), 0);

        let _far = kept(&pool, &first, &meter, now);
        assert!(pool.take(&first, now + first.pool_idle).is_none(), "idle too long");
        let closed = kept(&pool, &first, &meter, now);
        drop(closed);
        assert!(pool.take(&first, now).is_none(), "closed by the other side");
        let mut speaking = kept(&pool, &first, &meter, now);
        speaking.write_all(b"x").await.unwrap();
        assert!(pool.take(&first, now).is_none(), "bytes that nobody asked for");
        let _far = kept(&pool, &first, &meter, now);
        assert!(pool.take(&attempt(1, 1), now).is_none(), "from before the region's fall");
        assert_eq!((pool.len(), meter.connections()), (0, 0));

        let _far = kept(&pool, &attempt(1, 1), &meter, now);
        assert!(pool.take(&first, now).is_none(), "a request from before");
        assert!(pool.take(&attempt(1, 1), now).is_some());
    }

    #[tokio::test]
    async fn a_busy_endpoint_takes_no_more_connections_than_it_may() {
        let meter = Arc::new(Meter::default());
        let places = [Place::take(&meter, 2).unwrap(), Place::take(&meter, 2).unwrap()];
        assert!(Place::take(&meter, 2).is_none());
        drop(places);
        assert!(Place::take(&meter, 2).is_some());
    }
}
