//! Every metric family, in one `prometheus::Registry`.

use std::sync::Arc;

use crate::steering::{RegionId, ServiceId, Snapshot};
use crate::telemetry::AccessRecord;

/// All families of this process.
#[derive(Clone, Debug)]
pub struct Metrics {}

/// Handles resolved for one snapshot's services and regions, so that a request looks no label up.
#[derive(Debug)]
pub struct Handles {}

impl Metrics {
    /// Resolves the handles of a snapshot.
    pub fn resolve(&self, _snapshot: &Snapshot) -> Arc<Handles> {
        todo!()
    }
}

impl Handles {
    /// Counts a finished request: requests by service, region, code class and reason; duration; attempts.
    pub fn request(&self, _record: &AccessRecord) {
        todo!()
    }

    /// One more attempt went to this region.
    pub fn attempt(&self, _service: ServiceId, _region: RegionId) {
        todo!()
    }
}
