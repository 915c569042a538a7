//! Looks for pseudo-header fields among trailers, where they make a request malformed (RFC 9113, 8.1) and where the library drops them without a word.
//!
//! Fields are compressed (RFC 7541). They are walked over and not decoded: a pseudo-header field shows by its index in the static table, or by the first letter of a name that is
//! written out. One that is named by an entry of the dynamic table is not seen, and is dropped as before.

use super::meter::{Frame, HEADERS};

/// The entries of the static table that are pseudo-header fields.
const STATIC: std::ops::RangeInclusive<u64> = 1..=14;

/// `:` as Huffman's code has it, in seven bits.
const COLON: u8 = 0b101_1100;

const CONTINUATION: u8 = 9;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// Looks at all frames of a connection for trailers.
#[derive(Debug, Default)]
pub(super) struct Trailers {
    /// The last stream that was begun.
    last: u32,
    /// The stream whose trailers come.
    of: Option<u32>,
    walker: Walker,
    /// The next byte says how many there are behind the fields.
    is_padded: bool,
    /// Bytes before the fields.
    before: usize,
    /// Bytes of the frame that comes, without those behind the fields once it is known how many these are.
    left: usize,
}

impl Trailers {
    /// A frame comes.
    pub(super) fn frame(&mut self, frame: Frame) {
        self.left = frame.length;
        match frame.kind {
            HEADERS if frame.stream > self.last => {
                self.last = frame.stream;
                self.of = None;
            }
            HEADERS => {
                self.of = Some(frame.stream);
                self.walker = Walker::default();
                self.is_padded = frame.flags & PADDED != 0;
                self.before = if frame.flags & PRIORITY != 0 { 5 } else { 0 };
            }
            CONTINUATION => {}
            _ => self.of = None,
        }
    }

    /// What comes of it. Returns the stream whose trailers were found to have a pseudo-header field among them.
    pub(super) fn payload(&mut self, mut bytes: &[u8]) -> Option<u32> {
        self.of?;
        if self.is_padded
            && let Some((padding, rest)) = bytes.split_first()
        {
            self.is_padded = false;
            self.left = self.left.saturating_sub(1 + usize::from(*padding));
            bytes = rest;
        }
        let before = self.before.min(bytes.len());
        self.before -= before;
        self.left = self.left.saturating_sub(before);
        bytes = &bytes[before..];
        let count = self.left.min(bytes.len());
        self.left -= count;
        self.walker.walk(&bytes[..count]);
        if self.walker.found { self.of.take() } else { None }
    }
}

