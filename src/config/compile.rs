//! Every check: from what is written to what works.
//!
//! One function a table, in the order of the reference. Each reads its keys through a [`Section`], so that the code that uses a
//! key is what makes it known. A mistake is reported and its default taken; nothing stops the other checks, and the result is
//! thrown away when there was any.

mod acme;
mod affinity;
mod areas;
mod boot;
mod edge;
mod geoip;
mod health;
mod pools;
mod region;
mod rules;
mod service;
mod tls;
mod trace;

use std::path::PathBuf;

use crate::config::compile::boot::Reloaded;
use crate::config::file::{Table, Value, beside};
use crate::config::reader::{Section, Text};
use crate::config::scribe::{Place, Scribe};
use crate::config::{AdminDoors, Boot, Edge, Engine, Files, GeoFiles};
use crate::steering::Fleet;
use crate::steering::fleet::Pop;

/// What a configuration comes to.
pub(crate) struct Compiled {
    pub(crate) boot: Boot,
    pub(crate) edge: Edge,
    pub(crate) fleet: Fleet,
    pub(crate) geoip: GeoFiles,
}

/// What the checks share.
pub(crate) struct Context<'a> {
    pub(crate) scribe: &'a Scribe,
    /// What the configuration names: certificates and keys.
    pub(crate) files: &'a dyn Files,
    /// Answers for variables of the environment.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
    /// The default of `[pop] name`.
    pub(crate) host_name: &'a str,
}

/// Checks the whole tree. The result is worth something only if nothing was reported as an error.
pub(crate) fn compile(tree: &Table, context: &Context<'_>) -> Compiled {
    let root = Section::root(tree, Place { file: 0, start: 0, end: 0 }, context.scribe);
    let (pop, location) = edge::pop(&root.table("pop"), context);
    let (boot, Reloaded { brake, tls, acme, trace }) = boot::boot(&root, context);
    let regions = region::regions(&root, context);
    let geoip = geoip::geoip(root.table("geoip"), &regions, context);
    let mut fleet = Fleet {
        pop: Pop { name: pop.clone(), location },
        geo_default: geoip.default,
        networks: geoip.networks,
        brake,
        ..Fleet::default()
    };
    let listeners = service::Listeners {
        admin: boot.admin,
        pingora: boot.listen.iter().any(|listen| listen.engine == Engine::Pingora),
        // By its connection, or by the word of a trusted peer.
        knows_https: boot.listen.iter().any(|listen| listen.tls) || !edge::trusts_nobody(&root),
    };
    let upstream_tls = service::services(&root, &regions, listeners, &mut fleet, context);
    region::warn_unused(&regions, &fleet, context);
    fleet.bounded = regions.bounded();
    fleet.regions = regions.list;
    let edge = Edge { tls, upstream_tls, acme, trace, ..edge::edge(&root, &pop) };
    root.finish();
    Compiled { boot, edge, fleet, geoip: geoip.files }
}

/// Where the process answers, if all of that could be read.
pub(crate) fn admin_doors(tree: &Table, context: &Context<'_>) -> Option<AdminDoors> {
    let before = context.scribe.report().errors();
    let section = Section::root(tree, Place { file: 0, start: 0, end: 0 }, context.scribe).table("admin");
    // Of a token less is enough: the socket needs none, and the environment may have it.
    let is_unknown = |key| section.node(key).is_some_and(|node| matches!(node.value, Value::Unknown));
    let is_told = !context.scribe.is_partial() && !is_unknown("address") && !is_unknown("socket");
    let doors = boot::admin_doors(section, context);
    (is_told && context.scribe.report().errors() == before).then_some(doors)
}

impl Context<'_> {
    /// A path relative to the file that names it, made usable from the working directory.
    fn path(&self, text: Text<'_>) -> PathBuf {
        beside(&self.scribe.sources[text.place.file].path, text.value.as_ref())
    }

    /// The first folder in a variable that systemd sets; it separates several by colons.
    fn folder(&self, variable: &str) -> Option<PathBuf> {
        let value = (self.env)(variable)?;
        value.split(':').next().filter(|first| !first.is_empty()).map(PathBuf::from)
    }
}

/// Reports every value that occurs twice; `what` names one. Comparison is by the typed value, so spellings don't matter.
fn refuse_twice<T: PartialEq>(items: &[(T, Place)], what: &str, scribe: &Scribe) {
    for (n, (item, place)) in items.iter().enumerate() {
        if let Some((_, first)) = items[..n].iter().find(|(other, _)| other == item) {
            scribe.error(*place, format!("{what} is listed twice")).also("first at", *first);
        }
    }
}

/// Checks a name of the operator's: region or service.
fn check_name(name: &str, place: Place, what: &str, scribe: &Scribe) {
    if !crate::config::names::is_plain(name) {
        let name = crate::config::reader::cut(name);
        scribe
            .error(place, format!("`{name}` cannot be the name of a {what}"))
            .hint("names are 1 to 63 letters, digits, `-`, `_` and `.`");
    }
}

/// Whether a required key holds a list without items.
fn is_empty_list(section: &Section<'_>, key: &'static str) -> bool {
    section.node(key).is_some_and(|node| matches!(&node.value, Value::Array { items, .. } if items.is_empty()))
}
