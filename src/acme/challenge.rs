//! Answers to challenges that are pending: what an authority will ask us for, to see that names are ours.
//!
//! Whoever orders a certificate puts them here ([`Challenges::put`]), whoever is asked looks here: handshakes in `listen`, requests in `proxy`. Most of the time there are none, and
//! then a look costs one load of a flag. Must not know who orders, nor who asks.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;

/// Where requests for answers are made (RFC 8555, 8.3).
const PATH: &str = "/.well-known/acme-challenge/";

/// More than any token has.
const MOST_TOKEN: usize = 128;

/// What is answered.
#[derive(Clone)]
pub enum Answer {
    /// A handshake for that name, in lower case, is answered with that certificate (RFC 8737).
    Handshake(String, Arc<CertifiedKey>),
    /// A request with that token is answered with that text.
    Request(String, Arc<str>),
}

/// The answers that are pending. Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub struct Challenges(Arc<Inner>);

#[derive(Default)]
struct Inner {
    any: AtomicBool,
    /// Held by who changes both: who is asked never waits for it.
    changing: Mutex<()>,
    answers: ArcSwap<Vec<Answer>>,
}

/// As long as this is held, the answers are given.
#[must_use]
pub struct Pending(Challenges, Arc<Vec<Answer>>);

impl Challenges {
    /// Has these given instead of those before; for one who orders at a time.
    pub fn put(&self, answers: Vec<Answer>) -> Pending {
        let answers = Arc::new(answers);
        let _changing = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.answers.store(Arc::clone(&answers));
        self.0.any.store(!answers.is_empty(), Relaxed);
        Pending(self.clone(), answers)
    }

    /// Whether any are pending.
    pub fn any(&self) -> bool {
        self.0.any.load(Relaxed)
    }

    /// The certificate for a handshake that asks for that name.
    pub fn handshake(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.0.answers.load().iter().find_map(|answer| match answer {
            Answer::Handshake(pending, key) if pending.eq_ignore_ascii_case(name) => Some(Arc::clone(key)),
            _ => None,
        })
    }

    /// The answer to a request for that path.
    pub fn request(&self, path: &str) -> Option<Arc<str>> {
        let token = path.strip_prefix(PATH).filter(|token| token.len() <= MOST_TOKEN)?;
        self.0.answers.load().iter().find_map(|answer| match answer {
            Answer::Request(pending, text) if pending.as_bytes() == token.as_bytes() => Some(Arc::clone(text)),
            _ => None,
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let _changing = self.0.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of an order that was left may be gone only after the next one's have come, or while they come.
        if Arc::ptr_eq(&self.0.0.answers.load(), &self.1) {
            self.0.0.any.store(false, Relaxed);
            self.0.0.answers.store(Arc::default());
        }
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenges").field("any", &self.any()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::own;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn answers_are_given_while_they_are_pending() {
        let challenges = Challenges::default();
        assert!(!challenges.any());
        let key = own::challenge("a.test", &[7; 32]).unwrap();
        let answers = vec![
            Answer::Request("token".into(), "token.print".into()),
            Answer::Handshake("a.test".into(), Arc::new(key)),
        ];
        let pending = challenges.put(answers);
        let clone = challenges.clone();
        assert!(clone.any());
        assert!(clone.handshake("A.test").is_some() && clone.handshake("b.test").is_none());
        assert_eq!(clone.request("/.well-known/acme-challenge/token").as_deref(), Some("token.print"));
        for other in ["", "Token", "toke", "token/", "token2", &"x".repeat(200)] {
            assert_eq!(clone.request(&format!("/.well-known/acme-challenge/{other}")), None, "{other}");
        }
        assert_eq!(clone.request("/token"), None);
        drop(pending);
        assert!(!clone.any() && clone.request("/.well-known/acme-challenge/token").is_none());
    }

    #[test]
    fn an_order_that_is_left_takes_nothing_from_the_next() {
        let challenges = Challenges::default();
        let put = |token: &str| challenges.put(vec![Answer::Request(token.into(), "x".into())]);
        // Both go on from one moment, one of them ever later: somewhere between the other's look and its removal.
        let (at, slot) = (AtomicUsize::new(0), Mutex::new(None));
        let reaches = |moment| {
            while at.load(SeqCst) < moment {
                std::thread::yield_now();
            }
        };
        const ROUNDS: usize = 20_000;
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for round in 0..ROUNDS {
                    reaches(3 * round + 1);
                    let old: Option<Pending> = slot.lock().unwrap().take();
                    at.store(3 * round + 2, SeqCst);
                    drop(old);
                    at.fetch_add(1, SeqCst);
                }
            });
            let mut lost = 0;
            for round in 0..ROUNDS {
                *slot.lock().unwrap() = Some(put("old"));
                let answers = vec![Answer::Request("new".into(), "x".into())];
                at.store(3 * round + 1, SeqCst);
                while at.load(SeqCst) < 3 * round + 2 {
                    std::hint::spin_loop();
                }
                (0..round % 100).for_each(|_| std::hint::spin_loop());
                let new = challenges.put(answers);
                reaches(3 * round + 3);
                lost +=
                    usize::from(!challenges.any() || challenges.request("/.well-known/acme-challenge/new").is_none());
                drop(new);
            }
            assert_eq!(lost, 0, "of {ROUNDS}");
        });
    }
}
