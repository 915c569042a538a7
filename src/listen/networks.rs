//! What one client network may do with connections: how many at a time, and how many new ones a second.
//!
//! A network is that of a draw: /24 of IPv4, /48 of IPv6. Peers that are trusted to say whose requests they bring are many clients, and not
//! counted. Nothing is kept unless a bound is configured.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::config::{Edge, Limits};
use crate::geo::Canonical;
use crate::rate::Limiter;

/// The connections of each network. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Networks(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// How many are open, of those that are counted.
    open: Mutex<HashMap<[u8; 8], u32>>,
    /// The rate that is configured, and what keeps it.
    rate: ArcSwapOption<(u32, Limiter)>,
}

/// A connection of a network, counted until this is dropped.
#[derive(Debug)]
pub(super) struct Counted(Networks, [u8; 8]);

/// Why a network gets no connection more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    /// It has as many as it may.
    Open,
    /// It makes new ones too often.
    Rate,
}

impl Excess {
    /// As the metric says it.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Excess::Open => "per_network",
            Excess::Rate => "connection_rate",
        }
    }
}

impl Networks {
    /// Counts a connection of that client in, as far as there are bounds.
    pub(super) fn enter(&self, client: Canonical, edge: &Edge) -> Result<Option<Counted>, Excess> {
        let Limits { per_network, connection_rate, .. } = edge.limits;
        if (per_network == 0 && connection_rate == 0) || edge.trusts(client.ip()) {
            return Ok(None);
        }
        if let Some(rate) = NonZeroU32::new(connection_rate) {
            self.limiter(rate).1.take(client).map_err(|_| Excess::Rate)?;
        }
        if per_network == 0 {
            return Ok(None);
        }
        let key = client.network_key();
        let mut open = self.open();
        let count = open.entry(key).or_default();
        if *count >= per_network {
            return Err(Excess::Open);
        }
        *count += 1;
        drop(open);
        Ok(Some(Counted(self.clone(), key)))
    }

    fn limiter(&self, rate: NonZeroU32) -> Arc<(u32, Limiter)> {
        if let Some(limiter) = self.0.rate.load_full().filter(|limiter| limiter.0 == rate.get()) {
            return limiter;
        }
        let new = Arc::new((rate.get(), Limiter::new(rate, Duration::from_secs(1), rate, [24, 48])));
        self.0.rate.store(Some(Arc::clone(&new)));
        new
    }

    /// Forgets the networks that have not connected lately.
    pub(super) fn sweep(&self) {
        if let Some(limiter) = self.0.rate.load_full() {
            limiter.1.sweep();
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 8], u32>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.0.open();
        if let Some(count) = open.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.1);
            }
        }
    }
}
