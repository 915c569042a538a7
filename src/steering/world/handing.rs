//! What is known of health, handed from one process to the next.

use std::sync::Arc;

use super::{Event, Now, World, hosts};
use crate::steering::handover::{Handover, PoolHandover};
use crate::steering::ids::{PoolId, ServiceId};

impl World {
    /// What is known now, for a process that takes the place of this one.
    pub fn handover(&self) -> Handover {
        let fleet = &self.view.fleet;
        let pools = fleet.pools.iter().zip(&self.pools).map(|(spec, pool)| PoolHandover {
            service: fleet.service(spec.service).name.clone(),
            region: fleet.region(spec.region).name.clone(),
            health: pool.health().clone(),
            endpoints: pool.endpoints().iter().map(|endpoint| endpoint.handover()).collect(),
        });
        Handover {
            names: self.names.all(),
            pools: pools.collect(),
            drains: self.drains.all(),
            overrides: self.overrides.iter().map(|word| (**word).clone()).collect(),
        }
    }

    /// Goes on from there. What stays as it was is no event.
    pub(super) fn handed_over(&mut self, handover: Handover, now: Now, events: &mut Vec<Event>) {
        let Handover { names, pools, drains, overrides } = handover;
        // Before words are, or what they drain would drain since now.
        self.drains.recall(drains);
        let fleet = Arc::clone(&self.view.fleet);
        let named = |host: &str| fleet.pools.iter().any(|pool| hosts(&pool.endpoints).any(|name| name == host));
        for (host, addresses) in names.into_iter().filter(|(host, _)| named(host)) {
            self.names.learn(&host, addresses);
        }
        // Nothing settles before all of it is known.
        (0..fleet.pools.len()).for_each(|pool| self.refit(PoolId(pool as u16)));
        for PoolHandover { service, region, health, endpoints } in pools {
            let Some(service) = fleet.service_named(&service) else { continue };
            let Some(region) = fleet.region_named(&region) else { continue };
            let Some(pool) = fleet.service(service).pool_of[region.index()] else { continue };
            self.pools[pool.index()].go_on(health, endpoints);
        }
        self.recalled(overrides, now, events);
        for service in 0..fleet.services.len() {
            self.settle(ServiceId(service as u16), now, events);
        }
        self.suspect(events);
        self.snapshot.take();
    }
}
