//! Whether the process has so little memory left that it must not take on more.
//!
//! Said by the one who looks (`memory`), heeded at each new connection and each request. Must not know how memory is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Clones are the same. Off at first.
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<AtomicBool>);

impl Pressure {
    /// Whether nothing new is to be begun. Costs a read of memory that hardly ever changes.
    pub fn is_on(&self) -> bool {
        // Nothing else is learnt from it.
        self.0.load(Ordering::Relaxed)
    }

    /// Says so, or not any more. Returns what was so before.
    pub fn set(&self, on: bool) -> bool {
        self.0.swap(on, Ordering::Relaxed)
    }
}
