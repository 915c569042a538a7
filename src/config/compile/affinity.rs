//! `[services.*] affinity`: how a service's clients come back to the region where they were.

use std::time::Duration;

use crate::config::file::{Node, Value};
use crate::config::names::{self, Refused};
use crate::config::reader::Section;
use crate::secret::Secret;
use crate::steering::fleet::{Affinity, CookieAffinity};

/// A key of fewer bytes could be guessed.
const KEY_BYTES: usize = 32;
/// Each costs a signature for a cookie that is none of ours.
const MOST_KEYS: usize = 8;
/// No browser keeps a cookie for longer.
const LONGEST: Duration = Duration::from_secs(400 * 24 * 3600);
/// Fields that mean something else to a proxy.
const TAKEN: [&str; 8] =
    ["connection", "content-length", "cookie", "host", "te", "trailer", "transfer-encoding", "upgrade"];

/// The affinity that is asked for, if any.
pub(super) fn affinity(section: Section<'_>) -> Option<Affinity> {
    if !section.is_present() {
        return None;
    }
    // Whatever else is wrong: a line with a key is shown without it, also if `keys` is misspelled.
    for entry in section.entries().iter().filter(|entry| !["kind", "name", "ttl"].contains(&entry.key.as_str())) {
        hide(&entry.node, &section);
    }
    if !section.has("kind") {
        section.missing("`kind`", "write `kind = \"cookie\"` or `kind = \"header\"`");
    }
    let is_cookie = section.choice("kind", true, &[("cookie", true), ("header", false)]);
    let affinity = if is_cookie { cookie(&section) } else { header(&section) };
    section.finish();
    affinity
}

fn hide(node: &Node, section: &Section<'_>) {
    match &node.value {
        // A variable is shown by its name.
        Value::Text { secret: false, .. } => section.scribe.hide(node.place),
        Value::Array { items, .. } => items.iter().for_each(|item| hide(item, section)),
        _ => {}
    }
}

fn cookie(section: &Section<'_>) -> Option<Affinity> {
    let name = match section.text("name") {
        Some(text) if !names::is_token(text.value) || text.value.len() > 64 => {
            let expected = "the name of a cookie such as `\"meridian\"`";
            section.refused(text, "name", &Refused { expected, hint: None });
            None
        }
        text => Some(text.map_or("meridian", |text| text.value).to_owned()),
    };
    let second = Duration::from_secs(1);
    let ttl = section.duration("ttl", 3600 * second, second..=LONGEST);
    let keys = keys(section)?;
    Some(Affinity::Cookie(CookieAffinity { name: name?, ttl: Duration::from_secs(ttl.as_secs()), keys }))
}

fn keys(section: &Section<'_>) -> Option<Vec<Secret>> {
    const HINT: &str = "write `keys = [\"${NAME}\"]` and set NAME to what `openssl rand -base64 32` prints";
    let texts = section.texts("keys", "an entry of `keys`");
    if !section.has("keys") {
        section.missing("`keys`", HINT);
        return None;
    }
    if super::is_empty_list(section, "keys") {
        section.scribe.error(section.place_of("keys"), "`keys` is empty: nothing could be signed").hint(HINT);
    }
    if let Some(text) = texts.get(MOST_KEYS) {
        section.scribe.error(text.place, format!("`keys` can have at most {MOST_KEYS} entries, not {}", texts.len()));
    }
    for text in texts.iter().filter(|text| text.value.len() < KEY_BYTES) {
        section
            .scribe
            .error(text.place, format!("a key must be at least {KEY_BYTES} bytes long, not {}", text.value.len()))
            .hint("`openssl rand -base64 32` prints a good one");
    }
    let list: Vec<_> = texts.iter().map(|text| (text.value, text.place)).collect();
    super::refuse_twice(&list, "this key", section.scribe);
    Some(texts.iter().map(|text| Secret::new(text.value)).collect())
}

fn header(section: &Section<'_>) -> Option<Affinity> {
    for key in ["ttl", "keys"] {
        if let Some(entry) = section.entry(key) {
            section.scribe.error(entry.place, format!("`{key}` is for `kind = \"cookie\"`")).hint("leave it out");
        }
    }
    let Some(text) = section.text("name") else {
        if !section.has("name") {
            section.missing("`name`", "write the field that names the region, as in `name = \"x-region\"`");
        }
        return None;
    };
    let name = text.value.to_ascii_lowercase();
    if !names::is_token(&name) || name.len() > 64 || TAKEN.contains(&name.as_str()) {
        let expected = "the name of a header field of your own, such as `\"x-region\"`";
        section.refused(text, "name", &Refused { expected, hint: None });
        return None;
    }
    Some(Affinity::Header(name))
}
