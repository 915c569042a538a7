//! Whose request it is, held against a second reading of the same fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderValue};
use meridian::config::Edge;
use meridian::geo::Canonical;
use meridian::proxy::client::{MAX_HOPS, client};

use crate::common::world::compile;

/// A peer that is believed, and one that is not.
const TRUSTED: &str = "10.0.0.1";
const STRANGER: &str = "198.51.100.9";

/// Edges that believe `X-Forwarded-For` and `Forwarded`.
fn edges() -> &'static [Arc<Edge>; 2] {
    static EDGES: OnceLock<[Arc<Edge>; 2]> = OnceLock::new();
    EDGES.get_or_init(|| {
        ["x-forwarded-for", "forwarded"].map(|header| {
            let trusted = "[\"10.0.0.0/8\", \"fd00::/8\", \"192.0.2.7\"]";
            let places = "[regions.home]\n[services.web.pools.home]\nendpoints = [\"127.0.0.1:9\"]\n";
            compile(&format!("[client_ip]\nheader = \"{header}\"\ntrusted = {trusted}\n{places}")).edge
        })
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The first byte chooses the field, the rest are its lines. Nothing that a stranger says counts, neither of himself nor to the left of what a
/// trusted peer says of him; and the address is the one that a second reading finds.
pub(crate) fn forwarding(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let is_forwarded = which & 1 == 1;
    let (edge, name) =
        (&edges()[usize::from(is_forwarded)], ["x-forwarded-for", "forwarded"][usize::from(is_forwarded)]);
    let lines: Vec<&[u8]> = rest.split(|byte| *byte == b'\n').collect();
    let mut fields = HeaderMap::new();
    for line in &lines {
        let Ok(value) = HeaderValue::from_bytes(line) else { return };
        fields.append(name, value);
    }
    let found = client(ip(STRANGER), edge, &fields);
    assert_eq!((found.address.ip(), found.peer_trusted), (ip(STRANGER), false));

    let hops = if is_forwarded { forwarded(&lines) } else { x_forwarded_for(&lines) };
    let found = client(ip(TRUSTED), edge, &fields);
    assert_eq!(found.address, Canonical::new(walked(edge, &hops)), "{hops:?}");
    assert!((found.peer, found.peer_trusted) == (ip(TRUSTED), true));

    // What the trusted peer adds of whom it saw stands, whatever that one wrote.
    let added = if is_forwarded { format!("for={STRANGER}") } else { STRANGER.to_owned() };
    fields.append(name, HeaderValue::from_str(&added).expect("a value"));
    assert_eq!(client(ip(TRUSTED), edge, &fields).address.ip(), ip(STRANGER));
}

/// From hops in the order of the fields.
fn walked(edge: &Edge, hops: &[Option<IpAddr>]) -> IpAddr {
    let nearest: Vec<_> = hops.iter().rev().take(MAX_HOPS).copied().collect();
    // As far as each one can be read and, but for the last one, is trusted.
    let readable = nearest.iter().position(Option::is_none).unwrap_or(nearest.len());
    let known: Vec<IpAddr> = nearest[..readable].iter().flatten().copied().collect();
    let stranger = known.iter().find(|address| !edge.trusted.iter().any(|network| network.contains(**address)));
    stranger.or(known.last()).copied().unwrap_or(ip(TRUSTED))
}

fn x_forwarded_for(lines: &[&[u8]]) -> Vec<Option<IpAddr>> {
    let whole = lines.join(&b',');
    let members = whole.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    members.filter(|member| !member.is_empty()).map(node).collect()
}

/// Character by character, as RFC 7239 has it.
fn forwarded(lines: &[&[u8]]) -> Vec<Option<IpAddr>> {
    let mut hops = Vec::new();
    for line in lines {
        let (mut pairs, mut pair) = (Vec::new(), Vec::new());
        let (mut quoted, mut escaped) = (false, false);
        for byte in line.iter().chain(b",") {
            // The end of the line ends a quoted text that nobody closed.
            let ends = std::ptr::eq(byte, &b","[0]);
            if !quoted || ends {
                match byte {
                    b';' | b',' => pairs.push(std::mem::take(&mut pair)),
                    _ => {}
                }
                if *byte == b',' {
                    hops.extend(hop(&std::mem::take(&mut pairs)));
                }
                if matches!(byte, b';' | b',') {
                    continue;
                }
            }
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ => {}
            }
            pair.push(*byte);
        }
    }
    hops
}

/// What one element says; `None`: it says nothing at all.
fn hop(pairs: &[Vec<u8>]) -> Option<Option<IpAddr>> {
    // An element of semicolons alone is one, of somebody who is not named.
    if pairs.len() == 1 && pairs[0].trim_ascii().is_empty() {
        return None;
    }
    let pairs = pairs.iter().map(|pair| pair.trim_ascii()).filter(|pair| !pair.is_empty());
    let mut values = Vec::new();
    for pair in pairs {
        let Some(equals) = pair.iter().position(|byte| *byte == b'=') else { return Some(None) };
        if pair[..equals].trim_ascii().eq_ignore_ascii_case(b"for") {
            values.push(pair[equals + 1..].trim_ascii());
        }
    }
    let [value] = values[..] else { return Some(None) };
    if value.len() < 2 || !value.starts_with(b"\"") || !value.ends_with(b"\"") {
        return Some(node(value));
    }
    let (mut plain, mut escaped) = (Vec::new(), false);
    for byte in &value[1..value.len() - 1] {
        escaped = *byte == b'\\' && !escaped;
        if !escaped {
            plain.push(*byte);
        }
    }
    Some(if escaped || plain.len() > 64 { None } else { node(&plain) })
}

/// An address, with a port or without.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_at(rest.find(']')?);
            (IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), &port[1..])
        }
        None => {
            let (address, port) = text.split_at(text.find(':')?);
            (IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), port)
        }
    };
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c));
    let is_good = match port.as_bytes() {
        [] => true,
        [b':', b'_', _, ..] => is_name(&port[2..]),
        [b':', digits @ ..] => (1..6).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    is_good.then(|| address.to_canonical())
}
