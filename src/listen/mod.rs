//! What stands before HTTP: sockets, admission, and the tasks of connections.
//!
//! Pingora's own listening service leaves connection tasks detached, hides real ports and fixes its deadlines, so this is a pingora
//! [`Service`] of our own. Sockets are bound when the service is made: a port in use is an error before anything starts, and port 0 can be
//! asked for. Each worker thread has sockets of its own for every address and a runtime of its own: the kernel spreads connections over them
//! (`SO_REUSEPORT`), and a connection stays with its worker, so that workers share nothing on the way of a request. Refused: one runtime
//! whose workers steal each other's tasks, which costs every request for the sake of uneven ones.
//!
//! An accepted socket goes through what stands [`Before`] HTTP on its listener to the [`ConnectionHandler`]; this module knows no mover
//! of bytes, whoever composes the process joins the two. Every connection is counted from accept to close, so that a drain ends when the last
//! one is gone.

mod before;
mod connection;
mod drain;
mod networks;
mod pulse;
mod refusal;
mod secured;
mod tls;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::Stream;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::tls::Certificate;
use crate::geo::Canonical;
use crate::pressure::Pressure;
use crate::state::Reader;
use crate::telemetry::Metrics;
use crate::turn;
pub use before::Before;
use connection::Connection;
pub use connection::socket;
pub use drain::Drain;
use networks::Networks;
pub use pulse::Pulse;
use refusal::{Farewell, Refusal};
use secured::Secured;
pub use tls::Acceptor;

/// Connections that the kernel may hold for us; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Bytes that the kernel may hold for a client before it has sent them.
const NOT_SENT: u32 = 64 << 10;
/// The first and the longest pause after accepting failed for want of a resource.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Serves connections once they are established.
#[async_trait]
pub trait ConnectionHandler: Send + Sync + 'static {
    /// Serves one connection of that peer to its end. `shutdown` becomes true when the service drains: then the connection is to close after
    /// the request it is at.
    async fn serve(&self, stream: Stream, peer: SocketAddr, shutdown: &ShutdownWatch) -> Ending;

    /// The service drains: connections that wait for a request are to close.
    async fn close_idle(&self);
}

/// How a connection ended.
#[derive(Debug)]
pub enum Ending {
    /// We closed it, or are about to: what the client still sends is read away for a moment, so that it does not lose what we said.
    Closed,
    /// The client said that it would send nothing more, and everything was read.
    Finished(Stream),
    /// It is to be reset: what the client got is not whole, and nothing else says so.
    Reset(Stream),
}

/// An address and who serves the connections to it.
pub struct Listener {
    /// Where; port 0 asks for any free one.
    pub address: SocketAddr,
    /// What a connection has to do before it is HTTP.
    pub before: Before,
    /// Who serves.
    pub handler: Arc<dyn ConnectionHandler>,
}

/// One worker's socket for an address, and what becomes of connections to it.
type Bound = (StdListener, Arc<Before>, Arc<dyn ConnectionHandler>);

/// The listening service.
pub struct HttpService {
    /// By worker.
    workers: Vec<Vec<Bound>>,
    addresses: Vec<SocketAddr>,
    handlers: Vec<Arc<dyn ConnectionHandler>>,
    reader: Reader,
    metrics: Metrics,
    drain: Drain,
    drain_timeout: Duration,
    /// Nothing is accepted before this is said, or cannot be any more.
    begin: Option<oneshot::Receiver<()>>,
    pulse: Pulse,
    networks: Networks,
    pressure: Pressure,
}

impl HttpService {
    /// Binds every address for that many worker threads, or takes the sockets that `given` has for it. An error names the address.
    /// `drain_timeout` bounds how long the service waits for its connections once it drains.
    pub fn bind(
        listen: Vec<Listener>,
        mut given: impl FnMut(SocketAddr) -> Vec<StdListener>,
        reader: Reader,
        metrics: Metrics,
        threads: usize,
        drain_timeout: Duration,
    ) -> io::Result<HttpService> {
        let mut workers: Vec<Vec<_>> = (0..threads.max(1)).map(|_| Vec::with_capacity(listen.len())).collect();
        let mut bound = Vec::with_capacity(listen.len());
        let v4_ports: Vec<u16> =
            listen.iter().map(|l| l.address).filter(SocketAddr::is_ipv4).map(|a| a.port()).collect();
        let mut handlers: Vec<Arc<dyn ConnectionHandler>> = Vec::new();
        for Listener { address, before, handler } in listen {
            let before = Arc::new(before);
            // Beside an IPv4 wildcard on the same port, an IPv6 one must not claim IPv4 too.
            let beside_v4 = v4_ports.contains(&address.port());
            let (address, listeners) = bind_all(address, beside_v4, workers.len(), given(address))
                .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
            bound.push(address);
            for (worker, listener) in workers.iter_mut().zip(listeners) {
                let bound = |listener| (listener, Arc::clone(&before), Arc::clone(&handler));
                worker.extend(listener.into_iter().map(bound));
            }
            if !handlers.iter().any(|known| Arc::ptr_eq(known, &handler)) {
                handlers.push(handler);
            }
        }
        let (drain, pulse) = (Drain::counting(metrics.connections()), Pulse::of(workers.len()));
        let addresses = bound;
        Ok(HttpService {
            workers,
            addresses,
            handlers,
            reader,
            metrics,
            drain,
            drain_timeout,
            begin: None,
            pulse,
            networks: Networks::default(),
            pressure: Pressure::default(),
        })
    }

