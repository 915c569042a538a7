//! From bytes to heads: what is no head in the sense of RFC 9112 is refused, not repaired.
//!
//! One pass over the bytes finds the lines, their ends and whatever must not be in them. Every line ends with CRLF, targets are visible
//! ASCII without a fragment, versions are those that we speak, one space stands where one belongs, and no line is folded. Our own, because
//! a request costs two heads and little else: tests hold it against httparse, a parser of the field, which it must never be laxer than.
//! Public for the fuzz targets and property tests.

use std::ops::Range;

use http::{Method, Version};
use wide::u8x16;

use super::lines::Lines;
use crate::config::names::is_token_byte;
use crate::proxy::{Fields, Outcome};
use crate::text::{find, sixteen};

/// The most bytes and fields of an upstream's head.
pub const RESPONSE_BYTES: usize = 64 << 10;
const RESPONSE_FIELDS: usize = 256;

/// The most fields after a body.
const TRAILERS: usize = 256;

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

/// What is wrong with the bytes of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It goes on in bytes that are not there.
    Cut,
    Bad,
    /// More fields than may be.
    Many,
}

/// Reads a request head of at most `most` fields from the front of `bytes`, and tells its length. `None`: it goes on in bytes to come.
#[inline]
pub fn read_request(bytes: &[u8], most: usize) -> Result<Option<(Request<'_>, usize)>, Outcome> {
    match request_of(bytes, most) {
        Ok(read) => Ok(Some(read)),
        Err(Fault::Cut) => Ok(None),
        Err(Fault::Bad) => Err(Outcome::BadRequest),
        Err(Fault::Many) => Err(Outcome::HeadTooLarge),
    }
}

#[inline(always)]
fn request_of(bytes: &[u8], most: usize) -> Result<(Request<'_>, usize), Fault> {
    let (method_end, _) = token_end(bytes, 0)?;
    let method = ..method_end;
    if method.end == 0 || bytes[method.end] != b' ' {
        return Err(Fault::Bad);
    }
    let odd = |some| sixteen::below(some, b'!') | sixteen::above(some, b'~') | sixteen::equal(some, b'#');
    let target = method.end + 1..find(bytes, method.end + 1, odd).ok_or(Fault::Cut)?;
    if target.is_empty() || bytes[target.end] != b' ' {
        return Err(Fault::Bad);
    }
    let (version, rest) = version(bytes, target.end + 1)?;
    if bytes.get(rest..rest + 2).ok_or(Fault::Cut)? != b"\r\n" {
        return Err(Fault::Bad);
    }
    let method = Method::from_bytes(&bytes[method]).map_err(|_| Fault::Bad)?;
    let (lines, length) = fields(bytes, rest + 2, most, false)?;
    Ok((Request { method, target: &bytes[target], version, lines }, length))
}

/// Reads an answer's head from the front of `bytes`, and tells its length. `None`: it goes on in bytes to come.
#[inline]
pub fn read_response(bytes: &[u8]) -> Result<Option<(Response<'_>, usize)>, NoAnswer> {
    match response_of(bytes) {
        Ok(read) => Ok(Some(read)),
        Err(Fault::Cut) => Ok(None),
        Err(Fault::Bad | Fault::Many) => Err(NoAnswer),
    }
}

#[inline(always)]
fn response_of(bytes: &[u8]) -> Result<(Response<'_>, usize), Fault> {
    let (version, at) = version(bytes, 0)?;
    let status = match bytes.get(at..at + 4).ok_or(Fault::Cut)? {
        [b' ', code @ ..] if code.iter().all(u8::is_ascii_digit) => {
            code.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'))
        }
        _ => return Err(Fault::Bad),
    };
    if !(100..=599).contains(&status) {
        return Err(Fault::Bad);
    }
    let end = text_end(bytes, at + 4)?;
    let reason = match &bytes[at + 4..end] {
        [] => &[],
        [b' ', reason @ ..] => reason,
        _ => return Err(Fault::Bad),
    };
    // A reason is for people; one that is not plain text is left out.
    let reason = std::str::from_utf8(reason).ok().filter(|reason| reason.is_ascii()).unwrap_or("");
    // A proxy has to remove spaces after a name, which writing the line anew does (RFC 9112, 5.1).
    let (lines, length) = fields(bytes, end + 2, RESPONSE_FIELDS, true)?;
    Ok((Response { status, reason, version, lines }, length))
}

/// Reads the lines after a last chunk, the empty line included.
pub(super) fn trailers(bytes: &[u8]) -> Option<Lines<'_>> {
    match fields(bytes, 0, TRAILERS, false) {
        Ok((lines, length)) if length == bytes.len() => Some(lines),
        _ => None,
    }
}

