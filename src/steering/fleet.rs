//! What is configured, compiled: services, regions, pools and endpoints behind dense ids.
//!
//! A `Fleet` is made by `config::compile` only, so every id in it is valid: no name dangles, every pool has an endpoint,
//! every weight is in range. It is immutable and reloadable; what is fixed at start is in `config::Boot`. It holds
//! what the configuration says, never what was observed (`health`) nor what an operator said since (overrides).

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::geo::{Area, Point};
use crate::proxy_protocol;
use crate::secret::Secret;
use crate::steering::ids::{PoolId, RegionId, RegionSet, ServiceId};
use crate::steering::networks::Networks;
use crate::steering::route::Router;
use crate::steering::rules::Rules;

/// Everything reloadable that a decision may depend on, but the geo data and what was observed.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// This meridian's own name and place.
    pub pop: Pop,
    /// `[geoip] default`: where unknown places are thought to be.
    pub geo_default: Option<Point>,
    /// `[geoip.networks]`: networks that go straight to a region.
    pub networks: Networks,
    /// Regions in configuration order.
    pub regions: Vec<Region>,
    /// Those that have a capacity.
    pub bounded: RegionSet,
    /// Services in configuration order.
    pub services: Vec<Service>,
    /// All pools, grouped by service.
    pub pools: Vec<Pool>,
    /// From host and path to a service.
    pub router: Router,
    /// `[process] brake`: a change that moves more percent of a service's clients than this has to be forced; 100: none has.
    pub brake: u8,
}

impl Fleet {
    /// The region of that name.
    pub fn region_named(&self, name: &str) -> Option<RegionId> {
        self.regions.iter().position(|r| r.name == name).map(|i| RegionId(i as u8))
    }

    /// The service of that name.
    pub fn service_named(&self, name: &str) -> Option<ServiceId> {
        self.services.iter().position(|s| s.name == name).map(|i| ServiceId(i as u16))
    }

    /// A region by id. Ids come from this fleet, so they are in range.
    pub fn region(&self, id: RegionId) -> &Region {
        &self.regions[id.index()]
    }

    /// A service by id.
    pub fn service(&self, id: ServiceId) -> &Service {
        &self.services[id.index()]
    }

    /// A pool by id.
    pub fn pool(&self, id: PoolId) -> &Pool {
        &self.pools[id.index()]
    }
}

/// This running meridian.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pop {
    /// `[pop] name`.
    pub name: String,
    /// `[pop] location`.
    pub location: Option<Point>,
}

/// A data center.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Its name, unique.
    pub name: String,
    /// Where it is; without it the region comes last in every order.
    pub location: Option<Point>,
    /// −99 … +99: shrinks (+) or stretches (−) distances to this region.
    pub bias: i8,
    /// The administrative state the configuration gives it.
    pub intent: Intent,
    /// What it can carry of this PoP's traffic, of all services together; `None`: whatever comes.
    pub capacity: Option<Capacity>,
}

/// What a region can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Above it, clients are shed to the next region. At least 1.
    pub target: u32,
    /// It never gets more. At least `target`.
    pub limit: u32,
    /// What is counted.
    pub unit: Unit,
}

/// What a capacity counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Requests at once, tunnels among them.
    InFlight,
    /// Attempts a second.
    Rps,
}

impl Unit {
    /// The word of configuration and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Unit::InFlight => "in_flight",
            Unit::Rps => "rps",
        }
    }
}

/// An operator's word over a region or endpoint. Never mixed with observed health. Of two, the greater one takes more away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// Takes traffic.
    #[default]
    Ready,
    /// No new clients; affinity and streams finish.
    Drain,
    /// Nothing at all.
    Maint,
}

impl Intent {
    /// Every intent, for metrics.
    pub const ALL: [Intent; 3] = [Intent::Ready, Intent::Drain, Intent::Maint];

    /// The word of configuration, commands and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Intent::Ready => "ready",
            Intent::Drain => "drain",
            Intent::Maint => "maint",
        }
    }
}

