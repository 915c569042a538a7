//! `[regions.*]`, and looking regions up by name.

use std::cell::Cell;
use std::collections::HashMap;

use crate::config::compile::Context;
use crate::config::reader::{Section, Text, cut};
use crate::config::scribe::Place;
use crate::config::units::meant;
use crate::steering::Fleet;
use crate::steering::fleet::{Capacity, Intent, Region, Unit};
use crate::steering::ids::{MAX_REGIONS, RegionId, RegionSet};

/// All regions and where they are written.
pub(super) struct Regions<'a> {
    pub(super) list: Vec<Region>,
    places: Vec<Place>,
    /// Whether a location is written, good or not.
    has_location: Vec<bool>,
    by_name: HashMap<&'a str, RegionId>,
    /// Whether a name was looked up that does not exist: the region meant by it is in use.
    mistaken: Cell<bool>,
}

pub(super) fn regions<'a>(root: &Section<'a>, context: &Context<'_>) -> Regions<'a> {
    let section = root.table("regions");
    let mut regions = Regions {
        list: Vec::new(),
        places: Vec::new(),
        has_location: Vec::new(),
        by_name: HashMap::new(),
        mistaken: Cell::new(false),
    };
    let entries = section.entries();
    if entries.is_empty() && (section.is_present() || !root.has("regions")) {
        context
            .scribe
            .file_error(0, true, "no region is configured: at least one is needed")
            .hint("add `[regions.NAME]` and below it `location = [latitude, longitude]`");
    }
    if let Some(entry) = entries.get(MAX_REGIONS) {
        context.scribe.error(entry.place, format!("there can be at most {MAX_REGIONS} regions, not {}", entries.len()));
    }
    for (entry, id) in entries.iter().take(MAX_REGIONS).zip(0u8..) {
        super::check_name(&entry.key, entry.place, "region", context.scribe);
        let region = section.named(&entry.key, entry.place, &entry.node);
        regions.has_location.push(region.as_ref().is_none_or(|region| region.has("location")));
        regions.list.push(region.map_or_else(|| unread(&entry.key), |region| read(&entry.key, region)));
        regions.places.push(entry.place);
        regions.by_name.insert(&entry.key, RegionId(id));
    }
    regions
}

fn read(name: &str, section: Section<'_>) -> Region {
    let words = [("ready", Intent::Ready), ("drain", Intent::Drain), ("maint", Intent::Maint)];
    let region = Region {
        name: name.to_owned(),
        location: section.point("location"),
        bias: section.integer("bias", 0i8, -99..=99),
        intent: section.choice("state", Intent::Ready, &words),
        capacity: section.has("capacity").then(|| capacity(&section.table("capacity"))).flatten(),
    };
    section.finish();
    region
}

/// The most that a region can be said to carry.
const MOST: u32 = 10_000_000;

/// `None`: something of it is wrong, which is reported.
fn capacity(section: &Section<'_>) -> Option<Capacity> {
    for key in ["target", "limit"] {
        if section.is_present() && !section.has(key) {
            section.missing(
                &format!("`{key}` of `{}`", section.name),
                "write `capacity = { target = 800, limit = 1000, unit = \"in_flight\" }`",
            );
        }
    }
    let target = section.integer("target", 1, 1..=MOST);
    let limit = section.integer("limit", MOST, 1..=MOST);
    let unit = section.choice("unit", Unit::InFlight, &[("in_flight", Unit::InFlight), ("rps", Unit::Rps)]);
    section.finish();
    if target > limit {
        section
            .scribe
            .error(section.place_of("target"), format!("`target` ({target}) is above `limit` ({limit})"))
            .hint("between the two, clients are shed to other regions; `limit` is never passed");
        return None;
    }
    (section.has("target") && section.has("limit")).then_some(Capacity { target, limit, unit })
}

/// Keeps the ids of the regions after one that is no table.
fn unread(name: &str) -> Region {
    Region { name: name.to_owned(), location: None, bias: 0, intent: Intent::Ready, capacity: None }
}

impl Regions<'_> {
    /// The region of that name; reports one that does not exist.
    pub(super) fn named(&self, name: Text<'_>, context: &Context<'_>) -> Option<RegionId> {
        let found = self.by_name.get(name.value).copied();
        if found.is_none() {
            self.mistaken.set(true);
        }
        // Without any region that is the mistake, and it was reported.
        if found.is_none() && !self.list.is_empty() {
            let shown = if name.secret { context.scribe.written(name.place) } else { cut(name.value) };
            let meant = meant(name.value, self.list.iter().map(|region| region.name.as_str()));
            context
                .scribe
                .absent(name.place, format!("there is no region `{shown}`"))
                .meant(meant.filter(|_| !name.secret));
        }
        found
    }

    /// Those that have a capacity.
    pub(super) fn bounded(&self) -> RegionSet {
        let ids = self.list.iter().zip(0u8..);
        ids.filter(|(region, _)| region.capacity.is_some()).map(|(_, id)| RegionId(id)).collect()
    }

    /// Whether no location is written for a region.
    pub(super) fn is_nowhere(&self, id: RegionId) -> bool {
        !self.has_location[id.index()]
    }

    /// Where a region is written.
    pub(super) fn place(&self, id: RegionId) -> Place {
        self.places[id.index()]
    }
}

/// Warns of regions that no service uses.
pub(super) fn warn_unused(regions: &Regions<'_>, fleet: &Fleet, context: &Context<'_>) {
    if fleet.services.is_empty() || regions.mistaken.get() {
        return;
    }
    for (region, place) in regions.list.iter().zip(&regions.places) {
        let id = regions.by_name.get(region.name.as_str());
        if id.is_some_and(|id| !fleet.services.iter().any(|service| service.regions.contains(*id))) {
            context
                .scribe
                .warning(*place, format!("no service has a pool in region `{}`", region.name))
                .hint(format!("add `[services.NAME.pools.{}]`, or remove the region", region.name));
        }
    }
}
