//! After an upgrade: bytes both ways, whatever they mean, until both sides closed theirs.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};

use super::buffer::Buffer;

/// Both directions.
#[derive(Debug, Default)]
pub(super) struct Tunnel {
    pub(super) up: Way,
    pub(super) down: Way,
}

/// One direction of a tunnel.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// Who sends closed its side.
    pub(super) ended: bool,
    /// Who receives was told.
    pub(super) told: bool,
}

/// What one direction of a tunnel did.
pub(super) struct Passed {
    pub(super) moved: bool,
    pub(super) bytes: u64,
    /// Nothing passes any more.
    pub(super) broken: bool,
}

impl Way {
    /// Moves what can be moved; `held` is what was read from `from` and not written yet.
    pub(super) fn pass<A, B>(&mut self, from: &mut A, held: &mut Buffer, to: &mut B, cx: &mut Context<'_>) -> Passed
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        let mut passed = Passed { moved: false, bytes: 0, broken: false };
        passed.broken = self.run(from, held, to, cx, &mut passed).is_err();
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
                match Pin::new(&mut *to).poll_write(cx, held.bytes()) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => {
                        held.consume(count);
                        passed.moved = true;
                        passed.bytes += count as u64;
                        continue;
                    }
                    Poll::Ready(Err(error)) => return Err(error),
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
}
