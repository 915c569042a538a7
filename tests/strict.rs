//! Our HTTP/1.1 engine against peers that break rules, on raw sockets on both sides: each row of the tables in `docs/http1.md`, and what
//! else a hostile or odd client or upstream can do. What is asked of every row: the right answer, nothing beyond it, nothing
//! on the other side that should not be there, the right line in the log, and nothing in flight afterwards.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]
#![allow(unreachable_pub, reason = "a test binary has no outside")]

mod common;

#[path = "strict/answers.rs"]
mod answers;
#[path = "strict/bodies.rs"]
mod bodies;
#[path = "strict/capacity.rs"]
mod capacity;
#[path = "strict/connections.rs"]
mod connections;
#[path = "strict/doubts.rs"]
mod doubts;
#[path = "strict/drains.rs"]
mod drains;
#[path = "strict/evacuations.rs"]
mod evacuations;
#[path = "strict/forwarding.rs"]
mod forwarding;
#[path = "strict/kit.rs"]
mod kit;
#[path = "strict/long.rs"]
mod long;
#[path = "strict/refusals.rs"]
mod refusals;
#[path = "strict/rivals.rs"]
mod rivals;
#[path = "strict/slow.rs"]
mod slow;
#[path = "strict/tunnels.rs"]
mod tunnels;
