//! Canonical client addresses, special-purpose ranges and network prefixes.
//!
//! An IPv4 address can arrive wrapped in IPv6 in five ways. All look-ups, pins and draws use the address
//! inside, as gdnsd does, so that a client behind NAT64 goes where it goes over IPv4. `Canonical` is the proof that
//! it was unwrapped. Must not know places.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address with every known wrapping of IPv4 in IPv6 removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Canonical(IpAddr);

impl Canonical {
    /// Unwraps IPv4-mapped (`::ffff:0:0/96`), SIIT (`::ffff:0:0:0/96`), NAT64 (`64:ff9b::/96`),
    /// Teredo (`2001::/32`, the client's address is the last 32 bits inverted) and 6to4 (`2002::/16`).
    pub fn new(address: IpAddr) -> Canonical {
        Canonical(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => embedded_v4(v6).map_or(address, IpAddr::V4),
        })
    }

    /// The address.
    pub fn ip(self) -> IpAddr {
        self.0
    }

    /// The first address of the network of a [`Canonical::network_key`]; `None`: it is none.
    pub fn of_network_key(key: [u8; 8]) -> Option<Canonical> {
        match key {
            [4, a, b, c, ..] => Some(Canonical::new(IpAddr::V4([a, b, c, 0].into()))),
            [6, _, bits @ ..] => {
                let mut octets = [0; 16];
                octets[..6].copy_from_slice(&bits);
                Some(Canonical::new(IpAddr::V6(octets.into())))
            }
            _ => None,
        }
    }

    /// The client's network as a key for draws: the first 24 bits of IPv4, the first 48 of IPv6, in the form
    /// (family, bits): the two families never collide.
    pub fn network_key(self) -> [u8; 8] {
        match self.0 {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                [4, a, b, c, 0, 0, 0, 0]
            }
            IpAddr::V6(v6) => {
                let o = v6.octets();
                [6, 0, o[0], o[1], o[2], o[3], o[4], o[5]]
            }
        }
    }
}

fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = u128::from(v6);
    let low = bits as u32;
    match bits >> 32 {
        // ::ffff:a.b.c.d, ::ffff:0:a.b.c.d and 64:ff9b::a.b.c.d
        0xffff | 0xffff_0000 | 0x0064_ff9b_0000_0000_0000_0000 => return Some(Ipv4Addr::from(low)),
        _ => {}
    }
    if bits >> 96 == 0x2001_0000 {
        return Some(Ipv4Addr::from(!low));
    }
    if bits >> 112 == 0x2002 {
        return Some(Ipv4Addr::from((bits >> 80) as u32));
    }
    None
}

/// Special-purpose ranges (IANA special-purpose registries, RFC 6890 and its updates): not globally reachable
/// unicast. Such an address, when nothing lists it, is unknown and labelled `special`.
pub fn is_special(address: Canonical) -> bool {
    match address.ip() {
        IpAddr::V4(v4) => SPECIAL_V4.iter().any(|p| p.contains(IpAddr::V4(v4))),
        IpAddr::V6(v6) => SPECIAL_V6.iter().any(|p| p.contains(IpAddr::V6(v6))),
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u8) -> Prefix {
    Prefix { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), len }
}

const fn v6(a: u16, b: u16, c: u16, d: u16, len: u8) -> Prefix {
    Prefix { address: IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)), len }
}

pub(super) const SPECIAL_V4: [Prefix; 14] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];

pub(super) const SPECIAL_V6: [Prefix; 9] = [
    // Unspecified, loopback and the deprecated IPv4-compatible block.
    v6(0, 0, 0, 0, 96),
    v6(0x64, 0xff9b, 1, 0, 48),
    v6(0x100, 0, 0, 0, 64),
    v6(0x2001, 0xdb8, 0, 0, 32),
    v6(0x3fff, 0, 0, 0, 20),
    v6(0x5f00, 0, 0, 0, 16),
    v6(0xfc00, 0, 0, 0, 7),
    v6(0xfe80, 0, 0, 0, 10),
    v6(0xff00, 0, 0, 0, 8),
];

