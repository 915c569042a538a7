//! Snapshots of worlds that are not: every region healthy but those named, or this world with another configuration or other words.
//!
//! For questions that are asked without a running process (`explain` offline, tests, benches), and for what a change would do before it is
//! made. The same walk answers them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

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
        let is_down = |pool: &Pool| down.contains(pool.region);
        build(view, Arc::default(), is_down, |_| None, |_| None)
    }

    /// This world with another view and other words. Pools that are down here are down there, by the names of service and region; all else is
    /// up, and nothing holds, ramps or sheds, so that two such snapshots differ by what was changed alone.
    pub fn supposing(&self, view: View, overrides: Arc<Overrides>) -> Snapshot {
        let fleet = Arc::clone(&view.fleet);
        let same = |pool: &Pool| {
            let service = self.fleet().service_named(&fleet.service(pool.service).name)?;
            let region = self.fleet().region_named(&fleet.region(pool.region).name)?;
            self.fleet().service(service).pool_of[region.index()]
        };
        let is_down = |pool: &Pool| same(pool).is_some_and(|id| self.pool(id).state == PoolState::Down);
        // Where the lines are the same, names have resolved already, and words may be over what they stand for.
        let known = |pool: &Pool| {
            let id = same(pool).filter(|id| self.fleet().pool(*id).endpoints == pool.endpoints)?;
            let endpoints = &self.pool(id).endpoints;
            (!endpoints.is_empty()).then(|| Arc::clone(endpoints))
        };
        let rtt_ms = |pool: &Pool| self.pool(same(pool)?).rtt_ms;
        build(view, overrides, is_down, known, rtt_ms)
    }
}

/// The snapshot of that view and those words, of pools that are down and of endpoints that are `known`; others are those of the lines.
fn build(
    view: View,
    overrides: Arc<Overrides>,
    is_down: impl Fn(&Pool) -> bool,
    known: impl Fn(&Pool) -> Option<Arc<[EndpointView]>>,
    rtt_ms: impl Fn(&Pool) -> Option<f64>,
) -> Snapshot {
    let fleet = Arc::clone(&view.fleet);
    let regions: Box<[RegionView]> = fleet
        .regions
        .iter()
        .map(|_| RegionView { load: Arc::default(), shed: 1.0, intake: 1.0, from: RegionSet::EMPTY })
        .collect();
    let mut next_id = 0;
    let mut pool_view = |pool: &Pool| {
        let state = if is_down(pool) { EndpointState::Down } else { EndpointState::Up };
        let load = &regions[pool.region.index()].load;
        let mut views: Vec<EndpointView> = match known(pool) {
            Some(views) => views.to_vec(),
            None => pool.endpoints.iter().map(|line| endpoint_view(line, load, &mut next_id)).collect(),
        };
        for view in &mut views {
            (view.state, view.asked) = (state, Asked::default());
            view.intent = overrides.of_endpoint(view).map_or(Intent::Ready, |word| word.state);
        }
        let down = state == EndpointState::Down;
        PoolView {
            endpoints: views.into(),
            state: if down { PoolState::Down } else { PoolState::Up },
            ramp: 1.0,
            spill: if down { 0.0 } else { 1.0 },
            epoch: 0,
            changed_ms: 0,
            rtt_ms: rtt_ms(pool),
        }
    };
    let pools: Box<[PoolView]> = fleet.pools.iter().map(&mut pool_view).collect();
    let intent_of = |id: PoolId| {
        let region = fleet.region(fleet.pool(id).region);
        let of_region = overrides.of_region(&region.name).map_or(region.intent, |word| word.state);
        let of_endpoints = pools[id.index()].endpoints.iter().map(|endpoint| endpoint.intent).min();
        of_region.max(of_endpoints.unwrap_or_default())
    };
    let service_view = |service: &Service| {
        let intent = |region: RegionId| service.pool_of[region.index()].map_or(Intent::Ready, intent_of);
        let is_up = |id: &&PoolId| pools[id.index()].state == PoolState::Up;
        let up = service.pools.iter().filter(is_up).map(|id| fleet.pool(*id).region).collect();
        ServiceView::new(service, intent, up, RegionSet::EMPTY)
    };
    let services = fleet.services.iter().map(service_view).collect();
    let clients = fleet.services.iter().map(|_| Arc::default()).collect();
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
