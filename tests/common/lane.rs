//! The shortest way through the engine: one client that asks again as soon as it is answered, and an upstream that answers as soon as it is
//! asked, both without a system call or an allocation. For what the engine itself costs.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use meridian::config::AccessLog;
use meridian::proxy::engine::{Connect, Destination, Downstream, Mover, Served, Side};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::pipes::World;

pub const CONFIG: &str = "[regions.a]\n[regions.b]\n[client_ip]\ntrusted = [\"192.0.2.0/24\"]\n\
    [services.web.health]\nkind = \"none\"\n\
    [services.web.pools.a]\nendpoints = [\"192.0.2.1:80\"]\n[services.web.pools.b]\nendpoints = [\"192.0.2.2:80\"]\n";

/// A request as browsers and load balancers send it, and an answer as origins do.
pub const REQUEST: &[u8] =
    b"GET /some/where?a=b HTTP/1.1\r\nHost: www.example\r\nUser-Agent: lane/1\r\nAccept: */*\r\n\
    Accept-Encoding: gzip, br\r\nConnection: keep-alive\r\nX-Forwarded-For: 198.51.100.7\r\n\r\n";
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";

/// The engine with its world.
pub struct Lane {
    mover: Mover<Origin>,
    _world: World,
}

impl Lane {
    /// Only on a runtime.
    pub fn new() -> Lane {
        let world = World::of(CONFIG, &AccessLog::Off);
        Lane { mover: world.mover(Origin), _world: world }
    }

    /// So many requests on one connection, one after the other. Returns the bytes that the client got.
    pub async fn ask(&self, requests: usize) -> usize {
        let got = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let client = Client { left: requests, may_ask: true, got: Arc::clone(&got) };
        let (_keep, draining) = watch::channel(false);
        let peer = Some(SocketAddr::from(([192, 0, 2, 77], 4711)));
        let served =
            self.mover.serve(client, Downstream { peer, scheme: "http", http2: false, bound: &[] }, &draining).await;
        assert!(matches!(served, Served::Closed));
        got.load(std::sync::atomic::Ordering::Relaxed)
    }
}

struct Client {
    left: usize,
    may_ask: bool,
    got: Arc<std::sync::atomic::AtomicUsize>,
}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.may_ask {
            // It waits for its answer, which the same poll brings.
            return Poll::Pending;
        }
        if self.left > 0 {
            self.left -= 1;
            self.may_ask = false;
            buf.put_slice(REQUEST);
        }
        Poll::Ready(Ok(()))
    }
}

impl Side for Client {}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        assert!(buf.starts_with(b"HTTP/1.1 200 OK\r\n") && buf.ends_with(b"Hello, world!"), "an answer in one write");
        self.got.fetch_add(buf.len(), std::sync::atomic::Ordering::Relaxed);
        self.may_ask = true;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Origin;

impl Connect for Origin {
    type Stream = Upstream;

    async fn connect(&self, _: Destination) -> io::Result<Upstream> {
        Ok(Upstream { asked: false })
    }
}

struct Upstream {
    asked: bool,
}

impl AsyncRead for Upstream {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !std::mem::take(&mut self.asked) {
            return Poll::Pending;
        }
        buf.put_slice(ANSWER);
        Poll::Ready(Ok(()))
    }
}

impl Side for Upstream {}

impl AsyncWrite for Upstream {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        assert!(
            buf.starts_with(b"GET /some/where?a=b HTTP/1.1\r\n") && buf.ends_with(b"\r\n\r\n"),
            "a request in one write"
        );
        self.asked = true;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
