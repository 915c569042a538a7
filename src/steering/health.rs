//! What the probes of one endpoint say of it: unknown, up or down, and when to ask again.
//!
//! A pure state machine over probe results, in the order in which they came. Two hystereses, as in gdnsd: `fall` failures in a row
//! or `rise` passes in a row turn a verdict quickly, and failures that keep coming back between a few passes turn it too, slowly, so that
//! an endpoint on the edge does not go up and down for ever. A score (an average of results) was refused: nobody
//! can say from a log line why it crossed its bound.
//!
//! It must not know pools, operators or time: delays are what it asks for, the probing shell keeps the clock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::steering::fleet::HealthPolicy;
use crate::steering::snapshot::EndpointState;

/// Passes in a row that end the memory of failures (gdnsd's `ok_thresh`), and that an endpoint down for flapping needs.
const CALM: u32 = 10;

/// Failures without [`CALM`] passes in a row between them that turn an endpoint down (gdnsd's `down_thresh`).
const SLIPS: u32 = 10;

/// The verdict over one endpoint and the results that may turn it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHealth {
    verdict: EndpointState,
    /// In a row.
    passes: u32,
    /// In a row.
    failures: u32,
    /// Failures while not down, since the last calm. Those of an endpoint that is down already are one outage, however long:
    /// they say nothing of flapping.
    slips: u32,
    /// Down because of slips: `rise` passes are not enough.
    flapping: bool,
    /// Of this process: another one must not take its word for it that endpoints can be reached from here.
    #[serde(skip)]
    observed: bool,
}

/// A verdict turned, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Up, from unknown: one pass is enough, whatever failed before, so that a new endpoint serves soon.
    FirstPass,
    /// Up again, after this many passes in a row.
    Rose(u32),
    /// Down, after this many failures in a row.
    Fell(u32),
    /// Down, after this many failures that 10 passes in a row never separated.
    Flapped(u32),
}

impl Turn {
    /// The new verdict.
    pub fn verdict(self) -> EndpointState {
        match self {
            Turn::FirstPass | Turn::Rose(_) => EndpointState::Up,
            Turn::Fell(_) | Turn::Flapped(_) => EndpointState::Down,
        }
    }
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Turn::FirstPass => f.write_str("first pass"),
            Turn::Rose(1) => f.write_str("1 pass"),
            Turn::Rose(passes) => write!(f, "{passes} passes in a row"),
            Turn::Fell(1) => f.write_str("1 failure"),
            Turn::Fell(failures) => write!(f, "{failures} failures in a row"),
            Turn::Flapped(failures) => write!(f, "{failures} failures without {CALM} passes in a row between them"),
        }
    }
}

impl EndpointHealth {
    /// An endpoint of which nothing was observed, with a verdict to begin with: unknown as a rule, up when nobody
    /// probes it, or what was known of the same address under another kind of probe.
    pub fn new(verdict: EndpointState) -> EndpointHealth {
        EndpointHealth { verdict, passes: 0, failures: 0, slips: 0, flapping: false, observed: false }
    }

    /// The verdict.
    pub fn verdict(&self) -> EndpointState {
        self.verdict
    }

    /// Whether any probe of it has ended.
    pub fn observed(&self) -> bool {
        self.observed
    }

    /// Takes a probe's result; returns the turn if the verdict turned. A policy that changed counts from the next result on.
    pub fn observe(&mut self, passed: bool, policy: &HealthPolicy) -> Option<Turn> {
        self.observed = true;
        let turn = if passed { self.pass(policy) } else { self.fail(policy) }?;
        self.verdict = turn.verdict();
        Some(turn)
    }

    fn pass(&mut self, policy: &HealthPolicy) -> Option<Turn> {
        self.failures = 0;
        self.passes = self.passes.saturating_add(1);
        if self.passes >= CALM {
            self.slips = 0;
        }
        match self.verdict {
            EndpointState::Up => None,
            EndpointState::Unknown => Some(Turn::FirstPass),
            EndpointState::Down => {
                let needed = if self.flapping { policy.rise.max(CALM) } else { policy.rise };
                (self.passes >= needed).then_some(Turn::Rose(self.passes))
            }
        }
    }

    fn fail(&mut self, policy: &HealthPolicy) -> Option<Turn> {
        self.passes = 0;
        self.failures = self.failures.saturating_add(1);
        if self.verdict == EndpointState::Down {
            return None;
        }
        self.slips = self.slips.saturating_add(1);
        // One unbroken run is an outage, and `fall` alone says how long it may be.
        self.flapping = self.slips >= SLIPS && self.slips > self.failures;
        if self.flapping {
            Some(Turn::Flapped(self.slips))
        } else if self.failures >= policy.fall {
            Some(Turn::Fell(self.failures))
        } else {
            None
        }
    }

