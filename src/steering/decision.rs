//! The answer and its reasons. The words here are a contract, shared by `explain`, metrics and logs.

use crate::steering::ids::{PoolId, RegionId};

/// Why an endpoint of a region was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TakeReason {
    /// First of the client's order.
    Nearest,
    /// A pin of the client's area names the region.
    Pin,
    /// `[geoip.networks]` names the region.
    Network,
    /// Chosen by weight.
    Split,
    /// Chosen by weight among those about as near as the nearest.
    Band,
    /// By weight, with the least distances in all.
    Balanced,
    /// The client was here before.
    Affinity,
    /// A region before it is unhealthy, coming back, stale, taken out by an operator, or was tried in vain.
    Failover,
    /// A region before it is full.
    Spillover,
    /// No region is up, and the service serves on.
    Panic,
    /// No region accepts, so this one must, whatever its weight or dial.
    LastResort,
}

impl TakeReason {
    /// Every reason, for metrics.
    pub const ALL: [TakeReason; 11] = [
        TakeReason::Nearest,
        TakeReason::Pin,
        TakeReason::Network,
        TakeReason::Split,
        TakeReason::Band,
        TakeReason::Balanced,
        TakeReason::Affinity,
        TakeReason::Failover,
        TakeReason::Spillover,
        TakeReason::Panic,
        TakeReason::LastResort,
    ];

    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            TakeReason::Nearest => "nearest",
            TakeReason::Pin => "pin",
            TakeReason::Network => "network",
            TakeReason::Split => "split",
            TakeReason::Band => "band",
            TakeReason::Balanced => "balanced",
            TakeReason::Affinity => "affinity",
            TakeReason::Failover => "failover",
            TakeReason::Spillover => "spillover",
            TakeReason::Panic => "panic",
            TakeReason::LastResort => "last_resort",
        }
    }
}

/// Why a region was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PassReason {
    /// The service confines the client's place to other regions.
    Residency,
    /// An operator drains it, or all its endpoints ask for that themselves.
    Drained,
    /// An operator took it out.
    Maint,
    /// Observed down.
    Unhealthy,
    /// Came back, and waits.
    Holding,
    /// Came back, and takes a share of its clients that this one is not in yet.
    Ramping,
    /// Its dial leaves this client out.
    Dial,
    /// Weight 0 takes no normal traffic.
    WeightZero,
    /// Its data lags too far behind.
    Stale,
    /// Above its target, or too few of its endpoints are up for all its clients, or they ask for less.
    OverTarget,
    /// At its limit.
    Full,
    /// This request was there already.
    Tried,
}

impl PassReason {
    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            PassReason::Residency => "residency",
            PassReason::Drained => "drained",
            PassReason::Maint => "maint",
            PassReason::Unhealthy => "unhealthy",
            PassReason::Holding => "holding",
            PassReason::Ramping => "ramping",
            PassReason::Dial => "dial",
            PassReason::WeightZero => "weight_zero",
            PassReason::Stale => "stale",
            PassReason::OverTarget => "over_target",
            PassReason::Full => "full",
            PassReason::Tried => "tried",
        }
    }

    /// What a region taken after this one was passed is taken for: policy (dial, weight, residency) changes nothing.
    pub fn consequence(self) -> Option<TakeReason> {
        match self {
            PassReason::Residency | PassReason::Dial | PassReason::WeightZero => None,
            PassReason::OverTarget | PassReason::Full => Some(TakeReason::Spillover),
            PassReason::Drained
            | PassReason::Maint
            | PassReason::Unhealthy
            | PassReason::Holding
            | PassReason::Ramping
            | PassReason::Stale
            | PassReason::Tried => Some(TakeReason::Failover),
        }
    }
}

/// One move along an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take this endpoint.
    Take(Take),
    /// Pass this region.
    Pass(RegionId, PassReason),
}

/// An endpoint taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// The region.
    pub region: RegionId,
    /// The pool in it.
    pub pool: PoolId,
    /// The endpoint's index in the snapshot's pool.
    pub endpoint: u16,
    /// Why.
    pub reason: TakeReason,
}

/// Why a walk ended without an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Residency leaves no region: 451.
    Residency,
    /// Operators took out every region: 503 `no_region`.
    NoRegion,
    /// No region is up and the service refuses to panic: 503.
    Unhealthy,
    /// Every region is at its limit: 503 with `Retry-After`.
    Full,
    /// Everything that could be tried was: the outcome of the last attempt stands.
    Exhausted,
}

impl Refusal {
    /// The word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Residency => "residency",
            Refusal::NoRegion => "no_region",
            Refusal::Unhealthy => "unhealthy",
            Refusal::Full => "full",
            Refusal::Exhausted => "exhausted",
        }
    }

    /// The status that a client gets for it, before any attempt was made.
    pub fn status(self) -> u16 {
        match self {
            Refusal::Residency => 451,
            Refusal::NoRegion | Refusal::Unhealthy | Refusal::Full => 503,
            Refusal::Exhausted => 502,
        }
    }
}
