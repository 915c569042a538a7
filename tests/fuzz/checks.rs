//! What each fuzz target demands of its input. Here and not in the targets, so that `cargo test` demands it of the seeds too, in which
//! every input that once failed stays.

#[path = "checks/config.rs"]
mod config;
#[path = "checks/forwarding.rs"]
mod forwarding;
#[path = "checks/geofeed.rs"]
mod geofeed;
#[path = "checks/mmdb.rs"]
mod mmdb;
#[path = "checks/path.rs"]
mod path;

use std::time::Duration;

use meridian::proxy::Framing;
use meridian::proxy::affinity::{self, Claim};
use meridian::proxy::engine::body::{Body, Step};
use meridian::proxy::engine::head;
use meridian::proxy_protocol;
use meridian::secret::Secret;
use meridian::steering::fleet::{Affinity, CookieAffinity};

use crate::common::fleet::{fleet, pool, service};
use crate::common::model::{self, Field, Manner};
use crate::common::pipes::{Given, exchange};

pub(crate) use config::config;
pub(crate) use forwarding::forwarding;
pub(crate) use geofeed::geofeed;
pub(crate) use mmdb::mmdb;
pub(crate) use path::path;

/// A target's name and what it demands.
pub(crate) type Check = (&'static str, fn(&[u8]));

pub(crate) const ALL: [Check; 11] = [
    ("request_head", request_head),
    ("response_head", response_head),
    ("chunked_body", chunked_body),
    ("exchange", whole_exchange),
    ("cookie", cookie),
    ("proxy_header", proxy_header),
    ("forwarding", forwarding),
    ("path", path),
    ("config", config),
    ("geofeed", geofeed),
    ("mmdb", mmdb),
];

/// The end of a head is the same however it is cut. Returns its length.
fn head_length(data: &[u8]) -> Option<usize> {
    let mut seen = 0;
    let whole = head::end(data, &mut seen);
    let (mut seen, mut cut) = (0, Ok(None));
    for end in 0..=data.len() {
        cut = head::end(&data[..end], &mut seen);
        if cut != Ok(None) {
            break;
        }
    }
    assert_eq!(whole, cut);
    whole.ok().flatten()
}

fn lower<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<Field> {
    fields.map(|(name, value)| (String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec())).collect()
}

/// What is taken as a request's head is one in the model's eyes, with the same parts.
pub(crate) fn request_head(data: &[u8]) {
    let Some(length) = head_length(data) else { return };
    let Ok(Some((request, read))) = head::read_request(data, 100) else { return };
    assert_eq!(read, length);
    let (fields, rest) = model::request_parts(&data[..length]).expect("the model finds a head too");
    assert_eq!(lower(request.fields()), fields);
    assert_eq!(format!("{} {} {:?}", request.method, String::from_utf8_lossy(request.target), request.version), rest);
}

/// The same for an answer's head.
pub(crate) fn response_head(data: &[u8]) {
    let Some(length) = head_length(data) else { return };
    let Ok(Some((answer, read))) = head::read_response(data) else { return };
    assert_eq!(read, length);
    let (fields, status, minor) = model::answer_parts(&data[..length]).expect("the model finds a head too");
    assert_eq!(lower(answer.fields()), fields);
    assert_eq!((answer.status, format!("{:?}", answer.version)), (status, format!("HTTP/1.{minor}")));
}

/// Payload, what was left after the end if it came, and the end as it is written.
type Read = (Vec<u8>, Option<usize>, Vec<u8>);

fn read(pieces: &[Vec<u8>]) -> Result<Read, ()> {
    let (mut body, mut payload, mut held) = (Body::new(Framing::Chunked), Vec::new(), Vec::new());
    for (index, piece) in pieces.iter().enumerate() {
        held.extend_from_slice(piece);
        loop {
            match body.step(&held).map_err(|_| ())? {
                Step::Data { skip, len } => {
                    assert!(len > 0);
                    payload.extend_from_slice(&held[skip..skip + len]);
                    held.drain(..skip + len);
                }
                Step::More(skip) => {
                    held.drain(..skip);
                    assert!(held.is_empty(), "framing is taken as it comes");
                    break;
                }
                Step::End(skip) => {
                    assert_eq!(body.payload(), payload.len() as u64);
                    let mut end = Vec::new();
                    body.write_end(&mut end);
                    let later: usize = pieces[index + 1..].iter().map(Vec::len).sum();
                    return Ok((payload, Some(held.len() - skip + later), end));
                }
            }
        }
    }
    Ok((payload, None, Vec::new()))
}

/// The first byte says how to cut the others. Cuts change nothing, the model reads the same, and what is written is read again as the same.
pub(crate) fn chunked_body(data: &[u8]) {
    let Some((seed, bytes)) = data.split_first() else { return };
    let whole = read(&[bytes.to_vec()]);
    let (mut pieces, mut rest, mut chance) = (Vec::new(), bytes, u32::from(*seed));
    while !rest.is_empty() {
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (piece, after) = rest.split_at((1 + (chance >> 24) as usize % 9).min(rest.len()));
        pieces.push(piece.to_vec());
        rest = after;
    }
    assert_eq!(read(&pieces), whole);
    assert_eq!(read(&bytes.iter().map(|byte| vec![*byte]).collect::<Vec<_>>()), whole);

    let Ok((payload, left, end)) = whole else { return };
    // A trailer section that has not ended is looked at only as a whole, so what is wrong in it may still be unknown.
    let (modelled, error) = model::chunked(bytes, Manner::Theirs);
    assert_eq!(modelled.whole && error.is_none(), left.is_some(), "{error:?}");
    assert_eq!(modelled.data, payload);
    if left.is_some() {
        let mut again = Vec::new();
        for chunk in payload.chunks(7) {
            again.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            again.extend_from_slice(chunk);
            again.extend_from_slice(b"\r\n");
        }
        again.extend_from_slice(&end);
        let (ours, error) = model::chunked(&again, Manner::Ours);
        assert_eq!((ours.whole, error, &ours.data), (true, None, &payload));
        assert!(ours.trailers.iter().all(|trailer| modelled.trailers.contains(trailer)));
        assert_eq!(read(&[again]), Ok((payload, Some(0), end)));
    }
}

/// A whole exchange keeps the model's laws.
pub(crate) fn whole_exchange(data: &[u8]) {
    let Some(given) = Given::from_bytes(data) else { return };
    let got = exchange(&given);
    if let Err(broken) = model::check(&given, &got) {
        panic!("{broken}\n{}", got.shown(&given));
    }
}

/// When the seeds' cookies are good.
const COOKIES_AT_S: u64 = 1_764_000_000;

/// A Cookie field. A region is claimed only by a value that we would write again, byte for byte; a claim is the same wherever the cookie stands.
pub(crate) fn cookie(data: &[u8]) {
    let key = Secret::new("0123456789abcdef0123456789abcdef");
    let policy = |ttl_s| CookieAffinity {
        name: "meridian".to_owned(),
        ttl: Duration::from_secs(ttl_s),
        keys: vec![key.clone()],
    };
    let affinity = Affinity::Cookie(policy(3600));
    let web = service("web").pool("us-east", pool(&["192.0.2.1:80"])).pool("eu-west", pool(&["192.0.2.2:80"]));
    let world = fleet().region("us-east", 38.95, -77.45).region("eu-west", 53.35, -6.26).service(web).build();
    let web = &world.services[0];
    let Ok(value) = http::HeaderValue::from_bytes(data) else { return };
    let mut fields = http::HeaderMap::new();
    fields.append("cookie", value);
    let claim = Claim::of(&affinity, web, &world, &fields, COOKIES_AT_S);
    let pairs = data.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let values: Vec<&[u8]> = pairs.filter_map(|pair| pair.strip_prefix(b"meridian=")).collect();
    assert!(values.is_empty() == (claim == Claim::Absent), "{claim:?}");
    let Some(region) = claim.region() else { return };
    let region = &world.region(region).name;
    let is_ours = |value: &&[u8]| {
        let Ok(read) = affinity::read(value, &policy(0).keys, "web", COOKIES_AT_S) else { return false };
        let again = affinity::set_cookie(&policy(0), "web", region, read.expiry_s());
        read.region() == region.as_bytes() && again.as_bytes().starts_with(&[b"meridian=", *value, b"; "].concat())
    };
    assert!(values.iter().take(4).any(is_ours), "{claim:?}");
}

/// A PROXY header. It is the same wherever what came is cut, and nothing after it matters.
pub(crate) fn proxy_header(data: &[u8]) {
    let whole = proxy_protocol::read(data);
    for end in 0..data.len() {
        match (proxy_protocol::read(&data[..end]), whole) {
            (Ok(None), _) => {}
            (cut, whole) => assert_eq!(cut, whole, "cut at {end}"),
        }
    }
    if let Ok(Some(header)) = whole {
        assert!(header.length <= data.len());
        assert_eq!(proxy_protocol::read(&data[..header.length - 1]), Ok(None));
    }
}
