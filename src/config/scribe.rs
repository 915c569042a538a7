//! The texts that were read, places in them, and the findings about them.
//!
//! Every check writes through a shared [`Scribe`] and goes on, so that one load reports every mistake. What may be only an echo
//! of another mistake (a table that seems missing because its header has a syntax error) is written through [`Scribe::absent`]
//! or falls into a blurred line range, and is kept back then.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::config::report::{Finding, Mark, Report, Severity, sanitised};

/// A range of bytes in one of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Index of the file, in the order of reading.
    pub(crate) file: usize,
    /// First byte.
    pub(crate) start: usize,
    /// After the last byte.
    pub(crate) end: usize,
}

/// A text that was read.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    /// Byte offsets of the beginnings of lines.
    lines: Vec<usize>,
    /// Lines (from 0) of which the parser could not make sense.
    blurred: Vec<Range<usize>>,
}

impl Source {
    fn new(path: PathBuf, text: String) -> Source {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Source { path, text, lines, blurred: Vec::new() }
    }

    /// The line (from 0) that holds byte `at`.
    pub(crate) fn line_of(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at).saturating_sub(1)
    }

    /// A line's first byte and its text without the line end.
    pub(crate) fn line(&self, number: usize) -> (usize, &str) {
        let start = self.lines.get(number).copied().unwrap_or(self.text.len());
        let end = self.lines.get(number + 1).copied().unwrap_or(self.text.len());
        (start, self.text[start..end].trim_end_matches(['\n', '\r']))
    }

    /// How many lines there are.
    pub(crate) fn line_count(&self) -> usize {
        self.lines.len()
    }
}

/// A finding on its way into the report.
#[derive(Debug)]
struct Note {
    severity: Severity,
    file: usize,
    place: Option<Place>,
    message: String,
    note: Option<String>,
    hint: Option<String>,
}

/// Takes findings.
#[derive(Debug, Default)]
pub(crate) struct Scribe {
    pub(crate) sources: Vec<Source>,
    notes: RefCell<Vec<Note>>,
    uncounted: RefCell<usize>,
    hidden: RefCell<Vec<Place>>,
    /// A part of the configuration could not be read: what seems absent may be there.
    partial: bool,
}

/// More findings than this are only counted, so that a hostile file cannot fill the memory with them.
const MOST: usize = 10_000;

impl Scribe {
    /// Adds a text and returns its index.
    pub(crate) fn add(&mut self, path: &Path, text: String) -> usize {
        self.sources.push(Source::new(path.to_owned(), text));
        self.sources.len() - 1
    }

    /// Says that a part of the configuration could not be read.
    pub(crate) fn set_partial(&mut self) {
        self.partial = true;
    }

    /// Whether something of the files could not be read.
    pub(crate) fn is_partial(&self) -> bool {
        self.partial
    }

    /// Says that the parser could not make sense of these lines (from 0).
    pub(crate) fn blur(&mut self, file: usize, lines: Range<usize>) {
        self.partial = true;
        self.sources[file].blurred.push(lines);
    }

    /// What is written at a place: its first line, at most 60 characters.
    pub(crate) fn written(&self, place: Place) -> String {
        let text = self.sources[place.file].text.get(place.start..place.end).unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let cut: String = first.chars().take(60).collect();
        if cut.len() < text.len() { cut + "…" } else { cut }
    }

    /// Says that the text at a place, but for its quotes, is a secret: no finding shows it.
    pub(crate) fn hide(&self, place: Place) {
        let (start, end) = (place.start + 1, place.end.saturating_sub(1));
        // What the parser makes of a slip can be shorter than two quotes.
        if start < end {
            self.hidden.borrow_mut().push(Place { start, end, ..place });
        }
    }

