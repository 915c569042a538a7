//! The files: the account, and each certificate with its key.
//!
//! Nobody else may read them, and each is written whole or not at all. An account that cannot be read is moved aside and another one made: accounts cost nothing,
//! and certificates do not depend on theirs. Everything here blocks.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use instant_acme::AccountCredentials;
use serde_json::Value;

use crate::state::write_whole;

/// The account's file.
const ACCOUNT: &str = "account.json";

/// Ends the name of what is written to see whether anything can be.
const PROBE: &str = ".probe";

/// Who may read what is written here.
const MODE: u32 = 0o600;

/// The account at that directory, if there is one. One of another directory is as none: it is of no use there.
pub(super) fn account(folder: &Path, directory: &str) -> Option<AccountCredentials> {
    let file = folder.join(ACCOUNT);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the account cannot be read: another is made");
            return None;
        }
    };
    let value: Option<Value> = serde_json::from_slice(&text).ok();
    let elsewhere = value.as_ref().and_then(|value| value["directory"].as_str()).filter(|of| *of != directory);
    if let Some(elsewhere) = elsewhere {
        tracing::info!(of = elsewhere, "the account is another directory's: another is made");
        return None;
    }
    let account = value.and_then(|value| serde_json::from_value(value).ok());
    if account.is_none() {
        tracing::warn!(file = %file.display(), "the account's file is broken, and moved aside: another is made");
        forget(folder);
    }
    account
}

/// Moves the account aside.
pub(super) fn forget(folder: &Path) {
    let file = folder.join(ACCOUNT);
    if let Err(error) = fs::rename(&file, file.with_extension("json.broken")) {
        tracing::warn!(file = %file.display(), %error, "the account cannot be moved aside");
    }
}

/// Keeps the account, as JSON.
pub(super) fn keep_account(folder: &Path, account: &Value) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(account)?;
    text.push(b'\n');
    make(folder)?;
    write_whole(&folder.join(ACCOUNT), MODE, &text)
}

/// Whether a certificate could be kept in that file now: what is issued and cannot be kept counts with the authority all the same.
pub(super) fn try_out(file: &Path) -> io::Result<()> {
    make(file.parent().unwrap_or(Path::new(".")))?;
    let mut probe = file.as_os_str().to_owned();
    probe.push(PROBE);
    let probe = Path::new(&probe);
    // As long as a key and its chain, so that a full disk shows.
    write_whole(probe, MODE, &[b'\n'; 16 << 10])?;
    fs::remove_file(probe)
}

/// Keeps a certificate: its key first, as it was made, then the chain as it came.
pub(super) fn keep_certificate(file: &Path, pem: &str) -> io::Result<()> {
    make(file.parent().unwrap_or(Path::new(".")))?;
    write_whole(file, MODE, pem.as_bytes())
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// A private key and the chain of its certificate, in one text.
pub(super) fn joined(key: &[u8], chain: &str) -> String {
    let text = STANDARD.encode(key);
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for (n, letter) in text.chars().enumerate() {
        if n > 0 && n % 64 == 0 {
            pem.push('\n');
        }
        pem.push(letter);
    }
    pem.push_str("\n-----END PRIVATE KEY-----\n");
    pem.push_str(chain);
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const HERE: &str = "https://ca.test/dir";

    fn credentials() -> Value {
        serde_json::json!({ "id": "1", "key_pkcs8": "AAAA", "directory": HERE })
    }

    #[test]
    fn an_account_is_kept_for_its_directory_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made/when/needed");
        assert!(account(&folder, HERE).is_none());
        keep_account(&folder, &credentials()).unwrap();
        assert!(account(&folder, HERE).is_some() && account(&folder, "https://b.test/").is_none());
        for path in [folder.join(ACCOUNT), folder.clone()] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        }
        for broken in ["", "{}", "[1]", "{\"directory\":\"https://ca.test/dir\",\"id\":3}"] {
            fs::write(folder.join(ACCOUNT), broken).unwrap();
            assert!(account(&folder, HERE).is_none(), "{broken}");
            assert!(!folder.join(ACCOUNT).exists() && folder.join("account.json.broken").exists());
        }
    }

    #[test]
    fn where_nothing_can_be_written_shows_before() {
        let folder = tempfile::tempdir().unwrap();
        let acme = folder.path().join("acme");
        try_out(&acme.join("a.test.pem")).unwrap();
        assert_eq!(fs::read_dir(&acme).unwrap().count(), 0, "nothing is left");
        fs::write(acme.join("file"), "").unwrap();
        assert!(try_out(&acme.join("file/a.test.pem")).is_err());
    }

    #[test]
    fn what_is_written_of_a_certificate_is_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let der = STANDARD.encode(made.der());
        let chain = format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n");
        let pem = joined(&key.serialize_der(), &chain);
        assert!(pem.lines().filter(|line| !line.starts_with('-')).take(2).all(|line| line.len() <= 64));
        let read = crate::config::tls::Certificate::from_pem("x".into(), &pem).unwrap();
        assert_eq!(read.names, ["a.test"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.test.pem");
        keep_certificate(&file, &pem).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&file).unwrap(), pem);
    }
}
