//! RFC 8805 geofeeds: what network operators, and operators of meridian, say themselves of where prefixes are.
//!
//! One line a prefix: `prefix,country,region,city,postal`. City and postal code are read over: no place is that fine here.
//! A feed with a line that makes no sense is refused whole, with every such line named: half a correction that
//! nobody notices is worse than the running feed staying in force. Must not know places.

use std::collections::HashMap;
use std::fmt;

use crate::geo::{Country, Prefix, Subdivision};

/// What one line says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) prefix: Prefix,
    /// `None`: "do not geolocate" (RFC 8805, 2.1.2).
    pub(super) country: Option<Country>,
    pub(super) subdivision: Option<Subdivision>,
}

/// Lines named in an error; a file of another kind would have thousands.
const MAX_NAMED: usize = 20;

/// Why a geofeed is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GeofeedError {
    /// Lines that make no sense.
    Lines {
        /// The first 20: line number, from 1, and what is wrong.
        named: Vec<(usize, String)>,
        /// How many more there are.
        more: usize,
    },
    /// No line with a prefix: the file is empty or was cut.
    Empty,
    /// More feeds than can be told apart.
    TooMany,
}

impl fmt::Display for GeofeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GeofeedError::Lines { named, more } => {
                for (n, (line, what)) in named.iter().enumerate() {
                    write!(f, "{}line {line}: {what}", if n == 0 { "" } else { "\n" })?;
                }
                if *more > 0 {
                    write!(f, "\nand {more} more lines like these")?;
                }
                Ok(())
            }
            GeofeedError::Empty => f.write_str("it has no entry; expected lines such as `192.0.2.0/24,US,US-CA,,`"),
            GeofeedError::TooMany => f.write_str("too many geofeeds; expected at most 256"),
        }
    }
}

impl std::error::Error for GeofeedError {}

/// All entries in file order. Bytes, not text: names of cities come in any encoding and do not matter.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Entry>, GeofeedError> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut entries = Vec::new();
    let mut seen: HashMap<Prefix, usize> = HashMap::new();
    let (mut named, mut more) = (Vec::new(), 0);
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = entry(line).and_then(|entry| match seen.insert(entry.prefix, line_number) {
            None => Ok(entry),
            Some(before) => Err(format!("`{}` was on line {before} already; expected each prefix once", entry.prefix)),
        });
        match entry {
            Ok(entry) => entries.push(entry),
            Err(what) if named.len() < MAX_NAMED => named.push((line_number, what)),
            Err(_) => more += 1,
        }
    }
    if !named.is_empty() {
        return Err(GeofeedError::Lines { named, more });
    }
    if entries.is_empty() {
        return Err(GeofeedError::Empty);
    }
    Ok(entries)
}

fn entry(line: &str) -> Result<Entry, String> {
    let mut fields = Fields(Some(line));
    let prefix = fields.next()?;
    let country = fields.next()?;
    let region = fields.next()?;
    let prefix: Prefix = prefix.parse()?;
    if country.is_empty() {
        return match region.is_empty() {
            true => Ok(Entry { prefix, country: None, subdivision: None }),
            false => Err(format!("region `{region}` without a country; expected `US,{region}` or neither")),
        };
    }
    let code = Country::new(&country)
        .ok_or_else(|| format!("`{country}` is not a country; expected two letters (ISO 3166-1), such as `US`"))?;
    Ok(Entry { prefix, country: Some(code), subdivision: subdivision(code, &region)? })
}

fn subdivision(country: Country, region: &str) -> Result<Option<Subdivision>, String> {
    if region.is_empty() {
        return Ok(None);
    }
    let wrong =
        || format!("`{region}` is not a region of {country}; expected an ISO 3166-2 code, such as `{country}-1`");
    let (prefix, code) = region.split_once('-').ok_or_else(wrong)?;
    if Country::new(prefix) != Some(country) {
        return Err(wrong());
    }
    Subdivision::new(code).map(Some).ok_or_else(wrong)
}

/// Comma-separated fields; one may stand in quotes (`""` is a quote within). Fields left out at the end are empty.
struct Fields<'a>(Option<&'a str>);

