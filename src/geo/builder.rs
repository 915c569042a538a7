//! Sources in, one after the other, an atlas out.
//!
//! A source's bytes are needed only while it is added, so that the largest file and the tables exist at the same time,
//! never two files. Each database is read in one pass, which is also what checks it; its networks go under what the
//! databases before it know ([`under`]). A builder that refused a source is gone: an atlas is whole or there is none.
//! Must not know files.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use crate::geo::address::{SPECIAL_V4, SPECIAL_V6};
use crate::geo::atlas::{Overlay, bits};
use crate::geo::database::{Census, Database, DatabaseError, Memo};
use crate::geo::geofeed::{self, Entry, GeofeedError};
use crate::geo::ranges::{MAX_PLACES, Ranges, Underlay, under};
use crate::geo::record::Record;
use crate::geo::table::Table;
use crate::geo::tree::Family;
use crate::geo::{Atlas, Located, Place, PlaceId, Prefix, Source, SourceInfo, tables};

/// Makes an [`Atlas`].
pub struct AtlasBuilder {
    v4: Ranges,
    v6: Ranges,
    places: Vec<Place>,
    databases: Vec<Arc<SourceInfo>>,
    geofeeds: Vec<Arc<SourceInfo>>,
    feed_entries: Vec<(Prefix, PlaceId)>,
}

impl Default for AtlasBuilder {
    fn default() -> Self {
        AtlasBuilder::new()
    }
}

impl AtlasBuilder {
    /// Nothing known yet.
    pub fn new() -> AtlasBuilder {
        AtlasBuilder {
            v4: Ranges::unknown(),
            v6: Ranges::unknown(),
            places: vec![Place::nowhere(Source::Unknown), Place::nowhere(Source::Special)],
            databases: Vec::new(),
            geofeeds: Vec::new(),
            feed_entries: Vec::new(),
        }
    }

    /// Adds an MMDB database: it answers where those before it know nothing. `name` is what reports call it.
    pub fn database(mut self, name: &str, bytes: &[u8]) -> Result<AtlasBuilder, DatabaseError> {
        let source = u8::try_from(self.databases.len()).map_err(|_| DatabaseError::TooMany)?;
        let database = Database::open(bytes)?;
        let first_place = self.places.len();
        let mut places = Interner::new(&mut self.places, Source::Database(source));
        let mut memo = Memo::default();
        let mut census = Census::default();
        for (family, known) in [(Family::V4, &mut self.v4), (Family::V6, &mut self.v6)] {
            if database.holds(family) {
                let mut ranges = under(known);
                let id = |record: &Record| places.id(record);
                database.read(family, &mut census, &mut memo, id, |start, place| ranges.push(start, place))?;
                *known = ranges.finish();
            }
        }
        database.check(&census)?;
        if self.places.len() > MAX_PLACES || self.v4.len().max(self.v6.len()) > Table::MAX_RANGES {
            return Err(DatabaseError::TooLarge);
        }
        if !census.coordinates {
            for place in &mut self.places[first_place..] {
                place.point = place.country.and_then(tables::capital_of);
            }
        }
        self.databases.push(Arc::new(SourceInfo {
            name: name.to_owned(),
            kind: database.kind().to_owned(),
            built_at: database.built_at(),
            networks: census.networks,
            coordinates: census.coordinates,
            bad_coordinates: census.bad_coordinates,
        }));
        Ok(self)
    }

    /// Adds an RFC 8805 geofeed: its entries come before every database, and among all geofeeds the longest prefix
    /// counts, for equal ones the feed that was added first.
    pub fn geofeed(mut self, name: &str, bytes: &[u8]) -> Result<AtlasBuilder, GeofeedError> {
        let source = u8::try_from(self.geofeeds.len()).map_err(|_| GeofeedError::TooMany)?;
        let entries = geofeed::parse(bytes)?;
        let mut places = Interner::new(&mut self.places, Source::Geofeed(source));
        let networks = entries.len() as u64;
        for Entry { prefix, country, subdivision } in entries {
            let place = match country {
                None => PlaceId::UNKNOWN,
                Some(country) => places.id(&Record {
                    point: subdivision
                        .and_then(|subdivision| tables::subdivision_point(country, subdivision))
                        .or_else(|| tables::capital_of(country)),
                    country: Some(country),
                    subdivision,
                    continent: tables::continent_of(country),
                    bad_coordinates: false,
                }),
            };
            self.feed_entries.push((prefix, place));
        }
        self.geofeeds.push(Arc::new(SourceInfo {
            name: name.to_owned(),
            kind: "geofeed".to_owned(),
            built_at: 0,
            networks,
            coordinates: false,
            bad_coordinates: 0,
        }));
        Ok(self)
    }

