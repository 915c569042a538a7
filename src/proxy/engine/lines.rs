//! The fields of a head, as places in the bytes they came in.
//!
//! A head is read once, changed in a few places and written once. So a line is where it lies, only what we set ourselves is stored (as it will
//! be written), and lines that lie side by side are written as one piece. Names keep their case and lines their order. Most fields
//! that are asked for are not there: a set of tags says so without a look at a line.
//!
//! Storage goes back to its thread, so that in the long run a head costs no allocation.

use std::ops::Range;

use super::buffer::Scratch;
use super::stock::Stock;
use crate::proxy::Fields;
use crate::text;

/// A head's fields.
#[derive(Debug)]
pub(super) struct Lines<'b> {
    bytes: &'b [u8],
    store: Store,
    /// Tags of the names, one bit each: of those that are there, and maybe of some that were.
    tags: u64,
    /// Tag bits that more than one line had.
    shared: u64,
    /// Whether a name that was found has an underscore.
    underscored: bool,
    /// By tag bit, its first line, or [`FAR`] for one beyond.
    first: [u8; 64],
}

/// One line, by its places in the head or in what we set.
#[derive(Clone, Debug)]
struct Line {
    name: Range<u32>,
    value: Range<u32>,
    tag: u16,
    is_ours: bool,
    /// Lies there as `name: value CRLF`.
    is_plain: bool,
    /// Removed: it stays in its place, so that the others do.
    is_gone: bool,
}

/// Lines, and the bytes of those that we set, in storage that goes back to its thread.
#[derive(Debug, Default)]
struct Store {
    lines: Vec<Line>,
    /// As they will be written.
    own: Vec<u8>,
}

/// The first line of a tag may be further behind.
const FAR: u8 = u8::MAX;

/// Lines of a usual head, and those that are added to it.
const USUAL_LINES: usize = 32;

/// The most lines, and bytes of our own, that are kept room for.
const KEPT_LINES: usize = 256;
const KEPT_BYTES: usize = 16 << 10;

thread_local! {
    static STORES: Stock<(Vec<Line>, Vec<u8>)> = const { Stock::new(4) };
}

impl Store {
    fn take() -> Store {
        let (mut lines, own) = Stock::take(&STORES).unwrap_or_default();
        lines.reserve(USUAL_LINES);
        Store { lines, own }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let Store { lines, own } = self;
        if (1..=KEPT_LINES).contains(&lines.capacity()) && own.capacity() <= KEPT_BYTES {
            lines.clear();
            own.clear();
            Stock::keep(&STORES, (std::mem::take(lines), std::mem::take(own)));
        }
    }
}

/// Tells most names apart: their length and both ends. Computed by the compiler for names that it knows.
#[inline(always)]
fn tag(name: &[u8]) -> u16 {
    let (Some(first), Some(last)) = (name.first(), name.last()) else { return 0 };
    // Letters without their case. Factors for which few of the usual names share their bit with one that is asked for.
    let ends = u16::from(first | 0x20) * 185 + u16::from(last | 0x20);
    ends.wrapping_mul(17_413).wrapping_add((name.len() as u16).wrapping_mul(161))
}

#[inline(always)]
fn bit(tag: u16) -> u64 {
    1 << (tag % 64)
}

#[inline(always)]
fn slot(tag: u16) -> usize {
    usize::from(tag % 64)
}

