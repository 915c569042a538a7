//! What is forwarded: the rules for header fields, in both directions.
//!
//! Fields that concern one connection never pass (RFC 9110, 7.6.1), nor does what `Connection` nominates; a request that
//! nominates a field which later hops rely on is refused, since honouring it would let a client strip what we say about it. What
//! describes the client is written by us: an untrusted peer's version is replaced, a trusted one's continued. Upgrades pass for
//! WebSocket only. `Transfer-Encoding` and `Content-Length` belong to the mover, which frames the body.

use std::fmt::Write;
use std::net::IpAddr;

use http::Method;

use crate::config::names::{alphanumeric_and, is_token_byte};
use crate::config::{Edge, Forwarding, Limits, Underscores};
use crate::proxy::client::Client;
use crate::proxy::framing::{self, Framing};
use crate::proxy::{Fields, Outcome, rules, trace};
use crate::steering::fleet::HostRule;
use crate::steering::rules::Rules;
use crate::telemetry::Traced;
use crate::text;

/// The most fields that `Connection` may nominate.
const MAX_NOMINATIONS: usize = 16;

/// Fields that no nomination removes.
const PROTECTED: [&str; 20] = [
    "host",
    "content-length",
    "transfer-encoding",
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-real-ip",
    "x-request-id",
    "authorization",
    "cookie",
    "idempotency-key",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
];

/// Checks the form of a head against RFC 9110/9112 and the limits, as far as every mover leaves it to the phases.
pub fn check(method: &Method, target: &[u8], fields: &impl Fields, limits: &Limits, via: &str) -> Result<(), Outcome> {
    if *method == Method::CONNECT {
        return Err(Outcome::Connect);
    }
    if target.len() > limits.uri {
        return Err(Outcome::TargetTooLong);
    }
    if limits.underscores == Underscores::Reject && underscored(fields).next().is_some() {
        return Err(Outcome::BadRequest);
    }
    let (count, bytes) = fields.extent();
    if count > limits.headers || target.len() as u64 + bytes > limits.header_bytes {
        return Err(Outcome::HeadTooLarge);
    }
    if Said::of(fields) == Said::More {
        let mut nominations = 0;
        for name in fields.members("connection") {
            nominations += 1;
            if nominations > MAX_NOMINATIONS || !is_token(name) || is_protected(name) {
                return Err(Outcome::BadRequest);
            }
        }
    }
    let ours = |member: &&[u8]| member.rsplit(|b| *b == b' ').next().is_some_and(|by| by == via.as_bytes());
    if fields.has("via") && fields.members("via").filter(ours).count() >= 2 {
        return Err(Outcome::Loop);
    }
    Ok(())
}

/// The host that a request names: the target's authority if it has one, else Host. Exactly one Host is demanded of HTTP/1.1,
/// none is allowed of HTTP/1.0 (then the host is empty); form as in RFC 9110, 4.2.
pub fn host<'a>(target: &'a [u8], fields: &'a impl Fields, is_http_10: bool) -> Result<&'a str, Outcome> {
    let mut lines = fields.values("host");
    let host = match (lines.next(), lines.next()) {
        (Some(host), None) => Some(host.trim_ascii()),
        (None, _) if is_http_10 => None,
        _ => return Err(Outcome::BadHost),
    };
    let named = match (split_absolute(target), host) {
        (Some((authority, _)), Some(host)) if !is_same_authority(target, authority, host) => {
            return Err(Outcome::BadHost);
        }
        (Some((authority, _)), _) => authority,
        (None, Some(host)) => host,
        (None, None) => return Ok(""),
    };
    if !is_host(named) {
        return Err(Outcome::BadHost);
    }
    std::str::from_utf8(named).map_err(|_| Outcome::BadHost)
}

/// Whether two authorities of that target's scheme are one: its default port may be named or not (RFC 9110, 4.2.3).
fn is_same_authority(target: &[u8], one: &[u8], other: &[u8]) -> bool {
    let is_https = target.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"https://"));
    let port: &[u8] = if is_https { b":443" } else { b":80" };
    let [one, other] = [one, other].map(|authority| authority.strip_suffix(port).unwrap_or(authority));
    one.eq_ignore_ascii_case(other)
}

