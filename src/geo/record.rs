//! One database record, of either schema, as what it says of a place.
//!
//! MaxMind's schema nests (`country.iso_code`, `location.latitude`, as doubles); ip-location-db's is flat
//! (`country_code`, `latitude`, as floats). No key is in both, so one reader takes both, and numbers are taken in
//! whatever width they come. Keys that are not known are passed over; a known key of the wrong type is an error.
//!
//! Must not know files, trees or atlases.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

use crate::geo::{Continent, Country, Point, Subdivision, tables};

/// What a record says of a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) point: Option<Point>,
    pub(super) country: Option<Country>,
    pub(super) subdivision: Option<Subdivision>,
    pub(super) continent: Option<Continent>,
    /// It had a latitude or longitude that is no point on Earth, or one without the other.
    pub(super) bad_coordinates: bool,
}

/// The keys read, of both schemas, as `maxminddb` decodes them.
#[derive(Default, Deserialize)]
pub(super) struct RawRecord<'a> {
    #[serde(borrow, default)]
    continent: Coded<'a>,
    #[serde(borrow, default)]
    country: Coded<'a>,
    #[serde(borrow, default)]
    subdivisions: First<Coded<'a>>,
    #[serde(default)]
    location: Location,
    #[serde(borrow, default)]
    country_code: Text<'a>,
    #[serde(borrow, default)]
    state1: Text<'a>,
    #[serde(default)]
    latitude: Number,
    #[serde(default)]
    longitude: Number,
}

#[derive(Default, Deserialize)]
struct Coded<'a> {
    #[serde(borrow, default)]
    code: Text<'a>,
    #[serde(borrow, default)]
    iso_code: Text<'a>,
}

#[derive(Default, Deserialize)]
struct Location {
    #[serde(default)]
    latitude: Number,
    #[serde(default)]
    longitude: Number,
}

impl RawRecord<'_> {
    /// Codes and numbers become types; what is no code is as good as absent.
    pub(super) fn read(&self) -> Record {
        let country = self.country.iso_code.0.or(self.country_code.0).and_then(Country::new);
        let subdivision = match (country, self.subdivisions.0.as_ref().and_then(|s| s.iso_code.0), self.state1.0) {
            (_, Some(code), _) => Subdivision::new(code),
            (Some(country), None, Some(name)) => tables::subdivision_named(country, name),
            _ => None,
        };
        let stated = self.continent.code.0.and_then(Continent::new);
        let latitude = self.location.latitude.0.or(self.latitude.0);
        let longitude = self.location.longitude.0.or(self.longitude.0);
        let point = latitude.zip(longitude).and_then(|(lat, lon)| Point::new(lat, lon));
        Record {
            point,
            country,
            subdivision,
            continent: stated.or_else(|| tables::continent_of(country?)),
            bad_coordinates: point.is_none() && (latitude.is_some() || longitude.is_some()),
        }
    }
}

impl Record {
    /// Whether a database that holds this record knows the address.
    pub(super) fn says_something(&self) -> bool {
        self.point.is_some() || self.country.is_some() || self.continent.is_some()
    }
}

#[derive(Clone, Copy, Default)]
struct Text<'a>(Option<&'a str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&str>::deserialize(deserializer).map(|text| Text(Some(text)))
    }
}

/// An `f64` that takes floats, doubles and integers: serde's own refuses an MMDB `float`.
#[derive(Clone, Copy, Default)]
struct Number(Option<f64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyNumber;
        impl Visitor<'_> for AnyNumber {
            type Value = f64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of degrees")
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<f64, E> {
                Ok(value)
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<f64, E> {
                Ok(value as f64)
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<f64, E> {
                Ok(value as f64)
            }
        }
        deserializer.deserialize_any(AnyNumber).map(|value| Number(Some(value)))
    }
}

/// The first element of a list, the rest passed over.
struct First<T>(Option<T>);

impl<T> Default for First<T> {
    fn default() -> Self {
        First(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstOf<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for FirstOf<T> {
            type Value = Option<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Option<T>, A::Error> {
                let first = list.next_element()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(first)
            }
        }
        deserializer.deserialize_seq(FirstOf(std::marker::PhantomData)).map(First)
    }
}
