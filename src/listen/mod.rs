//! What stands before HTTP: sockets, admission, and the tasks of connections.
//!
//! Pingora's own listening service leaves connection tasks detached, hides real ports and fixes its deadlines, so this is a pingora
//! [`Service`] of our own. Sockets are bound when the service is made: a port in use is an error before anything starts, and port 0 can be
//! asked for. An accepted socket goes through [`establish`], the stage that makes a [`Stream`] of it, to the [`ConnectionHandler`]; this
//! module knows no mover of bytes, whoever composes the process joins the two. Every connection is counted from accept to close, so
//! that a drain ends when the last one is gone.

mod connection;
mod drain;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::Stream;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::state::Reader;
use connection::Connection;
pub use drain::Drain;
use drain::Guard;

/// Connections that the kernel may hold for us; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Bytes that the kernel may hold for a client before it has sent them.
const NOT_SENT: u32 = 64 << 10;
/// The first and the longest pause after accepting failed for want of a resource.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Serves connections once they are established.
#[async_trait]
pub trait ConnectionHandler: Send + Sync + 'static {
    /// Serves one connection to its end. `shutdown` becomes true when the service drains: then the connection is to close after
    /// the request it is at. A stream that comes back is reset: what the client got of it is not whole, and nothing else says so.
    async fn serve(&self, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream>;

    /// The service drains: connections that wait for a request are to close.
    async fn close_idle(&self);
}

/// An address and who serves the connections to it.
pub struct Listener {
    /// Where; port 0 asks for any free one.
    pub address: SocketAddr,
    /// Who serves.
    pub handler: Arc<dyn ConnectionHandler>,
}

/// The listening service.
pub struct HttpService {
    listeners: Vec<(StdListener, Arc<dyn ConnectionHandler>)>,
    addresses: Vec<SocketAddr>,
    handlers: Vec<Arc<dyn ConnectionHandler>>,
    reader: Reader,
    threads: usize,
    drain: Drain,
    drain_timeout: Duration,
}

impl HttpService {
    /// Binds every address. An error names the address. `threads` is the size of the service's runtime; `drain_timeout` bounds how
    /// long the service waits for its connections once it drains.
    pub fn bind(
        listen: Vec<Listener>,
        reader: Reader,
        threads: usize,
        drain_timeout: Duration,
    ) -> io::Result<HttpService> {
        let mut listeners = Vec::with_capacity(listen.len());
        let mut bound = Vec::with_capacity(listen.len());
        let v4_ports: Vec<u16> =
            listen.iter().map(|l| l.address).filter(SocketAddr::is_ipv4).map(|a| a.port()).collect();
        let mut handlers: Vec<Arc<dyn ConnectionHandler>> = Vec::new();
        for Listener { address, handler } in listen {
            // Beside an IPv4 wildcard on the same port, an IPv6 one must not claim IPv4 too.
            let beside_v4 = v4_ports.contains(&address.port());
            let listener = bind(address, beside_v4)
                .and_then(|listener| Ok((listener.local_addr()?, listener)))
                .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
            bound.push(listener.0);
            listeners.push((listener.1, Arc::clone(&handler)));
            if !handlers.iter().any(|known| Arc::ptr_eq(known, &handler)) {
                handlers.push(handler);
            }
        }
        let drain = Drain::default();
        Ok(HttpService { listeners, addresses: bound, handlers, reader, threads: threads.max(1), drain, drain_timeout })
    }

    /// The real addresses, in the order of `bind`: with ports where 0 was asked for.
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What begins the drain and shows how far it is.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }

    /// Accepts until the drain begins, then waits for the connections, at most the drain timeout.
    async fn run(&mut self) {
        let mut loops = Vec::new();
        for (listener, handler) in self.listeners.drain(..) {
            let accept = AcceptLoop { handler, reader: self.reader.clone(), drain: self.drain.clone() };
            match TcpListener::from_std(listener) {
                Ok(listener) => loops.push(tokio::spawn(accept.run(listener))),
                Err(error) => tracing::error!(%error, "a listening socket cannot be used"),
            }
        }
        for accepting in loops {
            let _ = accepting.await;
        }
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

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }
}

fn bind(address: SocketAddr, v6_only: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of the last process in TIME_WAIT must not keep the next one from starting.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && v6_only {
        socket.set_only_v6(true)?;
    }
    // What every connection is to have is set here, once: accepted sockets take it over.
    socket.set_tcp_nodelay(true)?;
    // A client whose machine vanished is noticed, whatever the state of its connection.
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    socket.set_tcp_keepalive(&keepalive)?;
    // A client that reads slowly is seen to read: without this, megabytes may lie in the kernel while nothing more can be written.
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(NOT_SENT)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What one listening socket's task holds.
struct AcceptLoop {
    handler: Arc<dyn ConnectionHandler>,
    reader: Reader,
    drain: Drain,
}

impl AcceptLoop {
    async fn run(self, listener: TcpListener) {
        let mut pause = None;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.drain.begun() => return,
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

    /// Serves a connection in a task of its own, or closes it when there are too many.
    fn admit(&self, tcp: TcpStream, peer: SocketAddr) {
        let limit = self.reader.load().edge.limits.connections;
        let Some(guard) = self.drain.enter(limit) else { return };
        let handler = Arc::clone(&self.handler);
        let shutdown = self.drain.watch();
        tokio::spawn(async move {
            match establish(tcp, peer, guard) {
                Ok(stream) => {
                    if let Some(stream) = handler.serve(stream, &shutdown).await {
                        connection::reset(stream);
                    }
                }
                Err(error) => tracing::debug!(%error, %peer, "a connection broke before it was established"),
            }
        });
    }
}

/// From an accepted socket to a stream that HTTP can begin on. Whatever stands before HTTP on a connection happens here, under
/// one deadline; on plain listeners nothing does, so there is nothing to wait for.
fn establish(tcp: TcpStream, peer: SocketAddr, guard: Guard) -> io::Result<Stream> {
    Ok(Box::new(Connection::new(tcp, peer, guard)))
}

/// Whether accepting failed because the process or the machine ran out of something.
fn is_exhaustion(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOMEM, ENOBUFS on Linux.
    matches!(error.raw_os_error(), Some(24 | 23 | 12 | 105))
}
