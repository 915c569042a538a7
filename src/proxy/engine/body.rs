//! Where the payload is in a body, and where the body ends: read piece by piece, cut anywhere.
//!
//! A chunked body is read by the letter of RFC 9112, 7.1: a size is one to sixteen hexadecimal digits and nothing else, lines end with
//! CRLF, data ends where its size says, extensions follow the grammar. What is forwarded is written anew from the payload, so no odd form of a
//! chunk reaches the other side. Extensions are left out: they concern one connection. White space
//! that the grammar calls bad is taken around those of answers, and refused in requests, where it is a smuggler's. Public for the fuzz targets and property tests.

use super::head;
use super::lines::Lines;
use crate::config::names::is_token_byte;
use crate::proxy::{Fields, Framing};
use crate::text;

/// The most bytes of one chunk's extensions.
const EXTENSION_BYTES: usize = 256;

/// Bytes of extensions that a body may have beyond as many as it has payload: else a peer could make us work for nothing.
const EXTENSION_SLACK: u64 = 16 << 10;

/// The most bytes of a trailer section.
const TRAILER_BYTES: usize = 8 << 10;

/// Fields that mean something before the body only, or to one connection: left out of trailers (RFC 9110, 6.5.1).
const NO_TRAILERS: [&str; 29] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "proxy",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "www-authenticate",
    "x-real-ip",
    "x-request-id",
];

/// Reads one body.
#[derive(Debug)]
pub struct Body {
    state: State,
    /// Payload bytes so far.
    payload: u64,
    /// Bytes of extensions so far.
    extensions: u64,
    trailers: Vec<u8>,
    is_answers: bool,
    /// Its trailers are left out.
    drops_trailers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of payload are to come, then the end.
    Length(u64),
    UntilClose,
    /// Before or in a chunk's size.
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
        bytes: usize,
        part: Part,
    },
    /// The line of the size lacks its LF.
    SizeEnd(u64),
    /// So many bytes of the chunk's payload are to come.
    Data(u64),
    DataCr,
    DataLf,
    Trailers,
    Done,
}

/// Where in `;name=value` or `;name="value"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// White space before `;`.
    Ended,
    NameBegins,
    Name,
    NameEnded,
    ValueBegins,
    Token,
    Quoted,
    Escaped,
    QuoteEnded,
}

/// What is at the front of the bytes at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes of framing, then so many (at least one) of payload. Both are taken.
    Data {
        /// Framing.
        skip: usize,
        /// Payload.
        len: usize,
    },
    /// So many bytes of framing, taken, and more bytes are needed.
    More(usize),
    /// So many bytes of framing, taken, and the body is over.
    End(usize),
}

