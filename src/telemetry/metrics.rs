//! Every metric family, in one `prometheus::Registry`.
//!
//! Two kinds of figures, made in two ways. What *happened* (requests, attempts, probes, transitions) is counted in families
//! that keep their values over reloads. What *is* (regions up, requests in flight at an endpoint, ages) is read from the
//! published snapshot when somebody scrapes, in [`super::standing`]: it cannot go stale and nobody has to maintain it.
//! Series of services, regions and endpoints that left the configuration are forgotten when the next one is published, and one that a
//! straggling request makes after that is not shown; names that stay keep their counters.
//!
//! The request path looks no label up: [`Handles`] holds dense tables by id, resolved once per configuration
//! generation. A cell is filled by its first use, so that fifty regions times six code classes times ten reasons do not become
//! thousands of series that never happened.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::proto::Metric;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::config::Edge;
use crate::geo::{Place, Source};
use crate::steering::{Event, Fleet, RegionId, ServiceId, Snapshot, TakeReason};
use crate::telemetry::{AccessRecord, Journal, Mover, standing};

/// Seconds. Chosen around what people and proxies notice: 1 ms is a cache on the same continent, 60 s is a long poll.
const REQUEST_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Seconds. A probe is short and has a deadline, 500 ms unless configured.
const PROBE_SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// `1xx` … `5xx`, and `none` when no status was sent.
const CODES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// How precisely a client's place was known, best first; `network` is `[geoip.networks]`.
const LOOKUPS: [&str; 8] = ["network", "geofeed", "subdivision", "country", "point", "continent", "special", "unknown"];

/// What came of a client's word about where it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AffinityResult {
    /// It went there.
    Honoured,
    /// The region is not in the sets for it, or gone.
    Unavailable,
    /// The cookie's time was up.
    Expired,
    /// It was no cookie of ours, or no region.
    Broken,
    /// It said nothing: a new client.
    Absent,
}

impl AffinityResult {
    const ALL: [AffinityResult; 5] = [
        AffinityResult::Honoured,
        AffinityResult::Unavailable,
        AffinityResult::Expired,
        AffinityResult::Broken,
        AffinityResult::Absent,
    ];

    fn as_str(self) -> &'static str {
        match self {
            AffinityResult::Honoured => "honoured",
            AffinityResult::Unavailable => "unavailable",
            AffinityResult::Expired => "expired",
            AffinityResult::Broken => "broken",
            AffinityResult::Absent => "absent",
        }
    }
}

/// All families of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    families: Arc<Families>,
    journal: Journal,
}

/// How the last attempt to read the configuration and its data ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// What was wrong; `None`: nothing.
    pub error: Option<String>,
}

/// What the scrape reads of the world: the published snapshot and when its clock began.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) edge: Arc<Edge>,
    /// Unix milliseconds at which the writer's clock read 0.
    pub(super) origin_ms: u64,
}

#[derive(Debug)]
struct Families {
    registry: Registry,
    standing: ArcSwapOption<Standing>,
    last_reload: ArcSwapOption<Reload>,
    handles: ArcSwapOption<Handles>,
    requests: IntCounterVec,
    unanswered: IntCounterVec,
    durations: HistogramVec,
    first_bytes: HistogramVec,
    attempts: IntCounterVec,
    doubted: IntCounterVec,
    retries: IntCounterVec,
    affinity: IntCounterVec,
    in_flight: IntGaugeVec,
    region_transitions: IntCounterVec,
    endpoint_transitions: IntCounterVec,
    endpoint_changed: IntGaugeVec,
    panics: IntCounterVec,
    ejections: IntCounterVec,
    late: IntCounter,
    events: IntCounterVec,
    moved: [IntCounter; Mover::ALL.len()],
    request_panics: IntCounterVec,
    refused_connections: IntCounterVec,
    connections: IntGauge,
    memory_pressure: IntGauge,
    handshakes: IntCounterVec,
    orders: IntCounterVec,
    probes: IntCounterVec,
    probe_durations: HistogramVec,
    certificates: IntGaugeVec,
    reloads: IntCounterVec,
    reload_success: IntGauge,
    reload_success_at: IntGauge,
    lookups: [IntCounter; LOOKUPS.len()],
    access_lines: [IntCounter; 4],
    spans: [IntCounter; 3],
}

