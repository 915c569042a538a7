//! `[pop]`, `[client_ip]` and `[limits]`: what a request meets before and after the decision.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::compile::Context;
use crate::config::file::Value;
use crate::config::names;
use crate::config::reader::Section;
use crate::config::{Edge, Forwarding, Limits, Trace, Underscores};
use crate::geo::{Point, Prefix};

/// `[pop]`: name and location.
pub(super) fn pop(section: &Section<'_>, context: &Context<'_>) -> (String, Option<Point>) {
    let name = match section.text("name") {
        Some(text) => {
            if !names::is_plain(text.value) {
                let why = names::Refused { expected: "1 to 63 letters, digits, `-`, `_` and `.`", hint: None };
                section.refused(text, "name", &why);
            }
            text.value.to_owned()
        }
        None => {
            if !names::is_plain(context.host_name) && !section.has("name") {
                context
                    .scribe
                    .file_error(0, true, "the host's own name cannot be the name of this meridian")
                    .hint("give it one: `[pop]` and below it `name = \"fra1\"`");
            }
            context.host_name.to_owned()
        }
    };
    let location = section.point("location");
    section.finish();
    (name, location)
}

/// What these tables say of it; the rest is other tables'.
pub(super) fn edge(root: &Section<'_>, pop: &str) -> Edge {
    let section = root.table("client_ip");
    let trusted = trusted(&section);
    let words = [("x-forwarded-for", Forwarding::XForwardedFor), ("forwarded", Forwarding::Forwarded)];
    let forwarding = section.choice("header", Forwarding::XForwardedFor, &words);
    section.finish();
    let via = format!("meridian-{pop}");
    Edge {
        via,
        trusted,
        forwarding,
        limits: limits(root.table("limits")),
        upstream_tls: Vec::new(),
        tls: Vec::new(),
        acme: None,
        trace: Trace::default(),
    }
}

/// Whether `[client_ip] trusted` is empty or not there.
pub(super) fn trusts_nobody(root: &Section<'_>) -> bool {
    // As written: what is wrong there is said once, where it is read.
    let trusted = match root.node("client_ip").map(|node| &node.value) {
        Some(Value::Table(table)) => table.get("trusted").map(|entry| &entry.node.value),
        _ => None,
    };
    trusted.is_none_or(|trusted| matches!(trusted, Value::Array { items, .. } if items.is_empty()))
}

fn trusted(section: &Section<'_>) -> Vec<Prefix> {
    let mut list = Vec::new();
    for text in section.texts("trusted", "an entry of `trusted`") {
        match text.value.parse::<Prefix>() {
            Ok(prefix) if prefix.prefix_len() == 0 => {
                section
                    .scribe
                    .warning(text.place, "every peer is trusted: any client can claim any address")
                    .hint("list the networks of your own load balancers");
                list.push(prefix);
            }
            Ok(prefix) if is_mapped(prefix) => {
                section
                    .scribe
                    .error(text.place, "this network can never match: such peers are known by the IPv4 address inside")
                    .hint("write the IPv4 network");
            }
            Ok(prefix) => list.push(prefix),
            Err(_) if text.secret => {
                let expected = "a network such as `192.0.2.0/24` or `2001:db8::/32`";
                section.refused(text, "an entry of `trusted`", &names::Refused { expected, hint: None });
            }
            Err(why) => {
                section.scribe.error(text.place, why);
            }
        }
    }
    list
}

/// Whether all of a network is IPv4-mapped (`::ffff:0:0/96`), which peers' addresses never are when they are compared.
fn is_mapped(prefix: Prefix) -> bool {
    matches!(prefix.first(), IpAddr::V6(first) if prefix.prefix_len() >= 96 && first.to_ipv4_mapped().is_some())
}

fn limits(section: Section<'_>) -> Limits {
    const KIB: u64 = 1 << 10;
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    let words = [("drop", Underscores::Drop), ("pass", Underscores::Pass), ("reject", Underscores::Reject)];
    let limits = Limits {
        handshake_timeout: section.duration("handshake_timeout", 10 * second, second / 1000..=24 * hour),
        header_bytes: section.size("header_bytes", 32 * KIB, KIB..=1024 * KIB),
        headers: section.integer("headers", 100u32, 1..=1000) as usize,
        uri: section.size("uri", 8 * KIB, 64..=63 * KIB) as usize,
        header_timeout: section.duration("header_timeout", 10 * second, second / 1000..=24 * hour),
        body_timeout: section.duration("body_timeout", 30 * second, second / 1000..=24 * hour),
        min_rate: section.size("min_rate", 0, 0..=1 << 40),
        idle_timeout: section.duration("idle_timeout", 60 * second, second / 1000..=24 * hour),
        requests: section.integer("requests", 0u32, 0..=u32::MAX),
        connections: section.integer("connections", 20_000u32, 1..=10_000_000) as usize,
        per_network: section.integer("per_network", 0u32, 0..=10_000_000),
        connection_rate: section.integer("connection_rate", 0u32, 0..=1_000_000),
        in_flight: section.integer("in_flight", 0u32, 0..=10_000_000) as usize,
        memory: section.size("memory", 0, 0..=1 << 50),
        underscores: section.choice("underscores", Underscores::Drop, &words),
    };
    section.finish();
    limits
}
