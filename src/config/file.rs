//! As written: TOML with the place of every key and value kept, variables replaced, included files merged.
//!
//! A tree of our own stands between the parser and the checks: it is one tree for all files, remembers where each part was
//! written, and keeps the order in which names first appear (the parser moves a table when its header comes after those of its
//! sub-tables). Includes go one level deep: only the root file may include, which keeps the order of files plain to see.

use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::config::Files;
use crate::config::scribe::{Place, Scribe, Source};

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
}

/// What a key can hold.
#[derive(Debug)]
pub(crate) enum Value {
    /// A string; `secret` when a variable was put in: such a value is never shown.
    Text {
        value: String,
        secret: bool,
    },
    /// An integer; one beyond 128 bits is kept as the nearest.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Datetime,
    /// A string whose variable is not set: reported already, so nothing more is said of it.
    Unknown,
    /// An array; `tables` when it was written as `[[name]]`.
    Array {
        items: Vec<Node>,
        tables: bool,
    },
    Table(Table),
}

/// Keys in the order in which they first appear.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
}

/// A key and its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Table {
    /// The entry of that key.
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

/// All files as one tree, and what was read to make it.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) root: Table,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) patterns: Vec<PathBuf>,
}

/// Reads the root file and what it includes. Mistakes go to the scribe; what could be read is in the tree.
pub(crate) fn read(path: &Path, files: &dyn Files, env: &dyn Fn(&str) -> Option<String>, scribe: &mut Scribe) -> Tree {
    let mut tree = Tree { files: vec![path.to_owned()], ..Tree::default() };
    let text = match files.read(path) {
        Ok(text) => text,
        Err(error) => {
            let file = scribe.add(path, String::new());
            scribe.file_error(file, false, format!("cannot be read: {}", why(&error)));
            scribe.set_partial();
            return tree;
        }
    };
    let mut root = parse(scribe.add(path, text), env, scribe);
    let include = root.entries.iter().position(|entry| entry.key == "include").map(|at| root.entries.remove(at));
    tree.root = root;
    if let Some(include) = include {
        for (pattern, place) in patterns(&include, scribe) {
            let pattern = beside(path, Path::new(&pattern));
            for file in matching(&pattern, place, files, scribe) {
                // A pattern may match the root file itself, and two patterns the same file: each counts once.
                if tree.files.contains(&file) {
                    continue;
                }
                match files.read(&file) {
                    Ok(text) => {
                        let mut table = parse(scribe.add(&file, text), env, scribe);
                        refuse_nested(&mut table, scribe);
                        merge(&mut tree.root, table, "", scribe);
                    }
                    Err(error) => {
                        scribe.error(place, format!("`{}` cannot be read: {}", file.display(), why(&error)));
                        scribe.set_partial();
                    }
                }
                tree.files.push(file);
            }
            tree.patterns.push(pattern);
        }
    }
    tree
}

