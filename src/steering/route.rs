//! From host and path to a service.
//!
//! Hosts: exact, then the longest wildcard, then services for every host; the first of these levels that knows the host decides,
//! and only its paths count. Paths: by prefix at segment borders, the longest wins; a rule that ends in `/` covers what is below it
//! only. Matching looks at a normalised copy of the path; what is forwarded stays byte for byte, but for a prefix that a service takes away
//! or adds (see [`rules`](crate::steering::rules)).
//!
//! An upstream may decode what we don't: `/open%2f..%2fadmin` is below `/open` for us and `/admin` for it. So a path that holds
//! `%2f`, `%5c`, `%00` or `\` is matched again as such upstreams would read it, which follow dots before they decode or after (`/admin%2fx/../y` is
//! `/y` or `/admin/y`), and refused when that is another rule.
//! The choice refused: to refuse every such path, which breaks clients that send file names in one segment.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::Ipv6Addr;

use arrayvec::ArrayString;
use xxhash_rust::xxh3::xxh3_64;

use crate::steering::ids::ServiceId;
use crate::text::{find, sixteen};

/// Why no service was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No service has this host: 421.
    Host,
    /// The host's services do not have this path: 404.
    Path,
    /// The path leaves the root, hides a delimiter inside a matched prefix or does not begin with `/`: 400.
    BadPath,
}

impl NoRoute {
    /// The word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            NoRoute::Host => "no_host",
            NoRoute::Path => "no_path",
            NoRoute::BadPath => "bad_path",
        }
    }

    /// The status that a client gets for it.
    pub fn status(self) -> u16 {
        match self {
            NoRoute::Host => 421,
            NoRoute::Path => 404,
            NoRoute::BadPath => 400,
        }
    }
}

/// The compiled hosts and paths of all services.
#[derive(Clone, Debug, Default)]
pub struct Router {
    exact: Hosts,
    /// Keyed by what follows `*.`.
    wildcard: Hosts,
    every: Option<Paths>,
}

impl Router {
    /// From each service's hosts (empty: every host) and paths (at least one), both in the form that the configuration makes of
    /// them. Of two services with the same host and path the first is taken; the configuration refuses them before this.
    pub fn new<'a>(services: impl IntoIterator<Item = (ServiceId, &'a [String], &'a [String])>) -> Router {
        let mut router = Router::default();
        for (service, hosts, paths) in services {
            if hosts.is_empty() {
                router.every.get_or_insert_default().add(service, paths);
            }
            for host in hosts {
                match host.strip_prefix("*.") {
                    Some(suffix) => router.wildcard.add(suffix, service, paths),
                    None => router.exact.add(host, service, paths),
                }
            }
        }
        router.exact.seal();
        router.wildcard.seal();
        if let Some(every) = &mut router.every {
            every.seal();
        }
        router
    }

    /// The service for a Host field's value (any case, with or without port or trailing dot) and a request target's path
    /// (without the query). Does not allocate for paths without escapes or dot segments.
    pub fn route(&self, host: &str, path: &str) -> Result<ServiceId, NoRoute> {
        let paths = self.paths_of(host).ok_or(NoRoute::Host)?;
        if path.starts_with('/') && !is_odd(path) {
            return paths.longest(path).map(|rule| rule.service).ok_or(NoRoute::Path);
        }
        let plain = normalise(path).ok_or(NoRoute::BadPath)?;
        let rule = paths.longest(&plain);
        for reading in revealed(path)?.iter().flatten() {
            if paths.longest(reading).map(|rule| &rule.path) != rule.map(|rule| &rule.path) {
                return Err(NoRoute::BadPath);
            }
        }
        rule.map(|rule| rule.service).ok_or(NoRoute::Path)
    }

    fn paths_of(&self, host: &str) -> Option<&Paths> {
        let every = || self.every.as_ref();
        if self.exact.by_hash.is_empty() && self.wildcard.by_hash.is_empty() {
            return every();
        }
        let Some(host) = comparable(host) else { return every() };
        // Each suffix once, the longest first.
        let below =
            || std::iter::successors(suffix_of(&host), |rest| suffix_of(rest)).find_map(|s| self.wildcard.get(s));
        self.exact.get(&host).or_else(below).or_else(every)
    }
}

/// What follows the first label.
fn suffix_of(host: &str) -> Option<&str> {
    host.split_once('.').map(|(_, suffix)| suffix)
}

