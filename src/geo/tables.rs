//! What the databases leave out, compiled in: the continent and capital of a country, the code and middle of a
//! subdivision.
//!
//! Two tables of a few thousand lines, parsed once when first asked. They never change while the process runs.
//! Must not know databases.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::geo::{Continent, Country, Point, Subdivision};

/// The continent of a country; `None` for a code that is not in use.
pub fn continent_of(country: Country) -> Option<Continent> {
    COUNTRIES.get(&country).map(|row| row.continent)
}

/// Where a country's capital is: what stands for the country when nothing finer is known.
pub fn capital_of(country: Country) -> Option<Point> {
    COUNTRIES.get(&country).map(|row| row.capital)
}

/// The code of the subdivision that ip-location-db's databases write as `name` (their `state1`, byte for byte).
pub fn subdivision_named(country: Country, name: &str) -> Option<Subdivision> {
    SUBDIVISIONS.by_name.get(&(country, name)).copied()
}

/// The middle of a subdivision, by its addresses.
pub fn subdivision_point(country: Country, subdivision: Subdivision) -> Option<Point> {
    SUBDIVISIONS.points.get(&(country, subdivision)).copied()
}

struct CountryRow {
    continent: Continent,
    capital: Point,
}

struct Subdivisions {
    by_name: HashMap<(Country, &'static str), Subdivision>,
    points: HashMap<(Country, Subdivision), Point>,
}

static COUNTRIES: LazyLock<HashMap<Country, CountryRow>> = LazyLock::new(|| {
    rows(include_str!("tables/countries.tsv"))
        .map(|line| country_row(line).expect("every line of the compiled-in table parses: a test reads them all"))
        .collect()
});

static SUBDIVISIONS: LazyLock<Subdivisions> = LazyLock::new(|| {
    let mut tables = Subdivisions { by_name: HashMap::new(), points: HashMap::new() };
    for line in rows(include_str!("tables/subdivisions.tsv")) {
        let (country, subdivision, name, point) =
            subdivision_row(line).expect("every line of the compiled-in table parses: a test reads them all");
        tables.by_name.insert((country, name), subdivision);
        tables.points.insert((country, subdivision), point);
    }
    tables
});

fn rows(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn country_row(line: &'static str) -> Option<(Country, CountryRow)> {
    let mut fields = line.split('\t');
    let country = Country::new(fields.next()?)?;
    let continent = Continent::new(fields.next()?)?;
    let capital = point(fields.next()?, fields.next()?)?;
    Some((country, CountryRow { continent, capital }))
}

fn subdivision_row(line: &'static str) -> Option<(Country, Subdivision, &'static str, Point)> {
    let mut fields = line.split('\t');
    let (country, subdivision) = fields.next()?.split_once('-')?;
    let name = fields.next()?;
    let point = point(fields.next()?, fields.next()?)?;
    Some((Country::new(country)?, Subdivision::new(subdivision)?, name, point))
}

fn point(latitude: &str, longitude: &str) -> Option<Point> {
    Point::new(latitude.parse().ok()?, longitude.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_country_parses_once() {
        for line in rows(include_str!("tables/countries.tsv")) {
            assert!(country_row(line).is_some(), "{line}");
        }
        assert_eq!(COUNTRIES.len(), rows(include_str!("tables/countries.tsv")).count());
        assert!(COUNTRIES.len() > 240, "{}", COUNTRIES.len());
    }

    #[test]
    fn every_subdivision_parses_and_no_name_has_two_codes() {
        for line in rows(include_str!("tables/subdivisions.tsv")) {
            let row = subdivision_row(line);
            assert!(row.is_some_and(|(country, ..)| COUNTRIES.contains_key(&country)), "{line}");
        }
        assert_eq!(SUBDIVISIONS.by_name.len(), rows(include_str!("tables/subdivisions.tsv")).count());
    }

    #[test]
    fn well_known_places_are_where_they_are() {
        let us = Country::new("US").unwrap();
        assert_eq!(subdivision_named(us, "California"), Subdivision::new("CA"));
        assert_eq!(continent_of(us), Some(Continent::NorthAmerica));
        let paris = Point::new(48.86, 2.35).unwrap();
        assert!(capital_of(Country::new("FR").unwrap()).unwrap().distance_km(paris) < 20.0);
        let california = subdivision_point(us, Subdivision::new("CA").unwrap()).unwrap();
        assert!(california.distance_km(Point::new(36.0, -119.5).unwrap()) < 300.0);
        assert_eq!(capital_of(Country::new("ZZ").unwrap()), None);
    }
}
