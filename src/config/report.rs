//! What is wrong with a configuration, and where.

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It cannot work.
    Error,
    /// It is probably a mistake.
    Warning,
}

/// Every finding of one load.
#[derive(Clone, Debug, Default)]
pub struct Report {}
