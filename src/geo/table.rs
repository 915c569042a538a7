//! Ranges packed for look-ups.
//!
//! What a look-up costs is cache lines, not comparisons: 8 million ranges are fifty megabytes whatever one does. So
//! the upper 16 bits index a root; where a root slot holds many ranges, a branch indexes as many further bits as bring
//! them down to a few dozen (IPv6 is so unevenly filled that no fixed second index would do); and the ranges at the end lie in a
//! block, keys first, then slots, the keys cut to the 16 bits that matter there in nearly all cases. A look-up
//! touches two or three lines that are not warm. A plain binary search over all starts touches a dozen; a direct table
//! of 2^24 entries is 64 MB for IPv4 alone and one cold line and one cold page for each.
//!
//! Must not know places.

use crate::geo::PlaceId;
use crate::geo::ranges::{Divided, Ranges, Slot};

/// Ranges that fit into a block without another branch before it. 64 keys of 16 bits are two cache lines.
const BLOCK_RANGES: usize = 64;
/// Ranges that a branch aims to leave under each of its slots.
const BRANCH_RANGES: usize = 16;
const ROOT_BITS: u32 = 16;

/// An address family's ranges, packed.
#[derive(Debug)]
pub(super) struct Table {
    root: Box<[u32]>,
    /// Slots of all branches, one branch after the other.
    branches: Vec<u32>,
    /// Blocks of 16-bit units: the number of ranges (2 units), their keys (1, 2 or 4 units each), their slots (2 each).
    blocks: Vec<u16>,
    divided: Divided,
}

/// An entry of the root or of a branch, in 32 bits: the upper bit says whether the search goes on.
///
///     0 slot:31                            the answer
///     1 0 width:2 offset/4:28              a block; width is the log2 of the units of a key
///     1 1 bits-1:4 offset:26               a branch over that many bits
#[derive(Clone, Copy)]
enum Entry {
    Slot(Slot),
    Block { width: u32, offset: usize },
    Branch { bits: u32, offset: usize },
}

const GOES_ON: u32 = 1 << Slot::BITS;
const IS_BRANCH: u32 = 1 << 30;
const BLOCK_ALIGN: usize = 4;
const BRANCH_OFFSETS: usize = 1 << 26;

impl Entry {
    fn pack(self) -> u32 {
        match self {
            Entry::Slot(slot) => slot.bits(),
            Entry::Block { width, offset } => GOES_ON | width << 28 | (offset / BLOCK_ALIGN) as u32,
            Entry::Branch { bits, offset } => GOES_ON | IS_BRANCH | (bits - 1) << 26 | offset as u32,
        }
    }

    fn unpack(entry: u32) -> Entry {
        if entry & GOES_ON == 0 {
            Entry::Slot(Slot::from_bits(entry))
        } else if entry & IS_BRANCH == 0 {
            Entry::Block { width: entry >> 28 & 3, offset: (entry & 0x0fff_ffff) as usize * BLOCK_ALIGN }
        } else {
            Entry::Branch { bits: (entry >> 26 & 15) + 1, offset: entry as usize & (BRANCH_OFFSETS - 1) }
        }
    }
}

impl Table {
    /// More cannot be numbered.
    pub(super) const MAX_RANGES: usize = 1 << 27;

    /// Packs ranges.
    pub(super) fn new(ranges: Ranges) -> Table {
        let mut packer =
            Packer { starts: ranges.starts(), slots: ranges.slots(), branches: Vec::new(), blocks: Vec::new() };
        let mut root = vec![0; 1 << ROOT_BITS].into_boxed_slice();
        let mut span = Span { first: 0, end: 0, before: Slot::from_bits(PlaceId::UNKNOWN.0) };
        for (index, entry) in root.iter_mut().enumerate() {
            span = packer.next_span(span, (index as u64) << (64 - ROOT_BITS), ROOT_BITS, packer.starts.len());
            *entry = packer.pack(span, (index as u64) << (64 - ROOT_BITS), ROOT_BITS);
        }
        let Packer { mut branches, mut blocks, .. } = packer;
        branches.shrink_to_fit();
        blocks.shrink_to_fit();
        Table { root, branches, blocks, divided: ranges.into_divided() }
    }