/// Handles of the access log's own counters.
#[derive(Clone, Debug)]
pub(super) struct AccessLines {
    /// Lines that reached the output.
    pub(super) written: IntCounter,
    /// Records for which the queue had no room.
    pub(super) dropped: IntCounter,
    /// Lines that the output refused.
    pub(super) failed: IntCounter,
    /// Requests that get no line.
    pub(super) sampled_out: IntCounter,
}

/// Handles of what becomes of spans.
#[derive(Clone, Debug)]
pub(super) struct SpanResults {
    /// The collector took them.
    pub(super) exported: IntCounter,
    /// There was no room for them.
    pub(super) dropped: IntCounter,
    /// The collector did not take them.
    pub(super) failed: IntCounter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// Families of which nothing was counted yet.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let new = Register { registry: &registry };
        let pool = &["service", "region"];
        let endpoint = &["service", "region", "endpoint"];
        let build = new.gauge_vec("meridian_build_info", "1; the labels say which meridian this is.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let lookups = new.counter_vec(
            "meridian_geo_lookups_total",
            "Requests by how precisely the client's place was known.",
            &["result"],
        );
        let lines = new.counter_vec(
            "meridian_access_log_lines_total",
            "Access log lines by what became of them: written, dropped (queue full), failed (the output refused them) or sampled_out (access_sample); with two outputs, each counts.",
            &["result"],
        );
        let spans = new.counter_vec(
            "meridian_trace_spans_total",
            "Spans of recorded requests by what became of them: exported, dropped (queue full) or failed (the collector did not take them).",
            &["result"],
        );
        let moved = new.counter_vec(
            "meridian_requests_by_mover_total",
            "Requests finished, by who moved their bytes: native (our engine) or pingora (pingora-proxy).",
            &["mover"],
        );
        let families = Families {
            requests: new.counter_vec(
                "meridian_requests_total",
                "Requests finished. The reason is why the region was taken, or why none was; service and region are empty when there was none.",
                &["service", "region", "code", "reason"],
            ),
            unanswered: new.counter_vec(
                "meridian_requests_unanswered_total",
                "Requests that ended otherwise than with the whole answer of an upstream, by outcome, as in the access log.",
                &["service", "region", "outcome"],
            ),
            durations: new.histogram_vec(
                "meridian_request_duration_seconds",
                "From the complete request head to the end of the answer.",
                &["service"],
                REQUEST_SECONDS,
            ),
            first_bytes: new.histogram_vec(
                "meridian_upstream_first_byte_seconds",
                "From the complete request head to the final response head of the upstream, over all attempts.",
                pool,
                REQUEST_SECONDS,
            ),
            attempts: new.counter_vec("meridian_attempts_total", "Attempts at an endpoint of the region.", pool),
            doubted: new.counter_vec(
                "meridian_doubted_total",
                "Requests that may be sent once only and went elsewhere, because their endpoint in the region had just failed others.",
                pool,
            ),
            retries: new.counter_vec("meridian_retries_total", "Attempts after the first of a request.", &["service"]),
            affinity: new.counter_vec(
                "meridian_affinity_total",
                "Requests to services with affinity, by what came of what the client said: honoured, unavailable (its region is not in the sets), expired, broken or absent.",
                &["service", "result"],
            ),
            in_flight: new.gauge_vec("meridian_requests_in_flight", "Requests not finished yet.", &["service"]),
            region_transitions: new.counter_vec(
                "meridian_region_transitions_total",
                "Changes of a region's state for a service, by the new state.",
                &["service", "region", "to"],
            ),
            endpoint_transitions: new.counter_vec(
                "meridian_endpoint_transitions_total",
                "Verdicts over an endpoint, by the new one; the first counts.",
                &["service", "region", "endpoint", "to"],
            ),
            endpoint_changed: new.gauge_vec(
                "meridian_endpoint_last_change_timestamp_seconds",
                "When the endpoint's verdict changed last.",
                endpoint,
            ),
            panics: new.counter_vec(
                "meridian_panics_total",
                "Times that a service was left without any region that is up.",
                &["service"],
            ),
            ejections: new.counter_vec(
                "meridian_endpoint_ejections_total",
                "Times that an endpoint was ejected for what its traffic told.",
                endpoint,
            ),
            late: new.counter(
                "meridian_late_total",
                "Times that this process stood still for more than half a second; what it saw meanwhile does not count.",
            ),
            events: new.counter_vec("meridian_events_total", "Events, by kind; /api/events has the last ones.", &["kind"]),
            moved: Mover::ALL.map(|mover| moved.with_label_values(&[mover.as_str()])),
            handshakes: new.counter_vec(
                "meridian_tls_handshakes_total",
                "TLS handshakes with clients that succeeded.",
                &["version", "resumed"],
            ),
            orders: new.counter_vec(
                "meridian_acme_orders_total",
                "Orders of certificates by ACME that ended, by what came of them: issued or failed.",
                &["result"],
            ),
            refused_connections: new.counter_vec(
                "meridian_connections_refused_total",
                "Connections closed before they were HTTP, by why.",
                &["reason"],
            ),
            connections: new.gauge("meridian_connections", "Connections of clients that are open now."),
            memory_pressure: new.gauge(
                "meridian_memory_pressure",
                "1: there is too little memory to begin anything new ([limits] memory, a control group).",
            ),
            request_panics: new.counter_vec(
                "meridian_request_panics_total",
                "Requests that ended with a panic, a mistake of meridian's, by mover. The log has its text.",
                &["mover"],
            ),
            probes: new.counter_vec(
                "meridian_probes_total",
                "Probes by result: pass, fail, or late (this process was stopped meanwhile; the result was thrown away).",
                &["service", "region", "endpoint", "result"],
            ),
            probe_durations: new.histogram_vec(
                "meridian_probe_duration_seconds",
                "How long probes took.",
                pool,
                PROBE_SECONDS,
            ),
            certificates: new.gauge_vec(
                "meridian_endpoint_certificate_expiry_timestamp_seconds",
                "When the certificate ends that the endpoint showed to its last TLS probe.",
                endpoint,
            ),
            reloads: new.counter_vec(
                "meridian_config_reloads_total",
                "Times that the configuration and its data were read after the start, by result.",
                &["result"],
            ),
            reload_success: new.gauge("meridian_config_last_reload_success", "Whether the last reading succeeded."),
            reload_success_at: new.gauge(
                "meridian_config_last_reload_success_timestamp_seconds",
                "When the configuration was last read with success.",
            ),
            lookups: LOOKUPS.map(|result| lookups.with_label_values(&[result])),
            access_lines: ["written", "dropped", "failed", "sampled_out"].map(|result| lines.with_label_values(&[result])),
            spans: ["exported", "dropped", "failed"].map(|result| spans.with_label_values(&[result])),
            standing: ArcSwapOption::empty(),
            last_reload: ArcSwapOption::empty(),
            handles: ArcSwapOption::empty(),
            registry,
        };
        Metrics { families: Arc::new(families), journal: Journal::default() }
    }

    /// Resolves the handles of a snapshot: the same ones for every snapshot of one configuration generation.
    pub fn resolve(&self, snapshot: &Snapshot) -> Arc<Handles> {
        match self.families.handles.load_full() {
            Some(handles) if handles.generation == snapshot.generation => handles,
            _ => {
                let handles = Arc::new(Handles::new(&self.families, snapshot));
                self.families.handles.store(Some(handles.clone()));
                handles
            }
        }
    }

    /// Scrapes read this snapshot from now on, and its handles are returned: the same ones for every snapshot of one
    /// configuration generation. For the one writer only: a second caller could forget what the first has just resolved.
    /// `origin_ms`: Unix milliseconds at which the writer's clock read 0.
    pub fn published(&self, snapshot: &Arc<Snapshot>, edge: &Arc<Edge>, origin_ms: u64) -> Arc<Handles> {
        let next = Arc::new(Standing { snapshot: snapshot.clone(), edge: edge.clone(), origin_ms });
        let before = self.families.standing.swap(Some(next));
        // Forgotten before the new handles exist, so no handle in use loses its series.
        if before.is_some_and(|before| !same_names(&before.snapshot, snapshot)) {
            self.families.prune(snapshot);
        }
        self.resolve(snapshot)
    }

    /// The gauge of open connections, for who opens and closes them.
    pub fn connections(&self) -> IntGauge {
        self.families.connections.clone()
    }

    /// Whether memory is too short to begin anything.
    pub fn memory_pressure(&self, on: bool) {
        self.families.memory_pressure.set(i64::from(on));
    }

    /// What happened last.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Counts what happened at this time, and writes it down in the journal and the process log.
    pub fn event(&self, event: &Event, at: SystemTime) {
        let families = &self.families;
        families.events.with_label_values(&[event.kind()]).inc();
        self.journal.note(event, unix(at).as_millis() as u64);
        match event {
            Event::Endpoint { service, region, address, up, .. } => {
                let address = address.to_string();
                let to = if *up { "up" } else { "down" };
                families.endpoint_transitions.with_label_values(&[service, region, address.as_str(), to]).inc();
                families
                    .endpoint_changed
                    .with_label_values(&[service, region, address.as_str()])
                    .set(unix(at).as_secs() as i64);
            }
            Event::Region { service, region, to, .. } => {
                families.region_transitions.with_label_values(&[service, region, to.as_str()]).inc();
            }
            Event::Panic { service, on: true } => families.panics.with_label_values(&[service.as_ref()]).inc(),
            Event::Ejection { service, region, address, time: Some(_), .. } => {
                families.ejections.with_label_values(&[service, region, address.to_string().as_str()]).inc();
            }
            Event::Late { .. } => families.late.inc(),
            Event::Ejection { time: None, .. }
            | Event::Asked { .. }
            | Event::Shedding { .. }
            | Event::SelfSuspicion { .. }
            | Event::Panic { on: false, .. }
            | Event::Published { .. }
            | Event::ReloadRefused { .. }
            | Event::Override(_)
            | Event::OverridesLost { .. } => {}
        }
    }

    /// Counts a probe: `result` is `pass`, `fail` or `late`.
    pub fn probed(&self, service: &str, region: &str, endpoint: &str, result: &'static str, took: Duration) {
        self.families.probes.with_label_values(&[service, region, endpoint, result]).inc();
        self.families.probe_durations.with_label_values(&[service, region]).observe(took.as_secs_f64());
    }

    /// When the certificate ends that an endpoint shows, in Unix seconds; `None`: it is not asked for one any more.
    pub fn certificate(&self, service: &str, region: &str, endpoint: &str, expiry: Option<i64>) {
        let labels = &[service, region, endpoint];
        match expiry {
            Some(expiry) => self.families.certificates.with_label_values(labels).set(expiry),
            // There is none as a rule.
            None => drop(self.families.certificates.remove_label_values(labels)),
        }
    }

    /// The first reading of the configuration succeeded: not a reload, but the success from which later ones are told.
    pub fn loaded(&self, at: SystemTime) {
        self.families.reload_success.set(1);
        self.families.reload_success_at.set(unix(at).as_secs() as i64);
    }

    /// Counts a reload; `error` says what was wrong, if anything was.
    pub fn reloaded(&self, at: SystemTime, error: Option<String>) {
        let families = &self.families;
        families.reloads.with_label_values(&[if error.is_none() { "success" } else { "failure" }]).inc();
        families.reload_success.set(i64::from(error.is_none()));
        if error.is_none() {
            families.reload_success_at.set(unix(at).as_secs() as i64);
        }
        let at_ms = unix(at).as_millis() as u64;
        families.last_reload.store(Some(Arc::new(Reload { at_ms, error })));
    }

    /// How the last reload ended; `None` before the first.
    pub fn last_reload(&self) -> Option<Arc<Reload>> {
        self.families.last_reload.load_full()
    }

    /// Counts and logs a request that ended with a panic, and its text.
    pub fn panicked(&self, mover: Mover, panic: &str) {
        let mover = mover.as_str();
        self.families.request_panics.with_label_values(&[mover]).inc();
        tracing::error!(panic, mover, "a request ended with a panic: this is a mistake of meridian's");
    }

    /// Counts a TLS handshake with a client.
    pub fn handshake(&self, version: &'static str, resumed: bool) {
        self.families.handshakes.with_label_values(&[version, if resumed { "yes" } else { "no" }]).inc();
    }

    /// Counts an order of a certificate that ended.
    pub fn certificate_ordered(&self, issued: bool) {
        self.families.orders.with_label_values(&[if issued { "issued" } else { "failed" }]).inc();
    }

    /// Counts a connection that was closed before it was HTTP.
    pub fn connection_refused(&self, reason: &'static str) {
        self.families.refused_connections.with_label_values(&[reason]).inc();
    }

    /// Counters of the access log.
    pub(super) fn access_lines(&self) -> AccessLines {
        let [written, dropped, failed, sampled_out] = self.families.access_lines.clone();
        AccessLines { written, dropped, failed, sampled_out }
    }

    /// Counters of spans.
    pub(super) fn span_results(&self) -> SpanResults {
        let [exported, dropped, failed] = self.families.spans.clone();
        SpanResults { exported, dropped, failed }
    }

    /// The text exposition format, version 0.0.4. Ages are as of `now`.
    pub fn render(&self, now: SystemTime) -> String {
        let families = &self.families;
        let standing = families.standing.load_full();
        let mut gathered = families.registry.gather();
        if let Some(standing) = &standing {
            let names = Names::of(&standing.snapshot);
            for family in &mut gathered {
                let kept = family.take_metric().into_iter().filter(|metric| names.have(metric)).collect();
                family.set_metric(kept);
            }
        }
        gathered.extend(standing::gather(standing.as_deref(), unix(now)));
        gathered.extend(super::process::gather());
        gathered.sort_by(|a, b| a.name().cmp(b.name()));
        gathered.retain(|family| !family.get_metric().is_empty());
        let text = TextEncoder::new().encode_to_string(&gathered);
        text.expect("every family has a name and a metric: the empty ones were dropped")
    }
}

