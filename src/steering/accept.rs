//! How much of a region's clients it accepts, and the draw that decides which clients those are.

/// What a draw is for. Each use has its own tag, so that the draws of one client are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Whether a region accepts a client.
    Accept = 0,
    /// A region's score in a split.
    Split = 1,
}

/// How many tags there are.
pub const TAGS: usize = 2;

/// The seeds of a region for a service, one for each [`Tag`].
pub fn seeds(_service: &str, _region: &str) -> [u64; TAGS] {
    todo!()
}
