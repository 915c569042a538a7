//! `tls` of a `[[listen]]` and of a service's `upstream`: the files they name, read and tried.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use x509_parser::parse_x509_certificate;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::compile::Context;
use crate::config::compile::acme::Orders;
use crate::config::reader::{Section, Text};
use crate::config::scribe::Place;
use crate::config::tls::{Anybody, Certificate, ClientCa, Tls, UpstreamTls};
use crate::steering::fleet::Protocol;

const HINT: &str = "write `tls = { certificates = [{ cert = \"site.pem\", key = \"site.key\" }] }`";

/// `None`: the listener is plain, or what is written cannot be used, which was reported.
pub(super) fn tls(listen: &Section<'_>, orders: &mut Orders, context: &Context<'_>) -> Option<Tls> {
    let section = listen.table("tls");
    if !section.is_present() {
        return None;
    }
    let orders_one = section.has("acme");
    if !orders_one && (!section.has("certificates") || super::is_empty_list(&section, "certificates")) {
        section.missing("`certificates` of this listener's `tls`", HINT);
    }
    let mut certificates: Vec<Arc<Certificate>> = Vec::new();
    for entry in section.tables("certificates") {
        if let Some(certificate) = certificate(&entry, context) {
            let is_same = |other: &Arc<Certificate>| {
                other.names == certificate.names
                    && other.addresses == certificate.addresses
                    && other.key.key.algorithm() == certificate.key.key.algorithm()
            };
            if certificates.iter().any(is_same) {
                section.scribe.warning(
                    entry.place,
                    "no client ever gets this certificate: one above has the same names and the same kind of key",
                );
            }
            certificates.push(Arc::new(certificate));
        }
        entry.finish();
    }
    // After those that are written, so that it is not the one for clients that name no host unless there is no other.
    let ordered = orders.of(&section, context);
    certificates.extend(ordered.as_ref().and_then(|ordered| ordered.kept.clone()));
    let client_ca = section.text("client_ca").and_then(|text| client_ca(text, context));
    let only_tls13 = section.choice("min_version", false, &[("1.2", false), ("1.3", true)]);
    section.finish();
    let is_any = !certificates.is_empty() || ordered.is_some();
    is_any.then_some(Tls { certificates, ordered, client_ca, only_tls13 })
}

fn certificate(section: &Section<'_>, context: &Context<'_>) -> Option<Certificate> {
    let required = |key, hint| {
        let text = section.text(key);
        if text.is_none() && !section.has(key) {
            section.missing(&format!("`{key}` of this certificate"), hint);
        }
        text
    };
    let cert = required("cert", "name the PEM file with the certificate and its chain: `cert = \"site.pem\"`");
    let key = required("key", "name the PEM file with the private key: `key = \"site.key\"`");
    let (cert, key) = (cert?, key?);
    let certified = certified(cert, key, context)?;
    let scribe = context.scribe;
    let certificate = Certificate::of(context.path(cert), certified)?;
    if certificate.names.is_empty() && certificate.addresses.is_empty() {
        scribe
            .warning(
                cert.place,
                format!("the certificate in `{}` names no host, so no client will trust it", shown(cert)),
            )
            .hint("its names must stand in `subjectAltName`; browsers do not look at the common name");
    }
    Some(certificate)
}

