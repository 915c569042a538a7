//! Numbers and addresses as text, and a look for odd bytes in it: what a request does several times, without the formatter's machinery; and
//! for everything else, dates and patterns.
//!
//! Must not know what the text is for.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wide::u8x16;

/// Decimal digits.
pub fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends three decimal digits, of a number below 1,000.
pub fn three_digits(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(digits_of_three(number));
}

/// Three decimal digits, of a number below 1,000.
pub fn digits_of_three(number: u64) -> &'static [u8; 3] {
    static DIGITS: [[u8; 3]; 1000] = {
        let (mut digits, mut number) = ([[0; 3]; 1000], 0);
        while number < 1000 {
            digits[number] = [b'0' + (number / 100) as u8, b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8];
            number += 1;
        }
        digits
    };
    &DIGITS[number as usize % 1000]
}

/// The hexadecimal digit of the low four bits.
pub const fn hexadecimal_digit(of: u8) -> u8 {
    b"0123456789abcdef"[(of & 15) as usize]
}

/// 32 hexadecimal digits.
pub fn hexadecimal(number: u128) -> [u8; 32] {
    const LOW: u128 = u128::MAX / 17;
    // The digits' values, a byte each: every other one, then those between them.
    let [high, low] = [number >> 4 & LOW, number & LOW].map(|values| u8x16::from(values.to_be_bytes()));
    let digits = [u8x16::unpack_low(high, low), u8x16::unpack_high(high, low)].map(|values| {
        // After the nine comes the a.
        let letters = sixteen::above(values, 9) & u8x16::splat(b'a' - b'9' - 1);
        (values + u8x16::splat(b'0') + letters).to_array()
    });
    let mut text = [0; 32];
    for (half, digits) in text.chunks_exact_mut(16).zip(digits) {
        half.copy_from_slice(&digits);
    }
    text
}

/// An address as text, as `Display` writes it.
#[derive(Debug)]
pub struct Address {
    text: [u8; LONGEST],
    length: usize,
}

/// The longest address: eight groups, or six and a dotted quad, and what is between them; and what is written past the end of an IPv4 address.
const LONGEST: usize = 48;

/// How an octet is written, a point after it, and the length of that.
static OCTETS: [([u8; 4], u8); 256] = {
    let (mut octets, mut octet) = ([([0; 4], 0); 256], 0);
    while octet < 256 {
        let (h, t, o) = (b'0' + (octet / 100) as u8, b'0' + (octet / 10 % 10) as u8, b'0' + (octet % 10) as u8);
        octets[octet] = match octet {
            0..10 => ([o, b'.', 0, 0], 2),
            10..100 => ([t, o, b'.', 0], 3),
            _ => ([h, t, o, b'.'], 4),
        };
        octet += 1;
    }
    octets
};

impl Address {
    /// That address.
    pub fn of(address: IpAddr) -> Address {
        match address {
            IpAddr::V4(v4) => Address::dotted(v4),
            IpAddr::V6(v6) => {
                let mut text = [0; LONGEST];
                let mut rest = &mut text[..];
                // It fits.
                let _ = write!(rest, "{v6}");
                let length = LONGEST - rest.len();
                Address { text, length }
            }
        }
    }

