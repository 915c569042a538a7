//! `[acme]`, and `acme` of a listener's `tls`: which certificates are ordered, from whom, and what is there already.
//!
//! A certificate that is kept and cannot be used is a warning: it is ordered anew, and a listener never stays closed for it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::acme::{Acme, Proof};
use crate::config::compile::Context;
use crate::config::names;
use crate::config::reader::Section;
use crate::config::scribe::Place;
use crate::config::tls::Certificate;
use crate::config::{Listen, Ordered};

/// The folder in the state directory.
const FOLDER: &str = "acme";

/// Who issues certificates to everybody.
const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// The longest name, in bytes, by which a file is called as it is.
const PLAIN: usize = 200;

/// More names than authorities put into one certificate.
const MOST_NAMES: usize = 100;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The certificates that listeners order, and what that takes.
pub(super) struct Orders {
    /// `[acme]` is there.
    is_told: bool,
    folder: Option<PathBuf>,
    all: Vec<(Arc<Ordered>, Place)>,
    /// Somebody wants one, whether or not it can be had.
    wanted: bool,
}

impl Orders {
    pub(super) fn new(section: &Section<'_>, state_dir: Option<&Path>) -> Orders {
        Orders {
            is_told: section.is_present(),
            folder: state_dir.map(|folder| folder.join(FOLDER)),
            all: Vec::new(),
            wanted: false,
        }
    }

    /// What this `tls` orders. `None`: nothing, or what is written cannot be, which was reported.
    pub(super) fn of(&mut self, tls: &Section<'_>, context: &Context<'_>) -> Option<Arc<Ordered>> {
        let mut names = Vec::new();
        for text in tls.texts("acme", "an entry of `acme`") {
            match names::certificate_name(text.value) {
                Ok(name) => names.push((name, text.place)),
                Err(why) => tls.refused(text, "an entry of `acme`", &why),
            }
        }
        if !tls.has("acme") {
            return None;
        }
        self.wanted = true;
        let (place, scribe) = (tls.place_of("acme"), context.scribe);
        super::refuse_twice(&names, "this name", scribe);
        if super::is_empty_list(tls, "acme") {
            scribe.error(place, "a certificate must be for a name").hint("write `acme = [\"www.example.com\"]`");
        }
        if names.len() > MOST_NAMES {
            scribe.error(place, format!("a certificate is for at most {MOST_NAMES} names, not {}", names.len()));
        }
        if !self.is_told {
            scribe
                .absent(place, "nobody is named who issues this certificate: `[acme]` is missing")
                .hint("add `[acme]` and below it `agree_tos = true`: certificates then come from Let's Encrypt");
        }
        if self.folder.is_none() {
            scribe
                .absent(place, "there is nowhere to keep this certificate and the account that it is issued to")
                .hint("set `state_dir` in `[process]`; under systemd `StateDirectory=` does");
        }
        let names: Vec<String> = names.into_iter().map(|(name, _)| name).collect();
        let file = self.folder.as_ref()?.join(file_name(names.first()?));
        if let Some((same, _)) = self.all.iter().find(|(other, _)| is_same_set(&other.names, &names)) {
            return Some(Arc::clone(same));
        }
        if let Some((_, first)) = self.all.iter().find(|(other, _)| other.file == file) {
            scribe
                .error(
                    place,
                    "a certificate is kept by its first name, and another listener orders one for other names by that",
                )
                .also("it is ordered at", *first)
                .hint("let both have the same names, or put another name first here");
        }
        let mut ordered = Ordered { names, file, kept: None };
        ordered.kept = kept(&ordered, place, context);
        let ordered = Arc::new(ordered);
        self.all.push((Arc::clone(&ordered), place));
        Some(ordered)
    }

    /// `[acme]`. `None`: it is not there, or cannot be used, which was reported.
    pub(super) fn settings(self, section: &Section<'_>, listen: &[Listen], context: &Context<'_>) -> Option<Arc<Acme>> {
        if !self.is_told {
            return None;
        }
        let scribe = context.scribe;
        if !self.wanted {
            scribe
                .warning(section.place, "no certificate is ordered: no listener has `acme` in its `tls`")
                .hint("write `tls = { acme = [\"www.example.com\"] }` beneath a `[[listen]]`");
        }
        let (directory, host) = directory(section).unzip();
        let contact = contact(section);
        if !section.boolean("agree_tos", false) {
            let hint = "read the authority's terms of service; `agree_tos = true` says that you agree";
            match section.has("agree_tos") {
                true => drop(
                    scribe
                        .error(section.place_of("agree_tos"), "no certificate is issued to who does not agree")
                        .hint(hint),
                ),
                false => section.missing("`agree_tos` of `[acme]`", hint),
            }
        }
        let words = [("tls-alpn-01", Proof::TlsAlpn01), ("http-01", Proof::Http01)];
        let proof = section.choice("challenge", Proof::TlsAlpn01, &words);
        if proof == Proof::Http01 && self.wanted && listen.iter().all(|listen| listen.tls) {
            scribe
                .error(section.place_of("challenge"), "`http-01` is asked without TLS, and every listener has `tls`")
                .hint("add `[[listen]]` with `address = \"0.0.0.0:80\"`, or leave `challenge` out");
        }
        let renew_before = section.duration("renew_before", Duration::ZERO, DAY / 24..=3650 * DAY);
        let ca = section.text("ca");
        section.finish();
        let (fingerprint, roots) = match ca {
            Some(text) => {
                let (certificates, roots) =
                    super::tls::authorities(text, "that of the authority that signed the directory's", context)?;
                (xxh3_64(&certificates.iter().flat_map(|der| der.to_vec()).collect::<Vec<u8>>()), roots)
            }
            None => {
                let (pem, roots) = super::tls::system(section.place, "the directory's certificate", context)?;
                (xxh3_64(pem.as_bytes()), roots)
            }
        };
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Some(Arc::new(Acme {
            directory: directory?,
            host: host?,
            contact,
            proof,
            renew_before: (!renew_before.is_zero()).then_some(renew_before),
            folder: self.folder?,
            client: Arc::new(client),
            fingerprint,
        }))
    }
}

