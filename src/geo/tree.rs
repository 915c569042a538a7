//! The search tree of an MMDB file, walked once from the first address to the last.
//!
//! The `maxminddb` crate opens the file, checks its layout and decodes its records; its own iterator is not used here
//! for three reasons. It takes every network whose record is the one of `::` for an alias of the IPv4 tree and skips
//! it. It sets no bound, so that a few hundred bytes of nodes that point at each other keep it busy for ever. And a
//! tree whose equal halves are stored once, as in the built-in database, is legal and must be walked in full.
//!
//! Must not know records or places.

/// More networks of one family than any database on sale has (the largest hold about 10 million). A tree with more is
/// corrupt: its nodes point at each other.
pub(super) const MAX_NETWORKS: u64 = 1 << 25;

/// Where the tree is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TreeError {
    /// A path longer than an address: nodes in a circle.
    TooDeep,
    /// More than [`MAX_NETWORKS`].
    TooManyNetworks,
    /// A leaf that points between the tree and the data.
    BadPointer,
}

/// The nodes, as laid out at the start of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree<'a> {
    bytes: &'a [u8],
    nodes: u32,
    record_bits: u16,
    ip_version: u16,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// One leaf: its networks begin at `start` and end where the next leaf begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    /// The address's bits from the highest down, of either family.
    pub(super) start: u128,
    /// Offset of its record in the data section; `None` when nothing is known.
    pub(super) record: Option<u32>,
}

/// Zero bytes between the tree and the data; pointers count from before them.
const SEPARATOR: u32 = 16;

/// The wrappings of IPv4 in IPv6 that [`Canonical`](crate::geo::Canonical) removes, and `::/96`, where MMDB keeps IPv4:
/// none of them is ever looked up as IPv6, and in most files each is a second way into the whole IPv4 tree.
const IPV4_INSIDE: [(u128, u8); 6] = [
    (0, 96),
    (0xffff << 32, 96),
    (0xffff_0000 << 32, 96),
    (0x0064_ff9b << 96, 96),
    (0x2001_0000 << 96, 32),
    (0x2002 << 112, 16),
];

impl<'a> Tree<'a> {
    /// The tree of a file that `maxminddb` has opened, so that all nodes are known to lie within `bytes`.
    pub(super) fn new(bytes: &'a [u8], metadata: &maxminddb::Metadata) -> Tree<'a> {
        Tree { bytes, nodes: metadata.node_count, record_bits: metadata.record_size, ip_version: metadata.ip_version }
    }

    /// Whether any leaf of the family can have a record.
    pub(super) fn holds(&self, family: Family) -> bool {
        self.root(family).is_some_and(|root| root != self.nodes)
    }

    /// Every leaf of the family in ascending order, the first one starting at 0, those of IPv4 in IPv6 as one unknown
    /// leaf each. Nothing for IPv6 in an IPv4 file.
    pub(super) fn walk<E: From<TreeError>>(
        &self,
        family: Family,
        mut visit: impl FnMut(Leaf) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(root) = self.root(family) else { return Ok(()) };
        let bits = if family == Family::V4 { 32 } else { 128 };
        let skip = |start, depth| {
            family == Family::V6 && matches!(depth, 16 | 32 | 96) && IPV4_INSIDE.contains(&(start, depth))
        };
        let mut seen = 0;
        let mut right_halves = vec![(root, 0u128, 0u8)];
        while let Some((mut node, start, mut depth)) = right_halves.pop() {
            while node < self.nodes && !skip(start, depth) {
                if depth == bits {
                    return Err(TreeError::TooDeep.into());
                }
                let (left, right) = self.children(node);
                right_halves.push((right, start | 1 << (127 - depth), depth + 1));
                node = left;
                depth += 1;
            }
            seen += 1;
            if seen > MAX_NETWORKS {
                return Err(TreeError::TooManyNetworks.into());
            }
            let record = match node.checked_sub(self.nodes) {
                None | Some(0) => None,
                Some(n) => Some(n.checked_sub(SEPARATOR).ok_or(TreeError::BadPointer)?),
            };
            visit(Leaf { start, record })?;
        }
        Ok(())
    }

    fn root(&self, family: Family) -> Option<u32> {
        match (family, self.ip_version) {
            (Family::V6, 6) | (Family::V4, 4) => Some(0),
            // IPv4 lies below 96 zeros; a shorter leaf there holds for all of it.
            (Family::V4, _) => {
                Some((0..96).fold(0, |node, _| if node < self.nodes { self.children(node).0 } else { node }))
            }
            (Family::V6, _) => None,
        }
    }

    fn children(&self, node: u32) -> (u32, u32) {
        let size = usize::from(self.record_bits) / 4;
        let at = node as usize * size;
        let b = &self.bytes[at..at + size];
        match self.record_bits {
            24 => (u32::from_be_bytes([0, b[0], b[1], b[2]]), u32::from_be_bytes([0, b[3], b[4], b[5]])),
            28 => {
                (u32::from_be_bytes([b[3] >> 4, b[0], b[1], b[2]]), u32::from_be_bytes([b[3] & 0xf, b[4], b[5], b[6]]))
            }
            _ => (u32::from_be_bytes([b[0], b[1], b[2], b[3]]), u32::from_be_bytes([b[4], b[5], b[6], b[7]])),
        }
    }
}
