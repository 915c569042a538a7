//! An accepted connection within TLS, as pingora sees one.
//!
//! How it ends says whether what the client got is whole: with a close alert when it is ([`close`](Secured::close)), without one when it was cut. Dropping
//! it is a cut.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::connection::Connection;
use crate::config::tls::Certificate;

/// How long a client may take for a close alert that its socket has no room for.
const ALERT: Duration = Duration::from_secs(2);

/// One accepted connection after its handshake.
pub(super) struct Secured {
    /// Taken only when dropped.
    stream: Option<TlsStream<Connection>>,
    /// What the client was shown, where hosts are bound to it; else empty.
    certificates: Vec<Arc<Certificate>>,
    digest: Arc<SslDigest>,
    /// What the client got is whole.
    whole: AtomicBool,
}

impl Secured {
    /// `certificates`: those of which the client was shown one, if requests are bound to them.
    pub(super) fn new(
        stream: TlsStream<Connection>,
        version: &'static str,
        certificates: Vec<Arc<Certificate>>,
    ) -> Secured {
        let suite = stream.get_ref().1.negotiated_cipher_suite();
        let suite = suite.and_then(|suite| suite.suite().as_str()).unwrap_or_default();
        let digest = Arc::new(SslDigest::new(suite, version, None, None, Vec::new()));
        Secured { stream: Some(stream), certificates, digest, whole: AtomicBool::new(false) }
    }

    /// What the client got is whole: it is told so when this is dropped.
    pub(super) fn close(&self) {
        self.whole.store(true, Relaxed);
    }

    /// The connection beneath.
    pub(super) fn connection(&mut self) -> &mut Connection {
        self.stream().get_mut().get_mut().0
    }

    /// The certificates that requests are bound to; empty: to none.
    pub(super) fn certificates(&self) -> &[Arc<Certificate>] {
        &self.certificates
    }

    fn stream(&mut self) -> Pin<&mut TlsStream<Connection>> {
        Pin::new(self.stream.as_mut().expect("the stream is taken only by drop"))
    }

    fn inner(&self) -> &Connection {
        self.stream.as_ref().expect("the stream is taken only by drop").get_ref().0
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        if !self.whole.load(Relaxed) {
            return;
        }
        stream.get_mut().1.send_close_notify();
        let sent = Pin::new(&mut stream).poll_flush(&mut Context::from_waker(Waker::noop()));
        if sent.is_pending()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                // Whether it is taken or not, it is closed then.
                let _ = tokio::time::timeout(ALERT, stream.flush()).await;
            });
        }
    }
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").field("connection", self.inner()).finish_non_exhaustive()
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Secured {
    async fn shutdown(&mut self) {
        // The connection is given up either way.
        let _ = AsyncWriteExt::shutdown(&mut self.stream()).await;
    }
}

impl UniqueID for Secured {
    fn id(&self) -> UniqueIDType {
        self.inner().id()
    }
}

impl Ssl for Secured {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        Some(Arc::clone(&self.digest))
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        let (_, session) = self.stream.as_ref()?.get_ref();
        Some(if session.alpn_protocol() == Some(b"h2") { ALPN::H2 } else { ALPN::H1 })
    }
}

#[async_trait]
impl Peek for Secured {}

impl GetTimingDigest for Secured {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Secured {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Secured {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner().get_socket_digest()
    }
}
