//! A sample of who asks for a service: the networks of its clients, of the last hours.
//!
//! What a change does to clients is asked of those that there are: a PoP in one country sees little of the world, and half of the world's addresses
//! may be a twentieth of its traffic. Counted is by networks and not by places, because geo data can change, too, and then the same networks are
//! elsewhere.
//!
//! Requests write into a ring, one in so many that a ring lasts for some hours; the writer says how many from time to time. A network is its
//! first 24 bits (IPv6: 48), as for draws: more is not needed, and less of a client could not be kept.
//!
//! It must not know what is asked of the sample, nor where it is kept.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::geo::{Atlas, Canonical, Source};
use crate::steering::world::Now;

/// Clients of a sample: for a half of them the error is about one in a hundred, two times in three.
pub const SIZE: usize = 2048;

/// How long a ring should last.
const SPAN: Duration = Duration::from_secs(3 * 3600);

/// Requests are counted this often, and for this long before fewer are left out.
const SECOND: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_secs(60);

/// What was seen is a sample from so many on.
pub const ENOUGH: usize = SIZE / 4;

/// Addresses, where too few clients were seen.
const ADDRESSES: usize = 3_000;

/// Addresses that are tried to find them: two fifths of all are known to a database of the world.
const TRIES: u64 = 60_000;

/// More than any traffic needs.
const THINNEST: u32 = 40;

/// The sample of one service. Written by many at once.
#[derive(Debug)]
pub struct Clients {
    /// Network keys; 0: none yet.
    ring: Box<[AtomicU64]>,
    taken: AtomicU32,
    /// See [`Clients::thin`].
    thin: AtomicU32,
}

impl Default for Clients {
    fn default() -> Clients {
        let ring = (0..SIZE).map(|_| AtomicU64::new(0)).collect();
        Clients { ring, taken: AtomicU32::new(0), thin: AtomicU32::new(0) }
    }
}

impl Clients {
    /// A request of that client; `chance` is the request's.
    pub fn see(&self, client: Canonical, chance: u64) {
        if chance.trailing_zeros() >= self.thin() {
            let at = self.taken.fetch_add(1, Relaxed) as usize % SIZE;
            self.ring[at].store(u64::from_be_bytes(client.network_key()), Relaxed);
        }
    }

    /// An address of each network in the sample, in no order; a network is there as often as it was taken.
    pub fn networks(&self) -> Vec<Canonical> {
        let keys = self.ring.iter().map(|key| key.load(Relaxed));
        keys.filter_map(|key| Canonical::of_network_key(key.to_be_bytes())).collect()
    }

    /// Puts what was kept of an earlier process into the ring; `thin` is its [`Clients::thin`].
    pub fn recall(&self, thin: u32, networks: impl IntoIterator<Item = Canonical>) {
        for (place, network) in self.ring.iter().zip(networks) {
            place.store(u64::from_be_bytes(network.network_key()), Relaxed);
        }
        self.thin.store(thin.min(THINNEST), Relaxed);
    }

    /// One request in 2^thin is taken.
    pub fn thin(&self) -> u32 {
        self.thin.load(Relaxed)
    }

    /// Says how many requests are to be left out, by how many were taken within this time; asked every second or so. More are left out at once,
    /// so that a burst does not fill the ring; fewer only by what came within [`EVERY`], and little by little.
    fn thin_out(&self, taken: u32, within: Duration) {
        let wanted = SIZE as f64 * within.as_secs_f64() / SPAN.as_secs_f64();
        let requests = f64::from(taken) * f64::from(self.thin()).exp2();
        let thin = (requests / wanted).max(1.0).log2().ceil() as u32;
        let least = match within >= EVERY {
            true => self.thin().saturating_sub(1),
            // A second tells of few, so it has to tell of far too many.
            false if f64::from(taken) < wanted * 30.0 => return,
            false => self.thin(),
        };
        self.thin.store(thin.max(least).min(THINNEST), Relaxed);
    }
}

