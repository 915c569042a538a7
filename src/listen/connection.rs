//! An accepted connection as pingora sees one.
//!
//! Pingora's own stream reads through a buffer of 64 KiB, which its callers' buffers make useless for plain HTTP; here reads and
//! writes go straight through. When we close first, what the client still sends is read away for a moment: closing with unread bytes
//! would reset the connection, and the reset would take the answer from the client. A reset is what it gets when it must not take what it
//! got for whole ([`Connection::reset`]).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::drain::Guard;
use crate::socket::Socket;

/// How long, and how many bytes, are read away after we closed.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 4 << 20);

/// One accepted connection.
pub(super) struct Connection {
    /// Taken only when dropped.
    open: Option<(Socket, Guard)>,
    peer: SocketAddr,
    /// Made for those who ask.
    digest: OnceLock<Arc<SocketDigest>>,
    fd: UniqueIDType,
    /// The client closed its side, or the connection broke: nothing to linger for.
    finished: bool,
    wrote: bool,
}

impl Connection {
    pub(super) fn new(tcp: TcpStream, peer: SocketAddr, guard: Guard) -> Connection {
        let fd = tcp.as_raw_fd();
        Connection { open: Some((tcp.into(), guard)), peer, digest: OnceLock::new(), fd, finished: false, wrote: false }
    }

    /// The first byte that comes, which stays to be read. `None`: none does.
    pub(super) async fn peek(&self) -> Option<u8> {
        let (socket, _) = self.open.as_ref()?;
        let mut first = [0];
        let seen = socket.stream().peek(&mut first).await.ok()?;
        (seen > 0).then_some(first[0])
    }

    /// The client sends nothing more: there is nothing to linger for.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    /// Has it closed so that the client cannot take what it got for whole.
    pub(super) fn reset(&mut self) {
        if let Some((tcp, _)) = &self.open {
            // If it fails, the connection is closed in the ordinary way.
            let _ = SockRef::from(tcp.stream()).set_linger(Some(Duration::ZERO));
            self.finished = true;
        }
    }

    fn stream(&mut self) -> Pin<&mut Socket> {
        let (stream, _) = self.open.as_mut().expect("the stream is taken only by drop");
        Pin::new(stream)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some((stream, guard)) = self.open.take() else { return };
        if self.finished || !self.wrote {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                linger(stream, LINGER).await;
                drop(guard);
            });
        }
    }
}

/// The socket of an accepted connection on which nothing stands between it and HTTP.
pub fn socket(stream: &Stream) -> Option<&TcpStream> {
    let connection = (**stream).as_any().downcast_ref::<Connection>()?;
    connection.open.as_ref().map(|(tcp, _)| tcp.stream())
}

/// Closes our side and reads away what still comes, for so long and so many bytes.
pub(super) async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin, (patience, most): (Duration, usize)) {
    let read_away = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut buffer = [0; 4096];
        let mut left = most;
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            left = left.saturating_sub(read);
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(patience, read_away).await;
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.stream().poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) if buf.filled().len() == before && buf.capacity() > 0 => self.finished = true,
            Poll::Ready(Err(_)) => self.finished = true,
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.wrote = true;
        let written = self.stream().poll_write(cx, buf);
        self.finished |= matches!(written, Poll::Ready(Err(_)));
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wrote = true;
        let written = self.stream().poll_write_vectored(cx, bufs);
        self.finished |= matches!(written, Poll::Ready(Err(_)));
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.stream().poll_flush(cx);
        self.finished |= matches!(flushed, Poll::Ready(Err(_)));
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        // The connection is given up either way.
        let _ = AsyncWriteExt::shutdown(&mut self.stream()).await;
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.fd
    }
}

impl Ssl for Connection {}

#[async_trait]
impl Peek for Connection {}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        let digest = self.digest.get_or_init(|| {
            let digest = SocketDigest::from_raw_fd(self.fd);
            // A new cell is empty.
            let _ = digest.peer_addr.set(Some(self.peer.into()));
            Arc::new(digest)
        });
        Some(Arc::clone(digest))
    }
}
