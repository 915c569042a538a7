//! The header by which a load balancer says whose connection it passes on: PROXY protocol, version 1 (a line) and 2 (binary).
//!
//! After HAProxy's specification (proxy-protocol.txt, 2020/03/05). Read on listeners and written to endpoints. Only the source is taken: nothing here goes by the destination. What the
//! balancer says for itself (`LOCAL`, its health checks) or cannot say (`UNKNOWN`, `UNSPEC`, Unix sockets) leaves the connection with its real peer.
//! Whatever the specification does not allow is refused, never guessed at: a header that is read in two ways names two clients.
//!
//! Must not know who is trusted; bytes in, words out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::text::dotted_quad;

/// How a header of version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, and what it says: whose connection it is, or that it is the sender's own.
const PROXY: u8 = 0x21;
const LOCAL: u8 = 0x20;

/// The longest header of version 1, its line end included.
const LONGEST_LINE: usize = 107;

/// The longest header of version 2: addresses, and as much of further fields as anybody sends.
const LONGEST: usize = 4096;

/// Which of the two is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line.
    V1,
    /// Binary.
    V2,
}

/// A header for a connection from `source` to `destination`; of two families, IPv4 is written as IPv6.
pub fn write(version: Version, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let is_v4 = |socket: SocketAddr| match socket.ip().to_canonical() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    };
    let mapped = |socket: SocketAddr| match socket.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let ips = is_v4(source).zip(is_v4(destination)).ok_or_else(|| (mapped(source), mapped(destination)));
    let (from, to) = (source.port(), destination.port());
    match version {
        Version::V1 => match ips {
            Ok((source, destination)) => format!("PROXY TCP4 {source} {destination} {from} {to}\r\n"),
            // As the specification wants them: hexadecimal all through.
            Err((source, destination)) => {
                format!("PROXY TCP6 {} {} {from} {to}\r\n", hexadecimal(source), hexadecimal(destination))
            }
        }
        .into_bytes(),
        Version::V2 => {
            let (family, addresses) = match ips {
                Ok((source, destination)) => (0x11, [source.octets(), destination.octets()].concat()),
                Err((source, destination)) => (0x21, [source.octets(), destination.octets()].concat()),
            };
            let length = addresses.len() as u16 + 4;
            let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
            [&SIGNATURE[..], &[PROXY, family], &length.to_be_bytes(), &addresses, &ports].concat()
        }
    }
}

/// A header for a connection of our own, which is nobody else's: a probe.
pub fn write_own(version: Version) -> Vec<u8> {
    match version {
        Version::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        Version::V2 => [&SIGNATURE[..], &[LOCAL, 0, 0, 0]].concat(),
    }
}

fn hexadecimal(ip: Ipv6Addr) -> String {
    match ip.to_ipv4_mapped() {
        Some(_) => ip.segments().map(|segment| format!("{segment:x}")).join(":"),
        None => ip.to_string(),
    }
}

/// A header that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Whose connection it is; `None`: the peer's own.
    pub source: Option<SocketAddr>,
    /// Bytes of it. What follows is the connection's.
    pub length: usize,
}

/// What is there is no such header, and cannot become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads the header at the front of `bytes`; `None`: all of them belong to one that is not whole yet.
pub fn read(bytes: &[u8]) -> Result<Option<ProxyHeader>, Malformed> {
    match bytes.first() {
        None => Ok(None),
        Some(b'P') => read_line(bytes),
        Some(_) => read_binary(bytes),
    }
}

fn read_line(bytes: &[u8]) -> Result<Option<ProxyHeader>, Malformed> {
    const BEGIN: &[u8] = b"PROXY ";
    let known = bytes.len().min(BEGIN.len());
    if bytes[..known] != BEGIN[..known] {
        return Err(Malformed);
    }
    let within = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = memchr::memchr(b'\n', within) else {
        return if bytes.len() < LONGEST_LINE { Ok(None) } else { Err(Malformed) };
    };
    let line = within[..end].strip_suffix(b"\r").ok_or(Malformed)?;
    let said = line.get(BEGIN.len()..).ok_or(Malformed)?;
    let mut words = said.split(|byte| *byte == b' ');
    let family = words.next();
    let source = match family {
        // What follows must be ignored, says the specification.
        Some(b"UNKNOWN") => None,
        Some(b"TCP4" | b"TCP6") => {
            let address: fn(&[u8]) -> Option<IpAddr> = match family {
                Some(b"TCP4") => |word| dotted_quad(word).map(IpAddr::V4),
                _ => |word| std::str::from_utf8(word).ok()?.parse().ok().map(IpAddr::V6),
            };
            let mut next = || words.next().ok_or(Malformed);
            let (source, destination) = (address(next()?), address(next()?));
            let (port, to_port) = (port(next()?), port(next()?));
            if words.next().is_some() || destination.is_none() || to_port.is_none() {
                return Err(Malformed);
            }
            Some(SocketAddr::new(source.ok_or(Malformed)?, port.ok_or(Malformed)?))
        }
        _ => return Err(Malformed),
    };
    Ok(Some(ProxyHeader { source, length: end + 1 }))
}

