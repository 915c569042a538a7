//! The fields of a head, as slices of the bytes they came in.
//!
//! A head is read once, changed in a few places and written once. So lines point into the buffer they were parsed from, and only what we
//! set ourselves is stored, in one string for all. Names keep their case and lines their order.

use std::ops::Range;

use crate::proxy::Fields;

/// A head's fields.
#[derive(Debug, Default)]
pub(super) struct Lines<'b> {
    lines: Vec<Line<'b>>,
    /// Values that we set.
    own: Vec<u8>,
}

#[derive(Debug)]
struct Line<'b> {
    name: &'b str,
    value: Value<'b>,
}

#[derive(Debug)]
enum Value<'b> {
    Theirs(&'b [u8]),
    Ours(Range<usize>),
}

impl<'b> Lines<'b> {
    /// What was parsed. Room is left for what a proxy adds.
    pub(super) fn of(parsed: &[httparse::Header<'b>]) -> Lines<'b> {
        let mut lines = Vec::with_capacity(parsed.len() + 10);
        lines.extend(parsed.iter().map(|header| Line { name: header.name, value: Value::Theirs(header.value) }));
        Lines { lines, own: Vec::with_capacity(256) }
    }

    fn value<'a>(&'a self, line: &'a Line<'b>) -> &'a [u8] {
        match &line.value {
            Value::Theirs(bytes) => bytes,
            Value::Ours(range) => &self.own[range.clone()],
        }
    }

    /// Removes the lines whose name `gone` knows.
    pub(super) fn remove_where(&mut self, gone: impl Fn(&str) -> bool) {
        self.lines.retain(|line| !gone(line.name));
    }

    /// Appends `name: value CRLF` for every line.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        for line in &self.lines {
            out.extend_from_slice(line.name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(self.value(line));
            out.extend_from_slice(b"\r\n");
        }
    }

    fn keep(&mut self, value: &[u8]) -> Value<'b> {
        let start = self.own.len();
        self.own.extend_from_slice(value);
        Value::Ours(start..self.own.len())
    }
}

impl Fields for Lines<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().filter(move |line| line.name.eq_ignore_ascii_case(name)).map(|line| self.value(line))
    }

    fn lines(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.lines.iter().map(|line| (line.name, self.value(line)))
    }

    fn remove(&mut self, name: &str) {
        self.remove_where(|other| other.eq_ignore_ascii_case(name));
    }

    fn set(&mut self, name: &'static str, value: &[u8]) {
        let value = self.keep(value);
        let Some(first) = self.lines.iter().position(|line| line.name.eq_ignore_ascii_case(name)) else {
            return self.lines.push(Line { name, value });
        };
        self.lines[first].value = value;
        let mut index = 0;
        self.lines.retain(|line| {
            index += 1;
            index <= first + 1 || !line.name.eq_ignore_ascii_case(name)
        });
    }

    fn append(&mut self, name: &'static str, value: &[u8]) {
        let value = self.keep(value);
        self.lines.push(Line { name, value });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_case_and_order() {
        let parsed = [("Host", "a"), ("X-One", "1"), ("x-one", "2"), ("X-Two", "3")];
        let parsed = parsed.map(|(name, value)| httparse::Header { name, value: value.as_bytes() });
        let mut lines = Lines::of(&parsed);
        assert_eq!(lines.values("X-ONE").collect::<Vec<_>>(), [b"1", b"2"]);
        lines.set("x-one", b"new");
        lines.append("via", b"us");
        lines.set("host", b"b");
        lines.remove("x-two");
        lines.set("x-three", b"4");
        let mut out = Vec::new();
        lines.write_to(&mut out);
        assert_eq!(out, b"Host: b\r\nX-One: new\r\nvia: us\r\nx-three: 4\r\n");
    }
}
