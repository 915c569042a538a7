//! The connection of a client whose request is handed over: what can be read from it is that one request and nothing after it.
//!
//! A service that speaks HTTP/2 upstream is served by the other mover, one request at a time, so that the rules of this engine hold for every
//! request and the next one may be for another service. The head was checked before; the body is read here by the same letter
//! ([`Body`]), and a body that breaks it ends the connection. Bytes after the request are kept for the engine, which takes the connection
//! back. Once the request was read the stream is silent, but it still tells when the client leaves.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::{Body, Step};
use crate::proxy::Framing;

/// Bytes after the request that are read ahead: enough to tell that a client is there, and no more.
const AHEAD: usize = 4096;

/// A request on its way to the other mover. What the engine hands over, and takes back.
#[derive(Debug)]
pub struct HandOver<S> {
    /// The client's connection.
    pub stream: S,
    /// What was read and not used: the request's head, and what follows it.
    pub input: Vec<u8>,
    /// The head's length.
    pub head: usize,
    /// How its body is framed.
    pub framing: Framing,
    /// Requests served on the connection so far, this one not counted.
    pub requests: u32,
}

/// See the module.
pub struct Gate {
    inner: Stream,
    /// What was read from `inner` and not yet by anybody.
    input: Vec<u8>,
    /// How much of `input` belongs to the request and was checked.
    open: usize,
    body: Body,
    closed: bool,
    broken: bool,
}

impl Gate {
    /// A gate for one request.
    pub fn new(request: HandOver<Stream>) -> Gate {
        let body = Body::new(request.framing);
        Gate { inner: request.stream, input: request.input, open: request.head, body, closed: false, broken: false }
    }

    /// The connection and what was read from it after the request; `None` if the request was not read to its end, so that what comes next
    /// cannot be known.
    pub fn into_inner(self) -> Option<(Stream, Vec<u8>)> {
        (self.body.is_done() && self.open == 0).then_some((self.inner, self.input))
    }

    /// Looks how much of what is at hand belongs to the request. What was good before a fault still passes.
    fn check(&mut self) {
        while !self.broken && !self.body.is_done() && self.open < self.input.len() {
            match self.body.step(&self.input[self.open..]) {
                Ok(Step::Data { skip, len }) => self.open += skip + len,
                Ok(Step::More(skip) | Step::End(skip)) => self.open += skip,
                Err(_) => self.broken = true,
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl AsyncRead for Gate {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            this.check();
            let count = this.open.min(buf.remaining());
            if count > 0 {
                buf.put_slice(&this.input[..count]);
                this.input.drain(..count);
                this.open -= count;
                return Poll::Ready(Ok(()));
            }
            if this.broken {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            if this.closed {
                return Poll::Ready(Ok(()));
            }
            if this.body.is_done() && this.input.len() >= AHEAD {
                // Whoever sends this much ahead has not left; the writes will tell if it does.
                return Poll::Pending;
            }
            let mut storage = [0; AHEAD];
            let mut read = ReadBuf::new(&mut storage);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            this.closed = read.filled().is_empty();
            this.input.extend_from_slice(read.filled());
        }
    }
}

impl AsyncWrite for Gate {
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
impl Shutdown for Gate {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.inner).await;
    }
}

impl UniqueID for Gate {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Gate {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

#[async_trait]
impl Peek for Gate {}

impl GetTimingDigest for Gate {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
}

impl GetProxyDigest for Gate {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Gate {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    fn gate(input: &str, head: usize, framing: Framing) -> (DuplexStream, Gate) {
        let (client, server) = duplex(1024);
        let input = input.as_bytes().to_vec();
        (client, Gate::new(HandOver { stream: Box::new(server), input, head, framing, requests: 0 }))
    }

    #[tokio::test]
    async fn one_request_passes_and_the_next_one_waits() {
        let (mut client, mut gate) = gate("HEAD4\r\nab", 4, Framing::Chunked);
        client.write_all(b"cd\r\n0\r\nx: y\r\n\r\nGET / ").await.unwrap();
        let mut read = vec![0; "HEAD4\r\nabcd\r\n0\r\nx: y\r\n\r\n".len()];
        gate.read_exact(&mut read).await.unwrap();
        assert_eq!(read, b"HEAD4\r\nabcd\r\n0\r\nx: y\r\n\r\n");
        let mut byte = [0];
        assert!(futures_pending(gate.read(&mut byte)).await);
        let (mut stream, rest) = gate.into_inner().unwrap();
        assert_eq!(rest, b"GET / ");
        client.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_and_a_broken_body_too() {
        let (client, mut gate) = self::gate("HEAD", 4, Framing::None);
        let mut read = [0; 4];
        gate.read_exact(&mut read).await.unwrap();
        drop(client);
        assert_eq!(gate.read(&mut read).await.unwrap(), 0);

        let (_client, mut gate) = self::gate("HEADx\r\n", 4, Framing::Chunked);
        gate.read_exact(&mut read).await.unwrap();
        assert!(gate.read(&mut read).await.is_err());
        assert!(gate.into_inner().is_none());
        let (_client, gate) = self::gate("HEADab", 4, Framing::Length(3));
        assert!(gate.into_inner().is_none());
    }

    /// Whether a future is pending when polled once.
    async fn futures_pending<F: Future>(future: F) -> bool {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