    /// The place that holds at an address: its bits from the highest down.
    pub(super) fn find(&self, address: u128) -> PlaceId {
        let upper = (address >> 64) as u64;
        let mut entry = self.root[(upper >> (64 - ROOT_BITS)) as usize];
        let mut rest = upper << ROOT_BITS;
        let slot = loop {
            match Entry::unpack(entry) {
                Entry::Slot(slot) => break slot,
                Entry::Block { width, offset } => break self.find_in_block(width, offset, rest),
                Entry::Branch { bits, offset } => {
                    entry = self.branches[offset + (rest >> (64 - bits)) as usize];
                    rest <<= bits;
                }
            }
        };
        match slot.get() {
            Ok(place) => place,
            Err(index) => self.divided.find(index, address as u64),
        }
    }

    /// Bytes it occupies.
    pub(super) fn memory_bytes(&self) -> usize {
        4 * (self.root.len() + self.branches.len()) + 2 * self.blocks.len() + self.divided.memory_bytes()
    }

    fn find_in_block(&self, width: u32, offset: usize, rest: u64) -> Slot {
        let block = &self.blocks[offset..];
        let len = unit_pair(block[0], block[1]) as usize;
        let (keys, slots) = block[2..].split_at(len << width);
        // The first key of a block is 0, so at least one is not above the address.
        let after = match width {
            0 => {
                let key = (rest >> 48) as u16;
                keys.partition_point(|start| *start <= key)
            }
            1 => {
                let key = (rest >> 32) as u32;
                keys.as_chunks::<2>().0.partition_point(|&[high, low]| unit_pair(high, low) <= key)
            }
            _ => keys
                .as_chunks::<4>()
                .0
                .partition_point(|&[a, b, c, d]| u64::from(unit_pair(a, b)) << 32 | u64::from(unit_pair(c, d)) <= rest),
        };
        let at = (after - 1) * 2;
        Slot::from_bits(unit_pair(slots[at], slots[at + 1]))
    }
}

fn unit_pair(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// The ranges that start within one root or branch slot, and what holds before the first of them.
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
    blocks: Vec<u16>,
}

impl Packer<'_> {
    /// The span of the address block at `base`, `depth` bits long, that follows `previous`; nothing beyond `limit`.
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
        let bits = (len / BRANCH_RANGES).checked_ilog2().unwrap_or(0).clamp(1, 16);
        if len > BLOCK_RANGES && self.branches.len() + (1 << bits) <= BRANCH_OFFSETS {
            return self.pack_branch(span, base, depth, bits);
        }
        let finest = 64 - starts.iter().fold(0, |all, start| all | start).trailing_zeros();
        let width = match finest.saturating_sub(depth) {
            0..=16 => 0,
            17..=32 => 1,
            _ => 2,
        };
        self.blocks.resize(self.blocks.len().next_multiple_of(BLOCK_ALIGN), 0);
        let offset = self.blocks.len();
        self.push_units(len as u64, 2);
        let keys = leading.iter().map(|_| base).chain(starts.iter().copied());
        for key in keys {
            self.push_units((key << depth) >> (64 - (16 << width)), 1 << width);
        }
        for slot in leading.iter().chain(&self.slots[first..end]) {
            self.push_units(u64::from(slot.bits()), 2);
        }
        Entry::Block { width, offset }.pack()
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

    /// The lowest `units` of 16 bits, the highest first.
    fn push_units(&mut self, value: u64, units: u32) {
        self.blocks.extend((0..units).rev().map(|unit| (value >> (16 * unit)) as u16));
    }
}