/// In words that do not depend on the system.
pub(crate) fn why(error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// `path` as seen from the working directory when it was written in `file`.
pub(crate) fn beside(file: &Path, path: &Path) -> PathBuf {
    let path = path.strip_prefix("./").unwrap_or(path);
    file.parent().map_or_else(|| path.to_owned(), |parent| parent.join(path))
}

fn patterns(include: &Entry, scribe: &Scribe) -> Vec<(String, Place)> {
    const HINT: &str = "write `include = [\"conf.d/*.toml\"]`";
    if let Value::Unknown = include.node.value {
        return Vec::new();
    }
    let Value::Array { items, tables: false } = &include.node.value else {
        scribe.error(include.node.place, "`include` must be a list of files or patterns").hint(HINT);
        return Vec::new();
    };
    let pattern = |item: &Node| match &item.value {
        Value::Text { value, .. } if !value.is_empty() => Some((value.clone(), item.place)),
        Value::Unknown => None,
        _ => {
            scribe.error(item.place, "`include` must be a list of files or patterns, each in quotes").hint(HINT);
            None
        }
    };
    items.iter().filter_map(pattern).collect()
}

fn matching(pattern: &Path, place: Place, files: &dyn Files, scribe: &Scribe) -> Vec<PathBuf> {
    let wild = |part: &std::ffi::OsStr| part.to_string_lossy().contains(['*', '?']);
    if pattern.parent().is_some_and(|parent| parent.iter().any(wild)) {
        scribe
            .error(place, "`*` and `?` may stand in the last part of an include only")
            .hint("name each folder: `include = [\"a/*.toml\", \"b/*.toml\"]`");
        return Vec::new();
    }
    if !pattern.file_name().is_some_and(wild) {
        return vec![pattern.to_owned()];
    }
    files.glob(pattern).unwrap_or_else(|error| {
        scribe.error(place, format!("`{}` cannot be listed: {}", pattern.display(), why(&error)));
        Vec::new()
    })
}

fn refuse_nested(table: &mut Table, scribe: &Scribe) {
    if let Some(at) = table.entries.iter().position(|entry| entry.key == "include") {
        let entry = table.entries.remove(at);
        scribe.error(entry.place, "`include` works in the root file only").hint("name these files in the root file");
    }
}

/// Puts the entries of a later file into the tree: tables merge, `[[lists of tables]]` append, anything else may be given once.
fn merge(into: &mut Table, from: Table, path: &str, scribe: &Scribe) {
    for entry in from.entries {
        let name = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
        let Some(old) = into.entries.iter_mut().find(|old| old.key == entry.key) else {
            into.entries.push(entry);
            continue;
        };
        match (&mut old.node.value, entry.node.value) {
            (Value::Table(old), Value::Table(new)) => merge(old, new, &name, scribe),
            (Value::Array { items: old, tables: true }, Value::Array { items: new, tables: true }) => old.extend(new),
            _ => {
                scribe.error(entry.place, format!("`{name}` is given twice")).also("first at", old.place);
            }
        }
    }
}

/// Parses one file. A broken one yields what could be made of it.
fn parse(file: usize, env: &dyn Fn(&str) -> Option<String>, scribe: &mut Scribe) -> Table {
    if let Some(text) = scribe.sources[file].text.strip_prefix('\u{feff}') {
        let (path, text) = (scribe.sources[file].path.clone(), text.to_owned());
        scribe.sources.truncate(file);
        scribe.add(&path, text);
    }
    let source = &scribe.sources[file];
    let (table, broken, unclosed) = {
        let (table, errors) = DeTable::parse_recoverable(&source.text);
        let place = |error: &toml::de::Error| error.span().unwrap_or(0..0);
        let mut broken: Vec<_> = errors.iter().map(|error| (place(error), error.message().to_owned())).collect();
        broken.sort_by_key(|(span, _)| span.start);
        // The parser finds several faults in one slip: the first on a line says it.
        broken.dedup_by_key(|(span, _)| source.line_of(span.start));
        let unclosed = cut_at_unclosed_list(source, &mut broken);
        (Grower { file, env, scribe }.table(table.get_ref()), broken, unclosed)
    };
    if let Some(place) = unclosed {
        let source = &scribe.sources[file];
        scribe.blur(file, source.line_of(place.start)..source.line_count());
        scribe.syntax(Place { file, start: place.start, end: place.end }, "this list is not closed, expected `]`");
    }
    for (span, _) in &broken {
        scribe.blur(file, blur(&scribe.sources[file], span.start));
    }
    for (span, message) in broken {
        syntax_error(file, span, &message, scribe);
    }
    table
}

const NO_COMMA: &str = "missing comma between array elements";

/// Where a list begins that runs on into the entries after it. The parser takes all of them for items without commas, to the end of
/// the file: what it says of them is taken out.
fn cut_at_unclosed_list(source: &Source, broken: &mut Vec<(Range<usize>, String)>) -> Option<Range<usize>> {
    let line = |at: usize| source.line(source.line_of(at));
    let cut = broken.iter().position(|(span, message)| {
        let (start, text) = line(span.start);
        let before = text.get(..span.start - start);
        message.starts_with(NO_COMMA) && before.is_some_and(|before| before.trim().is_empty()) && begins_entry(text)
    })?;
    let (start, text) = (0..source.line_of(broken[cut].0.start))
        .rev()
        .map(|number| source.line(number))
        .find(|(_, text)| begins_entry(text) && text.contains('='))?;
    let at = text.find('=').and_then(|equals| Some(equals + text[equals..].find('[')?))?;
    broken.truncate(cut);
    Some(start + at..start + at + 1)
}

/// Whether a line begins with a header or a bare key, as no item of a list does.
fn begins_entry(line: &str) -> bool {
    let line = line.trim_start();
    let key = line.split_once('=').map_or("", |(key, _)| key.trim_end());
    let is_bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    line.starts_with('[') || !key.is_empty() && key.bytes().all(is_bare)
}

/// Which lines a syntax error makes unreliable: its own, and under a broken header all that was meant to be under it.
fn blur(source: &Source, at: usize) -> Range<usize> {
    let is_header = |line: usize| source.line(line).1.trim_start().starts_with('[');
    let first = source.line_of(at);
    let mut end = first + 1;
    if is_header(first) {
        while end < source.line_count() && !is_header(end) {
            end += 1;
        }
    }
    first..end
}

fn syntax_error(file: usize, span: Range<usize>, message: &str, scribe: &Scribe) {
    let place = Place { file, start: span.start, end: span.end };
    let source = &scribe.sources[file];
    if message.starts_with("string values must be quoted") {
        let written = source.text.get(span.clone()).unwrap_or_default();
        let numbers: Vec<&str> = written.split_whitespace().collect();
        if span.is_empty() {
            scribe.syntax(place, "a value is missing here");
        } else if numbers.len() > 1 && numbers.iter().all(|number| number.parse::<f64>().is_ok()) {
            let hint = format!("write `{}`", numbers.join(", "));
            scribe.syntax(place, "a comma is missing between these numbers").hint(hint);
        } else {
            let hint = format!("write `\"{}\"`", scribe.written(place));
            scribe.syntax(place, "a text must be in quotes").hint(hint);
        }
    } else if message == "duplicate key" {
        let key = source.text.get(span).unwrap_or_default();
        let written = scribe.syntax(place, format!("`{key}` is given twice"));
        if let Some(first) = earlier(source, place) {
            written.also("first at", first);
        }
    } else if message.starts_with("invalid basic string, expected `\"`") {
        scribe.syntax(place, "a text is not closed, expected `\"`");
    } else if message.starts_with("missing escaped value") {
        scribe
            .syntax(place, "`\\` begins an escape, but none follows")
            .hint("write `\\\\`, or the text in single quotes");
    } else {
        scribe.syntax(place, message);
    }
}

/// Where the key or header at `place` was written before. By text: the parser does not say.
fn earlier(source: &Source, place: Place) -> Option<Place> {
    let number = source.line_of(place.start);
    let (start, line) = source.line(number);
    let (before, key) = (line.get(..place.start - start)?, source.text.get(place.start..place.end)?);
    // In an inline table, on the same line.
    if let Some(at) = before.rfind(key).filter(|at| before[at + key.len()..].trim_start().starts_with('=')) {
        return Some(Place { start: start + at, end: start + at + key.len(), ..place });
    }
    // In the same table, or, for a header, anywhere above.
    let name = |line: usize| {
        let text = source.line(line).1.trim_start();
        let end = if text.starts_with('[') { text.rfind(']').map(|at| at + 1) } else { text.find('=') };
        end.map(|end| text[..end].split_whitespace().collect::<String>()).filter(|name| !name.is_empty())
    };
    let wanted = name(number)?;
    let is_header = |line: usize| source.line(line).1.trim_start().starts_with('[');
    let found = (0..number)
        .rev()
        .take_while(|line| is_header(number) || !is_header(*line))
        .find(|line| name(*line).as_ref() == Some(&wanted))?;
    let (start, line) = source.line(found);
    let start = start + (line.len() - line.trim_start().len());
    Some(Place { start, end: start + 1, ..place })
}

/// Turns the parser's tree into ours.
struct Grower<'a> {
    file: usize,
    env: &'a dyn Fn(&str) -> Option<String>,
    scribe: &'a Scribe,
}

