//! Dense ids of what a fleet holds, and sets of regions.
//!
//! Each is a type of its own, so that a region's never meets a pool's. An id is an index into the fleet that it came from and means
//! nothing in another one.

use std::fmt;

/// The most regions one configuration may have: a set of regions is one machine word pair.
pub const MAX_REGIONS: usize = 128;

/// A region, dense from 0 in configuration order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RegionId(pub u8);

/// A service, dense from 0 in configuration order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceId(pub u16);

/// A pool (one service in one region), dense from 0 over all services.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PoolId(pub u16);

impl RegionId {
    /// As an index into `Fleet::regions`.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl ServiceId {
    /// As an index into `Fleet::services`.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl PoolId {
    /// As an index into `Fleet::pools`.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of regions.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct RegionSet(u128);

impl RegionSet {
    /// No region.
    pub const EMPTY: RegionSet = RegionSet(0);
    /// Every possible region.
    pub const ALL: RegionSet = RegionSet(u128::MAX);

    /// Whether `region` is in the set.
    pub fn contains(self, region: RegionId) -> bool {
        self.0 >> region.0 & 1 == 1
    }

    /// Adds `region`.
    pub fn insert(&mut self, region: RegionId) {
        self.0 |= 1 << region.0;
    }

    /// Removes `region`.
    pub fn remove(&mut self, region: RegionId) {
        self.0 &= !(1 << region.0);
    }

    /// What is in both sets.
    #[must_use]
    pub fn and(self, other: RegionSet) -> RegionSet {
        RegionSet(self.0 & other.0)
    }

    /// What is in either set.
    #[must_use]
    pub fn or(self, other: RegionSet) -> RegionSet {
        RegionSet(self.0 | other.0)
    }

    /// What is in this set but not in `other`.
    #[must_use]
    pub fn without(self, other: RegionSet) -> RegionSet {
        RegionSet(self.0 & !other.0)
    }

    /// Whether no region is left.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many regions are in the set.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The regions in the set, in configuration order.
    pub fn iter(self) -> impl Iterator<Item = RegionId> {
        let mut bits = self.0;
        std::iter::from_fn(move || {
            let next = (bits != 0).then(|| RegionId(bits.trailing_zeros() as u8))?;
            bits &= bits - 1;
            Some(next)
        })
    }
}

impl FromIterator<RegionId> for RegionSet {
    fn from_iter<I: IntoIterator<Item = RegionId>>(regions: I) -> RegionSet {
        let mut set = RegionSet::EMPTY;
        regions.into_iter().for_each(|r| set.insert(r));
        set
    }
}

impl fmt::Debug for RegionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|r| r.0)).finish()
    }
}