/// Where systems keep the authorities that everybody trusts: Debian and its kin, Fedora and its kin, Alpine.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// `upstream.tls`. `None`: it is not there, or cannot be used, which was reported.
pub(super) fn upstream(upstream: &Section<'_>, protocol: Protocol, context: &Context<'_>) -> Option<UpstreamTls> {
    let section = upstream.table("tls");
    if !section.is_present() {
        return None;
    }
    // Whatever is part of it: what is written, and what is in files.
    let mut parts: Vec<u8> = b"tls".to_vec();
    let mut part = |bytes: &[u8]| {
        parts.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        parts.extend_from_slice(bytes);
    };
    let name = section.text("sni").and_then(|text| {
        part(text.value.as_bytes());
        let name = ServerName::try_from(text.value.trim_end_matches('.').to_owned()).ok();
        if name.is_none() {
            section.wrong(section.node("sni")?, "sni", "a host name or an IP address, without a port", None);
        }
        name
    });
    let verify = section.boolean("verify", true);
    part(&[u8::from(verify)]);
    if !verify {
        section
            .scribe
            .warning(
                section.place_of("verify"),
                "anybody on the way can pass for these endpoints: their certificates are not verified",
            )
            .hint("name the authority that signed them with `ca`; it may be the certificate itself");
    }
    let ca = section.text("ca");
    let mut roots = RootCertStore::empty();
    if let Some(text) = ca {
        let (certificates, trusted) =
            authorities(text, "those of the authorities that sign endpoints' certificates", context)?;
        roots = trusted;
        certificates.iter().for_each(|certificate| part(certificate));
    } else if verify {
        let (pem, trusted) = system(section.place, "these endpoints' certificates", context)?;
        part(pem.as_bytes());
        roots = trusted;
    }
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites for TLS 1.2 and 1.3");
    let builder = match verify {
        true => builder.with_root_certificates(roots),
        false => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    let mut config = match (section.text("cert"), section.text("key")) {
        (Some(cert), Some(key)) => {
            let certified = certified(cert, key, context)?;
            certified.cert.iter().for_each(|certificate| part(certificate));
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
        (None, None) => builder.with_no_client_auth(),
        (cert, _) => {
            let (there, missing) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
            section.missing(
                &format!("`{missing}` beside `{there}`"),
                "a certificate to show needs both: `cert = \"meridian.pem\", key = \"meridian.key\"`",
            );
            return None;
        }
    };
    let spoken = if protocol == Protocol::H2 { "h2" } else { "http/1.1" };
    part(spoken.as_bytes());
    config.alpn_protocols = vec![spoken.as_bytes().to_vec()];
    section.finish();
    Some(UpstreamTls { fingerprint: xxh3_64(&parts).max(1), name, config: Arc::new(config) })
}

/// The authorities that this system trusts, as text and as a store; that there are none is an error, there.
pub(super) fn system(place: Place, signed: &str, context: &Context<'_>) -> Option<(String, RootCertStore)> {
    let Some(pem) = SYSTEM.iter().find_map(|path| context.files.read(Path::new(path)).ok()) else {
        context
            .scribe
            .error(
                place,
                format!("nobody is known who could have signed {signed}: this system has no list of authorities"),
            )
            .hint("install `ca-certificates`, or name a file with `ca`");
        return None;
    };
    let mut roots = RootCertStore::empty();
    // Some lists have certificates in them that nobody reads.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok));
    Some((pem, roots))
}

/// A certificate with its chain, and the key that is its own.
fn certified(cert: Text<'_>, key: Text<'_>, context: &Context<'_>) -> Option<CertifiedKey> {
    let (chain, private) =
        (chain(cert, "the certificate first, then those that signed it", context), private_key(key, context));
    let (chain, private) = (chain?, private?);
    let scribe = context.scribe;
    if parse_x509_certificate(&chain[0]).is_err() {
        scribe.error(cert.place, format!("`{}` holds no X.509 certificate", shown(cert)));
        return None;
    }
    match CertifiedKey::from_der(chain, private, &ring::default_provider()) {
        Ok(certified) => Some(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            scribe
                .error(
                    key.place,
                    format!("the key in `{}` is not that of the certificate in `{}`", shown(key), shown(cert)),
                )
                .also("the certificate", cert.place)
                .hint("the certificate itself must come first in its file; were both files written?");
            None
        }
        Err(error) => {
            scribe
                .error(key.place, format!("the key in `{}` cannot be used: {error}", shown(key)))
                .hint("RSA (2,048 bits or more), ECDSA (P-256, P-384) and Ed25519 work");
            None
        }
    }
}

fn client_ca(text: Text<'_>, context: &Context<'_>) -> Option<ClientCa> {
    let (certificates, roots) = authorities(text, "those of the authorities that sign clients' certificates", context)?;
    let provider = Arc::new(ring::default_provider());
    match WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build() {
        Ok(verifier) => Some(ClientCa { file: context.path(text), certificates, verifier }),
        Err(error) => {
            context.scribe.error(text.place, format!("nobody can be verified against `{}`: {error}", shown(text)));
            None
        }
    }
}

/// What is written; of a variable only its name.
fn shown(text: Text<'_>) -> &str {
    if text.secret { "${…}" } else { text.value }
}

fn read(text: Text<'_>, context: &Context<'_>) -> Option<String> {
    let path = context.path(text);
    let error = match context.files.read(&path) {
        // Some editors put a mark before a text.
        Ok(pem) => return Some(pem.trim_start_matches('\u{feff}').to_owned()),
        Err(error) => error,
    };
    let written = context.scribe.error(
        text.place,
        match error.kind() {
            ErrorKind::InvalidData => format!("`{}` is not PEM: it is not even text", shown(text)),
            _ => format!("`{}` cannot be read: {}", shown(text), crate::config::file::why(&error)),
        },
    );
    match error.kind() {
        ErrorKind::InvalidData => {
            written.hint("make PEM of DER with `openssl x509 -inform der` or `openssl pkey -inform der`");
        }
        ErrorKind::PermissionDenied => {
            written.hint("the user that meridian runs as must be able to read it");
        }
        ErrorKind::NotFound if Path::new(text.value).is_relative() => {
            written.hint("paths are relative to the file that names them");
        }
        _ => {}
    }
    None
}

/// At least one certificate.
fn chain(text: Text<'_>, expected: &str, context: &Context<'_>) -> Option<Vec<CertificateDer<'static>>> {
    let pem = read(text, context)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Some(chain),
        Ok(_) => {
            let what = format!("`{}` holds no certificate (`-----BEGIN CERTIFICATE-----`)", shown(text));
            context.scribe.error(text.place, what).hint(format!("it is to hold {expected}"));
            None
        }
        // What the parser says of it is for those who know its tables.
        Err(_) => {
            context
                .scribe
                .error(
                    text.place,
                    format!("`{}` is not good PEM: it is cut short, or holds what is no base64", shown(text)),
                )
                .hint("`openssl x509 -in FILE -noout -text` reads one that is good");
            None
        }
    }
}

