//! What operators see: metrics, events, the access log, the process log.
//!
//! Label values come from enums and the configuration, never from a client. The request path touches handles resolved when the
//! snapshot was published and one bounded queue; it never looks a label up, formats a line or waits.

pub mod access;
mod journal;
mod line;
pub mod log;
pub mod metrics;
mod process;
mod repeats;
mod shape;
mod spans;
mod standing;

pub use access::{AccessLogGuard, AccessLogger, AccessRecord, Mover, Text, Traced};
pub use journal::Journal;
pub use metrics::{AffinityResult, Handles, InFlight, Metrics, Reload};
pub(crate) use process::kilobytes;
pub use spans::{Spans, SpansGuard};
