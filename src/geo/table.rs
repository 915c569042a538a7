//! Ranges packed for look-ups.
//!
//! What a look-up costs is cold cache lines, not comparisons: 8 million ranges are fifty megabytes whatever one does.
//! So ranges are kept in cache lines, each with its own keys and what they lead to, and above them only what stays
//! warm: a root indexed by the upper 16 bits; branches over as many further bits as are needed where ranges crowd
//! (IPv6 is so unevenly filled that no fixed second index would do); and the first key of every line, to find the one
//! line among the few under a root or branch entry. Keys are cut to the 16 bits that matter below their entry, wider
//! ones are rare. In the end a look-up touches one line that is not warm, or none.
//!
//! A plain binary search over all starts touches a dozen; a direct table of 2^24 entries is 64 MB for IPv4 alone, and
//! nothing like it exists for IPv6. Must not know places.

use crate::geo::PlaceId;
use crate::geo::ranges::{Divided, Ranges, Slot};

const ROOT_BITS: u32 = 16;
/// Ranges that a branch aims to leave under each of its entries. Fewer make branches that are not warm any more, more
/// make several branches one below the other; measured between 8 and 64.
const BRANCH_RANGES: usize = 32;

/// An address family's ranges, packed.
pub(super) struct Table {
    root: Box<[u32]>,
    /// The entries of all branches, one branch after the other.
    branches: Vec<u32>,
    narrow: Lines<u16, 10>,
    middle: Lines<u32, 8>,
    wide: Lines<u64, 5>,
    divided: Divided,
}

/// Ranges in order, a cache line full at a time. A line that is not full repeats its last range, so that a search needs
/// no length.
struct Lines<K, const N: usize> {
    lines: Vec<Line<K, N>>,
    /// The first key of each line.
    firsts: Vec<K>,
}

#[repr(align(64))]
struct Line<K, const N: usize> {
    keys: [K; N],
    slots: [Slot; N],
}

/// The upper bits of what is left of an address below an entry.
trait Key: Copy + Ord {
    fn of(rest: u64) -> Self;
}

macro_rules! key {
    ($type:ty) => {
        impl Key for $type {
            fn of(rest: u64) -> Self {
                (rest >> (64 - <$type>::BITS)) as $type
            }
        }
    };
}
key!(u16);
key!(u32);
key!(u64);

impl<K: Key, const N: usize> Lines<K, N> {
    fn new(capacity: usize) -> Self {
        Lines { lines: Vec::with_capacity(capacity / N), firsts: Vec::with_capacity(capacity / N) }
    }

    /// Appends ranges whose keys ascend from 0; returns the first line and how many there are.
    fn push(&mut self, ranges: &[(u64, Slot)]) -> Leaf {
        let offset = self.lines.len();
        for chunk in ranges.chunks(N) {
            let at = |n: usize| chunk[n.min(chunk.len() - 1)];
            self.lines
                .push(Line { keys: std::array::from_fn(|n| K::of(at(n).0)), slots: std::array::from_fn(|n| at(n).1) });
            self.firsts.push(K::of(chunk[0].0));
        }
        Leaf { offset, lines: self.lines.len() - offset }
    }

    fn find(&self, leaf: Leaf, rest: u64) -> Slot {
        let key = K::of(rest);
        // The first key of a leaf and that of the line found are not above the address, so neither count is 0.
        let firsts = &self.firsts[leaf.offset..leaf.offset + leaf.lines];
        let line = &self.lines[leaf.offset + firsts.partition_point(|first| *first <= key) - 1];
        let after: usize = line.keys.iter().map(|start| usize::from(*start <= key)).sum();
        line.slots[after - 1]
    }

    fn memory_bytes(&self) -> usize {
        self.lines.len() * (size_of::<Line<K, N>>() + size_of::<K>())
    }
}

/// Lines that belong together.
#[derive(Clone, Copy)]
struct Leaf {
    offset: usize,
    lines: usize,
}

/// An entry of the root or of a branch, in 32 bits, the highest first:
///
/// ```text
/// 0    slot:31                       the answer
/// 10   lines-1:5  offset:25          a leaf of 16-bit keys
/// 110  bits-1:4   offset:25          a branch over that many bits
/// 1110 lines-1:4  offset:24          a leaf of 32-bit keys
/// 1111 lines-1:4  offset:24          a leaf of 64-bit keys
/// ```
#[derive(Clone, Copy)]
enum Entry {
    Slot(Slot),
    Narrow(Leaf),
    Branch { bits: u32, offset: usize },
    Middle(Leaf),
    Wide(Leaf),
}

