//! The writer's task and what it publishes.
//!
//! One task owns the `World`; everything that changes it is a message to that task. Readers load one `Arc` and never wait.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::config::Edge;
use crate::steering::snapshot::EndpointId;
use crate::steering::world::ProbeResult;
use crate::steering::{Snapshot, View};
use crate::telemetry::Handles;

/// What a request reads, all of one moment.
#[derive(Debug)]
pub struct Published {
    /// The decision's input.
    pub snapshot: Arc<Snapshot>,
    /// Client address rules and limits.
    pub edge: Arc<Edge>,
    /// Metric handles of that snapshot.
    pub handles: Arc<Handles>,
}

/// The readers' door. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    current: Arc<ArcSwap<Published>>,
    changed: watch::Receiver<u64>,
}

impl Reader {
    /// What is published now. A request calls this once.
    pub fn load(&self) -> Arc<Published> {
        self.current.load_full()
    }

    /// Resolves when something was published since the last call.
    pub async fn changed(&mut self) {
        let _ = self.changed.changed().await;
    }
}

/// The writers' door: messages to the one writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sender {}

impl Sender {
    /// Publishes a new configuration or new geo data; returns its generation once readers see it.
    pub async fn publish(&self, _view: View, _edge: Arc<Edge>) -> u64 {
        todo!()
    }

    /// Hands in a probe's result; returns how long to wait before the next one (`None`: the endpoint is gone).
    pub async fn probed(&self, _endpoint: EndpointId, _result: ProbeResult) -> Option<Duration> {
        todo!()
    }

    /// A host name resolved.
    pub async fn resolved(&self, _host: String, _addresses: Vec<std::net::IpAddr>) {
        todo!()
    }
}
