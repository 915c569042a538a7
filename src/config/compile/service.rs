//! `[services.*]`: what clients ask for, and the policies for them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::config::compile::areas::{self, Own};
use crate::config::compile::pools::{self, Draft};
use crate::config::compile::region::Regions;
use crate::config::compile::{Context, affinity, health, rules};
use crate::config::file::Value;
use crate::config::names;
use crate::config::reader::{Section, Text};
use crate::config::scribe::Place;
use crate::config::tls::UpstreamTls;
use crate::proxy_protocol::Version::{V1, V2};
use crate::steering::accept::seeds;
use crate::steering::fleet::{
    Affinity, Blend, Draw, EndpointAddress, EndpointSpec, Failback, Fleet, HostRule, Intent, Panic, Pool, Probe,
    Protocol, RateLimit, RetryPolicy, Service, Steering, Timeouts, Upstream,
};
use crate::steering::ids::{PoolId, RegionSet, ServiceId};
use crate::steering::route::Router;

const MOST_SERVICES: usize = 1000;
/// Pools are numbered by two bytes.
const MOST_POOLS: usize = 1 << 16;
/// Hosts or paths of one service.
const MOST_ROUTES: usize = 5000;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A service and what only the compiler needs of it.
struct Read {
    service: Service,
    tls: Option<Arc<UpstreamTls>>,
    pools: Vec<Draft>,
    /// Hosts and paths; `None` when some were refused.
    routes: Option<Routes>,
    affinity_place: Place,
}

struct Routes {
    hosts: Vec<(String, Place)>,
    paths: Vec<(String, Place)>,
}

/// What services have to know of the listeners.
#[derive(Clone, Copy)]
pub(super) struct Listeners {
    /// `[admin] address`, if there is one.
    pub(super) admin: Option<SocketAddr>,
    /// One has that engine.
    pub(super) pingora: bool,
    /// Whether a request can count as one that came by https.
    pub(super) knows_https: bool,
}

/// Fills in the fleet's services, pools and router. Returns the TLS to the endpoints of those that have it.
pub(super) fn services(
    root: &Section<'_>,
    regions: &Regions<'_>,
    listeners: Listeners,
    fleet: &mut Fleet,
    context: &Context<'_>,
) -> Vec<Arc<UpstreamTls>> {
    let mut secured: Vec<Arc<UpstreamTls>> = Vec::new();
    let section = root.table("services");
    let entries = section.entries();
    if entries.is_empty() && (section.is_present() || !root.has("services")) {
        context
            .scribe
            .file_error(0, true, "no service is configured: at least one is needed")
            .hint("add `[services.NAME.pools.REGION]` and below it `endpoints = [\"10.0.1.10:8080\"]`");
    }
    if let Some(entry) = entries.get(MOST_SERVICES) {
        context
            .scribe
            .error(entry.place, format!("there can be at most {MOST_SERVICES} services, not {}", entries.len()));
        return secured;
    }
    let mut routes: Vec<(ServiceId, String, Routes)> = Vec::new();
    let mut affinity_places = Vec::new();
    for entry in entries {
        super::check_name(&entry.key, entry.place, "service", context.scribe);
        let Some(service) = section.named(&entry.key, entry.place, &entry.node) else { continue };
        let mut read = service_of(&entry.key, service, regions, listeners, context);
        secured.extend(read.tls.take().filter(|tls| secured.iter().all(|known| known.fingerprint != tls.fingerprint)));
        let id = ServiceId(fleet.services.len() as u16);
        if fleet.pools.len() + read.pools.len() > MOST_POOLS {
            context.scribe.error(entry.place, format!("there can be at most {MOST_POOLS} pools in all"));
            return secured;
        }
        for draft in read.pools {
            let pool = PoolId(fleet.pools.len() as u16);
            read.service.pools.push(pool);
            read.service.pool_of[draft.region.index()] = Some(pool);
            let Draft { region, weight, dial, endpoints, weight_place, .. } = draft;
            warn_of_admin(&endpoints, weight_place, listeners, context);
            fleet.pools.push(Pool { service: id, region, weight, dial, endpoints });
        }
        routes.extend(read.routes.map(|routes| (id, entry.key.clone(), routes)));
        affinity_places.push(read.affinity_place);
        fleet.services.push(read.service);
    }
    warn_of_shared_cookies(&routes, &affinity_places, fleet, context);
    fleet.router = router(&routes, context);
    secured
}