/// A Host field's value without port and trailing dot, in lower case, IPv6 addresses in one form; `None` for what no
/// configured host can be.
pub fn comparable(host: &str) -> Option<ArrayString<255>> {
    let mut out = ArrayString::new();
    if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        if !(port.is_empty() || port.strip_prefix(':').is_some_and(is_digits)) {
            return None;
        }
        let address: Ipv6Addr = address.parse().ok()?;
        write!(out, "[{address}]").ok()?;
        return Some(out);
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_digits(port) => name,
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    out.try_push_str(name).ok()?;
    out.make_ascii_lowercase();
    Some(out)
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// Hosts by hash: a search over one word each, whether there are three or thousands, and the same in every process.
#[derive(Clone, Debug, Default)]
struct Hosts {
    by_hash: Vec<(u64, Box<str>, Paths)>,
}

impl Hosts {
    fn add(&mut self, host: &str, service: ServiceId, paths: &[String]) {
        let mut rules = Paths::default();
        rules.add(service, paths);
        self.by_hash.push((xxh3_64(host.as_bytes()), host.into(), rules));
    }

    /// Sorts, and puts the rules of several services for one host together.
    fn seal(&mut self) {
        self.by_hash.sort_by(|(a, a_name, _), (b, b_name, _)| (a, a_name).cmp(&(b, b_name)));
        self.by_hash.dedup_by(|(_, next_name, next), (_, name, paths)| {
            let same = next_name == name;
            if same {
                paths.rules.append(&mut next.rules);
            }
            same
        });
        self.by_hash.iter_mut().for_each(|(_, _, paths)| paths.seal());
    }

    fn get(&self, host: &str) -> Option<&Paths> {
        if self.by_hash.is_empty() {
            return None;
        }
        let hash = xxh3_64(host.as_bytes());
        let at = self.by_hash.partition_point(|(other, _, _)| *other < hash);
        let same = self.by_hash[at..].iter().take_while(|(other, _, _)| *other == hash);
        same.into_iter().find(|(_, name, _)| **name == *host).map(|(_, _, paths)| paths)
    }
}

/// The path rules of one host, longest first.
#[derive(Clone, Debug, Default)]
struct Paths {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    path: Box<str>,
    service: ServiceId,
}

impl Paths {
    fn add(&mut self, service: ServiceId, paths: &[String]) {
        self.rules.extend(paths.iter().map(|path| Rule { path: path.as_str().into(), service }));
    }

    fn seal(&mut self) {
        self.rules.sort_by_key(|rule| std::cmp::Reverse(rule.path.len()));
    }

    fn longest(&self, path: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| covers(&rule.path, path))
    }
}

/// Whether a path has something in it that could be read in two ways: most have not.
#[inline(always)]
pub(crate) fn is_odd(path: &str) -> bool {
    let odd = |some| sixteen::equal(some, b'%') | sixteen::equal(some, b'\\') | sixteen::equal(some, b'.');
    find(path.as_bytes(), 0, odd).is_some()
}

/// Whether `path` is `rule` or below it.
pub(crate) fn covers(rule: &str, path: &str) -> bool {
    path.strip_prefix(rule).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rule.ends_with('/'))
}

/// The form of a path in which rules are compared (RFC 3986, 6.2.2): unreserved escapes decoded, other escapes in upper case,
/// a `%` that begins no escape as `%25`, dot segments removed. An empty path is `/`. `None` when it leaves the root or does
/// not begin with `/`. Borrows unless something changes.
pub fn normalise(path: &str) -> Option<Cow<'_, str>> {
    if path.is_empty() {
        return Some(Cow::Borrowed("/"));
    }
    if !path.starts_with('/') {
        return None;
    }
    let path = decoded(path);
    if !path.contains("/.") {
        return Some(path);
    }
    without_dots(&path).map(Cow::Owned)
}

fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len() + 8);
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(byte) = escape(rest) else {
            // Taken as a text `%`: decoding around it must not make up an escape that was not there.
            out.push_str("%25");
            continue;
        };
        rest = &rest[2..];
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The byte of the two hexadecimal digits that `text` begins with.
fn escape(text: &str) -> Option<u8> {
    let digit = |at: usize| char::from(*text.as_bytes().get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

fn without_dots(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    out.truncate(out.rfind('/')?);
                }
                if segments.peek().is_none() {
                    out.push('/');
                }
            }
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    Some(out)
}

/// Whether `path` holds what some upstreams take for a delimiter and others for a part of a name: `%2f`, `%5c`, `%00`, `\`.
pub fn hides_delimiter(path: &str) -> bool {
    path.contains('\\')
        || path.match_indices('%').any(|(at, _)| matches!(escape(&path[at + 1..]), Some(b'/' | b'\\' | 0)))
}

