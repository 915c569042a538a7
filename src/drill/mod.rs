//! `meridian drill`: what an outage does, played with real processes on loopback and measured from outside.
//!
//! A *fault* befalls one of three regions while a load that waits for nobody goes on. The proxy under test is this same program, or one
//! of its peers; the origins are `meridian origin --troubled`, which write down what they executed. What was *seen* becomes *figures*,
//! figures are held to the fault's *bars*, and tables and timelines show them.
//!
//! One way: catalogue ([`fault`]) -> processes ([`scene`]) and requests ([`load`]) -> [`seen`] -> [`figures`] -> [`table`], [`svg`]. The
//! right half is pure. Nothing here knows the proxy's inside: a drill sees what a client, an upstream and a reader of the log see, so
//! that a peer is measured by the same rule. The choice refused is a simulated world: `tests/timeline.rs` has one, and it cannot
//! freeze a process.

pub mod fault;
pub mod figures;
mod hole;
pub mod http;
mod load;
mod peers;
mod process;
mod proxy;
mod scene;
pub mod seen;
pub mod svg;
pub mod table;

use std::path::PathBuf;

pub use fault::{FAULTS, Fault};
pub use figures::{Figures, judge};
pub use proxy::Who;
pub use seen::Seen;

/// Where the programs are, and how hard is asked.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `meridian`, for the origins and as the proxy.
    pub program: PathBuf,
    /// Envoy, where it is not in `PATH`.
    pub envoy: Option<PathBuf>,
    /// Requests a second, of which a quarter are POSTs; scenes of regions with a capacity have a rate of their own.
    pub rate: u32,
}

/// Requests a second unless told otherwise: 120 GETs and 40 POSTs.
pub const RATE: u32 = 160;

/// Plays a fault once. A fault that needs a network of its own gets one, in a process of its own.
pub async fn play(setup: &Setup, fault: &Fault, who: Who) -> Result<Seen, String> {
    match fault.needs_a_hole() {
        true => hole::play(setup, fault, who).await,
        false => play_here(setup, fault, who).await,
    }
}

/// Plays a fault once, in the network that is here.
pub async fn play_here(setup: &Setup, fault: &Fault, who: Who) -> Result<Seen, String> {
    scene::play(setup, fault, who).await
}