/// `HTTP/1.0` or `HTTP/1.1` at that place, and where it ends.
#[inline]
fn version(bytes: &[u8], at: usize) -> Result<(Version, usize), Fault> {
    match bytes.get(at..).unwrap_or_default() {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor, ..] => match minor {
            b'1' => Ok((Version::HTTP_11, at + 8)),
            b'0' => Ok((Version::HTTP_10, at + 8)),
            _ => Err(Fault::Bad),
        },
        begun if b"HTTP/1.".starts_with(begun) => Err(Fault::Cut),
        _ => Err(Fault::Bad),
    }
}

/// Where the token that begins at `at` ends, and whether it has an underscore (RFC 9110, 5.6.2).
#[inline]
fn token_end(bytes: &[u8], at: usize) -> Result<(usize, bool), Fault> {
    // Most are of letters, digits and hyphens: what is none of these mostly ends one.
    let mut end = find(bytes, at, |some| !is_usual(some)).ok_or(Fault::Cut)?;
    let mut underscored = false;
    while is_token_byte(bytes[end]) {
        underscored |= bytes[end] == b'_';
        end = find(bytes, end + 1, |some| !is_usual(some)).ok_or(Fault::Cut)?;
    }
    Ok((end, underscored))
}

/// Letters, digits and hyphens.
#[inline(always)]
fn is_usual(some: u8x16) -> u8x16 {
    let letters = sixteen::within(some | u8x16::splat(32), b'a', b'z');
    letters | sixteen::within(some, b'0', b'9') | sixteen::equal(some, b'-')
}

/// Where the text that begins at `at` ends with its line: at CRLF. The tab is the only control byte in it (RFC 9110, 5.5).
#[inline]
fn text_end(bytes: &[u8], mut at: usize) -> Result<usize, Fault> {
    loop {
        at = find(bytes, at, |some| sixteen::below(some, b' ') | sixteen::equal(some, 127)).ok_or(Fault::Cut)?;
        match bytes[at..] {
            [b'\t', ..] => at += 1,
            [b'\r', b'\n', ..] => return Ok(at),
            [b'\r'] => return Err(Fault::Cut),
            _ => return Err(Fault::Bad),
        }
    }
}

