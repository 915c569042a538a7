//! Services' `rate_limit`: who keeps it, and what a client is told that asks too often.
//!
//! A limiter outlives reloads that do not change its limit, so that nobody gets new permits by one. Services without a limit cost nothing here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::geo::Canonical;
use crate::rate::Limiter;
use crate::steering::fleet::RateLimit;

/// What keeps the limit of each service, by name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Rates(Arc<ArcSwap<ByName>>);

type ByName = HashMap<String, (RateLimit, Arc<Limiter>)>;

impl Rates {
    /// Takes a permit of that client for that service; an error: there is none, and how long until there is one.
    pub fn take(&self, service: &str, limit: &RateLimit, client: Canonical) -> Result<(), Duration> {
        let known = self.0.load();
        if let Some((_, limiter)) = known.get(service).filter(|(known, _)| known == limit) {
            return limiter.take(client);
        }
        let RateLimit { requests, per, burst, prefixes } = *limit;
        let new = Arc::new(Limiter::new(requests, per, burst, prefixes));
        let with = |known: &Arc<ByName>| {
            let mut next = ByName::clone(known);
            // Another request may have been as quick.
            if next.get(service).is_none_or(|(known, _)| known != limit) {
                next.insert(service.to_owned(), (*limit, Arc::clone(&new)));
            }
            next
        };
        self.0.rcu(with);
        self.0.load().get(service).map_or(Ok(()), |(_, limiter)| limiter.take(client))
    }

    /// Forgets the networks that have not asked lately, and services that are not `there` any more.
    pub fn sweep(&self, there: impl Fn(&str) -> bool) {
        let known = self.0.load();
        known.values().for_each(|(_, limiter)| limiter.sweep());
        if !known.keys().all(|name| there(name)) {
            self.0.rcu(|known| {
                known
                    .iter()
                    .filter(|(name, _)| there(name))
                    .map(|(name, kept)| (name.clone(), kept.clone()))
                    .collect::<ByName>()
            });
        }
    }
}

/// Fields of an answer: name and value.
pub type Told = [(&'static str, String); 3];

/// What a client is told that may ask again after `wait`: `Retry-After` (RFC 9110, 10.2.3), and the quota and what is left of it
/// (draft-ietf-httpapi-ratelimit-headers-10).
pub fn told(limit: &RateLimit, wait: Duration) -> Told {
    // Rounded up: a second too early is refused again.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let RateLimit { requests, per, .. } = limit;
    [
        ("Retry-After", seconds.to_string()),
        ("RateLimit-Policy", format!("\"default\";q={requests};w={}", per.as_secs())),
        ("RateLimit", format!("\"default\";r=0;t={seconds}")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn a_limit_is_kept_until_it_changes() {
        let limit = |requests| RateLimit {
            requests: NonZeroU32::new(requests).unwrap(),
            per: Duration::from_secs(60),
            burst: NonZeroU32::new(requests).unwrap(),
            prefixes: [32, 64],
        };
        let (rates, client) = (Rates::default(), Canonical::new("192.0.2.1".parse().unwrap()));
        let take = |service, requests| rates.take(service, &limit(requests), client).is_ok();
        assert_eq!([take("a", 2), take("a", 2), take("a", 2)], [true, true, false]);
        assert!(take("b", 2), "another service has permits of its own");
        assert_eq!([take("a", 3), take("a", 3), take("a", 3), take("a", 3)], [true, true, true, false]);
        rates.sweep(|name| name == "a");
        assert!(!take("a", 3));
        let wait = rates.take("a", &limit(3), client).unwrap_err();
        let [(_, retry), (_, policy), (_, left)] = told(&limit(3), wait);
        assert_eq!(
            (retry.as_str(), policy.as_str(), left.as_str()),
            ("20", "\"default\";q=3;w=60", "\"default\";r=0;t=20")
        );
        assert_eq!(rates.0.load().len(), 1, "what is gone is forgotten");
    }
}