/// How often a TRACE or OPTIONS may still be forwarded (RFC 9110, 7.6.2).
pub fn max_forwards(method: &Method, fields: &impl Fields) -> Option<u64> {
    if !matches!(*method, Method::TRACE | Method::OPTIONS) {
        return None;
    }
    std::str::from_utf8(fields.values("max-forwards").next()?).ok()?.parse().ok()
}

/// What `Connection` says, told at a glance when it is one of the usual words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is not there.
    Nothing,
    /// `close`.
    Close,
    /// `keep-alive`.
    KeepAlive,
    /// Anything else, or more than one word.
    More,
}

impl Said {
    /// By these fields.
    pub fn of(fields: &impl Fields) -> Said {
        let mut lines = fields.values("connection");
        let Some(first) = lines.next() else { return Said::Nothing };
        match (first, lines.next()) {
            // Mostly it is written so, which is told at once.
            (b"keep-alive", None) => Said::KeepAlive,
            (only, None) if only.eq_ignore_ascii_case(b"close") => Said::Close,
            (only, None) if only.eq_ignore_ascii_case(b"keep-alive") => Said::KeepAlive,
            _ => Said::More,
        }
    }

    /// Whether that option (in lower case) is among what these fields, the same, say.
    pub fn has(self, option: &[u8], fields: &impl Fields) -> bool {
        match self {
            Said::Nothing => false,
            Said::Close => option == b"close",
            Said::KeepAlive => option == b"keep-alive",
            Said::More => fields.lists("connection", option),
        }
    }

    /// Whether it nominates some of these fields, the same: its trailers may be among them, which are then left out (RFC 9110, 7.6.1).
    pub fn nominates(self, fields: &impl Fields) -> bool {
        self == Said::More && fields.members("connection").any(|name| !is_option(name))
    }
}

/// Members of `Connection` that are options, or names that never pass.
fn is_option(name: &[u8]) -> bool {
    [&b"close"[..], b"keep-alive", b"upgrade", b"te"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The path of a request target, without its query. Origin form, absolute form, and `*` for OPTIONS (which stands for the root);
/// anything else is refused.
pub fn path<'a>(method: &Method, target: &'a [u8]) -> Result<&'a str, Outcome> {
    let rest = match split_absolute(target) {
        Some((_, rest)) if !rest.starts_with(b"/") => return Ok("/"),
        Some((_, rest)) => rest,
        None if target == b"*" && *method == Method::OPTIONS => return Ok("/"),
        None => target,
    };
    let is_end = |some| text::sixteen::equal(some, b'?') | text::sixteen::equal(some, b'#');
    let end = text::find(rest, 0, is_end).unwrap_or(rest.len());
    match std::str::from_utf8(&rest[..end]) {
        Ok(path) if path.starts_with('/') => Ok(path),
        _ => Err(Outcome::BadRequest),
    }
}

/// Authority and the rest of an absolute-form target.
fn split_absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let after = |scheme: &[u8]| {
        let head = target.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then(|| &target[scheme.len()..])
    };
    let rest = after(b"http://").or_else(|| after(b"https://"))?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

/// The longest host: no name is longer (RFC 1035, 2.3.4), and neither the log nor a forwarded field cuts one.
const HOST_BYTES: usize = 255;

/// A non-empty host with an optional port.
fn is_host(text: &[u8]) -> bool {
    if text.len() > HOST_BYTES {
        return false;
    }
    let (name, port) = match text {
        [b'[', ..] => match text.iter().position(|byte| *byte == b']') {
            Some(end) => text.split_at(end + 1),
            None => return false,
        },
        _ => text.split_at(text.iter().position(|byte| *byte == b':').unwrap_or(text.len())),
    };
    let name_is_good = match name {
        [b'[', inner @ .., b']'] => {
            std::str::from_utf8(inner).is_ok_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
        }
        _ => !name.is_empty() && is_reg_name(name),
    };
    let port_is_good = match port {
        [] | [b':'] => true,
        // A sign would parse too.
        [b':', digits @ ..] => {
            digits.iter().all(u8::is_ascii_digit)
                && std::str::from_utf8(digits).is_ok_and(|digits| digits.parse::<u16>().is_ok())
        }
        _ => false,
    };
    name_is_good && port_is_good
}

