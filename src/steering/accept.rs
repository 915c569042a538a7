//! How much of a region's clients it accepts, and the draw that decides which clients those are.
//!
//! The draw is no dice: it is a hash of the client's network, the service and the region, so the same client gets the same answer
//! everywhere and for ever, lowering an acceptance moves only the clients between the two values, and raising it
//! brings the same ones back. Names are hashed, not ids: reordering a configuration moves nobody. The
//! function is frozen by the test vectors below; changing it moves every client of every split at once.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::geo::Canonical;
use crate::steering::decision::PassReason;
use crate::steering::fleet::Draw;
use crate::steering::select::Heed;
use crate::steering::snapshot::{PoolState, PoolView};

/// What a draw is for. Each use has its own tag, so that the draws of one client are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Whether a region accepts a client.
    Accept = 0,
    /// A region's score in a split.
    Split = 1,
}

/// How many tags there are.
pub const TAGS: usize = 2;

/// The seeds of a region for a service, one for each [`Tag`]: XXH3-64 of `service`, a byte that no name
/// holds, `region`, seeded with the tag.
pub fn seeds(service: &str, region: &str) -> [u64; TAGS] {
    let mut text = Vec::with_capacity(service.len() + region.len() + 1);
    text.extend_from_slice(service.as_bytes());
    text.push(0xff);
    text.extend_from_slice(region.as_bytes());
    [Tag::Accept, Tag::Split].map(|tag| xxh3_64_with_seed(&text, tag as u64))
}

/// What a client's draws are keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey(u64);

impl DrawKey {
    /// The key of `client` under a service's `draw`. `chance` counts for `draw = "request"` only.
    pub fn new(draw: Draw, client: Canonical, chance: u64) -> DrawKey {
        DrawKey(match draw {
            Draw::Network => u64::from_le_bytes(client.network_key()),
            Draw::Address => match client.ip() {
                std::net::IpAddr::V4(v4) => xxh3_64(&v4.octets()),
                std::net::IpAddr::V6(v6) => xxh3_64(&v6.octets()),
            },
            Draw::Request => chance,
        })
    }

    /// u(s, network, r) of SEMANTICS, in (0, 1): XXH3-64 of the key, seeded by one of [`seeds`], its upper 53 bits
    /// centred in their interval.
    pub fn draw(self, seed: u64) -> f64 {
        let hash = xxh3_64_with_seed(&self.0.to_le_bytes(), seed);
        ((hash >> 11) as f64 + 0.5) * (1.0 / (1u64 << 53) as f64)
    }

    /// A region's score in a weighted rendezvous: −ln(u)/w, the smallest wins. `weight` > 0.
    pub fn score(self, seed: u64, weight: u32) -> f64 {
        -self.draw(seed).ln() / f64::from(weight)
    }
}

/// Whether a region takes the client with draw `u`: u < dial × ramp × spill × shed; else why not. In panic, what was observed does
/// not count and only the dial does; when every region in the sets asks to be drained, none has whom to spill to.
pub fn accepts(dial: u8, pool: &PoolView, shed: f64, heed: Heed, draw: impl FnOnce() -> f64) -> Result<(), PassReason> {
    let (ramp, spill) = match heed {
        Heed::All => (pool.ramp, pool.spill * shed),
        Heed::Verdicts => (pool.ramp, shed),
        Heed::Nothing => (1.0, 1.0),
    };
    if dial >= 100 && ramp >= 1.0 && spill >= 1.0 {
        return Ok(());
    }
    let dial = f64::from(dial) / 100.0;
    // The factors are nested, so the first that leaves the client out is the reason.
    let u = draw();
    if u >= dial {
        Err(PassReason::Dial)
    } else if u >= dial * ramp {
        Err(if pool.state == PoolState::Holding { PassReason::Holding } else { PassReason::Ramping })
    } else if u >= dial * ramp * spill {
        Err(PassReason::OverTarget)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These values are a promise to every deployed fleet: see the module's head.
    #[test]
    fn draws_are_frozen() {
        let client = |text: &str| Canonical::new(text.parse().unwrap());
        let [accept, split] = seeds("web", "us-east");
        assert_ne!(accept, split);
        let mut got = Vec::new();
        for address in ["192.0.2.7", "192.0.2.250", "2001:db8:1:2::1"] {
            let network = DrawKey::new(Draw::Network, client(address), 0);
            let one = DrawKey::new(Draw::Address, client(address), 0);
            got.push((network.draw(accept), network.draw(split), one.draw(accept)));
        }
        assert_eq!((got[0].0, got[0].1), (got[1].0, got[1].1), "one /24, one draw");
        let text: Vec<String> = got.iter().map(|(a, b, c)| format!("{a:.12} {b:.12} {c:.12}")).collect();
        assert_eq!(text, VECTORS);
    }

    /// Accept and split draw by network, accept draw by address; computed with another implementation of XXH3 as well.
    const VECTORS: [&str; 3] = [
        "0.698759340508 0.483797644903 0.186717831107",
        "0.698759340508 0.483797644903 0.835008464641",
        "0.375095598456 0.169641397668 0.989510234183",
    ];
}
