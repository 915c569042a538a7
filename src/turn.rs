//! How often this thread's runtime has looked what its sockets have: what came before a turn is known after it.
//!
//! A worker's runtime counts ([`next`]). On threads that nobody counts for it stays at 0, and whoever asks has to look for itself.

use std::cell::Cell;

thread_local! {
    static TURN: Cell<u64> = const { Cell::new(0) };
}

/// The runtime has looked.
pub fn next() {
    TURN.set(TURN.get() + 1);
}

/// Turns of this thread so far.
pub fn now() -> u64 {
    TURN.get()
}
