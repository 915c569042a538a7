//! The line per request: one JSON object, written off the request path through a bounded queue.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::geo::Place;
use crate::steering::{RegionId, ServiceId, Snapshot, TakeReason};

/// Everything the line, the metrics and nothing else need to know of a finished request.
#[derive(Debug)]
pub struct AccessRecord {
    /// The snapshot it was served by: names come from it.
    pub snapshot: Arc<Snapshot>,
    /// Unix time in microseconds at which the request head was complete.
    pub at_us: u64,
    /// The connecting peer.
    pub peer: Option<SocketAddr>,
    /// The client, canonical.
    pub client: Option<IpAddr>,
    /// Its place.
    pub place: Option<Place>,
    /// Request id, as forwarded.
    pub request_id: u128,
    /// Method.
    pub method: http::Method,
    /// Host as sent, cut to 255 bytes.
    pub host: String,
    /// Request target as sent, cut to 2,048 bytes.
    pub target: String,
    /// `HTTP/1.1` and so on.
    pub protocol: &'static str,
    /// Who moved the bytes: `pingora` (later `native`).
    pub mover: &'static str,
    /// The service, if one was found.
    pub service: Option<ServiceId>,
    /// The last region tried.
    pub region: Option<RegionId>,
    /// The last endpoint tried.
    pub endpoint: Option<SocketAddr>,
    /// Why that region.
    pub reason: Option<TakeReason>,
    /// Attempts made, 0 when none was.
    pub attempts: u8,
    /// Status sent to the client; 0 when none was.
    pub status: u16,
    /// The outcome's label when it was not the upstream's answer (`no_region`, `connect_timeout` …); see `proxy::outcome`.
    pub outcome: &'static str,
    /// Request body bytes received.
    pub bytes_in: u64,
    /// Response body bytes sent.
    pub bytes_out: u64,
    /// Microseconds from the complete request head to the end of the answer.
    pub total_us: u64,
    /// Microseconds to the final upstream response head, if one came.
    pub first_byte_us: Option<u64>,
    /// Microseconds connecting, over all attempts.
    pub connect_us: u64,
}

/// The request path's end of the access log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLogger {}

impl AccessLogger {
    /// Queues a record; when the queue is full the record is dropped and counted, never waited for.
    pub fn log(&self, _record: AccessRecord) {
        todo!()
    }
}