impl Entry {
    fn pack(self) -> u32 {
        match self {
            Entry::Slot(slot) => slot.bits(),
            Entry::Narrow(leaf) => 0b10 << 30 | (leaf.lines as u32 - 1) << 25 | leaf.offset as u32,
            Entry::Branch { bits, offset } => 0b110 << 29 | (bits - 1) << 25 | offset as u32,
            Entry::Middle(leaf) => 0b1110 << 28 | (leaf.lines as u32 - 1) << 24 | leaf.offset as u32,
            Entry::Wide(leaf) => 0b1111 << 28 | (leaf.lines as u32 - 1) << 24 | leaf.offset as u32,
        }
    }

    fn unpack(entry: u32) -> Entry {
        let low = |bits: u32| entry as usize & ((1 << bits) - 1);
        let leaf = || Leaf { offset: low(24), lines: (low(28) >> 24) + 1 };
        // Compared in the order of how often they come, not by a jump table: the processor foresees the first two.
        if entry < 0b1 << 31 {
            Entry::Slot(Slot::from_bits(entry))
        } else if entry < 0b11 << 30 {
            Entry::Narrow(Leaf { offset: low(25), lines: (low(30) >> 25) + 1 })
        } else if entry < 0b111 << 29 {
            Entry::Branch { bits: (low(29) >> 25) as u32 + 1, offset: low(25) }
        } else if entry < 0b1111 << 28 {
            Entry::Middle(leaf())
        } else {
            Entry::Wide(leaf())
        }
    }
}

impl Table {
    /// More than any database has (the largest: 5 million in one family), and few enough that offsets never run
    /// out: there is at most a line for each range, and branches have fewer entries than that.
    pub(super) const MAX_RANGES: usize = 1 << 24;

    /// Packs ranges.
    pub(super) fn new(ranges: Ranges) -> Table {
        let (starts, slots) = (ranges.starts(), ranges.slots());
        let mut packer = Packer {
            starts,
            slots,
            branches: Vec::new(),
            // Memory that is reserved and never touched is not there.
            narrow: Lines::new(starts.len() * 2),
            middle: Lines::new(starts.len() / 2),
            wide: Lines::new(0),
        };
        let mut root = vec![0; 1 << ROOT_BITS].into_boxed_slice();
        let mut span = Span { first: 0, end: 0, before: Slot::from_bits(PlaceId::UNKNOWN.0) };
        for (index, entry) in root.iter_mut().enumerate() {
            let base = (index as u64) << (64 - ROOT_BITS);
            span = packer.next_span(span, base, ROOT_BITS, starts.len());
            *entry = packer.pack(span, base, ROOT_BITS);
        }
        let Packer { branches, narrow, middle, wide, .. } = packer;
        Table { root, branches, narrow, middle, wide, divided: ranges.into_divided() }
    }

    /// The place that holds at an address: its bits from the highest down.
    pub(super) fn find(&self, address: u128) -> PlaceId {
        let upper = (address >> 64) as u64;
        let mut entry = self.root[(upper >> (64 - ROOT_BITS)) as usize];
        let mut rest = upper << ROOT_BITS;
        let slot = loop {
            match Entry::unpack(entry) {
                Entry::Slot(slot) => break slot,
                Entry::Narrow(leaf) => break self.narrow.find(leaf, rest),
                Entry::Branch { bits, offset } => {
                    entry = self.branches[offset + (rest >> (64 - bits)) as usize];
                    rest <<= bits;
                }
                Entry::Middle(leaf) => break self.middle.find(leaf, rest),
                Entry::Wide(leaf) => break self.wide.find(leaf, rest),
            }
        };
        match slot.get() {
            Ok(place) => place,
            Err(index) => self.divided.find(index, address as u64),
        }
    }

    /// Bytes it occupies.
    pub(super) fn memory_bytes(&self) -> usize {
        let lines = self.narrow.memory_bytes() + self.middle.memory_bytes() + self.wide.memory_bytes();
        4 * (self.root.len() + self.branches.len()) + lines + self.divided.memory_bytes()
    }
}

/// The ranges that start within one root or branch entry, and what holds before the first of them.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    end: usize,
    before: Slot,
}

struct Packer<'a> {
    starts: &'a [u64],
    slots: &'a [Slot],
    branches: Vec<u32>,
    narrow: Lines<u16, 10>,
    middle: Lines<u32, 8>,
    wide: Lines<u64, 5>,
}

