//! TLS on a listener: the handshake, by the certificates in force when a connection comes.
//!
//! What is in force is looked at for each connection; a reload costs one new configuration of the library's, made by the first connection after
//! it. A listener that a reload no longer knows keeps what it had: it goes with the process. Tickets outlive reloads, and there are none
//! where clients must have certificates: a resumed session looks at nobody's. No early data: a request in it could be played again.
//!
//! While answers to ACME's challenges are pending, a handshake's first message is looked at before it goes on: who speaks nothing but `acme-tls/1` is
//! shown the answer for the name that it asks for, and no more.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection, version};
use tokio::io::AsyncWriteExt;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsAcceptor};

use super::before::Refused;
use super::connection::Connection;
use super::secured::Secured;
use crate::acme::challenge::Challenges;
use crate::config::Edge;
use crate::config::tls::{Certificate, ListenerId, Tls};
use crate::telemetry::Metrics;

/// What we speak above TLS.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// What authorities speak that look whether a name is ours (RFC 8737).
const CHALLENGE: &[u8] = b"acme-tls/1";

/// Bytes of plain text that wait to be sent, at most: one record.
const BUFFER: usize = 16 << 10;

/// What who speaks plain HTTP here is told.
const NOT_TLS: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 42\r\nConnection: close\r\n\r\n\
    400 bad request: this port speaks TLS only";

/// The handshakes of one listener.
pub struct Acceptor {
    listener: ListenerId,
    http2: bool,
    /// `None`: there is no randomness for them.
    tickets: Option<Arc<dyn ProducesTickets>>,
    challenges: Challenges,
    current: ArcSwapOption<Current>,
}

struct Current {
    tls: Arc<Tls>,
    config: Arc<ServerConfig>,
}

impl Acceptor {
    /// For that listener, which [`Edge`] knows. `http2`: clients may speak it.
    pub fn new(listener: ListenerId, http2: bool, challenges: Challenges) -> Acceptor {
        let tickets = ring::Ticketer::new();
        if let Err(error) = &tickets {
            tracing::warn!(%error, "no TLS session can be resumed");
        }
        Acceptor { listener, http2, tickets: tickets.ok(), challenges, current: ArcSwapOption::empty() }
    }

    /// What is in force.
    fn current(&self, edge: &Edge) -> Option<Arc<Current>> {
        let current = self.current.load_full();
        let Some(wanted) = edge.tls(self.listener) else { return current };
        if let Some(current) = current {
            if Arc::ptr_eq(&current.tls, wanted) {
                return Some(current);
            }
            if current.tls == *wanted {
                // Looked at by its address from now on.
                let same = Arc::new(Current { tls: Arc::clone(wanted), config: Arc::clone(&current.config) });
                self.current.store(Some(Arc::clone(&same)));
                return Some(same);
            }
        }
        let new = Arc::new(Current { tls: Arc::clone(wanted), config: Arc::new(self.config(wanted)) });
        self.current.store(Some(Arc::clone(&new)));
        Some(new)
    }

    fn config(&self, tls: &Arc<Tls>) -> ServerConfig {
        let versions: &[_] = if tls.only_tls13 { &[&version::TLS13] } else { &[&version::TLS13, &version::TLS12] };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("the provider has cipher suites for TLS 1.2 and 1.3");
        let builder = match &tls.client_ca {
            Some(authorities) => builder.with_client_cert_verifier(Arc::clone(&authorities.verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName(Arc::clone(tls))));
        let protocols = &PROTOCOLS[usize::from(!self.http2)..];
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if let (Some(tickets), None) = (&self.tickets, &tls.client_ca) {
            config.ticketer = Arc::clone(tickets);
        }
        config
    }

    /// Shakes hands.
    pub(super) async fn accept(
        &self,
        mut connection: Connection,
        edge: &Edge,
        metrics: &Metrics,
    ) -> Result<Secured, Refused> {
        match connection.peek().await {
            // A handshake record.
            Some(0x16) => {}
            Some(byte) if byte.is_ascii_alphabetic() => {
                // It will be closed whether or not it takes this.
                let _ = connection.write_all(NOT_TLS.as_bytes()).await;
                return Err(Refused::NotTls);
            }
            Some(_) => return Err(Refused::NotTls),
            None => return Err(Refused::Gone),
        }
        let Some(current) = self.current(edge) else { return Err(Refused::Handshake) };
        let config = Arc::clone(&current.config);
        let bounded = |session: &mut ServerConnection| session.set_buffer_limit(Some(BUFFER));
        let stream = if self.challenges.any() {
            self.unless_challenged(connection).await?.into_stream_with(config, bounded).await
        } else {
            TlsAcceptor::from(config).accept_with(connection, bounded).await
        };
        let stream = stream.map_err(failed)?;
        let session = stream.get_ref().1;
        let version = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            _ => "1.2",
        };
        metrics.handshake(version, session.handshake_kind() == Some(HandshakeKind::Resumed));
        let certificates = match &current.tls.client_ca {
            Some(_) => current.tls.certificates_for(session.server_name()).cloned().collect(),
            None => Vec::new(),
        };
        Ok(Secured::new(stream, version, certificates))
    }
}

impl Acceptor {
    /// The handshake to go on with, whose first message came, unless it was an authority's, which was answered.
    async fn unless_challenged(&self, connection: Connection) -> Result<StartHandshake<Connection>, Refused> {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), connection).await.map_err(failed)?;
        let hello = start.client_hello();
        let is_challenge =
            hello.alpn().is_some_and(|mut spoken| spoken.next() == Some(CHALLENGE) && spoken.next().is_none());
        let Some(key) = hello.server_name().filter(|_| is_challenge).and_then(|name| self.challenges.handshake(name))
        else {
            return Ok(start);
        };
        tracing::debug!(name = hello.server_name(), "an authority asks whether the name is ours");
        let mut stream = start.into_stream(Arc::new(answering(key))).await.map_err(failed)?;
        // It has seen what it wanted to; whether it takes the alert is its business.
        let _ = stream.shutdown().await;
        Err(Refused::Challenge)
    }
}

/// What answers a challenge. Nobody needs a certificate for it, whatever the listener wants of clients.
fn answering(key: Arc<CertifiedKey>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites for TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![CHALLENGE.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

fn failed(error: std::io::Error) -> Refused {
    tracing::debug!(%error, "a TLS handshake failed");
    Refused::Handshake
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ring::default_provider())))
}

/// Chooses by the name that is asked for, and among several for it the first whose key the client can verify and that has not ended.
#[derive(Debug)]
struct ByName(Arc<Tls>);

impl ResolvesServerCert for ByName {
    #[expect(clippy::disallowed_methods, reason = "a shell: certificates end by the calendar")]
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let fits = |certificate: &Certificate| certificate.key.key.choose_scheme(schemes).is_some();
        let found = self.0.certificate_for(hello.server_name(), now, fits);
        found.map(|certificate| Arc::clone(&certificate.key))
    }
}
