//! TLS of listeners as compiled: certificates with their keys, and who may be a client.
//!
//! Everything that a handshake could fail at for a mistake of ours is found out before: keys fit their certificates, authorities can be verified
//! against. Which certificate a client gets is decided here, as a function of the name that it asks for; no handshake happens here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::config::Listen;
use crate::steering::route::comparable;

/// Which listener: reloads know it again by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId {
    /// As written: port 0 stays 0.
    pub address: SocketAddr,
    /// How many listeners with the same address stand before it: more than none only with port 0.
    pub nth: usize,
}

impl ListenerId {
    /// Of the listener with that address which comes after these.
    pub fn after(before: &[Listen], address: SocketAddr) -> ListenerId {
        ListenerId { address, nth: before.iter().filter(|listen| listen.address == address).count() }
    }
}

/// `[[listen]] tls`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// At least one, once the loader has put a placeholder where one is still to come. The first one's names are what a client gets that names no server, or one that
    /// none is for.
    pub certificates: Vec<Arc<Certificate>>,
    /// `acme`.
    pub ordered: Option<Arc<Ordered>>,
    /// `client_ca`: clients must have a certificate that one of these authorities signed.
    pub client_ca: Option<ClientCa>,
    /// `min_version = "1.3"`.
    pub only_tls13: bool,
}

/// `acme` of a listener's `tls`: a certificate that is ordered from an authority.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordered {
    /// The names that it is to be for, in lower case; at least one.
    pub names: Vec<String>,
    /// Where it is kept: key and chain.
    pub file: PathBuf,
    /// What is there, if it can be used: of that file, or of one that was ordered for other names of which these are some. It may be for some of the names only; it is served all the same
    /// until a better one comes.
    pub kept: Option<Arc<Certificate>>,
}

/// A certificate with its chain and its key.
pub struct Certificate {
    /// Where it came from.
    pub file: PathBuf,
    /// The DNS names that it is for, in lower case; a wildcard as `*.example.com`.
    pub names: Vec<String>,
    /// The addresses that it is for.
    pub addresses: Vec<IpAddr>,
    /// From when to when it is valid, in Unix seconds.
    pub valid: (i64, i64),
    /// Nobody signed it: it is served until the one that is ordered comes, and `valid` says nothing.
    pub placeholder: bool,
    /// Chain and key. Its `Debug` does not show the key.
    pub key: Arc<CertifiedKey>,
}

/// The authorities that sign clients' certificates.
#[derive(Clone)]
pub struct ClientCa {
    /// Where they came from.
    pub file: PathBuf,
    /// They themselves.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Looks whether they signed a client's.
    pub verifier: Arc<dyn ClientCertVerifier>,
}

/// `services.*.upstream.tls`: TLS to endpoints.
#[derive(Clone)]
pub struct UpstreamTls {
    /// Of everything that is written of it and in its files: connections made by another one are not used any more. Never 0.
    pub fingerprint: u64,
    /// `sni`: the name that is asked for and verified, instead of the endpoint's own.
    pub name: Option<ServerName<'static>>,
    /// Whom it trusts, and who we are.
    pub config: Arc<ClientConfig>,
}

impl UpstreamTls {
    /// The name that the certificate of an endpoint (`host:port`, as configured) has to be for; it is asked for, too, unless it is an address.
    pub fn name_of(&self, endpoint: &str) -> Option<ServerName<'static>> {
        if let Some(name) = &self.name {
            return Some(name.clone());
        }
        let (host, _) = endpoint.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        ServerName::try_from(bare.trim_end_matches('.').to_owned()).ok()
    }
}