/// The sample of one service as the writer holds it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sampling {
    clients: Arc<Clients>,
    /// When it was looked at last, and how many were taken until then.
    looked: (Now, u32),
    /// The same a minute ago.
    minute: (Now, u32),
}

impl Sampling {
    pub(super) fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }

    /// Has the sample last as long as it should; asked as often as one likes.
    pub(super) fn look(&mut self, now: Now) {
        let taken = self.clients.taken.load(Relaxed);
        for (before, every) in [(&mut self.looked, SECOND), (&mut self.minute, EVERY)] {
            let since = now.since(before.0);
            if since >= every {
                self.clients.thin_out(taken.wrapping_sub(before.1), since);
                *before = (now, taken);
            }
        }
    }
}

/// Addresses that stand for clients until enough were seen: some that a database knows (without one, any), each as likely as any other, so that a country
/// counts by its addresses. They are always the same, so that the same question has the same figures.
pub fn addresses(atlas: &Atlas) -> Vec<Canonical> {
    let is_known = |client: &Canonical| matches!(atlas.place(atlas.locate(*client).place).source, Source::Database(_));
    let all = || (1..=TRIES).map(|n| Canonical::new(Ipv4Addr::from((scatter(n) >> 32) as u32).into()));
    let known: Vec<_> = all().filter(is_known).take(ADDRESSES).collect();
    if known.is_empty() { all().take(ADDRESSES).collect() } else { known }
}

/// SplitMix64: a number for the n-th client that looks like chance and is always the same.
pub fn scatter(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_lasts_for_hours_whatever_comes() {
        let clients = Clients::default();
        let mut bits = 0_u64;
        for per_minute in [40_000_u32, 400, 40_000] {
            let mut taken = 0;
            for _ in 0..12 {
                let before = clients.taken.load(Relaxed);
                for n in 0..per_minute {
                    bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    clients.see(Canonical::new([192, 0, 2, n as u8].into()), bits >> 20);
                }
                taken = clients.taken.load(Relaxed) - before;
                clients.thin_out(taken, EVERY);
            }
            // Eleven a minute are wanted, and half of them are enough.
            assert!((2..=25).contains(&taken), "{taken} of {per_minute}");
        }
        assert!(clients.networks().iter().all(|network| network.ip().to_string() == "192.0.2.0"));
    }

    #[test]
    fn a_burst_takes_little_of_the_ring() {
        let clients = Clients::default();
        (0..SIZE).for_each(|_| clients.see(Canonical::new([192, 0, 2, 1].into()), 0));
        for _ in 0..12 {
            clients.thin_out(10, EVERY);
        }
        let mut bits = 7_u64;
        for _ in 0..60 {
            let before = clients.taken.load(Relaxed);
            for _ in 0..2000 {
                bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                clients.see(Canonical::new([203, 0, 113, 1].into()), bits >> 20);
            }
            clients.thin_out(clients.taken.load(Relaxed) - before, Duration::from_secs(1));
        }
        let burst = clients.networks().iter().filter(|network| network.ip().to_string() == "203.0.113.0").count();
        assert!(burst < SIZE * 11 / 10 && burst > 0, "{burst}");
        assert!(clients.thin() >= 10, "{}", clients.thin());
    }

    #[test]
    fn networks_of_both_families_are_kept() {
        let clients = Clients::default();
        assert!(clients.networks().is_empty());
        let all = ["198.51.100.7", "2001:db8:1:2::3"].map(|text| Canonical::new(text.parse().unwrap()));
        clients.recall(3, all);
        assert_eq!(clients.thin(), 3);
        let kept: Vec<String> = clients.networks().iter().map(|network| network.ip().to_string()).collect();
        assert_eq!(kept, ["198.51.100.0", "2001:db8:1::"]);
        assert_eq!(clients.networks()[0].network_key(), all[0].network_key());
    }
}