    /// Has it accept nothing before what is returned is sent, or dropped.
    pub fn wait(&mut self) -> oneshot::Sender<()> {
        let (begin, begun) = oneshot::channel();
        self.begin = Some(begun);
        begin
    }

    /// Has it take no connection while that is on.
    pub fn heed(&mut self, pressure: Pressure) {
        self.pressure = pressure;
    }

    /// Copies of all listening sockets, to be given to another process.
    pub fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        self.workers.iter().flatten().map(|(listener, ..)| listener.as_fd().try_clone_to_owned()).collect()
    }

    /// Whether its workers move.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// The real addresses, in the order of `bind`: with ports where 0 was asked for.
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What forgets the networks that have not connected lately, whenever it is called.
    pub fn sweep(&self) -> impl Fn() + Send + Sync + 'static {
        let networks = self.networks.clone();
        move || networks.sweep()
    }

    /// What begins the drain and shows how far it is.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }

    /// Accepts until the drain begins, then waits for the connections, at most the drain timeout.
    async fn run(&mut self) {
        if let Some(begin) = self.begin.take() {
            tokio::select! {
                _ = begin => {}
                () = self.drain.begun() => {}
            }
        }
        // Workers end when this does.
        let (_serving, ended) = watch::channel(());
        let (accepting, mut all_closed) = mpsc::channel::<()>(1);
        let (most_descriptors, reserve) = descriptors();
        let farewell = Farewell::of(reserve / 4);
        for (number, listeners) in self.workers.drain(..).enumerate() {
            let accept = |before, handler| AcceptLoop {
                before,
                handler,
                reader: self.reader.clone(),
                metrics: self.metrics.clone(),
                drain: self.drain.clone(),
                networks: self.networks.clone(),
                pressure: self.pressure.clone(),
                farewell: farewell.clone(),
                most_descriptors,
                _accepting: accepting.clone(),
            };
            let loops =
                listeners.into_iter().map(|(listener, before, handler)| (listener, accept(before, handler))).collect();
            let (ended, beats) = (ended.clone(), self.pulse.beats(number));
            let started =
                thread::Builder::new().name(format!("http-{number}")).spawn(move || work(loops, beats, ended));
            if let Err(error) = started {
                tracing::error!(%error, "a worker thread cannot be started");
            }
        }
        drop(accepting);
        // Closed, not received: every loop dropped its end, with its listener.
        let _ = all_closed.recv().await;
        self.drain.begun().await;
        for handler in &self.handlers {
            handler.close_idle().await;
        }
        let left = self.drain.wait(self.drain_timeout).await;
        if left > 0 {
            tracing::warn!(connections = left, "connections were still open when the drain timeout ended");
        }
    }
}

#[async_trait]
impl Service for HttpService {
    async fn start_service(&mut self, _fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        let drain = self.drain.clone();
        let follow = tokio::spawn(async move {
            // An error means that the server is gone, which is a reason to drain as well.
            let _ = shutdown.wait_for(|down| *down).await;
            drain.begin();
        });
        self.run().await;
        follow.abort();
    }

    fn name(&self) -> &str {
        "http"
    }

    /// For waiting: the workers have threads of their own.
    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// One worker: accepts and serves on a runtime of its own until the service has ended.
fn work(
    loops: Vec<(StdListener, AcceptLoop)>,
    beats: impl Future<Output = ()> + Send + 'static,
    mut ended: watch::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(turn::idle).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "a worker has no runtime"),
    };
    runtime.block_on(async {
        tokio::spawn(beats);
        for (listener, accept) in loops {
            match TcpListener::from_std(listener) {
                Ok(listener) => drop(tokio::spawn(accept.run(listener))),
                Err(error) => tracing::error!(%error, "a listening socket cannot be used"),
            }
        }
        // An error: the sender is gone, which is what is waited for.
        let _ = ended.changed().await;
    });
    // Tasks that wait on something else must not hold the end up.
    runtime.shutdown_background();
}

