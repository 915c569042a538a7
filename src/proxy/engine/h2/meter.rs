//! What a client makes us do that is no request: counted frame by frame as they come in, and bounded.
//!
//! A frame of nine bytes can cost an answer, a search or a lock. Those that serve something come with requests, with data or now and then, and so does what a
//! client may send of them: a budget that fills up with each request, with what we sent and with time. Requests that are taken back at once cost more than they bring. Whoever uses it up is told to calm down,
//! and its connection ends. What the library bounds by itself is left to it: cancelled streams, the pieces of a head, small pieces of data, the table of compressed
//! fields.
//!
//! What else the library does not look at is seen here as well: what the first frame is, since when a head is not whole, and [trailers](super::trailers).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use h2::Reason;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::PREFACE;
use super::trailers::Trailers;
use crate::proxy::engine::now;

/// The budget of a new connection, and the most that there ever is. A client that opens all its streams at once needs some hundreds.
const MOST: i32 = 2048;

/// What each request adds: room to open a window, to change its mind, and for a piece of its head.
const REQUEST: i32 = 8;

/// What each piece of an answer adds: a window of the stream, one of the connection, and a ping, with which some clients measure what they may send.
const ANSWER: i32 = 3;

/// What a request costs that its client takes back before an answer began: more than it brought.
const CANCELLED: i32 = 16;

/// Bytes of ours for which a client may tell us once that it took them.
const BYTES: usize = 1024;

/// What a second adds: pings, and windows of what was sent before.
const SECOND: u64 = 16;

const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// Malformed requests of which it is remembered that they are.
const MALFORMED: usize = 256;

/// What a connection's session and its streams have to know of its bytes, and the other way round.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Why nothing is read any more: a code of HTTP/2, or 0.
    fault: AtomicU32,
    /// Requests with trailers that no request may have.
    malformed: Mutex<Vec<u32>>,
    has_malformed: AtomicBool,
    /// Bytes written of answers, and of what went out with them.
    written: AtomicUsize,
    /// Since when a head is not whole, if one is not.
    unfinished: Mutex<Option<Instant>>,
    is_unfinished: AtomicBool,
    /// Requests that their client cancelled before an answer began, and that were not paid for yet.
    cancelled: AtomicU32,
}

impl Told {
    /// Why nothing is read any more, if so; whoever polls the connection is woken when it becomes so.
    pub(super) fn fault(&self) -> Option<Reason> {
        Some(self.fault.load(Relaxed)).filter(|code| *code != 0).map(Reason::from)
    }

    /// Whether the request on that stream has trailers that no request may have.
    pub(super) fn is_malformed(&self, stream: u32) -> bool {
        self.has_malformed.load(Relaxed) && self.malformed().contains(&stream)
    }

    fn malformed(&self) -> MutexGuard<'_, Vec<u32>> {
        self.malformed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_malformed(&self, stream: u32) {
        let mut malformed = self.malformed();
        if malformed.len() == MALFORMED {
            malformed.remove(0);
        }
        malformed.push(stream);
        self.has_malformed.store(true, Relaxed);
    }

    /// A number that is another one when more of an answer was written.
    pub(super) fn written(&self) -> usize {
        self.written.load(Relaxed)
    }

    /// Since when the client owes the rest of a head, if it does.
    pub(super) fn unfinished(&self) -> Option<Instant> {
        if !self.is_unfinished.load(Relaxed) {
            return None;
        }
        *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client owes the rest of a head. Nearly always heads are whole, and then this costs a look.
    fn owes(&self, rest: bool, now: impl Fn() -> Instant) {
        if rest != self.is_unfinished.load(Relaxed) {
            *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner) = rest.then(now);
            self.is_unfinished.store(rest, Relaxed);
        }
    }

    /// A client made a request and took it back: all of its work was for nothing.
    pub(super) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }
}

