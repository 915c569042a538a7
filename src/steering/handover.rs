//! What one process knows of the health of everything, for another one that takes its place.
//!
//! By name and by address, for the other one may have a newer configuration and ids of its own: what is new there is unknown, and what
//! has left is forgotten. Moments are those of the writer's clock, which the other process continues.
//!
//! What was counted of traffic is not handed over: half of it is still going on over there.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::steering::ejection::Ejection;
use crate::steering::endpoints::SlowStart;
use crate::steering::health::EndpointHealth;
use crate::steering::overrides::Override;
use crate::steering::pool_health::PoolHealth;
use crate::steering::snapshot::Asked;
use crate::steering::world::Now;

/// All of it. Made by [`crate::steering::World::handover`], taken by [`crate::steering::Change::HandedOver`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Handover {
    /// What names stand for.
    pub(crate) names: BTreeMap<String, Vec<IpAddr>>,
    pub(crate) pools: Vec<PoolHandover>,
    /// Since when regions drain.
    pub(crate) drains: BTreeMap<String, Now>,
    /// Operators' words in force, the oldest first.
    pub(crate) overrides: Vec<Override>,
}

/// A region's standing for a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PoolHandover {
    pub(crate) service: String,
    pub(crate) region: String,
    pub(crate) health: PoolHealth,
    pub(crate) endpoints: Vec<EndpointHandover>,
}

/// An endpoint's standing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EndpointHandover {
    pub(crate) address: SocketAddr,
    pub(crate) health: EndpointHealth,
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) ejection: Ejection,
    pub(crate) ejected_for: Option<String>,
    pub(crate) ejections: u32,
    pub(crate) down_for: Option<String>,
    pub(crate) down_since: Option<Now>,
    pub(crate) asked: Asked,
}
