//! `[services.*] headers`, `https`, `hsts`, `strip_prefix` and `add_prefix`: what a service changes in what passes.

use std::time::Duration;

use crate::config::file::Value;
use crate::config::names::{self, Refused};
use crate::config::reader::{Section, Text};
use crate::config::scribe::Place;
use crate::secret::Secret;
use crate::steering::route;
use crate::steering::rules::{FieldRules, Https, Rules};

/// Rules of one direction.
const MOST: usize = 32;
/// Of a name, and of a value.
const NAME_BYTES: usize = 128;
const VALUE_BYTES: usize = 4096;
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Browsers have forgotten by then, or their users have.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 3600);

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Request,
    Response,
}

/// What a rule does to a field.
#[derive(Clone, Copy, PartialEq)]
enum Deed {
    Remove,
    Say,
}

/// The rules of a service, if it has any. `paths`: its path rules, if they could be read. `knows_https`: whether a request can count as one
/// that came by https.
pub(super) fn rules(section: &Section<'_>, paths: Option<&[(String, Place)]>, knows_https: bool) -> Option<Box<Rules>> {
    let headers = section.table("headers");
    let request = field_rules(headers.table("request"), Way::Request);
    let response = field_rules(headers.table("response"), Way::Response);
    headers.finish();
    let redirects = section.choice("https", false, &[("off", false), ("redirect", true)]);
    let port = section.integer("https_port", 443, 1..=u16::MAX);
    let hsts = hsts(section);
    let strip_prefix = prefix(section, "strip_prefix");
    let rules = Rules {
        request,
        response,
        https: if redirects { Https::Redirect(port) } else { Https::Off },
        hsts,
        // It goes before a path, which begins with it.
        add_prefix: prefix(section, "add_prefix").map(|prefix| prefix + "/"),
        strip_prefix,
    };
    warn(section, &rules, paths, knows_https);
    (rules != Rules::default()).then(|| Box::new(rules))
}

fn warn(section: &Section<'_>, rules: &Rules, paths: Option<&[(String, Place)]>, knows_https: bool) {
    const HINT: &str = "give a `[[listen]]` `tls`, or name what ends TLS before meridian in `[client_ip] trusted`";
    let warn = |key: &str, what: &str, hint: &str| {
        section.scribe.warning(section.place_of(key), what).hint(hint);
    };
    if rules.https != Https::Off && !knows_https {
        warn("https", "no request can count as https, so that each is redirected, again and again", HINT);
    }
    if rules.hsts.is_some() && !knows_https {
        warn("hsts", "no request can count as https, so that `hsts` is never said", HINT);
    }
    if let (Some(prefix), Some(paths)) = (&rules.strip_prefix, paths) {
        let meets = |path: &str| route::covers(path, prefix) || route::covers(prefix, path);
        if !paths.iter().any(|(path, _)| meets(path)) {
            let what = "no path of this service begins with `strip_prefix`: there is never anything to take away";
            warn("strip_prefix", what, "`paths` are compared with what clients send, before anything is taken away");
        }
    }
}

fn field_rules(section: Section<'_>, way: Way) -> FieldRules {
    let mut rules = FieldRules::default();
    // In lower case.
    let mut seen: Vec<(String, Place)> = Vec::new();
    for text in section.texts("remove", "an entry of `remove`") {
        if is_free(&section, text, way, Deed::Remove, &mut seen) {
            rules.remove.push(text.value.to_owned());
        }
    }
    for (key, list) in [("set", &mut rules.set), ("add", &mut rules.add)] {
        for entry in section.table(key).entries() {
            let name = Text { value: &entry.key, place: entry.place, secret: false };
            let is_free = is_free(&section, name, way, Deed::Say, &mut seen);
            let value = section.text_of(&entry.node, "the value of a header field", "a text in quotes");
            if let Some(value) = value.filter(|value| is_value(&section, *value) && is_free) {
                list.push((entry.key.clone(), Secret::new(value.value)));
            }
        }
    }
    if let Some((_, place)) = seen.get(MOST) {
        let what = format!("`{}` can have at most {MOST} rules, not {}", section.name, seen.len());
        section.scribe.error(*place, what);
    }
    section.finish();
    rules
}

/// Whether a rule may say or remove this field, which has none yet.
fn is_free(section: &Section<'_>, name: Text<'_>, way: Way, deed: Deed, seen: &mut Vec<(String, Place)>) -> bool {
    if !names::is_token(name.value) || name.value.len() > NAME_BYTES {
        section.scribe.error(name.place, "this cannot be the name of a header field");
        return false;
    }
    let lower = name.value.to_ascii_lowercase();
    let shown = if name.secret { "this field".to_owned() } else { format!("`{lower}`") };
    if let Some((why, hint)) = taken(&lower, way, deed) {
        section.scribe.error(name.place, format!("{shown} {why}")).hint(hint);
        return false;
    }
    if let Some((_, first)) = seen.iter().find(|(other, _)| *other == lower) {
        section
            .scribe
            .error(name.place, format!("{shown} has a rule already"))
            .also("first at", *first)
            .hint("`set` replaces what came, `add` stands beside it: a field is in one of `set`, `add` and `remove`");
        return false;
    }
    seen.push((lower, name.place));
    true
}

