//! TLS probes: a handshake completes, and the certificate's time is not over.
//!
//! What a probe of `kind = "tls"` does not say is whom the certificate belongs to: neither the chain nor the name is verified, as nothing tells which roots to
//! trust. (An HTTP probe of a service with `upstream.tls` shakes hands as its requests do, and verifies what they verify.) The server does prove that it
//! has the key of the certificate that it shows, as in every handshake.
//!
//! Sessions are never resumed: a resumed one shows no certificate.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig};
use x509_parser::parse_x509_certificate;

use super::{Bounded, Learned, Target, bare, words};
use crate::config::tls::{Anybody, UpstreamTls};
use crate::steering::fleet::Protocol;
use crate::text::day;

/// What TLS probes have in common. Cheap to clone.
#[derive(Clone)]
pub(super) struct Prober {
    connector: TlsConnector,
}

impl Prober {
    pub(super) fn new() -> Prober {
        let provider = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Prober { connector: TlsConnector::from(Arc::new(config)) }
    }

    /// Shakes hands as a client that asks for `host`, or for the endpoint's own name.
    pub(super) async fn handshake(
        &self,
        stream: Bounded,
        target: &Target,
        host: &str,
        learned: &mut Learned,
    ) -> Result<(), String> {
        let name = server_name(if host.is_empty() { &target.name } else { host })?;
        let mut stream = self.connector.connect(name, stream).await.map_err(|error| broken(&error))?;
        let certificates = stream.get_ref().1.peer_certificates();
        let verdict = match certificates.and_then(<[_]>::first) {
            Some(leaf) => in_time(leaf, now(), learned),
            None => Err("no certificate".to_owned()),
        };
        // A server that logs how connections end shall have nothing to complain of; it was found out all the same.
        let _ = stream.shutdown().await;
        verdict
    }
}

/// Shakes hands as requests to that endpoint do, unless it does not speak HTTP/2 at the port that is probed and HTTP/1.1 instead.
pub(super) async fn within(
    secured: &UpstreamTls,
    stream: Bounded,
    target: &Target,
    learned: &mut Learned,
) -> Result<TlsStream<Bounded>, String> {
    let name =
        secured.name_of(&target.name).ok_or_else(|| format!("{} is not a name that TLS can ask for", target.name))?;
    let mut config = Arc::clone(&secured.config);
    if target.protocol == Protocol::H2 {
        Arc::make_mut(&mut config).alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| broken(&error))?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    learned.certificate =
        leaf.and_then(|leaf| Some(parse_x509_certificate(leaf).ok()?.1.validity().not_after.timestamp()));
    Ok(stream)
}

/// The name to ask for. For an address nothing is sent.
fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    match bare(host) {
        Ok(ip) => Ok(ServerName::IpAddress(ip.into())),
        Err(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
            .map_err(|_| format!("{name} is not a name that TLS can ask for")),
    }
}

/// Whether the certificate's time has come and is not over.
fn in_time(certificate: &[u8], now: i64, learned: &mut Learned) -> Result<(), String> {
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else {
        return Err("a certificate that is not X.509".to_owned());
    };
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    learned.certificate = Some(until);
    if now > until {
        Err(format!("certificate expired on {}", day(until)))
    } else if now < from {
        Err(format!("certificate not valid before {}", day(from)))
    } else {
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "a shell: certificates end by the calendar")]
fn now() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}

fn broken(error: &std::io::Error) -> String {
    let tls = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidMessage(_)) => "an answer that is not TLS".to_owned(),
        Some(tls) => format!("TLS handshake: {tls}"),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "connection closed before the end of the TLS handshake".to_owned()
        }
        None => format!("connection {}", words(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::{once, target_of};
    use crate::steering::fleet::Probe;
    use proptest::prelude::*;
    use std::net::SocketAddr;
    use tokio::net::TcpListener;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio_rustls::{LazyConfigAcceptor, rustls::server::Acceptor};

    /// A self-signed certificate for nobody in particular, valid from one year to another.
    fn certificate(from: i32, until: i32) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["nobody.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.der().clone(), key.serialize_der().into())
    }

    /// A TLS server with that certificate; returns also the names that clients asked it for.
    async fn server(from: i32, until: i32) -> (SocketAddr, tokio::sync::mpsc::Receiver<Option<String>>) {
        let (certificate, key) = certificate(from, until);
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.into())
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (names, received) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(hello) = LazyConfigAcceptor::new(Acceptor::default(), stream).await else { continue };
                let name = hello.client_hello().server_name().map(str::to_owned);
                let _ = names.send(name).await;
                let _ = hello.into_stream(Arc::clone(&config)).await;
            }
        });
        (address, received)
    }

    fn target(address: SocketAddr, name: &str, host: &str) -> Target {
        let mut target = target_of(address, Probe::Tls { host: host.to_owned() });
        target.name = name.into();
        // Keys are made and used without optimisation, on machines that do other things as well.
        target.policy.timeout = std::time::Duration::from_secs(20);
        target
    }

    #[tokio::test]
    async fn a_handshake_passes_while_the_certificate_does() {
        let rows = [
            (2020, 2200, Ok(()), 7_258_118_400),
            (2020, 2021, Err("certificate expired on 2021-01-01"), 1_609_459_200),
            (2199, 2200, Err("certificate not valid before 2199-01-01"), 7_258_118_400),
        ];
        for (from, until, want, expiry) in rows {
            let (address, _names) = server(from, until).await;
            let (result, learned) = once(&target(address, "origin.example:443", "")).await;
            assert_eq!((result, learned.certificate), (want.map_err(str::to_owned), Some(expiry)));
        }
    }

    #[tokio::test]
    async fn the_name_asked_for_is_the_configured_one() {
        let (address, mut names) = server(2020, 2200).await;
        for (name, host, want) in [
            ("origin.example:443", "", Some("origin.example")),
            ("origin.example:443", "www.example:8443", Some("www.example")),
            ("10.0.0.1:443", "www.example", Some("www.example")),
            ("10.0.0.1:443", "", None),
            ("[2001:db8::1]:443", "", None),
            ("origin.example:443", "[2001:db8::1]", None),
        ] {
            once(&target(address, name, host)).await.0.unwrap();
            assert_eq!(names.recv().await.unwrap().as_deref(), want, "{name} {host}");
        }
    }

    #[tokio::test]
    async fn what_is_not_tls_fails() {
        for (answer, want) in [
            ("HTTP/1.1 400 Bad Request\r\n\r\n", "an answer that is not TLS"),
            ("", "connection closed before the end of the TLS handshake"),
            // A fatal alert: handshake_failure.
            ("\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}", "TLS handshake: received fatal alert: HandshakeFailure"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let answering = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                // What the client sent is taken first: otherwise it would see a reset.
                let mut hello = [0; 4096];
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut hello).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let target = target(address, "origin.example:443", "");
            let ((result, learned), ()) = tokio::join!(once(&target), answering);
            assert_eq!((result, learned.certificate), (Err(want.to_owned()), None));
        }
    }

    proptest! {
        #[test]
        fn no_certificate_breaks_the_reader(
            garbage in prop::collection::vec(any::<u8>(), 0..64),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            static REAL: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let real = REAL.get_or_init(|| certificate(2020, 2200).0.to_vec());
            let mut learned = Learned::default();
            prop_assert!(in_time(&garbage, 0, &mut learned).is_err());
            let mut changed = real.clone();
            changed[at.index(real.len())] = byte;
            let _ = in_time(&changed, 1_700_000_000, &mut learned);
            let _ = in_time(&real[..at.index(real.len())], 0, &mut learned);
        }
    }
}
