//! What listeners show while the certificate that they order is not there, or not one to be shown.
//!
//! A file may be lost, cut or another's, and names may change. What is in force stays then, as with every other file that is found broken: first a file is looked for that
//! was ordered for these names and others, or for the same in another order; then what was shown until now is shown on, if it is for all the names and has not ended; and only who has
//! neither gets a placeholder, so that the listener can start and be asked whether names are ours. Refused: to refuse the reload, which for want of a certificate that we could order
//! would hold back everything else.

use std::path::PathBuf;
use std::sync::Arc;

use crate::acme::own;
use crate::config::tls::{Certificate, ListenerId, Tls};
use crate::config::{Edge, Files, Ordered};

/// What stands in, from one load to the next.
#[derive(Debug, Default)]
pub(super) struct StandIns {
    /// What is published.
    before: Option<Arc<Edge>>,
    /// For listeners that have nothing else: the same ones over reloads.
    placeholders: Vec<Arc<Certificate>>,
    /// What is shown on, and of which file it is shown instead.
    shown_on: Vec<(PathBuf, Arc<Certificate>)>,
}

impl StandIns {
    pub(super) fn in_force(&mut self, edge: Arc<Edge>) {
        self.before = Some(edge);
    }

    /// Gives every listener what stands in for a certificate that is ordered, if it needs that. `now` is in Unix seconds.
    pub(super) fn give(&mut self, edge: &mut Edge, files: &dyn Files, now: i64) {
        let (mut placeholders, mut shown_on) = (Vec::new(), Vec::new());
        let taken: Vec<PathBuf> = edge.ordered().iter().map(|ordered| ordered.file.clone()).collect();
        for (listener, tls) in &mut edge.tls {
            let Some(ordered) = tls.ordered.clone() else { continue };
            let is_good = |one: &Arc<Certificate>| one.is_valid_at(now) && ordered.is_covered_by(one);
            if ordered.kept.as_ref().is_some_and(is_good) {
                continue;
            }
            let tls = Arc::make_mut(tls);
            if let Some(found) = elsewhere(&ordered, &taken, files).filter(is_good).max_by_key(|one| one.valid.1) {
                show(tls, &ordered, &found);
                tls.ordered = Some(Arc::new(Ordered { kept: Some(found), ..(*ordered).clone() }));
            } else if let Some(shown) = self.shown(*listener, tls, &ordered, is_good) {
                show(tls, &ordered, &shown);
                shown_on.push((ordered.file.clone(), shown));
            } else if ordered.kept.is_none() {
                let is_same = |other: &&Arc<Certificate>| other.file == ordered.file && other.names == ordered.names;
                let known = placeholders.iter().chain(&self.placeholders).find(is_same).cloned();
                match known.map_or_else(|| own::placeholder(&ordered.names, ordered.file.clone()).map(Arc::new), Ok) {
                    Ok(placeholder) => {
                        tls.certificates.push(Arc::clone(&placeholder));
                        placeholders.push(placeholder);
                    }
                    Err(error) => tracing::error!(names = ?ordered.names, error, "no placeholder can be made"),
                }
            }
        }
        (self.placeholders, self.shown_on) = (placeholders, shown_on);
    }

    /// Says to the log what nobody wants to last.
    pub(super) fn tell(&self) {
        for placeholder in &self.placeholders {
            tracing::warn!(names = ?placeholder.names, "no certificate by ACME yet: a placeholder is shown, which nobody trusts");
        }
        for (file, shown) in &self.shown_on {
            let file = file.display();
            tracing::warn!(%file, names = ?shown.names, "what this file holds cannot be shown: the certificate that was shown before stays until another one comes");
        }
    }

    /// The best of what is shown now: of those that were ordered any listener's, of others this one's.
    fn shown(
        &self,
        listener: ListenerId,
        tls: &Tls,
        ordered: &Ordered,
        is_good: impl Fn(&Arc<Certificate>) -> bool,
    ) -> Option<Arc<Certificate>> {
        let was_ordered = |one: &Certificate| one.file.parent() == ordered.file.parent();
        let is_kept = |one: &Arc<Certificate>| ordered.kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, one));
        let is_written = |one: &Certificate| tls.certificates.iter().any(|now| now.file == one.file && !is_kept(now));
        let before = self.before.iter().flat_map(|edge| &edge.tls);
        let all = before.flat_map(|(id, tls)| tls.certificates.iter().map(move |one| (id, one)));
        let good = all.filter(|(id, one)| {
            let is_near = was_ordered(one) || **id == listener;
            !one.placeholder && is_near && !is_written(one) && is_good(one)
        });
        good.map(|(_, one)| one).max_by_key(|one| (was_ordered(one), one.valid.1)).cloned()
    }
}