/// Whoever asks for such a service asks the admin pages, past what guards them.
fn warn_of_admin(endpoints: &[EndpointSpec], place: Place, listeners: Listeners, context: &Context<'_>) {
    let Some(admin) = listeners.admin else { return };
    let is_admin = |endpoint: &&EndpointSpec| match endpoint.address {
        EndpointAddress::Socket(address) => {
            let same = address.ip() == admin.ip() || (admin.ip().is_unspecified() && address.ip().is_loopback());
            same && address.port() == admin.port()
        }
        EndpointAddress::Name { ref host, port } => host == "localhost" && port == admin.port(),
    };
    if endpoints.iter().any(|endpoint| is_admin(&endpoint)) {
        context
            .scribe
            .warning(place, "an endpoint of this pool is the admin address: strangers could read the admin pages")
            .hint("name the origin's own address");
    }
}

/// A browser holds one cookie of a name for a host: services that share both would overwrite each other's.
fn warn_of_shared_cookies(
    routes: &[(ServiceId, String, Routes)],
    places: &[Place],
    fleet: &Fleet,
    context: &Context<'_>,
) {
    let mut seen: HashMap<(&str, &str), &str> = HashMap::new();
    for (id, name, Routes { hosts, .. }) in routes {
        let Some(Affinity::Cookie(cookie)) = &fleet.service(*id).affinity else { continue };
        let hosts = hosts.iter().map(|(host, _)| host.as_str());
        let every = (hosts.len() == 0).then_some("");
        let other = hosts.chain(every).filter_map(|host| seen.insert((&cookie.name, host), name)).next();
        if let Some(other) = other.filter(|other| other != name) {
            let what = format!(
                "service `{other}` has a cookie `{}` on the same host: each overwrites the other's",
                cookie.name
            );
            context.scribe.warning(places[id.index()], what).hint("give one of them another `name`");
        }
    }
}

fn router(routes: &[(ServiceId, String, Routes)], context: &Context<'_>) -> Router {
    let mut seen: HashMap<(&str, &str), (&str, Place)> = HashMap::new();
    for (_, name, Routes { hosts, paths }) in routes {
        for (path, path_place) in paths {
            let hosts = hosts.iter().map(|(host, place)| (host.as_str(), *place));
            let every = hosts.len() == 0;
            for (host, place) in hosts.chain(every.then_some(("", *path_place))) {
                match seen.get(&(host, path.as_str())) {
                    // Within one service it was reported as an entry listed twice.
                    Some((other, _)) if other == name => {}
                    Some((other, first)) => {
                        let host = if every { "every host" } else { "this host" };
                        // As written: it may hold a variable. The default is not written.
                        let path = if path == "/" { "\"/\"".to_owned() } else { context.scribe.written(*path_place) };
                        let what = format!("{host} with path {path} belongs to service `{other}` already");
                        context.scribe.error(place, what).also("there at", *first);
                    }
                    None => {
                        seen.insert((host, path), (name, place));
                    }
                }
            }
        }
    }
    let plain = |list: &[(String, Place)]| list.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
    let owned: Vec<_> =
        routes.iter().map(|(id, _, routes)| (*id, plain(&routes.hosts), plain(&routes.paths))).collect();
    Router::new(owned.iter().map(|(id, hosts, paths)| (*id, hosts.as_slice(), paths.as_slice())))
}

/// Within this a client that asks for nothing has to have all of its permits back.
const LONGEST_BURST: Duration = Duration::from_secs(365 * 86_400);

