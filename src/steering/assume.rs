//! Snapshots of worlds that are not: every region healthy but those named, or this world with another configuration or other words.
//!
//! For questions that are asked without a running process (`explain` offline, tests, benches), and for what a change would do before it is
//! made. The same walk answers them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::steering::clients::Clients;
use crate::steering::fleet::{EndpointAddress, EndpointSpec, Intent, Pool, Service};
use crate::steering::ids::{PoolId, RegionId, RegionSet};
use crate::steering::load::Load;
use crate::steering::meter::Meter;
use crate::steering::overrides::Overrides;
use crate::steering::snapshot::{
    Asked, Ejected, EndpointId, EndpointState, EndpointView, PoolState, PoolView, RegionView, ServiceView, Snapshot,
    View,
};

impl Snapshot {
    /// A snapshot in which every endpoint is up, but in the regions of `down`. Endpoints configured by name, which
    /// nobody resolved, have the unspecified address; their `name` tells them apart.
    pub fn assuming(view: View, down: RegionSet) -> Snapshot {
        let health = |pool: &Pool| {
            let state = if down.contains(pool.region) { PoolState::Down } else { PoolState::Up };
            Observed { state, ..Observed::default() }
        };
        build(view, Arc::default(), health)
    }

    /// This world with another view and other words: what was observed of a pool here is observed there, by the names of service and region. What is
    /// new is up, and nothing sheds, so that two such snapshots differ by what was changed alone.
    pub fn supposing(&self, view: View, overrides: Arc<Overrides>) -> Snapshot {
        let (before, after) = (self.fleet(), Arc::clone(&view.fleet));
        let services: Vec<_> = after.services.iter().map(|service| before.service_named(&service.name)).collect();
        let regions: Vec<_> = after.regions.iter().map(|region| before.region_named(&region.name)).collect();
        let health = |pool: &Pool| {
            let here =
                || before.service(services[pool.service.index()]?).pool_of[regions[pool.region.index()]?.index()];
            // How far it is will be seen; until then it must not keep others from being compared.
            let Some(id) = here() else { return Observed { rtt_ms: Some(f64::INFINITY), ..Observed::default() } };
            let view = self.pool(id);
            let same_lines = before.pool(id).endpoints == pool.endpoints && !view.endpoints.is_empty();
            let leaves = self.service(before.pool(id).service).leaving.contains(before.pool(id).region);
            Observed {
                // Without a verdict it will soon be up.
                state: if view.state == PoolState::Unknown { PoolState::Up } else { view.state },
                ramp: if view.state.is_up() { view.ramp } else { 1.0 },
                spill: if view.state.is_up() { view.spill } else { 1.0 },
                rtt_ms: view.rtt_ms,
                leaves,
                endpoints: same_lines.then(|| Arc::clone(&view.endpoints)),
            }
        };
        Snapshot { suspects_itself: self.suspects_itself, ..build(view, overrides, health) }
    }
}

/// What is known of a pool.
struct Observed {
    state: PoolState,
    ramp: f64,
    spill: f64,
    rtt_ms: Option<f64>,
    /// Whether its endpoints ask to be drained.
    leaves: bool,
    /// `None`: those of its lines.
    endpoints: Option<Arc<[EndpointView]>>,
}

impl Default for Observed {
    fn default() -> Observed {
        Observed { state: PoolState::Up, ramp: 1.0, spill: 1.0, rtt_ms: None, leaves: false, endpoints: None }
    }
}

fn build(view: View, overrides: Arc<Overrides>, observed: impl Fn(&Pool) -> Observed) -> Snapshot {
    let fleet = Arc::clone(&view.fleet);
    let regions: Box<[RegionView]> = fleet
        .regions
        .iter()
        .map(|_| RegionView { load: Arc::default(), shed: 1.0, intake: 1.0, from: RegionSet::EMPTY })
        .collect();
    let mut next_id = 0;
    let mut leaving = vec![RegionSet::EMPTY; fleet.services.len()];
    let mut pool_view = |pool: &Pool| {
        let Observed { state, ramp, spill, rtt_ms, leaves, endpoints } = observed(pool);
        let down = state == PoolState::Down;
        if leaves {
            leaving[pool.service.index()].insert(pool.region);
        }
        let load = &regions[pool.region.index()].load;
        let mut views: Vec<EndpointView> = match endpoints {
            Some(views) => views.to_vec(),
            None => pool.endpoints.iter().map(|line| endpoint_view(line, load, &mut next_id)).collect(),
        };
        for view in &mut views {
            view.state = if down { EndpointState::Down } else { EndpointState::Up };
            view.intent = overrides.of_endpoint(view).map_or(Intent::Ready, |word| word.state);
        }
        let spill = if down { 0.0 } else { spill };
        PoolView { endpoints: views.into(), state, ramp, spill, epoch: 0, changed_ms: 0, rtt_ms }
    };
    let pools: Box<[PoolView]> = fleet.pools.iter().map(&mut pool_view).collect();
    let intent_of = |id: PoolId| {
        let region = fleet.region(fleet.pool(id).region);
        let of_region = overrides.of_region(&region.name).map_or(region.intent, |word| word.state);
        let of_endpoints = pools[id.index()].endpoints.iter().map(|endpoint| endpoint.intent).min();
        of_region.max(of_endpoints.unwrap_or_default())
    };
    let service_view = |(service, leaving): (&Service, &RegionSet)| {
        let intent = |region: RegionId| service.pool_of[region.index()].map_or(Intent::Ready, intent_of);
        let with = |is: fn(PoolState) -> bool| {
            let with = service.pools.iter().filter(|id| is(pools[id.index()].state));
            with.map(|id| fleet.pool(*id).region).collect::<RegionSet>()
        };
        let up = with(PoolState::is_up);
        let view = ServiceView::new(service, intent, up, with(|state| state == PoolState::Holding));
        ServiceView { leaving: leaving.and(up), ..view }
    };
    let services = fleet.services.iter().zip(&leaving).map(service_view).collect();
    // Nobody writes into it.
    let nobody = Arc::<Clients>::default();
    let clients = fleet.services.iter().map(|_| Arc::clone(&nobody)).collect();
    Snapshot { generation: 1, suspects_itself: false, view, services, pools, regions, clients, overrides }
}

fn endpoint_view(line: &EndpointSpec, load: &Arc<Load>, next_id: &mut u64) -> EndpointView {
    *next_id += 1;
    EndpointView {
        id: EndpointId(*next_id),
        address: match line.address {
            EndpointAddress::Socket(address) => address,
            EndpointAddress::Name { port, .. } => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        },
        name: line.address.to_string().into(),
        weight: line.weight,
        state: EndpointState::Up,
        cause: None,
        ejected: Ejected::default(),
        intent: Intent::Ready,
        warmth: 1.0,
        asked: Asked::default(),
        meter: Arc::new(Meter::new(load)),
    }
}