fn range(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

impl<'b> Lines<'b> {
    /// Of a head in `bytes`, no line of which was found yet.
    pub(super) fn of(bytes: &'b [u8]) -> Lines<'b> {
        Lines { bytes, store: Store::take(), tags: 0, shared: 0, underscored: false, first: [0; 64] }
    }

    /// How many lines there are, removed ones among them.
    pub(super) fn len(&self) -> usize {
        self.store.lines.len()
    }

    /// A name that was found has an underscore.
    #[inline]
    pub(super) fn found_underscore(&mut self) {
        self.underscored = true;
    }

    /// Adds the line that was found at these places of `bytes`. `is_plain`: it lies there as `name: value CRLF`.
    #[inline]
    pub(super) fn found(&mut self, name: Range<usize>, value: Range<usize>, is_plain: bool) {
        let tag = tag(&self.bytes[name.clone()]);
        let places = |range: Range<usize>| range.start as u32..range.end as u32;
        self.add_line(Line { name: places(name), value: places(value), tag, is_ours: false, is_plain, is_gone: false });
    }

    #[inline]
    fn add_line(&mut self, line: Line) {
        let bit = bit(line.tag);
        if self.tags & bit == 0 {
            self.first[slot(line.tag)] = u8::try_from(self.store.lines.len()).unwrap_or(FAR);
        }
        self.shared |= self.tags & bit;
        self.tags |= bit;
        self.store.lines.push(line);
    }

    /// Stores a line of ours, whose value `write` appends.
    #[inline]
    fn keep(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) -> Line {
        let own = &mut self.store.own;
        let start = own.len() as u32;
        own.extend_from_slice(name.as_bytes());
        own.extend_from_slice(b": ");
        let name = start..own.len() as u32 - 2;
        write(own);
        let value = name.end + 2..own.len() as u32;
        own.extend_from_slice(b"\r\n");
        let tag = tag(&own[range(&name)]);
        Line { name, value, tag, is_ours: true, is_plain: true, is_gone: false }
    }

    fn push(&mut self, name: &str, value: &[u8]) {
        let line = self.keep(name, |own| own.extend_from_slice(value));
        self.add_line(line);
    }

    fn text(&self, line: &Line, part: &Range<u32>) -> &[u8] {
        let bytes = if line.is_ours { &self.store.own } else { self.bytes };
        &bytes[range(part)]
    }

    #[inline]
    fn is(&self, line: &Line, tag: u16, name: &str) -> bool {
        line.tag == tag && !line.is_gone && text::is_same_token(self.text(line, &line.name), name.as_bytes())
    }

    /// Where lines of that tag may be.
    #[inline(always)]
    fn reach(&self, tag: u16) -> Range<usize> {
        if self.tags & bit(tag) == 0 {
            return 0..0;
        }
        let first = self.first[slot(tag)];
        let from = usize::from(first);
        if self.shared & bit(tag) == 0 && first != FAR { from..from + 1 } else { from..self.store.lines.len() }
    }

    /// Removes the lines whose name `gone` knows.
    pub(super) fn remove_where(&mut self, gone: impl Fn(&[u8]) -> bool) {
        for at in 0..self.store.lines.len() {
            let line = &self.store.lines[at];
            if gone(self.text(line, &line.name)) {
                self.store.lines[at].is_gone = true;
            }
        }
    }

    /// Appends `name: value CRLF` for every line.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        let lines = &self.store.lines;
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            at += 1;
            if line.is_gone {
                continue;
            }
            if !line.is_plain {
                for part in [self.text(line, &line.name), b": ", self.text(line, &line.value), b"\r\n"] {
                    out.extend_from_slice(part);
                }
                continue;
            }
            let mut piece = line.name.start..line.value.end + 2;
            while let Some(next) = lines.get(at)
                && next.is_plain
                && !next.is_gone
                && next.is_ours == line.is_ours
                && next.name.start == piece.end
            {
                piece.end = next.value.end + 2;
                at += 1;
            }
            out.extend_from_slice(self.text(line, &piece));
        }
    }
}

