//! From host and path to a service.
//!
//! Hosts: exact, then the longest wildcard, then services for every host. Paths: by prefix at segment borders, the longest
//! wins. Matching looks at a normalised copy of the path; what is forwarded stays byte for byte.

use crate::steering::fleet::ServiceId;

/// Why no service was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No service has this host: 421.
    Host,
    /// The host's services do not have this path: 404.
    Path,
    /// The path leaves the root or hides a delimiter inside a matched prefix: 400.
    BadPath,
}

impl NoRoute {
    /// The word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            NoRoute::Host => "no_host",
            NoRoute::Path => "no_path",
            NoRoute::BadPath => "bad_path",
        }
    }

    /// The status that a client gets for it.
    pub fn status(self) -> u16 {
        match self {
            NoRoute::Host => 421,
            NoRoute::Path => 404,
            NoRoute::BadPath => 400,
        }
    }
}

/// The compiled hosts and paths of all services.
#[derive(Clone, Debug, Default)]
pub struct Router {}

impl Router {
    /// From each service's hosts (empty: every host) and paths (at least one).
    pub fn new<'a>(_services: impl IntoIterator<Item = (ServiceId, &'a [String], &'a [String])>) -> Router {
        todo!()
    }

    /// The service for a Host field's value (any case, with or without port or trailing dot) and a request target's path
    /// (without the query). Does not allocate for paths without escapes or dot segments.
    pub fn route(&self, _host: &str, _path: &str) -> Result<ServiceId, NoRoute> {
        todo!()
    }
}