/// A decimal port without leading zeros.
fn port(word: &[u8]) -> Option<u16> {
    let plain = word.iter().all(u8::is_ascii_digit) && (word.len() == 1 || !word.starts_with(b"0"));
    std::str::from_utf8(word).ok().filter(|_| plain)?.parse().ok()
}

fn read_binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, Malformed> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Err(Malformed);
    }
    let Some(&[command, family, high, low]) = bytes.get(12..).and_then(|rest| rest.first_chunk::<4>()) else {
        return Ok(None);
    };
    let length = 16 + usize::from(u16::from_be_bytes([high, low]));
    let is_local = match command {
        LOCAL => true,
        PROXY => false,
        _ => return Err(Malformed),
    };
    if length > LONGEST {
        return Err(Malformed);
    }
    // Known before all of it is there, so that nobody waits for what can only be refused.
    let least = match family {
        _ if is_local => 16,
        // Unspecified.
        0x00 => 16,
        // TCP over IPv4 and IPv6: two addresses and two ports.
        0x11 => 16 + 12,
        0x21 => 16 + 36,
        // A stream over a Unix socket: two paths.
        0x31 => 16 + 216,
        // Datagrams do not come by a connection, and there are no other families.
        _ => return Err(Malformed),
    };
    if length < least {
        return Err(Malformed);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let source = match family {
        0x11 if !is_local => {
            header[16..].first_chunk::<4>().map(|ip| SocketAddr::from((Ipv4Addr::from(*ip), port(24))))
        }
        0x21 if !is_local => {
            header[16..].first_chunk::<16>().map(|ip| SocketAddr::from((Ipv6Addr::from(*ip), port(48))))
        }
        _ => None,
    };
    Ok(Some(ProxyHeader { source, length }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    fn socket() -> impl Strategy<Value = SocketAddr> {
        let mapped = any::<Ipv4Addr>().prop_map(|ip| IpAddr::V6(ip.to_ipv6_mapped()));
        (prop_oneof![any::<IpAddr>(), mapped], any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    /// Whose connection it is, or that there is no header.
    type Expected = Result<Option<&'static str>, Malformed>;

    fn source(bytes: &[u8]) -> Result<Option<String>, Malformed> {
        let header = read(bytes)?.expect("whole");
        Ok(header.source.map(|source| source.to_string()))
    }

    #[test]
    fn lines_are_read_as_the_specification_writes_them() {
        let rows: &[(&str, Expected)] = &[
            ("PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n", Ok(Some("198.51.100.22:35646"))),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Ok(Some("255.255.255.255:65535"))),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 35646 0\r\n", Ok(Some("[2001:db8::1]:35646"))),
            ("PROXY UNKNOWN\r\n", Ok(None)),
            ("PROXY UNKNOWN ffff::1 whatever 1 2\r\n", Ok(None)),
            // Not as the specification writes them.
            ("PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\n", Err(Malformed)),
            ("PROXY TCP4 198.51.100.22 203.0.113.7 35646\r\n", Err(Malformed)),
            ("PROXY TCP4 198.51.100.22 203.0.113.7 35646 80 1\r\n", Err(Malformed)),
            ("PROXY TCP4  198.51.100.22 203.0.113.7 35646 80\r\n", Err(Malformed)),
            ("PROXY TCP4 198.51.100.022 203.0.113.7 35646 80\r\n", Err(Malformed)),
            ("PROXY TCP4 198.51.100.22 203.0.113.7 035646 80\r\n", Err(Malformed)),
            ("PROXY TCP4 198.51.100.22 203.0.113.7 +5646 80\r\n", Err(Malformed)),
            ("PROXY TCP4 198.51.100.22 203.0.113.7 65536 80\r\n", Err(Malformed)),
            ("PROXY TCP4 2001:db8::1 2001:db8::2 35646 80\r\n", Err(Malformed)),
            ("PROXY TCP6 198.51.100.22 203.0.113.7 35646 80\r\n", Err(Malformed)),
            ("PROXY TCP6 fe80::1%eth0 2001:db8::2 35646 80\r\n", Err(Malformed)),
            ("PROXY UDP4 198.51.100.22 203.0.113.7 35646 80\r\n", Err(Malformed)),
            ("PROXY\r\n", Err(Malformed)),
            ("PROXY \r\n", Err(Malformed)),
            ("Proxy UNKNOWN\r\n", Err(Malformed)),
            ("GET / HTTP/1.1\r\n", Err(Malformed)),
            ("POST / HTTP/1.1\r\n", Err(Malformed)),
        ];
        for (line, expected) in rows {
            assert_eq!(source(line.as_bytes()), expected.map(|source| source.map(str::to_owned)), "{line:?}");
        }
    }

    #[test]
    fn binary_headers_are_read_as_the_specification_writes_them() {
        let v4 = [198, 51, 100, 22, 203, 0, 113, 7, 0x8b, 0x3e, 0, 80];
        let with_fields = [&v4[..], &[0x02, 0, 3, b'a', b'.', b'b']].concat();
        let mut v6 = [0; 36];
        (v6[0], v6[1], v6[15], v6[33]) = (0x20, 0x01, 9, 7);
        let rows: &[(Vec<u8>, Expected)] = &[
            (binary(0x21, 0x11, &v4), Ok(Some("198.51.100.22:35646"))),
            (binary(0x21, 0x11, &with_fields), Ok(Some("198.51.100.22:35646"))),
            (binary(0x21, 0x21, &v6), Ok(Some("[2001::9]:7"))),
            (binary(0x20, 0x00, &[]), Ok(None)),
            (binary(0x20, 0x11, &v4), Ok(None)),
            (binary(0x21, 0x00, &[1, 2, 3]), Ok(None)),
            (binary(0x21, 0x31, &[0; 216]), Ok(None)),
            (binary(0x21, 0x11, &v4[..11]), Err(Malformed)),
            (binary(0x21, 0x21, &v6[..35]), Err(Malformed)),
            (binary(0x21, 0x31, &[0; 215]), Err(Malformed)),
            (binary(0x21, 0x12, &v4), Err(Malformed)),
            (binary(0x21, 0x41, &v4), Err(Malformed)),
            (binary(0x22, 0x11, &v4), Err(Malformed)),
            (binary(0x11, 0x11, &v4), Err(Malformed)),
            (binary(0x21, 0x11, &[0; 4081]), Err(Malformed)),
        ];
        for (bytes, expected) in rows {
            assert_eq!(source(bytes), expected.map(|source| source.map(str::to_owned)), "{bytes:?}");
        }
    }

    proptest! {
        /// A header cut anywhere is waited for, whatever follows one is not its own, and no bytes make it panic.
        #[test]
        fn a_header_ends_where_it_ends(
            ip in any::<[u8; 4]>(), port in any::<u16>(), is_line in any::<bool>(), extra in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let client = SocketAddr::from((Ipv4Addr::from(ip), port));
            let header = match is_line {
                true => format!("PROXY TCP4 {} 192.0.2.1 {port} 80\r\n", client.ip()).into_bytes(),
                false => binary(0x21, 0x11, &[&ip[..], &[192, 0, 2, 1], &port.to_be_bytes(), &[0, 80], &extra].concat()),
            };
            for end in 0..header.len() {
                prop_assert_eq!(read(&header[..end]), Ok(None));
            }
            let followed = [&header[..], &extra].concat();
            prop_assert_eq!(read(&followed), Ok(Some(ProxyHeader { source: Some(client), length: header.len() })));
        }

        /// Whatever is written is read as what it was written for.
        #[test]
        fn what_is_written_is_read(source in socket(), destination in socket(), binary in any::<bool>()) {
            let version = if binary { Version::V2 } else { Version::V1 };
            let bytes = write(version, source, destination);
            let header = read(&bytes).unwrap().unwrap();
            prop_assert_eq!(header.length, bytes.len());
            let read = header.source.unwrap();
            prop_assert_eq!((read.ip().to_canonical(), read.port()), (source.ip().to_canonical(), source.port()));
            prop_assert!(binary || bytes.len() <= LONGEST_LINE);
            let own = write_own(version);
            prop_assert_eq!(super::read(&own), Ok(Some(ProxyHeader { source: None, length: own.len() })));
        }

        #[test]
        fn any_bytes_are_read(begin in 0..3usize, rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let begin: &[u8] = [b"PROXY TCP4 ", &SIGNATURE[..], b""][begin];
            let bytes = [begin, &rest].concat();
            if let Ok(Some(header)) = read(&bytes) {
                prop_assert!(header.length <= bytes.len());
            }
        }
    }
}