impl Fields for Lines<'_> {
    #[inline(always)]
    fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &[u8]> {
        let tag = tag(name.as_bytes());
        let some = &self.store.lines[self.reach(tag)];
        some.iter().filter(move |line| self.is(line, tag, name)).map(|line| self.text(line, &line.value))
    }

    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.store.lines.iter().filter(|line| !line.is_gone);
        lines.map(|line| (self.text(line, &line.name), self.text(line, &line.value)))
    }

    /// By the places alone, which spares looking at the text: a hundredth of a request's instructions.
    fn extent(&self) -> (usize, u64) {
        let lines = self.store.lines.iter().filter(|line| !line.is_gone);
        lines.fold((0, 0), |(count, bytes), line| (count + 1, bytes + (line.name.len() + line.value.len() + 4) as u64))
    }

    fn may_have_underscores(&self) -> bool {
        self.underscored
    }

    #[inline(always)]
    fn has(&self, name: &str) -> bool {
        self.tags & bit(tag(name.as_bytes())) != 0 && self.values(name).next().is_some()
    }

    #[inline(always)]
    fn remove(&mut self, name: &str) {
        let tag = tag(name.as_bytes());
        if self.tags & bit(tag) != 0 {
            self.cut(self.reach(tag), tag, name);
        }
    }

    #[inline(always)]
    fn set(&mut self, name: &'static str, value: &[u8]) {
        let tag = tag(name.as_bytes());
        if self.tags & bit(tag) == 0 {
            self.push(name, value);
        } else {
            self.replace(tag, name, value);
        }
    }

    #[inline(always)]
    fn append(&mut self, name: &'static str, parts: &[&[u8]]) {
        let line = self.keep(name, |own| parts.iter().for_each(|part| own.extend_from_slice(part)));
        self.add_line(line);
    }

    fn put(&mut self, name: &str, value: &[u8]) {
        self.replace(tag(name.as_bytes()), name, value);
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        self.push(name, value);
    }

    #[inline(always)]
    fn append_member(&mut self, name: &'static str, member: &[u8]) {
        let tag = tag(name.as_bytes());
        if self.tags & bit(tag) == 0 {
            self.push(name, member);
        } else {
            self.lengthen(tag, name, member);
        }
    }
}