impl Packer<'_> {
    /// The span of the `depth` bits long prefix at `base`, which follows `previous`; nothing from `limit` on.
    fn next_span(&self, previous: Span, base: u64, depth: u32, limit: usize) -> Span {
        let first = previous.end;
        let inside = |start: u64| (start ^ base) >> (64 - depth) == 0;
        let mut end = first;
        while end < limit && inside(self.starts[end]) {
            end += 1;
        }
        Span { first, end, before: if previous.end > previous.first { self.slots[first - 1] } else { previous.before } }
    }

    fn pack(&mut self, span: Span, base: u64, depth: u32) -> u32 {
        let Span { first, end, before } = span;
        let starts = &self.starts[first..end];
        // What holds at the base, when no range starts there, began before it.
        let leading = (starts.first() != Some(&base)).then_some(before);
        let len = starts.len() + usize::from(leading.is_some());
        if len == 1 {
            return Entry::Slot(leading.unwrap_or_else(|| self.slots[first])).pack();
        }
        let key_bits = 64 - depth - starts.iter().fold(0, |all, start| all | start).trailing_zeros().min(64 - depth);
        let most = match key_bits {
            0..=16 => 10 * 32,
            17..=32 => 8 * 16,
            _ => 5 * 16,
        };
        if len > most {
            return self.pack_branch(span, base, depth, (len / BRANCH_RANGES).ilog2().clamp(1, 16));
        }
        let leading = leading.map(|slot| (0, slot));
        let starting = starts.iter().map(|start| start << depth).zip(self.slots[first..end].iter().copied());
        let ranges: Vec<(u64, Slot)> = leading.into_iter().chain(starting).collect();
        let entry = match key_bits {
            0..=16 => Entry::Narrow(self.narrow.push(&ranges)),
            17..=32 => Entry::Middle(self.middle.push(&ranges)),
            _ => Entry::Wide(self.wide.push(&ranges)),
        };
        entry.pack()
    }

    fn pack_branch(&mut self, span: Span, base: u64, depth: u32, bits: u32) -> u32 {
        let offset = self.branches.len();
        self.branches.resize(offset + (1 << bits), 0);
        let mut child = Span { first: span.first, end: span.first, before: span.before };
        for index in 0..1 << bits {
            let base = base | (index as u64) << (64 - depth - bits);
            child = self.next_span(child, base, depth + bits, span.end);
            self.branches[offset + index] = self.pack(child, base, depth + bits);
        }
        Entry::Branch { bits, offset }.pack()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::geo::ranges::under;

    /// A source that says something new at each start, and one that knows it already at others.
    type Starts = BTreeMap<u128, u32>;

    fn ranges(known: &Ranges, starts: &Starts) -> Ranges {
        let mut ranges = under(known);
        for (start, place) in starts {
            ranges.push(*start, PlaceId(*place));
        }
        ranges.finish()
    }

    fn at(starts: &Starts, address: u128) -> u32 {
        starts.range(..=address).next_back().map_or(0, |(_, place)| *place)
    }

    /// Addresses that cluster at every depth, as networks do: a few bits set anywhere, many alike.
    fn address() -> impl Strategy<Value = u128> {
        let part = prop_oneof![Just(0u16), Just(1), Just(0xffff), 0..4u16, any::<u16>()];
        prop_oneof![
            proptest::array::uniform8(part).prop_map(|p| p.iter().fold(0, |all, p| all << 16 | u128::from(*p))),
            (0..128u32, 0..128u32).prop_map(|(a, b)| 1 << a | 1 << b),
            // Thousands of neighbours under one /32, so that there are branches.
            (0..4096u128).prop_map(|n| 0x2600 << 112 | n << 84),
            Just(u128::MAX),
        ]
    }

    fn starts(count: usize) -> impl Strategy<Value = Starts> {
        proptest::collection::btree_map(address(), 0..5u32, 0..count)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_table_answers_as_a_plain_map_does(first in starts(600), second in starts(200), probes in proptest::collection::vec(address(), 50)) {
            let one = ranges(&Ranges::unknown(), &first);
            let table = Table::new(ranges(&one, &second));
            let edges = first.keys().chain(second.keys()).flat_map(|a| [a.wrapping_sub(1), *a, a.wrapping_add(1)]);
            for address in edges.chain(probes) {
                let expected = match at(&first, address) { 0 => at(&second, address), known => known };
                prop_assert_eq!(table.find(address), PlaceId(expected), "{:032x}", address);
            }
        }
    }

    #[test]
    fn of_equal_starts_the_last_counts() {
        let unknown = Ranges::unknown();
        let mut ranges = under(&unknown);
        for (start, place) in [(0, 1), (0, 2), (7, 3), (7, 4), (1 << 64, 5), (1 << 64, 4), (2 << 64, 6), (2 << 64, 7)] {
            ranges.push(start, PlaceId(place));
        }
        let table = Table::new(ranges.finish());
        for (address, place) in [(0, 2), (6, 2), (7, 4), (8, 4), (1 << 64, 4), (2 << 64, 7), (u128::MAX, 7)] {
            assert_eq!(table.find(address), PlaceId(place), "{address}");
        }
    }
}