/// One service: what requests are for, and the policies for them.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, unique.
    pub name: String,
    /// How a region is chosen.
    pub steering: Steering,
    /// Whether and how round trips count beside distances, for [`Steering::Nearest`].
    pub blend: Option<Blend>,
    /// What a draw is keyed by.
    pub draw: Draw,
    /// Residency rules; a place in several must satisfy all of them.
    pub residency: Vec<Residency>,
    /// Whether residency rules let unknown places in.
    pub unknown_allowed: bool,
    /// What happens when no region is up.
    pub panic: Panic,
    /// How a region comes back after an outage.
    pub failback: Failback,
    /// Areas whose clients try these regions first, narrowest area first.
    pub pins: Vec<Pin>,
    /// How clients say where they were before, if that counts.
    pub affinity: Option<Affinity>,
    /// Probes and what they mean.
    pub health: HealthPolicy,
    /// Deadlines of one request.
    pub timeouts: Timeouts,
    /// Pooled upstream connections.
    pub upstream: Upstream,
    /// What may be tried again.
    pub retry: RetryPolicy,
    /// How long affinity and streams on a draining region may last.
    pub drain_timeout: Duration,
    /// The largest request body, bytes.
    pub max_body: u64,
    /// How many requests of one client network it takes; `None`: all.
    pub rate_limit: Option<RateLimit>,
    /// The Host that upstreams see.
    pub host: HostRule,
    /// What it changes in what passes; `None`: nothing.
    pub rules: Option<Box<Rules>>,
    /// This service's pools: the configured regions, in configuration order of the regions.
    pub pools: Vec<PoolId>,
    /// The pool in each region, by `RegionId`.
    pub pool_of: Vec<Option<PoolId>>,
    /// The regions that have a pool.
    pub regions: RegionSet,
    /// The regions whose pool has weight > 0.
    pub weighted: RegionSet,
    /// One hash seed per region for each tag of `accept::Tag`, by `RegionId`; see `accept`.
    pub seeds: Vec<[u64; crate::steering::accept::TAGS]>,
}

/// How often the clients of one network may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// So many requests …
    pub requests: NonZeroU32,
    /// … in this time,
    pub per: Duration,
    /// and so many at once.
    pub burst: NonZeroU32,
    /// The prefix lengths of networks, of IPv4 and of IPv6.
    pub prefixes: [u8; 2],
}

/// How a service chooses a region.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Steering {
    /// The nearest.
    Nearest,
    /// By weight.
    Split,
    /// By weight among those within this many kilometres of the nearest.
    Band(f64),
    /// By weight, with the least distances in all; see [`balance`](crate::steering::balance).
    Balanced,
}

impl Steering {
    /// The word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Steering::Nearest => "nearest",
            Steering::Split => "split",
            Steering::Band(_) => "band",
            Steering::Balanced => "balanced",
        }
    }
}

/// How round trips count beside distances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blend {
    /// Above 0, up to 1: distances alone to round trips alone.
    pub weight: f64,
    /// Kilometres that a millisecond stands for.
    pub km_per_ms: f64,
}

impl Blend {
    /// What stands for the distance to a region `km` away from the client and `rtt_ms` from here.
    pub fn km(self, km: f64, rtt_ms: f64) -> f64 {
        let far = if self.weight < 1.0 { (1.0 - self.weight) * km } else { 0.0 };
        far + self.weight * self.km_per_ms * rtt_ms
    }
}

/// What a draw is keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// The client's /24 or /48.
    Network,
    /// The client's address.
    Address,
    /// Each request anew.
    Request,
}

/// Clients from these areas may be served by these regions only.
#[derive(Clone, Debug, PartialEq)]
pub struct Residency {
    /// Any of these areas.
    pub from: Vec<Area>,
    /// These regions only.
    pub to: RegionSet,
}

/// Clients from this area try these regions first.
#[derive(Clone, Debug, PartialEq)]
pub struct Pin {
    /// The area.
    pub area: Area,
    /// The regions, first choice first.
    pub to: Vec<RegionId>,
}

/// How a client says which region it was at before.
#[derive(Clone, Debug, PartialEq)]
pub enum Affinity {
    /// A signed cookie of ours.
    Cookie(CookieAffinity),
    /// A header field of this name, lower case, that names the region.
    Header(String),
}

/// A cookie that keeps a client at its region.
#[derive(Clone, Debug, PartialEq)]
pub struct CookieAffinity {
    /// The cookie's name.
    pub name: String,
    /// How long one is good for; whole seconds.
    pub ttl: Duration,
    /// At least one. The first signs, all verify.
    pub keys: Vec<Secret>,
}

/// What happens when health leaves no region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panic {
    /// Health is ignored: an unhealthy answer is better than none.
    Serve,
    /// 503.
    Refuse,
}

/// How a region comes back after an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failback {
    /// After `hold`, over `ramp`.
    Auto,
    /// When an operator says so.
    Manual,
}

impl Failback {
    /// The word of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Failback::Auto => "auto",
            Failback::Manual => "manual",
        }
    }
}

/// Probes of a service's endpoints and what their results mean.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthPolicy {
    /// What a probe does.
    pub probe: Probe,
    /// The port probed, if not the endpoint's.
    pub port: Option<u16>,
    /// Between probes while the verdict stands.
    pub interval: Duration,
    /// Between probes while it is in doubt.
    pub fast_interval: Duration,
    /// Hard deadline of one probe.
    pub timeout: Duration,
    /// Passes in a row that make an endpoint up.
    pub rise: u32,
    /// Failures in a row that make it down.
    pub fall: u32,
    /// Percent of a pool's endpoint weight that must be up.
    pub min_healthy: u8,
    /// Envoy's overprovisioning factor for spill.
    pub overprovision: f64,
    /// How long a region that came back waits.
    pub hold: Duration,
    /// How long it then takes to get all its clients back.
    pub ramp: Duration,
    /// What failures of its traffic do to an endpoint.
    pub passive: Passive,
    /// Whether endpoints at which requests wait in vain are ejected.
    pub stall: bool,
}

