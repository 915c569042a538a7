//! Residency and pins: areas whose clients are confined or sent to regions of a service.

use crate::config::compile::region::Regions;
use crate::config::compile::{Context, is_empty_list, refuse_twice};
use crate::config::file::{Node, Value};
use crate::config::names;
use crate::config::reader::{Section, Text, cut};
use crate::config::scribe::Place;
use crate::geo::Area;
use crate::geo::tables::continent_of;
use crate::steering::fleet::{Pin, Residency};
use crate::steering::ids::{RegionId, RegionSet};

/// The regions of one service.
pub(super) struct Own<'a, 'b> {
    pub(super) regions: &'a Regions<'b>,
    pub(super) members: RegionSet,
    /// Whether all its pools are among the members: one with a mistyped region is not.
    pub(super) complete: bool,
    pub(super) context: &'a Context<'a>,
}

impl Own<'_, '_> {
    /// A region that must have a pool in this service.
    fn member(&self, name: Text<'_>) -> Option<RegionId> {
        let id = self.regions.named(name, self.context)?;
        if self.complete && !self.members.contains(id) {
            let shown = self.context.scribe.written(name.place);
            self.context
                .scribe
                .absent(name.place, format!("region `{shown}` has no pool in this service"))
                .hint("add its `pools` table, or take the region out here");
        }
        Some(id)
    }

    /// The items of a list of regions, each of which must have a pool in this service, and where the list is.
    fn list(&self, section: &Section<'_>, node: &Node, what: &str) -> Vec<(RegionId, Place)> {
        let Value::Array { items, .. } = &node.value else {
            section.wrong(node, what, "a list of regions, such as `[\"eu-west\"]`", None);
            return Vec::new();
        };
        if items.is_empty() {
            self.context.scribe.error(node.place, format!("{what} is empty: name at least one region"));
        }
        let texts = items.iter().filter_map(|item| section.text_of(item, "a region", "a name in quotes"));
        let list: Vec<_> = texts.filter_map(|text| Some((self.member(text)?, text.place))).collect();
        refuse_twice(&list, "this region", self.context.scribe);
        list
    }
}

fn area(section: &Section<'_>, text: Text<'_>) -> Option<Area> {
    match text.value.parse() {
        Ok(area) => {
            warn_unused_country(section, area, text);
            Some(area)
        }
        Err(_) if text.secret => {
            let expected = "an area such as `continent:EU`, `country:FR` or `subdivision:US-CA`";
            section.refused(text, "this", &names::Refused { expected, hint: None });
            None
        }
        Err(why) => {
            section.scribe.error(text.place, cut(&why));
            None
        }
    }
}

/// Databases may use codes of their own, so a code that is not in use is only probably a mistake.
fn warn_unused_country(section: &Section<'_>, area: Area, text: Text<'_>) {
    let country = match area {
        Area::Country(country) | Area::Subdivision(country, _) => country,
        Area::Continent(_) => return,
    };
    if continent_of(country).is_none() && !text.secret {
        let hint = match country.as_str() {
            "UK" => "the code of the United Kingdom is `GB`",
            _ => "codes are those of ISO 3166-1",
        };
        section
            .scribe
            .warning(text.place, format!("no country has the code `{country}`: this matches nobody"))
            .hint(hint);
    }
}

/// A residency rule and how it is written.
struct Rule {
    rule: Residency,
    /// Its areas as written: they may hold variables.
    areas: Vec<String>,
    place: Place,
}

pub(super) fn residency(section: &Section<'_>, own: &Own<'_, '_>) -> Vec<Residency> {
    let scribe = own.context.scribe;
    let mut rules: Vec<Rule> = Vec::new();
    let mut complete = own.complete;
    for rule in section.tables("residency") {
        let mut from: Vec<(Area, Place)> = Vec::new();
        for text in rule.texts("from", "an area") {
            from.extend(area(&rule, text).map(|area| (area, text.place)));
        }
        refuse_twice(&from, "this area", scribe);
        if !rule.has("from") || is_empty_list(&rule, "from") {
            rule.missing("`from` of this residency rule", "write `from = [\"continent:EU\"]`");
        }
        let to = match rule.node("to") {
            Some(node) => own.list(&rule, node, "`to`"),
            None => {
                rule.missing("`to` of this residency rule", "write `to = [\"eu-west\"]`");
                Vec::new()
            }
        };
        complete &= !to.is_empty() && to.len() == rule.items("to").len();
        let place = rule.place_of("to");
        rule.finish();
        let areas = from.iter().map(|(_, place)| scribe.written(*place)).collect();
        let from = from.into_iter().map(|(area, _)| area).collect();
        let to = to.into_iter().map(|(region, _)| region).collect();
        rules.push(Rule { rule: Residency { from, to }, areas, place });
    }
    if complete && own.members.len() > 1 {
        warn_residency(&rules, own);
    }
    rules.into_iter().map(|rule| rule.rule).collect()
}

/// For each rule, of its areas the one that is left with the fewest regions by all rules that surely cover it. A continent's rule
/// covers its countries too, but which country is where is geo data, so only rules that name the area or its country count here.
fn warn_residency(rules: &[Rule], own: &Own<'_, '_>) {
    let left = |area: &Area| {
        let covering = rules.iter().filter(|other| other.rule.from.iter().any(|wide| covers(wide, area)));
        covering.fold(own.members, |left, other| left.and(other.rule.to))
    };
    for Rule { rule, areas, place } in rules {
        let fewest = rule.from.iter().map(left).zip(areas).min_by_key(|(left, _)| left.len());
        match fewest {
            Some((left, area)) if left.is_empty() => {
                own.context.scribe.error(*place, format!("the residency rules together leave no region for {area}"));
            }
            Some((left, area)) if left.len() == 1 => {
                own.context
                    .scribe
                    .warning(*place, format!("one lost region leaves clients from {area} without any"))
                    .hint("name a second region that may serve them");
            }
            _ => {}
        }
    }
}

fn covers(wide: &Area, narrow: &Area) -> bool {
    wide == narrow || matches!((wide, narrow), (Area::Country(a), Area::Subdivision(b, _)) if a == b)
}

pub(super) fn pins(section: &Section<'_>, own: &Own<'_, '_>) -> Vec<Pin> {
    let (mut pins, mut seen) = (Vec::new(), Vec::new());
    for entry in section.entries() {
        let area = area(section, Text { value: &entry.key, place: entry.place, secret: false });
        let to = own.list(section, &entry.node, "a pin");
        if let Some(area) = area {
            seen.push((area, entry.place));
            pins.push(Pin { area, to: to.into_iter().map(|(region, _)| region).collect() });
        }
    }
    refuse_twice(&seen, "this area", own.context.scribe);
    // Narrowest kind first; `Area` is ordered from the widest.
    pins.sort_by_key(|pin| match pin.area {
        Area::Subdivision(..) => 0,
        Area::Country(_) => 1,
        Area::Continent(_) => 2,
    });
    pins
}
