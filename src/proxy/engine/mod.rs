//! Our own mover of bytes: HTTP/1.1 to HTTP/1.1, strict, over whatever stream the listener hands in.
//!
//! A connection is one task. It reads a head ([`head`]), asks the phases who is to serve it, sends the request and moves the answer
//! ([`relay`]), both at once, through small buffers ([`buffer`]), with one timer ([`timer`]). Connections to endpoints are kept and used again
//! ([`upstream`]). What is ambiguous is refused in both directions; what is forwarded is written anew from what was understood, so that the other side
//! cannot understand it differently. Refused: header maps (a head is slices of the buffer it came in), a task or channel between the two
//! directions, a timer for each read.
//!
//! | from a client | what becomes of it |
//! |---|---|
//! | a line that ends with a bare LF, a bare CR, a NUL or another control byte in the target or a value | 400 |
//! | a folded line, a space before a colon or before the first name, an empty or odd name | 400 |
//! | a request line with more or less than two single spaces, a version that is not HTTP/1.0 or HTTP/1.1 | 400 |
//! | a target with a byte outside visible ASCII or with `#`, without a slash, of authority form, `*` without OPTIONS | 400 |
//! | CONNECT | 405 |
//! | Host missing (HTTP/1.1), repeated, a list, with user information, a bad port or spaces, or another one than the target's | 400 |
//! | Content-Length and Transfer-Encoding together, two of one, a length that is not 1 to 18 digits, a coding that is not `chunked` alone, any coding in HTTP/1.0 | 400 |
//! | a chunk size that is not 1 to 16 hexadecimal digits or above 2^63, data that does not end with its size, an extension that breaks the grammar or is long, a trailer section of more than 8 KiB | 400 |
//! | `Connection` that nominates a field on which later hops rely, or more than 16 | 400 |
//! | a head longer than `header_bytes` or with more than `headers` fields; a target longer than `uri`; a body longer than `max_body` | 431; 414; 413 |
//! | a head slower than `header_timeout`; a body more silent than `body_timeout` or slower than `min_rate` | 408 |
//! | one or two empty lines before a request line | left out |
//! | an absolute-form target | origin form; its authority is Host |
//! | chunk sizes with zeros before them, extensions, the cut of a body into chunks | written anew; extensions are left out |
//! | trailers | forwarded, but for fields that mean something before the body only |
//! | HTTP/1.0 | as HTTP/1.1, with Host; its connection is kept if it asks for that and the answer has a length |
//! | hop-by-hop and nominated fields, `Upgrade` other than `websocket`, `TE` other than `trailers`, `Expect` without a body | left out |
//! | `Expect: 100-continue` | forwarded; the upstream's 100 is passed on |
//! | a second request before the answer to the first | served in order |
//! | a side closed after a whole request | the answer is sent if it begins within 3 s |
//!
//! | from an upstream | what becomes of it |
//! |---|---|
//! | a bare LF, a control byte, a folded line, no status line, a code outside 100 … 599, a head of more than 64 KiB or 256 fields | 502, or elsewhere |
//! | framing as it would be refused of a client; any coding from HTTP/1.0 | 502, or elsewhere |
//! | more than 32 informational answers; 101 that was not asked for or names another protocol | 502, or elsewhere |
//! | a chunked body that breaks a rule, a body cut short, silence inside one | the client's connection closes before the body's end; where that would look like the end (HTTP/1.0), it is reset |
//! | a body until the connection closes | chunked for HTTP/1.1 clients |
//! | bytes after an answer | never read as another one: the connection is closed |
//! | a space between a name and its colon | removed |
//! | `Transfer-Encoding` or `Content-Length` in 1xx and 204, `Transfer-Encoding` in 304 and answers to HEAD | left out |

#![expect(clippy::disallowed_methods, reason = "a shell: it tells the phases the time")]

pub mod body;
mod buffer;
mod connection;
pub mod head;
mod lines;
mod relay;
mod timer;
mod upstream;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::proxy::Shared;
use crate::telemetry::Metrics;
use connection::Connection;
use upstream::Pool;
pub use upstream::{Connect, Tcp};

/// As the access log and metrics name this mover.
pub const NAME: &str = "native";

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
    pool: Pool<C::Stream>,
    connect: C,
}

/// How a client came.
#[derive(Clone, Copy, Debug)]
pub struct Downstream {
    /// The connecting peer.
    pub peer: Option<SocketAddr>,
    /// `http` or `https`.
    pub scheme: &'static str,
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
        let core = Core { shared, metrics, pool: Pool::new(threads, C::is_silent), connect };
        Mover { core: Arc::new(core), sweeping: AtomicBool::new(false) }
    }

    /// Serves a connection to its end. Once `draining` is true it closes after the request it is at, and at once when it is at none. A
    /// stream that comes back is to be reset: its client cannot tell otherwise that an answer is not whole.
    pub async fn serve<S>(&self, stream: S, from: Downstream, draining: &watch::Receiver<bool>) -> Option<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        if !self.sweeping.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(&self.core)));
        }
        Connection::new(&self.core, stream, from, draining).run().await
    }

    /// Upstream connections that are kept and not in use.
    pub fn idle_connections(&self) -> usize {
        self.core.pool.len()
    }
}

/// Looks the pool through whenever something was published, and every second.
async fn sweep<C: Connect>(core: Weak<Core<C>>) {
    let Some(mut reader) = core.upgrade().map(|core| core.shared.reader.clone()) else { return };
    loop {
        // Either is a reason to look.
        let _ = tokio::time::timeout(SWEEP, reader.changed()).await;
        let Some(core) = core.upgrade() else { return };
        core.pool.sweep(&core.shared.reader.load().snapshot, now());
    }
}

fn now() -> Instant {
    // The runtime's clock, so that tests may own it.
    tokio::time::Instant::now().into_std()
}
