//! Which service a path is for and what of it upstreams get, held against upstreams that read it in other ways.

use std::sync::OnceLock;

use http::Method;
use meridian::proxy::headers;
use meridian::proxy::rules::target;
use meridian::steering::ServiceId;
use meridian::steering::route::{self, NoRoute, Router};
use meridian::steering::rules::{Rules, cut};

/// The rules of services 0, 1 …
const RULES: [&str; 5] = ["/", "/api", "/api/v1", "/a/", "/x.y/z"];

fn router() -> &'static Router {
    static ROUTER: OnceLock<Router> = OnceLock::new();
    ROUTER.get_or_init(|| {
        let paths = RULES.map(|rule| [rule.to_owned()]);
        Router::new(paths.iter().enumerate().map(|(at, paths)| (ServiceId(at as u16), &[][..], &paths[..])))
    })
}

/// The first byte chooses the method, the rest is a request target. A path's plain form is its own plain form and has no way up; where a
/// service is found, it is the same for upstreams that decode everything; and what they get stays below what the service puts before it.
pub(crate) fn path(data: &[u8]) {
    let Some((which, given)) = data.split_first() else { return };
    // No mover takes a target with other bytes: `request_head` demands visible ones, the libraries of HTTP/2 and pingora let those beyond ASCII pass.
    if given.iter().any(|byte| byte.is_ascii_control() || *byte == b' ') {
        return;
    }
    let method = if which & 1 == 1 { Method::OPTIONS } else { Method::GET };
    let Ok(path) = headers::path(&method, given) else { return };
    assert!(path.starts_with('/'));
    let found = router().route("any.example", path);
    let Some(plain) = route::normalise(path) else {
        assert_eq!(found, Err(NoRoute::BadPath));
        return;
    };
    assert_eq!(route::normalise(&plain).as_deref(), Some(&*plain));
    assert!(plain.starts_with('/') && !plain.split('/').any(|segment| segment == "." || segment == ".."), "{plain}");
    let Ok(service) = found else {
        // Every path has the rule `/`.
        assert_eq!(found, Err(NoRoute::BadPath));
        return;
    };
    assert_eq!(router().route("any.example", &plain), found, "{plain}");
    let decoded = everything_decoded(path.as_bytes()).expect("it stays below its root");
    assert_eq!(service_of(&decoded), service, "{}", String::from_utf8_lossy(&decoded));

    for prefix in ["/api", "/api/v1", "/a", "/x.y"] {
        let rules =
            Rules { strip_prefix: Some(prefix.to_owned()), add_prefix: Some("/v2/".to_owned()), ..Rules::default() };
        let Ok(cut) = cut(path, prefix) else { continue };
        assert_eq!(cut > 0, is_below(prefix.as_bytes(), &decoded), "{prefix}");
        let (before, rest) = headers::forwarded_target(&method, given);
        let (before, rest) = target(&rules, cut, before, rest);
        if before == "*" || rest == b"*" {
            continue;
        }
        let sent = [before.as_bytes(), rest].concat();
        let sent = headers::path(&method, &sent).expect("what is sent is a target");
        let read = everything_decoded(sent.as_bytes()).expect("it stays below its root");
        assert!(is_below(b"/v2", &read), "{sent}");
        let without = if cut > 0 { &decoded[prefix.len()..] } else { &decoded[..] };
        let same = read[3..] == *without || matches!((&read[3..], without), (b"/", b"") | (b"", b"/"));
        assert!(same, "{sent} for {}", String::from_utf8_lossy(&decoded));
    }
}

fn is_below(rule: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(rule).is_some_and(|rest| rest.is_empty() || rest[0] == b'/' || rule.ends_with(b"/"))
}

fn service_of(path: &[u8]) -> ServiceId {
    let best = (0..RULES.len()).filter(|at| is_below(RULES[*at].as_bytes(), path)).max_by_key(|at| RULES[*at].len());
    ServiceId(best.expect("every path has the rule `/`") as u16)
}

/// As the most careless of upstreams reads it: every escape is decoded, `\` is `/`, a zero ends it, and only then are dots followed.
/// `None`: it leaves its root.
fn everything_decoded(path: &[u8]) -> Option<Vec<u8>> {
    let digit = |at: usize| char::from(*path.get(at)?).to_digit(16);
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(byte) = path.get(at) {
        let escape = if *byte == b'%' { digit(at + 1).zip(digit(at + 2)) } else { None };
        let byte = escape.map_or(*byte, |(high, low)| (high * 16 + low) as u8);
        at += if escape.is_some() { 3 } else { 1 };
        match byte {
            0 => break,
            b'\\' => out.push(b'/'),
            byte => out.push(byte),
        }
    }
    let mut segments: Vec<&[u8]> = Vec::new();
    let parts: Vec<&[u8]> = out.split(|byte| *byte == b'/').skip(1).collect();
    for (index, part) in parts.iter().enumerate() {
        let is_last = index + 1 == parts.len();
        match *part {
            b"." => {}
            b".." => drop(segments.pop()?),
            part => {
                segments.push(part);
                continue;
            }
        }
        if is_last {
            segments.push(b"");
        }
    }
    Some(segments.iter().flat_map(|segment| [b"/", *segment].concat()).collect())
}
