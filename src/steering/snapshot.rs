//! One immutable view of everything a decision may read. Published by `World`, read by many.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::geo::Atlas;
use crate::steering::balance::{Balance, Ground, Sample};
use crate::steering::clients::Clients;
use crate::steering::fleet::{Capacity, Fleet, Intent, Region, Service};
use crate::steering::ids::{PoolId, RegionId, RegionSet, ServiceId};
use crate::steering::load::Load;
use crate::steering::meter::Meter;
use crate::steering::order::{Areas, Orders};
use crate::steering::overrides::Overrides;

/// What is compiled aside and swapped as one: configuration, geo data and the tables made of both.
#[derive(Clone, Debug)]
pub struct View {
    /// The configuration.
    pub fleet: Arc<Fleet>,
    /// The geo data.
    pub atlas: Arc<Atlas>,
    /// Place to order.
    pub orders: Arc<Orders>,
    /// Place to what pins and residency say of it.
    pub areas: Arc<Areas>,
    /// By `ServiceId`: the offsets of those that are balanced.
    pub balances: Arc<[Option<Balance>]>,
}

impl View {
    /// Compiles the tables, taking over from `previous` those whose inputs did not change. Up to half a second of work
    /// for the largest databases with 50 regions when nothing can be taken over: never call it on the request path or in the writer.
    pub fn compile(fleet: Arc<Fleet>, atlas: Arc<Atlas>, previous: Option<&View>) -> View {
        View::compile_for(&Sample::default(), fleet, atlas, previous)
    }

    /// The same, balanced for these clients.
    pub fn compile_for(sample: &Sample, fleet: Arc<Fleet>, atlas: Arc<Atlas>, previous: Option<&View>) -> View {
        let orders = Orders::compile(&fleet, &atlas, previous.map(|v| (&v.orders, &v.atlas)));
        let areas = Areas::compile(&fleet, &atlas, previous.map(|v| (&v.areas, &v.atlas)));
        let ground = Ground { fleet: &fleet, atlas: &atlas, orders: &orders, areas: &areas };
        let balances = ground.balances(sample, previous);
        View { fleet, atlas, orders, areas, balances }
    }

    /// What offsets are worked out from.
    pub fn ground(&self) -> Ground<'_> {
        Ground { fleet: &self.fleet, atlas: &self.atlas, orders: &self.orders, areas: &self.areas }
    }
}

/// One immutable view. A request holds one from first byte to last.
#[derive(Debug)]
pub struct Snapshot {
    /// Configuration generation: 1 for the first, +1 for each view published after.
    pub generation: u64,
    /// Everything went down at once, so that this PoP thinks itself the cause: it serves on as if all were up.
    pub suspects_itself: bool,
    /// What changes only by reload.
    pub view: View,
    /// By `ServiceId`.
    pub services: Box<[ServiceView]>,
    /// By `PoolId`.
    pub pools: Box<[PoolView]>,
    /// By `RegionId`.
    pub regions: Box<[RegionView]>,
    /// By `ServiceId`: who asks for it.
    pub clients: Box<[Arc<Clients>]>,
    /// Operators' words in force. What they mean for each service and endpoint is in the views of these.
    pub overrides: Arc<Overrides>,
}

impl Snapshot {
    /// The configuration.
    pub fn fleet(&self) -> &Fleet {
        &self.view.fleet
    }

    /// A service's view by id.
    pub fn service(&self, id: ServiceId) -> &ServiceView {
        &self.services[id.index()]
    }

    /// Those of these regions that are at their limit at `now`, in the nanoseconds of [`Load::try_enter`]: S5, as it is at this moment.
    pub fn full(&self, of: RegionSet, now: impl Fn() -> u64) -> RegionSet {
        let is_full = |id: &RegionId| {
            let capacity = self.fleet().region(*id).capacity.as_ref();
            capacity.is_some_and(|capacity| self.region(*id).load.is_full(capacity, &now))
        };
        of.and(self.fleet().bounded).iter().filter(is_full).collect()
    }