/// RFC 3986, 3.2.2, but for the comma: no name has one, and a list of hosts is no host.
fn is_reg_name(mut name: &[u8]) -> bool {
    static PLAIN: [bool; 256] = alphanumeric_and(b"-._~!$&'()*+;=");
    while let Some(odd) = name.iter().position(|byte| !PLAIN[usize::from(*byte)]) {
        name = match &name[odd..] {
            [b'%', a, b, rest @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            _ => return false,
        };
    }
    true
}

/// What upstreams get as the target, but for what its service's rules change: origin form, which is what an origin server expects (RFC 9112,
/// 3.2.1). Apart from the authority that an absolute form loses (it is in Host), byte for byte what came. The second part is what `/` goes before.
pub fn forwarded_target<'a>(method: &Method, target: &'a [u8]) -> (&'static str, &'a [u8]) {
    match split_absolute(target) {
        None => ("", target),
        Some((_, b"")) if *method == Method::OPTIONS => ("*", b""),
        Some((_, rest)) if rest.starts_with(b"/") => ("", rest),
        Some((_, rest)) => ("/", rest),
    }
}

/// Whether a request asks for a WebSocket (RFC 6455, 4.1). With a body it does not: where the tunnel begins would be a matter of opinion.
pub fn is_websocket(method: &Method, fields: &impl Fields, is_http_11: bool) -> bool {
    is_http_11
        && *method == Method::GET
        && is_upgrade(fields)
        && framing::request(fields, false).is_ok_and(Framing::is_empty)
}

/// Whether the fields speak of the one upgrade that we pass on, in a request or in the 101 that answers it (RFC 6455, 4.1 and 4.2).
pub fn is_upgrade(fields: &impl Fields) -> bool {
    if !fields.has("upgrade") {
        return false;
    }
    let mut protocols = fields.members("upgrade");
    protocols.next().is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
        && protocols.next().is_none()
        && fields.lists("connection", b"upgrade")
}

/// A request id from a trusted peer, if it is sane: 128 bits as 32 hexadecimal digits, or as a UUID.
pub fn request_id(client: Option<&Client>, fields: &impl Fields) -> Option<u128> {
    client.filter(|client| client.peer_trusted)?;
    let mut lines = fields.values("x-request-id");
    let (Some(value), None) = (lines.next(), lines.next()) else { return None };
    let mut id: u128 = 0;
    let mut digits = 0;
    for (index, byte) in value.iter().enumerate() {
        if *byte == b'-' && value.len() == 36 && matches!(index, 8 | 13 | 18 | 23) {
            continue;
        }
        id = id.checked_mul(16)? | u128::from((*byte as char).to_digit(16)?);
        digits += 1;
    }
    (digits == 32).then_some(id)
}

/// What the fields that we write say.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// Who connects.
    pub client: Option<&'a Client>,
    /// The host as the client named it.
    pub host: &'a str,
    /// `http` or `https`: how the client came.
    pub scheme: &'static str,
    /// Our name in `Via`.
    pub via: &'a str,
    /// The received protocol version as `Via` writes it.
    pub version: &'static str,
    /// The request's id.
    pub request_id: u128,
    /// Whether that id came with the request and stays as it was written.
    pub request_id_kept: bool,
    /// The Host rule of the service.
    pub host_rule: &'a HostRule,
    /// The request becomes a WebSocket.
    pub websocket: bool,
    /// The mover can carry trailers back.
    pub trailers: bool,
    /// How often it may still be forwarded, this time included.
    pub max_forwards: Option<u64>,
    /// What the service changes, if anything.
    pub rules: Option<&'a Rules>,
    /// How many bytes of the path those take away.
    pub cut: usize,
    /// The request's place in a trace.
    pub traced: &'a Traced,
}

