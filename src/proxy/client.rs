//! Whom to believe: who the client is, from the connecting peer and what trusted peers say.
//!
//! Trust is by the connecting peer. From an untrusted one nothing is believed. From a trusted one the configured list is walked
//! from the right, where each trusted hop vouches for the one before it; the first address that is not trusted is the client.
//! Trust is decided on the address as it came, with only IPv4-mapped IPv6 unwrapped: a 6to4 or Teredo address carries
//! whatever IPv4 address its owner likes, so unwrapping those first would let a stranger pass for a trusted hop. The result is
//! canonical, for look-ups.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arrayvec::ArrayVec;

use crate::config::{Edge, Forwarding};
use crate::geo::Canonical;
use crate::proxy::Fields;
use crate::text::dotted_quad;

/// The most hops looked at: longer lists are cut on the left, where the least trusted entries stand.
pub const MAX_HOPS: usize = 100;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The client, canonical.
    pub address: Canonical,
    /// The connecting peer, IPv4-mapped addresses unwrapped.
    pub peer: IpAddr,
    /// Whether that peer's forwarding fields are believed.
    pub peer_trusted: bool,
}

/// Who the client of a request is.
pub fn client(peer: IpAddr, edge: &Edge, fields: &impl Fields) -> Client {
    let peer = peer.to_canonical();
    let peer_trusted = edge.trusts(peer);
    let address = match edge.forwarding {
        _ if !peer_trusted => peer,
        Forwarding::XForwardedFor => walk(peer, edge, x_forwarded_for(fields)),
        Forwarding::Forwarded => walk(peer, edge, forwarded(fields)),
    };
    Client { address: Canonical::new(address), peer, peer_trusted }
}

/// From the nearest hop to the farthest, over trusted ones. `None` is a hop that cannot be read.
fn walk(peer: IpAddr, edge: &Edge, hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
    let mut last_good = peer;
    for hop in hops.take(MAX_HOPS) {
        let Some(address) = hop else { return last_good };
        last_good = address;
        if !edge.trusts(address) {
            break;
        }
    }
    last_good
}

/// Keeps the last [`MAX_HOPS`] of what is pushed.
fn push_last<'a>(list: &mut ArrayVec<&'a [u8], MAX_HOPS>, item: &'a [u8]) {
    if list.is_full() {
        list.remove(0);
    }
    list.push(item);
}

/// The hops of `X-Forwarded-For`, nearest first.
fn x_forwarded_for(fields: &impl Fields) -> impl Iterator<Item = Option<IpAddr>> {
    let mut lines = fields.values("x-forwarded-for").rev().take(MAX_HOPS);
    let mut rest = None;
    std::iter::from_fn(move || {
        loop {
            let line = match rest.take() {
                Some(line) => line,
                None => lines.next()?,
            };
            let member = match memchr::memrchr(b',', line) {
                Some(comma) => {
                    rest = Some(&line[..comma]);
                    &line[comma + 1..]
                }
                None => line,
            };
            match member.trim_ascii() {
                b"" => {}
                member => return Some(node(member)),
            }
        }
    })
}

/// The hops of `Forwarded`, nearest first. Quoted strings may hold commas, so lines are read from the left.
fn forwarded(fields: &impl Fields) -> impl Iterator<Item = Option<IpAddr>> {
    let mut elements: ArrayVec<&[u8], MAX_HOPS> = ArrayVec::new();
    for line in fields.values("forwarded") {
        for element in split_unquoted(line, b',') {
            push_last(&mut elements, element);
        }
    }
    elements.into_iter().rev().map(for_of)
}

/// The address that an element's `for` names (RFC 7239, 4 and 6); `None` when there is none, or two.
fn for_of(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in split_unquoted(element, b';') {
        let mut parts = pair.splitn(2, |byte| *byte == b'=');
        let (name, value) = (parts.next()?, parts.next()?);
        if name.trim_ascii().eq_ignore_ascii_case(b"for") && found.replace(value.trim_ascii()).is_some() {
            return None;
        }
    }
    match found? {
        [b'"', inner @ .., b'"'] => {
            let mut plain: ArrayVec<u8, 64> = ArrayVec::new();
            let mut bytes = inner.iter();
            while let Some(byte) = bytes.next() {
                let byte = if *byte == b'\\' { bytes.next()? } else { byte };
                plain.try_push(*byte).ok()?;
            }
            node(&plain)
        }
        token => node(token),
    }
}

/// The parts of `text` between separators outside quoted strings, trimmed, empty ones left out.
fn split_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let (mut quoted, mut escaped) = (false, false);
        let end = text.iter().position(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                byte if *byte == separator && !quoted => return true,
                _ => {}
            }
            false
        });
        let Some(end) = end else { return Some(text) };
        rest = Some(&text[end + 1..]);
        Some(&text[..end])
    })
    .map(<[u8]>::trim_ascii)
    .filter(|part| !part.is_empty())
}

/// An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
/// `None` for everything else: `unknown`, obfuscated `_names`, zones, rubbish.
fn node(text: &[u8]) -> Option<IpAddr> {
    if let Some(v4) = dotted_quad(text) {
        return Some(v4.into());
    }
    let text = std::str::from_utf8(text).ok()?;
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let port_is_good = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return address.parse::<Ipv6Addr>().ok().filter(|_| port_is_good).map(|v6| IpAddr::V6(v6).to_canonical());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = text.split_once(':')?;
    address.parse::<Ipv4Addr>().ok().filter(|_| is_port(port)).map(IpAddr::V4)
}

