//! From bytes to heads: what is no head in the sense of RFC 9112 is refused, not repaired.
//!
//! httparse reads the parts in place. On top of it: every line ends with CRLF (it takes a bare LF), targets are visible ASCII without a fragment
//! (it takes any byte above the controls), only the versions that we speak, no space after a method but one. Public for the fuzz
//! targets and property tests.

use std::mem::MaybeUninit;

use http::{Method, Version};
use httparse::{Error, Header, ParserConfig, Status};

use super::lines::Lines;
use crate::proxy::{Fields, Outcome};

/// Heads with no more fields than this are parsed without an allocation for the parser.
const FIELDS: usize = 256;

/// The most bytes and fields of an upstream's head.
pub const RESPONSE_BYTES: usize = 64 << 10;
const RESPONSE_FIELDS: usize = 256;

/// The head of a request.
#[derive(Debug)]
pub struct Request<'b> {
    /// Method.
    pub method: Method,
    /// Target, as sent.
    pub target: &'b [u8],
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    pub(super) lines: Lines<'b>,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Response<'b> {
    /// 100 … 599.
    pub status: u16,
    /// The rest of the status line, as sent; may be empty.
    pub reason: &'b str,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    pub(super) lines: Lines<'b>,
}

/// What came is no head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer;

/// A line did not end with CRLF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareLine;

impl Request<'_> {
    /// The fields: name and value.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.lines.lines()
    }
}

impl Response<'_> {
    /// The fields: name and value.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.lines.lines()
    }
}

/// Looks for the end of a head. `seen` is how many bytes were looked at before, and is moved on; returns the head's length.
pub fn end(bytes: &[u8], seen: &mut usize) -> Result<Option<usize>, BareLine> {
    while let Some(at) = memchr::memchr(b'\n', &bytes[*seen..]) {
        let line_feed = *seen + at;
        *seen = line_feed + 1;
        if line_feed == 0 || bytes[line_feed - 1] != b'\r' {
            return Err(BareLine);
        }
        if line_feed == 1 || bytes[..line_feed - 1].ends_with(b"\r\n") {
            return Ok(Some(line_feed + 1));
        }
    }
    *seen = bytes.len();
    Ok(None)
}

/// Whether a request can begin like that, of which there may be less than a head: its first line, once it is whole, names a version.
pub fn may_begin(bytes: &[u8]) -> bool {
    memchr::memchr(b'\n', bytes).is_none_or(|end| {
        let line = &bytes[..end];
        line.ends_with(b" HTTP/1.1\r") || line.ends_with(b" HTTP/1.0\r")
    })
}

/// Parses a whole request head, as found by [`end`], of at most `most` fields.
pub fn request(bytes: &[u8], most: usize) -> Result<Request<'_>, Outcome> {
    with_headers(most, |headers| {
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(bytes, headers) {
            Ok(Status::Complete(length)) if length == bytes.len() => {}
            Err(Error::TooManyHeaders) => return Err(Outcome::HeadTooLarge),
            _ => return Err(Outcome::BadRequest),
        }
        let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Outcome::BadRequest);
        };
        let good_target = target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !good_target || !is_one_line(bytes, method.len() + target.len()) {
            return Err(Outcome::BadRequest);
        }
        debug_assert!(are_good(parsed.headers));
        Ok(Request {
            method: Method::from_bytes(method.as_bytes()).map_err(|_| Outcome::BadRequest)?,
            target: target.as_bytes(),
            version: version_of(version),
            lines: Lines::of(bytes, parsed.headers),
        })
    })
}

/// Whether the request line is nothing but method, target and version with one space between: `parts` is the length of the first two.
fn is_one_line(bytes: &[u8], parts: usize) -> bool {
    memchr::memchr(b'\r', bytes) == Some(parts + 2 + "HTTP/1.1".len())
}

/// Parses a whole head of an answer, as found by [`end`].
pub fn response(bytes: &[u8]) -> Result<Response<'_>, NoAnswer> {
    with_headers(RESPONSE_FIELDS, |headers| {
        let mut parsed = httparse::Response::new(&mut []);
        let mut config = ParserConfig::default();
        // A proxy has to remove such spaces, which writing the line anew does (RFC 9112, 5.1).
        config.allow_spaces_after_header_name_in_responses(true);
        match config.parse_response_with_uninit_headers(&mut parsed, bytes, headers) {
            Ok(Status::Complete(length)) if length == bytes.len() => {}
            _ => return Err(NoAnswer),
        }
        let (Some(status @ 100..=599), Some(version)) = (parsed.code, parsed.version) else { return Err(NoAnswer) };
        // The parser takes empty lines before the status line, and leaves a reason out that is not plain text.
        if !bytes.starts_with(b"HTTP/") {
            return Err(NoAnswer);
        }
        debug_assert!(are_good(parsed.headers));
        Ok(Response {
            status,
            reason: parsed.reason.unwrap_or(""),
            version: version_of(version),
            lines: Lines::of(bytes, parsed.headers),
        })
    })
}

