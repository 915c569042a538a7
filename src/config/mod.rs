//! From text to [`Boot`] (fixed at start), [`Edge`] and `Fleet` (reloadable), with every mistake reported at once.
//!
//! Parse, don't validate: what comes out is typed and complete, so nobody checks again. Files arrive through [`Files`], variables
//! through a function: nothing here may touch a file, an environment, a clock or a socket.

pub mod acme;
pub(crate) mod compile;
pub(crate) mod file;
pub(crate) mod later;
pub(crate) mod names;
pub(crate) mod reader;
pub mod report;
pub(crate) mod scribe;
pub mod tls;
pub(crate) mod units;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::geo::Prefix;
use crate::secret::Secret;
use crate::steering::Fleet;

pub use self::acme::Acme;
pub use self::tls::{ListenerId, Ordered, Tls, UpstreamTls};
pub use report::{Finding, Mark, Report, Severity};
pub(crate) use units::{duration, meant, show_duration};

/// Where configuration text comes from.
pub trait Files {
    /// The text of a file.
    fn read(&self, path: &Path) -> std::io::Result<String>;
    /// The files that match a pattern with `*` and `?` in its last component, sorted by name; hidden files never match.
    fn glob(&self, pattern: &Path) -> std::io::Result<Vec<PathBuf>>;
}

/// A configuration that can work.
#[derive(Clone, Debug)]
pub struct Config {
    /// What a running process cannot change.
    pub boot: Boot,
    /// What a request meets before and after the decision.
    pub edge: Arc<Edge>,
    /// What decisions are made of.
    pub fleet: Arc<Fleet>,
    /// Which geo data to read.
    pub geoip: GeoFiles,
    /// Every file that was read, for watching.
    pub files: Vec<PathBuf>,
    /// Include patterns, absolute or relative to the working directory, for watching: a new file may match.
    pub patterns: Vec<PathBuf>,
    /// Probable mistakes; empty when there are none.
    pub warnings: Report,
}

/// Reads, parses and compiles `path` and what it includes. On failure the report holds every error and warning found.
/// `env` answers `${NAME}`; `host_name` is the default of `[pop] name`.
pub fn load(
    path: &Path,
    files: &dyn Files,
    env: &dyn Fn(&str) -> Option<String>,
    host_name: &str,
) -> Result<Config, Report> {
    let mut scribe = scribe::Scribe::default();
    let tree = file::read(path, files, env, &mut scribe);
    let compiled = compile::compile(&tree.root, &compile::Context { scribe: &scribe, files, env, host_name });
    let report = scribe.report();
    if report.errors() > 0 {
        return Err(report);
    }
    Ok(Config {
        boot: compiled.boot,
        edge: Arc::new(compiled.edge),
        fleet: Arc::new(compiled.fleet),
        geoip: compiled.geoip,
        files: tree.files,
        patterns: tree.patterns,
        warnings: report,
    })
}

/// Where a process answers that runs a configuration.
#[derive(Debug)]
pub struct AdminDoors {
    /// As in [`Boot::admin`].
    pub address: Option<SocketAddr>,
    /// As in [`Boot::admin_socket`].
    pub socket: Option<PathBuf>,
    /// As in [`Boot::admin_token`]; also `None` when a variable of it is not set.
    pub token: Option<Secret>,
}

/// Reads no more of a configuration than where its process answers, so that mistakes elsewhere, and variables that are not set here, are no
/// hindrance. An error: it cannot be told.
pub fn admin_doors(path: &Path, files: &dyn Files, env: &dyn Fn(&str) -> Option<String>) -> Result<AdminDoors, Report> {
    let mut scribe = scribe::Scribe::default();
    let tree = file::read(path, files, env, &mut scribe);
    let doors = compile::admin_doors(&tree.root, &compile::Context { scribe: &scribe, files, env, host_name: "" });
    doors.ok_or_else(|| scribe.report())
}

/// Which geo data to read. Paths are relative to the file that names them, made usable from the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeoFiles {
    /// `[geoip] databases`: the first that knows an address answers.
    pub databases: Vec<DatabaseSource>,
    /// `[geoip] geofeeds`.
    pub geofeeds: Vec<PathBuf>,
}

/// One entry of `[geoip] databases`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseSource {
    /// The database inside the binary.
    Builtin,
    /// An operator's file.
    File(PathBuf),
}