/// How often the clients of one network may ask, if there is a bound.
fn rate_limit(section: Section<'_>) -> Option<RateLimit> {
    if !section.is_present() {
        return None;
    }
    if !section.has("requests") {
        section.missing(
            "`requests`",
            "write how many requests a client may make, as in `requests = 100`, and in which time: `per = \"1s\"`",
        );
    }
    let requests = section.integer("requests", 1u32, 1..=1_000_000_000);
    let limit = RateLimit {
        requests: NonZeroU32::new(requests)?,
        per: section.duration("per", SECOND, SECOND..=DAY),
        burst: NonZeroU32::new(section.integer("burst", requests, 1..=1_000_000_000))?,
        prefixes: [section.integer("ipv4_prefix", 32u8, 0..=32), section.integer("ipv6_prefix", 64u8, 0..=128)],
    };
    // What keeps it counts in nanoseconds of 64 bits.
    let whole = limit.per.as_nanos() / u128::from(requests) * u128::from(limit.burst.get());
    if whole > LONGEST_BURST.as_nanos() {
        let what = "`burst` is more than a client gets back in a year";
        section.scribe.error(section.place_of("burst"), what).hint("write a smaller `burst`, or more `requests`");
    }
    section.finish();
    Some(limit)
}

fn service_of(
    name: &str,
    section: Section<'_>,
    regions: &Regions<'_>,
    listeners: Listeners,
    context: &Context<'_>,
) -> Read {
    let dial: u8 = section.integer("dial", 100, 0..=100);
    let pools_section = section.table("pools");
    let (pools, complete) = pools::pools(&pools_section, (dial, section.place_of("dial")), regions, context);
    if pools_section.entries().is_empty() && (pools_section.is_present() || !section.has("pools")) {
        let hint = format!("add `[{}.pools.REGION]` and below it `endpoints = [\"10.0.1.10:8080\"]`", section.name);
        context
            .scribe
            .absent(section.place, format!("`{}` has no pool: nothing could serve it", section.name))
            .hint(hint);
    }
    let members: RegionSet = pools.iter().map(|pool| pool.region).collect();
    let own = Own { regions, members, complete, context };
    let band_km = section.number("band_km", 500.0, 0.0..=20_038.0);
    let steering = match section.choice("steering", 0, &[("nearest", 0), ("split", 1), ("band", 2), ("balanced", 3)]) {
        0 => Steering::Nearest,
        1 => Steering::Split,
        3 => Steering::Balanced,
        _ => Steering::Band(band_km),
    };
    let weight = section.number("rtt_weight", 0.0, 0.0..=1.0);
    let km_per_ms = section.number("rtt_km_per_ms", 100.0, 1.0..=10_000.0);
    let blend = (weight > 0.0).then_some(Blend { weight, km_per_ms });
    let rtt_place = section.place_of("rtt_weight");
    let routes = hosts(&section).zip(paths(&section)).map(|(hosts, paths)| Routes { hosts, paths });
    let draw = [("network", Draw::Network), ("address", Draw::Address), ("request", Draw::Request)];
    let residency = areas::residency(&section, &own);
    let unknown_allowed = section.choice("unknown", false, &[("deny", false), ("allow", true)]);
    let draw = section.choice("draw", Draw::Network, &draw);
    let panic = section.choice("panic", Panic::Serve, &[("serve", Panic::Serve), ("refuse", Panic::Refuse)]);
    let failback = [("auto", Failback::Auto), ("manual", Failback::Manual)];
    let failback = section.choice("failback", Failback::Auto, &failback);
    let drain_timeout = section.duration("drain_timeout", 300 * SECOND, Duration::ZERO..=DAY);
    let max_body = section.size("max_body", 1 << 30, 0..=1 << 50);
    let rate_limit = rate_limit(section.table("rate_limit"));
    let host = host(&section);
    let (upstream, tls) = upstream(section.table("upstream"), listeners.pingora, context);
    let paths = routes.as_ref().map(|routes| routes.paths.as_slice());
    let rules = rules::rules(&section, paths, listeners.knows_https);
    let affinity_place = section.place_of("affinity");
    let affinity = affinity::affinity(section.table("affinity"));
    if matches!(affinity, Some(Affinity::Cookie(_))) && !listeners.knows_https {
        context
            .scribe
            .warning(
                affinity_place,
                "no request can count as https, and browsers bring the cookie back over https only",
            )
            .hint("give a `[[listen]]` `tls`, or name what ends TLS before meridian in `[client_ip] trusted`");
    }
    let pins = areas::pins(&section.table("pins"), &own);
    let health_section = section.table("health");
    let health_place = health_section.place;
    let health = health::health(health_section);
    if tls.is_some() && matches!(health.probe, Probe::Grpc { .. }) {
        context
            .scribe
            .error(health_place, "gRPC probes are made without TLS, and this service has `upstream.tls`")
            .hint(
                "`kind = \"http\"` goes within the same TLS as requests; `kind = \"tls\"` looks at the handshake alone",
            );
    }
    let service = Service {
        name: name.to_owned(),
        steering,
        blend,
        draw,
        residency,
        unknown_allowed,
        panic,
        failback,
        pins,
        affinity,
        health,
        timeouts: timeouts(section.table("timeouts")),
        upstream,
        retry: retry(section.table("retry")),
        drain_timeout,
        max_body,
        rate_limit,
        host,
        rules,
        pools: Vec::with_capacity(pools.len()),
        pool_of: vec![None; regions.list.len()],
        regions: members,
        weighted: pools.iter().filter(|pool| pool.weight > 0).map(|pool| pool.region).collect(),
        seeds: regions.list.iter().map(|region| seeds(name, &region.name)).collect(),
    };
    warn(&service, &pools, &own, health_place);
    warn_of_blend(&service, rtt_place, context);
    section.finish();
    Read { service, tls, pools, routes, affinity_place }
}

