//! The grammars of names: hosts, path prefixes, endpoint addresses, header fields.
//!
//! Each returns the form that the rest of the program compares with, or why it is refused. The text itself is not repeated in
//! the errors: it may have come from a variable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::steering::fleet::EndpointAddress;
use crate::steering::route;

/// Why a name is refused: what was expected, and a hint.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) expected: &'static str,
    pub(crate) hint: Option<String>,
}

fn refused<T>(expected: &'static str, hint: impl Into<Option<&'static str>>) -> Result<T, Refused> {
    Err(Refused { expected, hint: hint.into().map(str::to_owned) })
}

/// A DNS name, lower case, without the trailing dot. `_` is allowed, as in many private zones.
fn dns_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let good = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits makes it a mistyped IPv4 address, never a name (WHATWG URL, "ends in a number").
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    (name.len() <= 253 && name.split('.').all(good) && !numeric).then(|| name.to_ascii_lowercase())
}

/// A region's, service's or PoP's name: 1 to 63 letters, digits, `-`, `_` and `.`.
pub(crate) fn is_plain(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// An entry of `hosts`: a name, `*.` and a name, or an address, in the router's form.
pub(crate) fn host_pattern(text: &str) -> Result<String, Refused> {
    const EXPECTED: &str = "a host such as `www.example.com` or `*.example.com`";
    if text == "*" {
        return refused(EXPECTED, "leave `hosts` out: the service then answers for every host");
    }
    if text.contains("://") || text.contains('/') {
        return refused(EXPECTED, "the host alone, without `https://` and path");
    }
    if !text.is_ascii() {
        return refused(EXPECTED, "write the name as it goes over the wire, with `xn--`");
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(v6) = bare.parse::<Ipv6Addr>() {
        return Ok(format!("[{v6}]"));
    }
    if text.contains(':') {
        return refused(EXPECTED, "leave the port out: hosts are compared without it");
    }
    if let Ok(v4) = text.parse::<Ipv4Addr>() {
        return Ok(v4.to_string());
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    match dns_name(name) {
        Some(name) if text.starts_with("*.") => Ok(format!("*.{name}")),
        Some(name) => Ok(name),
        None if name.contains('*') => refused(EXPECTED, "`*` stands for the first labels only, as in `*.example.com`"),
        None => refused(EXPECTED, None),
    }
}

/// A name that a certificate can be ordered for: one of DNS, in lower case.
pub(crate) fn certificate_name(text: &str) -> Result<String, Refused> {
    const EXPECTED: &str = "a host name such as `www.example.com`";
    if text.contains('*') {
        return refused(
            EXPECTED,
            "a wildcard is given for a record in DNS only, which meridian cannot write: name each host",
        );
    }
    if text.contains("://") || text.contains('/') {
        return refused(EXPECTED, "the host alone, without `https://` and path");
    }
    if !text.is_ascii() {
        return refused(EXPECTED, "write the name as it goes over the wire, with `xn--`");
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<Ipv6Addr>().is_ok() || text.parse::<Ipv4Addr>().is_ok() {
        return refused(EXPECTED, "meridian orders no certificates for addresses");
    }
    if text.contains(':') {
        return refused(EXPECTED, "leave the port out: certificates are for hosts");
    }
    match dns_name(text) {
        Some(name) if !name.contains('_') => Ok(name),
        _ => refused(EXPECTED, None),
    }
}

/// An entry of `paths`, in the router's form.
pub(crate) fn path_prefix(text: &str) -> Result<String, Refused> {
    const EXPECTED: &str = "a plain path such as `/` or `/api`";
    if !text.starts_with('/') {
        return refused(EXPECTED, "it begins with `/`");
    }
    if text.len() > 2048 {
        return refused("a path of at most 2048 bytes", None);
    }
    if text.contains(['?', '#']) {
        return refused(EXPECTED, "the path alone: queries are not compared");
    }
    if text.contains('*') {
        return refused(EXPECTED, "a path covers all that is below it: leave the `*` out");
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return refused(EXPECTED, "write other characters as they go over the wire, percent-encoded");
    }
    if text.contains('\\') || route::hides_delimiter(text) {
        return refused(EXPECTED, "`%2f`, `%5c`, `%00` and `\\` can never match");
    }
    match route::normalise(text) {
        None => refused(EXPECTED, "it leaves the root"),
        Some(plain) if plain == text => Ok(text.to_owned()),
        Some(plain) => Err(Refused {
            expected: EXPECTED,
            hint: Some(format!("requests are compared in their plain form: write `{plain}`")),
        }),
    }
}

/// `ip:port`, `[v6]:port` or `name:port`.
pub(crate) fn endpoint(text: &str) -> Result<EndpointAddress, Refused> {
    const EXPECTED: &str = "an address such as `10.0.1.10:8080`, `[2001:db8::1]:8080` or `origin.example:8080`";
    if text.contains("://") || text.contains('/') {
        return refused(EXPECTED, "host and port alone, without `http://` and path");
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address.ip() {
            _ if address.port() == 0 => refused(EXPECTED, "the port must be from 1 to 65535"),
            ip if ip.is_unspecified() || ip.is_multicast() || is_broadcast(ip) => {
                refused("an address that can be connected to", None)
            }
            _ => Ok(EndpointAddress::Socket(address)),
        };
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return refused(EXPECTED, "an IPv6 address stands in brackets before its port");
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return refused(EXPECTED, "the port is missing");
    };
    let Some(port) = port_number(port) else {
        return refused(EXPECTED, "the port must be from 1 to 65535");
    };
    match dns_name(host) {
        Some(host) => Ok(EndpointAddress::Name { host, port }),
        None => refused(EXPECTED, None),
    }
}

fn is_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
}

fn port_number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

/// The value of a Host field that we send: a name or an address, with or without a port. Kept as written.
pub(crate) fn host_field(text: &str) -> Result<String, Refused> {
    const EXPECTED: &str = "a host such as `www.example.com`, with or without a port";
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let good = match v6 {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok() || dns_name(host).is_some(),
    };
    if good && port.is_none_or(|port| port_number(port).is_some()) {
        Ok(text.to_owned())
    } else {
        refused(EXPECTED, None)
    }
}

/// A token as in RFC 9110: method and field names.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// Bytes of HTTP tokens (RFC 9110, 5.6.2).
pub(crate) static TOKEN: [bool; 256] = alphanumeric_and(b"!#$%&'*+-.^_`|~");

/// A byte of an HTTP token.
#[inline]
pub(crate) fn is_token_byte(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Letters, digits and those bytes: to be looked up where each byte of a head is.
pub(crate) const fn alphanumeric_and(others: &[u8]) -> [bool; 256] {
    let (mut table, mut byte) = ([false; 256], 0);
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
}

/// A field value that can be sent as it is: visible ASCII, spaces and tabs inside.
pub(crate) fn is_field_value(text: &str) -> bool {
    text.trim() == text && text.bytes().all(|b| b == b'\t' || b == b' ' || b.is_ascii_graphic())
}

/// A field value as rules may write it: bytes beyond ASCII too, control bytes never, blanks inside only (RFC 9110, 5.5).
pub(crate) fn is_field_text(text: &str) -> bool {
    !text.starts_with([' ', '\t'])
        && !text.ends_with([' ', '\t'])
        && text.bytes().all(|b| b == b'\t' || b >= b' ' && b != 127)
}

/// A request target in origin form.
pub(crate) fn is_target(text: &str) -> bool {
    text.starts_with('/') && text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, want) in [
            ("WWW.Example.com.", "www.example.com"),
            ("*.Example.com", "*.example.com"),
            ("localhost", "localhost"),
            ("a_b.example", "a_b.example"),
            ("192.0.2.1", "192.0.2.1"),
            ("::1", "[::1]"),
            ("[2001:DB8:0::1]", "[2001:db8::1]"),
        ] {
            assert_eq!(host_pattern(text).as_deref(), Ok(want), "{text}");
        }
        for bad in [
            "",
            "*",
            "*.",
            ".",
            "a..b",
            "*.*.a",
            "a.*.b",
            "www*.a",
            "http://a",
            "a/b",
            "a:80",
            "-a.b",
            "a-.b",
            "10.0.0.256",
            "bücher.example",
            "a b",
        ] {
            assert!(host_pattern(bad).is_err(), "{bad}");
        }
        assert!(host_pattern(&format!("{}.example", "a".repeat(64))).is_err());
    }

    #[test]
    fn paths() {
        for good in ["/", "/api", "/api/", "/~user/x", "/a%20b", "/caf%C3%A9", "/a//b", "/.well-known"] {
            assert_eq!(path_prefix(good).as_deref(), Ok(good));
        }
        for bad in [
            "", "api", "/a?b", "/a#b", "/a*", "/a b", "/é", "/%7Euser", "/a/../b", "/..", "/a%2Fb", "/a\\b", "/a%",
            "/%c3",
        ] {
            assert!(path_prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn endpoints() {
        for (text, want) in [
            ("10.0.1.10:8080", "10.0.1.10:8080"),
            ("[2001:DB8::1]:80", "[2001:db8::1]:80"),
            ("Origin.Example.:8080", "origin.example:8080"),
        ] {
            assert_eq!(endpoint(text).unwrap().to_string(), want);
        }
        for bad in [
            "",
            "10.0.1.10",
            "10.0.1.10:0",
            "10.0.1.10:65536",
            "10.0.1:80",
            "10.0.1.256:80",
            "2001:db8::1",
            "a b:80",
            ":80",
            "a:",
            "a:+80",
            "http://a:80",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "a:80/x",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn field_texts() {
        for good in ["a", "a b\tc", "max-age=0; é", "\u{ff}"] {
            assert!(is_field_text(good), "{good:?}");
        }
        for bad in [" a", "a ", "\ta", "a\t", "a\r\nb: c", "a\nb", "a\rb", "a\0b", "\x7f", "\x1b"] {
            assert!(!is_field_text(bad), "{bad:?}");
        }
    }

    #[test]
    fn host_fields() {
        for good in ["www.example.com", "a:8080", "[::1]", "[::1]:80", "192.0.2.1:80"] {
            assert!(host_field(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a:0", "a:", "[::1", "a\r\nb", "::1"] {
            assert!(host_field(bad).is_err(), "{bad}");
        }
    }
}
