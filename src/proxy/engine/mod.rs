//! Our own mover of bytes: HTTP/1.1 to HTTP/1.1, strict, over whatever stream the listener hands in.
//!
//! A connection is one task. It reads a head ([`head`]), asks the phases who is to serve it, sends the request ([`upload`]) and moves the answer
//! ([`relay`]), both at once, through small buffers ([`buffer`]), with one timer ([`timer`]). Connections to endpoints are kept and used again
//! ([`upstream`]). What is ambiguous is refused in both directions; what is forwarded is written anew from what was understood, so that the other side
//! cannot understand it differently. Refused: header maps (a head is slices of the buffer it came in), a task or channel between the two
//! directions, a timer for each read.
//!
//! What is refused, made anew and forwarded is in `docs/http1.md`, row by row.

#![expect(clippy::disallowed_methods, reason = "a shell: it tells the phases the time")]

pub mod body;
mod buffer;
mod connecting;
mod connection;
mod date;
mod draining;
mod frames;
pub mod h2;
pub mod head;
mod hedge;
mod lines;
mod relay;
mod splice;
mod stock;
mod timer;
mod tunnel;
mod upload;
mod upstream;
mod write;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::config::tls::Certificate;
use crate::proxy::{Attempt, Shared};
use crate::steering::fleet::Protocol;
use crate::telemetry::Metrics;
use connection::Connection;
use h2::Sessions;
pub use splice::Side;
pub use upstream::{Connect, Destination, Tcp, TcpOrTls, Within};
use upstream::{Pool, Upstream};

/// How often connections that nobody uses are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// The mover.
pub struct Mover<C: Connect> {
    core: Arc<Core<C>>,
    sweeping: AtomicBool,
}

/// What all connections share.
struct Core<C: Connect> {
    shared: Arc<Shared>,
    metrics: Metrics,
    pool: Pool<C>,
    sessions: Sessions,
    connect: C,
}

impl<C: Connect> Core<C> {
    /// A connection that is there for that attempt.
    fn kept(&self, attempt: &Attempt, now: Instant) -> Option<Box<Upstream<C::Stream>>> {
        match attempt.protocol {
            Protocol::Http1 => self.pool.take(attempt, now),
            Protocol::H2 | Protocol::H2c => self.sessions.call(attempt, now, C::shared),
        }
    }

    /// The same that another worker keeps.
    fn kept_by_others(&self, attempt: &Attempt, now: Instant) -> Option<Box<Upstream<C::Stream>>> {
        match attempt.protocol {
            Protocol::Http1 => self.pool.take_from_others(attempt, now),
            Protocol::H2 | Protocol::H2c => self.sessions.call_of_others(attempt, now, C::shared),
        }
    }

    /// Closes what must not be used any more, and, when it is told the time, what is not to be kept.
    fn sweep(&self, now: Option<Instant>) {
        let pools = &self.shared.reader.load().snapshot.pools;
        let epochs = pools.iter().flat_map(|pool| pool.endpoints.iter().map(|e| (e.id, pool.epoch))).collect();
        self.pool.sweep(&epochs, now);
        self.sessions.sweep(&epochs, now);
    }
}

/// How a client came.
#[derive(Clone, Copy, Debug)]
pub struct Downstream<'a> {
    /// The connecting peer.
    pub peer: Option<SocketAddr>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// It speaks HTTP/2, and this is one of its streams.
    pub http2: bool,
    /// As [`Head::bound`](crate::proxy::Head::bound).
    pub bound: &'a [Arc<Certificate>],
}

/// How a connection was left.
#[derive(Debug)]
pub enum Served<S> {
    /// Served to its end.
    Closed,
    /// The same, after a client that said it would send nothing more, and sent nothing more.
    Finished(S),
    /// To be reset: its client cannot tell otherwise that an answer is not whole.
    Reset(S),
}

impl Mover<Tcp> {
    /// A mover for a runtime of that many threads.
    pub fn new(shared: Arc<Shared>, metrics: Metrics, threads: usize) -> Mover<Tcp> {
        Mover::over(Tcp, shared, metrics, threads)
    }
}

impl<C: Connect> Mover<C> {
    /// A mover whose upstream connections are made like that.
    pub fn over(connect: C, shared: Arc<Shared>, metrics: Metrics, threads: usize) -> Mover<C> {
        let core = Core { shared, metrics, pool: Pool::new(threads), sessions: Sessions::new(threads), connect };
        Mover { core: Arc::new(core), sweeping: AtomicBool::new(false) }
    }

    /// Serves a connection to its end. Once `draining` is true it closes after the request it is at, and at once when it is at none.
    pub async fn serve<S>(&self, stream: S, from: Downstream<'_>, draining: &watch::Receiver<bool>) -> Served<S>
    where
        S: Side,
    {
        if !self.sweeping.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(&self.core)));
        }
        Connection::new(&self.core, stream, from, draining).run().await
    }
}

/// Looks the pool through: for fallen regions whenever something was published, and at every connection every second.
async fn sweep<C: Connect>(core: Weak<Core<C>>) {
    let Some(mut reader) = core.upgrade().map(|core| core.shared.reader.clone()) else { return };
    let mut each = tokio::time::interval(SWEEP);
    each.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let every = tokio::select! {
            _ = each.tick() => true,
            () = reader.changed() => false,
        };
        let Some(core) = core.upgrade() else { return };
        core.sweep(every.then(now));
    }
}

/// The wall clock.
fn wall() -> SystemTime {
    SystemTime::now()
}

fn now() -> Instant {
    // The runtime's clock, so that tests may own it.
    tokio::time::Instant::now().into_std()
}