impl Families {
    /// Forgets the series of what is not in `snapshot`.
    fn prune(&self, snapshot: &Snapshot) {
        let names = Names::of(snapshot);
        prune(&self.requests, &["service", "region", "code", "reason"], &names);
        prune(&self.unanswered, &["service", "region", "outcome"], &names);
        prune(&self.durations, &["service"], &names);
        prune(&self.first_bytes, &["service", "region"], &names);
        prune(&self.attempts, &["service", "region"], &names);
        prune(&self.doubted, &["service", "region"], &names);
        prune(&self.retries, &["service"], &names);
        prune(&self.affinity, &["service", "result"], &names);
        prune(&self.in_flight, &["service"], &names);
        prune(&self.region_transitions, &["service", "region", "to"], &names);
        prune(&self.endpoint_transitions, &["service", "region", "endpoint", "to"], &names);
        prune(&self.endpoint_changed, &["service", "region", "endpoint"], &names);
        prune(&self.ejections, &["service", "region", "endpoint"], &names);
        prune(&self.panics, &["service"], &names);
        prune(&self.probes, &["service", "region", "endpoint", "result"], &names);
        prune(&self.probe_durations, &["service", "region"], &names);
        prune(&self.certificates, &["service", "region", "endpoint"], &names);
    }
}