/// A network: an address whose host bits are zero, and a length. Text form `192.0.2.0/24` or `2001:db8::/32`; a bare
/// address is a network of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// From an address and a length in bits. Errors say what was expected: the length in range and no host bits set.
    pub fn new(address: IpAddr, len: u8) -> Result<Prefix, String> {
        let (bits, max) = match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
            IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        if len > max {
            return Err(format!("prefix length {len} is out of range; expected 0 to {max}"));
        }
        if bits & !mask(len) != 0 {
            let base = Prefix { address, len }.first();
            return Err(format!("`{address}/{len}` has bits set past its length; did you mean `{base}/{len}`?"));
        }
        Ok(Prefix { address, len })
    }

    /// The network's base address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits of the address's own family.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// Whether `address` is of the same family and inside.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (u32::from(a) ^ u32::from(b)).checked_shr(32 - u32::from(self.len)).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (u128::from(a) ^ u128::from(b)).checked_shr(128 - u32::from(self.len)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// The first address of the network.
    pub fn first(self) -> IpAddr {
        match self.address {
            IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from(u32::from(a) & (mask(self.len) >> 96) as u32)),
            IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a) & mask(self.len))),
        }
    }

    /// The last address of the network.
    pub fn last(self) -> IpAddr {
        match self.address {
            IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from(u32::from(a) | (!mask(self.len) >> 96) as u32)),
            IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a) | !mask(self.len))),
        }
    }
}

/// The `len` highest bits of 128.
fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

impl FromStr for Prefix {
    type Err = String;

    /// Parses `address/len` or a bare address.
    fn from_str(text: &str) -> Result<Prefix, String> {
        let expected = || format!("`{text}` is not a network; expected `192.0.2.0/24` or `2001:db8::/32`");
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| expected())?;
        let len = match len {
            Some(len) if len.bytes().all(|b| b.is_ascii_digit()) => len.parse().map_err(|_| expected())?,
            Some(_) => return Err(expected()),
            None if address.is_ipv4() => 32,
            None => 128,
        };
        Prefix::new(address, len)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        Canonical::new(text.parse().unwrap()).ip().to_string()
    }

    #[test]
    fn every_wrapping_is_removed() {
        for (wrapped, inner) in [
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::ffff:0:192.0.2.1", "192.0.2.1"),
            ("64:ff9b::192.0.2.1", "192.0.2.1"),
            ("2001:0:41d0:e6de::3fff:fdfe", "192.0.2.1"),
            ("2002:c000:201::1", "192.0.2.1"),
            ("64:ff9b:1::192.0.2.1", "64:ff9b:1::c000:201"),
            ("::192.0.2.1", "::c000:201"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(canonical(wrapped), inner, "{wrapped}");
        }
    }

    #[test]
    fn prefixes_contain_their_bounds_and_nothing_else() {
        let p: Prefix = "198.18.0.0/15".parse().unwrap();
        assert_eq!((p.first().to_string(), p.last().to_string()), ("198.18.0.0".into(), "198.19.255.255".into()));
        assert!(p.contains(p.first()) && p.contains(p.last()));
        assert!(!p.contains("198.20.0.0".parse().unwrap()) && !p.contains("::1".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Prefix>().unwrap().contains("255.255.255.255".parse().unwrap()));
        assert!("::/0".parse::<Prefix>().unwrap().contains("ffff::1".parse().unwrap()));
        for bad in ["10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "x", "::1/64"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn special_addresses_are_named() {
        for text in ["10.1.2.3", "100.127.0.1", "::1", "fe80::1", "2001:db8::1", "198.51.100.7", "fc00::1"] {
            assert!(is_special(Canonical::new(text.parse().unwrap())), "{text}");
        }
        for text in ["8.8.8.8", "100.128.0.1", "2606:4700::1", "198.20.0.1"] {
            assert!(!is_special(Canonical::new(text.parse().unwrap())), "{text}");
        }
    }
}