/// Why no rule may do that to this field, and what to do instead.
fn taken(name: &str, way: Way, deed: Deed) -> Option<(&'static str, &'static str)> {
    const LEAVE: &str = "leave it out";
    let found = match name {
        "content-length" | "transfer-encoding" | "trailer" => {
            ("frames the message, and is written anew from what was understood", LEAVE)
        }
        "connection" | "keep-alive" | "te" | "upgrade" | "http2-settings" | "proxy-connection" => {
            ("concerns one connection, and never passes as it came", LEAVE)
        }
        "proxy" | "proxy-authenticate" | "proxy-authorization" => ("is for forward proxies, and never passes", LEAVE),
        "sec-websocket-accept" | "sec-websocket-key" | "sec-websocket-version" => {
            ("is what both ends of a WebSocket agree by", LEAVE)
        }
        "via" | "date" => ("is meridian's own to write", LEAVE),
        "strict-transport-security" if way == Way::Response && deed == Deed::Say => {
            ("must not be said over http, where a rule would say it, too", "use the key `hsts` beside `headers`")
        }
        _ if way == Way::Response => return None,
        "host" => ("is no rule's to change", "use the key `host` beside `headers`"),
        "x-forwarded-prefix" => ("is meridian's own to write", "the key `strip_prefix` does"),
        "forwarded" | "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto" | "x-request-id" => (
            "is meridian's own to write",
            "what a peer in `[client_ip] trusted` says there is continued, what others say is replaced",
        ),
        "expect" | "max-forwards" => ("is understood by meridian itself", LEAVE),
        _ => return None,
    };
    Some(found)
}

fn is_value(section: &Section<'_>, text: Text<'_>) -> bool {
    const WHAT: &str = "the value of a header field";
    let (expected, hint) = match text.value {
        "" => ("a text that is not empty", Some("what is to go belongs into `remove`".to_owned())),
        value if value.len() > VALUE_BYTES => ("a text of at most 4096 bytes", None),
        value if !names::is_field_text(value) => {
            ("a text without control characters, and without blanks at its ends", None)
        }
        _ => return true,
    };
    section.refused(text, WHAT, &Refused { expected, hint });
    false
}

/// `hsts`: a time, or a table of it and more.
fn hsts(section: &Section<'_>) -> Option<String> {
    let is_table = matches!(section.node("hsts")?.value, Value::Table(_));
    if !is_table {
        let age = max_age(section, "hsts")?;
        return Some(format!("max-age={age}"));
    }
    let table = section.table("hsts");
    if !table.has("max_age") {
        table.missing("`max_age`", "write `max_age = \"365d\"`: for how long browsers come by https only");
    }
    let age = max_age(&table, "max_age");
    let subdomains = table.boolean("include_subdomains", false);
    let preload = table.boolean("preload", false);
    table.finish();
    let age = age?;
    if preload && (!subdomains || age < YEAR.as_secs()) {
        let what = "browsers preload no site without `include_subdomains = true` and a `max_age` of a year";
        table.scribe.warning(table.place_of("preload"), what).hint("hstspreload.org tells what else they want");
    }
    let mut value = format!("max-age={age}");
    for (is_said, word) in [(subdomains, "; includeSubDomains"), (preload, "; preload")] {
        value.push_str(if is_said { word } else { "" });
    }
    Some(value)
}

/// In seconds. 0: browsers are to forget.
fn max_age(section: &Section<'_>, key: &'static str) -> Option<u64> {
    section.node(key)?;
    let age = section.duration(key, YEAR, Duration::ZERO..=LONGEST);
    if age.subsec_nanos() > 0 {
        section.scribe.error(section.place_of(key), format!("`{key}` counts whole seconds"));
    }
    Some(age.as_secs())
}

/// A path without `/` at its end; empty for none.
fn prefix(section: &Section<'_>, key: &'static str) -> Option<String> {
    let text = section.text(key).filter(|text| !text.value.is_empty())?;
    match names::path_prefix(text.value) {
        Ok(prefix) if !prefix.ends_with('/') => Some(prefix),
        Ok(prefix) => {
            let bare = prefix.trim_end_matches('/');
            let hint = if bare.is_empty() { "leave it out".to_owned() } else { format!("write `{bare}`") };
            let expected = "a path such as `/api`, without `/` at its end";
            section.refused(text, key, &Refused { expected, hint: Some(hint) });
            None
        }
        Err(why) => {
            section.refused(text, key, &why);
            None
        }
    }
}
