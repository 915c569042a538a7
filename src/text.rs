//! Numbers and addresses as text, appended to bytes: what a request writes several times, without the formatter's machinery.
//!
//! Must not know what the text is for.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use arrayvec::ArrayVec;

/// Decimal digits.
pub fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Three decimal digits, of a number below 1,000.
pub fn three_digits(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&[number / 100 % 10, number / 10 % 10, number % 10].map(|digit| b'0' + digit as u8));
}

/// The hexadecimal digit of the low four bits.
pub fn hexadecimal_digit(of: u8) -> u8 {
    b"0123456789abcdef"[usize::from(of & 15)]
}

/// 32 hexadecimal digits.
pub fn hexadecimal(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        pair.copy_from_slice(&[hexadecimal_digit(byte >> 4), hexadecimal_digit(byte)]);
    }
    digits
}

/// An address as text, as `Display` writes it.
#[derive(Debug)]
pub struct Address(ArrayVec<u8, LONGEST>);

/// The longest address: eight groups, or six and a dotted quad, and what is between them.
const LONGEST: usize = 45;

impl Address {
    /// That address.
    pub fn of(address: IpAddr) -> Address {
        let mut text = ArrayVec::new();
        match address {
            IpAddr::V4(v4) => dotted(&mut text, v4),
            // It fits.
            IpAddr::V6(v6) => drop(write!(text, "{v6}")),
        }
        Address(text)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn dotted(text: &mut ArrayVec<u8, LONGEST>, address: Ipv4Addr) {
    for (index, octet) in address.octets().into_iter().enumerate() {
        if index > 0 {
            text.push(b'.');
        }
        if octet >= 100 {
            text.push(b'0' + octet / 100);
        }
        if octet >= 10 {
            text.push(b'0' + octet / 10 % 10);
        }
        text.push(b'0' + octet % 10);
    }
}

/// Appends an address.
pub fn address(out: &mut Vec<u8>, address: IpAddr) {
    out.extend_from_slice(Address::of(address).as_bytes());
}

/// Appends an address and its port, as `Display` writes them.
pub fn socket(out: &mut Vec<u8>, socket: SocketAddr) {
    match socket {
        SocketAddr::V4(v4) => {
            address(out, (*v4.ip()).into());
            out.push(b':');
            number(out, v4.port().into());
        }
        // Writing to memory does not fail.
        SocketAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn it_is_what_the_formatter_writes(n: u64, id: u128, v4: Ipv4Addr, to: SocketAddr, small in 0..1000_u64) {
            prop_assert_eq!(text(|out| number(out, n)), n.to_string());
            prop_assert_eq!(text(|out| three_digits(out, small)), format!("{small:03}"));
            prop_assert_eq!(String::from_utf8(hexadecimal(id).to_vec()).unwrap(), format!("{id:032x}"));
            prop_assert_eq!(text(|out| address(out, v4.into())), v4.to_string());
            prop_assert_eq!(text(|out| address(out, to.ip())), to.ip().to_string());
            prop_assert_eq!(text(|out| socket(out, to)), to.to_string());
        }
    }

    #[test]
    fn every_octet_is_written_as_it_is() {
        for octet in 0..=255 {
            let v4 = Ipv4Addr::new(octet, 0, octet, 255);
            assert_eq!(text(|out| address(out, v4.into())), v4.to_string());
        }
    }
}