/// A decimal port, or an obfuscated one (RFC 7239, 6.2).
fn is_port(text: &str) -> bool {
    let obfuscated =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let decimal = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    decimal || text.strip_prefix('_').is_some_and(obfuscated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::tests::edge;
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    fn fields(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for line in lines {
            map.append(name, HeaderValue::from_str(line).unwrap());
        }
        map
    }

    fn ask(forwarding: Forwarding, peer: &str, lines: &[&str]) -> String {
        let mut edge = edge();
        edge.forwarding = forwarding;
        edge.trusted = ["10.0.0.0/8", "fd00::/8", "192.0.2.7"].iter().map(|p| p.parse().unwrap()).collect();
        let name = if forwarding == Forwarding::Forwarded { "forwarded" } else { "x-forwarded-for" };
        client(peer.parse().unwrap(), &edge, &fields(name, lines)).address.ip().to_string()
    }

    #[test]
    fn x_forwarded_for_is_walked_from_the_right() {
        let rows: &[(&str, &[&str], &str)] = &[
            // Untrusted peers are the client, whatever they say.
            ("198.51.100.1", &["1.1.1.1"], "198.51.100.1"),
            ("198.51.100.1", &[], "198.51.100.1"),
            // A trusted peer without the field is the client.
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("::ffff:10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            // The first untrusted from the right; what stands left of it may be forged.
            ("10.0.0.1", &["9.9.9.9, 1.1.1.1, 10.2.3.4"], "1.1.1.1"),
            ("10.0.0.1", &["9.9.9.9", "1.1.1.1", "10.2.3.4 ,192.0.2.7"], "1.1.1.1"),
            // All trusted: the leftmost.
            ("10.0.0.1", &["10.9.9.9, 10.1.1.1"], "10.9.9.9"),
            // A hop that cannot be read: the last good one.
            ("10.0.0.1", &["1.1.1.1, unknown, 10.1.1.1"], "10.1.1.1"),
            ("10.0.0.1", &["1.1.1.1, 1.1.1.256"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, fe80::1%eth0"], "10.0.0.1"),
            // Ports, brackets, empty members.
            ("10.0.0.1", &["1.1.1.1:4711,, "], "1.1.1.1"),
            ("10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]80"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1:99999999"], "10.0.0.1"),
            ("fd00::1", &["::ffff:1.2.3.4"], "1.2.3.4"),
            // Canonical at the end, but a 6to4 wrapping of a trusted address is not trusted.
            ("10.0.0.1", &["1.1.1.1, 2002:a00:1::1"], "10.0.0.1"),
            ("2002:a00:1::1", &["1.1.1.1"], "10.0.0.1"),
        ];
        for (peer, lines, expected) in rows {
            assert_eq!(ask(Forwarding::XForwardedFor, peer, lines), *expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        let rows: &[(&[&str], &str)] = &[
            (&["for=1.1.1.1"], "1.1.1.1"),
            (&["For=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17"),
            (&["for=1.1.1.1;proto=http;by=203.0.113.43"], "1.1.1.1"),
            (&["proto=https;FOR=\"1.1.1.1:80\" ; by=_x"], "1.1.1.1"),
            (&["for=9.9.9.9, for=1.1.1.1, for=10.1.1.1"], "1.1.1.1"),
            (&["for=9.9.9.9, for=1.1.1.1", "for=10.1.1.1"], "1.1.1.1"),
            (&["for=1.1.1.1, for=_hidden, for=10.1.1.1"], "10.1.1.1"),
            (&["for=1.1.1.1, for=unknown"], "10.0.0.1"),
            (&["for=\"1.1.1.1:_port\""], "1.1.1.1"),
            // Commas, semicolons and escapes inside quotes separate nothing.
            (&["for=1.1.1.1;x=\"a,b;for=2.2.2.2\\\",\""], "1.1.1.1"),
            (&["for=\"1.1.1\\.1\""], "1.1.1.1"),
            // No `for`, two of them, an open quote.
            (&["for=1.1.1.1, proto=http"], "10.0.0.1"),
            (&["for=1.1.1.1;for=2.2.2.2"], "10.0.0.1"),
            (&["for=\"1.1.1.1, for=2.2.2.2"], "10.0.0.1"),
        ];
        for (lines, expected) in rows {
            assert_eq!(ask(Forwarding::Forwarded, "10.0.0.1", lines), *expected, "{lines:?}");
        }
    }

    #[test]
    fn endless_lists_cost_bounded_work() {
        let long = vec!["10.0.0.9"; 5_000].join(", ");
        assert_eq!(ask(Forwarding::XForwardedFor, "10.0.0.1", &[&format!("1.1.1.1, {long}")]), "10.0.0.9");
        let long = vec!["for=10.0.0.9"; 5_000].join(", ");
        assert_eq!(ask(Forwarding::Forwarded, "10.0.0.1", &[&format!("for=1.1.1.1, {long}")]), "10.0.0.9");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(lines in prop::collection::vec(prop::collection::vec(32u8..=255, 0..60), 0..5)) {
            let mut edge = edge();
            edge.trusted = vec!["0.0.0.0/0".parse().unwrap()];
            for (forwarding, name) in [(Forwarding::Forwarded, "forwarded"), (Forwarding::XForwardedFor, "x-forwarded-for")] {
                edge.forwarding = forwarding;
                let mut map = HeaderMap::new();
                for line in &lines {
                    if let Ok(value) = HeaderValue::from_bytes(line) {
                        map.append(name, value);
                    }
                }
                client("10.0.0.1".parse().unwrap(), &edge, &map);
            }
        }

        #[test]
        fn what_an_untrusted_client_writes_never_counts(forged in "[ -~]{0,60}") {
            let line = format!("{forged}, 1.1.1.1, 10.1.1.1");
            prop_assert_eq!(ask(Forwarding::XForwardedFor, "10.0.0.1", &[&line]), "1.1.1.1");
        }
    }
}
