//! The list of differences: how it is found, read and written.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result, Write};
use std::path::PathBuf;

use crate::classes::CLASSES;
use crate::corpus::{Side, folder};

/// Stands in a list for a reason that nobody has given yet.
const TO_DO: &str = "TODO";

const ABOUT: &str = "# What the two movers do differently, and why. Written by `UPDATE=1 cargo test --test differential`, but for the reasons.
#
# `class`: a difference of one kind that many cases have (tests/differential/classes.rs says which lines it evens out), and how many have it.
# `==`: the lines in which a case differs after that. `-` is what the native engine does, `+` what pingora does.
";

/// How one case differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// The classes that its differences belong to. Not in the file, which has their numbers.
    pub classes: Vec<&'static str>,
    /// Lines that differ besides.
    lines: Vec<String>,
    why: String,
}

impl Display for Entry {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        writeln!(out, "== {}", self.name)?;
        self.lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        writeln!(out, "why: {}", self.why)
    }
}

/// What was found, or what is listed, of one half of the corpus.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct List {
    /// How many cases a class has.
    pub classes: BTreeMap<String, usize>,
    pub entries: Vec<Entry>,
}

impl List {
    fn path(side: Side) -> PathBuf {
        folder().join(format!("{}.differences", side.name()))
    }

    pub fn read(side: Side) -> List {
        let text = std::fs::read_to_string(List::path(side)).unwrap_or_default();
        let mut list = List::default();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            if let Some(class) = line.strip_prefix("class ") {
                let (name, count) = class.split_once(": ").expect("a class and its number");
                list.classes.insert(name.to_owned(), count.parse().expect("a number"));
            } else if let Some(name) = line.strip_prefix("== ") {
                let (name, why) = (name.to_owned(), String::new());
                list.entries.push(Entry { name, classes: Vec::new(), lines: Vec::new(), why });
            } else {
                let entry = list.entries.last_mut().expect("a case comes first");
                match line.strip_prefix("why: ") {
                    Some(why) => entry.why = why.to_owned(),
                    None => entry.lines.push(line.to_owned()),
                }
            }
        }
        list
    }

    /// The list of what was found, with the reasons of an older one.
    pub fn of(found: Vec<Entry>, older: &List) -> List {
        let mut classes = BTreeMap::new();
        for class in found.iter().flat_map(|entry| &entry.classes) {
            *classes.entry((*class).to_owned()).or_default() += 1;
        }
        let mut entries: Vec<_> = found.into_iter().filter(|entry| !entry.lines.is_empty()).collect();
        for entry in &mut entries {
            entry.why = older.entry(&entry.name).map_or_else(|| TO_DO.to_owned(), |older| older.why.clone());
        }
        List { classes, entries }
    }

    pub fn write(&self, side: Side) {
        let mut text = ABOUT.to_owned();
        text.push('\n');
        for class in CLASSES.iter().filter(|class| self.classes.contains_key(class.name)) {
            text += &format!("class {}: {}\n#   {}\n", class.name, self.classes[class.name], class.why);
        }
        self.entries.iter().for_each(|entry| text += &format!("\n{entry}"));
        std::fs::write(List::path(side), text).expect("the list can be written");
    }

    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// What of this list does not agree with what was found, as a text; empty when all of it does.
    pub fn disagreements(&self, found: &List, readable: impl Fn(&str) -> String) -> String {
        let mut wrong = String::new();
        for new in &found.entries {
            let old = self.entry(&new.name);
            if old.is_none_or(|old| old.lines != new.lines) {
                let listed = old.map_or_else(String::new, Entry::to_string);
                let _ = writeln!(wrong, "{}--- listed\n{listed}--- found\n{new}", readable(&new.name));
            }
            if new.why == TO_DO {
                let _ = writeln!(wrong, "listed without a reason: {}\n", new.name);
            }
        }
        for old in self.entries.iter().filter(|old| found.entry(&old.name).is_none()) {
            let _ = writeln!(wrong, "listed, but there is no such difference any more: {}\n", old.name);
        }
        if self.classes != found.classes {
            let _ = writeln!(wrong, "classes: listed {:?}, found {:?}\n", self.classes, found.classes);
        }
        wrong
    }
}

/// How a case's transcripts differ.
pub fn compare(name: &str, native: &str, pingora: &str) -> Entry {
    let rest = |without: Option<&str>| {
        let classes = CLASSES.iter().filter(|class| Some(class.name) != without);
        let (mut native, mut pingora) = (native.to_owned(), pingora.to_owned());
        for class in classes {
            (class.even)(&mut native, &mut pingora);
        }
        difference(&native, &pingora)
    };
    let lines = rest(None);
    // A class counts where more lines would differ without it.
    let classes = CLASSES.iter().map(|class| class.name).filter(|name| rest(Some(name)).len() > lines.len());
    Entry { name: name.to_owned(), classes: classes.collect(), lines, why: String::new() }
}

/// The lines that only one side has, in their order: a longest common subsequence is left out.
fn difference(native: &str, pingora: &str) -> Vec<String> {
    let (a, b): (Vec<_>, Vec<_>) = (native.lines().collect(), pingora.lines().collect());
    let mut common = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || common[i + 1][j] >= common[i][j + 1]) {
            lines.push(format!("- {}", a[i]));
            i += 1;
        } else {
            lines.push(format!("+ {}", b[j]));
            j += 1;
        }
    }
    lines
}
