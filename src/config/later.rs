//! What belongs to later versions: known, refused, never ignored.
//!
//! One line a key. A version that makes a key work deletes its line here and asks for the key where its table is read.

use crate::config::file::{Node, Value};

/// A key that does not work yet.
pub(crate) struct Key {
    /// Where, with `*` for names.
    pub(crate) path: &'static str,
    /// Values that ask for what this version does anyway; they are accepted.
    same: &'static [Same],
    /// What it is about.
    pub(crate) area: &'static str,
}

enum Same {
    No,
}

/// A value that does not work yet, of a key that does.
pub(crate) struct Choice {
    /// The key, with `*` for names.
    pub(crate) path: &'static str,
    /// The value.
    pub(crate) value: &'static str,
    /// What it is about.
    pub(crate) area: &'static str,
}

const fn key(path: &'static str, same: &'static [Same], area: &'static str) -> Key {
    Key { path, same, area }
}

const fn choice(path: &'static str, value: &'static str, area: &'static str) -> Choice {
    Choice { path, value, area }
}

#[rustfmt::skip]
pub(crate) const KEYS: &[Key] = &[
    key("services.*.max_lag", &[], "data freshness"),
    key("services.*.on_exceed", &[], "data freshness"),
    key("listen.http3", &[Same::No], "HTTP/3: clients are served by HTTP/2 and HTTP/1.1"),
    key("listen.extended_connect", &[Same::No], "WebSockets over HTTP/2: clients open them over HTTP/1.1"),
];

#[rustfmt::skip]
pub(crate) const CHOICES: &[Choice] = &[
    choice("services.*.upstream.protocol", "h3", "HTTP/3"),
];

impl Key {
    /// Whether `node` asks for what this version does anyway.
    pub(crate) fn is_same(&self, node: &Node) -> bool {
        self.same.iter().any(|same| match (same, &node.value) {
            (Same::No, Value::Boolean(value)) => !value,
            _ => false,
        })
    }

    /// The accepted values, as they are written.
    pub(crate) fn accepted(&self) -> Option<String> {
        let written = |same: &Same| match same {
            Same::No => "false".to_owned(),
        };
        self.same.first().map(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_names_every_key_of_later_versions() {
        let reference = include_str!("../../conf/meridian.toml");
        for path in KEYS.iter().map(|key| key.path) {
            let key = path.rsplit('.').next().unwrap();
            assert!(reference.contains(key), "{path}");
        }
        for choice in CHOICES {
            assert!(reference.contains(&format!("\"{}\"", choice.value)), "{} = {}", choice.path, choice.value);
        }
    }
}
