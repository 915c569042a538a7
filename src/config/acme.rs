//! `[acme]` as compiled: who issues certificates, and by what proof.
//!
//! Which names a listener wants a certificate for stands with its TLS ([`Ordered`](super::tls::Ordered)), as does the certificate, once there is one. When one is due is decided here,
//! as a function of its time; nothing is asked of anybody.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

/// `[acme]`.
#[derive(Clone)]
pub struct Acme {
    /// Where the authority says what it can do. By https, with a host.
    pub directory: String,
    /// Its host and port, for logs.
    pub host: String,
    /// Whom it may write to.
    pub contact: Vec<String>,
    /// How it is shown that names are ours.
    pub proof: Proof,
    /// How long before its end a certificate is replaced; `None`: when a third of its lifetime is left.
    pub renew_before: Option<Duration>,
    /// Where the account and the certificates are kept.
    pub folder: PathBuf,
    /// Whom the directory's own certificate must be by.
    pub client: Arc<ClientConfig>,
    /// Of the authorities in `client`.
    pub fingerprint: u64,
}

/// `[acme] challenge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A handshake on port 443 (RFC 8737).
    TlsAlpn01,
    /// A request to port 80 (RFC 8555, 8.3).
    Http01,
}

impl Acme {
    /// When, in Unix seconds, a certificate that is valid from then to then is to be replaced: `renew_before` its end, or with a third of its lifetime left.
    /// Never in the first third: a new one would be due as soon as it came.
    pub fn due(&self, (from, until): (i64, i64)) -> i64 {
        let third = until.saturating_sub(from).max(0) / 3;
        let before = self.renew_before.map_or(third, |before| i64::try_from(before.as_secs()).unwrap_or(i64::MAX));
        until.saturating_sub(before).max(from.saturating_add(third))
    }
}

impl PartialEq for Acme {
    fn eq(&self, other: &Acme) -> bool {
        let parts = |acme: &Acme| (acme.proof, acme.renew_before, acme.fingerprint);
        let texts = |acme: &Acme| (acme.directory.clone(), acme.contact.clone(), acme.folder.clone());
        parts(self) == parts(other) && texts(self) == texts(other)
    }
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acme").field("directory", &self.directory).field("proof", &self.proof).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::RootCertStore;
    use rustls::crypto::ring;

    fn acme(renew_before: Option<Duration>) -> Acme {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let client = builder.with_safe_default_protocol_versions().unwrap();
        Acme {
            directory: "https://ca.test/dir".into(),
            host: "ca.test".into(),
            contact: Vec::new(),
            proof: Proof::Http01,
            renew_before,
            folder: "state/acme".into(),
            client: Arc::new(client.with_root_certificates(RootCertStore::empty()).with_no_client_auth()),
            fingerprint: 1,
        }
    }

    #[test]
    fn a_certificate_is_due_before_its_end_and_not_when_it_is_new() {
        const DAY: i64 = 86_400;
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        for (renew_before, lifetime, expected) in [
            (None, 90, 60),
            (None, 6, 4),
            (None, 0, 0),
            (days(30), 90, 60),
            (days(10), 90, 80),
            (days(0), 90, 90),
            // As early as can be.
            (days(80), 90, 30),
            (days(10_000), 90, 30),
        ] {
            let due = acme(renew_before).due((1_000 * DAY, (1_000 + lifetime) * DAY));
            assert_eq!(due, (1_000 + expected) * DAY, "{renew_before:?} of {lifetime} days");
        }
        // What a file may say, too.
        assert_eq!(acme(None).due((i64::MAX, i64::MIN)), i64::MAX);
        assert_eq!(acme(days(1)).due((i64::MIN, i64::MAX)), i64::MAX - DAY);
    }
}
