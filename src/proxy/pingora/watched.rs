//! The client's connection with an alarm: how pingora-proxy is told that time is up.
//!
//! Pingora's only deadline on an upstream is one read timeout for the first byte and every silence of the body alike. But while it
//! waits for an upstream it also reads from the client, to notice when the client leaves. So the alarm sits in the client's stream:
//! when it rings, that read fails, pingora ends the attempt, and the mover, which knows that it was the alarm, takes the next step.
//! One timer serves all deadlines of a connection. While a request waits, the alarm also looks every [`LOOK`] whether its endpoint was
//! found down, so that the request can leave before its own deadline.
//!
//! Pingora stops reading from a client that has sent its next request early, which would make it deaf to the alarm. It asks for that
//! byte with a buffer of one byte, once the request is complete; such a byte is held back here until the wait is over.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::time::Sleep;

use crate::proxy::exchange::Vigil;

/// How often a waiting request looks after its endpoint.
const LOOK: Duration = Duration::from_millis(100);

/// When a connection's wait is over. Set and read by the one task that serves the connection.
#[derive(Debug)]
pub(super) struct Alarm {
    base: Instant,
    /// Microseconds after `base`; 0: off.
    at: AtomicU64,
    rang: AtomicBool,
    /// The request is complete: what comes now belongs to the next one.
    complete: AtomicBool,
    vigil: Mutex<Option<Vigil>>,
    /// As `at`: when to look next.
    look: AtomicU64,
}

impl Alarm {
    fn new(base: Instant) -> Alarm {
        Alarm {
            base,
            at: AtomicU64::new(0),
            rang: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            vigil: Mutex::new(None),
            look: AtomicU64::new(0),
        }
    }

    /// Rings at `at`, unless set anew or turned off before.
    pub(super) fn set(&self, at: Instant) {
        self.rang.store(false, Relaxed);
        self.at.store(self.micros(at), Relaxed);
    }

    /// Rings before that, too, when the endpoint is lost.
    pub(super) fn look_after(&self, vigil: Option<Vigil>, now: Instant) {
        self.look.store(vigil.as_ref().map_or(0, |_| self.micros(now + LOOK)), Relaxed);
        *self.vigil.lock().unwrap_or_else(PoisonError::into_inner) = vigil;
    }

    fn micros(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.base).as_micros() as u64).max(1)
    }

    /// The request is complete: from here on it rings at `at`, unless the answer has begun already.
    pub(super) fn set_due_at_end(&self, at: Instant) {
        if self.at.load(Relaxed) != 0 {
            self.at.store(self.micros(at), Relaxed);
            self.set_complete(true);
        }
    }

    /// Whether it was said that the request is complete.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Relaxed)
    }

    /// Says whether the request is complete.
    pub(super) fn set_complete(&self, complete: bool) {
        self.complete.store(complete, Relaxed);
    }

    /// Turns it off.
    pub(super) fn off(&self) {
        self.complete.store(false, Relaxed);
        self.rang.store(false, Relaxed);
        self.at.store(0, Relaxed);
        if self.look.swap(0, Relaxed) != 0 {
            *self.vigil.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Whether it rang since it was set last.
    pub(super) fn rang(&self) -> bool {
        self.rang.load(Relaxed)
    }

    /// When to wake up next, in microseconds after `base`; `None`: not at all.
    fn due(&self) -> Option<u64> {
        let (at, look) = (self.at.load(Relaxed), self.look.load(Relaxed));
        let next = if look == 0 { at } else { at.min(look) };
        (at != 0).then_some(next)
    }

    /// At a moment that was due: whether it rings.
    fn wakes(&self, due: u64) -> bool {
        if due < self.at.load(Relaxed) {
            let vigil = self.vigil.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.base + Duration::from_micros(due);
            if !vigil.as_ref().is_some_and(|vigil| vigil.is_lost(now)) {
                self.look.store(due + LOOK.as_micros() as u64, Relaxed);
                return false;
            }
        }
        self.at.store(0, Relaxed);
        self.rang.store(true, Relaxed);
        true
    }
}

/// Bytes of answer that are gathered, so that head and body of a short one leave in one packet: pingora writes them one by one.
const WRITE_BUFFER: usize = 4096;

/// A client's connection with an [`Alarm`].
pub(super) struct Watched {
    inner: BufWriter<Stream>,
    alarm: Arc<Alarm>,
    timer: Option<Pin<Box<Sleep>>>,
    held: Option<u8>,
}

impl Watched {
    pub(super) fn new(inner: Stream, now: Instant) -> Watched {
        Watched {
            inner: BufWriter::with_capacity(WRITE_BUFFER, inner),
            alarm: Arc::new(Alarm::new(now)),
            timer: None,
            held: None,
        }
    }

    pub(super) fn alarm(&self) -> Arc<Alarm> {
        Arc::clone(&self.alarm)
    }

    /// Fails when the alarm rings; pending otherwise.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(due) = self.alarm.due() {
            let until = tokio::time::Instant::from_std(self.alarm.base + Duration::from_micros(due));
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if timer.deadline() != until {
                timer.as_mut().reset(until);
            }
            ready!(timer.as_mut().poll(cx));
            if self.alarm.wakes(due) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Poll::Pending
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 1 && this.alarm.complete.load(Relaxed) {
            return this.poll_probe(cx, buf);
        }
        if let Some(byte) = this.held.take() {
            buf.put_slice(&[byte]);
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Pending => this.poll_wait(cx),
            read => read,
        }
    }
}

