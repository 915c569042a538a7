//! A request as it goes upstream: staged from the client's bytes, kept for another attempt as far as the replay limit allows.
//!
//! Head and body are one piece, so a short request leaves in one write, and beginning another attempt is beginning from the first byte. Beyond
//! the limit only what waits to be sent is held.

use super::body::{self, Body, Step};
use super::buffer::{Buffer, SIZE, Scratch};
use crate::proxy::{Framing, Outcome};

/// Bytes that may wait to be written before no more are read.
pub(super) const WINDOW: usize = SIZE;

/// Sent bytes before others that wait, of which the room is given back.
const SPENT: usize = 4 * WINDOW;

/// A request as it is sent upstream: its bytes so far and where they come from.
pub(super) struct Upload {
    /// The head, and the body as far as it is kept or waits to be sent.
    staged: Scratch,
    /// Bytes of `staged` that were sent in this attempt.
    sent: usize,
    /// All bytes from the first on are in `staged`.
    whole: bool,
    head_len: usize,
    replay: u64,
    max_body: u64,
    body: Body,
    chunked: bool,
    /// The last byte is staged or sent.
    ended: bool,
    /// The upstream took a byte in this attempt.
    begun: bool,
    /// The upstream takes no more bytes in this attempt.
    refused: bool,
}

impl Upload {
    /// A request whose head is `head` as it is to be sent, and whose body is framed like this on both sides.
    pub(super) fn new(head: Scratch, framing: Framing, max_body: u64, replay: u64) -> Upload {
        Upload {
            head_len: head.len(),
            staged: head,
            sent: 0,
            whole: true,
            replay,
            max_body,
            body: Body::new(framing),
            chunked: framing == Framing::Chunked,
            ended: framing.is_empty(),
            begun: false,
            refused: false,
        }
    }

    /// Leaves its trailers out.
    pub(super) fn drop_trailers(&mut self) {
        self.body.drop_trailers();
    }

    /// From the first byte again, for another attempt.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
        self.begun = false;
        self.refused = false;
    }

    /// Whether all of it that was read can be sent again.
    pub(super) fn replayable(&self) -> bool {
        self.whole
    }

    /// Whether all of the request was read from the client.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether the upstream has to take bytes before anything goes on.
    pub(super) fn waits_to_send(&self) -> bool {
        !self.refused && !self.pending().is_empty()
    }

    /// Whether more of the body is to be read from the client, for whom there is room.
    pub(super) fn wants(&self) -> bool {
        !self.ended && !self.refused && self.pending().len() < WINDOW
    }

    /// Whether the upstream took a byte in this attempt.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// The upstream takes no more bytes in this attempt, or is to get none.
    pub(super) fn refuse(&mut self) {
        self.refused = true;
    }

    /// Body bytes read from the client.
    pub(super) fn payload(&self) -> u64 {
        self.body.payload()
    }

    /// Bytes that wait to be sent.
    pub(super) fn pending(&self) -> &[u8] {
        &self.staged[self.sent..]
    }

    /// All of it, if it was read whole and is kept.
    pub(super) fn kept(&self) -> Option<&[u8]> {
        (self.whole && self.ended).then_some(&self.staged)
    }

    /// Whether the upstream has all of it.
    pub(super) fn is_sent(&self) -> bool {
        self.ended && self.sent == self.staged.len()
    }

    /// Moves what the client sent into `staged`, as far as there is room.
    pub(super) fn stage(&mut self, input: &mut Buffer) -> Result<(), Outcome> {
        while !self.ended && !input.is_empty() && self.pending().len() < WINDOW {
            match self.body.step(input.bytes()).map_err(|_| Outcome::BadRequest)? {
                Step::Data { skip, len } => {
                    if self.body.payload() > self.max_body {
                        return Err(Outcome::BodyTooLarge);
                    }
                    let payload = &input.bytes()[skip..skip + len];
                    match self.chunked {
                        true => body::write_chunk(&mut self.staged, payload),
                        false => self.staged.extend_from_slice(payload),
                    }
                    input.consume(skip + len);
                    self.ended = !self.chunked && self.body.is_done();
                }
                Step::More(skip) => input.consume(skip),
                Step::End(skip) => {
                    self.body.write_end(&mut self.staged);
                    input.consume(skip);
                    self.ended = true;
                }
            }
        }
        self.whole &= (self.staged.len() - self.head_len) as u64 <= self.replay;
        Ok(())
    }

    /// It goes nowhere else any more: what was sent need not be kept.
    pub(super) fn give_back(&mut self) {
        self.whole = false;
        self.staged.drain(..std::mem::take(&mut self.sent));
        self.head_len = 0;
        if self.staged.is_empty() {
            self.staged = Scratch::default();
        }
    }

    /// So many more bytes were sent.
    pub(super) fn advance(&mut self, count: usize) {
        self.begun = true;
        self.sent += count;
        if !self.whole && is_spent(&mut self.staged, &mut self.sent) {
            self.head_len = 0;
        }
    }
}

/// Gives the room of the first `sent` bytes back: when that is all, and when a side that takes them slowly never comes to that. Returns
/// whether it did.
pub(super) fn is_spent(bytes: &mut Vec<u8>, sent: &mut usize) -> bool {
    let spent = *sent == bytes.len() || *sent >= SPENT;
    if spent {
        bytes.drain(..std::mem::take(sent));
    }
    spent
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn an_upload_that_never_catches_up_holds_little() {
        let (mut client, mut far) = tokio::io::duplex(SIZE);
        let length = 1_000 * SIZE as u64;
        for framing in [Framing::Length(length), Framing::Chunked] {
            let mut head = Scratch::take();
            head.extend_from_slice(b"head");
            let mut upload = Upload::new(head, framing, u64::MAX, 0);
            let (mut input, mut most) = (Buffer::default(), 0);
            for _ in 0..1_000 {
                let piece = match framing {
                    Framing::Chunked => {
                        let mut chunk = Vec::new();
                        body::write_chunk(&mut chunk, &[7; SIZE / 2]);
                        chunk
                    }
                    _ => vec![7; SIZE / 2],
                };
                client.write_all(&piece).await.unwrap();
                poll_fn(|cx| input.poll_fill(&mut far, cx)).await.unwrap();
                upload.stage(&mut input).unwrap();
                // All but one byte is taken each time.
                upload.advance(upload.pending().len() - 1);
                most = most.max(upload.staged.len());
            }
            assert!(most <= SPENT + 2 * WINDOW, "{most}");
            assert!(upload.payload() > 400 * SIZE as u64);
        }
    }
}
