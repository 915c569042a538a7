//! An MMDB database: bytes in, a file that is known to be readable from end to end out.
//!
//! A database replaces the running one only when all of it can be read, so opening is not enough: the whole tree is
//! walked and each record decoded, in the same single pass that fills the atlas. `maxminddb`'s own `verify` is not the
//! gate because it rejects every file of ip-location-db. Bytes are in memory, never mapped: a file truncated in place
//! would take the process with it.
//!
//! Must not know atlases or orders.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

use maxminddb::{MaxMindDbError, Reader};

use crate::geo::PlaceId;
use crate::geo::record::{RawRecord, Record};
use crate::geo::tree::{Family, MAX_NETWORKS, Tree, TreeError};

/// Of the networks a database lists, the share that must carry a country, a continent or coordinates. Databases of
/// places have nearly all; one of another kind (networks' names, connection types) has none.
const MIN_KNOWN_SHARE: f64 = 0.5;

/// Why a database is refused.
#[derive(Debug)]
pub enum DatabaseError {
    /// It is not an MMDB file, or only a part of one.
    NotMmdb(MaxMindDbError),
    /// The search tree is damaged; the text says how.
    Tree(&'static str),
    /// A record cannot be decoded.
    Record {
        /// An address that leads to the record.
        address: IpAddr,
        /// What is wrong with it.
        cause: MaxMindDbError,
    },
    /// It lists no network at all.
    Empty,
    /// It is a database of something else.
    NotPlaces {
        /// What it says of itself.
        kind: String,
        /// Networks with a country, a continent or coordinates.
        known: u64,
        /// All networks listed.
        networks: u64,
    },
    /// More databases than can be told apart.
    TooMany,
    /// More networks or places, with the databases before it, than the atlas can number.
    TooLarge,
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseError::NotMmdb(cause) => write!(
                f,
                "not a complete MMDB file: {cause}; expected MaxMind DB format 2.0, uncompressed (is it still \
                 packed, or was it copied only in part?)"
            ),
            DatabaseError::Tree(what) => write!(f, "the search tree is damaged: {what}; expected a complete file"),
            DatabaseError::Record { address, cause } => {
                write!(
                    f,
                    "the record of {address} cannot be read: {cause}; expected a complete file of cities or countries"
                )
            }
            DatabaseError::Empty => {
                f.write_str("it lists no network; expected a database of cities or countries with at least one")
            }
            DatabaseError::NotPlaces { kind, known, networks } => write!(
                f,
                "only {known} of its {networks} networks have a country, a continent or coordinates, and it calls \
                 itself `{kind}`; expected a database of cities or countries (MaxMind's `country.iso_code` and \
                 `location`, or ip-location-db's `country_code`, `latitude` and `longitude`)"
            ),
            DatabaseError::TooMany => f.write_str("too many databases; expected at most 256"),
            DatabaseError::TooLarge => {
                f.write_str("too many networks; expected at most 16,777,216 ranges of one family in all databases")
            }
        }
    }
}

impl std::error::Error for DatabaseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DatabaseError::NotMmdb(cause) | DatabaseError::Record { cause, .. } => Some(cause),
            _ => None,
        }
    }
}

impl From<TreeError> for DatabaseError {
    fn from(error: TreeError) -> DatabaseError {
        DatabaseError::Tree(match error {
            TreeError::TooDeep => "a path is longer than an address",
            TreeError::TooManyNetworks => {
                const { assert!(MAX_NETWORKS == 33_554_432) };
                "it has more than 33,554,432 networks of one family"
            }
            TreeError::BadPointer => "a network points to no record",
        })
    }
}

/// A database whose header and layout are good; its networks are not read yet.
pub(super) struct Database<'a> {
    reader: Reader<&'a [u8]>,
    tree: Tree<'a>,
}

/// What one pass over a database found, besides its networks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Census {
    /// Networks with a record.
    pub(super) networks: u64,
    /// Networks whose record says something of a place.
    pub(super) known: u64,
    /// Records with coordinates that are no point on Earth, or with one of the two only.
    pub(super) bad_coordinates: u64,
    /// Whether any record has both coordinates.
    pub(super) coordinates: bool,
}

impl<'a> Database<'a> {
    /// Checks the header and the layout.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Database<'a>, DatabaseError> {
        let reader = Reader::from_source(bytes).map_err(DatabaseError::NotMmdb)?;
        let tree = Tree::new(bytes, reader.metadata());
        Ok(Database { reader, tree })
    }

    /// Unix seconds at which it was built.
    pub(super) fn built_at(&self) -> u64 {
        self.reader.metadata().build_epoch
    }

    /// What it calls itself.
    pub(super) fn kind(&self) -> &str {
        &self.reader.metadata().database_type
    }

    /// Whether it can hold networks of the family.
    pub(super) fn holds(&self, family: Family) -> bool {
        self.tree.holds(family)
    }

    /// Reads all networks of one family: `push` gets where each starts, in ascending order, and what `place` made of
    /// its record, which is asked once for each record. `memo` is this file's, for both families.
    pub(super) fn read(
        &self,
        family: Family,
        census: &mut Census,
        memo: &mut Memo,
        mut place: impl FnMut(&Record) -> PlaceId,
        mut push: impl FnMut(u128, PlaceId),
    ) -> Result<(), DatabaseError> {
        self.tree.walk(family, |leaf| {
            let found = match leaf.record {
                None => PlaceId::UNKNOWN,
                Some(offset) => {
                    let found = match memo.0.get(&offset) {
                        Some(found) => *found,
                        None => {
                            let record = self.decode(family, leaf.start)?;
                            census.coordinates |= record.point.is_some();
                            census.bad_coordinates += u64::from(record.bad_coordinates);
                            let found = if record.says_something() { place(&record) } else { PlaceId::UNKNOWN };
                            memo.0.insert(offset, found);
                            found
                        }
                    };
                    census.networks += 1;
                    census.known += u64::from(found != PlaceId::UNKNOWN);
                    found
                }
            };
            push(leaf.start, found);
            Ok(())
        })
    }

    fn decode(&self, family: Family, start: u128) -> Result<Record, DatabaseError> {
        let address = match family {
            Family::V4 => IpAddr::V4(((start >> 96) as u32).into()),
            Family::V6 => IpAddr::V6(start.into()),
        };
        let raw = self.reader.lookup(address).and_then(|found| found.decode::<RawRecord<'_>>());
        match raw {
            Ok(raw) => Ok(raw.unwrap_or_default().read()),
            Err(cause) => Err(DatabaseError::Record { address, cause }),
        }
    }

    /// The floor: refuses a database that lists nothing, or hardly anything of use.
    pub(super) fn check(&self, census: &Census) -> Result<(), DatabaseError> {
        if census.networks == 0 {
            return Err(DatabaseError::Empty);
        }
        if (census.known as f64) < census.networks as f64 * MIN_KNOWN_SHARE {
            let Census { known, networks, .. } = *census;
            return Err(DatabaseError::NotPlaces { kind: self.kind().to_owned(), known, networks });
        }
        Ok(())
    }
}

/// Places by the offset of their record: many networks share one.
#[derive(Default)]
pub(super) struct Memo(HashMap<u32, PlaceId, BuildHasherDefault<OffsetHasher>>);

/// Offsets come from the file in no order that matters, so one multiplication spreads them well enough, at a tenth of
/// the cost of the standard hash: the memo is asked once for every network.
#[derive(Default)]
pub(super) struct OffsetHasher(u64);

impl Hasher for OffsetHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, offset: u32) {
        self.0 = (self.0 ^ u64::from(offset)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