/// Walks over compressed fields, in pieces as they come.
#[derive(Clone, Debug, Default)]
struct Walker {
    at: At,
    /// A pseudo-header field was seen.
    found: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum At {
    /// Before a field.
    #[default]
    Field,
    /// In a number that goes on.
    Number(Number, u64, u32),
    /// Before a text's length.
    Length(Text),
    /// At a text's first byte.
    First { text: Text, huffman: bool, length: u64 },
    /// In a text, of which so much is to come.
    Text(Text, u64),
}

/// What a number is for.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// The index of a whole field, or a size of the table; nothing follows.
    Whole,
    /// The index of a name; a value follows.
    Name,
    Length {
        text: Text,
        huffman: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Name,
    Value,
}

impl Walker {
    /// Walks over what comes next. What breaks a rule of the compression is the library's to refuse.
    fn walk(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first() {
            self.at = match self.at {
                At::Text(text, left) => {
                    let count = left.min(bytes.len() as u64);
                    bytes = &bytes[count as usize..];
                    self.at = if left == count { after(text) } else { At::Text(text, left - count) };
                    continue;
                }
                At::Field => {
                    let (number, bits) = match byte {
                        0x80.. => (Number::Whole, 7),
                        0x40.. => (Number::Name, 6),
                        0x20.. => (Number::Whole, 5),
                        _ => (Number::Name, 4),
                    };
                    let most = (1 << bits) - 1;
                    let is_size = (0x20..0x40).contains(byte);
                    match u64::from(byte & most) {
                        value if value == u64::from(most) => At::Number(number, value, 0),
                        value => {
                            self.found |= !is_size && STATIC.contains(&value);
                            then(number, value)
                        }
                    }
                }
                At::Number(number, value, shift) => {
                    // What does not fit is refused by the library.
                    let value = value.saturating_add(u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(u64::MAX));
                    match byte & 0x80 {
                        0 => then(number, value),
                        _ => At::Number(number, value, (shift + 7).min(63)),
                    }
                }
                At::Length(text) => {
                    let number = Number::Length { text, huffman: byte & 0x80 != 0 };
                    match byte & 0x7f {
                        0x7f => At::Number(number, 0x7f, 0),
                        length => then(number, length.into()),
                    }
                }
                At::First { text, huffman, length } => {
                    let is_colon = if huffman { byte >> 1 == COLON } else { *byte == b':' };
                    self.found |= text == Text::Name && is_colon;
                    if length == 1 { after(text) } else { At::Text(text, length - 1) }
                }
            };
            bytes = rest;
        }
    }
}

fn then(number: Number, value: u64) -> At {
    match number {
        Number::Whole => At::Field,
        Number::Name if value == 0 => At::Length(Text::Name),
        Number::Name => At::Length(Text::Value),
        Number::Length { text, .. } if value == 0 => after(text),
        Number::Length { text, huffman } => At::First { text, huffman, length: value },
    }
}

fn after(text: Text) -> At {
    match text {
        Text::Name => At::Length(Text::Value),
        Text::Value => At::Field,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn literal(name: &[u8], value: &[u8], kind: u8) -> Vec<u8> {
        [&[kind, name.len() as u8][..], name, &[value.len() as u8], value].concat()
    }

    fn finds(bytes: &[u8]) -> bool {
        let mut walker = Walker::default();
        walker.walk(bytes);
        walker.found
    }

    #[test]
    fn pseudo_header_fields_are_found_however_they_are_written() {
        // `:path` by Huffman's code: 7 bits of `:` first.
        let huffman = [0x40, 0x84, 0xb9, 0x58, 0xd3, 0x3f, 0x81, 0x63];
        for bytes in [
            vec![0x82],
            vec![0x8e],
            [&[0x42, 3][..], b"200"].concat(),
            [&[0x04, 1][..], b"/"].concat(),
            [&[0x17, 1][..], b"x"].concat(),
            literal(b":method", b"x", 0x40),
            literal(b":x", b"", 0),
            literal(b":x", b"", 0x10),
            huffman.to_vec(),
            [literal(b"x-sum", b":1", 0x40), vec![0x84]].concat(),
        ] {
            assert!(finds(&bytes), "{bytes:x?}");
        }
        for bytes in [
            vec![0x90],
            vec![0xff, 0x10],
            vec![0x3f, 0xe1, 0x1f],
            vec![0x21],
            literal(b"x-sum", b":method", 0x40),
            literal(b"grpc-status", b"0", 0),
            [&[0x7f, 0x05, 0x01][..], b":"].concat(),
            literal(b"a", &[b':'; 100], 0x10),
        ] {
            assert!(!finds(&bytes), "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn cuts_change_nothing_and_no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..40) {
            let mut pieces = Walker::default();
            bytes.chunks(cut).for_each(|piece| pieces.walk(piece));
            prop_assert_eq!(pieces.found, finds(&bytes));
        }

        #[test]
        fn what_is_written_out_is_read(fields in prop::collection::vec(("[a-z:]{1,20}", "[ -~]{0,100}", 0usize..3), 0..10)) {
            let bytes: Vec<u8> = fields.iter().flat_map(|(name, value, kind)| literal(name.as_bytes(), value.as_bytes(), [0, 0x10, 0x40][*kind])).collect();
            prop_assert_eq!(finds(&bytes), fields.iter().any(|(name, _, _)| name.starts_with(':')));
        }
    }
}