    /// A line of a file that begins at byte `start`, with stars for what is hidden.
    fn shown<'a>(&self, file: usize, start: usize, line: &'a str) -> Cow<'a, str> {
        let hidden = self.hidden.borrow();
        let within = |place: &&Place| place.file == file && place.start < start + line.len() && place.end > start;
        let mut shown = Cow::Borrowed(line);
        for place in hidden.iter().filter(within) {
            let range = place.start.saturating_sub(start)..(place.end - start).min(line.len());
            if line.is_char_boundary(range.start) && line.is_char_boundary(range.end) {
                shown.to_mut().replace_range(range.clone(), &"*".repeat(range.len()));
            }
        }
        shown
    }

    /// `file:line:column` of a place.
    pub(crate) fn named(&self, place: Place) -> String {
        let source = &self.sources[place.file];
        let line = source.line_of(place.start);
        let (start, _) = source.line(line);
        let column = source.text.get(start..place.start).map_or(1, |before| before.chars().count() + 1);
        format!("{}:{}:{column}", source.path.display(), line + 1)
    }

    /// Writes an error.
    pub(crate) fn error(&self, place: Place, message: impl Into<String>) -> Written<'_> {
        self.write(Severity::Error, place, message.into())
    }

    /// Writes a warning.
    pub(crate) fn warning(&self, place: Place, message: impl Into<String>) -> Written<'_> {
        if self.partial {
            Written { scribe: self, index: None }
        } else {
            self.write(Severity::Warning, place, message.into())
        }
    }

    /// Writes an error that something is missing, unless a part of the configuration could not be read.
    pub(crate) fn absent(&self, place: Place, message: impl Into<String>) -> Written<'_> {
        if self.partial { Written { scribe: self, index: None } } else { self.error(place, message) }
    }

    /// Writes a syntax error: no blur keeps it back.
    pub(crate) fn syntax(&self, place: Place, message: impl Into<String>) -> Written<'_> {
        self.push(Severity::Error, place.file, Some(place), message.into())
    }

    /// Writes an error about a whole file; missing parts are kept back as by [`Scribe::absent`] if `absent`.
    pub(crate) fn file_error(&self, file: usize, absent: bool, message: impl Into<String>) -> Written<'_> {
        if absent && self.partial {
            return Written { scribe: self, index: None };
        }
        self.push(Severity::Error, file, None, message.into())
    }

    fn write(&self, severity: Severity, place: Place, message: String) -> Written<'_> {
        let source = &self.sources[place.file];
        let line = source.line_of(place.start);
        if source.blurred.iter().any(|range| range.contains(&line)) {
            return Written { scribe: self, index: None };
        }
        self.push(severity, place.file, Some(place), message)
    }

    fn push(&self, severity: Severity, file: usize, place: Option<Place>, message: String) -> Written<'_> {
        let mut notes = self.notes.borrow_mut();
        if notes.len() >= MOST {
            *self.uncounted.borrow_mut() += usize::from(severity == Severity::Error);
            return Written { scribe: self, index: None };
        }
        notes.push(Note { severity, file, place, message, note: None, hint: None });
        Written { scribe: self, index: Some(notes.len() - 1) }
    }

    /// The report of all that was written, in the order of the files and their lines.
    pub(crate) fn report(&self) -> Report {
        let notes = self.notes.borrow();
        let mut order: Vec<&Note> = notes.iter().collect();
        order.sort_by_key(|note| (note.file, note.place.map(|place| place.start)));
        let findings = order.into_iter().map(|note| self.finding(note)).collect();
        Report::new(findings, *self.uncounted.borrow())
    }

    fn finding(&self, note: &Note) -> Finding {
        let source = &self.sources[note.file];
        let mark = note.place.map(|place| {
            let number = source.line_of(place.start);
            let (start, line) = source.line(number);
            let line = self.shown(note.file, start, line);
            Mark::new(number + 1, &line, place.start - start, place.end.saturating_sub(start))
        });
        Finding {
            severity: note.severity,
            file: sanitised(&source.path.display().to_string()),
            mark,
            message: sanitised(&note.message),
            note: note.note.as_deref().map(sanitised),
            hint: note.hint.as_deref().map(sanitised),
        }
    }
}

/// A finding just written, to which a hint or a note can be added.
pub(crate) struct Written<'a> {
    scribe: &'a Scribe,
    index: Option<usize>,
}

impl Written<'_> {
    /// Adds what to do.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        self.edit(|note| note.hint = Some(hint.into()))
    }

    /// Adds `did you mean` when something is meant.
    pub(crate) fn meant(self, meant: Option<&str>) -> Self {
        match meant {
            Some(meant) => self.hint(format!("did you mean `{meant}`?")),
            None => self,
        }
    }

    /// Adds another place, introduced by `what`.
    pub(crate) fn also(self, what: &str, place: Place) -> Self {
        let place = self.scribe.named(place);
        self.edit(|note| note.note = Some(format!("{what} {place}")))
    }

    fn edit(self, change: impl FnOnce(&mut Note)) -> Self {
        if let Some(index) = self.index {
            change(&mut self.scribe.notes.borrow_mut()[index]);
        }
        self
    }
}
