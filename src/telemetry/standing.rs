//! What *is*, read from the published snapshot at the scrape: nothing to keep up to date, nothing that can go stale.
//!
//! Each scrape makes its gauges anew and throws them away, so a region that left the configuration leaves no series behind.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

use crate::steering::Target;
use crate::steering::fleet::Intent;
use crate::steering::snapshot::{EndpointState, PoolState};
use crate::telemetry::metrics::Standing;

const STATES: [PoolState; 5] =
    [PoolState::Unknown, PoolState::Up, PoolState::Holding, PoolState::Ramping, PoolState::Down];

/// The gauges of one scrape.
#[derive(Default)]
struct Gauges {
    families: Vec<MetricFamily>,
}

impl Gauges {
    /// One family from its series. Of two series with equal labels the later one counts.
    fn family(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
        series: impl IntoIterator<Item = (Vec<String>, f64)>,
    ) {
        let family = GaugeVec::new(Opts::new(name, help), labels).expect("names and labels are constants, and valid");
        for (values, value) in series {
            family.with_label_values(&values).set(value);
        }
        self.families.extend(family.collect());
    }
}

/// The families of what is now. `now`: since the Unix epoch.
pub(super) fn gather(standing: Option<&Standing>, now: Duration) -> Vec<MetricFamily> {
    let Some(Standing { snapshot, edge, origin_ms }) = standing else { return Vec::new() };
    let fleet = snapshot.fleet();
    let mut gauges = Gauges::default();
    let pools: Vec<_> = fleet
        .pools
        .iter()
        .zip(&snapshot.pools)
        .map(|(pool, view)| {
            let names = vec![fleet.service(pool.service).name.clone(), fleet.region(pool.region).name.clone()];
            (names, pool, view)
        })
        .collect();

    let generation = snapshot.generation as f64;
    gauges.family(
        "meridian_config_generation",
        "The configuration in force: 1 at start, one more for each that replaced it.",
        &[],
        [(Vec::new(), generation)],
    );
    let pool = &["service", "region"];
    gauges.family(
        "meridian_region_up",
        "Whether the region is up for the service.",
        pool,
        pools.iter().map(|(names, _, view)| (names.clone(), f64::from(u8::from(view.state.is_up())))),
    );
    gauges.family(
        "meridian_region_state",
        "1 for the state in which the region is for the service, 0 for the others.",
        &["service", "region", "state"],
        pools.iter().flat_map(|(names, _, view)| {
            STATES.map(|state| {
                let mut labels = names.clone();
                labels.push(state.as_str().to_owned());
                (labels, f64::from(u8::from(view.state == state)))
            })
        }),
    );
    gauges.family(
        "meridian_region_last_change_timestamp_seconds",
        "When the region's state changed last for the service.",
        pool,
        pools.iter().map(|(names, _, view)| (names.clone(), ((origin_ms + view.changed_ms) / 1000) as f64)),
    );
    gauges.family(
        "meridian_region_ramp_ratio",
        "How much of its clients a region takes back after an outage: 0 while it holds, 1 when all is as before.",
        pool,
        pools.iter().map(|(names, _, view)| (names.clone(), view.ramp)),
    );
    gauges.family(
        "meridian_region_spill_ratio",
        "How much of its clients a region's healthy endpoints can take.",
        pool,
        pools.iter().map(|(names, _, view)| (names.clone(), view.spill)),
    );
    gauges.family(
        "meridian_region_weight",
        "The configured weight of the region for the service.",
        pool,
        pools.iter().map(|(names, pool, _)| (names.clone(), f64::from(pool.weight))),
    );
    gauges.family(
        "meridian_region_rtt_seconds",
        "The round trip to the region as it counts for where clients go, where it does and is known.",
        pool,
        pools.iter().filter_map(|(names, pool, view)| {
            fleet.service(pool.service).blend?;
            Some((names.clone(), view.rtt_ms? / 1000.0))
        }),
    );
    let regions: Vec<_> =
        fleet.regions.iter().zip(&snapshot.regions).map(|(r, view)| (vec![r.name.clone()], r, view)).collect();
    gauges.family(
        "meridian_region_requests_in_flight",
        "Requests that are at the region now, for all services together.",
        &["region"],
        regions.iter().map(|(name, _, view)| (name.clone(), f64::from(view.load.in_flight()))),
    );
    gauges.family(
        "meridian_region_shed_ratio",
        "How much of its clients a region gives away because of its load: 0 up to its target, nearly 1 at its limit.",
        &["region"],
        regions.iter().map(|(name, _, view)| (name.clone(), 1.0 - view.shed)),
    );
    gauges.family(
        "meridian_region_intake_ratio",
        "How much a region takes of those who come because their own is lost: 1 but for a while after that, where it has a capacity.",
        &["region"],
        regions.iter().map(|(name, _, view)| (name.clone(), view.intake)),
    );
    gauges.family(
        "meridian_region_capacity",
        "The configured capacity of a region: its target and its limit, in its unit (in_flight or rps).",
        &["region", "bound", "unit"],
        regions.iter().filter_map(|(name, region, _)| Some((name, region.capacity?))).flat_map(|(name, capacity)| {
            [("target", capacity.target), ("limit", capacity.limit)].map(|(bound, value)| {
                (vec![name[0].clone(), bound.to_owned(), capacity.unit.as_str().to_owned()], f64::from(value))
            })
        }),
    );
    let endpoints = || {
        pools.iter().flat_map(|(names, _, view)| {
            view.endpoints.iter().map(move |endpoint| {
                let mut labels = names.clone();
                labels.push(endpoint.address.to_string());
                (labels, endpoint)
            })
        })
    };
    let endpoint = &["service", "region", "endpoint"];
    gauges.family(
        "meridian_endpoint_up",
        "Whether the endpoint is up.",
        endpoint,
        endpoints().map(|(labels, view)| (labels, f64::from(u8::from(view.state == EndpointState::Up)))),
    );
    gauges.family(
        "meridian_endpoint_ejected",
        "Whether the endpoint is ejected for what its traffic told.",
        endpoint,
        endpoints().map(|(labels, view)| (labels, f64::from(u8::from(view.ejected.until_ms.is_some())))),
    );
    gauges.family(
        "meridian_endpoint_draining",
        "Whether the endpoint asks to be drained, by its answers to probes.",
        endpoint,
        endpoints().map(|(labels, view)| (labels, f64::from(u8::from(view.asked.drain)))),
    );
    gauges.family(
        "meridian_endpoint_effective_weight",
        "The endpoint's share of its pool's traffic: configured weight × slow start × what it asks for.",
        endpoint,
        endpoints().map(|(labels, view)| (labels, view.share())),
    );
    gauges.family(
        "meridian_endpoint_requests_in_flight",
        "Requests that are at the endpoint now.",
        endpoint,
        endpoints().map(|(labels, view)| (labels, f64::from(view.meter.in_flight()))),
    );
    gauges.family(
        "meridian_endpoint_connections",
        "Connections to the endpoint that are open, in use or kept. Those of pingora are not counted.",
        endpoint,
        endpoints().map(|(labels, view)| (labels, f64::from(view.meter.connections()))),
    );
    gauges.family(
        "meridian_panic",
        "Whether the service is without any region that is up.",
        &["service"],
        fleet
            .services
            .iter()
            .zip(&snapshot.services)
            .map(|(service, view)| (vec![service.name.clone()], f64::from(u8::from(view.panicking)))),
    );
    gauges.family(
        "meridian_self_suspicion",
        "Whether everything that is probed went down at once, so that this PoP thinks itself the cause and serves on.",
        &[],
        [(Vec::new(), f64::from(u8::from(snapshot.suspects_itself)))],
    );
    gauges.family(
        "meridian_overrides",
        "Operators' words in force, by what they are over and what they say.",
        &["target", "state"],
        Target::ALL.iter().flat_map(|target| {
            Intent::ALL.iter().map(|state| {
                let words = snapshot.overrides.iter().filter(|word| (word.kind, word.state) == (*target, *state));
                (vec![target.as_str().to_owned(), state.as_str().to_owned()], words.count() as f64)
            })
        }),
    );
    gauges.family(
        "meridian_certificate_expiry_timestamp_seconds",
        "When a certificate of a listener ends; 0: it is ordered, and not there yet.",
        &["certificate"],
        edge.tls
            .iter()
            .flat_map(|(_, tls)| &tls.certificates)
            .map(|certificate| (vec![certificate.file.display().to_string()], certificate.valid.1 as f64)),
    );
    let atlas = &snapshot.view.atlas;
    let sources: Vec<_> = atlas.databases().iter().chain(atlas.geofeeds()).filter(|s| s.built_at > 0).collect();
    gauges.family(
        "meridian_geo_data_build_timestamp_seconds",
        "When the geo data was built.",
        &["source"],
        sources.iter().map(|source| (vec![source.name.clone()], source.built_at as f64)),
    );
    gauges.family(
        "meridian_geo_data_age_seconds",
        "How old the geo data is.",
        &["source"],
        sources.iter().map(|source| (vec![source.name.clone()], now.as_secs().saturating_sub(source.built_at) as f64)),
    );
    gauges.families
}
