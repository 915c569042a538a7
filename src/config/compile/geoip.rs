//! `[geoip]`: which geo data to read, and what overrides it.

use std::path::PathBuf;

use crate::config::compile::Context;
use crate::config::compile::region::Regions;
use crate::config::names::Refused;
use crate::config::reader::{Section, Text, cut};
use crate::config::scribe::Place;
use crate::config::{DatabaseSource, GeoFiles};
use crate::geo::{Canonical, Point, Prefix};
use crate::steering::ids::RegionId;
use crate::steering::networks::Networks;

/// Databases and geofeeds are numbered by one byte; more than this many is surely a mistake.
const MOST_FILES: usize = 32;
/// `[geoip.networks]` is for exceptions; whole tables belong into a geofeed or a database.
const MOST_NETWORKS: usize = 10_000;

/// What `[geoip]` says.
pub(super) struct GeoIp {
    pub(super) files: GeoFiles,
    pub(super) default: Option<Point>,
    pub(super) networks: Networks,
}

pub(super) fn geoip(section: Section<'_>, regions: &Regions<'_>, context: &Context<'_>) -> GeoIp {
    let named = files(&section, "databases", "an entry of `databases`", context);
    let mut databases: Vec<_> = named
        .into_iter()
        .map(|(value, path)| if value == "builtin" { DatabaseSource::Builtin } else { DatabaseSource::File(path) })
        .collect();
    if !section.has("databases") {
        databases.push(DatabaseSource::Builtin);
    } else if super::is_empty_list(&section, "databases") {
        context
            .scribe
            .warning(section.place_of("databases"), "without a database every client is at an unknown place")
            .hint("leave `databases` out for the one inside the program");
    }
    let geofeeds = files(&section, "geofeeds", "an entry of `geofeeds`", context).into_iter().map(|(_, path)| path);
    let files = GeoFiles { databases, geofeeds: geofeeds.collect() };
    let default = section.point("default");
    let networks = networks(&section.table("networks"), regions, context);
    section.finish();
    GeoIp { files, default, networks }
}

fn files<'a>(section: &Section<'a>, key: &'static str, item: &str, context: &Context<'_>) -> Vec<(&'a str, PathBuf)> {
    let texts = section.texts(key, item);
    let mut seen = Vec::new();
    for text in &texts {
        if text.value.is_empty() {
            section.refused(*text, item, &Refused { expected: "the name of a file", hint: None });
        }
        seen.push((text.value, text.place));
    }
    super::refuse_twice(&seen, "this file", context.scribe);
    if let Some(text) = texts.get(MOST_FILES) {
        context.scribe.error(text.place, format!("`{key}` can have at most {MOST_FILES} entries"));
    }
    texts.into_iter().map(|text| (text.value, context.path(text))).collect()
}

fn networks(section: &Section<'_>, regions: &Regions<'_>, context: &Context<'_>) -> Networks {
    let entries = section.entries();
    if let Some(entry) = entries.get(MOST_NETWORKS) {
        let message = format!("there can be at most {MOST_NETWORKS} networks here, not {}", entries.len());
        context.scribe.error(entry.place, message).hint("put long lists into a geofeed or a database");
        return Networks::default();
    }
    let mut list: Vec<(Prefix, RegionId)> = Vec::new();
    let mut seen: std::collections::HashMap<Prefix, Place> = std::collections::HashMap::new();
    for entry in entries {
        let text = section.text_of(&entry.node, "the region of a network", "the name of a region in quotes");
        let region = text.and_then(|text: Text<'_>| regions.named(text, context));
        match entry.key.parse::<Prefix>() {
            Err(why) => {
                context.scribe.error(entry.place, cut(&why));
            }
            Ok(prefix) if Canonical::new(prefix.first()).ip() != prefix.first() => {
                context
                    .scribe
                    .error(
                        entry.place,
                        format!("`{prefix}` can never match: these clients are known by the IPv4 address inside"),
                    )
                    .hint("write the IPv4 network");
            }
            Ok(prefix) => {
                if let Some(first) = seen.insert(prefix, entry.place) {
                    context
                        .scribe
                        .error(entry.place, format!("the network `{prefix}` is listed twice"))
                        .also("first at", first);
                }
                list.extend(region.map(|region| (prefix, region)));
            }
        }
    }
    Networks::new(list)
}