impl<'a> Forward<'a> {
    /// What upstreams get as the target: see [`forwarded_target`] and [`rules::target`].
    pub fn target(&self, method: &Method, target: &'a [u8]) -> (&'a str, &'a [u8]) {
        let (before, rest) = forwarded_target(method, target);
        match self.rules {
            None => (before, rest),
            Some(rules) => rules::target(rules, self.cut, before, rest),
        }
    }
}

/// Makes the fields of a request as the upstream gets them.
pub fn request(fields: &mut impl Fields, edge: &Edge, forward: &Forward<'_>) {
    let trailers = forward.trailers && forward.version != "1.0" && fields.lists("te", b"trailers");
    strip(fields);
    fields.remove("te");
    fields.remove("upgrade");
    if forward.version == "1.0" {
        // Such a client does not wait, and could not read what it would get (RFC 9110, 10.1.1).
        fields.remove("expect");
    }
    let mut connection = String::new();
    if forward.websocket {
        connection.push_str("Upgrade");
        fields.set("upgrade", b"websocket");
    }
    if trailers {
        connection.push_str(if connection.is_empty() { "TE" } else { ", TE" });
        fields.set("te", b"trailers");
    }
    if !connection.is_empty() {
        fields.set("connection", connection.as_bytes());
    }
    if let Some(left) = forward.max_forwards {
        fields.set("max-forwards", itoa::Buffer::new().format(left.saturating_sub(1)).as_bytes());
    }
    if edge.limits.underscores == Underscores::Drop {
        drop_underscores(fields);
    }
    describe(fields, edge, forward);
    if let HostRule::Fixed(host) = forward.host_rule {
        fields.set("host", host.as_bytes());
    } else if !fields.has("host") {
        // A client of HTTP/1.0 may leave it out, we may not: the target's, or empty for none (RFC 9110, 7.2).
        fields.set("host", forward.host.as_bytes());
    }
    trace::forward(fields, &edge.trace, forward.traced);
    if let Some(rules) = forward.rules {
        rules::request(fields, rules, forward);
    }
}

/// Makes the fields of an answer as the client gets them. `upgraded` says that the answer is the 101 that was asked for.
pub fn response(fields: &mut impl Fields, via: &str, version: &str, upgraded: bool) {
    strip(fields);
    if upgraded {
        fields.set("connection", b"Upgrade");
    } else {
        fields.remove("upgrade");
    }
    fields.remove("te");
    append_via(fields, version, via);
}

/// Removes what concerns one connection, nominated or by name.
fn strip(fields: &mut impl Fields) {
    if Said::of(fields) == Said::More {
        let nominated: Vec<String> = fields
            .members("connection")
            .filter(|name| is_token(name) && !is_protected(name))
            // What goes anyway, or is looked at later.
            .filter(|name| !is_option(name))
            .take(MAX_NOMINATIONS)
            .map(|name| String::from_utf8_lossy(name).to_ascii_lowercase())
            .collect();
        nominated.iter().for_each(|name| fields.remove(name));
    }
    // One by one: of a name that it knows, the compiler makes a look whether there is anything to remove.
    fields.remove("connection");
    fields.remove("keep-alive");
    fields.remove("proxy-connection");
    fields.remove("http2-settings");
    // An agreement with a forward proxy, which we are not.
    fields.remove("proxy-authenticate");
    fields.remove("proxy-authorization");
    // It becomes HTTP_PROXY in CGI programs.
    fields.remove("proxy");
}

/// The names that have an underscore in them.
fn underscored(fields: &impl Fields) -> impl Iterator<Item = &[u8]> {
    let lines = fields.may_have_underscores().then(|| fields.lines()).into_iter().flatten();
    lines.map(|(name, _)| name).filter(|name| name.contains(&b'_'))
}

fn drop_underscores(fields: &mut impl Fields) {
    let names: Vec<String> = underscored(fields).map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.iter().for_each(|name| fields.remove(name));
}

