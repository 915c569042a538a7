//! `/api/status`: everything published, in one JSON object. Its names are a contract: fields may be added, never renamed.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::admin::Admin;
use crate::geo::SourceInfo;
use crate::state::{Clock, Published};
use crate::steering::ids::PoolId;
use crate::steering::overrides::Shown;
use crate::steering::snapshot::{Carried, EndpointView};
use crate::steering::{ServiceId, Snapshot};
use crate::text::rfc3339;

#[derive(Serialize)]
pub(super) struct Status {
    version: &'static str,
    pid: u32,
    /// The configuration's path, absolute.
    config: PathBuf,
    pop: String,
    generation: u64,
    ready: bool,
    not_ready_because: Option<String>,
    /// Where requests to proxy are accepted.
    listen: Vec<String>,
    services: Vec<Service>,
    /// What every region carries, for all services together.
    regions: Vec<Carried>,
    geo: Vec<Source>,
    /// The last reload; `null` before the first.
    reload: Option<ReloadResult>,
}

#[derive(Serialize)]
struct Service {
    name: String,
    steering: &'static str,
    /// `auto manual`: whether a region that came back waits for an operator.
    failback: &'static str,
    /// No region is up.
    panic: bool,
    regions: Vec<Region>,
}

#[derive(Serialize)]
struct Region {
    name: String,
    /// `unknown up holding ramping down`, as observed.
    state: &'static str,
    /// When `state` changed last, RFC 3339.
    since: String,
    /// What operators want of it for this service, by the configuration or since: `ready drain maint`.
    intent: &'static str,
    /// The word that rules over the region, if any was said since.
    #[serde(rename = "override")]
    word: Option<Shown>,
    weight: u32,
    /// Percent.
    dial: u8,
    /// 0 … 1.
    ramp: f64,
    /// 0 … 1.
    spill: f64,
    /// The round trip as it counts; `null`: it does not, or is not known.
    rtt_ms: Option<f64>,
    endpoints: Vec<Endpoint>,
}

#[derive(Serialize)]
struct Endpoint {
    address: String,
    name: String,
    /// `unknown up down`.
    state: &'static str,
    /// Why it is down, in words; `null` if it is not.
    cause: Option<String>,
    /// Until when it is ejected for what its traffic told, RFC 3339; `null` if it is not.
    ejected_until: Option<String>,
    /// It failed others just now: requests that may be sent once only go elsewhere if they can.
    in_doubt: bool,
    /// What operators want of it: `ready drain maint`.
    intent: &'static str,
    /// The word that rules over it, if any was said.
    #[serde(rename = "override")]
    word: Option<Shown>,
    weight: u32,
    /// 0 … 1.
    warmth: f32,
    /// Whether it asks to be drained, by its answers to probes.
    draining: bool,
    /// Its share of the pool's traffic: `weight` × `warmth` × what it asks for.
    effective_weight: f64,
    in_flight: u32,
}

#[derive(Serialize)]
struct Source {
    name: String,
    /// When the data was built, RFC 3339; `null` if it does not say.
    built: Option<String>,
    age_seconds: Option<u64>,
    networks: u64,
    coordinates: bool,
}

#[derive(Serialize)]
struct ReloadResult {
    at: String,
    success: bool,
    error: Option<String>,
}

/// The status as of `now`.
pub(super) fn of(admin: &Admin, now: SystemTime) -> Status {
    let published = admin.reader.load();
    let clock = admin.reader.clock();
    let snapshot = &published.snapshot;
    let fleet = snapshot.fleet();
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let atlas = &snapshot.view.atlas;
    let not_ready = admin.not_ready();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        config: admin.config.to_path_buf(),
        pop: fleet.pop.name.clone(),
        generation: snapshot.generation,
        ready: not_ready.is_none(),
        not_ready_because: not_ready.map(|why| why.trim_end().to_owned()),
        listen: admin.listen.iter().map(ToString::to_string).collect(),
        services: (0..fleet.services.len()).map(|index| service(&published, clock, ServiceId(index as u16))).collect(),
        regions: fleet.regions.iter().zip(&snapshot.regions).map(|(region, view)| Carried::new(region, view)).collect(),
        geo: atlas.databases().iter().chain(atlas.geofeeds()).map(|info| source(info, since_epoch)).collect(),
        reload: admin.metrics.last_reload().map(|reload| ReloadResult {
            at: rfc3339(reload.at_ms),
            success: reload.error.is_none(),
            error: reload.error.clone(),
        }),
    }
}

fn service(published: &Published, clock: Clock, id: ServiceId) -> Service {
    let snapshot = &published.snapshot;
    let service = snapshot.fleet().service(id);
    Service {
        name: service.name.clone(),
        steering: service.steering.as_str(),
        failback: service.failback.as_str(),
        panic: snapshot.service(id).panicking,
        regions: service.pools.iter().map(|pool| region(published, clock, *pool)).collect(),
    }
}

fn region(published: &Published, clock: Clock, id: PoolId) -> Region {
    let snapshot = &published.snapshot;
    let (pool, view) = (snapshot.fleet().pool(id), snapshot.pool(id));
    let region = snapshot.fleet().region(pool.region);
    Region {
        name: region.name.clone(),
        state: view.state.as_str(),
        since: rfc3339(clock.unix_ms(view.changed_ms)),
        intent: snapshot.service(pool.service).intent(pool.region).as_str(),
        word: snapshot.overrides.of_region(&region.name).map(|word| Shown::from(&**word)),
        weight: pool.weight,
        dial: pool.dial,
        ramp: view.ramp,
        spill: view.spill,
        rtt_ms: view.rtt_ms.filter(|_| snapshot.fleet().service(pool.service).blend.is_some()),
        endpoints: view.endpoints.iter().map(|view| endpoint(snapshot, view, clock)).collect(),
    }
}

fn endpoint(snapshot: &Snapshot, view: &EndpointView, clock: Clock) -> Endpoint {
    Endpoint {
        address: view.address.to_string(),
        name: view.name.to_string(),
        state: view.state.as_str(),
        cause: view.cause.as_deref().map(str::to_owned),
        ejected_until: view.ejected.until_ms.map(|at| rfc3339(clock.unix_ms(at))),
        in_doubt: view.meter.in_doubt(),
        intent: view.intent.as_str(),
        word: snapshot.overrides.of_endpoint(view).map(|word| Shown::from(&**word)),
        weight: view.weight,
        warmth: view.warmth,
        draining: view.asked.drain,
        effective_weight: view.share(),
        in_flight: view.meter.in_flight(),
    }
}

fn source(info: &SourceInfo, now: Duration) -> Source {
    let built = (info.built_at > 0).then_some(info.built_at);
    Source {
        name: info.name.clone(),
        built: built.map(|seconds| rfc3339(seconds.saturating_mul(1000))),
        age_seconds: built.map(|seconds| now.as_secs().saturating_sub(seconds)),
        networks: info.networks,
        coordinates: info.coordinates,
    }
}