    /// A region's view by id.
    pub fn region(&self, id: RegionId) -> &RegionView {
        &self.regions[id.index()]
    }

    /// A pool's view by id.
    pub fn pool(&self, id: PoolId) -> &PoolView {
        &self.pools[id.index()]
    }
}

/// What a region carries, for all services together.
#[derive(Clone, Debug)]
pub struct RegionView {
    /// Live counters.
    pub load: Arc<Load>,
    /// 0 … 1: the part of its clients that it takes, as far as its load is concerned; 1 without a capacity.
    pub shed: f64,
    /// 0 … 1: the part of those who come from the regions of `from` that it takes; 1 without a capacity.
    pub intake: f64,
    /// Regions that were lost a moment ago, so that their clients come.
    pub from: RegionSet,
}

/// What a region carries, as pages show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    /// The region.
    pub name: String,
    /// Requests that are there now.
    pub in_flight: u32,
    /// 0 … 1: the part of its clients that it gives away because of its load.
    pub shed: f64,
    /// [`RegionView::intake`].
    pub intake: f64,
    /// `null`: none is stated.
    pub capacity: Option<Capacity>,
}

impl Carried {
    /// By that region as the world stands.
    pub fn new(region: &Region, view: &RegionView) -> Carried {
        let RegionView { load, shed, intake, .. } = view;
        let (shed, intake) = (1.0 - *shed, *intake);
        Carried { name: region.name.clone(), in_flight: load.in_flight(), shed, intake, capacity: region.capacity }
    }
}

/// The sets of one service, as far as they do not depend on the client.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceView {
    /// Regions that an operator drains, by the configuration or since; also those whose every endpoint is drained.
    pub drained: RegionSet,
    /// Those of `drained` at which affinity and streams may still finish.
    pub finishing: RegionSet,
    /// Regions that an operator took out, in the same ways.
    pub maint: RegionSet,
    /// Regions whose pool is up (holding and ramping ones are up).
    pub up: RegionSet,
    /// Regions that are up and wait before they take clients back.
    pub holding: RegionSet,
    /// Regions that are up and whose every endpoint that is up asks to be drained: not taken while another region is left.
    pub leaving: RegionSet,
    /// Whether no ready region is up.
    pub panicking: bool,
}

impl ServiceView {
    /// What operators want of a service's regions (`intent`) beside what was observed of them: those `up`, and of these
    /// those `holding`. Every drain has just begun, and no endpoint asks for anything.
    pub fn new(
        service: &Service,
        intent: impl Fn(RegionId) -> Intent,
        up: RegionSet,
        holding: RegionSet,
    ) -> ServiceView {
        let with = |wanted: Intent| service.regions.iter().filter(|region| intent(*region) == wanted).collect();
        let (drained, maint): (RegionSet, RegionSet) = (with(Intent::Drain), with(Intent::Maint));
        let panicking = up.without(drained.or(maint)).is_empty();
        ServiceView { drained, finishing: drained, maint, up, holding, leaving: RegionSet::EMPTY, panicking }
    }

    /// Regions that are up and that no operator took out.
    pub fn serving(&self) -> RegionSet {
        self.up.without(self.drained.or(self.maint))
    }

    /// Those of [`ServiceView::serving`] that new clients come to: not those that ask to be drained, unless all do.
    pub fn taking(&self) -> RegionSet {
        let staying = self.serving().without(self.leaving);
        if staying.is_empty() { self.serving() } else { staying }
    }

    /// Whether a region is done with for whoever is there already: in maintenance, or drained for long enough.
    pub fn has_ended(&self, region: RegionId) -> bool {
        self.maint.or(self.drained.without(self.finishing)).contains(region)
    }

    /// What operators want of a region, for this service.
    pub fn intent(&self, region: RegionId) -> Intent {
        if self.maint.contains(region) {
            Intent::Maint
        } else if self.drained.contains(region) {
            Intent::Drain
        } else {
            Intent::Ready
        }
    }
}

