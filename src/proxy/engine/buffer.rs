//! Bytes on their way, in storage that is given back while nothing is on its way.
//!
//! A connection holds storage only while it holds bytes: a poll that finds nothing to read takes a buffer from its thread's stock and puts it back
//! before it returns. So a thousand idle connections cost a thousand structs and a handful of buffers. Storage of the standard
//! size is kept in a small stock per thread; larger storage, for large heads, is freed.

use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::stock::Stock;

/// Bytes of a standard buffer: a usual head with its body, and large enough that copying long bodies is not all system calls.
pub(super) const SIZE: usize = 16 << 10;

/// Bytes of a buffer for the rest of a body of which so much came at once that a standard one was full.
const LARGE: usize = 128 << 10;

/// Standard and large buffers that a thread keeps, and as many scratches as standard ones.
const STOCK: usize = 64;
const LARGE_STOCK: usize = 4;

thread_local! {
    static SPARE: Stock<Box<[u8]>> = const { Stock::new(STOCK) };
    static LARGE_SPARE: Stock<Box<[u8]>> = const { Stock::new(LARGE_STOCK) };
    static SCRATCHES: Stock<Vec<u8>> = const { Stock::new(STOCK) };
}

fn take() -> Box<[u8]> {
    Stock::take(&SPARE).unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

fn take_large() -> Box<[u8]> {
    Stock::take(&LARGE_SPARE).unwrap_or_else(|| vec![0; LARGE].into_boxed_slice())
}

fn give_back(storage: Box<[u8]>) {
    match storage.len() {
        SIZE => Stock::keep(&SPARE, storage),
        LARGE => Stock::keep(&LARGE_SPARE, storage),
        _ => {}
    }
}

/// Bytes of heads and of what is written with them.
///
/// Taken from the thread's stock and given back when dropped, unless it grew large.
#[derive(Debug, Default)]
pub(super) struct Scratch(Vec<u8>);

/// The largest scratch that is kept.
const SCRATCH: usize = 2 * SIZE;

impl Scratch {
    /// An empty one with some room.
    pub(super) fn take() -> Scratch {
        Scratch(Stock::take(&SCRATCHES).unwrap_or_else(|| Vec::with_capacity(1024)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        if (1..=SCRATCH).contains(&bytes.capacity()) {
            bytes.clear();
            Stock::keep(&SCRATCHES, bytes);
        }
    }
}

impl Deref for Scratch {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

/// Bytes that were read and not yet used.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// Empty while nothing is held.
    storage: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What is held.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether one more read has room.
    pub(super) fn has_room(&self) -> bool {
        self.storage.is_empty() || self.len() < self.storage.len()
    }

    /// The first `count` bytes are used up. Storage goes back with the last of them.
    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len());
        self.start += count.min(self.len());
        if self.start == self.end {
            self.release();
        }
    }

    /// The next bytes, should there be none now, are read into a large buffer.
    pub(super) fn widen(&mut self) {
        if self.storage.is_empty() {
            self.storage = take_large();
        }
    }

    /// Doubles the storage, for a head that does not fit.
    pub(super) fn grow(&mut self) {
        let mut larger = vec![0; (self.storage.len() * 2).max(SIZE)].into_boxed_slice();
        larger[..self.len()].copy_from_slice(&self.storage[self.start..self.end]);
        (self.start, self.end) = (0, self.len());
        give_back(std::mem::replace(&mut self.storage, larger));
    }

    /// Reads once. 0: the other side closed. There must be room.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.storage.is_empty() {
            self.storage = take();
        } else if self.end == self.storage.len() {
            self.storage.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        }
        let mut free = ReadBuf::new(&mut self.storage[self.end..]);
        let read = Pin::new(stream).poll_read(cx, &mut free);
        let count = free.filled().len();
        self.end += count;
        if self.is_empty() {
            self.release();
        }
        ready!(read)?;
        Poll::Ready(Ok(count))
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        give_back(std::mem::take(&mut self.storage));
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.storage));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn storage_is_held_only_with_bytes() {
        let (mut near, mut far) = tokio::io::duplex(64 << 10);
        let mut buffer = Buffer::default();
        let pending = poll_fn(|cx| Poll::Ready(buffer.poll_fill(&mut far, cx).is_pending())).await;
        assert!(pending && buffer.storage.is_empty());
        near.write_all(&[7; SIZE + 10]).await.unwrap();
        assert_eq!(poll_fn(|cx| buffer.poll_fill(&mut far, cx)).await.unwrap(), SIZE);
        assert!(!buffer.has_room());
        buffer.grow();
        assert_eq!(poll_fn(|cx| buffer.poll_fill(&mut far, cx)).await.unwrap(), 10);
        buffer.consume(SIZE);
        assert_eq!(buffer.bytes(), [7; 10]);
        buffer.consume(10);
        assert!(buffer.storage.is_empty());
        drop(near);
        assert_eq!(poll_fn(|cx| buffer.poll_fill(&mut far, cx)).await.unwrap(), 0);
    }
}