/// The sockets of each worker, and the address that they share. Those that were given are used, however many they are.
fn bind_all(
    address: SocketAddr,
    v6_only: bool,
    workers: usize,
    given: Vec<StdListener>,
) -> io::Result<(SocketAddr, Vec<Vec<StdListener>>)> {
    if !given.is_empty() {
        return spread(given, workers);
    }
    if workers == 1 {
        let listener = bind(address, v6_only, false)?;
        return Ok((listener.local_addr()?, vec![vec![listener]]));
    }
    // Whoever else shares its ports with everybody would share this one with us: that must be an error, too.
    let probe = bind(address, v6_only, false)?;
    let address = SocketAddr::new(address.ip(), probe.local_addr()?.port());
    drop(probe);
    let listeners = (0..workers).map(|_| Ok(vec![bind(address, v6_only, true)?])).collect::<io::Result<_>>()?;
    Ok((address, listeners))
}

/// Sockets that were given, at least one: each has a worker that accepts from it, or what the kernel holds in it would wait for ever; and each worker
/// has one. None is added: before this process accepts, and should it never, the kernel would give it connections of the one that does.
fn spread(given: Vec<StdListener>, workers: usize) -> io::Result<(SocketAddr, Vec<Vec<StdListener>>)> {
    let address = given[0].local_addr()?;
    let count = given.len();
    let mut spread: Vec<Vec<StdListener>> = (0..workers).map(|_| Vec::new()).collect();
    for (number, listener) in given.into_iter().enumerate() {
        prepare(SockRef::from(&listener))?;
        SockRef::from(&listener).listen(BACKLOG)?;
        spread[number % workers].push(listener);
    }
    for worker in count..workers {
        // The same socket for two: both are woken, and one of them finds nothing.
        let listener = spread[worker % count][0].try_clone()?;
        spread[worker].push(listener);
    }
    Ok((address, spread))
}

