//! What happens to a request, apart from moving its bytes.
//!
//! The phases are plain functions over plain values: whom to believe ([`client`]), where it was before
//! ([`affinity`]), what to forward ([`headers`]), what its service changes in that ([`rules`]), what may go
//! again ([`retry`]), what a failure means to the client ([`outcome`]), and the state of one request that ties them together
//! ([`exchange`]), where a body ends ([`framing`]), what calls of gRPC want ([`grpc`]), which trace it is in ([`trace`]). A mover of bytes owns the sockets, the clock and the dice, and calls the phases.
//! There are two: [`engine`] is ours and moves HTTP/1.1; [`pingora`] moves it through pingora-proxy, as a way back. Both call the very same
//! phases. Nothing outside the two may name a type of pingora or touch a socket.

pub mod affinity;
pub mod caught;
pub mod client;
pub mod engine;
pub mod exchange;
pub mod fields;
pub mod framing;
pub mod grpc;
pub mod headers;
pub mod outcome;
pub mod pingora;
pub mod rates;
pub mod retry;
pub mod rules;
pub mod trace;

pub use exchange::{Attempt, Exchange, Head, Shared};
pub use fields::Fields;
pub use framing::Framing;
pub use outcome::Outcome;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::{Edge, Forwarding, Limits, Underscores};

    /// The defaults of the configuration.
    pub(super) fn edge() -> Edge {
        Edge {
            via: "meridian-fra1".into(),
            trusted: Vec::new(),
            forwarding: Forwarding::XForwardedFor,
            limits: Limits {
                handshake_timeout: Duration::from_secs(10),
                header_bytes: 32 << 10,
                headers: 100,
                uri: 8 << 10,
                header_timeout: Duration::from_secs(10),
                body_timeout: Duration::from_secs(30),
                min_rate: 0,
                idle_timeout: Duration::from_secs(60),
                requests: 0,
                connections: 20_000,
                per_network: 0,
                connection_rate: 0,
                in_flight: 0,
                memory: 0,
                underscores: Underscores::Drop,
            },
            upstream_tls: Vec::new(),
            tls: Vec::new(),
            acme: None,
            trace: crate::config::Trace::default(),
        }
    }
}