/// The name of a certificate's file, by its first name. With what is put behind it while it is written, no file system finds it too long.
fn file_name(name: &str) -> String {
    match name.get(..PLAIN - 20).filter(|_| name.len() > PLAIN) {
        Some(begin) => format!("{begin}-{:016x}.pem", xxh3_64(name.as_bytes())),
        None => format!("{name}.pem"),
    }
}

/// Whether they are the same, in whatever order.
fn is_same_set(names: &[String], others: &[String]) -> bool {
    names.iter().all(|name| others.contains(name)) && others.iter().all(|other| names.contains(other))
}

/// The certificate that is there.
fn kept(ordered: &Ordered, place: Place, context: &Context<'_>) -> Option<Arc<Certificate>> {
    let Ordered { names, file, .. } = ordered;
    let certificate = match context.files.read(file) {
        Ok(pem) => Certificate::from_pem(file.clone(), &pem),
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => Err(crate::config::file::why(&error)),
    };
    let missing = |certificate: &Certificate| names.iter().find(|name| !certificate.is_for(name)).cloned();
    match certificate {
        Ok(certificate) => {
            if let Some(name) = missing(&certificate) {
                let what = format!("the certificate in `{}` is not for `{name}`: another is ordered", file.display());
                context.scribe.warning(place, what);
            }
            // For some of them it is better than none.
            names.iter().any(|name| certificate.is_for(name)).then(|| Arc::new(certificate))
        }
        Err(why) => {
            let what = format!("the certificate in `{}` cannot be used, and another is ordered: {why}", file.display());
            context.scribe.warning(place, what);
            None
        }
    }
}

/// The directory and its host.
fn directory(section: &Section<'_>) -> Option<(String, String)> {
    const EXPECTED: &str = "an address such as `https://acme.example.com/directory`";
    let text = section.text("directory");
    let written = text.map_or(DIRECTORY, |text| text.value);
    let uri = written.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https"));
    match uri.as_ref().and_then(Uri::authority).filter(|authority| can_be_asked(authority)).map(ToString::to_string) {
        Some(host) => Some((written.to_owned(), host)),
        None => {
            let hint = written.starts_with("http://").then(|| "it is asked by https only".to_owned());
            text.into_iter().for_each(|text| {
                section.refused(text, "directory", &names::Refused { expected: EXPECTED, hint: hint.clone() });
            });
            None
        }
    }
}

/// Whether it is a host that TLS can ask for, and a port if there is any: what is none is read as no port, which would be 443.
fn can_be_asked(authority: &Authority) -> bool {
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let is_port =
        |text: &str| text.strip_prefix(':').and_then(|port| port.parse().ok()).is_some_and(|port: u16| port > 0);
    let is_whole = authority.as_str().strip_prefix(host).is_some_and(|rest| rest.is_empty() || is_port(rest));
    is_whole && ServerName::try_from(bare).is_ok()
}

fn contact(section: &Section<'_>) -> Vec<String> {
    let mut list = Vec::new();
    for text in section.texts("contact", "an entry of `contact`") {
        let address = text.value.strip_prefix("mailto:");
        let is_good = |address: &str| {
            let parts = address.split_once('@');
            parts.is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !host.contains('@'))
                && address.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b'?'))
        };
        if address.is_some_and(is_good) {
            list.push(text.value.to_owned());
        } else {
            let hint = (address.is_none() && is_good(text.value)).then(|| format!("write `\"mailto:{}\"`", text.value));
            let why = names::Refused { expected: "an address such as `mailto:ops@example.com`", hint };
            section.refused(text, "an entry of `contact`", &why);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_can_be_a_file() {
        assert_eq!(file_name("www.example.com"), "www.example.com.pem");
        let long = |last: char| format!("{}{last}", "abcdefghi.".repeat(25));
        let names = [long('x'), long('y')].map(|name| file_name(&name));
        assert_ne!(names[0], names[1]);
        let folder = tempfile::tempdir().unwrap();
        for name in [&names[0], &file_name(&"a".repeat(PLAIN)), &file_name(&"a".repeat(PLAIN + 1))] {
            assert!(name.len() <= PLAIN + 4, "{name}");
            crate::state::write_whole(&folder.path().join(name), 0o600, b"x").unwrap();
        }
    }

    #[test]
    fn an_address_has_a_host_and_no_port_but_a_real_one() {
        for (text, expected) in [
            ("ca.test", true),
            ("ca.test:14000", true),
            ("192.0.2.1", true),
            ("[2001:db8::1]:443", true),
            ("ca.test:99999", false),
            ("ca.test:0", false),
            ("ca.test:", false),
            ("user@ca.test", false),
            ("ca..test", false),
        ] {
            let authority: Option<Authority> = text.parse().ok();
            assert_eq!(authority.is_some_and(|authority| can_be_asked(&authority)), expected, "{text}");
        }
    }
}
