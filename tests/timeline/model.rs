//! The rules of an endpoint's verdict, written a second time: from its whole history, without any state.

use std::net::SocketAddr;
use std::sync::Arc;

use meridian::steering::fleet::{HealthPolicy, Probe};
use meridian::steering::meter::Meter;
use meridian::steering::snapshot::{Asked, EndpointId, EndpointState};

/// Which endpoint: service, region, address, kind of probe.
pub type Key = (String, String, SocketAddr, &'static str);

pub fn kind(probe: &Probe) -> &'static str {
    match probe {
        Probe::None => "none",
        Probe::Tcp => "tcp",
        Probe::Http { .. } => "http",
        Probe::Tls { .. } => "tls",
        Probe::Grpc { .. } => "grpc",
    }
}

/// What the model knows of an endpoint.
pub struct Known {
    pub id: EndpointId,
    pub meter: Arc<Meter>,
    pub given: EndpointState,
    /// Passed or not, and `fall` and `rise` at that time.
    pub results: Vec<(bool, u32, u32)>,
    /// What [`Known::judge`] says of them.
    pub verdict: EndpointState,
    /// What the last pass asked for, unless it is down.
    pub asked: Asked,
    /// Until when it is ejected, and whether probes turned it down since.
    pub out: Option<(u64, bool)>,
}

impl Known {
    /// SEMANTICS "Health", read literally over everything that happened.
    pub fn judge(&self) -> EndpointState {
        let mut verdict = self.given;
        let mut flapped = false;
        // Where the failures are that happened while not down.
        let mut failures: Vec<usize> = Vec::new();
        for (at, (passed, fall, rise)) in self.results.iter().enumerate() {
            let run = self.run_until(at);
            if *passed {
                let enough = match verdict {
                    EndpointState::Unknown => true,
                    EndpointState::Up => false,
                    EndpointState::Down => run >= if flapped { 10.max(*rise) } else { *rise },
                };
                if enough {
                    verdict = EndpointState::Up;
                }
            } else if verdict != EndpointState::Down {
                failures.push(at);
                let calm = (0..at).rev().find(|end| self.results[*end].0 && self.run_until(*end) >= 10);
                let recent = failures.iter().filter(|failure| calm.is_none_or(|calm| **failure > calm)).count() as u32;
                flapped = recent >= 10 && recent > run;
                if flapped || run >= *fall {
                    verdict = EndpointState::Down;
                }
            }
        }
        verdict
    }

    /// How many results up to this one are like it, without a break.
    fn run_until(&self, at: usize) -> u32 {
        let passed = self.results[at].0;
        self.results[..=at].iter().rev().take_while(|result| result.0 == passed).count() as u32
    }

    pub fn in_doubt(&self, policy: &HealthPolicy) -> bool {
        let last = self.results.len().checked_sub(1);
        let run = |of: bool| last.filter(|at| self.results[*at].0 == of).map_or(0, |at| self.run_until(at));
        match self.verdict {
            EndpointState::Unknown => true,
            EndpointState::Up => (1..policy.fall).contains(&run(false)),
            EndpointState::Down => (1..policy.rise).contains(&run(true)),
        }
    }
}
