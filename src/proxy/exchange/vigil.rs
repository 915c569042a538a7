//! What became, in snapshots that came later, of a place that a request was decided by: services and regions are the same by name, endpoints by id.
//!
//! Must not know of: who waits there, and what is done about it.

use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use crate::steering::fleet::Intent;
use crate::steering::snapshot::{EndpointId, EndpointState, EndpointView};
use crate::steering::{PoolId, RegionId, ServiceId, Snapshot, Take};

/// Looks after the endpoint that a request waits at.
#[derive(Debug)]
pub struct Vigil {
    pub(super) shared: Arc<Shared>,
    /// What the request was decided by.
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) service: ServiceId,
    pub(super) take: Take,
    pub(super) endpoint: EndpointId,
}

impl Vigil {
    /// Whether the endpoint was found down since, there is another region or an endpoint beside it to go to, and the retry budget, should
    /// that count, leaves one retry.
    pub fn is_lost(&self, now: Instant) -> bool {
        let published = self.shared.reader.load();
        let snapshot = &published.snapshot;
        let Some(service) = service_now(&self.snapshot, snapshot, self.service) else { return false };
        let Some((pool, endpoint)) = find(snapshot, service, self.endpoint) else { return false };
        if endpoint.state != EndpointState::Down {
            return false;
        }
        let mut elsewhere = snapshot.service(service).serving();
        elsewhere.remove(snapshot.fleet().pool(pool).region);
        let is_beside = |other: &EndpointView| {
            other.id != self.endpoint && other.state == EndpointState::Up && other.intent == Intent::Ready
        };
        (!elsewhere.is_empty() || snapshot.pool(pool).endpoints.iter().any(is_beside))
            && (has_fallen(&self.snapshot, snapshot, self.service, self.take.region) || {
                let percent = snapshot.fleet().service(service).retry.budget;
                self.shared.budgets.of(snapshot, service).has_room(percent, now)
            })
    }
}

/// What is that service of `then` now: of another configuration by its name. `None`: it is gone.
pub(super) fn service_now(then: &Snapshot, now: &Snapshot, id: ServiceId) -> Option<ServiceId> {
    if then.generation == now.generation {
        return Some(id);
    }
    now.fleet().service_named(&then.fleet().service(id).name)
}

/// The same of a region.
pub(super) fn region_now(then: &Snapshot, now: &Snapshot, id: RegionId) -> Option<RegionId> {
    if then.generation == now.generation {
        return Some(id);
    }
    now.fleet().region_named(&then.fleet().region(id).name)
}

/// An endpoint, and the pool that has it: its id is its own over all configurations.
pub(super) fn find(snapshot: &Snapshot, service: ServiceId, id: EndpointId) -> Option<(PoolId, &EndpointView)> {
    let mut pools = snapshot.fleet().service(service).pools.iter();
    pools.find_map(|pool| Some((*pool, snapshot.pool(*pool).endpoints.iter().find(|endpoint| endpoint.id == id)?)))
}

/// Whether a region that was up `then` is not `now`: moving away from it costs no budget.
pub(super) fn has_fallen(then: &Snapshot, now: &Snapshot, service: ServiceId, region: RegionId) -> bool {
    let (Some(service_now), Some(region_now)) = (service_now(then, now, service), region_now(then, now, region)) else {
        return false;
    };
    then.service(service).up.contains(region) && !now.service(service_now).up.contains(region_now)
}
