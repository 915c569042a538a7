//! How long a message's body is: decided once for each message, here, for every mover.
//!
//! Two readers that disagree on where a body ends let one client's bytes become another's request or answer. So everything that could be read in
//! two ways is refused, also where RFC 9112, 6.3 would allow to repair it: one length that is a plain number, or the one
//! coding `chunked`, or neither.

use crate::proxy::{Fields, Outcome};

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After this many bytes.
    Length(u64),
    /// With the last chunk and its trailers.
    Chunked,
    /// With the connection; answers only.
    UntilClose,
}

impl Framing {
    /// Whether no byte of a body follows the head.
    pub fn is_empty(self) -> bool {
        matches!(self, Framing::None | Framing::Length(0))
    }
}

/// The framing fields of a message are ambiguous or broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faulty;

impl From<Faulty> for Outcome {
    fn from(_: Faulty) -> Outcome {
        Outcome::BadRequest
    }
}

/// The framing of a request.
pub fn request(fields: &impl Fields, is_http_10: bool) -> Result<Framing, Faulty> {
    match declared(fields, is_http_10)? {
        Declared::Nothing => Ok(Framing::None),
        Declared::Length(length) => Ok(Framing::Length(length)),
        Declared::Chunked => Ok(Framing::Chunked),
    }
}

/// The framing of an answer with this final status (or 101) to a HEAD or another request. A length that describes a body which does not
/// follow (HEAD, 304) is checked all the same.
pub fn response(to_head: bool, status: u16, fields: &impl Fields, is_http_10: bool) -> Result<Framing, Faulty> {
    let declared = declared(fields, is_http_10)?;
    if to_head || status < 200 || matches!(status, 204 | 304) {
        return Ok(Framing::None);
    }
    match declared {
        Declared::Nothing => Ok(Framing::UntilClose),
        Declared::Length(length) => Ok(Framing::Length(length)),
        Declared::Chunked => Ok(Framing::Chunked),
    }
}

/// The length that an answer tells of a body which does not follow (HEAD, 304). For fields that [`response`] found no fault in.
pub fn described(fields: &impl Fields) -> Option<u64> {
    fields.values("content-length").next().and_then(number)
}

enum Declared {
    Nothing,
    Length(u64),
    Chunked,
}

fn declared(fields: &impl Fields, is_http_10: bool) -> Result<Declared, Faulty> {
    let mut lengths = fields.values("content-length");
    let mut codings = fields.values("transfer-encoding");
    match (lengths.next(), codings.next()) {
        (None, None) => Ok(Declared::Nothing),
        (Some(length), None) if lengths.next().is_none() => number(length).map(Declared::Length).ok_or(Faulty),
        // HTTP/1.0 knows no codings: whoever sends one there has a faulty message (RFC 9112, 6.1).
        (None, Some(coding))
            if codings.next().is_none() && !is_http_10 && coding.trim_ascii().eq_ignore_ascii_case(b"chunked") =>
        {
            Ok(Declared::Chunked)
        }
        _ => Err(Faulty),
    }
}

/// Digits only, and few enough that no reader overflows.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 18 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderName, HeaderValue};

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn only_what_cannot_be_read_in_two_ways_is_a_framing() {
        let (length, coding) = ("content-length", "transfer-encoding");
        for (lines, want) in [
            (&[][..], Ok(Framing::None)),
            (&[(length, "0")], Ok(Framing::Length(0))),
            (&[(length, "42")], Ok(Framing::Length(42))),
            (&[(length, "007")], Ok(Framing::Length(7))),
            (&[(coding, "chunked")], Ok(Framing::Chunked)),
            (&[(coding, "Chunked")], Ok(Framing::Chunked)),
            (&[(length, "")], Err(Faulty)),
            (&[(length, "+1")], Err(Faulty)),
            (&[(length, "-1")], Err(Faulty)),
            (&[(length, "0x1")], Err(Faulty)),
            (&[(length, "1, 1")], Err(Faulty)),
            (&[(length, "1 1")], Err(Faulty)),
            (&[(length, "9999999999999999999")], Err(Faulty)),
            (&[(length, "1"), (length, "1")], Err(Faulty)),
            (&[(length, "1"), (coding, "chunked")], Err(Faulty)),
            (&[(coding, "identity")], Err(Faulty)),
            (&[(coding, "gzip, chunked")], Err(Faulty)),
            (&[(coding, "chunked, chunked")], Err(Faulty)),
            (&[(coding, "chunked"), (coding, "chunked")], Err(Faulty)),
            (&[(coding, "")], Err(Faulty)),
            (&[(coding, "xchunked")], Err(Faulty)),
            (&[(coding, "chunked;q=1")], Err(Faulty)),
        ] {
            assert_eq!(request(&map(lines), false), want, "{lines:?}");
            let answer = want.map(|framing| if framing == Framing::None { Framing::UntilClose } else { framing });
            assert_eq!(response(false, 200, &map(lines), false), answer, "{lines:?}");
            for (to_head, status) in [(true, 200), (false, 204), (false, 304)] {
                assert_eq!(response(to_head, status, &map(lines), false), want.map(|_| Framing::None), "{lines:?}");
            }
        }
        assert_eq!(request(&map(&[(coding, "chunked")]), true), Err(Faulty));
        assert_eq!(response(false, 200, &map(&[(coding, "chunked")]), true), Err(Faulty));
    }
}