/// What series may speak of.
struct Names<'a> {
    services: HashSet<&'a str>,
    pools: HashSet<(&'a str, &'a str)>,
    endpoints: HashSet<(&'a str, &'a str, String)>,
}

impl Names<'_> {
    fn of(snapshot: &Snapshot) -> Names<'_> {
        let fleet = snapshot.fleet();
        let services = fleet.services.iter().map(|s| s.name.as_str()).collect();
        let mut names = Names { services, pools: HashSet::new(), endpoints: HashSet::new() };
        for (pool, view) in fleet.pools.iter().zip(&snapshot.pools) {
            let (service, region) = (&fleet.service(pool.service).name, &fleet.region(pool.region).name);
            names.pools.insert((service, region));
            names
                .endpoints
                .extend(view.endpoints.iter().map(|e| (service.as_str(), region.as_str(), e.address.to_string())));
        }
        names
    }

    /// Whether what the series' labels name is still there. An empty or absent name is always there.
    fn have(&self, metric: &Metric) -> bool {
        let service = label(metric, "service");
        match (label(metric, "region"), label(metric, "endpoint")) {
            ("", _) => service.is_empty() || self.services.contains(service),
            (region, "") => self.pools.contains(&(service, region)),
            (region, endpoint) => self.endpoints.contains(&(service, region, endpoint.to_owned())),
        }
    }
}

fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    metric.get_label().iter().find(|label| label.name() == name).map_or("", |label| label.value())
}

/// Forgets the series of one family that speak of what is not in `names`. `labels` are in the order in which the family was made.
fn prune<B: MetricVecBuilder>(family: &MetricVec<B>, labels: &[&str], names: &Names<'_>) {
    for metric in family.collect().iter().flat_map(|collected| collected.get_metric()) {
        if !names.have(metric) {
            let values: Vec<&str> = labels.iter().map(|name| label(metric, name)).collect();
            // It can only be missing because somebody else removed it, which is what was wanted.
            let _ = family.remove_label_values(&values);
        }
    }
}

/// Whether both speak of the same services, regions and pools.
fn same_names(a: &Snapshot, b: &Snapshot) -> bool {
    let (a, b) = (a.fleet(), b.fleet());
    let pools = |f: &Fleet| f.pools.iter().map(|p| (p.service, p.region)).collect::<Vec<_>>();
    a.services.iter().map(|s| &s.name).eq(b.services.iter().map(|s| &s.name))
        && a.regions.iter().map(|r| &r.name).eq(b.regions.iter().map(|r| &r.name))
        && pools(a) == pools(b)
}

fn unix(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Makes and registers families; every name and label is a constant of this module, which is why nothing can fail.
struct Register<'a> {
    registry: &'a Registry,
}