    fn dotted(address: Ipv4Addr) -> Address {
        let (mut text, mut length) = ([0; LONGEST], 0);
        for octet in address.octets() {
            let (written, count) = &OCTETS[usize::from(octet)];
            text[length..length + 4].copy_from_slice(written);
            length += usize::from(*count);
        }
        // There is no point after the last one.
        Address { text, length: length - 1 }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

/// Reads an IPv4 address as `FromStr` does: four numbers without zeros before them.
pub fn dotted_quad(text: &[u8]) -> Option<Ipv4Addr> {
    let (mut octets, mut index) = ([0; 4], 0);
    let (mut number, mut digits) = (0_u16, 0);
    for byte in text {
        match byte {
            // A second digit after a zero, or a fourth one, is too much.
            b'0'..=b'9' if digits == 0 || number > 0 && digits < 3 => {
                number = number * 10 + u16::from(byte - b'0');
                digits += 1;
            }
            b'.' if digits > 0 && index < 3 => {
                octets[index] = u8::try_from(number).ok()?;
                (index, number, digits) = (index + 1, 0, 0);
            }
            _ => return None,
        }
    }
    octets[3] = u8::try_from(number).ok()?;
    (digits > 0 && index == 3).then(|| octets.into())
}

/// Sixteen bytes at once: for each of them, all bits set if it is what one looks for.
pub mod sixteen {
    use wide::u8x16;

    /// Bytes below `least`, which is not 0.
    #[inline(always)]
    pub fn below(bytes: u8x16, least: u8) -> u8x16 {
        bytes.min(u8x16::splat(least - 1)).simd_eq(bytes)
    }

    /// Bytes above `most`, which is not 255.
    #[inline(always)]
    pub fn above(bytes: u8x16, most: u8) -> u8x16 {
        bytes.max(u8x16::splat(most + 1)).simd_eq(bytes)
    }

    /// Bytes from `first` to `last`.
    #[inline(always)]
    pub fn within(bytes: u8x16, first: u8, last: u8) -> u8x16 {
        bytes.max(u8x16::splat(first)).min(u8x16::splat(last)).simd_eq(bytes)
    }

    /// Bytes that are `byte`.
    #[inline(always)]
    pub fn equal(bytes: u8x16, byte: u8) -> u8x16 {
        bytes.simd_eq(u8x16::splat(byte))
    }
}

/// Eight bytes of a token at once.
mod eight {
    const ONES: u64 = u64::MAX / 255;

    /// Whether they are the same but for the case of letters. Small letters and capitals differ by one bit; the only other two bytes of tokens that
    /// do are `^` and `~`.
    #[inline(always)]
    pub(super) fn is_same_token(one: &[u8; 8], other: &[u8; 8]) -> bool {
        let (one, other) = (u64::from_le_bytes(*one), u64::from_le_bytes(*other));
        let differs = one ^ other;
        differs == 0 || differs & !(ONES * 32) == 0 && tildes(one | (ONES * 32)) & (differs << 2) == 0
    }

    /// Top bits of the bytes that are `~`, and maybe of some after the first of them.
    #[inline(always)]
    const fn tildes(word: u64) -> u64 {
        let word = word ^ (ONES * b'~' as u64);
        word.wrapping_sub(ONES) & !word & (ONES * 128)
    }
}

/// Whether two tokens (RFC 9110, 5.6.2) are one but for the case of letters.
#[inline]
pub fn is_same_token(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let (Some(last), Some(other_last)) = (one.last_chunk::<8>(), other.last_chunk::<8>()) else {
        return one.eq_ignore_ascii_case(other);
    };
    // By eights, and the last eight, which may have been looked at before.
    let (eights, _) = one.as_chunks::<8>();
    let (other_eights, _) = other.as_chunks::<8>();
    eights.iter().zip(other_eights).all(|(one, other)| eight::is_same_token(one, other))
        && eight::is_same_token(last, other_last)
}

/// Where the first byte from `at` on is that is looked for: `is` finds it among sixteen, as those of [`sixteen`] do.
#[inline(always)]
pub fn find(bytes: &[u8], mut at: usize, is: impl Fn(u8x16) -> u8x16) -> Option<usize> {
    while let Some(some) = bytes.get(at..).and_then(<[u8]>::first_chunk::<16>) {
        match is(u8x16::from(*some)).to_bitmask() {
            0 => at += 16,
            found => return Some(at + found.trailing_zeros() as usize),
        }
    }
    let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
    let found = match bytes.last_chunk::<16>() {
        // Those before the rest were looked at.
        Some(last) => is(u8x16::from(*last)).to_bitmask() >> (16 - rest.len()),
        None => {
            let mut some = [0; 16];
            some[..rest.len()].copy_from_slice(rest);
            is(u8x16::from(some)).to_bitmask()
        }
    };
    let found = found.trailing_zeros() as usize;
    // What fills it up is no byte of the text.
    (found < rest.len()).then_some(at + found)
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

/// Whether `name` fits a pattern of `*` (any characters) and `?` (one character). Linear but for going back to the last `*`.
pub fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// A moment in Unix milliseconds as RFC 3339, UTC, always with three digits after the point, so that texts sort as moments do; the epoch for one beyond
/// the calendar.
pub fn rfc3339(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).ok();
    let at = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let (at, ms) = at.map_or((OffsetDateTime::UNIX_EPOCH, 0), |at| (at, unix_ms % 1000));
    // Without a fraction it ends with the second and a Z.
    let whole = at.format(&Rfc3339).unwrap_or_default();
    format!("{}.{ms:03}Z", whole.trim_end_matches('Z'))
}

/// Appends a value as logfmt has it: bare, or in quotes where it is empty or holds what would end it.
pub fn logfmt(out: &mut Vec<u8>, value: &str) {
    let is_bare = |byte: &u8| !matches!(byte, 0..=b' ' | b'"' | b'=' | b'\\' | 0x7f);
    if !value.is_empty() && value.as_bytes().iter().all(is_bare) {
        return out.extend_from_slice(value.as_bytes());
    }
    out.push(b'"');
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            0..b' ' | 0x7f => {
                let digits = [hexadecimal_digit(byte >> 4), hexadecimal_digit(byte)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digits[0], digits[1]]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// The day of a moment in Unix seconds, UTC: `2026-01-31`.
pub fn day(unix_s: i64) -> String {
    let mut text = rfc3339(u64::try_from(unix_s).unwrap_or(0).saturating_mul(1000));
    text.truncate("2026-01-31".len());
    text
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

    proptest! {
        #[test]
        fn the_first_byte_is_found(text in proptest::collection::vec(prop_oneof![9 => 32..=255_u8, 1 => any::<u8>()], 0..40), at in 0..40_usize) {
            let is = |some| sixteen::below(some, 32) | sixteen::above(some, 250) | sixteen::equal(some, 0xe9);
            let found = find(&text, at, is);
            let odd = |byte: &u8| *byte < 32 || *byte > 250 || *byte == 0xe9;
            prop_assert_eq!(found, text.get(at..).and_then(|rest| Some(at + rest.iter().position(odd)?)));
        }
    }

    proptest! {
        #[test]
        fn dotted_quads_are_read_as_the_library_reads_them(v4: Ipv4Addr, text in "[0-9.]{1,16}", loose in "0?[0-9]{1,3}(\\.0?[0-9]{1,3}){3}\\.?") {
            prop_assert_eq!(dotted_quad(v4.to_string().as_bytes()), Some(v4));
            for text in [text, loose] {
                prop_assert_eq!(dotted_quad(text.as_bytes()), text.parse().ok(), "{}", text);
            }
        }

        #[test]
        fn case_makes_no_difference(text in "[!#$%&'*+.^_`|~0-9A-Za-z-]{0,24}", at in any::<proptest::sample::Index>(), byte in "[!#$%&'*+.^_`|~0-9A-Za-z-]") {
            let mut other = text.to_ascii_uppercase().into_bytes();
            let text = text.as_bytes();
            prop_assert!(is_same_token(text, &other) && is_same_token(&other, text));
            prop_assert!(text.is_empty() || !is_same_token(text, &text[1..]));
            if !text.is_empty() {
                let at = at.index(text.len());
                let bit = match other[at] {
                    b'^' | b'~' => other[at] ^ 0x20,
                    _ => byte.as_bytes()[0],
                };
                for byte in [byte.as_bytes()[0], bit] {
                    other[at] = byte;
                    prop_assert_eq!(is_same_token(text, &other), text.eq_ignore_ascii_case(&other));
                }
            }
        }
    }

    #[test]
    fn every_octet_is_written_as_it_is() {
        for octet in 0..=255 {
            let v4 = Ipv4Addr::new(octet, 0, octet, 255);
            assert_eq!(text(|out| address(out, v4.into())), v4.to_string());
        }
    }

    #[test]
    fn moments_sort_as_their_texts() {
        let texts = [0, 5, 999, 1_000, 1_700_000_000_010, u64::MAX / 2].map(rfc3339);
        let want = [
            "1970-01-01T00:00:00.000Z",
            "1970-01-01T00:00:00.005Z",
            "1970-01-01T00:00:00.999Z",
            "1970-01-01T00:00:01.000Z",
            "2023-11-14T22:13:20.010Z",
            "1970-01-01T00:00:00.000Z",
        ];
        assert_eq!(texts, want);
    }

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.tom", false),
            ("*.toml", "a.toml~", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "xxaxxbx", false),
            ("?", "é", true),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, name), want, "{pattern} {name}");
        }
    }
}
