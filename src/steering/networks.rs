//! `[geoip.networks]`: networks whose clients go straight to a region. Longest prefix wins.
//!
//! Kept beside the atlas, not in it: these lines change with the configuration, the atlas only with data.

use crate::geo::{Canonical, Prefix};
use crate::steering::ids::RegionId;

/// Disjoint ranges in ascending order, the longest prefix of each already chosen. Families do not mix: the flag of a key is `true` for IPv6.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Networks {
    ranges: Vec<Range>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    first: (bool, u128),
    last: (bool, u128),
    region: RegionId,
    len: u8,
}

/// The ranges so far, the prefixes that are open, innermost last, and the first address not yet in a range.
struct Sweep {
    ranges: Vec<Range>,
    open: Vec<Range>,
    next: Option<(bool, u128)>,
}

impl Sweep {
    /// Gives what is left before `end` to the innermost open prefix.
    fn emit_until(&mut self, end: (bool, u128)) {
        if let (Some(inner), Some(next)) = (self.open.last(), self.next)
            && next < end
        {
            self.ranges.push(Range { first: next, last: (end.0, end.1 - 1), ..*inner });
        }
    }

    /// Gives what is left of the innermost open prefix to it, and closes it.
    fn close(&mut self) {
        let Some(inner) = self.open.pop() else { return };
        if let Some(next) = self.next
            && next <= inner.last
        {
            self.ranges.push(Range { first: next, ..inner });
        }
        // Past the last address of a family nothing is left to give.
        self.next = inner.last.1.checked_add(1).map(|bits| (inner.last.0, bits));
    }
}

fn bits(address: std::net::IpAddr) -> (bool, u128) {
    match address {
        std::net::IpAddr::V4(a) => (false, u128::from(u32::from(a))),
        std::net::IpAddr::V6(a) => (true, u128::from(a)),
    }
}

impl Networks {
    /// From the configured lines; the same prefix twice is refused by the configuration before this.
    pub fn new(entries: impl IntoIterator<Item = (Prefix, RegionId)>) -> Networks {
        let mut lines: Vec<Range> = entries
            .into_iter()
            .map(|(prefix, region)| Range {
                first: bits(prefix.first()),
                last: bits(prefix.last()),
                region,
                len: prefix.prefix_len(),
            })
            .collect();
        // Prefixes nest or are apart, so in this order each follows the one that holds it: a stack of the open ones is enough.
        lines.sort_by_key(|line| (line.first, line.len));
        let mut sweep = Sweep { ranges: Vec::with_capacity(lines.len()), open: Vec::new(), next: None };
        for line in lines {
            while sweep.open.last().is_some_and(|outer| outer.last < line.first) {
                sweep.close();
            }
            sweep.emit_until(line.first);
            sweep.next = Some(line.first);
            sweep.open.push(line);
        }
        while !sweep.open.is_empty() {
            sweep.close();
        }
        Networks { ranges: sweep.ranges }
    }

    /// The region of the longest prefix that holds `client`, and that prefix's length.
    pub fn lookup(&self, client: Canonical) -> Option<(RegionId, u8)> {
        if self.ranges.is_empty() {
            return None;
        }
        let key = bits(client.ip());
        let after = self.ranges.partition_point(|range| range.first <= key);
        let range = self.ranges[..after].last()?;
        (key <= range.last).then_some((range.region, range.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn it_agrees_with_looking_at_every_line(
            lines in proptest::collection::btree_map((0u32..64, 24u8..=32), 0u8..5, 0..20),
            at in proptest::collection::vec(0u32..0x500, 50),
        ) {
            let lines: std::collections::BTreeMap<Prefix, RegionId> = lines.into_iter().map(|((bits, len), region)| {
                let base = 0xffff_fc00u32 | bits << 4;
                let address = std::net::Ipv4Addr::from(base & (u32::MAX << (32 - u32::from(len))));
                (Prefix::new(address.into(), len).unwrap(), RegionId(region))
            }).collect();
            let table = Networks::new(lines.clone());
            for offset in at {
                let client = std::net::IpAddr::V4(std::net::Ipv4Addr::from(0xffff_fbffu32.wrapping_add(offset)));
                let want = lines.iter().filter(|(p, _)| p.contains(client)).max_by_key(|(p, _)| p.prefix_len());
                let want = want.map(|(p, r)| (*r, p.prefix_len()));
                proptest::prop_assert_eq!(table.lookup(Canonical::new(client)), want, "{}", client);
            }
        }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let table = Networks::new(
            [("10.0.0.0/8", 0), ("10.1.0.0/16", 1), ("10.1.2.3/32", 2), ("2001:db8::/32", 3), ("10.255.0.0/16", 4)]
                .map(|(p, r)| (p.parse().unwrap(), RegionId(r))),
        );
        for (address, want) in [
            ("10.0.0.0", Some((0, 8))),
            ("10.1.0.0", Some((1, 16))),
            ("10.1.2.2", Some((1, 16))),
            ("10.1.2.3", Some((2, 32))),
            ("10.1.2.4", Some((1, 16))),
            ("10.2.0.0", Some((0, 8))),
            ("10.255.255.255", Some((4, 16))),
            ("11.0.0.0", None),
            ("9.255.255.255", None),
            ("2001:db8:ffff::", Some((3, 32))),
            ("2001:db9::", None),
            ("::a01:203", None),
        ] {
            let got = table.lookup(Canonical::new(address.parse().unwrap()));
            assert_eq!(got, want.map(|(r, l)| (RegionId(r), l)), "{address}");
        }
    }
}