    /// How long to wait before the next probe: `fast_interval` until the first verdict and while the verdict is in doubt
    /// (up with failures, down with fewer than `rise` passes), else `interval`. One that flapped is not hurried beyond that.
    pub fn next_delay(&self, policy: &HealthPolicy) -> Duration {
        let in_doubt = match self.verdict {
            EndpointState::Unknown => true,
            EndpointState::Up => 0 < self.failures && self.failures < policy.fall,
            EndpointState::Down => 0 < self.passes && self.passes < policy.rise,
        };
        if in_doubt { policy.fast_interval } else { policy.interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steering::fleet::{Passive, Probe};

    fn policy(fall: u32, rise: u32) -> HealthPolicy {
        HealthPolicy {
            probe: Probe::Tcp,
            port: None,
            interval: Duration::from_secs(1),
            fast_interval: Duration::from_millis(200),
            timeout: Duration::from_millis(500),
            rise,
            fall,
            min_healthy: 50,
            overprovision: 1.4,
            hold: Duration::from_secs(30),
            ramp: Duration::from_secs(60),
            passive: Passive::default(),
            stall: true,
        }
    }

    /// (fall, rise, results, verdict after each): P pass, F failure; ? unknown, u up, d down. Blanks are for the eye.
    const VERDICTS: &[(u32, u32, &str, &str)] = &[
        // The first verdict: one pass, or `fall` failures.
        (3, 2, "P", "u"),
        (3, 2, "FFP", "??u"),
        (3, 2, "FFFPP", "??ddu"),
        (1, 1, "FPFP", "dudu"),
        // In a row means in a row.
        (3, 2, "P FFP FFP FFF", "u uuu uuu uud"),
        (3, 2, "P FFF PFPFPP", "u uud dddddu"),
        (2, 4, "P FF PPPF PPPP", "u ud dddd dddu"),
        // The tenth failure in short succession turns it, and then two passes do not turn it back, ten do.
        (3, 2, "P FP FP FP FP FP FP FP FP FP F PPPPPPPPP P", "u uu uu uu uu uu uu uu uu uu d ddddddddd u"),
        (3, 2, "P FFFPP FFFPP FFFPP F PPPPPPPPP F PPPPPPPPP P", "u uuddu uuddu uuddu d ddddddddd d ddddddddd u"),
        // Ten passes in a row forgive, wherever they begin.
        (3, 2, "P FFFPP FFFPP FFFPPPPPPPPPP F P FF F", "u uuddu uuddu uudduuuuuuuuu u u uu d"),
        // Nine do not.
        (3, 2, "P FFFPP FFFPP FFFPPPPPPPPP F PP", "u uuddu uuddu uudduuuuuuuu d dd"),
        // A long outage is one: it comes back by `rise`.
        (3, 2, "P FFFFFFFFFFFFFFFFFFFF PP FF P", "u uudddddddddddddddddd du uu u"),
        (10, 2, "P FFFFFFFFFF PP", "u uuuuuuuuud du"),
        (20, 2, "P FFFFFFFFFFFFFFFFFFFF PP", "u uuuuuuuuuuuuuuuuuuud du"),
        // A single failure before it makes two of them, so they flap.
        (20, 2, "P FP FFFFFFFFF PP", "u uu uuuuuuuud dd"),
    ];

    fn run(fall: u32, rise: u32, results: &str) -> EndpointHealth {
        let mut health = EndpointHealth::new(EndpointState::Unknown);
        for result in results.chars().filter(|c| *c != ' ') {
            health.observe(result == 'P', &policy(fall, rise));
        }
        health
    }

    #[test]
    fn results_make_verdicts() {
        for (fall, rise, results, verdicts) in VERDICTS {
            let mut health = EndpointHealth::new(EndpointState::Unknown);
            let mut got = String::new();
            for result in results.chars() {
                if result == ' ' {
                    got.push(' ');
                    continue;
                }
                let before = health.verdict();
                let turn = health.observe(result == 'P', &policy(*fall, *rise));
                assert_eq!(turn.map(Turn::verdict), (health.verdict() != before).then_some(health.verdict()));
                got.push(match health.verdict() {
                    EndpointState::Unknown => '?',
                    EndpointState::Up => 'u',
                    EndpointState::Down => 'd',
                });
            }
            assert_eq!(got, *verdicts, "fall {fall}, rise {rise}: {results}");
        }
    }

    #[test]
    fn probes_hurry_only_between_verdicts() {
        // (results, whether the next probe is fast) with fall 3, rise 2.
        let rows = [
            ("", true),
            ("F", true),
            ("FFF", false),
            ("P", false),
            ("PF", true),
            ("PFF", true),
            ("PFFF", false),
            ("PFFFF", false),
            ("PFFFP", true),
            ("PFFFPP", false),
            ("PFP", false),
        ];
        for (results, fast) in rows {
            let delay = run(3, 2, results).next_delay(&policy(3, 2));
            assert_eq!(delay == Duration::from_millis(200), fast, "{results}");
        }
        // One that flapped is not hurried between `rise` and ten passes.
        let flapped = run(3, 2, "P FP FP FP FP FP FP FP FP FP F PPP");
        assert_eq!(flapped.next_delay(&policy(3, 2)), Duration::from_secs(1));
    }

    #[test]
    fn a_turn_says_why() {
        let turns: Vec<String> = [Turn::FirstPass, Turn::Rose(2), Turn::Fell(3), Turn::Fell(1), Turn::Flapped(10)]
            .iter()
            .map(Turn::to_string)
            .collect();
        assert_eq!(
            turns,
            [
                "first pass",
                "2 passes in a row",
                "3 failures in a row",
                "1 failure",
                "10 failures without 10 passes in a row between them"
            ]
        );
    }

    #[test]
    fn a_given_verdict_turns_like_any_other() {
        let mut health = EndpointHealth::new(EndpointState::Up);
        assert!(!health.observed());
        assert_eq!(health.observe(false, &policy(2, 2)), None);
        assert!(health.observed());
        assert_eq!(health.observe(false, &policy(2, 2)), Some(Turn::Fell(2)));
    }
}