impl HealthPolicy {
    /// Whether nothing that its traffic tells ejects an endpoint.
    pub fn ejects_nothing(&self) -> bool {
        self.passive.failures == 0 && self.passive.rate == 0 && !self.stall
    }

    /// The longest time from a fault to its verdict, with probes that go unanswered.
    pub fn detection_bound(&self) -> Duration {
        self.interval + self.fast_interval * self.fall.saturating_sub(1) + self.timeout
    }
}

/// When the failures of its traffic eject an endpoint, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passive {
    /// Gateway failures in a row; 0: never.
    pub failures: u32,
    /// Percent of its requests that fail, where far fewer do at the service's other endpoints; 0: never.
    pub rate: u8,
    /// For this time, and so much longer each time.
    pub eject: Duration,
    /// At most for this.
    pub eject_max: Duration,
}

impl Default for Passive {
    fn default() -> Passive {
        Passive { failures: 5, rate: 20, eject: Duration::from_secs(30), eject_max: Duration::from_secs(300) }
    }
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe {
    /// Nothing: endpoints count as up.
    None,
    /// A TCP connection is established.
    Tcp,
    /// A TLS handshake completes, with a certificate whose time is not over.
    Tls {
        /// The name asked for; empty: the endpoint's name, none for an address.
        host: String,
    },
    /// The gRPC health service says that the server serves.
    Grpc {
        /// Authority; empty: the endpoint's name or address.
        host: String,
    },
    /// An HTTP/1.1 request is answered as expected.
    Http {
        /// Request target.
        path: String,
        /// Method.
        method: String,
        /// Host; empty: the endpoint's name or address.
        host: String,
        /// Further fields.
        headers: Vec<(String, String)>,
        /// Inclusive ranges of good status codes.
        status: Vec<(u16, u16)>,
        /// What the body must contain; empty: anything.
        body: String,
    },
}

/// Deadlines of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeouts {
    /// Establishing an upstream connection.
    pub connect: Duration,
    /// From the request sent to the first byte of the answer, per attempt.
    pub first_byte: Duration,
    /// From the complete request head to a final response head, over all attempts.
    pub request: Duration,
    /// Silence inside a body, either side.
    pub idle: Duration,
    /// Both directions of a tunnel silent.
    pub tunnel_idle: Duration,
}

/// Pooled upstream connections.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// What is spoken to endpoints.
    pub protocol: Protocol,
    /// Which TLS it is spoken within, by its fingerprint; 0: none.
    pub tls: u64,
    /// The header that says whose request it is, before each connection. Then each request has a connection of its own. Native engine only.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// How long an unused connection is kept; 0: it is not.
    pub idle: Duration,
    /// How long a connection is used at all. Native engine only.
    pub max_age: Duration,
    /// The most connections to one endpoint, in this process; 0: no bound. Native engine only.
    pub max_connections: u32,
}

/// What is spoken to endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 within TLS.
    H2,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
}

/// What may be tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all, at least 1.
    pub attempts: u8,
    /// Retries as percent of requests.
    pub budget: u8,
    /// Status codes that idempotent requests take elsewhere.
    pub on: Vec<u16>,
    /// Whether a request with an `Idempotency-Key` counts as idempotent.
    pub idempotency_key: bool,
    /// Whether a request that waits longer than 99 of 100 do is sent to the next region as well, if it may be. Native engine only.
    pub hedge: bool,
    /// Whether connecting to the next region begins beside a connect that takes longer than it should. Native engine only.
    pub race: bool,
    /// Bytes of a request body that are kept so that it can be sent again. pingora keeps at most 64 KiB of them.
    pub replay: u64,
}

/// The Host that upstreams see.
#[derive(Clone, Debug, PartialEq)]
pub enum HostRule {
    /// The client's.
    Pass,
    /// This one.
    Fixed(String),
}

/// The endpoints of one service in one region, as configured.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The service it belongs to.
    pub service: ServiceId,
    /// The region it is in.
    pub region: RegionId,
    /// 0 … 1,000,000.
    pub weight: u32,
    /// Percent of the region's own clients it keeps, 0 … 100.
    pub dial: u8,
    /// At least one.
    pub endpoints: Vec<EndpointSpec>,
}

/// One endpoint as configured. A name stands for all addresses it resolves to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSpec {
    /// Where it is.
    pub address: EndpointAddress,
    /// Its share of the pool's traffic, at least 0.
    pub weight: u32,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// Known.
    Socket(SocketAddr),
    /// To be resolved in the background.
    Name {
        /// Host name, lower case.
        host: String,
        /// Port.
        port: u16,
    },
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointAddress::Socket(address) => address.fmt(f),
            EndpointAddress::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