impl Watched {
    /// Somebody looks whether the client is still there.
    fn poll_probe(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_none() {
            let before = buf.filled().len();
            match Pin::new(&mut self.inner).poll_read(cx, buf) {
                Poll::Ready(Ok(())) if buf.filled().len() > before => {
                    self.held = buf.filled().last().copied();
                    buf.set_filled(before);
                }
                Poll::Pending => {}
                gone => return gone,
            }
        }
        self.poll_wait(cx)
    }

    /// There is nothing to read. What was gathered of an answer that goes on later is written now.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(Err(error)) = Pin::new(&mut self.inner).poll_flush(cx) {
            return Poll::Ready(Err(error));
        }
        self.poll_alarm(cx)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
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

#[async_trait]
impl Shutdown for Watched {
    async fn shutdown(&mut self) {
        // The connection is given up either way.
        let _ = self.inner.flush().await;
        Shutdown::shutdown(&mut **self.inner.get_mut()).await;
    }
}

impl UniqueID for Watched {
    fn id(&self) -> UniqueIDType {
        self.inner.get_ref().id()
    }
}

impl Ssl for Watched {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ref().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.get_ref().selected_alpn_proto()
    }
}

#[async_trait]
impl Peek for Watched {}

impl GetTimingDigest for Watched {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_ref().get_timing_digest()
    }
}

impl GetProxyDigest for Watched {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_ref().get_proxy_digest()
    }
}

impl GetSocketDigest for Watched {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_ref().get_socket_digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn watched() -> (tokio::io::DuplexStream, Watched) {
        let (client, server) = tokio::io::duplex(1024);
        (client, Watched::new(Box::new(server), Instant::now()))
    }

    #[tokio::test]
    async fn it_rings_once_and_only_when_set() {
        let (mut client, mut watched) = watched();
        let alarm = watched.alarm();
        alarm.set(Instant::now());
        let mut probe = [0; 1];
        assert_eq!(watched.read(&mut probe).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(alarm.rang());
        alarm.set(Instant::now() + Duration::from_secs(3600));
        assert!(!alarm.rang());
        client.write_all(b"hello").await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(watched.read(&mut buffer).await.unwrap(), 5);
        alarm.set(Instant::now());
        alarm.off();
        drop(client);
        assert_eq!(watched.read(&mut probe).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_probed_byte_is_held_back_and_the_alarm_still_rings() {
        let (mut client, mut watched) = watched();
        client.write_all(b"GET").await.unwrap();
        watched.alarm().set(Instant::now() + Duration::from_millis(5));
        watched.alarm().set_complete(true);
        let mut probe = [0; 1];
        assert!(watched.read(&mut probe).await.is_err());
        watched.alarm().off();
        let mut read = Vec::new();
        drop(client);
        watched.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"GET");
    }
}
