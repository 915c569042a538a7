//! What a request of gRPC wants beyond other requests: a deadline of its own, and answers of ours that its client can read.
//!
//! After gRPC over HTTP/2 (PROTOCOL-HTTP2.md) and HTTP to gRPC Status Code Mapping (http-grpc-status-mapping.md) of the gRPC project. Everything else of it is HTTP:
//! messages are bodies, the status of a call is in trailers.

use std::time::Duration;

use http::Method;

use crate::proxy::{Fields, Outcome};

/// The media type, alone or with what it carries behind `+` (gRPC-Web, with `-`, is another protocol: its clients read statuses of HTTP).
const KIND: &[u8] = b"application/grpc";

/// Whether a request is a call.
pub fn is_call(method: &Method, fields: &impl Fields) -> bool {
    *method == Method::POST
        && fields.values("content-type").next().is_some_and(|kind| match kind.split_at_checked(KIND.len()) {
            Some((start, rest)) => {
                start.eq_ignore_ascii_case(KIND) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
            }
            None => false,
        })
}

/// `grpc-timeout`: how long its client waits. `None`: for as long as it takes, or what is said cannot be read.
pub fn timeout(fields: &impl Fields) -> Option<Duration> {
    let value = fields.values("grpc-timeout").next()?;
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The status of a call that ended like that. By the status of HTTP, as clients map it that get no other, but where there is a better word.
pub const fn status(outcome: Outcome) -> u8 {
    const UNKNOWN: u8 = 2;
    const DEADLINE_EXCEEDED: u8 = 4;
    const PERMISSION_DENIED: u8 = 7;
    const RESOURCE_EXHAUSTED: u8 = 8;
    const UNIMPLEMENTED: u8 = 12;
    const INTERNAL: u8 = 13;
    const UNAVAILABLE: u8 = 14;
    match outcome {
        Outcome::Deadline => DEADLINE_EXCEEDED,
        Outcome::Residency => PERMISSION_DENIED,
        Outcome::BodyTooLarge => RESOURCE_EXHAUSTED,
        _ => match outcome.status() {
            400 | 500 => INTERNAL,
            404 | 421 => UNIMPLEMENTED,
            429 | 502..=504 => UNAVAILABLE,
            _ => UNKNOWN,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};

    fn fields(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn calls_are_told_from_what_looks_like_them() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("Application/gRPC+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web+proto", false),
            ("application/grp", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_call(&Method::POST, &fields("content-type", kind)), expected, "{kind}");
        }
        assert!(!is_call(&Method::GET, &fields("content-type", "application/grpc")));
        assert!(!is_call(&Method::POST, &HeaderMap::new()));
    }

    #[test]
    fn timeouts_are_read_by_the_letter() {
        for (value, ms) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("15S", Some(15_000)),
            ("250m", Some(250)),
            ("99999999u", Some(99_999)),
            ("5000000n", Some(5)),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("1.5S", None),
            ("123456789m", None),
        ] {
            let read = timeout(&fields("grpc-timeout", value)).map(|timeout| timeout.as_millis());
            assert_eq!(read, ms, "{value:?}");
        }
    }

    #[test]
    fn every_answer_of_ours_has_a_status() {
        for outcome in Outcome::ALL {
            assert!((1..=16).contains(&status(outcome)), "{outcome:?}");
        }
        assert_eq!((status(Outcome::Unhealthy), status(Outcome::NoPath), status(Outcome::Deadline)), (14, 12, 4));
    }
}