/// What is in the folder's other files, but for those that are some other listener's.
fn elsewhere(ordered: &Ordered, taken: &[PathBuf], files: &dyn Files) -> impl Iterator<Item = Arc<Certificate>> {
    let found = files.glob(&ordered.file.with_file_name("*.pem")).unwrap_or_default();
    found.into_iter().filter(|file| !taken.contains(file)).filter_map(|file| {
        let pem = files.read(&file).ok()?;
        Certificate::from_pem(file, &pem).ok().map(Arc::new)
    })
}

/// Shows that, instead of what is kept.
fn show(tls: &mut Tls, ordered: &Ordered, better: &Arc<Certificate>) {
    if let Some(kept) = &ordered.kept {
        tls.certificates.retain(|one| !Arc::ptr_eq(one, kept));
    }
    tls.certificates.push(Arc::clone(better));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::io::{Error, ErrorKind, Result};
    use std::path::Path;

    /// 2025 began then.
    const NOW: i64 = 1_735_689_600;

    #[derive(Default)]
    struct Memory(RefCell<BTreeMap<PathBuf, String>>);

    impl Files for Memory {
        fn read(&self, path: &Path) -> Result<String> {
            self.0.borrow().get(path).cloned().ok_or_else(|| Error::new(ErrorKind::NotFound, "no such file"))
        }

        fn glob(&self, pattern: &Path) -> Result<Vec<PathBuf>> {
            Ok(self.0.borrow().keys().filter(|path| path.parent() == pattern.parent()).cloned().collect())
        }
    }

    fn pem(names: &[&str], until: i32) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let text = |label, der| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der));
        let made = params.self_signed(&key).unwrap();
        text("PRIVATE KEY", key.serialize_der()) + &text("CERTIFICATE", made.der().to_vec())
    }

    /// A state directory, and who loads.
    struct Stage(Memory, StandIns);

    impl Stage {
        fn new() -> Stage {
            let stage = Stage(Memory::default(), StandIns::default());
            stage.put("ca.pem", &pem(&["ca.test"], 2030));
            stage
        }

        fn put(&self, path: &str, text: &str) {
            self.0.0.borrow_mut().insert(path.into(), text.to_owned());
        }

        fn remove(&self, path: &str) {
            self.0.0.borrow_mut().remove(Path::new(path));
        }

        /// Loads and publishes it, with that `tls` of each listener.
        fn load(&mut self, tls: &[&str]) -> Arc<Edge> {
            let mut text = "[process]\nstate_dir = \"s\"\n[acme]\nagree_tos = true\nca = \"ca.pem\"\n[regions.a]\n\
                 [services.web.pools.a]\nendpoints = [\"10.0.0.1:80\"]\n"
                .to_owned();
            for (n, tls) in tls.iter().enumerate() {
                text += &format!("[[listen]]\naddress = \"0.0.0.0:{}\"\ntls = {tls}\n", 443 + n);
            }
            self.put("meridian.toml", &text);
            let config = config::load(Path::new("meridian.toml"), &self.0, &|_| None, "host");
            let mut edge = config.unwrap_or_else(|report| panic!("{report}")).edge;
            self.1.give(Arc::make_mut(&mut edge), &self.0, NOW);
            self.1.in_force(Arc::clone(&edge));
            edge
        }
    }

    fn shown(edge: &Edge, listener: usize) -> Vec<&Arc<Certificate>> {
        edge.tls[listener].1.certificates.iter().collect()
    }

    const AB: &str = "{ acme = [\"a.test\", \"b.test\"] }";
    const BA: &str = "{ acme = [\"b.test\", \"a.test\"] }";

    #[test]
    fn what_was_shown_stays_when_its_file_is_lost_or_another_s() {
        let good = pem(&["a.test", "b.test"], 2030);
        let key_of_another = pem(&["a.test", "b.test"], 2030);
        let mixed = key_of_another.split("-----BEGIN CERT").next().unwrap().to_owned()
            + &good[good.find("-----BEGIN CERT").unwrap()..];
        let (some, ended) = (pem(&["a.test"], 2030), pem(&["a.test", "b.test"], 2021));
        for broken in [None, Some(""), Some(&good[..good.len() / 2]), Some(&mixed), Some(&some), Some(&ended)] {
            let mut stage = Stage::new();
            stage.put("s/acme/a.test.pem", &good);
            let first = stage.load(&[AB]);
            assert!(stage.1.shown_on.is_empty());
            match broken {
                Some(text) => stage.put("s/acme/a.test.pem", text),
                None => stage.remove("s/acme/a.test.pem"),
            }
            // However often.
            for tls in [AB, AB, BA] {
                let edge = stage.load(&[tls]);
                assert_eq!(shown(&edge, 0), shown(&first, 0), "{broken:?} {tls}");
                // Another is ordered.
                let ordered = &edge.ordered()[0];
                assert!(
                    !ordered.kept.as_ref().is_some_and(|kept| ordered.is_covered_by(kept) && kept.is_valid_at(NOW))
                );
            }
            stage.put("s/acme/b.test.pem", &pem(&["a.test", "b.test"], 2031));
            let edge = stage.load(&[BA]);
            assert_eq!(shown(&edge, 0), [edge.ordered()[0].kept.as_ref().unwrap()], "the new one");
            assert!(stage.1.shown_on.is_empty());
        }
    }

    #[test]
    fn what_has_ended_or_lacks_a_name_does_not_stay() {
        for (names, until) in [(&["a.test", "b.test"][..], 2021), (&["a.test"], 2030)] {
            let mut stage = Stage::new();
            stage.put("s/acme/a.test.pem", &pem(names, until));
            stage.load(&[AB]);
            stage.remove("s/acme/a.test.pem");
            let edge = stage.load(&[AB]);
            assert!(shown(&edge, 0)[0].placeholder, "{names:?} {until}");
            // The same one over reloads.
            assert!(Arc::ptr_eq(shown(&stage.load(&[AB]), 0)[0], shown(&edge, 0)[0]));
        }
    }

    #[test]
    fn a_file_of_the_same_names_or_more_is_found_after_a_start() {
        let mut stage = Stage::new();
        stage.put("s/acme/a.test.pem", &pem(&["a.test", "b.test"], 2030));
        for tls in [BA, "{ acme = [\"b.test\"] }"] {
            stage.1 = StandIns::default();
            let edge = stage.load(&[tls]);
            let (ordered, shown) = (edge.ordered(), shown(&edge, 0));
            assert_eq!(shown, [ordered[0].kept.as_ref().unwrap()], "{tls}");
            assert_eq!(
                (&*shown[0].file, &*ordered[0].file),
                (Path::new("s/acme/a.test.pem"), Path::new("s/acme/b.test.pem"))
            );
        }
        // One that a listener orders for itself is not another one's.
        stage.1 = StandIns::default();
        let edge = stage.load(&["{ acme = [\"b.test\"] }", AB]);
        assert!(shown(&edge, 0)[0].placeholder && !shown(&edge, 1)[0].placeholder);
        // The same names in any order are one certificate.
        let edge = stage.load(&[AB, BA]);
        assert_eq!((edge.ordered().len(), shown(&edge, 0)), (1, shown(&edge, 1)));
    }

    #[test]
    fn who_leaves_files_of_another_for_an_order_shows_them_until_it_comes() {
        let written = pem(&["*.test"], 2030);
        let mut stage = Stage::new();
        stage.put("w.pem", &written);
        let wild = "certificates = [{ cert = \"w.pem\", key = \"w.pem\" }]";
        let first = stage.load(&[&format!("{{ {wild} }}"), &format!("{{ {wild} }}")]);
        let edge = stage.load(&[AB, &format!("{{ {wild}, acme = [\"c.test\"] }}")]);
        assert_eq!(shown(&edge, 0), shown(&first, 0));
        // It is there in any case; of what is ordered there is nothing yet.
        let [wild, other] = shown(&edge, 1)[..] else { panic!("{edge:?}") };
        assert!(wild == shown(&first, 1)[0] && other.placeholder);
    }
}
