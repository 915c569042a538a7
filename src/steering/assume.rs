//! A snapshot of an assumed world: every region healthy but those named.
//!
//! For questions that are asked without a running process: `explain` offline, tests, benches. The same walk answers them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::steering::fleet::{EndpointAddress, Intent, Pool, Service};
use crate::steering::ids::RegionSet;
use crate::steering::load::Load;
use crate::steering::meter::Meter;
use crate::steering::snapshot::{
    Asked, Ejected, EndpointId, EndpointState, EndpointView, PoolState, PoolView, RegionView, ServiceView, Snapshot,
    View,
};

impl Snapshot {
    /// A snapshot in which every endpoint is up, but in the regions of `down`. Endpoints configured by name, which
    /// nobody resolved, have the unspecified address; their `name` tells them apart.
    pub fn assuming(view: View, down: RegionSet) -> Snapshot {
        let fleet = Arc::clone(&view.fleet);
        let up = |service: &Service| service.regions.without(down);
        let intent = |region| fleet.region(region).intent;
        let services = fleet.services.iter().map(|s| ServiceView::new(s, intent, up(s), RegionSet::EMPTY)).collect();
        let regions: Box<[RegionView]> = fleet
            .regions
            .iter()
            .map(|_| RegionView { load: Arc::default(), shed: 1.0, intake: 1.0, from: RegionSet::EMPTY })
            .collect();
        let mut next_id = 0;
        let pools = fleet
            .pools
            .iter()
            .map(|pool| pool_view(pool, &regions[pool.region.index()].load, down.contains(pool.region), &mut next_id))
            .collect();
        let overrides = Arc::default();
        Snapshot { generation: 1, suspects_itself: false, view, services, pools, regions, overrides }
    }
}

fn pool_view(pool: &Pool, load: &Arc<Load>, down: bool, next_id: &mut u64) -> PoolView {
    let state = if down { EndpointState::Down } else { EndpointState::Up };
    let endpoints = pool.endpoints.iter().map(|endpoint| {
        *next_id += 1;
        EndpointView {
            id: EndpointId(*next_id),
            address: match endpoint.address {
                EndpointAddress::Socket(address) => address,
                EndpointAddress::Name { port, .. } => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            },
            name: endpoint.address.to_string().into(),
            weight: endpoint.weight,
            state,
            cause: None,
            ejected: Ejected::default(),
            intent: Intent::Ready,
            warmth: 1.0,
            asked: Asked::default(),
            meter: Arc::new(Meter::new(load)),
        }
    });
    PoolView {
        endpoints: endpoints.collect(),
        state: if down { PoolState::Down } else { PoolState::Up },
        ramp: 1.0,
        spill: if down { 0.0 } else { 1.0 },
        epoch: 0,
        changed_ms: 0,
    }
}