const CONSTANTS: &str = "metric names and labels are constants of this module, valid and distinct";

impl Register<'_> {
    fn add<C: Collector + Clone + 'static>(&self, family: C) -> C {
        self.registry.register(Box::new(family.clone())).expect(CONSTANTS);
        family
    }

    fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels).expect(CONSTANTS))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help).expect(CONSTANTS))
    }

    fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels).expect(CONSTANTS))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help).expect(CONSTANTS))
    }

    fn histogram_vec(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(opts, labels).expect(CONSTANTS))
    }
}

/// Handles resolved for one configuration generation's services and regions, so that a request looks no label up.
#[derive(Debug)]
pub struct Handles {
    generation: u64,
    fleet: Arc<Fleet>,
    families: CountedFamilies,
    /// By `ServiceId`.
    services: Box<[ServiceHandles]>,
}

/// The families that handles are made from: clones share the values.
#[derive(Debug)]
struct CountedFamilies {
    requests: IntCounterVec,
    unanswered: IntCounterVec,
    durations: HistogramVec,
    first_bytes: HistogramVec,
    attempts: IntCounterVec,
    doubted: IntCounterVec,
    retries: IntCounterVec,
    affinity: IntCounterVec,
    lookups: [IntCounter; LOOKUPS.len()],
    moved: [IntCounter; Mover::ALL.len()],
}

#[derive(Debug)]
struct ServiceHandles {
    duration: OnceLock<Histogram>,
    retries: OnceLock<IntCounter>,
    affinity: [OnceLock<IntCounter>; AffinityResult::ALL.len()],
    in_flight: IntGauge,
    /// By `RegionId`.
    pools: Box<[OnceLock<Box<PoolHandles>>]>,
}

#[derive(Debug, Default)]
struct PoolHandles {
    requests: [[OnceLock<IntCounter>; TakeReason::ALL.len()]; CODES.len()],
    attempts: OnceLock<IntCounter>,
    doubted: OnceLock<IntCounter>,
    first_byte: OnceLock<Histogram>,
}

/// A request that is not finished: counted in when made, out when dropped.
#[derive(Debug)]
pub struct InFlight(Option<IntGauge>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(gauge) = &self.0 {
            gauge.dec();
        }
    }
}

impl Handles {
    fn new(families: &Families, snapshot: &Snapshot) -> Handles {
        let fleet = snapshot.view.fleet.clone();
        let services = fleet.services.iter().map(|service| ServiceHandles {
            duration: OnceLock::new(),
            retries: OnceLock::new(),
            affinity: Default::default(),
            in_flight: families.in_flight.with_label_values(&[service.name.as_str()]),
            pools: fleet.regions.iter().map(|_| OnceLock::new()).collect(),
        });
        Handles {
            generation: snapshot.generation,
            services: services.collect(),
            families: CountedFamilies {
                requests: families.requests.clone(),
                unanswered: families.unanswered.clone(),
                durations: families.durations.clone(),
                first_bytes: families.first_bytes.clone(),
                attempts: families.attempts.clone(),
                doubted: families.doubted.clone(),
                retries: families.retries.clone(),
                affinity: families.affinity.clone(),
                lookups: families.lookups.clone(),
                moved: families.moved.clone(),
            },
            fleet,
        }
    }

