//! How often something may happen for one client network: a bucket of permits for each (GCRA, by the `governor` crate).
//!
//! What peers choose, their addresses, must not grow memory without bound: networks share [`BUCKETS`] buckets, by a hash whose seed nobody outside
//! knows. Two networks that meet in one are rare, and cost each other permits, never more. Must not know what is counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::geo::Canonical;

/// Networks that are told apart: some 10 MB when all are in use.
const BUCKETS: u64 = 1 << 18;

/// Permits for each network.
#[derive(Debug)]
pub struct Limiter {
    permits: RateLimiter<u32, DashMapStateStore<u32>, MonotonicClock>,
    prefixes: [u8; 2],
    seed: u64,
}

impl Limiter {
    /// `permits` in `per` for each network, and at most `burst` at once. Networks are of these prefix lengths, of IPv4 and of IPv6.
    pub fn new(permits: NonZeroU32, per: Duration, burst: NonZeroU32, prefixes: [u8; 2]) -> Limiter {
        let each = (per / permits.get()).max(Duration::from_nanos(1));
        // It is none for a time of zero only.
        let quota = Quota::with_period(each).unwrap_or(Quota::per_second(permits)).allow_burst(burst);
        let permits = RateLimiter::dashmap_with_clock(quota, MonotonicClock);
        Limiter { permits, prefixes, seed: fastrand::u64(..) }
    }

    /// Takes a permit of that client's network; an error: there is none, and how long until there is one.
    pub fn take(&self, client: Canonical) -> Result<(), Duration> {
        let bucket = xxh3_64_with_seed(&network(client, self.prefixes), self.seed) % BUCKETS;
        self.permits.check_key(&(bucket as u32)).map_err(|refused| refused.wait_time_from(MonotonicClock.now()))
    }

    /// Forgets the networks that have all of their permits again.
    pub fn sweep(&self) {
        self.permits.retain_recent();
        self.permits.shrink_to_fit();
    }
}

/// The first bits of an address, with its family.
fn network(client: Canonical, [v4, v6]: [u8; 2]) -> [u8; 17] {
    let mut key = [0; 17];
    match client.ip() {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4.min(32))).unwrap_or(0);
            key[0] = 4;
            key[1..5].copy_from_slice(&Ipv4Addr::from(u32::from(address) & mask).octets());
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6.min(128))).unwrap_or(0);
            key[0] = 6;
            key[1..].copy_from_slice(&Ipv6Addr::from(u128::from(address) & mask).octets());
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Canonical {
        Canonical::new(text.parse().unwrap())
    }

    #[test]
    fn a_network_has_its_permits_and_no_more() {
        let [permits, burst] = [10, 3].map(|count| NonZeroU32::new(count).unwrap());
        let limiter = Limiter::new(permits, Duration::from_secs(3600), burst, [24, 48]);
        for _ in 0..3 {
            assert_eq!(limiter.take(client("192.0.2.1")), Ok(()));
        }
        let wait = limiter.take(client("192.0.2.200")).unwrap_err();
        assert!((300..=360).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(limiter.take(client("192.0.3.1")), Ok(()));
        // The address inside is whose it is.
        assert!(limiter.take(client("::ffff:192.0.2.9")).is_err());
        limiter.sweep();
        assert!(limiter.take(client("192.0.2.1")).is_err(), "what is in use is not forgotten");
    }

    #[test]
    fn networks_are_cut_where_it_is_asked_for() {
        let rows = [
            ("192.0.2.77", [32, 64], "192.0.2.77"),
            ("192.0.2.77", [24, 64], "192.0.2.0"),
            ("192.0.2.77", [0, 64], "0.0.0.0"),
            ("2001:db8:1:2:3::9", [32, 64], "2001:db8:1:2::"),
            ("2001:db8:1:2:3::9", [32, 128], "2001:db8:1:2:3::9"),
            ("2001:db8:1:2:3::9", [32, 0], "::"),
        ];
        for (address, prefixes, expected) in rows {
            assert_eq!(network(client(address), prefixes), network(client(expected), [32, 128]), "{address}");
        }
        assert_ne!(network(client("0.0.0.0"), [32, 128]), network(client("::"), [32, 128]));
    }
}