impl PartialEq for UpstreamTls {
    fn eq(&self, other: &UpstreamTls) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamTls").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Takes every server's certificate, whoever it names and whoever signed it. The server proves all the same that it has the key.
#[derive(Debug)]
pub struct Anybody(pub Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl Tls {
    /// The certificates for a client that asks for `name`, in lower case and without a dot at its end: those for exactly that name, else those with the wildcard
    /// that covers it, else a placeholder for it, else the first one and others for the same names. More than one are of several kinds of key, or one of them is ordered and
    /// another is not. Never empty.
    pub fn certificates_for(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<Certificate>> {
        let (exact, wildcard) = (name.map(str::to_owned), name.and_then(wildcard_of));
        let among = |placeholder| {
            let is_one = |certificate: &Arc<Certificate>, name: &str| {
                certificate.placeholder == placeholder && certificate.is_named(name)
            };
            let has = |name: &&String| self.certificates.iter().any(|certificate| is_one(certificate, name));
            exact.iter().chain(&wildcard).find(has).map(|name| (name.clone(), placeholder))
        };
        let found = among(false).or_else(|| among(true));
        let first = self.certificates.first();
        self.certificates.iter().filter(move |certificate| match &found {
            Some((name, placeholder)) => certificate.placeholder == *placeholder && certificate.is_named(name),
            None => first.is_some_and(|first| {
                first.names == certificate.names
                    && first.addresses == certificate.addresses
                    && first.placeholder == certificate.placeholder
            }),
        })
    }

    /// The one of [`Tls::certificates_for`] that a client gets which `fits` it: the first that is valid `now`, in Unix seconds, else the first.
    pub fn certificate_for(
        &self,
        name: Option<&str>,
        now: i64,
        fits: impl Fn(&Certificate) -> bool,
    ) -> Option<&Arc<Certificate>> {
        let mut fitting = self.certificates_for(name).filter(|certificate| fits(certificate)).peekable();
        let first = fitting.peek().copied();
        fitting.find(|certificate| certificate.is_valid_at(now)).or(first)
    }
}

/// `*.example.com` of `www.example.com`.
fn wildcard_of(name: &str) -> Option<String> {
    let (first, rest) = name.split_once('.')?;
    (!first.is_empty()).then(|| format!("*.{rest}"))
}

impl Ordered {
    /// Whether that certificate is for all the names.
    pub fn is_covered_by(&self, certificate: &Certificate) -> bool {
        self.names.iter().all(|name| certificate.is_for(name))
    }
}

impl Certificate {
    /// Of what a file holds; `None`: its first certificate is no X.509.
    pub(crate) fn of(file: PathBuf, certified: CertifiedKey) -> Option<Certificate> {
        let (_, leaf) = parse_x509_certificate(certified.cert.first()?).ok()?;
        let (mut names, mut addresses) = (Vec::new(), Vec::new());
        let alternative = leaf.subject_alternative_name().ok().flatten();
        for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => names.push(name.trim_end_matches('.').to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    addresses.extend(v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)));
                }
                _ => {}
            }
        }
        let valid = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        Some(Certificate { file, names, addresses, valid, placeholder: false, key: Arc::new(certified) })
    }

    /// Of one PEM text with chain and key, as ordered certificates are kept. An error says why not, and quotes nothing of it.
    pub fn from_pem(file: PathBuf, pem: &str) -> Result<Certificate, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let chain = chain.map_err(|_| "it is not good PEM")?;
        if chain.is_empty() {
            return Err("it holds no certificate".to_owned());
        }
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| "it holds no private key")?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
        let certified = certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => "its key is another certificate's".to_owned(),
            error => error.to_string(),
        })?;
        Certificate::of(file, certified).ok_or_else(|| "it holds no X.509 certificate".to_owned())
    }

    fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// Whether it has begun and has not ended, at that time in Unix seconds.
    pub fn is_valid_at(&self, now: i64) -> bool {
        (self.valid.0..=self.valid.1).contains(&now)
    }

    /// Whether it is for the host of a Host field's value.
    pub fn is_for(&self, host: &str) -> bool {
        let Some(host) = comparable(host) else { return false };
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        match bare.parse::<IpAddr>() {
            Ok(address) => self.addresses.contains(&address),
            Err(_) => self.is_named(&host) || wildcard_of(&host).is_some_and(|wildcard| self.is_named(&wildcard)),
        }
    }
}

impl PartialEq for Certificate {
    /// A certificate names its key.
    fn eq(&self, other: &Certificate) -> bool {
        self.file == other.file && self.key.cert == other.key.cert
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("file", &self.file).field("names", &self.names).finish_non_exhaustive()
    }
}

impl PartialEq for ClientCa {
    fn eq(&self, other: &ClientCa) -> bool {
        self.file == other.file && self.certificates == other.certificates
    }
}