impl Fields<'_> {
    fn next(&mut self) -> Result<String, String> {
        let Some(rest) = self.0 else { return Ok(String::new()) };
        let trimmed = rest.trim_start();
        let Some(mut quoted) = trimmed.strip_prefix('"') else {
            let (field, rest) = match rest.split_once(',') {
                Some((field, rest)) => (field, Some(rest)),
                None => (rest, None),
            };
            self.0 = rest;
            return Ok(field.trim().to_owned());
        };
        let mut field = String::new();
        loop {
            let (part, rest) = quoted.split_once('"').ok_or("a quote is not closed; expected `\"` at its end")?;
            field.push_str(part);
            match rest.strip_prefix('"') {
                Some(rest) => {
                    field.push('"');
                    quoted = rest;
                }
                None => {
                    let rest = rest.trim_start();
                    self.0 = rest.strip_prefix(',');
                    return match rest.is_empty() || self.0.is_some() {
                        true => Ok(field.trim().to_owned()),
                        false => Err(format!("`{rest}` after a quote; expected a comma")),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(String, Option<Country>, Option<Subdivision>)> {
        let entries = parse(text.as_bytes()).unwrap();
        entries.into_iter().map(|e| (e.prefix.to_string(), e.country, e.subdivision)).collect()
    }

    fn line(text: &str) -> String {
        match parse(text.as_bytes()) {
            Err(GeofeedError::Lines { named, more: 0 }) if named.len() == 1 => named[0].1.clone(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_feeds_look_like_is_read() {
        let us = Country::new("US");
        let ca = Subdivision::new("CA");
        assert_eq!(
            entries(
                "\u{feff}# a comment\r\n\r\n192.0.2.0/25,US,US-CA,San Jose,\r\n192.0.2.128/25 , us , us-ca\n\
                 \"198.51.100.0/24\",\"US\",\"US-CA\",\"Washington, \"\"D.C.\"\"\",20001\n2001:db8::/32,US\n\
                 203.0.113.7,US,,,\n2001:db8:1::/48,,,,\n10.0.0.0/8\n"
            ),
            [
                ("192.0.2.0/25".into(), us, ca),
                ("192.0.2.128/25".into(), us, ca),
                ("198.51.100.0/24".into(), us, ca),
                ("2001:db8::/32".into(), us, None),
                ("203.0.113.7/32".into(), us, None),
                ("2001:db8:1::/48".into(), None, None),
                ("10.0.0.0/8".into(), None, None),
            ]
        );
        assert_eq!(parse(b"192.0.2.0/24,FR,,Orl\xe9ans,").unwrap().len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(line("192.0.2.1/24,US").contains("did you mean `192.0.2.0/24`?"));
        assert!(line("<html>").contains("is not a network"));
        assert!(line("192.0.2.0/24,USA").contains("`USA` is not a country"));
        assert!(line("192.0.2.0/24,US,California").contains("`California` is not a region of US"));
        assert!(line("192.0.2.0/24,US,CA-ON").contains("`CA-ON` is not a region of US"));
        assert!(line("192.0.2.0/24,,US-CA").contains("without a country"));
        assert!(line("\"192.0.2.0/24,US").contains("quote"));
        assert!(line("192.0.2.0/24,US\n192.0.2.0/24,CA").contains("line 1 already"));
        assert_eq!(parse(b"# nothing\n\n"), Err(GeofeedError::Empty));
    }

    #[test]
    fn every_bad_line_is_counted_and_the_first_are_shown() {
        let text: String = (1..=50).map(|n| format!("bad {n}\n192.0.2.{n}/32,US\n")).collect();
        let error = parse(text.as_bytes()).unwrap_err();
        let GeofeedError::Lines { named, more } = &error else { panic!("{error:?}") };
        assert_eq!((named.len(), *more, named[19].0), (20, 30, 39));
        let shown = error.to_string();
        assert!(
            shown.starts_with("line 1: `bad 1` is not a network") && shown.ends_with("and 30 more lines like these")
        );
    }
}