/// Writes who the client is and which way the request went.
fn describe(fields: &mut impl Fields, edge: &Edge, forward: &Forward<'_>) {
    let trusted = forward.client.is_some_and(|client| client.peer_trusted);
    if !trusted {
        // What it says of the client, besides what we write ourselves.
        fields.remove("forwarded");
        fields.remove("x-real-ip");
        fields.remove("x-forwarded-port");
        fields.remove("x-forwarded-server");
        fields.remove("x-forwarded-prefix");
    }
    if let Some(client) = forward.client {
        let peer = text::Address::of(client.peer);
        continue_list(fields, "x-forwarded-for", peer.as_bytes(), trusted);
        if edge.forwarding == Forwarding::Forwarded {
            continue_list(fields, "forwarded", element(client.peer, forward).as_bytes(), trusted);
        }
    } else {
        fields.remove("x-forwarded-for");
    }
    if forwarded_scheme(trusted, fields).is_none() {
        fields.set("x-forwarded-proto", forward.scheme.as_bytes());
    }
    if !trusted || !fields.has("x-forwarded-host") {
        match forward.host {
            "" => fields.remove("x-forwarded-host"),
            host => fields.set("x-forwarded-host", host.as_bytes()),
        }
    }
    if !forward.request_id_kept {
        fields.set("x-request-id", &text::hexadecimal(forward.request_id));
    }
    append_via(fields, forward.version, forward.via);
}

/// The scheme by which a trusted peer says that the client came.
fn forwarded_scheme(trusted: bool, fields: &impl Fields) -> Option<&'static str> {
    match fields.values("x-forwarded-proto").next().filter(|_| trusted)? {
        b"https" => Some("https"),
        b"http" => Some("http"),
        _ => None,
    }
}

