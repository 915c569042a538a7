//! Addresses to place ids in one flat table, places in a second.
//!
//! An atlas never changes: new data makes a new one (see [`AtlasBuilder`](crate::geo::AtlasBuilder)). Databases are
//! merged into one table beforehand, so a look-up costs the same for one as for ten; geofeeds keep a table of their own because
//! the length of the prefix that answered matters there. Must not know regions or orders.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::geo::table::Table;
use crate::geo::{AtlasBuilder, Canonical, Place};

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
    /// that are shorter give way to it (longest prefix wins). With [`PlaceId::UNKNOWN`] it says that a geofeed
    /// wants the address to have no location.
    pub feed_len: Option<u8>,
}

/// What is known of one source of the atlas, for `explain`, the log and the age metric.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceInfo {
    /// `builtin` or the file's path as configured.
    pub name: String,
    /// What the source calls itself, as `GeoLite2-City`; `geofeed` for one.
    pub kind: String,
    /// Unix seconds at which the data was built (0 if it does not say).
    pub built_at: u64,
    /// Networks read.
    pub networks: u64,
    /// Whether it holds coordinates (else countries stand for their capitals).
    pub coordinates: bool,
    /// Records whose coordinates are no point on Earth, or only half of one, and were left out.
    pub bad_coordinates: u64,
}

/// Everything known of addresses.
pub struct Atlas {
    pub(super) v4: Table,
    pub(super) v6: Table,
    pub(super) overlay: Option<Overlay>,
    pub(super) places: Vec<Place>,
    pub(super) databases: Vec<Arc<SourceInfo>>,
    pub(super) geofeeds: Vec<Arc<SourceInfo>>,
}

/// What the geofeeds say: the tables hold indices into `answers`, 0 for "nothing".
pub(super) struct Overlay {
    pub(super) v4: Table,
    pub(super) v6: Table,
    pub(super) answers: Vec<Located>,
}

/// An address's bits from the highest down, as tables take them.
pub(super) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl Atlas {
    /// An atlas in which every address is unknown or special.
    pub fn empty() -> Atlas {
        AtlasBuilder::new().build()
    }

    /// The place of an address: geofeeds first (longest prefix), then the databases, the first that knows it.
    pub fn locate(&self, client: Canonical) -> Located {
        let address = client.ip();
        if let Some(overlay) = &self.overlay
            && let Some(located) = overlay.find(address)
        {
            return located;
        }
        let bits = bits(address);
        let place = match address {
            IpAddr::V4(_) => self.v4.find(bits),
            // `::a.b.c.d` is where MMDB files keep IPv4, so a look-up of such an address finds the IPv4 record there.
            IpAddr::V6(_) if bits >> 32 == 0 => match self.v4.find(bits << 96) {
                PlaceId::UNKNOWN => PlaceId::SPECIAL,
                place => place,
            },
            IpAddr::V6(_) => self.v6.find(bits),
        };
        Located { place, feed_len: None }
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

    /// Bytes of the look-up tables and the places.
    pub fn memory_bytes(&self) -> usize {
        let tables = self.v4.memory_bytes() + self.v6.memory_bytes();
        let overlay = self
            .overlay
            .as_ref()
            .map_or(0, |o| o.v4.memory_bytes() + o.v6.memory_bytes() + o.answers.len() * size_of::<Located>());
        tables + overlay + self.places.len() * size_of::<Place>()
    }
}

impl Overlay {
    fn find(&self, address: IpAddr) -> Option<Located> {
        let table = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        match table.find(bits(address)) {
            PlaceId::UNKNOWN => None,
            index => Some(self.answers[index.index()]),
        }
    }
}

impl fmt::Debug for Atlas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Atlas")
            .field("places", &self.places.len())
            .field("databases", &self.databases)
            .field("geofeeds", &self.geofeeds)
            .finish_non_exhaustive()
    }
}