/// How a region's pool stands for its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolState {
    /// No endpoint had a verdict yet.
    Unknown,
    /// Up, with all its clients.
    Up,
    /// Up again, waiting.
    Holding,
    /// Up again, taking its clients back little by little.
    Ramping,
    /// Down.
    Down,
}

impl PoolState {
    /// The word used in `/api/status`, logs and `explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            PoolState::Unknown => "unknown",
            PoolState::Up => "up",
            PoolState::Holding => "holding",
            PoolState::Ramping => "ramping",
            PoolState::Down => "down",
        }
    }

    /// Whether the region is up: in the health set.
    pub fn is_up(self) -> bool {
        matches!(self, PoolState::Up | PoolState::Holding | PoolState::Ramping)
    }
}

/// One pool as the world stands.
#[derive(Clone, Debug)]
pub struct PoolView {
    /// Its endpoints; empty while no name of it has resolved.
    pub endpoints: Arc<[EndpointView]>,
    /// Where it stands.
    pub state: PoolState,
    /// 0 … 1: how much of its clients it takes back after an outage (0 while holding, 1 unless ramping).
    pub ramp: f64,
    /// 0 … 1: min(1, overprovision × weight up ÷ weight), of the endpoints that operators leave in; the weight up is what they ask for.
    pub spill: f64,
    /// Raised each time the pool goes down; upstream connections of another epoch are never used again.
    pub epoch: u32,
    /// Milliseconds of the writer's clock at the last change of `state`.
    pub changed_ms: u64,
    /// The round trip to it in milliseconds, as it counts for where clients go; `None`: it is not known.
    pub rtt_ms: Option<f64>,
}

/// One endpoint as the world stands.
#[derive(Clone, Debug)]
pub struct EndpointView {
    /// Stable for the endpoint's life, over reloads.
    pub id: EndpointId,
    /// Its address.
    pub address: SocketAddr,
    /// As it was configured (`host:port`), as logs show it.
    pub name: Arc<str>,
    /// Its configured weight.
    pub weight: u32,
    /// Verdict; down, whatever the probes say, while it is ejected.
    pub state: EndpointState,
    /// Why it is down, in words; `None` when it is not.
    pub cause: Option<Arc<str>>,
    /// How often it was ejected for what its traffic told, and whether it is now.
    pub ejected: Ejected,
    /// An operator's word: it is taken only while that is ready, in panic too.
    pub intent: Intent,
    /// 0 … 1: slow start after it came back.
    pub warmth: f32,
    /// What it asks for itself.
    pub asked: Asked,
    /// Live counters.
    pub meter: Arc<Meter>,
}

impl EndpointView {
    /// Its share of the pool's traffic: weight × warmth × what it asks for.
    pub fn share(&self) -> f64 {
        f64::from(self.weight) * f64::from(self.warmth) * f64::from(self.asked.weight) / 100.0
    }
}

/// What an endpoint asks for by its answers to probes. It is observed, like a verdict, and no failure: neither is an operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// To be sent no new requests; what is under way finishes.
    pub drain: bool,
    /// To be sent this percentage of what its weight gives it, 0 … 100.
    pub weight: u8,
}

impl Default for Asked {
    /// Nothing is asked for.
    fn default() -> Asked {
        Asked { drain: false, weight: 100 }
    }
}

/// What an endpoint's traffic did to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ejected {
    /// Until when it is out, in milliseconds of the writer's clock; `None`: it is not.
    pub until_ms: Option<u64>,
    /// How often it was ejected in its life.
    pub count: u32,
}

/// An endpoint for the life of its identity (service, region, address, kind of probe), over reloads. Never given to another one: a
/// name whose addresses rotate may use up thousands a second for years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u64);

/// The verdict over an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EndpointState {
    /// Not probed yet: gets traffic only when nothing else is left.
    Unknown,
    /// Up.
    Up,
    /// Down.
    Down,
}

impl EndpointState {
    /// The word used in `/api/status`, logs and `explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            EndpointState::Unknown => "unknown",
            EndpointState::Up => "up",
            EndpointState::Down => "down",
        }
    }
}