fn bind(address: SocketAddr, v6_only: bool, shared: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of the last process in TIME_WAIT must not keep the next one from starting.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() && v6_only {
        socket.set_only_v6(true)?;
    }
    prepare(SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What every connection is to have is set here, once: accepted sockets take it over.
fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    // A client whose machine vanished is noticed, whatever the state of its connection.
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    socket.set_tcp_keepalive(&keepalive)?;
    // A client that reads slowly is seen to read: without this, megabytes may lie in the kernel while nothing more can be written.
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(NOT_SENT)?;
    socket.set_nonblocking(true)
}

/// What one listening socket's task holds.
struct AcceptLoop {
    before: Arc<Before>,
    handler: Arc<dyn ConnectionHandler>,
    reader: Reader,
    metrics: Metrics,
    drain: Drain,
    networks: Networks,
    pressure: Pressure,
    farewell: Farewell,
    most_descriptors: RawFd,
    /// Dropped when it accepts no more.
    _accepting: mpsc::Sender<()>,
}

impl AcceptLoop {
    async fn run(self, listener: TcpListener) {
        let mut pause = None;
        // One for all connections: to wait anew for each would be a good part of accepting it.
        let mut begun = pin!(self.drain.begun());
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut begun => return self.clear(listener),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    pause = None;
                    self.admit(tcp, peer);
                }
                Err(error) if is_exhaustion(&error) => {
                    // Accepting again at once would fail at once: the connection is still waiting. One line says so.
                    let wait = match pause {
                        None => {
                            tracing::error!(%error, "cannot accept connections; trying again");
                            BACK_OFF.0
                        }
                        Some(last) => BACK_OFF.1.min(last * 2),
                    };
                    pause = Some(wait);
                    tokio::time::sleep(wait).await;
                }
                // The client was gone before we came to it.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Takes what the kernel has accepted for us: closing the socket would reset it. The kernel itself is asked, for the runtime knows only
    /// what it was told when it last looked.
    fn clear(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        for _ in 0..BACKLOG {
            match listener.accept() {
                Ok((tcp, peer)) => {
                    if let Ok(tcp) = tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp)) {
                        self.admit(tcp, peer);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_exhaustion(&error) => return,
                // That client was gone before we came to it.
                Err(_) => {}
            }
        }
    }

    /// Closes a connection that is one too many: where HTTP is spoken from the first byte, with an answer.
    fn refuse(&self, tcp: TcpStream, refusal: Refusal) {
        self.metrics.connection_refused(refusal.reason());
        if self.before.is_nothing() {
            self.farewell.say(tcp, refusal);
        }
    }

    /// Serves a connection in a task of its own, or closes it when there are too many.
    fn admit(&self, tcp: TcpStream, peer: SocketAddr) {
        // The system gives the lowest number that is free: a high one says that few are left, which requests and operators need.
        if tcp.as_raw_fd() >= self.most_descriptors {
            return self.refuse(tcp, Refusal::Descriptors);
        }
        if self.pressure.is_on() {
            return self.refuse(tcp, Refusal::Memory);
        }
        let published = self.reader.load();
        let Some(mut guard) = self.drain.enter(published.edge.limits.connections) else {
            return self.refuse(tcp, Refusal::TooMany);
        };
        // Behind a PROXY header it is another's.
        if !self.before.proxy_protocol {
            match self.networks.enter(Canonical::new(peer.ip()), &published.edge) {
                Ok(counted) => guard.of(counted),
                Err(excess) => return self.refuse(tcp, Refusal::Network(excess)),
            }
        }
        let handler = Arc::clone(&self.handler);
        let shutdown = self.drain.watch();
        if self.before.is_nothing() {
            let stream = Box::new(Connection::new(tcp, peer, guard));
            tokio::spawn(async move { serve(&*handler, stream, peer, &shutdown).await });
            return;
        }
        let (before, drain, metrics) = (Arc::clone(&self.before), self.drain.clone(), self.metrics.clone());
        let networks = self.networks.clone();
        let edge = Arc::clone(&published.edge);
        tokio::spawn(async move {
            // On the heap, and gone when it is done: what follows may take hours.
            let established = Box::pin(before.establish(tcp, peer, guard, &edge, (&drain, &networks), &metrics)).await;
            drop(edge);
            match established {
                Ok((stream, peer)) => serve(&*handler, stream, peer, &shutdown).await,
                Err(refused) => {
                    if let Some(reason) = refused.reason() {
                        tracing::debug!(%peer, reason, "connection refused before it was HTTP");
                        metrics.connection_refused(reason);
                    }
                }
            }
        });
    }
}

/// The number from which on descriptors are not for clients' connections, and how many are kept so for upstreams, files and the admin doors: an eighth.
fn descriptors() -> (RawFd, usize) {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let reserve = limit / 8;
    (RawFd::try_from(limit - reserve).unwrap_or(RawFd::MAX), usize::try_from(reserve).unwrap_or(usize::MAX))
}

/// Serves a connection to its end.
async fn serve(handler: &dyn ConnectionHandler, stream: Stream, peer: SocketAddr, shutdown: &ShutdownWatch) {
    match handler.serve(stream, peer, shutdown).await {
        Ending::Closed => {}
        Ending::Finished(stream) => {
            close(&stream);
            with_connection(stream, Connection::finish);
        }
        Ending::Reset(stream) => with_connection(stream, Connection::reset),
    }
}

/// Says something last to a connection, whether TLS is around it or not.
fn with_connection(stream: Stream, last: impl FnOnce(&mut Connection)) {
    let mut stream = stream.into_any();
    if let Some(connection) = stream.downcast_mut::<Connection>() {
        last(connection);
    } else if let Some(secured) = stream.downcast_mut::<Secured>() {
        last(secured.connection());
    }
}

/// Says that what the client got is whole, which in TLS it is told when the stream is dropped.
pub fn close(stream: &Stream) {
    if let Some(secured) = (**stream).as_any().downcast_ref::<Secured>() {
        secured.close();
    }
}

/// The certificates that requests on this connection are bound to: their hosts must be one of these's. Empty: any host will do.
pub fn certificates(stream: &Stream) -> &[Arc<Certificate>] {
    (**stream).as_any().downcast_ref::<Secured>().map_or(&[], Secured::certificates)
}

/// Whether accepting failed because the process or the machine ran out of something.
fn is_exhaustion(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOMEM, ENOBUFS on Linux.
    matches!(error.raw_os_error(), Some(24 | 23 | 12 | 105))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_sockets_are_all_there_are() {
        let given = |count: usize| {
            let (address, sockets) = bind_all(([127, 0, 0, 1], 0).into(), false, count, Vec::new()).unwrap();
            (address, sockets.into_iter().flatten().collect::<Vec<_>>())
        };
        for (count, workers) in [(1, 1), (1, 3), (2, 5), (4, 2)] {
            let (address, sockets) = given(count);
            let copies: Vec<_> = sockets.iter().map(|socket| socket.try_clone().unwrap()).collect();
            let (bound, spread) = bind_all(address, false, workers, sockets).unwrap();
            assert_eq!((bound, spread.len()), (address, workers));
            assert!(spread.iter().all(|sockets| !sockets.is_empty()));
            // The kernel gives all connections to those that there were.
            let clients: Vec<_> = (0..16).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            let accepted: usize = copies
                .iter()
                .map(|copy| {
                    copy.set_nonblocking(true).unwrap();
                    copy.incoming().take_while(Result::is_ok).count()
                })
                .sum();
            assert_eq!(accepted, clients.len(), "{count} for {workers}");
        }
    }
}