/// What a running process cannot change: a reload that differs here says that it needs a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct Boot {
    /// `[[listen]]`, at least one.
    pub listen: Vec<Listen>,
    /// `[admin] address`; `None`: "" (off).
    pub admin: Option<SocketAddr>,
    /// `[admin] socket`; `None`: `admin.sock` in `$RUNTIME_DIRECTORY` when that is set, else none.
    pub admin_socket: Option<PathBuf>,
    /// `[admin] token`; `None`: "" (nothing can be changed over TCP).
    pub admin_token: Option<Secret>,
    /// `[process] threads`; 0: one per core.
    pub threads: usize,
    /// `[process] drain_delay`.
    pub drain_delay: Duration,
    /// `[process] drain_timeout`.
    pub drain_timeout: Duration,
    /// `[process] state_dir`.
    pub state_dir: Option<PathBuf>,
    /// `[log] level`: a `tracing` directive.
    pub log_level: String,
    /// `[log] format`.
    pub log_format: LogFormat,
    /// `[log] access`.
    pub access_log: AccessLog,
    /// `[log] access_format`, `access_sample`, `access_slow`.
    pub access_lines: AccessLines,
    /// `[trace] otlp`: the collector's address for traces; `None`: "" (no spans).
    pub otlp: Option<String>,
}

impl Boot {
    /// The keys in which `self` and `new` differ, as written in the configuration (`listen`, `admin.address`, `process.threads` …).
    pub fn changed_keys(&self, new: &Boot) -> Vec<&'static str> {
        let Boot {
            listen,
            admin,
            admin_socket,
            admin_token,
            threads,
            drain_delay,
            drain_timeout,
            state_dir,
            log_level,
            log_format,
            access_log,
            access_lines,
            otlp,
        } = self;
        [
            ("listen", *listen != new.listen),
            ("admin.address", *admin != new.admin),
            ("admin.socket", *admin_socket != new.admin_socket),
            ("admin.token", *admin_token != new.admin_token),
            ("process.threads", *threads != new.threads),
            ("process.drain_delay", *drain_delay != new.drain_delay),
            ("process.drain_timeout", *drain_timeout != new.drain_timeout),
            ("process.state_dir", *state_dir != new.state_dir),
            ("log.level", *log_level != new.log_level),
            ("log.format", *log_format != new.log_format),
            ("log.access", *access_log != new.access_log),
            ("log.access_format", access_lines.format != new.access_lines.format),
            ("log.access_sample", access_lines.sample != new.access_lines.sample),
            ("log.access_slow", access_lines.slow != new.access_lines.slow),
            ("trace.otlp", *otlp != new.otlp),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// One `[[listen]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// Where.
    pub address: SocketAddr,
    /// Who moves the bytes of HTTP/1.1 here.
    pub engine: Engine,
    /// `http2`: by ALPN with TLS, else by prior knowledge from trusted peers.
    pub http2: bool,
    /// `tls` is there; what it says is in [`Edge::tls`].
    pub tls: bool,
    /// `proxy_protocol = "required"`: connections begin with a PROXY header, from trusted peers only.
    pub proxy_protocol: bool,
}

/// `[[listen]] engine`: who moves the bytes of HTTP/1.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Our own engine.
    #[default]
    Native,
    /// pingora-proxy, for the way back.
    Pingora,
}

/// `[log] access`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Standard output.
    Stdout,
    /// None.
    Off,
    /// A file, appended to.
    File(PathBuf),
    /// Standard output and a file, with the same lines.
    StdoutAndFile(PathBuf),
}

/// `[log] format`: how lines of the process log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
    /// `key=value` pairs.
    Logfmt,
}

/// `[log] access_format`: how lines of the access log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessFormat {
    /// A JSON object a line.
    #[default]
    Json,
    /// `key=value` pairs.
    Logfmt,
}

/// How lines of the access log look, and which requests get one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessLines {
    /// `access_format`.
    pub format: AccessFormat,
    /// `access_sample`: of the requests without trouble.
    pub sample: Share,
    /// `access_slow`: whatever took as long has trouble.
    pub slow: Duration,
}

impl Default for AccessLines {
    fn default() -> AccessLines {
        AccessLines { format: AccessFormat::Json, sample: Share::ALL, slow: Duration::from_secs(1) }
    }
}

/// A share of many, from none to all, as what a random number is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u64);

