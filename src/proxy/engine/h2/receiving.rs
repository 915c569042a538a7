//! What comes on an HTTP/2 stream, as HTTP/1.1 frames it: a head made of the stream's own, data by a length or in chunks, trailers.
//!
//! Windows are opened as the data is taken, so that whoever takes it slowly is seen to be slow. It must not know whether a request or an answer comes.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use tokio::io::ReadBuf;

use super::field;
use crate::proxy::engine::buffer::Scratch;

/// What comes after the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Following {
    /// Nothing.
    Nothing,
    /// As many bytes as the head says.
    Length,
    Chunks,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Receiving {
    /// What is to be read before anything else: the head, then framing.
    ahead: Scratch,
    /// How much of it was.
    taken: usize,
    body: Option<RecvStream>,
    coming: Coming,
    /// What came of the body and was not read yet.
    piece: Bytes,
}

/// What comes after what is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coming {
    /// Data; in chunks or not.
    Data { chunks: bool },
    /// What follows the last chunk.
    Trailers,
    /// Nothing more.
    Nothing,
}

impl Receiving {
    /// That head, and then what comes of `body`.
    pub(super) fn new(head: Scratch, following: Following, body: RecvStream) -> Receiving {
        let coming = match following {
            Following::Nothing => Coming::Nothing,
            Following::Length => Coming::Data { chunks: false },
            Following::Chunks => Coming::Data { chunks: true },
        };
        Receiving { ahead: head, taken: 0, body: Some(body), coming, piece: Bytes::new() }
    }

    /// The stream, unless it was taken.
    pub(super) fn body(&self) -> Option<&RecvStream> {
        self.body.as_ref()
    }

    /// The stream, for who drops this.
    pub(super) fn take_body(&mut self) -> Option<RecvStream> {
        self.body.take()
    }

    /// Reads what is there. `false`: all of it was read.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<bool, h2::Error>> {
        let before = buf.filled().len();
        loop {
            let ahead = &self.ahead[self.taken..];
            let count = ahead.len().min(buf.remaining());
            buf.put_slice(&ahead[..count]);
            self.taken += count;
            if !self.piece.is_empty() {
                let count = self.piece.len().min(buf.remaining());
                buf.put_slice(&self.piece.split_to(count));
                // More than was taken is never released.
                if let Some(body) = &mut self.body {
                    let _ = body.flow_control().release_capacity(count);
                }
                if self.piece.is_empty() && self.coming == (Coming::Data { chunks: true }) {
                    self.ahead.clear();
                    self.ahead.extend_from_slice(b"\r\n");
                    self.taken = 0;
                    continue;
                }
            }
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(true));
            }
            match self.poll_more(cx) {
                Poll::Ready(Ok(true)) => {}
                // What is there is read first, and this is found again.
                _ if buf.filled().len() > before => return Poll::Ready(Ok(true)),
                Poll::Ready(more) => return Poll::Ready(more),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Puts more at hand. Ready: there is more to read, or there will never be (`false`).
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, h2::Error>> {
        self.ahead.clear();
        self.taken = 0;
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(false)) };
        loop {
            match self.coming {
                Coming::Data { chunks } => match ready!(body.poll_data(cx)) {
                    Some(Ok(piece)) if piece.is_empty() => {}
                    Some(Ok(piece)) => {
                        if chunks {
                            self.ahead.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                        }
                        self.piece = piece;
                        return Poll::Ready(Ok(true));
                    }
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None if chunks => self.coming = Coming::Trailers,
                    // Trailers after a length have no place in HTTP/1.1.
                    None => self.coming = Coming::Nothing,
                },
                Coming::Trailers => {
                    let trailers = ready!(body.poll_trailers(cx))?;
                    self.ahead.extend_from_slice(b"0\r\n");
                    for (name, value) in trailers.iter().flatten() {
                        field(&mut self.ahead, name.as_str().as_bytes(), value.as_bytes());
                    }
                    self.ahead.extend_from_slice(b"\r\n");
                    self.coming = Coming::Nothing;
                    return Poll::Ready(Ok(true));
                }
                Coming::Nothing => return Poll::Ready(Ok(false)),
            }
        }
    }
}