/// `http` or `https`: how the client came, by the word of a trusted peer or else by the connection's `scheme`. What upstreams are told.
pub fn scheme(client: Option<&Client>, fields: &impl Fields, scheme: &'static str) -> &'static str {
    forwarded_scheme(client.is_some_and(|client| client.peer_trusted), fields).unwrap_or(scheme)
}

/// Continues a comma-separated list, over all its lines, or begins it anew.
pub fn continue_list(fields: &mut impl Fields, name: &'static str, member: &[u8], keep: bool) {
    if keep {
        fields.append_member(name, member);
    } else {
        fields.set(name, member);
    }
}

/// Our element of `Forwarded` (RFC 7239, 4).
fn element(peer: IpAddr, forward: &Forward<'_>) -> String {
    let mut text = match peer {
        IpAddr::V4(v4) => format!("for={v4}"),
        IpAddr::V6(v6) => format!("for=\"[{v6}]\""),
    };
    // A checked host holds neither a quote nor a backslash.
    if !forward.host.is_empty() {
        let _ = write!(text, ";host=\"{}\"", forward.host);
    }
    let _ = write!(text, ";proto={}", forward.scheme);
    text
}

fn append_via(fields: &mut impl Fields, version: &str, via: &str) {
    fields.append("via", &[version.as_bytes(), b" ", via.as_bytes()]);
}

fn is_protected(name: &[u8]) -> bool {
    PROTECTED.iter().any(|protected| name.eq_ignore_ascii_case(protected.as_bytes()))
}

/// RFC 9110, 5.6.2.
fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().copied().all(is_token_byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::client;
    use crate::proxy::tests::edge;
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn text(map: &HeaderMap) -> String {
        let mut lines: Vec<_> = map.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        lines.sort();
        lines.join("\n")
    }

    fn forwarded(edge: &Edge, lines: &[(&str, &str)], websocket: bool, trailers: bool) -> String {
        let mut fields = map(lines);
        let client = client::client("10.0.0.1".parse().unwrap(), edge, &fields);
        let kept = request_id(Some(&client), &fields);
        let forward = Forward {
            client: Some(&client),
            host: "example.com",
            scheme: "http",
            via: "meridian-fra1",
            version: "1.1",
            request_id: kept.unwrap_or(0xabc),
            request_id_kept: kept.is_some(),
            host_rule: &HostRule::Pass,
            websocket,
            max_forwards: None,
            trailers,
            rules: None,
            cut: 0,
            traced: &Traced::default(),
        };
        request(&mut fields, edge, &forward);
        text(&fields)
    }

    const FROM_A_STRANGER: &str = "host: example.com\nvia: 1.1 meridian-fra1\nx-forwarded-for: 10.0.0.1\n\
        x-forwarded-host: example.com\nx-forwarded-proto: http\nx-request-id: 00000000000000000000000000000abc";

    #[test]
    fn a_strangers_claims_are_replaced() {
        let lines = [
            ("host", "example.com"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-port", "1"),
            ("x-request-id", "0123456789abcdef0123456789abcdef"),
        ];
        assert_eq!(forwarded(&edge(), &lines, false, false), FROM_A_STRANGER);
    }

    #[test]
    fn a_trusted_peers_lists_are_continued() {
        let mut edge = edge();
        edge.trusted = vec!["10.0.0.0/8".parse().unwrap()];
        edge.forwarding = Forwarding::Forwarded;
        let lines = [
            ("host", "example.com"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "www"),
            ("via", "1.0 other"),
            ("x-request-id", "01234567-89ab-cdef-0123-456789ABCDEF"),
        ];
        assert_eq!(
            forwarded(&edge, &lines, false, false),
            "forwarded: for=1.2.3.4, for=10.0.0.1;host=\"example.com\";proto=http\nhost: example.com\nvia: 1.0 other\n\
             via: 1.1 meridian-fra1\nx-forwarded-for: 1.2.3.4, 5.6.7.8, 10.0.0.1\nx-forwarded-host: www\n\
             x-forwarded-proto: https\nx-request-id: 01234567-89ab-cdef-0123-456789ABCDEF"
        );
    }

    #[test]
    fn what_concerns_one_connection_never_passes() {
        let lines = [
            ("host", "example.com"),
            ("connection", "close, X-Secret"),
            ("connection", "upgrade"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("proxy", "http://evil"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("x_forwarded_for", "1.2.3.4"),
        ];
        assert_eq!(forwarded(&edge(), &lines, false, true), FROM_A_STRANGER);
    }

    #[test]
    fn a_websocket_and_trailers_are_asked_for_anew() {
        let lines =
            [("host", "example.com"), ("connection", "Upgrade, TE"), ("upgrade", "WebSocket"), ("te", "trailers")];
        assert!(is_websocket(&Method::GET, &map(&lines), true));
        assert!(!is_websocket(&Method::POST, &map(&lines), true));
        assert!(!is_websocket(&Method::GET, &map(&lines), false));
        assert!(!is_websocket(&Method::GET, &map(&[("upgrade", "websocket")]), true));
        assert!(!is_websocket(&Method::GET, &map(&[("upgrade", "websocket, h2c"), ("connection", "upgrade")]), true));
        let expected = format!("connection: Upgrade, TE\n{FROM_A_STRANGER}");
        let expected = expected.replace("via:", "te: trailers\nupgrade: websocket\nvia:");
        assert_eq!(forwarded(&edge(), &lines, true, true), expected);
    }

    #[test]
    fn answers_lose_what_concerned_the_upstream_connection() {
        let mut fields = map(&[
            ("connection", "close, X-Hop, Content-Length"),
            ("x-hop", "1"),
            ("content-length", "3"),
            ("keep-alive", "5"),
            ("upgrade", "h2c"),
            ("server", "origin"),
        ]);
        response(&mut fields, "meridian-x", "1.1", false);
        assert_eq!(text(&fields), "content-length: 3\nserver: origin\nvia: 1.1 meridian-x");
        let mut fields = map(&[("connection", "upgrade"), ("upgrade", "websocket")]);
        response(&mut fields, "meridian-x", "1.1", true);
        assert_eq!(text(&fields), "connection: Upgrade\nupgrade: websocket\nvia: 1.1 meridian-x");
    }

    #[test]
    fn heads_are_checked() {
        let check = |method: Method, target: &str, lines: &[(&str, &str)]| {
            let mut limits = edge().limits;
            (limits.headers, limits.header_bytes, limits.uri) = (5, 200, 50);
            check(&method, target.as_bytes(), &map(lines), &limits, "meridian-a").err()
        };
        let get = Method::GET;
        assert_eq!(check(get.clone(), "/", &[("via", "1.1 meridian-a, 1.1 x")]), None);
        assert_eq!(check(get.clone(), "/", &[("via", "1.1 meridian-a, 1.1 meridian-a")]), Some(Outcome::Loop));
        assert_eq!(
            check(get.clone(), "/", &[("via", "1.1 meridian-a"), ("via", "1.0 meridian-a")]),
            Some(Outcome::Loop)
        );
        assert_eq!(check(get.clone(), "/", &[("via", "1.1 meridian-ab"), ("via", "1.1 meridian-ab")]), None);
        assert_eq!(check(Method::CONNECT, "a:1", &[]), Some(Outcome::Connect));
        assert_eq!(check(get.clone(), &"/".repeat(51), &[]), Some(Outcome::TargetTooLong));
        assert_eq!(check(get.clone(), "/", &[("a", "1"); 6]), Some(Outcome::HeadTooLarge));
        assert_eq!(check(get.clone(), "/", &[("a", &"1".repeat(200))]), Some(Outcome::HeadTooLarge));
        for bad in ["Host", "x-forwarded-for", "close, Content-Length", "\"x\"", ":authority"] {
            assert_eq!(check(get.clone(), "/", &[("connection", bad)]), Some(Outcome::BadRequest), "{bad}");
        }
    }

    #[test]
    fn hosts_and_paths_are_read_from_any_form_of_target() {
        let ask = |target: &str, hosts: &[&str]| {
            let lines: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            let fields = map(&lines);
            let host = host(target.as_bytes(), &fields, false).map(str::to_owned);
            (host, path(&Method::GET, target.as_bytes()).map(str::to_owned))
        };
        let good = |host: &str, path: &str| (Ok(host.to_owned()), Ok(path.to_owned()));
        assert_eq!(ask("/a?b", &["Example.com:80"]), good("Example.com:80", "/a"));
        assert_eq!(ask("/", &["[2001:db8::1]:80"]), good("[2001:db8::1]:80", "/"));
        assert_eq!(ask("http://a/b?c", &["a"]), good("a", "/b"));
        assert_eq!(ask("HTTP://a?c", &["A"]), good("a", "/"));
        for hosts in
            [&[][..], &["a", "a"], &[""], &["a b"], &["a,b"], &["u@a"], &["a:x"], &["a:123456"], &["[::1"], &["a/b"]]
        {
            assert_eq!(ask("/", hosts).0, Err(Outcome::BadHost), "{hosts:?}");
        }
        assert_eq!(ask("http://a/", &["b"]).0, Err(Outcome::BadHost));
        for target in ["*", "a", "a:80", "?x", ""] {
            assert_eq!(path(&Method::GET, target.as_bytes()), Err(Outcome::BadRequest), "{target}");
        }
        assert_eq!(path(&Method::OPTIONS, b"*"), Ok("/"));
        assert_eq!(host(b"/", &HeaderMap::new(), true), Ok(""));
    }

    proptest! {
        #[test]
        fn any_head_is_forwarded_without_panic(lines in prop::collection::vec(
            (prop::sample::select(vec!["connection", "via", "x-forwarded-for", "forwarded", "te", "upgrade", "host", "a_b"]),
             prop::collection::vec(32u8..=255, 0..40)), 0..12)) {
            let mut fields = HeaderMap::new();
            for (name, value) in &lines {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    fields.append(*name, value);
                }
            }
            let client = client::client("10.0.0.1".parse().unwrap(), &edge(), &fields);
            let _ = check(&Method::GET, b"/", &fields, &edge().limits, "meridian-a");
            let _ = host(b"/", &fields, false);
            let forward = Forward { client: Some(&client), host: "h", max_forwards: None, scheme: "http", via: "meridian-a", version: "1.1",
                request_id: 1, request_id_kept: false, host_rule: &HostRule::Pass, websocket: false, trailers: false, rules: None, cut: 0,
                traced: &Traced::default() };
            request(&mut fields, &edge(), &forward);
            prop_assert!(!fields.contains_key("connection") && !fields.contains_key("upgrade") && !fields.contains_key("te"));
            prop_assert_eq!(fields.get("x-forwarded-for").unwrap(), "10.0.0.1");
        }
    }
}
