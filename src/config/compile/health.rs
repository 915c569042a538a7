//! `[services.*.health]`: probes and what they mean.

use std::time::Duration;

use crate::config::file::{Node, Value};
use crate::config::names::{self, Refused};
use crate::config::reader::{Section, Text};
use crate::steering::fleet::{HealthPolicy, Passive, Probe};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Http,
    Tcp,
    Tls,
    Grpc,
    None,
}

/// The words of `kind`.
const KINDS: [(&str, Kind); 5] =
    [("http", Kind::Http), ("tcp", Kind::Tcp), ("tls", Kind::Tls), ("grpc", Kind::Grpc), ("none", Kind::None)];

/// An absent table means no probes: with defaults in its place a service without `/healthz` would be down from the start.
pub(super) fn health(section: Section<'_>) -> HealthPolicy {
    let ms = Duration::from_millis;
    let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
    let default = if section.is_present() { Kind::Http } else { Kind::None };
    let kind = section.choice("kind", default, &KINDS);
    let host = host(&section);
    let http = http(&section, host.clone());
    let port = section.node("port").and_then(|node| section.integer_of(node, "port", 1u16..=u16::MAX));
    let interval = section.duration("interval", ms(1000), ms(10)..=hour);
    let fast_interval = section.duration("fast_interval", ms(200).min(interval), ms(10)..=hour);
    let timeout = section.duration("timeout", ms(500), ms(1)..=hour);
    let passive = passive(&section.table("passive"));
    let stall = section.choice("stall", true, &[("on", true), ("off", false)]);
    let policy = HealthPolicy {
        probe: match kind {
            Kind::Http => http,
            Kind::Tcp => Probe::Tcp,
            Kind::Tls => Probe::Tls { host },
            Kind::Grpc => Probe::Grpc { host },
            Kind::None => Probe::None,
        },
        port,
        interval,
        fast_interval,
        timeout,
        rise: section.integer("rise", 2, 1..=100),
        fall: section.integer("fall", 3, 1..=100),
        min_healthy: section.integer("min_healthy", 50, 1..=100),
        overprovision: section.number("overprovision", 1.4, 1.0..=100.0),
        hold: section.duration("hold", ms(30_000), Duration::ZERO..=day),
        ramp: section.duration("ramp", ms(60_000), Duration::ZERO..=day),
        passive,
        stall,
    };
    warn(&section, kind, &policy);
    section.finish();
    policy
}

/// Bounds of `rate`, in percent: below it takes too many requests to know, above there are hardly any others to compare with.
const LEAST_RATE: u8 = 5;
const MOST_RATE: u8 = 80;

/// What real requests tell of endpoints counts also where nothing is probed.
fn passive(section: &Section<'_>) -> Passive {
    let default = Passive::default();
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
    let passive = Passive {
        failures: section.integer("failures", default.failures, 0..=10_000),
        rate: section.integer("rate", default.rate, 0..=MOST_RATE),
        eject: section.duration("eject", default.eject, second..=day),
        eject_max: section.duration("eject_max", default.eject_max, second..=day),
    };
    if (1..LEAST_RATE).contains(&passive.rate) {
        section
            .scribe
            .error(section.place_of("rate"), format!("`rate` must be 0 or from {LEAST_RATE} to {MOST_RATE}"))
            .hint("of a few in a hundred nobody knows soon enough whether they are chance");
    }
    if passive.eject_max < passive.eject {
        let key = if section.has("eject_max") { "eject_max" } else { "eject" };
        section
            .scribe
            .error(
                section.place_of(key),
                "`eject_max` is below `eject`: no ejection could last as long as the first one",
            )
            .hint("`eject` is for the first one, `eject_max` bounds those that follow");
    }
    section.finish();
    passive
}

fn warn(section: &Section<'_>, kind: Kind, policy: &HealthPolicy) {
    if kind == Kind::None {
        return;
    }
    if policy.interval < policy.timeout {
        let key = if section.has("interval") { "interval" } else { "timeout" };
        section
            .scribe
            .warning(section.place_of(key), "`interval` is below `timeout`: probes of a silent endpoint will overlap")
            .hint("make `timeout` the shorter one");
    }
    if policy.fast_interval > policy.interval {
        section
            .scribe
            .warning(section.place_of("fast_interval"), "`fast_interval` is longer than `interval`")
            .hint("it is the pace between verdicts, when it is urgent to know");
    }
}

