//! HTTP/2 from clients: each stream becomes an HTTP/1.1 connection with one request on it, which whoever serves HTTP/1.1 serves.
//!
//! So everything that holds for HTTP/1.1 clients holds for these: strictness, deadlines, the decision, failing over, hedging, the log. Frames, windows and
//! header compression are the library's (crate h2, which pingora and hyper use as well); what is ours is the conversion in both directions
//! ([`request`], [`stream`]) and the bounds of what a client may make us do ([`meter`]). The conversion costs a head written and read once more, which is a small part of what
//! a stream costs the library. Refused: a second way from a request to an upstream, which would have to be kept as good as the first.
//!
//! Must not know what a request is for, nor who answers it.

mod call;
mod crew;
mod meter;
mod receiving;
mod request;
mod sending;
mod session;
mod stream;
mod trailers;

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::Builder;
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::protocols::Stream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::config::Limits;
use meter::{Metered, Told};
use stream::Around;

pub use call::Call;
pub use crew::Crew;
pub(super) use session::{Sessions, call};
pub use stream::H2Stream;

/// How every HTTP/2 connection begins (RFC 9113, 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Streams at once; nginx has the same default.
const STREAMS: u32 = 128;

/// What may lie here of one request's body, and of all bodies of a connection, before somebody takes it: as much as of 64 bodies, so that some that
/// nobody reads do not hold up the others.
const WINDOWS: (u32, u32) = (64 << 10, 4 << 20);

/// What pieces of bodies may take beside what is in them: some 35,000 small ones.
const PIECES: usize = 8 << 20;

/// What may lie here of one answer before the client takes it.
const SEND_BUFFER: usize = 64 << 10;

/// Streams that a client has cancelled before we came to them; and, in the life of a connection, streams that were malformed or one too many, before it is told
/// to calm down.
const RESETS: (usize, usize) = (32, 8192);

/// So many times in each period of silence it is looked whether there was any.
const LOOKS: u32 = 4;

/// After a farewell, how long nothing has to happen before the connection is closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves the requests of one connection: `each` has every one of them served. Returns when the connection is over.
pub async fn serve(stream: Stream, limits: &Limits, mut draining: watch::Receiver<bool>, each: impl Fn(Stream)) {
    let told = Arc::<Told>::default();
    let around = Arc::new(Around::of(&stream, Arc::clone(&told)));
    let metered = Metered::new(stream, Arc::clone(&told));
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .initial_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .data_frame_budget(PIECES)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS.0)
        .max_local_error_reset_streams(Some(RESETS.1));
    let begun = Instant::now();
    let first = begun + limits.header_timeout;
    let handshake = builder.handshake::<_, Bytes>(metered);
    let Ok(Ok(mut connection)) = tokio::time::timeout_at(first, handshake).await else { return };
    let open = Arc::new(AtomicUsize::new(0));
    let mut requests = 0u32;
    let mut timer = pin!(sleep_until(first));
    let mut drained = pin!(async move {
        // An error: the process is on its way out.
        let _ = draining.wait_for(|draining| *draining).await;
    });
    let (mut saying_farewell, mut calmed) = (false, false);
    let (mut written, mut busy) = (0, begun);
    loop {
        let accepted = poll_fn(|cx| {
            if let Some(reason) = told.fault()
                && !calmed
            {
                calmed = true;
                connection.abrupt_shutdown(reason);
            }
            if !saying_farewell && drained.as_mut().poll(cx).is_ready() {
                saying_farewell = true;
                connection.graceful_shutdown();
                timer.as_mut().reset(Instant::now() + FAREWELL);
            }
            if let Poll::Ready(accepted) = connection.poll_accept(cx) {
                return Poll::Ready(Some(accepted));
            }
            // A head is due within the same time on a connection that was kept.
            if let Some(due) = told.unfinished().map(|since| Instant::from_std(since) + limits.header_timeout)
                && due < timer.deadline()
                && !calmed
            {
                timer.as_mut().reset(due);
            }
            timer.as_mut().poll(cx).map(|()| None)
        })
        .await;
        match accepted {
            Some(Some(Ok((request, respond)))) => {
                requests += 1;
                let stream = H2Stream::new(request, respond, Arc::clone(&around), Arc::clone(&open));
                if let Some(stream) = stream {
                    each(Box::new(stream));
                }
                if limits.requests > 0 && requests >= limits.requests && !saying_farewell {
                    saying_farewell = true;
                    connection.graceful_shutdown();
                }
                busy = Instant::now();
                timer.as_mut().reset(busy + if saying_farewell { FAREWELL } else { limits.idle_timeout } / LOOKS);
            }
            // It broke a rule, which the library told it, or left.
            Some(Some(Err(_)) | None) => return,
            // Nothing new for long.
            None => {
                let now = Instant::now();
                let head = told.unfinished().map(|since| now.saturating_duration_since(Instant::from_std(since)));
                if head.is_some_and(|open| open >= limits.header_timeout) && !calmed {
                    calmed = true;
                    connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                }
                let period = match (saying_farewell, requests) {
                    (true, _) => FAREWELL,
                    (false, 0) => limits.header_timeout,
                    (false, _) => limits.idle_timeout,
                };
                let moved = std::mem::replace(&mut written, told.written()) != told.written();
                if moved || open.load(Relaxed) > 0 {
                    busy = now;
                }
                // Answers that the library has whole may still be on their way to a client who takes its time.
                let patience = if connection.has_streams() { limits.body_timeout } else { period };
                let quiet = now.saturating_duration_since(busy);
                if quiet >= patience && saying_farewell {
                    return;
                }
                if quiet >= patience {
                    saying_farewell = true;
                    busy = now;
                    connection.graceful_shutdown();
                }
                let left = patience.saturating_sub(now.saturating_duration_since(busy));
                timer.as_mut().reset(now + if saying_farewell { FAREWELL } else { left.min(period / LOOKS) });
            }
        }
    }
}

/// Fields for which there is room from the start.
const USUAL_FIELDS: usize = 12;

/// Fields that concern an HTTP/1.1 connection (RFC 9113, 8.2.2).
const OF_CONNECTIONS: [HeaderName; 5] = [
    http::header::CONNECTION,
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Fields as the library has them, without those that concern a connection. All of them are in `head`, which their values share.
fn fields<'a>(head: &Bytes, lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> io::Result<HeaderMap> {
    let mut map = HeaderMap::with_capacity(USUAL_FIELDS);
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name).map_err(|_| ErrorKind::InvalidData)?;
        if !OF_CONNECTIONS.contains(&name) {
            let value = HeaderValue::from_maybe_shared(head.slice_ref(value)).map_err(|_| ErrorKind::InvalidData)?;
            map.append(name, value);
        }
    }
    Ok(map)
}

/// Appends a field as HTTP/1.1 writes it.
fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// The other side is not there any more.
fn gone() -> io::Error {
    ErrorKind::ConnectionReset.into()
}