    /// Counts a finished request: requests by service, region, code class and reason; durations; retries; how its place was known.
    pub fn request(&self, record: &AccessRecord) {
        let code = usize::from(record.status / 100);
        let code = if code < CODES.len() { code } else { 0 };
        self.families.moved[record.mover as usize].inc();
        if let Some(place) = &record.place {
            self.families.lookups[lookup(place, record.reason)].inc();
        }
        if !record.is_answered() {
            self.count_unanswered(record);
        }
        let service = record.service.and_then(|id| Some((id, self.services.get(id.index())?)));
        let Some((id, service)) = service else {
            return self.count_untaken("", code, record.outcome);
        };
        let name = &self.fleet.service(id).name;
        let duration = service.duration.get_or_init(|| self.families.durations.with_label_values(&[name.as_str()]));
        duration.observe(micros(record.total_us));
        if record.attempts > 1 {
            let retries = service.retries.get_or_init(|| self.families.retries.with_label_values(&[name.as_str()]));
            retries.inc_by(u64::from(record.attempts - 1));
        }
        let pool = record.region.and_then(|region| Some((region, self.pool(id, region)?)));
        let (Some((region, pool)), Some(reason)) = (pool, record.reason) else {
            return self.count_untaken(name, code, record.outcome);
        };
        let region = &self.fleet.region(region).name;
        let requests = pool.requests[code][reason as usize].get_or_init(|| {
            self.families.requests.with_label_values(&[name.as_str(), region, CODES[code], reason.as_str()])
        });
        requests.inc();
        if let Some(first_byte_us) = record.first_byte_us {
            let labels = [name.as_str(), region];
            let histogram = pool.first_byte.get_or_init(|| self.families.first_bytes.with_label_values(&labels));
            histogram.observe(micros(first_byte_us));
        }
    }

    /// One more attempt went to this region.
    pub fn attempt(&self, service: ServiceId, region: RegionId) {
        let Some(pool) = self.pool(service, region) else { return };
        let attempts = pool.attempts.get_or_init(|| {
            let labels = [self.fleet.service(service).name.as_str(), self.fleet.region(region).name.as_str()];
            self.families.attempts.with_label_values(&labels)
        });
        attempts.inc();
    }

    /// A request went elsewhere, for its endpoint in this region had just failed others.
    pub fn doubted(&self, service: ServiceId, region: RegionId) {
        let Some(pool) = self.pool(service, region) else { return };
        let doubted = pool.doubted.get_or_init(|| {
            let labels = [self.fleet.service(service).name.as_str(), self.fleet.region(region).name.as_str()];
            self.families.doubted.with_label_values(&labels)
        });
        doubted.inc();
    }

    /// Counts what came of a client's word about where it was before.
    pub fn affinity(&self, service: ServiceId, result: AffinityResult) {
        let Some(handles) = self.services.get(service.index()) else { return };
        let counter = handles.affinity[result as usize].get_or_init(|| {
            let labels = [self.fleet.service(service).name.as_str(), result.as_str()];
            self.families.affinity.with_label_values(&labels)
        });
        counter.inc();
    }

    /// Counts a request in until the guard is dropped.
    pub fn in_flight(&self, service: ServiceId) -> InFlight {
        let gauge = self.services.get(service.index()).map(|service| service.in_flight.clone());
        if let Some(gauge) = &gauge {
            gauge.inc();
        }
        InFlight(gauge)
    }

    /// Off the dense tables: nothing was taken, so nothing was proxied, and a look-up is cheap beside the refusal.
    fn count_untaken(&self, service: &str, code: usize, outcome: &'static str) {
        let reason = if outcome.is_empty() { "none" } else { outcome };
        self.families.requests.with_label_values(&[service, "", CODES[code], reason]).inc();
    }

    /// The same of outcomes: an answer of an upstream is none of them.
    #[cold]
    fn count_unanswered(&self, record: &AccessRecord) {
        let service = record.service.filter(|id| self.services.get(id.index()).is_some());
        let region = service.and(record.region);
        let service = service.map_or("", |id| self.fleet.service(id).name.as_str());
        let region = region.map_or("", |id| self.fleet.region(id).name.as_str());
        self.families.unanswered.with_label_values(&[service, region, record.outcome]).inc();
    }

    fn pool(&self, service: ServiceId, region: RegionId) -> Option<&PoolHandles> {
        let pool = self.services.get(service.index())?.pools.get(region.index())?;
        Some(pool.get_or_init(Box::default))
    }
}

fn micros(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The index into `LOOKUPS`.
fn lookup(place: &Place, reason: Option<TakeReason>) -> usize {
    match place.source {
        _ if reason == Some(TakeReason::Network) => 0,
        Source::Geofeed(_) => 1,
        Source::Database(_) if place.subdivision.is_some() => 2,
        Source::Database(_) if place.country.is_some() => 3,
        Source::Database(_) if place.point.is_some() => 4,
        Source::Database(_) => 5,
        Source::Special => 6,
        Source::Unknown => 7,
    }
}
