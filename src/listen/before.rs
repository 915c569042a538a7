//! What stands before HTTP on a connection, under one deadline: the PROXY header, then the TLS handshake.
//!
//! It happens in the connection's own task, so that one who is slow at it holds nobody else up; who is not done when `[limits] handshake_timeout`
//! ends, or a moment after the process began to drain, is closed. Nothing is answered but HTTP on a port for TLS: whoever is refused here did not say what it speaks.

use std::net::SocketAddr;
use std::time::Duration;

use pingora::protocols::Stream;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::connection::Connection;
use super::drain::{Drain, Guard};
use super::networks::{Excess, Networks};
use super::tls::Acceptor;
use crate::config::Edge;
use crate::geo::Canonical;
use crate::proxy_protocol::{self, Malformed};
use crate::telemetry::Metrics;

/// How long after it was accepted a connection may be at this although the process drains: its client could not know.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// What is asked of connections to a listener before they are HTTP.
#[derive(Default)]
pub struct Before {
    /// `[[listen]] proxy_protocol = "required"`.
    pub proxy_protocol: bool,
    /// `[[listen]] tls`.
    pub tls: Option<Acceptor>,
}

/// Why a connection did not become HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its peer is not trusted to say whose connection it is.
    Untrusted,
    /// It did not begin with a PROXY header.
    ProxyHeader,
    /// What came was no TLS.
    NotTls,
    /// The TLS handshake failed.
    Handshake,
    /// It was an authority's question whether a name is ours, and was answered.
    Challenge,
    /// It took too long.
    TooLate,
    /// Its client's network has as many as it may, or makes them too quickly.
    Excess(Excess),
    /// It ended, or the process does.
    Gone,
}

impl Refused {
    /// As the metric says it; `None`: nobody is to blame.
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Refused::Untrusted => Some("untrusted_peer"),
            Refused::ProxyHeader => Some("proxy_header"),
            Refused::NotTls => Some("not_tls"),
            Refused::Handshake => Some("tls"),
            Refused::TooLate => Some("handshake_timeout"),
            Refused::Excess(excess) => Some(excess.reason()),
            Refused::Challenge | Refused::Gone => None,
        }
    }
}

impl Before {
    /// Whether connections are HTTP from the first byte.
    pub(super) fn is_nothing(&self) -> bool {
        !self.proxy_protocol && self.tls.is_none()
    }

    /// From an accepted socket to a stream that HTTP can begin on, and whose it is.
    pub(super) async fn establish(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        guard: Guard,
        edge: &Edge,
        (drain, networks): (&Drain, &Networks),
        metrics: &Metrics,
    ) -> Result<(Stream, SocketAddr), Refused> {
        // Made now: both are counted from here.
        let (too_late, first_word) = (sleep(edge.limits.handshake_timeout), sleep(FIRST_WORD));
        let drained = async {
            drain.begun().await;
            first_word.await;
        };
        tokio::select! {
            biased;
            done = self.work(tcp, peer, guard, edge, networks, metrics) => done,
            () = too_late => Err(Refused::TooLate),
            () = drained => Err(Refused::Gone),
        }
    }

    async fn work(
        &self,
        mut tcp: TcpStream,
        mut peer: SocketAddr,
        mut guard: Guard,
        edge: &Edge,
        networks: &Networks,
        metrics: &Metrics,
    ) -> Result<(Stream, SocketAddr), Refused> {
        if self.proxy_protocol {
            if !edge.trusts(peer.ip().to_canonical()) {
                return Err(Refused::Untrusted);
            }
            peer = proxy_header(&mut tcp).await?.unwrap_or(peer);
            guard.of(networks.enter(Canonical::new(peer.ip()), edge).map_err(Refused::Excess)?);
        }
        let connection = Connection::new(tcp, peer, guard);
        match &self.tls {
            None => Ok((Box::new(connection), peer)),
            Some(tls) => Ok((Box::new(tls.accept(connection, edge, metrics).await?), peer)),
        }
    }
}

/// Takes the header off the front of the stream, and nothing that follows it: what follows is read by those who know what it is. `None`: the peer
/// speaks for itself.
async fn proxy_header(tcp: &mut TcpStream) -> Result<Option<SocketAddr>, Refused> {
    let (mut read, mut room) = (Vec::new(), [0; 256]);
    loop {
        let seen = tcp.peek(&mut room).await.map_err(|_| Refused::Gone)?;
        if seen == 0 {
            return Err(if read.is_empty() { Refused::Gone } else { Refused::ProxyHeader });
        }
        let before = read.len();
        read.extend_from_slice(&room[..seen]);
        let header = proxy_protocol::read(&read).map_err(|Malformed| Refused::ProxyHeader)?;
        // All that was seen belongs to a header that goes on.
        let taken = header.map_or(seen, |header| header.length - before);
        tcp.read_exact(&mut room[..taken]).await.map_err(|_| Refused::Gone)?;
        if let Some(header) = header {
            return Ok(header.source);
        }
    }
}
