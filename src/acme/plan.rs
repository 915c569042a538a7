//! Which certificate to order next, and when: a function of what is wanted, what is there, what failed, and the time.
//!
//! Time and chance are arguments. Must not know how certificates are ordered.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Acme, Ordered};

/// The first and the longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));

/// The longest and the shortest pause after a success, whatever the calendar says.
const FLOOR: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(60));

/// What to do.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Order that.
    Order(Arc<Ordered>),
    /// Nothing is due before that.
    Wait(Duration),
}

/// What is wanted and how it went so far.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Where it is ordered: what failed elsewhere says nothing.
    acme: Option<Acme>,
    /// By their files.
    wanted: BTreeMap<PathBuf, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    ordered: Arc<Ordered>,
    failures: u32,
    /// After an order, however it ended: not before that.
    pause: Option<Instant>,
    /// What was written and not read since.
    issued: Option<(i64, i64)>,
}

impl Plan {
    /// Learns what is wanted now. Who changed something of it waits no longer for what failed before.
    pub(super) fn see(&mut self, acme: &Acme, wanted: &[Arc<Ordered>]) {
        if self.acme.as_ref() != Some(acme) {
            self.wanted.clear();
            self.acme = Some(acme.clone());
        }
        self.wanted.retain(|file, _| wanted.iter().any(|ordered| ordered.file == *file));
        for ordered in wanted {
            let new = || Wanted { ordered: Arc::clone(ordered), failures: 0, pause: None, issued: None };
            let known = self.wanted.entry(ordered.file.clone()).or_insert_with(new);
            if known.ordered.names != ordered.names {
                *known = new();
            }
            if ordered.kept.as_ref().is_some_and(|kept| Some(kept.valid) == known.issued) {
                known.issued = None;
            }
            known.ordered = Arc::clone(ordered);
        }
    }

    /// What to do at `now`, in Unix seconds and by the clock that does not step.
    pub(super) fn next(&self, acme: &Acme, now: i64, at: Instant) -> Next {
        let mut wait = Duration::MAX;
        for wanted in self.wanted.values() {
            let due = Duration::from_secs(wanted.due(acme).saturating_sub(now).max(0).unsigned_abs());
            let left = due.max(wanted.pause.map_or(Duration::ZERO, |pause| pause.saturating_duration_since(at)));
            if left.is_zero() {
                return Next::Order(Arc::clone(&wanted.ordered));
            }
            wait = wait.min(left);
        }
        Next::Wait(wait)
    }

    /// A certificate with that validity was written. Returns how long no other is ordered, though it were due.
    pub(super) fn issued(&mut self, ordered: &Ordered, valid: (i64, i64), at: Instant) -> Duration {
        let wait = after_success(valid);
        if let Some(wanted) = self.wanted.get_mut(&ordered.file) {
            (wanted.failures, wanted.pause, wanted.issued) = (0, Some(at + wait), Some(valid));
        }
        wait
    }

    /// None was. Returns how long it is left alone: at least as long as the authority wants it; `chance` is between 0 and 1.
    pub(super) fn failed(&mut self, ordered: &Ordered, at: Instant, chance: f64, least: Duration) -> Duration {
        let Some(wanted) = self.wanted.get_mut(&ordered.file) else { return RETRY.0 };
        wanted.failures = wanted.failures.saturating_add(1);
        let wait = next_attempt(wanted.failures, chance).max(least);
        wanted.pause = Some(at + wait);
        wait
    }
}

impl Wanted {
    /// When a certificate is to be ordered, in Unix seconds.
    fn due(&self, acme: &Acme) -> i64 {
        let kept = self.ordered.kept.as_ref().filter(|kept| self.ordered.is_covered_by(kept));
        match self.issued.or(kept.map(|kept| kept.valid)) {
            Some(valid) => acme.due(valid),
            None => i64::MIN,
        }
    }
}

/// How long to wait after that many failures in a row: a minute, twice as long each time, six hours at most, and up to a quarter less, so that many
/// who failed at once do not come back at once.
fn next_attempt(failures: u32, chance: f64) -> Duration {
    let doubled = RETRY.0.saturating_mul(1 << failures.saturating_sub(1).min(20));
    doubled.min(RETRY.1).mul_f64(1.0 - 0.25 * chance.clamp(0.0, 1.0))
}

