//! Addresses to place ids in one flat table, places in a second.

use std::sync::Arc;

use crate::geo::{Canonical, Place};

/// A place in an [`Atlas`], dense from 0. [`PlaceId::UNKNOWN`] and [`PlaceId::SPECIAL`] exist in every atlas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceId(pub u32);

impl PlaceId {
    /// Nothing is known of the address.
    pub const UNKNOWN: PlaceId = PlaceId(0);
    /// A special-purpose address that nothing lists.
    pub const SPECIAL: PlaceId = PlaceId(1);

    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The answer of [`Atlas::locate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The place.
    pub place: PlaceId,
    /// The prefix length of the geofeed entry that answered, if one did: `[geoip.networks]` entries
    /// that are shorter give way to it (longest prefix wins).
    pub feed_len: Option<u8>,
}

/// What is known of one source of the atlas, for `explain`, the log and the age metric.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceInfo {
    /// `builtin` or the file's path as configured.
    pub name: String,
    /// Unix seconds at which the data was built (0 if it does not say).
    pub built_at: u64,
    /// Networks read.
    pub networks: u64,
    /// Whether it holds coordinates (else countries stand for their capitals).
    pub coordinates: bool,
}

/// Everything known of addresses.
#[derive(Debug)]
pub struct Atlas {
    places: Vec<Place>,
    databases: Vec<Arc<SourceInfo>>,
    geofeeds: Vec<Arc<SourceInfo>>,
}

impl Atlas {
    /// An atlas in which every address is unknown or special.
    pub fn empty() -> Atlas {
        todo!()
    }

    /// The place of an address: geofeeds first (longest prefix), then the databases, the first that knows it.
    pub fn locate(&self, _client: Canonical) -> Located {
        todo!()
    }

    /// A place by id; ids come from this atlas.
    pub fn place(&self, id: PlaceId) -> Place {
        self.places[id.index()]
    }

    /// Every place, by id.
    pub fn places(&self) -> impl ExactSizeIterator<Item = Place> + '_ {
        self.places.iter().copied()
    }

    /// The databases it was made of, in order; `Source::Database(n)` is the n-th.
    pub fn databases(&self) -> &[Arc<SourceInfo>] {
        &self.databases
    }

    /// The geofeeds it was made of; `Source::Geofeed(n)` is the n-th.
    pub fn geofeeds(&self) -> &[Arc<SourceInfo>] {
        &self.geofeeds
    }
}
