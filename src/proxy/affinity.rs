//! Affinity: a client says at which region it was before, and learns which one to name.
//!
//! The cookie is signed, so that nobody can make one up, and names no endpoint: which of them serves is decided anew each time. It is
//! bound to its service by what is signed; the name of the service is not in it, since whoever verifies knows it. Only names are
//! signed, never ids, and the clock comes with the request, so that every PoP with the same keys reads it alike. The format is frozen by
//! the test vectors below:
//!
//! ```text
//! base64url without padding of   version (1 byte)  expiry (4, Unix seconds)  HMAC-SHA256 (32)  region
//! signed is                      "meridian affinity"  version  expiry  length of service (1 byte)  service  region
//! ```
//!
//! A header is believed as it is: all it can do is choose among the regions that the sets allow.
//!
//! Must not know what becomes of a claim: the walk decides.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::proxy::Fields;
use crate::secret::Secret;
use crate::steering::fleet::{Affinity, CookieAffinity, Service};
use crate::steering::{Fleet, RegionId};

const VERSION: u8 = 1;
/// Of the version, the expiry and the signature.
const FIXED: usize = 1 + 4 + MAC;
const MAC: usize = 32;
/// The longest name of a region.
const NAME: usize = 63;
/// The longest value, and what decoding it may write at most.
const LONGEST: usize = ((FIXED + NAME) * 4).div_ceil(3);
const DECODED: usize = LONGEST.div_ceil(4) * 3;
/// Cookies of our name that are looked at: a client that sends more is none of ours.
const CANDIDATES: usize = 4;

/// What a client says of where it was before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Claim {
    /// Nothing.
    #[default]
    Absent,
    /// At this region of the service.
    Region {
        /// Which.
        id: RegionId,
        /// Less than half of the cookie's time is left.
        stale: bool,
    },
    /// At a region that the service no longer has; it was one of ours.
    Gone,
    /// It was one of ours, but its time is up.
    Expired,
    /// Whatever it is, it is none of ours.
    Broken,
}

impl Claim {
    /// What a request for `service` claims at `now_s`, in Unix seconds. Of several cookies the first good one counts.
    pub fn of(affinity: &Affinity, service: &Service, fleet: &Fleet, fields: &impl Fields, now_s: u64) -> Claim {
        match affinity {
            Affinity::Header(name) => by_header(name, service, fleet, fields),
            Affinity::Cookie(policy) => by_cookie(policy, service, fleet, fields, now_s),
        }
    }

    /// The region claimed.
    pub fn region(self) -> Option<RegionId> {
        match self {
            Claim::Region { id, .. } => Some(id),
            _ => None,
        }
    }
}

/// A region of the service by that name.
fn region_of(name: &[u8], service: &Service, fleet: &Fleet) -> Option<RegionId> {
    fleet.region_named(std::str::from_utf8(name).ok()?).filter(|id| service.regions.contains(*id))
}

fn by_header(name: &str, service: &Service, fleet: &Fleet, fields: &impl Fields) -> Claim {
    let mut lines = fields.values(name);
    match (lines.next(), lines.next()) {
        (None, _) => Claim::Absent,
        (Some(only), None) => {
            region_of(only, service, fleet).map_or(Claim::Broken, |id| Claim::Region { id, stale: false })
        }
        _ => Claim::Broken,
    }
}

fn by_cookie(policy: &CookieAffinity, service: &Service, fleet: &Fleet, fields: &impl Fields, now_s: u64) -> Claim {
    let mut claim = Claim::Absent;
    for value in cookies(fields, &policy.name).take(CANDIDATES) {
        let read = match read(value, &policy.keys, &service.name, now_s) {
            Ok(cookie) => match region_of(cookie.region(), service, fleet) {
                Some(id) => return Claim::Region { id, stale: cookie.left_s(now_s) * 2 < policy.ttl.as_secs() },
                None => Claim::Gone,
            },
            Err(claim) => claim,
        };
        if matches!(claim, Claim::Absent | Claim::Broken) {
            claim = read;
        }
    }
    claim
}