/// The plain forms that upstreams may make of a path which decode delimiters and end at a zero byte: those that do so before they follow its
/// dots, and those that do so after, and follow dots again. `None`: it hides none.
pub(crate) fn revealed(path: &str) -> Result<Option<[String; 2]>, NoRoute> {
    // To decode what means itself neither makes nor unmakes one.
    if !hides_delimiter(path) {
        return Ok(None);
    }
    let spelled = decoded(path);
    let plain = normalise(path).ok_or(NoRoute::BadPath)?;
    let read = |path: &str| normalise(&reveal(path)).map(Cow::into_owned).ok_or(NoRoute::BadPath);
    Ok(Some([read(&spelled)?, read(&plain)?]))
}

/// With delimiters in the place of their escapes (in upper case), up to a zero byte.
fn reveal(path: &str) -> String {
    let end = path.find("%00").unwrap_or(path.len());
    path[..end].replace("%2F", "/").replace("%5C", "/").replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn router(services: &[(&[&str], &[&str])]) -> Router {
        let owned: Vec<_> = services.iter().map(|(hosts, paths)| (strings(hosts), strings(paths))).collect();
        let numbered = owned.iter().enumerate();
        Router::new(numbered.map(|(n, (hosts, paths))| (ServiceId(n as u16), hosts.as_slice(), paths.as_slice())))
    }

    #[test]
    fn hosts_exact_then_longest_wildcard_then_every() {
        let named = [
            (&["www.example.com"][..], &["/"][..]),
            (&["*.example.com"], &["/"]),
            (&["*.b.example.com"], &["/"]),
            (&["[::1]", "192.0.2.1"], &["/"]),
        ];
        let strict = router(&named);
        let mut with_every = named.to_vec();
        with_every.push((&[], &["/"]));
        let open = router(&with_every);
        for (host, want) in [
            ("www.example.com", Some(0)),
            ("WWW.Example.COM:8080", Some(0)),
            ("www.example.com.", Some(0)),
            ("www.example.com.:443", Some(0)),
            ("www.example.com:", Some(0)),
            ("a.example.com", Some(1)),
            ("a.www.example.com", Some(1)),
            ("x.b.example.com", Some(2)),
            ("x.y.b.example.com", Some(2)),
            ("b.example.com", Some(1)),
            ("[::1]", Some(3)),
            ("[0:0::1]:80", Some(3)),
            ("192.0.2.1:80", Some(3)),
            ("example.com", None),
            ("www.example.com..", None),
            ("xexample.com", None),
            ("[::1]x", None),
            ("[::1", None),
            ("::1", None),
            ("", None),
            (".", None),
        ] {
            let want = want.map(ServiceId);
            assert_eq!(strict.route(host, "/"), want.ok_or(NoRoute::Host), "{host}");
            assert_eq!(open.route(host, "/"), Ok(want.unwrap_or(ServiceId(4))), "{host}");
        }
        let long = format!("{}.example.com", "a".repeat(300));
        assert_eq!(strict.route(&long, "/"), Err(NoRoute::Host));
    }

    #[test]
    fn the_host_is_chosen_before_the_path() {
        let router = router(&[(&["a.example"], &["/a"]), (&["*.example"], &["/b"]), (&[], &["/"])]);
        assert_eq!(router.route("a.example", "/a"), Ok(ServiceId(0)));
        assert_eq!(router.route("a.example", "/b"), Err(NoRoute::Path));
        assert_eq!(router.route("b.example", "/b"), Ok(ServiceId(1)));
        assert_eq!(router.route("b.example", "/a"), Err(NoRoute::Path));
        assert_eq!(router.route("other", "/a"), Ok(ServiceId(2)));
    }

    #[test]
    fn paths_by_prefix_at_segment_borders() {
        let router = router(&[(&[], &["/"]), (&[], &["/api"]), (&[], &["/api/v1/", "/~a"]), (&[], &["/caf%C3%A9"])]);
        for (path, want) in [
            ("/", 0),
            ("", 0),
            ("/x", 0),
            ("/api", 1),
            ("/api/", 1),
            ("/apix", 0),
            ("/api.x", 0),
            ("/api/v1", 1),
            ("/api/v1/", 2),
            ("/api/v1/x", 2),
            ("/api/v2", 1),
            ("/x/../api", 1),
            ("/x/%2e%2E/api/./v1/y", 2),
            ("/%61pi", 1),
            ("/%7Ea", 2),
            ("/api/..", 0),
            ("/api/v1/..", 1),
            ("/API", 0),
            ("/caf%c3%a9/x", 3),
            ("/api%20x", 0),
            ("/100%", 0),
            ("/.well-known/x", 0),
            ("/api/a%2fb", 1),
            ("/a%2Fb", 0),
            ("/a%5cb%00", 0),
        ] {
            assert_eq!(router.route("h", path), Ok(ServiceId(want)), "{path}");
        }
    }

    #[test]
    fn hidden_delimiters_and_escapes_from_the_root_are_refused() {
        let router = router(&[(&[], &["/"]), (&[], &["/api"]), (&[], &["/api/v1"])]);
        for path in [
            "/..",
            "/a/../..",
            "/%2e%2e/x",
            "/.%2e",
            "*",
            "x",
            "http://x/",
            "/api%2fv1",
            "/api%2Fx",
            "/api%5cx",
            "/api\\x",
            "/api/v1%00",
            "/x%2f..%2fapi",
            "/api/x%2f..%2f..%2fy",
            "/x%2f..%2f..%2f..",
            "/api/v1/%2e%2e%2f%2e%2e%2fx",
            // Dots that take away what is hidden, for those who follow them first only.
            "/api%2fx/../y",
            "/api/v1%2fx/../y",
            "/api/v1%00/../x",
        ] {
            assert_eq!(router.route("h", path), Err(NoRoute::BadPath), "{path}");
        }
        let narrow = super::tests::router(&[(&[], &["/api/v1"])]);
        assert_eq!(narrow.route("h", "/api%2fv1"), Err(NoRoute::BadPath));
        assert_eq!(narrow.route("h", "/other%2fv1"), Err(NoRoute::Path));
        assert_eq!(narrow.route("h", "/api/v1/a%2fb"), Ok(ServiceId(0)));
    }

    #[test]
    fn many_hosts_are_told_apart() {
        let hosts: Vec<Vec<String>> =
            (0..1000).map(|n| vec![format!("h{n}.example"), format!("*.h{n}.example")]).collect();
        let paths = strings(&["/"]);
        let services = hosts.iter().enumerate();
        let router = Router::new(services.map(|(n, hosts)| (ServiceId(n as u16), hosts.as_slice(), paths.as_slice())));
        for n in 0..1000 {
            assert_eq!(router.route(&format!("h{n}.example"), "/"), Ok(ServiceId(n)));
            assert_eq!(router.route(&format!("x.y.H{n}.example:80"), "/"), Ok(ServiceId(n)));
        }
        assert_eq!(router.route("h1000.example", "/"), Err(NoRoute::Host));
    }

    #[test]
    fn plain_paths_are_borrowed() {
        for path in ["/", "/a/b", "/.well", "/a./b", "//a"] {
            assert_eq!(normalise(path).as_deref(), Some(path));
        }
        assert!(matches!(normalise("/a/b"), Some(Cow::Borrowed(_))));
    }

    /// Pieces that paths are attacked with, in any order.
    fn paths() -> impl Strategy<Value = String> {
        let pieces = [
            "/", ".", "..", "/..", "%2e", "%2E%2e", "%2f", "%5c", "%00", "%", "%2", "a", "api", "é", "%25", "\\",
            "%c3", "65", "v1",
        ];
        prop_oneof![
            proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..12)
                .prop_map(|list| format!("/{}", list.concat())),
            any::<String>(),
        ]
    }

    proptest! {
        #[test]
        fn normalised_paths_are_plain_and_stay_so(path in paths()) {
            if let Some(plain) = normalise(&path) {
                prop_assert!(plain.starts_with('/'));
                prop_assert!(plain.split('/').all(|segment| segment != "." && segment != ".."), "{}", plain);
                let again = normalise(&plain);
                prop_assert_eq!(again.as_deref(), Some(&*plain));
            }
        }

        #[test]
        fn a_service_is_never_reached_by_hiding(path in paths(), host in any::<String>()) {
            prop_assert_eq!(hides_delimiter(&path), hides_delimiter(&decoded(&path)));
            let router = router(&[(&[], &["/"]), (&[], &["/api"]), (&[], &["/api/v1/"])]);
            if let Ok(found) = router.route(&host, &path) {
                let plain = normalise(&path).unwrap_or_default();
                for spelled in [plain, decoded(&path)] {
                    let bare = normalise(&reveal(&spelled)).unwrap_or_default().into_owned();
                    prop_assert_eq!(router.route("h", &bare), Ok(found));
                }
            }
        }
    }
}