fn warn_of_blend(service: &Service, place: Place, context: &Context<'_>) {
    if service.blend.is_none() {
        return;
    }
    if service.steering != Steering::Nearest {
        let steering = service.steering.as_str();
        context
            .scribe
            .warning(place, format!("`rtt_weight` counts for `steering = \"nearest\"` only, not for `\"{steering}\"`"))
            .hint("leave it out");
    } else if service.health.probe == Probe::None {
        context
            .scribe
            .error(place, "`rtt_weight` needs health checks: they measure the regions that nobody goes to")
            .hint(format!("add `[services.{}.health]`, with a `kind` that is not `none`", service.name));
    }
}

/// What is probably a mistake in how a service uses its regions.
fn warn(service: &Service, pools: &[Draft], own: &Own<'_, '_>, health_place: Place) {
    let scribe = own.context.scribe;
    let several = pools.len() > 1;
    if several && service.health.probe == Probe::None {
        scribe
            .warning(
                health_place,
                format!("`{}` has several regions but no health checks: an outage will not be noticed", service.name),
            )
            .hint(format!("add `[services.{}.health]`, with a `kind` that is not `none`", service.name));
    }
    let is_out = |pool: &Draft| own.regions.list[pool.region.index()].intent != Intent::Ready;
    if !pools.is_empty() && pools.iter().all(is_out) {
        scribe
            .warning(
                own.regions.place(pools[0].region),
                format!("every region of `{}` is out (`state`): it answers 503 to all requests", service.name),
            )
            .hint("leave one of them `state = \"ready\"`");
    }
    if !pools.is_empty() && service.weighted.is_empty() {
        scribe.warning(
            pools[0].weight_place,
            format!("no region of `{}` has a weight above 0: all its traffic is failover", service.name),
        );
    }
    for pool in pools.iter().filter(|pool| own.regions.is_nowhere(pool.region)) {
        let (name, place) = (&own.regions.list[pool.region.index()].name, own.regions.place(pool.region));
        let of = &service.name;
        match service.steering {
            Steering::Balanced if pool.weight > 0 => {
                scribe
                    .error(place, format!("region `{name}` has no location: `{of}` cannot balance distances to it"))
                    .hint("add `location = [latitude, longitude]`, or give its pool `weight = 0`");
            }
            Steering::Nearest | Steering::Band(_) if several => {
                scribe
                    .warning(place, format!("region `{name}` has no location: for `{of}` it comes last"))
                    .hint("add `location = [latitude, longitude]`");
            }
            _ => {}
        }
    }
    let mut positive = pools.iter().filter(|pool| pool.weight > 0);
    if let (Steering::Nearest, Some(first)) = (service.steering, positive.next())
        && let Some(other) = positive.find(|pool| pool.weight != first.weight)
    {
        scribe
            .warning(
                other.weight_place,
                "weights differ, but `steering = \"nearest\"` only asks whether they are above 0",
            )
            .hint("use `steering = \"split\"`, `\"band\"` or `\"balanced\"`, or a `dial`");
    }
    if let Steering::Split | Steering::Balanced = service.steering {
        let steering = service.steering.as_str();
        let mut dials: Vec<Place> = pools.iter().filter(|pool| pool.dial < 100).map(|pool| pool.dial_place).collect();
        dials.dedup();
        for place in dials {
            scribe
                .warning(place, format!("a dial under `steering = \"{steering}\"` moves clients against their weights"))
                .hint("change the `weight` instead");
        }
    }
}

