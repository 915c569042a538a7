//! From an HTTP/2 request's head to an HTTP/1.1 one.
//!
//! The library has refused what RFC 9113, 8.2 and 8.3 call malformed: odd names, CR, LF and NUL, fields that belong to one connection, pseudo-header fields that are
//! missing, repeated, late or unknown. What is left to look at is here; what is a matter of HTTP and not of its version is looked at by whoever
//! reads the head made here, as strictly as if a client had sent it.

use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::request::Parts;
use http::{HeaderValue, Method};

use super::field;
use super::receiving::Following;
use crate::proxy::engine::buffer::Scratch;

/// The request is malformed: nothing is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The head, and how its body is to be framed. `ends`: nothing follows it.
pub(super) fn head(request: &Parts, ends: bool) -> Result<(Scratch, Following), Malformed> {
    let mut out = Scratch::take();
    let uri = &request.uri;
    let authority = uri.authority().map(|authority| authority.as_str());
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b' ');
    match (uri.path_and_query(), authority) {
        (_, Some(authority)) if request.method == Method::CONNECT => out.extend_from_slice(authority.as_bytes()),
        (Some(target), _) => out.extend_from_slice(target.as_str().as_bytes()),
        (None, _) => return Err(Malformed),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(authority) = authority {
        field(&mut out, b"Host", authority.as_bytes());
    }
    for host in request.headers.get_all(HOST) {
        // Said twice it must be the same (RFC 9113, 8.3.1); two Hosts are refused by who reads this.
        if authority.is_none_or(|authority| !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())) {
            field(&mut out, b"Host", plain(host)?);
        }
    }
    let mut cookies = request.headers.get_all(COOKIE).iter();
    if let Some(first) = cookies.next() {
        // Clients may cut them into pieces, which HTTP/1.1 must not see (RFC 9113, 8.2.3).
        out.extend_from_slice(b"cookie: ");
        out.extend_from_slice(plain(first)?);
        for more in cookies {
            out.extend_from_slice(b"; ");
            out.extend_from_slice(plain(more)?);
        }
        out.extend_from_slice(b"\r\n");
    }
    for (name, value) in &request.headers {
        if name != HOST && name != COOKIE {
            field(&mut out, name.as_str().as_bytes(), plain(value)?);
        }
    }
    let following = match request.headers.contains_key(CONTENT_LENGTH) {
        true => Following::Length,
        false if ends => Following::Nothing,
        false => Following::Chunks,
    };
    if following == Following::Chunks {
        field(&mut out, b"Transfer-Encoding", b"chunked");
    }
    out.extend_from_slice(b"\r\n");
    Ok((out, following))
}

/// A value as it is. Blanks around one are malformed here, and would be lost on the way (RFC 9113, 8.2.1).
fn plain(value: &HeaderValue) -> Result<&[u8], Malformed> {
    let bytes = value.as_bytes();
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if is_blank(bytes.first()) || is_blank(bytes.last()) { Err(Malformed) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::engine::head::read_request;
    use http::{HeaderName, Request, Version};
    use proptest::prelude::*;

    fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().method(method).uri(uri).version(Version::HTTP_2);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn text(method: &str, uri: &str, fields: &[(&str, &str)], ends: bool) -> Result<(String, Following), Malformed> {
        let (bytes, following) = head(&parts(method, uri, fields), ends)?;
        Ok((String::from_utf8(bytes.to_vec()).unwrap(), following))
    }

    #[test]
    fn heads_are_written_as_http_1_1_writes_them() {
        let (head, following) =
            text("GET", "https://a.test/x?y=1", &[("accept", "*/*"), ("cookie", "a=1"), ("cookie", "b=2")], true)
                .unwrap();
        assert_eq!(head, "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\ncookie: a=1; b=2\r\naccept: */*\r\n\r\n");
        assert_eq!(following, Following::Nothing);
        let (head, following) = text("POST", "https://a.test/", &[], false).unwrap();
        assert_eq!(
            (head.as_str(), following),
            ("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n", Following::Chunks)
        );
        let (head, following) = text("POST", "https://a.test/", &[("content-length", "3")], false).unwrap();
        assert_eq!(
            (head.as_str(), following),
            ("POST / HTTP/1.1\r\nHost: a.test\r\ncontent-length: 3\r\n\r\n", Following::Length)
        );
        // The same host said twice is said once, and another one is for the reader to refuse.
        let (head, _) = text("GET", "https://a.test/", &[("host", "A.test")], true).unwrap();
        assert_eq!(head.matches("Host").count(), 1);
        let (head, _) = text("GET", "https://a.test/", &[("host", "b.test")], true).unwrap();
        assert_eq!(head.matches("Host").count(), 2);
        for value in [" a", "a ", "\ta"] {
            assert_eq!(text("GET", "https://a.test/", &[("x", value)], true), Err(Malformed), "{value:?}");
        }
    }

    proptest! {
        /// What is made is one head to the engine's own reader, with the same fields in it.
        #[test]
        fn what_is_written_is_read_back(
            fields in prop::collection::vec(("x-[a-z]{1,8}", prop::collection::vec(prop_oneof![33u8..=126, 128u8..=255], 0..20)), 0..12),
            path in "/[a-z0-9/?=&%.-]{0,30}",
        ) {
            let mut parts = parts("GET", &format!("https://a.test{path}"), &[]);
            for (name, value) in &fields {
                parts.headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
            }
            let (bytes, _) = head(&parts, true).unwrap();
            let (request, length) = read_request(&bytes, 100).unwrap().unwrap();
            prop_assert_eq!(length, bytes.len());
            prop_assert_eq!(request.target, path.as_bytes());
            let mut read: Vec<_> = request.fields().skip(1).map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec())).collect();
            let mut written = fields.clone();
            read.sort();
            written.sort();
            prop_assert_eq!(read, written);
        }
    }
}