/// Parses the lines after a last chunk, the empty line included.
pub(super) fn trailers(bytes: &[u8]) -> Option<Lines<'_>> {
    let mut headers = [httparse::EMPTY_HEADER; FIELDS];
    match httparse::parse_headers(bytes, &mut headers) {
        Ok(Status::Complete((length, parsed))) if length == bytes.len() && are_good(parsed) => {
            Some(Lines::of(bytes, parsed))
        }
        _ => None,
    }
}

/// Names are there and values hold no control byte but the tab. That is the parser's own rule: here to notice should it ever change.
fn are_good(headers: &[Header<'_>]) -> bool {
    let good = |byte: &u8| !matches!(byte, 0..=8 | 10..=31 | 127);
    headers.iter().all(|header| !header.name.is_empty() && header.value.iter().all(good))
}

fn version_of(minor: u8) -> Version {
    if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// Room for `most` fields, and one more that shows that there are too many.
fn with_headers<'b, T>(most: usize, parse: impl FnOnce(&mut [MaybeUninit<Header<'b>>]) -> T) -> T {
    if most <= FIELDS {
        parse(&mut [const { MaybeUninit::uninit() }; FIELDS][..most])
    } else {
        parse(&mut vec![MaybeUninit::uninit(); most])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Option<Result<Request<'_>, Outcome>>, BareLine> {
        Ok(end(text, &mut 0)?.map(|length| request(&text[..length], 10)))
    }

    #[test]
    fn request_heads_are_read_by_the_letter() {
        let good = |text: &str| matches!(read(text.as_bytes()), Ok(Some(Ok(_))));
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "get / HTTP/1.0\r\n\r\n",
            "M-SEARCH /a?b=c|{} HTTP/1.1\r\nA:b\r\nC:\t d \r\nE:\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nA: \u{e9}\r\n\r\n",
        ] {
            assert!(good(text), "{text:?}");
        }
        for text in [
            "GET  / HTTP/1.1\r\n\r\n",
            "GET /  HTTP/1.1\r\n\r\n",
            " GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1 \r\n\r\n",
            "GET\t/ HTTP/1.1\r\n\r\n",
            "GET / x HTTP/1.1\r\n\r\n",
            "GET /\r\n\r\n",
            "GET HTTP/1.1\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.2\r\n\r\n",
            "GET / HTTP/1.10\r\n\r\n",
            "GET / http/1.1\r\n\r\n",
            "GET / HTTP/1\r\n\r\n",
            "G@T / HTTP/1.1\r\n\r\n",
            "GET /a#b HTTP/1.1\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\n\r\n",
            "GET /\u{1} HTTP/1.1\r\n\r\n",
            "GET /\u{7f} HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\n A: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n\tc\r\n\r\n",
            "GET / HTTP/1.1\r\nA b\r\n\r\n",
            "GET / HTTP/1.1\r\nA\r\n\r\n",
            "GET / HTTP/1.1\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA(: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\nA: \u{1b}\r\n\r\n",
            "GET / HTTP/1.1\r\nA: \u{7f}\r\n\r\n",
            "GET / HTTP/1.1\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n\n",
        ] {
            assert!(!good(text), "{text:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(11));
        assert!(matches!(read(many.as_bytes()), Ok(Some(Err(Outcome::HeadTooLarge)))));
    }

    #[test]
    fn answer_heads_are_read_by_the_letter() {
        let good =
            |text: &str| end(text.as_bytes(), &mut 0) == Ok(Some(text.len())) && response(text.as_bytes()).is_ok();
        for text in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.0 599 \r\n\r\n",
            "HTTP/1.1 204\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 Fine, thanks\r\nA:\r\n\r\n",
        ] {
            assert!(good(text), "{text:?}");
        }
        for text in [
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 600 OK\r\n\r\n",
            "HTTP/1.1 99 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 20x OK\r\n\r\n",
            "HTTP/1.1 -20 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA\r\n\r\n",
            "HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
            "HTTP/1.1 200 OK\nA: b\r\n\r\n",
        ] {
            assert!(!good(text), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(text in proptest::collection::vec(proptest::sample::select(b"GET / HTTP/1.1\r\n\r\n\r\n:ab \t\0\n\r".to_vec()), 0..80), piece in 1usize..80) {
            let whole = end(&text, &mut 0);
            let (mut seen, mut at) = (0, 0);
            let cut = loop {
                at = text.len().min(at + piece);
                match end(&text[..at], &mut seen) {
                    Ok(None) if at < text.len() => {}
                    found => break found,
                }
            };
            prop_assert_eq!(cut, whole);
        }

        #[test]
        fn any_head_is_read_without_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&text);
            let _ = response(&text);
            let _ = trailers(&text);
        }
    }
}