fn http(section: &Section<'_>, host: String) -> Probe {
    let checked = |key, default: &str, is_good: fn(&str) -> bool, expected| match section.text(key) {
        Some(text) if !is_good(text.value) => {
            section.refused(text, key, &Refused { expected, hint: None });
            default.to_owned()
        }
        text => text.map_or(default, |text| text.value).to_owned(),
    };
    let path =
        checked("path", "/healthz", names::is_target, "a path that begins with `/`, percent-encoded where needed");
    let method = checked("method", "GET", is_method, "a method such as `\"GET\"` or `\"HEAD\"`");
    let body = checked("body", "", |text| text.len() <= 1024, "a text of at most 1024 bytes");
    if method == "HEAD" && !body.is_empty() {
        section.scribe.error(section.place_of("body"), "`body` cannot be found: an answer to `HEAD` has none");
    }
    Probe::Http { path, method, host, headers: headers(&section.table("headers")), status: status(section), body }
}

/// Anything but `CONNECT`, which would ask for a tunnel.
fn is_method(text: &str) -> bool {
    names::is_token(text) && text.len() <= 32 && text != "CONNECT" && !text.bytes().any(|b| b.is_ascii_lowercase())
}

fn host(section: &Section<'_>) -> String {
    match section.text("host") {
        None | Some(Text { value: "", .. }) => String::new(),
        Some(text) => names::host_field(text.value).unwrap_or_else(|why| {
            section.refused(text, "host", &why);
            String::new()
        }),
    }
}

fn headers(section: &Section<'_>) -> Vec<(String, String)> {
    /// Written by the probe itself.
    const OURS: [&str; 4] = ["host", "connection", "content-length", "transfer-encoding"];
    let mut list = Vec::new();
    for entry in section.entries() {
        let name = entry.key.to_ascii_lowercase();
        if !names::is_token(&name) {
            section.scribe.error(entry.place, "this cannot be the name of a header field");
        } else if OURS.contains(&name.as_str()) {
            let hint = if name == "host" { "use the key `host` beside `headers`" } else { "leave it out" };
            section.scribe.error(entry.place, format!("`{name}` is written by the probe itself")).hint(hint);
        }
        let Some(text) = section.text_of(&entry.node, "the value of a header field", "a text in quotes") else {
            continue;
        };
        if !names::is_field_value(text.value) {
            let expected = "visible ASCII without space at its ends";
            section.refused(text, "the value of a header field", &Refused { expected, hint: None });
        }
        list.push((name, text.value.to_owned()));
    }
    list
}

fn status(section: &Section<'_>) -> Vec<(u16, u16)> {
    let default = vec![(200, 299)];
    if !section.has("status") {
        section.node("status");
        return default;
    }
    let items = section.items("status");
    if super::is_empty_list(section, "status") {
        section
            .scribe
            .error(section.place_of("status"), "`status` is empty: no answer would ever pass")
            .hint("write `status = [\"200-299\"]`");
    }
    let list: Vec<_> = items.iter().filter_map(|node| status_range(section, node)).collect();
    if list.is_empty() { default } else { list }
}

fn status_range(section: &Section<'_>, node: &Node) -> Option<(u16, u16)> {
    let code = |text: &str| text.parse::<u16>().ok().filter(|code| (100..=599).contains(code) && text.len() == 3);
    let range = match &node.value {
        Value::Integer(number) => code(&number.to_string()).map(|code| (code, code)),
        Value::Text { value, .. } => match value.split_once('-') {
            Some((first, last)) => code(first).zip(code(last)).filter(|(first, last)| first <= last),
            None => code(value).map(|code| (code, code)),
        },
        _ => None,
    };
    if range.is_none() {
        section.wrong(node, "an entry of `status`", "a code or a range such as `\"200-299\"`, from 100 to 599", None);
    }
    range
}