/// The body breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl Body {
    /// A request's body of that framing.
    pub fn new(framing: Framing) -> Body {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { size: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Body { state, payload: 0, extensions: 0, trailers: Vec::new(), is_answers: false, drops_trailers: false }
    }

    /// An answer's body of that framing.
    pub fn of_answer(framing: Framing) -> Body {
        Body { is_answers: true, ..Body::new(framing) }
    }

    /// Leaves its trailers out.
    pub fn drop_trailers(&mut self) {
        self.drops_trailers = true;
    }

    /// Whether it is over.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether it may end with the connection, now.
    pub fn ends_with_connection(&self) -> bool {
        self.state == State::UntilClose
    }

    /// Payload bytes read so far.
    pub fn payload(&self) -> u64 {
        self.payload
    }

    /// Payload still to come, of a body that is nothing else and ends by its length.
    pub(super) fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// So much of what is [left](Body::left) went by without being shown.
    pub(super) fn went_by(&mut self, count: u64) {
        let State::Length(left) = &mut self.state else { return };
        debug_assert!(count <= *left);
        *left = left.saturating_sub(count);
        self.payload += count;
        if *left == 0 {
            self.state = State::Done;
        }
    }

    /// Looks at the bytes at hand, once or more: what it returns was taken and is not to be shown again.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Broken> {
        let mut at = 0;
        loop {
            let left = (bytes.len() - at) as u64;
            match &mut self.state {
                State::Done => return Ok(Step::End(at)),
                _ if left == 0 => return Ok(Step::More(at)),
                State::UntilClose => {
                    self.payload += left;
                    return Ok(Step::Data { skip: at, len: left as usize });
                }
                State::Length(missing) | State::Data(missing) => {
                    let len = left.min(*missing);
                    *missing -= len;
                    self.payload += len;
                    self.state = match self.state {
                        State::Length(0) => State::Done,
                        State::Data(0) => State::DataCr,
                        state => state,
                    };
                    return Ok(Step::Data { skip: at, len: len as usize });
                }
                State::Trailers => {
                    let byte = bytes[at];
                    at += 1;
                    self.trailer_byte(byte)?;
                }
                _ => {
                    self.state = self.after(bytes[at])?;
                    at += 1;
                }
            }
        }
    }

    /// The state after one more byte of a chunk's framing.
    fn after(&mut self, byte: u8) -> Result<State, Broken> {
        match (self.state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                if digits == 16 || size >> 59 != 0 {
                    return Err(Broken);
                }
                Ok(State::Size { size: size << 4 | digit, digits: digits + 1 })
            }
            (State::Size { digits: 0, .. }, _) => Err(Broken),
            (State::Size { size, .. }, b'\r') => Ok(State::SizeEnd(size)),
            (State::Size { size, .. }, b';') => Ok(State::Extension { size, bytes: 1, part: Part::NameBegins }),
            (State::Size { size, .. }, b' ' | b'\t') if self.is_answers => {
                Ok(State::Extension { size, bytes: 1, part: Part::Ended })
            }
            (State::Extension { size, bytes, part }, _) => self.extension(size, bytes + 1, part, byte),
            (State::SizeEnd(0), b'\n') => Ok(State::Trailers),
            (State::SizeEnd(size), b'\n') => Ok(State::Data(size)),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { size: 0, digits: 0 }),
            _ => Err(Broken),
        }
    }

    fn extension(&mut self, size: u64, bytes: usize, part: Part, byte: u8) -> Result<State, Broken> {
        self.extensions += 1;
        if bytes > EXTENSION_BYTES || self.extensions > self.payload + EXTENSION_SLACK {
            return Err(Broken);
        }
        let part = match (part, byte) {
            (Part::NameBegins | Part::Name, _) if is_token_byte(byte) => Part::Name,
            (Part::ValueBegins | Part::Token, _) if is_token_byte(byte) => Part::Token,
            (Part::Name | Part::NameEnded, b'=') => Part::ValueBegins,
            (Part::ValueBegins, b'"') => Part::Quoted,
            (Part::Quoted, b'"') => Part::QuoteEnded,
            (Part::Quoted, b'\\') => Part::Escaped,
            (Part::Quoted | Part::Escaped, b'\t' | b' '..=b'~' | 0x80..) => Part::Quoted,
            (Part::Name | Part::NameEnded | Part::Token | Part::QuoteEnded | Part::Ended, b';') => Part::NameBegins,
            (Part::Name | Part::Token | Part::QuoteEnded, b'\r') => return Ok(State::SizeEnd(size)),
            (part, b' ' | b'\t') if self.is_answers => match part {
                Part::Name | Part::NameEnded => Part::NameEnded,
                Part::Token | Part::QuoteEnded | Part::Ended => Part::Ended,
                part => part,
            },
            _ => return Err(Broken),
        };
        Ok(State::Extension { size, bytes, part })
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<(), Broken> {
        self.trailers.push(byte);
        let after_cr = self.trailers.len() > 1 && self.trailers[self.trailers.len() - 2] == b'\r';
        if self.trailers.len() > TRAILER_BYTES || after_cr && byte != b'\n' {
            return Err(Broken);
        }
        if byte != b'\n' {
            return Ok(());
        }
        if !self.trailers.ends_with(b"\r\n") {
            return Err(Broken);
        }
        if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
            head::trailers(&self.trailers).ok_or(Broken)?;
            self.state = State::Done;
        }
        Ok(())
    }

    /// What followed the last chunk, if anything did. For a body that is over.
    pub(super) fn trailers(&self) -> Option<Lines<'_>> {
        Some(&self.trailers).filter(|trailers| trailers.len() > 2).and_then(|trailers| head::trailers(trailers))
    }

    /// Appends the end of a chunked body: the last chunk and the trailers that may be forwarded.
    pub fn write_end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"0\r\n");
        let forwarded = Some(&self.trailers).filter(|trailers| trailers.len() > 2 && !self.drops_trailers);
        if let Some(mut lines) = forwarded.and_then(|trailers| head::trailers(trailers)) {
            remove_unfit(&mut lines);
            lines.write_to(out);
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn remove_unfit(lines: &mut Lines<'_>) {
    let forwarding = |name: &[u8]| name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded-"));
    let odd = |name: &[u8]| name.contains(&b'_') || forwarding(name);
    lines.remove_where(|name| odd(name) || NO_TRAILERS.iter().any(|unfit| name.eq_ignore_ascii_case(unfit.as_bytes())));
    debug_assert!(!lines.has("content-length"));
}

/// Appends one chunk. `payload` is not empty: an empty chunk would end the body.
pub(super) fn write_chunk(out: &mut Vec<u8>, payload: &[u8]) {
    let digits = (usize::BITS - payload.len().leading_zeros()).div_ceil(4);
    out.extend((0..digits).rev().map(|at| text::hexadecimal_digit((payload.len() >> (4 * at)) as u8)));
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The payload, how many bytes were left after the end if it came, and the end as it is written.
    type Read = (Vec<u8>, Option<usize>, Vec<u8>);

    /// Reads `bytes` in pieces of at most `piece`.
    fn read(framing: Framing, bytes: &[u8], piece: usize) -> Result<Read, Broken> {
        let (mut body, mut payload, mut at) = (Body::new(framing), Vec::new(), 0);
        loop {
            let shown = &bytes[at..bytes.len().min(at + piece)];
            match body.step(shown)? {
                Step::Data { skip, len } => {
                    payload.extend_from_slice(&shown[skip..skip + len]);
                    at += skip + len;
                }
                Step::More(skip) => {
                    at += skip;
                    if at == bytes.len() {
                        return Ok((payload, None, Vec::new()));
                    }
                }
                Step::End(skip) => {
                    let mut end = Vec::new();
                    body.write_end(&mut end);
                    return Ok((payload, Some(bytes.len() - at - skip), end));
                }
            }
        }
    }

    #[test]
    fn chunks_are_read_by_the_letter() {
        let long_extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(300));
        let long_trailer = format!("0\r\na: {}\r\n\r\n", "a".repeat(9000));
        for (bytes, want) in [
            ("0\r\n\r\n", Some("")),
            ("2\r\nhi\r\n0\r\n\r\n", Some("hi")),
            ("2\r\nhi\r\n00003\r\nabc\r\n000\r\n\r\n", Some("hiabc")),
            ("A\r\n0123456789\r\n0\r\n\r\n", Some("0123456789")),
            ("2;a\r\nhi\r\n0\r\n\r\n", Some("hi")),
            ("2;a=b;c=\"d\\\"\r\"\r\nhi\r\n0\r\n\r\n", None),
            ("2;a=b;c=\"d;\\\" \"\r\nhi\r\n0;x\r\n\r\n", Some("hi")),
            ("0\r\nX: y\r\n\r\n", Some("")),
            ("\r\n", None),
            ("2\nhi\r\n0\r\n\r\n", None),
            ("2\r\nhi\n0\r\n\r\n", None),
            ("2\r\nhi\r\n0\n\r\n", None),
            ("2\r\nhi\r\n0\r\n\n", None),
            ("2\r\nhi\r\n0\r\nX: y\n\r\n", None),
            ("2\r\nhix\r\n0\r\n\r\n", None),
            ("2\r\nh\r\n0\r\n\r\n", None),
            (" 2\r\nhi\r\n0\r\n\r\n", None),
            ("2 \r\nhi\r\n0\r\n\r\n", None),
            ("2 ;a\r\nhi\r\n0\r\n\r\n", None),
            ("2; a\r\nhi\r\n0\r\n\r\n", None),
            ("2;\r\nhi\r\n0\r\n\r\n", None),
            ("2;a=\r\nhi\r\n0\r\n\r\n", None),
            ("2;a=\"\r\nhi\r\n0\r\n\r\n", None),
            ("2;a\nb\r\nhi\r\n0\r\n\r\n", None),
            ("2;a\0\r\nhi\r\n0\r\n\r\n", None),
            ("0x2\r\nhi\r\n0\r\n\r\n", None),
            ("+2\r\nhi\r\n0\r\n\r\n", None),
            ("-2\r\nhi\r\n0\r\n\r\n", None),
            ("g\r\nhi\r\n0\r\n\r\n", None),
            (";a\r\nhi\r\n0\r\n\r\n", None),
            ("10000000000000002\r\nhi\r\n0\r\n\r\n", None),
            ("00000000000000002\r\nhi\r\n0\r\n\r\n", None),
            ("ffffffffffffffff\r\nhi\r\n0\r\n\r\n", None),
            ("0\r\nX : y\r\n\r\n", None),
            ("0\r\n\rX: y\r\n\r\n", None),
            ("0\r\n X: y\r\n\r\n", None),
            ("0\r\nX: a\r\n b\r\n\r\n", None),
            ("0\r\nX: a\0\r\n\r\n", None),
            (&long_extension, None),
            (&long_trailer, None),
        ] {
            for piece in [1, 2, 3, 1000] {
                let got = read(Framing::Chunked, bytes.as_bytes(), piece);
                match want {
                    Some(want) => {
                        let (payload, left, _) = got.unwrap_or_else(|_| panic!("{bytes:?}"));
                        assert_eq!((payload.as_slice(), left), (want.as_bytes(), Some(0)), "{bytes:?}");
                    }
                    None => assert!(got.is_err(), "{bytes:?} in pieces of {piece}: {got:?}"),
                }
            }
        }
    }

    #[test]
    fn trailers_lose_what_means_something_elsewhere() {
        let bytes = b"0\r\nX-Sum: 1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nX-Forwarded-For: 1\r\nX-Real-IP: 1\r\nProxy: x\r\nHost: x\r\na_b: c\r\nx-2: 2\r\n\r\nGET";
        let (_, left, end) = read(Framing::Chunked, bytes, 7).unwrap();
        assert_eq!(left, Some(3));
        assert_eq!(String::from_utf8(end).unwrap(), "0\r\nX-Sum: 1\r\nx-2: 2\r\n\r\n");
    }

    #[test]
    fn extensions_are_bounded_by_what_they_come_with() {
        let mut bytes = Vec::new();
        for _ in 0..200 {
            bytes.extend_from_slice(format!("1;{}\r\nx\r\n", "a".repeat(200)).as_bytes());
        }
        assert!(read(Framing::Chunked, &bytes, 1000).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8), piece in 1usize..100) {
            let mut bytes = Vec::new();
            pieces.iter().for_each(|payload| write_chunk(&mut bytes, payload));
            Body::new(Framing::Chunked).write_end(&mut bytes);
            bytes.extend_from_slice(b"next");
            let (payload, left, end) = read(Framing::Chunked, &bytes, piece).unwrap();
            prop_assert_eq!(payload, pieces.concat());
            prop_assert_eq!((left, end.as_slice()), (Some(4), &b"0\r\n\r\n"[..]));
        }

        #[test]
        fn cuts_change_nothing(bytes in proptest::collection::vec(proptest::sample::select(b"0123aF;=\"\\x \r\n:".to_vec()), 0..60), piece in 1usize..60) {
            let whole = read(Framing::Chunked, &bytes, 1000);
            prop_assert_eq!(read(Framing::Chunked, &bytes, piece), whole);
        }

        #[test]
        fn a_length_is_a_length(length in 0u64..200, extra in 0usize..20, piece in 1usize..50) {
            let bytes = vec![b'x'; length as usize + extra];
            let (payload, left, _) = read(Framing::Length(length), &bytes, piece).unwrap();
            prop_assert_eq!((payload.len() as u64, left), (length, Some(extra)));
        }
    }
}
