//! `[services.*.pools.*]`: the endpoints of a service in each region.

use crate::config::compile::Context;
use crate::config::compile::region::Regions;
use crate::config::file::{Node, Value};
use crate::config::names;
use crate::config::reader::{Section, Text};
use crate::config::scribe::Place;
use crate::steering::fleet::{EndpointAddress, EndpointSpec};
use crate::steering::ids::RegionId;

/// The largest weight of a pool or endpoint.
const MAX_WEIGHT: u32 = 1_000_000;
/// More endpoints than this in one pool is surely a mistake.
const MOST_ENDPOINTS: usize = 1000;

/// A pool before it has an id.
pub(super) struct Draft {
    pub(super) region: RegionId,
    pub(super) weight: u32,
    pub(super) dial: u8,
    pub(super) endpoints: Vec<EndpointSpec>,
    /// Of the weight, or of the pool when it has the default.
    pub(super) weight_place: Place,
    pub(super) dial_place: Place,
}

/// The pools of one service, in the order of the regions, and whether every region they name exists.
pub(super) fn pools(
    section: &Section<'_>,
    dial: (u8, Place),
    regions: &Regions<'_>,
    context: &Context<'_>,
) -> (Vec<Draft>, bool) {
    let mut drafts: Vec<Draft> = Vec::new();
    let mut complete = true;
    for entry in section.entries() {
        let name = Text { value: &entry.key, place: entry.place, secret: false };
        let region = regions.named(name, context);
        complete &= region.is_some();
        let Some(pool) = section.named(&entry.key, entry.place, &entry.node) else { continue };
        let draft = Draft {
            region: region.unwrap_or(RegionId(0)),
            weight: pool.integer("weight", 1, 0..=MAX_WEIGHT),
            dial: pool.integer("dial", dial.0, 0..=100),
            endpoints: endpoints(&pool, context),
            weight_place: pool.place_of("weight"),
            dial_place: if pool.has("dial") { pool.place_of("dial") } else { dial.1 },
        };
        pool.finish();
        drafts.extend(region.is_some().then_some(draft));
    }
    drafts.sort_by_key(|draft| draft.region);
    (drafts, complete)
}

fn endpoints(pool: &Section<'_>, context: &Context<'_>) -> Vec<EndpointSpec> {
    let items = pool.items("endpoints");
    if !pool.has("endpoints") {
        pool.missing(&format!("`endpoints` of `{}`", pool.name), "write `endpoints = [\"10.0.1.10:8080\"]`");
    } else if super::is_empty_list(pool, "endpoints") {
        pool.scribe
            .error(pool.place_of("endpoints"), "a pool needs at least one endpoint")
            .hint("to take no traffic, set `weight = 0` or the region's `state`");
    }
    if let Some(node) = items.get(MOST_ENDPOINTS) {
        pool.scribe
            .error(node.place, format!("a pool can have at most {MOST_ENDPOINTS} endpoints, not {}", items.len()));
        return Vec::new();
    }
    let (mut list, mut seen) = (Vec::new(), Vec::new());
    for node in items {
        if let Some((spec, place)) = endpoint(pool, node) {
            seen.push((spec.address.clone(), place));
            list.push(spec);
        }
    }
    super::refuse_twice(&seen, "this endpoint", context.scribe);
    if !list.is_empty() && list.len() == items.len() && list.iter().all(|endpoint| endpoint.weight == 0) {
        pool.scribe
            .error(pool.place_of("endpoints"), "no endpoint of this pool has a weight above 0")
            .hint("to take no traffic, set the pool's `weight = 0` or the region's `state`");
    }
    list
}

fn endpoint<'a>(pool: &Section<'a>, node: &'a Node) -> Option<(EndpointSpec, Place)> {
    const WHAT: &str = "an endpoint";
    match &node.value {
        Value::Table(table) => {
            let section = pool.item("endpoints", table, node.place);
            let text = section.text("address");
            if !section.has("address") {
                section.missing("`address` of this endpoint", "write `{ address = \"10.0.1.10:8080\", weight = 2 }`");
            }
            let weight = section.integer("weight", 1, 0..=MAX_WEIGHT);
            section.finish();
            let text = text?;
            Some((EndpointSpec { address: address(pool, text)?, weight }, text.place))
        }
        _ => {
            let text = pool.text_of(node, WHAT, "an address in quotes, such as `\"10.0.1.10:8080\"`")?;
            Some((EndpointSpec { address: address(pool, text)?, weight: 1 }, text.place))
        }
    }
}

fn address(pool: &Section<'_>, text: Text<'_>) -> Option<EndpointAddress> {
    names::endpoint(text.value).map_err(|why| pool.refused(text, "an endpoint", &why)).ok()
}
