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
        angle_km(HalfAngles::of(self).haversine(&HalfAngles::of(other)))
    }
}

/// A point prepared for many distances: with the sines and cosines of its half angles at hand, a haversine is a few multiplications.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HalfAngles {
    sin_latitude: f64,
    cos_latitude: f64,
    sin_longitude: f64,
    cos_longitude: f64,
    /// Of the whole latitude.
    cos: f64,
}

impl HalfAngles {
    /// Prepares a point.
    pub fn of(point: Point) -> HalfAngles {
        let (sin_latitude, cos_latitude) = (point.latitude.to_radians() * 0.5).sin_cos();
        let (sin_longitude, cos_longitude) = (point.longitude.to_radians() * 0.5).sin_cos();
        let cos = point.latitude.to_radians().cos();
        HalfAngles { sin_latitude, cos_latitude, sin_longitude, cos_longitude, cos }
    }

    /// The haversine of the central angle, 0 … 1: it grows with the distance, so it orders as the distance does. By
    /// hav(Δφ) + cos φ₁ cos φ₂ hav(Δλ), with the sine of each half difference from the half angles.
    pub fn haversine(&self, other: &HalfAngles) -> f64 {
        let latitude = self.sin_latitude * other.cos_latitude - self.cos_latitude * other.sin_latitude;
        let longitude = self.sin_longitude * other.cos_longitude - self.cos_longitude * other.sin_longitude;
        latitude * latitude + self.cos * other.cos * longitude * longitude
    }
}

/// The distance in kilometres of a haversine.
pub fn angle_km(haversine: f64) -> f64 {
    2.0 * EARTH_RADIUS_KM * haversine.sqrt().min(1.0).asin()
}

/// The haversine of a distance in kilometres; 1 for half the Earth's circumference and more.
pub fn km_angle(km: f64) -> f64 {
    let half = (km / (2.0 * EARTH_RADIUS_KM)).min(std::f64::consts::FRAC_PI_2);
    half.sin() * half.sin()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn point(latitude: f64, longitude: f64) -> Point {
        Point::new(latitude, longitude).unwrap()
    }

    /// The formula as books have it.
    fn textbook(a: Point, b: Point) -> f64 {
        let half = |x: f64, y: f64| ((y - x).to_radians() / 2.0).sin().powi(2);
        let cos = a.latitude.to_radians().cos() * b.latitude.to_radians().cos();
        let h = half(a.latitude, b.latitude) + cos * half(a.longitude, b.longitude);
        2.0 * EARTH_RADIUS_KM * h.sqrt().min(1.0).asin()
    }

    proptest::proptest! {
        #[test]
        fn distances_are_those_of_the_textbook(
            a in (-90.0..=90.0f64, -180.0..=180.0f64), b in (-90.0..=90.0f64, -180.0..=180.0f64),
        ) {
            let (a, b) = (point(a.0, a.1), point(b.0, b.1));
            let (ours, theirs) = (a.distance_km(b), textbook(a, b));
            // Near the antipodes the haversine itself loses digits: a metre.
            proptest::prop_assert!((ours - theirs).abs() < 1e-3, "{ours} {theirs}");
            proptest::prop_assert!(angle_km(km_angle(ours)) - ours < 1e-3);
        }
    }

    #[test]
    fn known_distances() {
        let (dublin, ashburn) = (point(53.35, -6.26), point(38.95, -77.45));
        assert!((dublin.distance_km(ashburn) - 5465.5984).abs() < 1e-3, "{}", dublin.distance_km(ashburn));
        assert_eq!(dublin.distance_km(dublin), 0.0);
        let (west, east) = (point(-17.0, 179.9), point(-17.0, -179.9));
        assert!(west.distance_km(east) < 25.0);
        assert!((point(90.0, 0.0).distance_km(point(-90.0, 0.0)) - 20015.1).abs() < 0.1);
    }
}
