//! What can be known of an address: a point, a country, a subdivision, a continent, and who said so.
//!
//! Pure values. Distances are great circles on a sphere (haversine in f64), the formula gdnsd uses,
//! so that orders agree with it. Must not know how places are looked up.

use std::fmt;
use std::str::FromStr;

/// Mean Earth radius in kilometres (IUGG R1).
pub const EARTH_RADIUS_KM: f64 = 6371.0088;

/// A point on the sphere in degrees. Constructed only through [`Point::new`], so always in range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    latitude: f64,
    longitude: f64,
}

impl Point {
    /// A point from degrees; `None` unless −90 ≤ latitude ≤ 90 and −180 ≤ longitude ≤ 180 and both are finite.
    /// (0, 0) is a real place.
    pub fn new(latitude: f64, longitude: f64) -> Option<Point> {
        let good = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        good.then_some(Point { latitude, longitude })
    }

    /// Degrees north.
    pub fn latitude(self) -> f64 {
        self.latitude
    }

    /// Degrees east.
    pub fn longitude(self) -> f64 {
        self.longitude
    }

    /// Great-circle distance in kilometres (haversine, f64).
    pub fn distance_km(self, other: Point) -> f64 {
        let (lat1, lat2) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half_dlat = ((lat2 - lat1) * 0.5).sin();
        let half_dlon = ((other.longitude.to_radians() - self.longitude.to_radians()) * 0.5).sin();
        let a = half_dlat * half_dlat + lat1.cos() * lat2.cos() * half_dlon * half_dlon;
        2.0 * EARTH_RADIUS_KM * a.sqrt().min(1.0).asin()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}, {:.4}", self.latitude, self.longitude)
    }
}

/// ISO 3166-1 alpha-2 country code, upper case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Country([u8; 2]);

impl Country {
    /// From two ASCII letters of any case; `None` for anything else.
    pub fn new(code: &str) -> Option<Country> {
        match code.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Some(Country([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => None,
        }
    }

    /// The code, upper case.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("??")
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// ISO 3166-2 subdivision without its country prefix: one to three letters or digits, upper case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subdivision([u8; 3]);

impl Subdivision {
    /// From the part after the dash (`CA` of `US-CA`); `None` unless one to three ASCII letters or digits.
    pub fn new(code: &str) -> Option<Subdivision> {
        let bytes = code.as_bytes();
        if bytes.is_empty() || bytes.len() > 3 || !bytes.iter().all(u8::is_ascii_alphanumeric) {
            return None;
        }
        let mut out = [0; 3];
        for (to, from) in out.iter_mut().zip(bytes) {
            *to = from.to_ascii_uppercase();
        }
        Some(Subdivision(out))
    }

    /// The code, upper case, without the country.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(3);
        std::str::from_utf8(&self.0[..len]).unwrap_or("?")
    }
}

impl fmt::Debug for Subdivision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A continent, by the two-letter codes that GeoIP databases use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Continent {
    /// AF
    Africa,
    /// AN
    Antarctica,
    /// AS
    Asia,
    /// EU
    Europe,
    /// NA
    NorthAmerica,
    /// OC
    Oceania,
    /// SA
    SouthAmerica,
}

impl Continent {
    /// All continents, in the order of their codes.
    pub const ALL: [Continent; 7] = [
        Continent::Africa,
        Continent::Antarctica,
        Continent::Asia,
        Continent::Europe,
        Continent::NorthAmerica,
        Continent::Oceania,
        Continent::SouthAmerica,
    ];

    /// From its two-letter code, any case.
    pub fn new(code: &str) -> Option<Continent> {
        Continent::ALL.into_iter().find(|c| c.as_str().eq_ignore_ascii_case(code))
    }

    /// The two-letter code.
    pub fn as_str(self) -> &'static str {
        match self {
            Continent::Africa => "AF",
            Continent::Antarctica => "AN",
            Continent::Asia => "AS",
            Continent::Europe => "EU",
            Continent::NorthAmerica => "NA",
            Continent::Oceania => "OC",
            Continent::SouthAmerica => "SA",
        }
    }
}

/// Who said where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Nobody knows the address.
    Unknown,
    /// A special-purpose address (private, documentation …) that nothing lists.
    Special,
    /// The n-th of the configured databases.
    Database(u8),
    /// The n-th of the configured geofeeds.
    Geofeed(u8),
}

/// What is known of an address. `point` is `None` for places that cannot be ordered by distance;
/// country and continent may still be known and count for pins and residency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Where it is, if a record says so (or its country's capital, for data without coordinates).
    pub point: Option<Point>,
    /// Country.
    pub country: Option<Country>,
    /// Subdivision of that country.
    pub subdivision: Option<Subdivision>,
    /// Continent.
    pub continent: Option<Continent>,
    /// Who said so.
    pub source: Source,
}

impl Place {
    /// A place of which nothing is known but why.
    pub const fn nowhere(source: Source) -> Place {
        Place { point: None, country: None, subdivision: None, continent: None, source }
    }

    /// Whether `area` covers this place.
    pub fn is_in(&self, area: Area) -> bool {
        match area {
            Area::Continent(continent) => self.continent == Some(continent),
            Area::Country(country) => self.country == Some(country),
            Area::Subdivision(country, sub) => self.country == Some(country) && self.subdivision == Some(sub),
        }
    }
}

/// A named area of pins and residency: `continent:EU`, `country:FR`, `subdivision:US-CA`.
/// Ordered from the widest to the narrowest kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Area {
    /// `continent:EU`
    Continent(Continent),
    /// `country:FR`
    Country(Country),
    /// `subdivision:US-CA`
    Subdivision(Country, Subdivision),
}

impl FromStr for Area {
    type Err = String;

    /// Parses `kind:code`; the error says what was expected.
    fn from_str(text: &str) -> Result<Area, String> {
        let expected =
            || format!("`{text}` is not an area; expected `continent:EU`, `country:FR` or `subdivision:US-CA`");
        let (kind, code) = text.split_once(':').ok_or_else(expected)?;
        match kind {
            "continent" => Continent::new(code)
                .map(Area::Continent)
                .ok_or_else(|| format!("`{code}` is not a continent; expected one of AF, AN, AS, EU, NA, OC, SA")),
            "country" => Country::new(code)
                .map(Area::Country)
                .ok_or_else(|| format!("`{code}` is not a country; expected two letters, as in `country:FR`")),
            "subdivision" => code
                .split_once('-')
                .and_then(|(c, s)| Some(Area::Subdivision(Country::new(c)?, Subdivision::new(s)?)))
                .ok_or_else(|| {
                    format!("`{code}` is not a subdivision; expected an ISO 3166-2 code, as in `subdivision:US-CA`")
                }),
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Area::Continent(c) => write!(f, "continent:{}", c.as_str()),
            Area::Country(c) => write!(f, "country:{c}"),
            Area::Subdivision(c, s) => write!(f, "subdivision:{c}-{}", s.as_str()),
        }
    }
}
