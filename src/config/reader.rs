//! A strict reader over a table: typed getters that record what is wrong and go on.
//!
//! A [`Section`] remembers which keys it was asked for, so that the list of known keys is the code that reads them and nothing
//! else; [`Section::finish`] reports the rest. A getter that fails returns the default: the configuration is refused in the end,
//! and until then every other check still runs.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::file::{Entry, Node, Table, Value};
use crate::config::later;
use crate::config::names::Refused;
use crate::config::scribe::{Place, Scribe};
use crate::config::units::{self, meant};
use crate::geo::Point;

/// One table of the configuration, present or not.
pub(crate) struct Section<'a> {
    table: Option<&'a Table>,
    /// Where it is written; the nearest table that is, when it is absent.
    pub(crate) place: Place,
    /// As an operator names it: `services.web.health`.
    pub(crate) name: String,
    /// With `*` for names: `services.*.health`.
    pattern: String,
    asked: RefCell<Vec<&'static str>>,
    pub(crate) scribe: &'a Scribe,
}

/// A string and where it is written.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a> {
    pub(crate) value: &'a str,
    pub(crate) place: Place,
    /// A variable was put in: the value is never shown.
    pub(crate) secret: bool,
}

impl<'a> Section<'a> {
    /// The root of the configuration.
    pub(crate) fn root(table: &'a Table, place: Place, scribe: &'a Scribe) -> Section<'a> {
        Section {
            table: Some(table),
            place,
            name: String::new(),
            pattern: String::new(),
            asked: RefCell::default(),
            scribe,
        }
    }

    /// A table that belongs to this one under a name of the operator's.
    pub(crate) fn named(&self, name: &str, entry_place: Place, node: &'a Node) -> Option<Section<'a>> {
        match &node.value {
            Value::Table(table) => Some(Section {
                table: Some(table),
                place: entry_place,
                name: join(&self.name, name),
                pattern: join(&self.pattern, "*"),
                asked: RefCell::default(),
                scribe: self.scribe,
            }),
            _ => {
                self.wrong(node, &join(&self.name, name), "a table", None);
                None
            }
        }
    }

    /// A table that is an item of the list under `key`.
    pub(crate) fn item(&self, key: &str, table: &'a Table, place: Place) -> Section<'a> {
        Section {
            table: Some(table),
            place,
            name: join(&self.name, key),
            pattern: join(&self.pattern, key),
            asked: RefCell::default(),
            scribe: self.scribe,
        }
    }

    /// The table of that key; absent ones read as empty.
    pub(crate) fn table(&self, key: &'static str) -> Section<'a> {
        let (table, place) = match self.entry(key) {
            Some(Entry { place, node: Node { value: Value::Table(table), .. }, .. }) => (Some(table), *place),
            Some(entry) => {
                self.wrong(&entry.node, key, "a table", None);
                (None, entry.place)
            }
            None => (None, self.place),
        };
        Section {
            table,
            place,
            name: join(&self.name, key),
            pattern: join(&self.pattern, key),
            asked: RefCell::default(),
            scribe: self.scribe,
        }
    }

    /// The tables of a `[[list]]`, one section each.
    pub(crate) fn tables(&self, key: &'static str) -> Vec<Section<'a>> {
        let Some(node) = self.node(key) else { return Vec::new() };
        let Value::Array { items, .. } = &node.value else {
            let hint = format!("write `[[{}]]`", join(&self.name, key));
            self.wrong(node, key, "a list of tables", Some(&hint));
            return Vec::new();
        };
        let section = |item: &'a Node| match &item.value {
            Value::Table(table) => Some(self.item(key, table, item.place)),
            _ => {
                self.wrong(item, &format!("an item of `{key}`"), "a table", None);
                None
            }
        };
        items.iter().filter_map(section).collect()
    }

    /// Whether the table is written at all.
    pub(crate) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Every entry, for tables whose keys are names.
    pub(crate) fn entries(&self) -> &'a [Entry] {
        self.table.map_or(&[], |table| &table.entries)
    }

    /// Marks a key as known and returns its entry.
    pub(crate) fn entry(&self, key: &'static str) -> Option<&'a Entry> {
        self.asked.borrow_mut().push(key);
        self.table?.get(key)
    }

    /// Marks a key as known and returns its value.
    pub(crate) fn node(&self, key: &'static str) -> Option<&'a Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    /// The place of a key's value, or the table's when it is absent.
    pub(crate) fn place_of(&self, key: &str) -> Place {
        self.table.and_then(|table| table.get(key)).map_or(self.place, |entry| entry.node.place)
    }

    /// Whether a key is written.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.get(key).is_some())
    }

    /// Reports a required key that is not there.
    pub(crate) fn missing(&self, what: &str, hint: &str) {
        self.scribe.absent(self.place, format!("{what} is missing")).hint(hint);
    }

    /// Reports a value of the wrong type or out of range; `what` is a key or words. Says what was expected and what came.
    pub(crate) fn wrong(&self, node: &Node, what: &str, expected: &str, hint: Option<&str>) {
        let found = match &node.value {
            Value::Unknown => return,
            Value::Table(_) => "a table".to_owned(),
            Value::Array { tables: true, .. } => "a list of tables".to_owned(),
            _ => format!("`{}`", self.scribe.written(node.place)),
        };
        let what = if what.contains(' ') { what.to_owned() } else { format!("`{what}`") };
        let written = self.scribe.error(node.place, format!("{what} must be {expected}, not {found}"));
        if let Some(hint) = hint {
            written.hint(hint);
        }
    }

    /// Reports a text that a grammar of `names` refuses.
    pub(crate) fn refused(&self, text: Text<'_>, what: &str, why: &Refused) {
        let found = self.scribe.written(text.place);
        let what = if what.contains(' ') { what.to_owned() } else { format!("`{what}`") };
        let written = self.scribe.error(text.place, format!("{what} must be {}, not `{found}`", why.expected));
        if let Some(hint) = why.hint.as_ref().filter(|_| !text.secret) {
            written.hint(hint);
        }
    }

    /// A string.
    pub(crate) fn text(&self, key: &'static str) -> Option<Text<'a>> {
        self.text_of(self.node(key)?, key, "a text in quotes")
    }

    /// A node that must be a string; `what` is its key or words.
    pub(crate) fn text_of(&self, node: &'a Node, what: &str, expected: &str) -> Option<Text<'a>> {
        match &node.value {
            Value::Text { value, secret } => Some(Text { value, place: node.place, secret: *secret }),
            _ => {
                self.wrong(node, what, expected, None);
                None
            }
        }
    }

    /// The items of a list of strings; `item` names one.
    pub(crate) fn texts(&self, key: &'static str, item: &str) -> Vec<Text<'a>> {
        self.items(key).iter().filter_map(|node| self.text_of(node, item, "a text in quotes")).collect()
    }

    /// The items of a list.
    pub(crate) fn items(&self, key: &'static str) -> &'a [Node] {
        match self.node(key) {
            Some(Node { value: Value::Array { items, .. }, .. }) => items,
            Some(node) => {
                let hint = matches!(node.value, Value::Text { .. })
                    .then(|| format!("write `{key} = [{}]`", self.scribe.written(node.place)));
                self.wrong(node, key, "a list", hint.as_deref());
                &[]
            }
            None => &[],
        }
    }

    /// A whole number.
    pub(crate) fn integer<T: TryFrom<i128> + Into<i128> + Copy>(
        &self,
        key: &'static str,
        default: T,
        range: RangeInclusive<T>,
    ) -> T {
        self.node(key).and_then(|node| self.integer_of(node, key, range)).unwrap_or(default)
    }

    /// A node that must be a whole number.
    pub(crate) fn integer_of<T: TryFrom<i128> + Into<i128> + Copy>(
        &self,
        node: &Node,
        what: &str,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        let (low, high): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
        let hint = match &node.value {
            Value::Integer(integer) if (low..=high).contains(integer) => return T::try_from(*integer).ok(),
            Value::Text { value, secret: false } if value.parse::<i128>().is_ok() => Some("write it without quotes"),
            _ => None,
        };
        self.wrong(node, what, &format!("a whole number from {low} to {high}"), hint);
        None
    }

    /// A number, whole or not.
    pub(crate) fn number(&self, key: &'static str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let Some(node) = self.node(key) else { return default };
        let number = number_of(node).filter(|number| range.contains(number));
        number.unwrap_or_else(|| {
            self.wrong(node, key, &format!("a number from {} to {}", range.start(), range.end()), None);
            default
        })
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self, key: &'static str, default: bool) -> bool {
        match self.node(key) {
            Some(Node { value: Value::Boolean(value), .. }) => *value,
            Some(node) => {
                self.wrong(node, key, "`true` or `false`", None);
                default
            }
            None => default,
        }
    }

    /// A duration.
    pub(crate) fn duration(&self, key: &'static str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        let Some(node) = self.node(key) else { return default };
        let show = units::show_duration;
        let expected = format!("a duration from `\"{}\"` to `\"{}\"`", show(*range.start()), show(*range.end()));
        match &node.value {
            Value::Text { value, .. } => match units::duration(value) {
                Ok(duration) if range.contains(&duration) => return duration,
                Ok(_) => self.wrong(node, key, &expected, None),
                Err(hint) => self.wrong(node, key, &expected, Some(hint)),
            },
            Value::Integer(number) => {
                let hint = format!("durations are texts with a unit, as in `\"{}s\"`", number.clamp(&1, &30));
                self.wrong(node, key, &expected, Some(&hint));
            }
            Value::Float(_) => {
                self.wrong(node, key, &expected, Some("durations are texts with a unit, as in `\"1500ms\"`"))
            }
            _ => self.wrong(node, key, &expected, None),
        }
        default
    }

    /// A size in bytes.
    pub(crate) fn size(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(node) = self.node(key) else { return default };
        let show = units::show_size;
        let expected = format!("a size from `\"{}\"` to `\"{}\"`", show(*range.start()), show(*range.end()));
        match &node.value {
            Value::Text { value, secret } => match units::size(value) {
                Ok(size) if range.contains(&size) => return size,
                Err(hint) if !secret => self.wrong(node, key, &expected, Some(&hint)),
                _ => self.wrong(node, key, &expected, None),
            },
            Value::Integer(_) => {
                self.wrong(node, key, &expected, Some("sizes are texts with a unit, as in `\"64KiB\"`"));
            }
            _ => self.wrong(node, key, &expected, None),
        }
        default
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        let Some(node) = self.node(key) else { return default };
        let Value::Text { value, secret } = &node.value else {
            self.wrong(node, key, &one_of(choices.iter().map(|(word, _)| *word)), None);
            return default;
        };
        if let Some((_, chosen)) = choices.iter().find(|(word, _)| word == value) {
            return *chosen;
        }
        let path = join(&self.pattern, key);
        if let Some(choice) = later::CHOICES.iter().find(|choice| choice.path == path && choice.value == value) {
            self.later(node.place, &format!("`{key} = \"{value}\"`"), choice.area);
            return default;
        }
        let words = || choices.iter().map(|(word, _)| *word);
        let hint = meant(value, words()).filter(|_| !secret).map(|word| format!("did you mean `\"{word}\"`?"));
        self.wrong(node, key, &one_of(words()), hint.as_deref());
        default
    }

    /// `[latitude, longitude]`.
    pub(crate) fn point(&self, key: &'static str) -> Option<Point> {
        const EXPECTED: &str = "`[latitude, longitude]` in degrees, such as `[50.11, 8.68]`";
        let node = self.node(key)?;
        let pair = match &node.value {
            Value::Array { items, .. } => match items.as_slice() {
                [latitude, longitude] => number_of(latitude).zip(number_of(longitude)),
                _ => None,
            },
            _ => None,
        };
        let Some((latitude, longitude)) = pair else {
            self.wrong(node, key, EXPECTED, None);
            return None;
        };
        let point = Point::new(latitude, longitude);
        if point.is_none() {
            let hint = match Point::new(longitude, latitude) {
                Some(_) => "the latitude comes first",
                None => "latitudes are from -90 to 90, longitudes from -180 to 180",
            };
            self.wrong(node, key, EXPECTED, Some(hint));
        }
        point
    }

    fn later(&self, place: Place, what: &str, area: &str) -> crate::config::scribe::Written<'a> {
        self.scribe.error(place, format!("{what} is not available in this version ({area})"))
    }

    /// Reports every key that nobody asked for.
    pub(crate) fn finish(&self) {
        let asked = self.asked.borrow();
        for entry in self.entries().iter().filter(|entry| !asked.contains(&entry.key.as_str())) {
            let path = join(&self.pattern, &entry.key);
            match later::KEYS.iter().find(|key| key.path == path) {
                Some(key) if key.is_same(&entry.node) || matches!(entry.node.value, Value::Unknown) => {}
                Some(key) => {
                    let hint = match key.accepted() {
                        Some(value) => format!("leave it out, or write `{} = {value}`", entry.key),
                        None => "leave it out".to_owned(),
                    };
                    self.later(entry.place, &format!("`{}`", entry.key), key.area).hint(hint);
                }
                None => {
                    let later =
                        later::KEYS.iter().filter_map(|key| key.path.strip_prefix(&self.pattern)?.strip_prefix('.'));
                    let known = asked.iter().copied().chain(later.filter(|key| !key.contains('.')));
                    let of = if self.name.is_empty() { String::new() } else { format!(" in `{}`", self.name) };
                    self.scribe
                        .error(entry.place, format!("unknown key `{}`{of}", cut(&entry.key)))
                        .meant(meant(&entry.key, known));
                }
            }
        }
    }
}

/// At most 200 characters of what an operator wrote, for a message.
pub(crate) fn cut(name: &str) -> String {
    match name.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.to_owned(),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn number_of(node: &Node) -> Option<f64> {
    match &node.value {
        Value::Integer(integer) => Some(*integer as f64),
        Value::Float(float) => Some(*float),
        _ => None,
    }
}

/// `` `"a"`, `"b"` or `"c"` ``.
fn one_of(words: impl DoubleEndedIterator<Item = impl Display> + ExactSizeIterator) -> String {
    let last = words.len().saturating_sub(1);
    let mut out = String::new();
    for (n, word) in words.enumerate() {
        out.push_str(if n == 0 {
            ""
        } else if n == last {
            " or "
        } else {
            ", "
        });
        out.push_str(&format!("`\"{word}\"`"));
    }
    out
}