/// At least one certificate, and that they are authorities'.
pub(super) fn authorities(
    text: Text<'_>,
    expected: &str,
    context: &Context<'_>,
) -> Option<(Vec<CertificateDer<'static>>, RootCertStore)> {
    let certificates = chain(text, expected, context)?;
    let mut roots = RootCertStore::empty();
    for (n, certificate) in certificates.iter().enumerate() {
        if let Err(error) = roots.add(certificate.clone()) {
            let what = format!("certificate {} in `{}` cannot be an authority's: {error}", n + 1, shown(text));
            context.scribe.error(text.place, what);
            return None;
        }
    }
    Some((certificates, roots))
}

fn private_key(text: Text<'_>, context: &Context<'_>) -> Option<PrivateKeyDer<'static>> {
    let pem = read(text, context)?;
    // Which kinds there are is the parser's business, but this one it passes over in silence.
    if pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || pem.contains("Proc-Type: 4,ENCRYPTED") {
        context
            .scribe
            .error(
                text.place,
                format!("the key in `{}` is encrypted, and nobody is there to ask for its password", shown(text)),
            )
            .hint("decrypt it with `openssl pkey -in KEY -out PLAIN`, and let nobody else read the file");
        return None;
    }
    match PrivateKeyDer::from_pem_slice(pem.as_bytes()) {
        Ok(key) => Some(key),
        // What the parser says of it might quote it.
        Err(_) => {
            let what = format!("`{}` holds no private key (`-----BEGIN PRIVATE KEY-----`)", shown(text));
            context.scribe.error(text.place, what);
            None
        }
    }
}