/// The connection, counted. Nothing is read from it any more once its budget is used up.
pub(super) struct Metered {
    inner: Stream,
    budget: Budget,
    /// Where in what we write.
    out: At,
    told: Arc<Told>,
}

/// Follows the frames in what comes.
#[derive(Debug)]
struct Budget {
    at: At,
    /// Below 0: owed.
    left: i32,
    /// Bytes sent that added nothing yet.
    sent: usize,
    /// To when the time that passed was added.
    refilled: Instant,
    /// A frame came.
    began: bool,
    /// The last frame is a piece of a head; `true`: its last one.
    head: Option<bool>,
    trailers: Trailers,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) length: usize,
    pub(super) stream: u32,
}

/// What bytes are of.
enum Piece<'a> {
    Frame(Frame),
    /// What follows its header.
    Payload(&'a [u8]),
}

#[derive(Debug)]
enum At {
    /// So many bytes before the next header.
    Skip(usize),
    /// In a header, of which so many bytes came.
    Header([u8; 9], usize),
}

impl Metered {
    pub(super) fn new(inner: Stream, told: Arc<Told>) -> Metered {
        let budget = Budget { at: At::Skip(PREFACE.len()), ..Budget::new(now()) };
        Metered { inner, budget, out: At::Header([0; 9], 0), told }
    }