/// The values of all cookies of that name (RFC 6265, 5.4).
fn cookies<'f>(fields: &'f impl Fields, name: &str) -> impl Iterator<Item = &'f [u8]> {
    let pairs = fields.values("cookie").flat_map(|line| line.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    pairs.filter_map(move |pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// A cookie that one of the keys signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    bytes: [u8; DECODED],
    length: usize,
}

impl Cookie {
    /// The region's name, as it was signed.
    pub fn region(&self) -> &[u8] {
        self.bytes.get(FIXED..self.length).unwrap_or_default()
    }

    /// When it ends, in Unix seconds.
    pub fn expiry_s(&self) -> u64 {
        let [_, a, b, c, d, ..] = self.bytes;
        u32::from_be_bytes([a, b, c, d]).into()
    }

    fn left_s(&self, now_s: u64) -> u64 {
        self.expiry_s().saturating_sub(now_s)
    }
}

/// Reads a cookie's value for a service: one that any of the keys signed and that is good at `now_s`, or [`Claim::Broken`] or
/// [`Claim::Expired`]. Public for the fuzz target and property tests.
pub fn read(value: &[u8], keys: &[Secret], service: &str, now_s: u64) -> Result<Cookie, Claim> {
    if value.len() > LONGEST {
        return Err(Claim::Broken);
    }
    let mut cookie = Cookie { bytes: [0; DECODED], length: 0 };
    cookie.length = URL_SAFE_NO_PAD.decode_slice(value, &mut cookie.bytes).map_err(|_| Claim::Broken)?;
    if cookie.length <= FIXED || cookie.bytes[0] != VERSION {
        return Err(Claim::Broken);
    }
    let expiry_s = cookie.expiry_s();
    let mac = &cookie.bytes[FIXED - MAC..FIXED];
    // The library compares without telling by its time where they differ.
    let is_signed = |key: &Secret| {
        signature(key, service, cookie.region(), expiry_s as u32).is_some_and(|own| own.verify_slice(mac).is_ok())
    };
    if !keys.iter().any(is_signed) {
        return Err(Claim::Broken);
    }
    if expiry_s <= now_s { Err(Claim::Expired) } else { Ok(cookie) }
}

/// What stands in `Set-Cookie` for a client that `region` answered at `now_s`. `Secure` always: a browser then keeps it from plain HTTP, as
/// it keeps other cookies that are worth anything, but for `localhost`.
pub fn set_cookie(policy: &CookieAffinity, service: &str, region: &str, now_s: u64) -> String {
    let ttl_s = policy.ttl.as_secs();
    let value = write(policy.keys.first(), service, region, now_s.saturating_add(ttl_s));
    format!("{}={value}; Path=/; Max-Age={ttl_s}; Secure; HttpOnly; SameSite=Lax", policy.name)
}

/// A cookie's value. Without a key there is none, which no configuration allows.
fn write(key: Option<&Secret>, service: &str, region: &str, expiry_s: u64) -> String {
    let expiry_s = u32::try_from(expiry_s).unwrap_or(u32::MAX);
    let Some(own) = key.and_then(|key| signature(key, service, region.as_bytes(), expiry_s)) else {
        return String::new();
    };
    let mac = own.finalize().into_bytes();
    URL_SAFE_NO_PAD.encode([&[VERSION][..], &expiry_s.to_be_bytes(), &mac, region.as_bytes()].concat())
}

/// Of what is said of a client of a service. `None` never: HMAC takes keys of any length.
fn signature(key: &Secret, service: &str, region: &[u8], expiry_s: u32) -> Option<Hmac<Sha256>> {
    let mut own = Hmac::<Sha256>::new_from_slice(key.reveal().as_bytes()).ok()?;
    let length = u8::try_from(service.len()).unwrap_or(u8::MAX);
    for part in [&b"meridian affinity"[..], &[VERSION], &expiry_s.to_be_bytes(), &[length], service.as_bytes(), region]
    {
        own.update(part);
    }
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_764_000_000;

    fn key(text: &str) -> Secret {
        Secret::new(text)
    }

    fn keys() -> Vec<Secret> {
        vec![key("0123456789abcdef0123456789abcdef"), key("the key of last month, still good")]
    }

    /// These values, made by another program, are a promise to every client that has one: see the module's head.
    #[test]
    fn cookies_are_frozen() {
        let rows = [
            ("web", "eu-west", NOW + 3600, "AWkkjxAPr2W_-bzCpyuiLz3ID4esFaQrfUh4Cw1BKbpyCbFWWWV1LXdlc3Q"),
            ("web", "us-east", NOW + 3600, "AWkkjxBDKbrYvBi3ygK0-pgXs2TesPEzF5Ayo8v4nuM1VoSRsnVzLWVhc3Q"),
            ("api", "eu-west", NOW + 3600, "AWkkjxCkf3KJjKv8Xdd6Qzoe-LgDiKLTG8kYLPslpbXf0CMZAWV1LXdlc3Q"),
            ("web", "e", u64::MAX, "Af_____Q2hsxijT6b83-zqXbWfbWivH-TYL7vbIB1X1xzyvicWU"),
        ];
        for (service, region, expiry_s, value) in rows {
            assert_eq!(write(keys().first(), service, region, expiry_s), value, "{service} {region}");
            let cookie = read(value.as_bytes(), &keys(), service, NOW).unwrap();
            assert_eq!((cookie.region(), cookie.expiry_s()), (region.as_bytes(), expiry_s.min(u32::MAX.into())));
        }
    }

    #[test]
    fn any_key_verifies_the_first_signs_and_time_ends() {
        let value = write(keys().last(), "web", "eu-west", NOW + 10);
        assert!(read(value.as_bytes(), &keys(), "web", NOW + 9).is_ok());
        assert_eq!(read(value.as_bytes(), &keys(), "web", NOW + 10), Err(Claim::Expired));
        assert_eq!(read(value.as_bytes(), &keys()[..1], "web", NOW), Err(Claim::Broken));
        assert_eq!(read(value.as_bytes(), &keys(), "api", NOW), Err(Claim::Broken));
        assert_eq!(read(b"", &keys(), "web", NOW), Err(Claim::Broken));
        let policy = CookieAffinity { name: "meridian".into(), ttl: std::time::Duration::from_secs(10), keys: keys() };
        let line = set_cookie(&policy, "web", "eu-west", NOW);
        let first = write(keys().first(), "web", "eu-west", NOW + 10);
        assert_eq!(line, format!("meridian={first}; Path=/; Max-Age=10; Secure; HttpOnly; SameSite=Lax"));
    }

    #[test]
    fn the_longest_names_fit() {
        let name = "n".repeat(NAME);
        let value = write(keys().first(), &name, &name, NOW + 1);
        assert_eq!(value.len(), LONGEST.min(value.len()));
        assert_eq!(read(value.as_bytes(), &keys(), &name, NOW).unwrap().region(), name.as_bytes());
    }

    #[test]
    fn a_name_and_the_next_do_not_run_together() {
        let value = write(keys().first(), "ab", "c", NOW + 1);
        assert!(read(value.as_bytes(), &keys(), "a", NOW).is_err());
        let own = |service, region| signature(&keys()[0], service, region, 1).unwrap().finalize().into_bytes();
        assert_ne!(own("ab", b"c"), own("a", b"bc"));
    }

    #[test]
    fn nobody_sees_a_key() {
        let policy = CookieAffinity { name: "meridian".into(), ttl: std::time::Duration::from_secs(10), keys: keys() };
        let shown = format!("{:?} {:#?}", Affinity::Cookie(policy.clone()), policy);
        assert!(!shown.contains("0123") && !shown.contains("last month") && !shown.contains("48, 49"), "{shown}");
    }

    #[test]
    fn cookies_are_found_among_others() {
        let mut map = http::HeaderMap::new();
        for line in ["a=1; meridian=x;meridian=;  meridian=y ", "xmeridian=1; meridianx=2; Meridian=3; meridian", ""] {
            map.append("cookie", line.parse().unwrap());
        }
        let found: Vec<_> = cookies(&map, "meridian").collect();
        assert_eq!(found, [&b"x"[..], b"", b"y"]);
    }

    proptest! {
        #[test]
        fn an_altered_cookie_is_none(at in any::<proptest::sample::Index>(), to in any::<u8>(), region in "[a-z-]{1,63}") {
            let value = write(keys().first(), "web", &region, NOW + 1);
            let mut altered = value.clone().into_bytes();
            let at = at.index(altered.len());
            altered[at] = to;
            let read = read(&altered, &keys(), "web", NOW);
            prop_assert_eq!(read.is_ok(), altered == value.as_bytes());
        }

        #[test]
        fn bytes_that_nobody_signed_are_none(bytes in proptest::collection::vec(any::<u8>(), 0..140), encoded in any::<bool>()) {
            let bytes = if encoded { URL_SAFE_NO_PAD.encode(&bytes).into_bytes() } else { bytes };
            prop_assert_eq!(read(&bytes, &keys(), "web", NOW), Err(Claim::Broken));
        }

        #[test]
        fn what_is_written_is_read(service in "[a-zA-Z0-9._-]{1,63}", region in "[a-zA-Z0-9._-]{1,63}", left in 1u64..1_000_000) {
            for key in keys() {
                let cookie = read(write(Some(&key), &service, &region, NOW + left).as_bytes(), &keys(), &service, NOW);
                let cookie = cookie.unwrap();
                prop_assert_eq!((cookie.region(), cookie.left_s(NOW)), (region.as_bytes(), left));
            }
        }
    }
}