impl fmt::Debug for ClientCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCa").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::ring::sign::any_ecdsa_type;
    use rustls::pki_types::PrivatePkcs8KeyDer;

    fn certificate(file: &str, names: &[&str], addresses: &[&str]) -> Arc<Certificate> {
        let key = rcgen::KeyPair::generate().unwrap();
        let key = any_ecdsa_type(&PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap();
        Arc::new(Certificate {
            file: file.into(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            valid: (0, 0),
            placeholder: false,
            key: Arc::new(CertifiedKey::new(Vec::new(), key)),
        })
    }

    #[test]
    fn exact_names_go_before_wildcards_and_those_before_the_first() {
        let certificates = vec![
            certificate("first", &["a.test"], &["192.0.2.1"]),
            certificate("wild", &["*.b.test"], &[]),
            certificate("exact", &["www.b.test"], &[]),
            certificate("first again", &["a.test"], &["192.0.2.1"]),
        ];
        let tls = Tls { certificates, ordered: None, client_ca: None, only_tls13: false };
        let rows: &[(Option<&str>, &[&str])] = &[
            (None, &["first", "first again"]),
            (Some("a.test"), &["first", "first again"]),
            (Some("www.b.test"), &["exact"]),
            (Some("other.b.test"), &["wild"]),
            (Some("x.other.b.test"), &["first", "first again"]),
            (Some("b.test"), &["first", "first again"]),
            (Some("*.b.test"), &["wild"]),
        ];
        for (name, expected) in rows {
            let files: Vec<_> =
                tls.certificates_for(*name).map(|certificate| certificate.file.to_str().unwrap()).collect();
            assert_eq!(&files, expected, "{name:?}");
        }
    }

    /// The same, with other words about it.
    fn but(certificate: Arc<Certificate>, valid: (i64, i64), placeholder: bool) -> Arc<Certificate> {
        let Certificate { file, names, addresses, key, .. } = Arc::into_inner(certificate).unwrap();
        Arc::new(Certificate { file, names, addresses, valid, placeholder, key })
    }

    #[test]
    fn a_placeholder_is_for_whom_nothing_else_is_for() {
        let placeholder = but(certificate("placeholder", &["www.b.test", "c.test"], &[]), (0, 0), true);
        let wild = certificate("wild", &["*.b.test"], &[]);
        let certificates = vec![wild, Arc::clone(&placeholder)];
        let tls = Tls { certificates, ordered: None, client_ca: None, only_tls13: false };
        let alone = Tls { certificates: vec![placeholder], ..tls.clone() };
        let rows =
            [(Some("www.b.test"), "wild"), (Some("c.test"), "placeholder"), (Some("d.test"), "wild"), (None, "wild")];
        for (name, expected) in rows {
            let files: Vec<_> = tls.certificates_for(name).map(|one| one.file.to_str().unwrap()).collect();
            assert_eq!(files, [expected], "{name:?}");
            assert_eq!(alone.certificates_for(name).count(), 1, "{name:?}");
        }
    }

    #[test]
    fn of_several_for_a_name_one_that_has_not_ended_is_shown() {
        let one = |file, valid| but(certificate(file, &["a.test"], &[]), valid, false);
        let certificates = vec![one("written", (10, 20)), one("ordered", (15, 40))];
        let tls = Tls { certificates, ordered: None, client_ca: None, only_tls13: false };
        for (now, expected) in
            [(5, "written"), (10, "written"), (17, "written"), (20, "written"), (21, "ordered"), (41, "written")]
        {
            let shown = tls.certificate_for(Some("a.test"), now, |_| true).unwrap();
            assert_eq!(shown.file.to_str(), Some(expected), "{now}");
        }
        let fits = |certificate: &Certificate| certificate.file.to_str() == Some("written");
        assert_eq!(tls.certificate_for(Some("a.test"), 30, fits).unwrap().file.to_str(), Some("written"));
        assert!(tls.certificate_for(Some("a.test"), 30, |_| false).is_none());
    }

    #[test]
    fn a_certificate_is_for_its_hosts_however_they_are_written() {
        let certificate = certificate("", &["a.test", "*.b.test"], &["192.0.2.1", "2001:db8::1"]);
        let rows = [
            ("a.test", true),
            ("A.test.", true),
            ("a.test:8443", true),
            ("x.b.test:443", true),
            ("b.test", false),
            ("x.y.b.test", false),
            ("192.0.2.1:443", true),
            ("192.0.2.2", false),
            ("[2001:db8::1]", true),
            ("[2001:DB8:0::1]:443", true),
            ("[2001:db8::2]", false),
            ("", false),
            ("xa.test", false),
            (".b.test", false),
        ];
        for (host, expected) in rows {
            assert_eq!(certificate.is_for(host), expected, "{host}");
        }
    }
}