/// `None` when one was refused: an empty list would stand for every host.
fn hosts(section: &Section<'_>) -> Option<Vec<(String, Place)>> {
    let texts = section.texts("hosts", "an entry of `hosts`");
    all_of(section, "hosts", &texts, names::host_pattern, "this host")
}

fn paths(section: &Section<'_>) -> Option<Vec<(String, Place)>> {
    let texts = section.texts("paths", "an entry of `paths`");
    if !section.has("paths") {
        return Some(vec![("/".to_owned(), section.place)]);
    }
    if super::is_empty_list(section, "paths") {
        let written =
            section.scribe.error(section.place_of("paths"), "`paths` is empty: the service could never be reached");
        written.hint("leave it out for every path");
        return None;
    }
    all_of(section, "paths", &texts, names::path_prefix, "this path")
}

fn all_of(
    section: &Section<'_>,
    key: &'static str,
    texts: &[Text<'_>],
    grammar: fn(&str) -> Result<String, names::Refused>,
    what: &str,
) -> Option<Vec<(String, Place)>> {
    if let Some(text) = texts.get(MOST_ROUTES) {
        section
            .scribe
            .error(text.place, format!("`{key}` can have at most {MOST_ROUTES} entries, not {}", texts.len()));
        return None;
    }
    let mut list = Vec::new();
    for text in texts {
        match grammar(text.value) {
            Ok(plain) => list.push((plain, text.place)),
            Err(why) => section.refused(*text, &format!("an entry of `{key}`"), &why),
        }
    }
    super::refuse_twice(&list, what, section.scribe);
    // Not a list: it was said when the texts were read.
    let written = section.node(key).map(|node| match &node.value {
        Value::Array { items, .. } => Some(items.len()),
        _ => None,
    });
    (written.unwrap_or(Some(0)) == Some(list.len())).then_some(list)
}

fn host(section: &Section<'_>) -> HostRule {
    match section.text("host") {
        None | Some(Text { value: "pass", .. }) => HostRule::Pass,
        Some(text) => match names::host_field(text.value) {
            Ok(host) => HostRule::Fixed(host),
            Err(why) => {
                section.refused(text, "host", &why);
                HostRule::Pass
            }
        },
    }
}

fn timeouts(section: Section<'_>) -> Timeouts {
    let timeouts = Timeouts {
        connect: section.duration("connect", 300 * MS, MS..=DAY),
        first_byte: section.duration("first_byte", 5 * SECOND, MS..=DAY),
        request: section.duration("request", 30 * SECOND, MS..=DAY),
        idle: section.duration("idle", 30 * SECOND, MS..=DAY),
        tunnel_idle: section.duration("tunnel_idle", 3600 * SECOND, MS..=DAY),
    };
    section.finish();
    timeouts
}

fn upstream(section: Section<'_>, pingora: bool, context: &Context<'_>) -> (Upstream, Option<Arc<UpstreamTls>>) {
    let protocols = [("http1", Protocol::Http1), ("h2", Protocol::H2), ("h2c", Protocol::H2c)];
    let protocol = section.choice("protocol", Protocol::Http1, &protocols);
    let tls = super::tls::upstream(&section, protocol, context);
    let proxy_protocol = section.choice("proxy_protocol", None, &[("off", None), ("v1", Some(V1)), ("v2", Some(V2))]);
    let idle = section.duration("idle", 60 * SECOND, MS..=DAY);
    let upstream = Upstream {
        protocol,
        tls: tls.as_ref().map_or(0, |tls| tls.fingerprint),
        proxy_protocol,
        idle: if proxy_protocol.is_some() { Duration::ZERO } else { idle },
        max_age: section.duration("max_age", 3600 * SECOND, MS..=7 * DAY),
        max_connections: section.integer("max_connections", 0u32, 0..=1_000_000),
    };
    match (section.has("tls"), protocol) {
        (true, Protocol::H2c) => {
            section
                .scribe
                .error(section.place_of("protocol"), "`h2c` is HTTP/2 without TLS, and this service has `tls`")
                .hint("within TLS it is `protocol = \"h2\"`");
        }
        (false, Protocol::H2) => {
            section
                .scribe
                .error(section.place_of("protocol"), "`h2` is HTTP/2 within TLS, and this service has no `tls`")
                .hint("add `tls = {}`, which trusts the system's authorities; without TLS it is `protocol = \"h2c\"`");
        }
        _ => {}
    }
    if proxy_protocol.is_some() && protocol != Protocol::Http1 {
        section
            .scribe
            .error(
                section.place_of("proxy_protocol"),
                "a connection of HTTP/2 is many clients' at once, and this header says whose it is",
            )
            .hint("leave `protocol` out, or `proxy_protocol`: the client is in X-Forwarded-For as well");
    } else if proxy_protocol.is_some() && section.has("idle") {
        section.scribe.warning(
            section.place_of("idle"),
            "with `proxy_protocol` no connection is kept: each is one client's, and none is used for two requests",
        );
    }
    for (is_there, key, what) in [
        (section.has("tls"), "tls", "TLS to upstreams"),
        (proxy_protocol.is_some(), "proxy_protocol", "the PROXY protocol to upstreams"),
    ] {
        if is_there && pingora {
            section
                .scribe
                .error(
                    section.place_of(key),
                    format!("{what} needs the native engine, and a listener has `engine = \"pingora\"`"),
                )
                .hint("leave `engine` out of every `[[listen]]`");
        }
    }
    section.finish();
    (upstream, tls.map(Arc::new))
}

fn retry(section: Section<'_>) -> RetryPolicy {
    let mut on = vec![502, 503, 504];
    if section.node("on").is_some() {
        let code = |node| Some((section.integer_of(node, "an entry of `on`", 400u16..=599)?, node.place));
        let codes: Vec<(u16, Place)> = section.items("on").iter().filter_map(code).collect();
        super::refuse_twice(&codes, "this code", section.scribe);
        on = codes.into_iter().map(|(code, _)| code).collect();
    }
    let retry = RetryPolicy {
        attempts: section.integer("attempts", 3, 1..=10),
        budget: section.integer("budget", 20, 0..=100),
        on,
        idempotency_key: section.boolean("idempotency_key", false),
        race: section.boolean("race", true),
        hedge: section.boolean("hedge", false),
        replay: section.size("replay", 64 << 10, 0..=64 << 20),
    };
    section.finish();
    retry
}