impl Share {
    /// All of them.
    pub const ALL: Share = Share(u64::MAX);

    /// `share` from 0 to 1.
    pub fn of(share: f64) -> Share {
        // Beyond either end it is the end.
        Share((share * 2.0_f64.powi(64)) as u64)
    }

    /// Whether the one with that random number is among them.
    pub fn takes(self, random: u64) -> bool {
        random < self.0 || self == Share::ALL
    }
}

/// What a request meets before and after the decision. Reloadable.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// Our name in `Via`: `meridian-` and `[pop] name`, which holds nothing that a token may not.
    pub via: String,
    /// `[client_ip] trusted`.
    pub trusted: Vec<Prefix>,
    /// `[client_ip] header`.
    pub forwarding: Forwarding,
    /// `[limits]`.
    pub limits: Limits,
    /// `upstream.tls` of each service that has it.
    pub upstream_tls: Vec<Arc<UpstreamTls>>,
    /// `tls` of each `[[listen]]` that has it.
    pub tls: Vec<(ListenerId, Arc<Tls>)>,
    /// `[acme]`.
    pub acme: Option<Arc<Acme>>,
    /// `[trace]`, but for where spans go.
    pub trace: Trace,
}

impl Edge {
    /// The certificates that are ordered, each once.
    pub fn ordered(&self) -> Vec<Arc<Ordered>> {
        let mut all: Vec<Arc<Ordered>> = self.tls.iter().filter_map(|(_, tls)| tls.ordered.clone()).collect();
        all.sort_by(|a, b| a.file.cmp(&b.file));
        all.dedup_by(|a, b| a.file == b.file);
        all
    }

    /// The TLS to endpoints of that fingerprint; `None` for 0.
    pub fn upstream_tls(&self, fingerprint: u64) -> Option<&Arc<UpstreamTls>> {
        self.upstream_tls.iter().find(|tls| tls.fingerprint == fingerprint)
    }

    /// The TLS of that listener, if it has any.
    pub fn tls(&self, listener: ListenerId) -> Option<&Arc<Tls>> {
        self.tls.iter().find(|(id, _)| *id == listener).map(|(_, tls)| tls)
    }

    /// Whether that peer is believed when it says for whom it speaks. IPv4-mapped addresses are to be unwrapped before.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer))
    }
}

/// `[trace]`, but for where spans go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// `traceparent`.
    pub traceparent: Traceparent,
    /// `sample`: of the traces that begin here, or come from peers that are not trusted.
    pub sample: Share,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace { traceparent: Traceparent::Pass, sample: Share::of(0.01) }
    }
}

/// `[trace] traceparent`: what becomes of a request's place in a trace (W3C Trace Context).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Traceparent {
    /// Removed.
    Off,
    /// As it came.
    #[default]
    Pass,
    /// Continued, or begun where there is none.
    Start,
}

/// Which forwarding field is believed from trusted peers. `X-Forwarded-*` is always written; `Forwarded` is written when it is the one configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// What stands before HTTP: PROXY header and TLS handshake.
    pub handshake_timeout: Duration,
    /// Total bytes of a request head.
    pub header_bytes: u64,
    /// Fields of a request head.
    pub headers: usize,
    /// Bytes of the request target.
    pub uri: usize,
    /// From the first byte of a request head (of a new connection: from its start) to the last. Native engine only.
    pub header_timeout: Duration,
    /// Longest silence inside a request body.
    pub body_timeout: Duration,
    /// The least bytes a second at which a client has to send or take a body; 0: no bound. Native engine only.
    pub min_rate: u64,
    /// Keep-alive between requests.
    pub idle_timeout: Duration,
    /// Requests per connection; 0: no bound.
    pub requests: u32,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one client network (/24, /48) at a time; 0: no bound.
    pub per_network: u32,
    /// New connections of one client network a second, and at once; 0: no bound.
    pub connection_rate: u32,
    /// Requests at a time, in all; 0: no bound.
    pub in_flight: usize,
    /// Bytes of memory above which nothing new is begun; 0: what the control group allows. File mappings do not count.
    pub memory: u64,
    /// Header names with `_`.
    pub underscores: Underscores,
}

/// `[limits] underscores`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underscores {
    /// The field is removed.
    Drop,
    /// The field passes.
    Pass,
    /// 400.
    Reject,
}