impl Lines<'_> {
    /// Removes the lines of that name within `reach`.
    fn cut(&mut self, reach: Range<usize>, tag: u16, name: &str) {
        for at in reach {
            if self.is(&self.store.lines[at], tag, name) {
                self.store.lines[at].is_gone = true;
            }
        }
    }

    fn find(&self, tag: u16, name: &str) -> Option<usize> {
        self.reach(tag).find(|at| self.is(&self.store.lines[*at], tag, name))
    }

    fn replace(&mut self, tag: u16, name: &str, value: &[u8]) {
        let line = self.keep(name, |own| own.extend_from_slice(value));
        self.put_line(tag, name, line);
    }

    /// The list of all lines of that name with one more member, in the place of the first.
    fn lengthen(&mut self, tag: u16, name: &str, member: &[u8]) {
        if self.shared & bit(tag) == 0
            && let Some(only) = self.find(tag, name)
            && let Line { is_ours: false, value, .. } = &self.store.lines[only]
            && !value.is_empty()
        {
            let list = &self.bytes[range(value)];
            self.store.lines[only] = self.keep(name, |own| {
                for part in [list, b", ", member] {
                    own.extend_from_slice(part);
                }
            });
            return;
        }
        let mut list = Scratch::take();
        for value in self.values(name).filter(|value| !value.is_empty()) {
            list.extend_from_slice(value);
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(member);
        let line = self.keep(name, |own| own.extend_from_slice(&list));
        self.put_line(tag, name, line);
    }

    /// Puts a line in place of the first of its name, and of those after it.
    fn put_line(&mut self, tag: u16, name: &str, line: Line) {
        match self.find(tag, name) {
            Some(first) => {
                let after = first + 1..self.reach(tag).end;
                self.cut(after, tag, name);
                self.store.lines[first] = line;
            }
            None => self.add_line(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(text: &str) -> Lines<'_> {
        super::super::head::trailers(text.as_bytes()).unwrap()
    }

    fn written(lines: &Lines<'_>) -> String {
        let mut out = Vec::new();
        lines.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_keep_case_and_order() {
        let text = "Host: a\r\nX-One: 1\r\nx-one: 2\r\nX-Two: 3\r\n\r\n";
        let mut lines = lines(text);
        assert_eq!(written(&lines) + "\r\n", text);
        assert_eq!(lines.values("X-ONE").collect::<Vec<_>>(), [b"1", b"2"]);
        lines.set("x-one", b"new");
        lines.append("via", &[b"u", b"s"]);
        lines.set("host", b"b");
        lines.remove("x-two");
        lines.set("x-three", b"4");
        assert_eq!(written(&lines), "host: b\r\nx-one: new\r\nvia: us\r\nx-three: 4\r\n");
    }

    #[test]
    fn lines_are_written_as_one_writes_them() {
        let text = "A:1\r\nB:  2 \t\r\nC:\r\nD: \r\nE: 5\r\n\r\n";
        let lines = lines(text);
        assert_eq!(written(&lines), "A: 1\r\nB: 2\r\nC: \r\nD: \r\nE: 5\r\n");
    }

    /// What is done to a list of fields.
    #[derive(Clone, Debug)]
    enum Act {
        Remove(&'static str),
        Set(&'static str, String),
        Append(&'static str, String),
        AppendMember(&'static str, String),
        Put(&'static str, String),
        Add(&'static str, String),
    }

    fn set(list: &mut Vec<(String, String)>, name: &str, value: String) {
        match list.iter().position(|(other, _)| other.eq_ignore_ascii_case(name)) {
            None => list.push((name.to_owned(), value)),
            Some(first) => {
                list[first] = (String::new(), value);
                list.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
                list[first].0 = name.to_owned();
            }
        }
    }

    /// Some with the same tag bit, some with the same tag.
    const NAMES: [&str; 9] = ["host", "via", "te", "x-a", "x-b", "xaa", "xba", "connection", "cookietion"];

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let name = || proptest::sample::select(&NAMES[..]);
        let value = || "[a-z]{0,3}";
        proptest::collection::vec(
            prop_oneof![
                name().prop_map(Act::Remove),
                (name(), value()).prop_map(|(name, value)| Act::Set(name, value)),
                (name(), value()).prop_map(|(name, value)| Act::Append(name, value)),
                (name(), value()).prop_map(|(name, value)| Act::AppendMember(name, value)),
                (name(), value()).prop_map(|(name, value)| Act::Put(name, value)),
                (name(), value()).prop_map(|(name, value)| Act::Add(name, value)),
            ],
            0..12,
        )
    }

    #[test]
    fn lines_behind_many_others_are_found() {
        let many: String = (0..253).map(|n| format!("a: {n}\r\n")).collect();
        let text = many + "b: 1\r\nc: 2\r\nd: 3\r\n\r\n";
        let mut lines = self::lines(&text);
        for (name, value) in [("b", b"1"), ("c", b"2"), ("d", b"3")] {
            assert_eq!(lines.values(name).collect::<Vec<_>>(), [value]);
        }
        lines.append("e", &[b"4"]);
        lines.append_member("e", b"5");
        lines.remove("d");
        lines.remove("a");
        assert_eq!(written(&lines), "b: 1\r\nc: 2\r\ne: 4, 5\r\n");
    }

    proptest! {
        #[test]
        fn it_is_a_list_of_fields(
            given in proptest::collection::vec((proptest::sample::select(&NAMES[..]), "[a-z]{0,3}", "[ ]{0,2}"), 0..8),
            acts in acts(),
        ) {
            let text: String = given.iter().map(|(name, value, space)| format!("{name}:{space}{value}\r\n")).collect();
            let text = text + "\r\n";
            let mut list: Vec<(String, String)> = given.iter().map(|(name, value, _)| ((*name).to_owned(), value.clone())).collect();
            let mut lines = lines(&text);
            for act in acts {
                match act {
                    Act::Remove(name) => {
                        lines.remove(name);
                        list.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
                    }
                    Act::Set(name, value) => {
                        lines.set(name, value.as_bytes());
                        set(&mut list, name, value);
                    }
                    Act::Append(name, value) => {
                        lines.append(name, &[value.as_bytes()]);
                        list.push((name.to_owned(), value));
                    }
                    Act::Put(name, value) => {
                        lines.put(&name.to_ascii_uppercase(), value.as_bytes());
                        set(&mut list, &name.to_ascii_uppercase(), value);
                    }
                    Act::Add(name, value) => {
                        lines.add(&name.to_ascii_uppercase(), value.as_bytes());
                        list.push((name.to_ascii_uppercase(), value));
                    }
                    Act::AppendMember(name, value) => {
                        lines.append_member(name, value.as_bytes());
                        let members = list.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone());
                        let value = members.filter(|value| !value.is_empty()).chain([value]).collect::<Vec<_>>().join(", ");
                        set(&mut list, name, value);
                    }
                }
                let want: String = list.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                prop_assert_eq!(written(&lines), want);
                for name in NAMES {
                    let want: Vec<_> = list.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes()).collect();
                    prop_assert_eq!(lines.has(name), !want.is_empty());
                    prop_assert_eq!(lines.values(name).collect::<Vec<_>>(), want);
                }
            }
        }
    }
}
