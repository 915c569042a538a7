//! What an authority gave and could not be written: the account, and certificates with their keys.
//!
//! The folder is tried before anything is asked for, but a disk may fill up meanwhile. Authorities count what they give: as long as this process runs, the next
//! attempt writes what is here and orders nothing. Must not know why it could not be written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::config::Ordered;
use crate::config::tls::Certificate;

/// A certificate as it came.
#[derive(Clone)]
pub(super) struct Issued {
    /// Key and chain.
    pub(super) pem: Arc<str>,
    pub(super) certificate: Arc<Certificate>,
}

/// What is not written. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Shelf(Arc<Mutex<Unwritten>>);

/// Each with the directory that it is of.
#[derive(Default)]
struct Unwritten {
    account: Option<(String, Value)>,
    certificates: BTreeMap<PathBuf, (String, Issued)>,
}

impl Shelf {
    /// The certificate that this is about, unless it has ended.
    pub(super) fn certificate(&self, ordered: &Ordered, directory: &str, now: i64) -> Option<Issued> {
        let unwritten = self.lock();
        let (of, issued) = unwritten.certificates.get(&ordered.file)?;
        let is_good = of == directory && issued.certificate.valid.1 > now && ordered.is_covered_by(&issued.certificate);
        is_good.then(|| issued.clone())
    }

    /// Has that until it is written.
    pub(super) fn put(&self, issued: Issued, directory: &str) {
        self.lock().certificates.insert(issued.certificate.file.clone(), (directory.to_owned(), issued));
    }

    /// What belongs to that file is there.
    pub(super) fn written(&self, file: &Path) {
        self.lock().certificates.remove(file);
    }

    /// The account at that directory.
    pub(super) fn account(&self, directory: &str) -> Option<Value> {
        self.lock().account.as_ref().filter(|(of, _)| of == directory).map(|(_, account)| account.clone())
    }

    /// Has that until it is written.
    pub(super) fn put_account(&self, account: Value, directory: &str) {
        self.lock().account = Some((directory.to_owned(), account));
    }

    /// It is written, or of no use.
    pub(super) fn forget_account(&self) {
        self.lock().account = None;
    }

    fn lock(&self) -> MutexGuard<'_, Unwritten> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::own;

    #[test]
    fn what_was_issued_is_there_for_who_ordered_it_until_it_is_written() {
        const HERE: &str = "https://ca.test/dir";
        let ordered = |names: &[&str]| Ordered {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            file: "acme/a.test.pem".into(),
            kept: None,
        };
        let (shelf, one) = (Shelf::default(), ordered(&["a.test", "b.test"]));
        let made = own::placeholder(&one.names, one.file.clone()).unwrap();
        let certificate = Arc::new(Certificate { valid: (0, 100), placeholder: false, ..made });
        shelf.put(Issued { pem: "pem".into(), certificate }, HERE);
        let has = |names: &[&str], directory, now| shelf.clone().certificate(&ordered(names), directory, now).is_some();
        assert!(has(&["a.test", "b.test"], HERE, 99) && has(&["a.test"], HERE, 99));
        assert!(
            !has(&["a.test"], HERE, 100) && !has(&["c.test"], HERE, 99) && !has(&["a.test"], "https://b.test/", 99)
        );
        shelf.written(&one.file);
        assert!(!has(&["a.test"], HERE, 99));
        shelf.put_account(Value::Bool(true), HERE);
        assert!(shelf.account(HERE).is_some() && shelf.account("https://b.test/").is_none());
        shelf.forget_account();
        assert!(shelf.account(HERE).is_none());
    }
}