    /// Packs what was added.
    pub fn build(self) -> Atlas {
        let AtlasBuilder { v4, v6, mut places, databases, geofeeds, feed_entries } = self;
        places.shrink_to_fit();
        Atlas {
            v4: Table::new(with_special(v4, &SPECIAL_V4)),
            v6: Table::new(with_special(v6, &SPECIAL_V6)),
            overlay: (!feed_entries.is_empty()).then(|| overlay(feed_entries)),
            places,
            databases,
            geofeeds,
        }
    }
}

/// Special-purpose networks are the last source of all: they name what nothing else lists.
fn with_special(known: Ranges, special: &[Prefix]) -> Ranges {
    let mut ranges = under(&known);
    for prefix in special {
        ranges.push(bits(prefix.first()), PlaceId::SPECIAL);
        if let Some(after) = after(*prefix) {
            ranges.push(after, PlaceId::UNKNOWN);
        }
    }
    ranges.finish()
}

/// Where the address space goes on behind a prefix.
fn after(prefix: Prefix) -> Option<u128> {
    let host_bits = match prefix.address() {
        IpAddr::V4(_) => 96,
        IpAddr::V6(_) => 0,
    };
    bits(prefix.last()).checked_add(1 << host_bits)
}

fn overlay(mut entries: Vec<(Prefix, PlaceId)>) -> Overlay {
    // Prefixes sort by family, then base, and of the same base the widest first. The sort is stable, so of equal
    // prefixes the one that was added first stays first.
    entries.sort_by_key(|(prefix, _)| *prefix);
    entries.dedup_by_key(|(prefix, _)| *prefix);
    let mut answers = vec![Located { place: PlaceId::UNKNOWN, feed_len: None }];
    let families = entries.partition_point(|(prefix, _)| prefix.address().is_ipv4());
    let (v4, v6) = entries.split_at(families);
    let v4 = Table::new(flatten(v4, &mut answers));
    let v6 = Table::new(flatten(v6, &mut answers));
    Overlay { v4, v6, answers }
}

/// Nested prefixes of one family to ranges, each with its longest prefix's index in `answers`.
fn flatten(entries: &[(Prefix, PlaceId)], answers: &mut Vec<Located>) -> Ranges {
    let unknown = Ranges::unknown();
    let mut ranges = under(&unknown);
    // The prefixes around the current address, the innermost last: where each ends (`None`: with the address space)
    // and its answer.
    let mut around: Vec<(Option<u128>, PlaceId)> = Vec::new();
    let leave = |around: &mut Vec<(Option<u128>, PlaceId)>, ranges: &mut Underlay<_>, until: u128| {
        while let Some((Some(end), _)) = around.last().copied()
            && end <= until
        {
            around.pop();
            ranges.push(end, around.last().map_or(PlaceId::UNKNOWN, |(_, answer)| *answer));
        }
    };
    for (prefix, place) in entries {
        let first = bits(prefix.first());
        leave(&mut around, &mut ranges, first);
        let answer = PlaceId(answers.len() as u32);
        answers.push(Located { place: *place, feed_len: Some(prefix.prefix_len()) });
        ranges.push(first, answer);
        around.push((after(*prefix), answer));
    }
    leave(&mut around, &mut ranges, u128::MAX);
    ranges.finish()
}

/// Gives equal records of one source one place. Coordinates count bit by bit: a place is a point, not a neighbourhood.
///
/// Hundreds of thousands of places are found by a hash of theirs, not by a copy of each: in the one case in 10^8 that two
/// have the same hash, the second is kept as often as it comes, which costs a few bytes and is right all the same.
struct Interner<'a> {
    places: &'a mut Vec<Place>,
    ids: HashMap<u64, PlaceId>,
    source: Source,
}

impl Interner<'_> {
    fn new(places: &mut Vec<Place>, source: Source) -> Interner<'_> {
        Interner { places, ids: HashMap::new(), source }
    }

    fn id(&mut self, record: &Record) -> PlaceId {
        let Record { point, country, subdivision, continent, .. } = *record;
        let place = Place { point, country, subdivision, continent, source: self.source };
        let point_bits = point.map(|point| (point.latitude().to_bits(), point.longitude().to_bits()));
        let mut hasher = DefaultHasher::new();
        (point_bits, country, subdivision, continent).hash(&mut hasher);
        let new = PlaceId(self.places.len() as u32);
        let id = *self.ids.entry(hasher.finish()).or_insert(new);
        if id != new && self.places[id.index()] == place {
            return id;
        }
        self.places.push(place);
        new
    }
}