impl Grower<'_> {
    fn place<T>(&self, spanned: &Spanned<T>) -> Place {
        let span = spanned.span();
        Place { file: self.file, start: span.start, end: span.end }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<(usize, Entry)> = Vec::with_capacity(table.len());
        for (key, value) in table.iter() {
            let entry = Entry { key: key.get_ref().to_string(), place: self.place(key), node: self.node(value) };
            entries.push((entry.place.start.min(first_byte(&entry.node)), entry));
        }
        entries.sort_by_key(|(first, _)| *first);
        Table { entries: entries.into_iter().map(|(_, entry)| entry).collect() }
    }

    fn node(&self, spanned: &Spanned<DeValue<'_>>) -> Node {
        let place = self.place(spanned);
        let value = match spanned.get_ref() {
            DeValue::String(text) => self.text(text, place),
            DeValue::Integer(integer) => {
                let beyond = if integer.as_str().starts_with('-') { i128::MIN } else { i128::MAX };
                Value::Integer(i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(beyond))
            }
            DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(boolean) => Value::Boolean(*boolean),
            DeValue::Datetime(_) => Value::Datetime,
            DeValue::Array(items) => self.array(items),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Node { value, place }
    }

    fn array(&self, array: &DeArray<'_>) -> Value {
        let items: Vec<Node> = array.iter().map(|item| self.node(item)).collect();
        let text = &self.scribe.sources[self.file].text;
        let is_header = |node: &Node| {
            matches!(node.value, Value::Table(_)) && text.get(node.place.start..).is_some_and(|at| at.starts_with("[["))
        };
        let tables = items.first().is_some_and(is_header);
        Value::Array { items, tables }
    }

    /// Replaces `${NAME}`; `$${` stands for `${` itself.
    fn text(&self, text: &str, place: Place) -> Value {
        let mut value = String::with_capacity(text.len());
        let (mut rest, mut secret, mut known) = (text, false, true);
        while let Some(at) = rest.find("${") {
            let (before, after) = (&rest[..at], &rest[at + 2..]);
            if let Some(before) = before.strip_suffix('$') {
                value.push_str(before);
                value.push_str("${");
                rest = after;
                continue;
            }
            value.push_str(before);
            let name = after.find('}').map(|end| &after[..end]);
            let Some(name) = name.filter(|name| is_variable(name)) else {
                self.scribe
                    .error(place, "`${` begins a variable, but no name and `}` follow")
                    .hint("write `${NAME}`, or `$${` for the text `${` itself");
                return Value::Unknown;
            };
            secret = true;
            match (self.env)(name) {
                Some(replacement) => value.push_str(&replacement),
                None => {
                    known = false;
                    self.scribe
                        .error(self.inside(place, &format!("${{{name}}}")), format!("the variable `{name}` is not set"))
                        .hint(format!("set `{name}` in the environment that meridian starts in"));
                }
            }
            rest = &after[name.len() + 1..];
        }
        value.push_str(rest);
        if known { Value::Text { value, secret } } else { Value::Unknown }
    }

    /// The place of `part` within a value, as far as it is written there literally.
    fn inside(&self, place: Place, part: &str) -> Place {
        let written = self.scribe.sources[self.file].text.get(place.start..place.end);
        match written.and_then(|written| written.find(part)) {
            Some(at) => Place { start: place.start + at, end: place.start + at + part.len(), ..place },
            None => place,
        }
    }
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The first byte that belongs to a value or to anything in it.
fn first_byte(node: &Node) -> usize {
    match &node.value {
        Value::Table(table) => {
            let first = table.entries.iter().map(|entry| entry.place.start.min(first_byte(&entry.node))).min();
            first.unwrap_or(usize::MAX).min(node.place.start)
        }
        _ => node.place.start,
    }
}
