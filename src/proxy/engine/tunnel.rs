//! After an upgrade: bytes both ways, whatever they mean, until both sides closed theirs or the tunnel has to end.
//!
//! Who has to end it says so as WebSocket does, in a frame of its own, which can stand only where the last one that passed is over. Until then
//! the rest of that one passes; what comes after it is dropped.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use arrayvec::ArrayVec;
use tokio::io::{AsyncRead, AsyncWrite};

use super::buffer::Buffer;
use super::frames::{Frames, going_away};

/// Both directions.
#[derive(Debug, Default)]
pub(super) struct Tunnel {
    pub(super) up: Way,
    pub(super) down: Way,
    /// Since when it is to end.
    pub(super) leaving: Option<Instant>,
}

/// One direction of a tunnel.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// Who sends closed its side.
    pub(super) ended: bool,
    /// Who receives was told, or was sent the last that it gets.
    pub(super) told: bool,
    frames: Frames,
    /// What is still to be said when the tunnel ends.
    farewell: ArrayVec<u8, 8>,
    /// Whether who receives is to hear the end of the connection after that.
    closes: bool,
}

/// What one direction of a tunnel did.
pub(super) struct Passed {
    pub(super) moved: bool,
    pub(super) bytes: u64,
    /// Nothing passes any more.
    pub(super) broken: bool,
}

impl Tunnel {
    /// From now on it ends: both sides are told that we go away. `mask` is a random number.
    pub(super) fn leave(&mut self, now: Instant, mask: [u8; 4]) {
        self.leaving = Some(now);
        // The server closes the connection first, once it has answered (RFC 6455, 7.1.1): for the client that is us.
        (self.up.farewell, self.up.closes) = (going_away(Some(mask)), false);
        (self.down.farewell, self.down.closes) = (going_away(None), true);
    }
}

impl Way {
    /// Moves what can be moved; `held` is what was read from `from` and not written yet.
    pub(super) fn pass<A, B>(
        &mut self,
        from: &mut A,
        held: &mut Buffer,
        to: &mut B,
        leaving: bool,
        cx: &mut Context<'_>,
    ) -> Passed
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        let mut passed = Passed { moved: false, bytes: 0, broken: false };
        passed.broken = match leaving {
            false => self.run(from, held, to, cx, &mut passed).is_err(),
            true => matches!(self.poll_leave(from, held, to, cx, &mut passed), Poll::Ready(Err(_))),
        };
        passed
    }

    fn run<A, B>(
        &mut self,
        from: &mut A,
        held: &mut Buffer,
        to: &mut B,
        cx: &mut Context<'_>,
        passed: &mut Passed,
    ) -> io::Result<()>
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        loop {
            if !held.is_empty() {
                let all = held.len();
                match self.poll_write(held, all, to, cx, passed) {
                    Poll::Ready(written) => {
                        written?;
                        continue;
                    }
                    Poll::Pending => return Ok(()),
                }
            }
            if self.ended {
                if !self.told {
                    match Pin::new(&mut *to).poll_shutdown(cx) {
                        Poll::Ready(done) => {
                            done?;
                            self.told = true;
                        }
                        Poll::Pending => {}
                    }
                }
                return Ok(());
            }
            match held.poll_fill(from, cx) {
                Poll::Ready(Ok(0)) => {
                    self.ended = true;
                    passed.moved = true;
                }
                Poll::Ready(Ok(_)) => passed.moved = true,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    let _ = Pin::new(&mut *to).poll_flush(cx)?;
                    return Ok(());
                }
            }
        }
    }

    /// The rest of the frame under way, then the farewell; then whatever comes is dropped, to its end.
    fn poll_leave<A, B>(
        &mut self,
        from: &mut A,
        held: &mut Buffer,
        to: &mut B,
        cx: &mut Context<'_>,
        passed: &mut Passed,
    ) -> Poll<io::Result<()>>
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        loop {
            if self.told {
                held.consume(held.len());
            } else if self.frames.is_between() && !self.farewell.is_empty() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.farewell))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => drop(self.farewell.drain(..count)),
                }
                continue;
            } else if self.frames.is_between() || self.frames.is_closed() {
                match self.closes {
                    true => ready!(Pin::new(&mut *to).poll_shutdown(cx))?,
                    false => ready!(Pin::new(&mut *to).poll_flush(cx))?,
                }
                self.told = true;
                continue;
            } else if !held.is_empty() {
                let rest = self.frames.rest(held.bytes());
                ready!(self.poll_write(held, rest, to, cx, passed))?;
                continue;
            }
            if self.ended {
                // Inside a frame that never ends, there is nothing to be said.
                self.told = true;
                return Poll::Ready(Ok(()));
            }
            self.ended = ready!(held.poll_fill(from, cx))? == 0;
        }
    }

    /// Writes some of the first `most` bytes of what is held.
    fn poll_write<B: AsyncWrite + Unpin>(
        &mut self,
        held: &mut Buffer,
        most: usize,
        to: &mut B,
        cx: &mut Context<'_>,
        passed: &mut Passed,
    ) -> Poll<io::Result<()>> {
        let count = ready!(Pin::new(to).poll_write(cx, &held.bytes()[..most]))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.frames.follow(&held.bytes()[..count]);
        held.consume(count);
        passed.moved = true;
        passed.bytes += count as u64;
        Poll::Ready(Ok(()))
    }
}
