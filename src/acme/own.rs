//! Certificates that nobody but ourselves signed: placeholders, and answers to challenges.
//!
//! Made in memory, with a new key each, and gone with the process: nobody is to trust them. Must not know when they are needed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::CertifiedKey;

use crate::config::tls::Certificate;

/// What stands in for the certificate in that file until it is there.
pub fn placeholder(names: &[String], file: PathBuf) -> Result<Certificate, String> {
    let key = signed(names, |params| params.distinguished_name.push(DnType::CommonName, "meridian placeholder"))?;
    let (names, addresses): (_, Vec<IpAddr>) = (names.to_vec(), Vec::new());
    Ok(Certificate { file, names, addresses, valid: (0, 0), placeholder: true, key: Arc::new(key) })
}

/// What shows that `name` is ours: `digest` is the SHA-256 of the key authorization (RFC 8737, 3).
pub fn challenge(name: &str, digest: &[u8; 32]) -> Result<CertifiedKey, String> {
    let extension = CustomExtension::new_acme_identifier(digest);
    signed(&[name.to_owned()], |params| params.custom_extensions.push(extension))
}

fn signed(names: &[String], more: impl FnOnce(&mut CertificateParams)) -> Result<CertifiedKey, String> {
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut params = CertificateParams::new(names).map_err(|error| error.to_string())?;
    params.distinguished_name = DistinguishedName::new();
    more(&mut params);
    let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
    let private = PrivatePkcs8KeyDer::from(key.serialize_der());
    let private = any_supported_type(&private.into()).map_err(|error| error.to_string())?;
    // Not held against each other as others are: whoever does that does not know the extension of a challenge, which is critical.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], private))
}
