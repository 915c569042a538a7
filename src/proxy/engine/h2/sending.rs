//! A body on its way out by an HTTP/2 stream: framed as HTTP/1.1 frames it when it is written, and without that framing when it leaves.
//!
//! It is taken as the other side's windows open: while much waits, nothing more is. It must not know whether it is a request's or an answer's.

use std::io::{self, ErrorKind};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http::HeaderMap;

use super::{fields, gone};
use crate::proxy::Fields;
use crate::proxy::engine::body::{Body, Step};

/// Bytes that wait here for a window: while there are as many, nothing more is taken.
const WAITING: usize = 64 << 10;

/// See the module.
pub(super) struct Sending {
    stream: SendStream<Bytes>,
    body: Body,
    /// Payload that waits for a window.
    waiting: BytesMut,
    /// The library has all of it.
    is_whole: bool,
}

impl Sending {
    /// Of a body that is written next. Over already, it was sent with the head.
    pub(super) fn new(stream: SendStream<Bytes>, body: Body) -> Sending {
        Sending { stream, is_whole: body.is_done(), body, waiting: BytesMut::new() }
    }

    /// Whether the library has all of it.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Takes what was written, all of it or nothing, and sends what there is a window for; the rest waits for the next bytes, or for
    /// [`Sending::poll_send`].
    pub(super) fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<()>> {
        if self.is_whole {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        if self.waiting.len() >= WAITING && self.poll_send(cx)?.is_pending() && self.waiting.len() >= WAITING {
            return Poll::Pending;
        }
        self.take(bytes, Bytes::copy_from_slice)?;
        Poll::Ready(self.send_on(cx))
    }

    /// Takes what was written with the head, first of all: nothing waits yet, and all of it leaves as it is.
    pub(super) fn begin(&mut self, cx: &mut Context<'_>, bytes: &Bytes) -> io::Result<()> {
        self.take(bytes, |piece| bytes.slice_ref(piece))?;
        self.send_on(cx)
    }

    fn send_on(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes what was written. Usually that is one piece, which leaves at once, `kept` for as long as that takes.
    fn take(&mut self, mut bytes: &[u8], kept: impl Fn(&[u8]) -> Bytes) -> io::Result<()> {
        let mut only: &[u8] = &[];
        while let Step::Data { skip, len } = self.body.step(bytes).map_err(|_| ErrorKind::InvalidData)? {
            self.waiting.extend_from_slice(only);
            only = &bytes[skip..skip + len];
            if !self.waiting.is_empty() {
                self.waiting.extend_from_slice(std::mem::take(&mut only));
            }
            bytes = &bytes[skip + len..];
        }
        if only.is_empty() {
            return Ok(());
        }
        self.stream.reserve_capacity(only.len());
        if self.stream.capacity() < only.len() {
            self.waiting.extend_from_slice(only);
            return Ok(());
        }
        self.send(kept(only))
    }

    /// Gives the library a piece for which there is a window, of which nothing but what is in `waiting` comes after it.
    fn send(&mut self, piece: Bytes) -> io::Result<()> {
        let is_last = self.waiting.is_empty() && self.body.is_done() && self.body.trailers().is_none();
        self.is_whole = is_last;
        self.stream.send_data(piece, is_last).map_err(|_| gone())
    }

    /// Gives the library what windows are open for. Ready: nothing waits.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            self.stream.reserve_capacity(self.waiting.len());
            while self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    _ => return Poll::Ready(Err(gone())),
                }
            }
            let count = self.stream.capacity().min(self.waiting.len());
            let piece = self.waiting.split_to(count).freeze();
            self.send(piece)?;
        }
        if self.body.is_done() && !self.is_whole {
            self.is_whole = true;
            let sent = match self.body.trailers() {
                Some(lines) => self.stream.send_trailers(trailers(lines.lines())?),
                None => self.stream.send_data(Bytes::new(), true),
            };
            sent.map_err(|_| gone())?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready once the other side reset the stream.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(drop)
    }

    /// It cannot become whole.
    pub(super) fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }
}

/// Trailers as the library has them. They are few and rare.
fn trailers<'a>(lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> io::Result<HeaderMap> {
    let (mut all, mut ends) = (Vec::new(), Vec::new());
    for part in lines.flat_map(|(name, value)| [name, value]) {
        all.extend_from_slice(part);
        ends.push(all.len());
    }
    let all = Bytes::from(all);
    let at = |n: usize| &all[if n == 0 { 0 } else { ends[n - 1] }..ends[n]];
    fields(&all, (0..ends.len() / 2).map(|n| (at(2 * n), at(2 * n + 1))))
}
