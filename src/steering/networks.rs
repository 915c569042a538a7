//! `[geoip.networks]`: networks whose clients go straight to a region. Longest prefix wins.
//!
//! Kept beside the atlas, not in it: these lines change with the configuration, the atlas only with data.

use crate::geo::{Canonical, Prefix};
use crate::steering::fleet::RegionId;

/// Disjoint ranges in ascending order, the longest prefix of each already chosen.
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

fn bits(address: std::net::IpAddr) -> (bool, u128) {
    match address {
        std::net::IpAddr::V4(a) => (false, u128::from(u32::from(a))),
        std::net::IpAddr::V6(a) => (true, u128::from(a)),
    }
}

impl Networks {
    /// From the configured lines; the same prefix twice is refused by the configuration before this.
    pub fn new(entries: impl IntoIterator<Item = (Prefix, RegionId)>) -> Networks {
        // Shortest first: a longer prefix then cuts its range out of the shorter one that holds it.
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(prefix, _)| prefix.prefix_len());
        let mut ranges: Vec<Range> = Vec::new();
        for (prefix, region) in entries {
            let new =
                Range { first: bits(prefix.first()), last: bits(prefix.last()), region, len: prefix.prefix_len() };
            let mut next = Vec::with_capacity(ranges.len() + 2);
            for old in ranges {
                if old.last < new.first || new.last < old.first {
                    next.push(old);
                    continue;
                }
                if old.first < new.first {
                    next.push(Range { last: (new.first.0, new.first.1 - 1), ..old });
                }
                if new.last < old.last {
                    next.push(Range { first: (new.last.0, new.last.1 + 1), ..old });
                }
            }
            next.push(new);
            ranges = next;
        }
        ranges.sort_by_key(|range| range.first);
        Networks { ranges }
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