/// At most `most` lines from `at` on, and where the empty line after them ends. `spaced`: spaces may stand after a name.
#[inline(always)]
fn fields(bytes: &[u8], mut at: usize, most: usize, spaced: bool) -> Result<(Lines<'_>, usize), Fault> {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    // Places are kept in 32 bits.
    u32::try_from(bytes.len()).map_err(|_| Fault::Bad)?;
    let mut lines = Lines::of(bytes);
    loop {
        let (name_end, underscored) = token_end(bytes, at)?;
        let name = at..name_end;
        if name.is_empty() {
            return match bytes[at..] {
                [b'\r', b'\n', ..] => Ok((lines, at + 2)),
                [b'\r'] => Err(Fault::Cut),
                _ => Err(Fault::Bad),
            };
        }
        // Mostly as everybody writes it.
        let mut is_plain = matches!(bytes[name.end..], [b':', b' ', next, ..] if !matches!(next, b' ' | b'\t'));
        let mut value: Range<usize> = name.end + 2..0;
        if !is_plain {
            let mut colon = name.end;
            while spaced && is_blank(bytes.get(colon)) {
                colon += 1;
            }
            if *bytes.get(colon).ok_or(Fault::Cut)? != b':' {
                return Err(Fault::Bad);
            }
            value.start = colon + 1;
            while is_blank(bytes.get(value.start)) {
                value.start += 1;
            }
        }
        let line_end = text_end(bytes, value.start)?;
        value.end = line_end;
        while value.end > value.start && is_blank(bytes.get(value.end - 1)) {
            value.end -= 1;
            is_plain = false;
        }
        if lines.len() == most {
            return Err(Fault::Many);
        }
        at = line_end + 2;
        lines.found(name, value, is_plain);
        if underscored {
            lines.found_underscore();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is a request head and nothing else.
    fn request(bytes: &[u8], most: usize) -> Result<Request<'_>, Outcome> {
        match read_request(bytes, most)? {
            Some((request, length)) if length == bytes.len() => Ok(request),
            _ => Err(Outcome::BadRequest),
        }
    }

    /// What is an answer's head and nothing else.
    fn response(bytes: &[u8]) -> Result<Response<'_>, NoAnswer> {
        match read_response(bytes)? {
            Some((response, length)) if length == bytes.len() => Ok(response),
            _ => Err(NoAnswer),
        }
    }

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

    /// A good head with up to three bytes changed, left out or put in; or words of heads in any order.
    fn head(good: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let byte =
            || prop_oneof![proptest::sample::select(b" \t\r\n:/#\0\x0b\x1f\x7f\x80\xffA1".to_vec()), any::<u8>()];
        let edit = (any::<proptest::sample::Index>(), 0..3, byte());
        let edited = proptest::collection::vec(edit, 0..4).prop_map(move |edits| {
            let mut text = good.as_bytes().to_vec();
            for (at, how, byte) in edits {
                let at = at.index(text.len());
                match how {
                    0 => text[at] = byte,
                    1 => drop(text.remove(at)),
                    _ => text.insert(at, byte),
                }
            }
            text
        });
        let words = [
            "GET", "HTTP/1.1", "HTTP/1.0", " ", " ", "/", "200", "OK", "A", ":", ": ", "b", "\t", "\r\n", "\r\n", "\n",
            "\r", "\u{e9}",
        ];
        let spelled = proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..20);
        let spelled = spelled.prop_map(|words| [words.concat(), "\r\n\r\n".to_owned()].concat().into_bytes());
        prop_oneof![3 => edited, 1 => spelled]
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
        fn requests_are_what_httparse_reads_by_our_rules(text in head("GET /a?b HTTP/1.1\r\nHost: a.b\r\nX-One:\t1 2 \r\nEmpty:\r\nLong-One: 0123456789abcdef\u{e9}\r\n\r\n")) {
            let mut headers = [httparse::EMPTY_HEADER; 10];
            let mut parsed = httparse::Request::new(&mut headers);
            let whole = parsed.parse(&text) == Ok(httparse::Status::Complete(text.len()));
            let (method, target) = (parsed.method.unwrap_or(""), parsed.path.unwrap_or(""));
            let first_line = format!("{method} {target} HTTP/1.{}\r\n", parsed.version.unwrap_or(9));
            let good = whole
                && end(&text, &mut 0) == Ok(Some(text.len()))
                && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
                && text.starts_with(first_line.as_bytes());
            let ours = request(&text, 10);
            prop_assert_eq!(ours.is_ok(), good, "{:?}", text.escape_ascii().to_string());
            if let Ok(ours) = ours {
                prop_assert_eq!(ours.method.as_str(), method);
                prop_assert_eq!(ours.target, target.as_bytes());
                prop_assert_eq!(ours.version == Version::HTTP_11, parsed.version == Some(1));
                prop_assert!(ours.fields().eq(parsed.headers.iter().map(|header| (header.name.as_bytes(), header.value))));
            }
        }

        #[test]
        fn answers_are_what_httparse_reads_by_our_rules(text in head("HTTP/1.1 204 No Content\r\nDate: x\r\nX-One :\t1 2 \r\nEmpty:\r\nLong-One: 0123456789abcdef\u{e9}\r\n\r\n")) {
            let mut headers = [httparse::EMPTY_HEADER; 10];
            let mut parsed = httparse::Response::new(&mut headers);
            let mut config = httparse::ParserConfig::default();
            config.allow_spaces_after_header_name_in_responses(true);
            let whole = config.parse_response(&mut parsed, &text) == Ok(httparse::Status::Complete(text.len()));
            let good = whole
                && end(&text, &mut 0) == Ok(Some(text.len()))
                && text.starts_with(b"HTTP/")
                && matches!(parsed.code, Some(100..=599));
            let ours = response(&text);
            prop_assert_eq!(ours.is_ok(), good, "{:?}", text.escape_ascii().to_string());
            if let Ok(ours) = ours {
                prop_assert_eq!(Some(ours.status), parsed.code);
                prop_assert_eq!(Some(ours.reason), parsed.reason);
                prop_assert_eq!(ours.version == Version::HTTP_11, parsed.version == Some(1));
                prop_assert!(ours.fields().eq(parsed.headers.iter().map(|header| (header.name.as_bytes(), header.value))));
            }
        }

        #[test]
        fn a_head_that_is_cut_goes_on_or_is_bad(text in head("GET / HTTP/1.1\r\nHost: a\r\nB: c\r\n\r\n"), at in any::<proptest::sample::Index>()) {
            let cut = &text[..at.index(text.len() + 1)];
            match (read_request(cut, 10), read_request(&text, 10)) {
                (Ok(Some((_, length))), whole) => prop_assert_eq!(whole.unwrap().unwrap().1, length),
                (Ok(None), _) => prop_assert_eq!(end(cut, &mut 0).ok().flatten(), None, "{:?}", cut.escape_ascii().to_string()),
                (Err(_), whole) => prop_assert!(whole.is_err()),
            }
        }

        #[test]
        fn any_head_is_read_without_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&text);
            let _ = response(&text);
            let _ = trailers(&text);
        }
    }
}
