//! From an attempt to pingora's description of an upstream.

use std::time::Duration;

use pingora::protocols::ALPN;
use pingora::protocols::l4::ext::TcpKeepalive;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};

use crate::proxy::Attempt;
use crate::steering::fleet::Protocol;

/// The bit of a pool key that marks a connection which nobody else may have used.
const FRESH: u64 = 1 << 63;

/// Requests at once on one connection of HTTP/2, as most servers allow.
const STREAMS: usize = 100;

/// Where an attempt goes. `nonce` makes the key of a fresh connection its own.
pub(super) fn of(attempt: &Attempt, nonce: u64) -> HttpPeer {
    // From a socket address there is nothing to resolve.
    let mut peer = HttpPeer::new(attempt.address, false, String::new());
    let options = &mut peer.options;
    options.connection_timeout = Some(attempt.connect);
    options.total_connection_timeout = Some(attempt.connect);
    // Pingora has one timeout for the first byte and for silence after it. The first byte is watched elsewhere; this one is for
    // silence, and must not come first.
    options.read_timeout = Some(attempt.idle.max(attempt.first_byte));
    options.write_timeout = Some(attempt.idle);
    options.tcp_keepalive = Some(TcpKeepalive {
        idle: Duration::from_secs(20),
        interval: Duration::from_secs(5),
        count: 3,
        user_timeout: Duration::from_secs(20),
    });
    // The phases make the whole head, the same for every mover.
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
    options.idle_timeout = Some(attempt.pool_idle);
    if attempt.protocol == Protocol::H2c {
        options.alpn = ALPN::H2;
        options.max_h2_streams = STREAMS;
    }
    peer.group_key = u64::from(attempt.epoch);
    if attempt.fresh {
        // Nobody asks for that key again, so the connection need not be kept.
        peer.group_key |= FRESH | (nonce << 32 & !FRESH);
        peer.options.idle_timeout = Some(Duration::from_millis(1));
    }
    peer
}