/// How long to wait after a success with a certificate of that validity: half of its lifetime, an hour at most. It may be due when it comes, as by a clock that is wrong or
/// an authority that dates back, and what comes next would be no better: authorities count successes, too.
fn after_success((from, until): (i64, i64)) -> Duration {
    Duration::from_secs(until.saturating_sub(from).max(0).unsigned_abs() / 2).clamp(FLOOR.1, FLOOR.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::own;
    use crate::config::acme::Proof;
    use crate::config::tls::Certificate;
    use rustls::crypto::ring;
    use rustls::{ClientConfig, RootCertStore};

    const DAY: i64 = 86_400;
    const SECOND: Duration = Duration::from_secs(1);

    fn acme(directory: &str) -> Acme {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let client = builder.with_safe_default_protocol_versions().unwrap();
        Acme {
            directory: directory.to_owned(),
            host: "ca.test".to_owned(),
            contact: Vec::new(),
            proof: Proof::TlsAlpn01,
            renew_before: None,
            folder: "acme".into(),
            client: Arc::new(client.with_root_certificates(RootCertStore::empty()).with_no_client_auth()),
            fingerprint: 1,
        }
    }

    /// The names that what is there is for, and its days.
    type Kept<'a> = Option<(&'a [&'a str], i64, i64)>;

    fn ordered(names: &[&str], kept: Kept<'_>) -> Arc<Ordered> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let file = PathBuf::from(format!("acme/{}.pem", names[0]));
        let kept = kept.map(|(names, from, until)| {
            let made = own::placeholder(&owned(names), file.clone()).unwrap();
            Arc::new(Certificate { valid: (from * DAY, until * DAY), placeholder: false, ..made })
        });
        Arc::new(Ordered { names: owned(names), file, kept })
    }

    #[test]
    fn what_is_missing_or_due_is_ordered() {
        let (acme, at) = (acme("https://a.test/"), Instant::now());
        let rows: &[(Kept<'_>, i64, Option<i64>)] = &[
            // What is there, the day, and the days to wait.
            (None, 100, None),
            (Some((&["a.test", "b.test"], 0, 90)), 10, Some(50)),
            (Some((&["a.test", "b.test", "c.test"], 0, 90)), 59, Some(1)),
            (Some((&["a.test", "b.test"], 0, 90)), 60, None),
            (Some((&["a.test", "b.test"], 0, 90)), 100, None),
            (Some((&["a.test"], 0, 90)), 1, None),
        ];
        for (kept, day, days) in rows {
            let wanted = ordered(&["a.test", "b.test"], *kept);
            let mut plan = Plan::default();
            plan.see(&acme, std::slice::from_ref(&wanted));
            let expected = match days {
                Some(days) => Next::Wait(Duration::from_secs(days.unsigned_abs() * 86_400)),
                None => Next::Order(wanted),
            };
            assert_eq!(plan.next(&acme, day * DAY, at), expected, "{kept:?} on day {day}");
        }
        let mut plan = Plan::default();
        plan.see(&acme, &[]);
        assert_eq!(plan.next(&acme, 0, at), Next::Wait(Duration::MAX));
    }

    #[test]
    fn a_failure_waits_its_time_and_holds_no_other_up() {
        let (acme, mut at) = (acme("https://a.test/"), Instant::now());
        let (a, b) = (ordered(&["a.test"], None), ordered(&["b.test"], None));
        let mut plan = Plan::default();
        plan.see(&acme, &[Arc::clone(&a), Arc::clone(&b)]);
        assert_eq!(plan.next(&acme, 0, at), Next::Order(Arc::clone(&a)));
        assert_eq!(plan.failed(&a, at, 0.0, Duration::ZERO), 60 * SECOND);
        assert_eq!(plan.next(&acme, 0, at), Next::Order(Arc::clone(&b)));
        plan.issued(&b, (0, 90 * DAY), at);
        assert_eq!(plan.next(&acme, 0, at), Next::Wait(60 * SECOND));
        at += 60 * SECOND;
        assert_eq!(plan.next(&acme, 0, at), Next::Order(Arc::clone(&a)));
        assert_eq!(plan.failed(&a, at, 0.0, Duration::ZERO), 120 * SECOND);
        // What else is published changes nothing …
        plan.see(&acme, &[Arc::clone(&a), Arc::clone(&b)]);
        assert_eq!(plan.next(&acme, 0, at), Next::Wait(120 * SECOND));
        // … but other names do, and another directory does.
        let more = Arc::new(Ordered { names: vec!["a.test".into(), "c.test".into()], ..(*a).clone() });
        plan.see(&acme, &[Arc::clone(&more), Arc::clone(&b)]);
        assert_eq!(plan.next(&acme, 0, at), Next::Order(Arc::clone(&more)));
        plan.failed(&more, at, 0.0, Duration::ZERO);
        let other = super::tests::acme("https://b.test/");
        plan.see(&other, std::slice::from_ref(&more));
        assert_eq!(plan.next(&other, 0, at), Next::Order(more));
    }

    #[test]
    fn what_was_written_counts_until_it_is_read() {
        let (acme, at) = (acme("https://a.test/"), Instant::now());
        let missing = ordered(&["a.test"], None);
        let mut plan = Plan::default();
        plan.see(&acme, std::slice::from_ref(&missing));
        plan.issued(&missing, (0, 90 * DAY), at);
        // A reload that is refused for something else leaves the old one in force.
        plan.see(&acme, std::slice::from_ref(&missing));
        assert_eq!(plan.next(&acme, 0, at), Next::Wait(Duration::from_secs(60 * 86_400)));
        plan.see(&acme, &[ordered(&["a.test"], Some((&["a.test"], 0, 90)))]);
        // From then on the file counts, whoever writes it.
        let old = ordered(&["a.test"], Some((&["a.test"], -80, 10)));
        plan.see(&acme, std::slice::from_ref(&old));
        assert_eq!(plan.next(&acme, 0, at + FLOOR.0), Next::Order(old));
    }

    #[test]
    fn what_is_due_as_soon_as_it_comes_is_not_ordered_at_once() {
        const HOUR: i64 = 3600;
        let (acme, at) = (acme("https://a.test/"), Instant::now());
        let missing = ordered(&["a.test"], None);
        let mut plan = Plan::default();
        plan.see(&acme, std::slice::from_ref(&missing));
        // By our calendar it has ended long ago, and it is read, too.
        plan.issued(&missing, (0, 90 * DAY), at);
        let ended = ordered(&["a.test"], Some((&["a.test"], 0, 90)));
        for known in [missing, Arc::clone(&ended)] {
            plan.see(&acme, std::slice::from_ref(&known));
            assert_eq!(plan.next(&acme, 1000 * DAY, at), Next::Wait(FLOOR.0));
        }
        assert_eq!(plan.next(&acme, 1000 * DAY, at + FLOOR.0), Next::Order(ended));
        for (lifetime, expected) in [
            (90 * DAY, HOUR),
            (2 * HOUR, HOUR),
            (HOUR, HOUR / 2),
            (120, 60),
            (10, 60),
            (0, 60),
            (-DAY, 60),
            (i64::MAX, HOUR),
        ] {
            assert_eq!(after_success((0, lifetime)).as_secs(), expected.unsigned_abs(), "{lifetime}");
        }
        assert_eq!(after_success((i64::MIN, i64::MAX)), FLOOR.0);
    }

    #[test]
    fn an_authority_may_want_a_longer_pause() {
        let (acme, at) = (acme("https://a.test/"), Instant::now());
        let a = ordered(&["a.test"], None);
        let mut plan = Plan::default();
        plan.see(&acme, std::slice::from_ref(&a));
        for (least, expected) in [(7200, 7200), (1, 120)] {
            assert_eq!(plan.failed(&a, at, 0.0, least * SECOND), expected * SECOND);
            assert_eq!(plan.next(&acme, 0, at), Next::Wait(expected * SECOND));
        }
    }

    #[test]
    fn pauses_double_up_to_six_hours() {
        let minutes = |failures, chance| next_attempt(failures, chance).as_secs_f64() / 60.0;
        let expected = [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 360.0, 360.0];
        for (failures, expected) in expected.into_iter().enumerate() {
            assert_eq!(minutes(failures as u32, 0.0), expected, "{failures}");
            assert_eq!(minutes(failures as u32, 1.0), expected * 0.75, "{failures}");
        }
        assert_eq!(minutes(u32::MAX, 0.5), 315.0);
    }
}