    /// So many of these bytes were written.
    fn wrote(&mut self, bufs: &[io::IoSlice<'_>], count: usize) {
        let mut left = count;
        // The rest of a frame that did not go out at once, which no small one is.
        let mut answers = matches!(self.out, At::Skip(_));
        for buf in bufs {
            let taken = left.min(buf.len());
            let _ = self.out.follow(&buf[..taken], |piece| {
                if let Piece::Frame(Frame { kind, length, .. }) = piece
                    && (kind == HEADERS || kind == DATA && length > 0)
                {
                    self.budget.add(ANSWER);
                    answers = true;
                }
                Ok(())
            });
            left -= taken;
        }
        if answers {
            self.told.written.fetch_add(count, Relaxed);
        }
        self.budget.sent(count);
    }
}

impl At {
    /// Goes over what comes next, and shows headers and what follows them, until that is answered with an error.
    fn follow(
        &mut self,
        mut bytes: &[u8],
        mut show: impl FnMut(Piece<'_>) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        while !bytes.is_empty() {
            match self {
                At::Skip(left) => {
                    let (payload, rest) = bytes.split_at(bytes.len().min(*left));
                    *left -= payload.len();
                    bytes = rest;
                    if *left == 0 {
                        *self = At::Header([0; 9], 0);
                    }
                    show(Piece::Payload(payload))?;
                }
                At::Header(header, filled) => {
                    let count = bytes.len().min(header.len() - *filled);
                    header[*filled..*filled + count].copy_from_slice(&bytes[..count]);
                    *filled += count;
                    bytes = &bytes[count..];
                    if *filled == header.len() {
                        let [high, mid, low, kind, flags, stream @ ..] = *header;
                        let length = u32::from_be_bytes([0, high, mid, low]) as usize;
                        // One bit is reserved.
                        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
                        *self = if length == 0 { At::Header([0; 9], 0) } else { At::Skip(length) };
                        show(Piece::Frame(Frame { kind, flags, length, stream }))?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Budget {
    fn new(at: Instant) -> Budget {
        Budget {
            at: At::Header([0; 9], 0),
            left: MOST,
            sent: 0,
            refilled: at,
            began: false,
            head: None,
            trailers: Trailers::default(),
        }
    }

    /// Looks at what came, and tells of each request that it is malformed. Failed: what to say of it, and no more of it.
    fn take(&mut self, bytes: &[u8], now: impl Fn() -> Instant, malformed: impl Fn(u32)) -> Result<(), Reason> {
        let mut at = std::mem::replace(&mut self.at, At::Skip(0));
        let good = at.follow(bytes, |piece| {
            match piece {
                Piece::Payload(bytes) => self.trailers.payload(bytes).into_iter().for_each(&malformed),
                Piece::Frame(frame) => {
                    // RFC 9113, 3.4.
                    if !std::mem::replace(&mut self.began, true) && (frame.kind != SETTINGS || frame.flags & ACK != 0) {
                        return Err(Reason::PROTOCOL_ERROR);
                    }
                    self.trailers.frame(frame);
                    self.head = matches!(frame.kind, HEADERS | CONTINUATION).then_some(frame.flags & END_HEADERS != 0);
                    if !self.pay(frame.kind, frame.flags, frame.length, &now) {
                        return Err(Reason::ENHANCE_YOUR_CALM);
                    }
                }
            }
            Ok(())
        });
        self.at = at;
        good
    }

    /// Whether a head began and its rest has not come.
    fn owes_head(&self) -> bool {
        self.head.is_some_and(|is_last| !is_last || matches!(self.at, At::Skip(_)))
    }

    /// Pays for requests that were taken back. What is not there is owed, up to a whole budget.
    fn fine(&mut self, cancelled: u32) {
        let fine = i32::try_from(cancelled).unwrap_or(i32::MAX).saturating_mul(CANCELLED);
        self.left = self.left.saturating_sub(fine).max(-MOST);
    }

    fn pay(&mut self, kind: u8, flags: u8, length: usize, now: impl Fn() -> Instant) -> bool {
        match kind {
            HEADERS => self.add(REQUEST),
            DATA if length > 0 || flags & END_STREAM != 0 => {}
            _ => {
                if self.left <= 0 {
                    // Rare, so that the clock is looked at only here.
                    let (now, since) = (now(), self.refilled);
                    let gained = now.saturating_duration_since(since).as_secs().saturating_mul(SECOND);
                    if gained > 0 {
                        self.refilled = now;
                        self.add(i32::try_from(gained).unwrap_or(MOST));
                    }
                }
                if self.left <= 0 {
                    return false;
                }
                self.left -= 1;
            }
        }
        true
    }

    fn add(&mut self, more: i32) {
        self.left = self.left.saturating_add(more).min(MOST);
    }

    fn sent(&mut self, count: usize) {
        self.sent += count;
        self.add(i32::try_from(self.sent / BYTES).unwrap_or(MOST));
        self.sent %= BYTES;
    }
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.told.fault().is_some() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.budget.fine(this.told.cancelled.swap(0, Relaxed));
        let told = &this.told;
        if let Err(reason) = this.budget.take(&buf.filled()[before..], now, |stream| told.add_malformed(stream)) {
            told.fault.store(reason.into(), Relaxed);
            // Whoever polls the connection looks at this first.
            cx.waker().wake_by_ref();
            buf.set_filled(before);
            return Poll::Pending;
        }
        told.owes(this.budget.owes_head(), now);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.wrote(&[io::IoSlice::new(buf)], count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        self.wrote(bufs, count);
        Poll::Ready(Ok(count))
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, high, mid, low] = u32::try_from(length).unwrap().to_be_bytes();
        [&[high, mid, low, kind, flags, 0, 0, 0, 1][..], &vec![0xff; length]].concat()
    }

    fn budget() -> Budget {
        Budget { began: true, ..Budget::new(Instant::now()) }
    }

    impl Budget {
        fn allows(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> bool {
            self.take(bytes, now, |_| {}).is_ok()
        }
    }

    #[test]
    fn a_flood_ends_and_what_serves_requests_does_not() {
        let begun = Instant::now();
        for (kind, length) in [(6, 8), (4, 0), (4, 6), (8, 4), (3, 4), (2, 5), (9, 0), (0, 0), (77, 3)] {
            let mut budget = budget();
            let passed = (0..10_000).find(|_| !budget.allows(&frame(kind, 0, length), || begun)).unwrap();
            assert_eq!(passed, MOST, "{kind}");
            // Time makes it good again, slowly.
            let mut budget = Budget { left: 0, refilled: begun, ..self::budget() };
            let later = || begun + Duration::from_secs(2);
            let passed = (0..10_000).find(|_| !budget.allows(&frame(kind, 0, length), later)).unwrap();
            assert_eq!(passed, 2 * i32::try_from(SECOND).unwrap(), "{kind}");
        }
        let mut budget = budget();
        for _ in 0..100_000 {
            // A request, its window, data both ways, a cancellation.
            for (kind, flags, length) in [(HEADERS, 4, 30), (8, 0, 4), (DATA, 0, 100), (DATA, END_STREAM, 0), (3, 0, 4)]
            {
                assert!(budget.allows(&frame(kind, flags, length), || begun));
            }
            budget.sent(16 << 10);
            for _ in 0..10 {
                assert!(budget.allows(&frame(8, 0, 4), || begun));
            }
        }
    }

    #[test]
    fn requests_that_are_taken_back_cost_more_than_they_bring() {
        let (mut budget, begun) = (budget(), Instant::now());
        let passed = (0..10_000).find(|_| {
            let good = budget.allows(&frame(HEADERS, 5, 30), || begun) && budget.allows(&frame(3, 0, 4), || begun);
            budget.fine(1);
            !good
        });
        assert!((100..1000).contains(&passed.unwrap()), "{passed:?}");
    }

    #[test]
    fn settings_come_first_and_pseudo_header_fields_never_last() {
        let begun = Instant::now();
        let first = |bytes: &[u8]| Budget::new(begun).take(bytes, || begun, |_| {});
        assert_eq!(first(&frame(4, 0, 6)), Ok(()));
        for (kind, flags) in [(4, ACK), (HEADERS, 5), (DATA, 0), (6, 0), (77, 0)] {
            assert_eq!(first(&frame(kind, flags, 8)), Err(Reason::PROTOCOL_ERROR), "{kind}");
        }
        let fields = |flags: u8, stream: u32, bytes: &[u8]| {
            let header = [0, 0, bytes.len() as u8, HEADERS, flags, 0, 0, 0, stream as u8];
            [&header[..], bytes].concat()
        };
        let found = std::cell::RefCell::new(Vec::new());
        let mut budget = budget();
        for bytes in [
            // A request, good trailers, another request, bad ones; the same with padding and a priority, and in two frames.
            fields(4, 1, &[0x82, 0x84]),
            fields(5, 1, &[0x90]),
            fields(4, 3, &[0x82]),
            fields(5, 3, &[0x90, 0x84]),
            fields(4, 5, &[0x82]),
            fields(0x2d, 5, &[2, 0, 0, 0, 0, 0, 0x90, 0x84, 0x84]),
            fields(4, 7, &[0x82]),
            fields(0x2d, 7, &[1, 0x84, 0x84, 0x84, 0x84, 0x84, 0x87, 0x84]),
            fields(4, 9, &[0x82]),
            fields(1, 9, &[0x90]),
            [&[0, 0, 1, 9, 4, 0, 0, 0, 9][..], &[0x84]].concat(),
        ] {
            for piece in bytes.chunks(4) {
                budget.take(piece, || begun, |stream| found.borrow_mut().push(stream)).unwrap();
            }
        }
        assert_eq!(*found.borrow(), [3, 7, 9]);
    }

    proptest! {
        /// Wherever what comes is cut, it is counted alike.
        #[test]
        fn frames_are_found_however_they_are_cut(frames in prop::collection::vec((0u8..12, 0u8..3, 0usize..40), 0..40), cut in 1usize..30) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, flags, length)| frame(*kind, *flags, *length)).collect();
            let (mut whole, mut pieces) = (budget(), budget());
            let begun = whole.refilled;
            whole.allows(&bytes, || begun);
            for piece in bytes.chunks(cut) {
                pieces.allows(piece, || begun);
            }
            prop_assert_eq!(whole.left, pieces.left);
            let at_border = matches!(whole.at, At::Header(_, 0));
            prop_assert!(at_border);
        }
    }
}
