//! What happened, as JSON: one line in the process log, and the last thousand of them in memory for who asks later.
//!
//! A line is rendered once, when the event happens, so that asking costs a copy and changes nothing. Events are numbered from 1 on in
//! each process; who remembers the last number it saw asks for what came after. Bounded: what is older is in the log.
//!
//! Written by the one writer and by reloads, read by admin pages; the request path never comes here, so a lock is good enough.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;
use tracing::Level;

use crate::steering::Event;
use crate::steering::snapshot::PoolState;
use crate::text::rfc3339;

/// Events that are remembered.
const ROOM: usize = 1024;

/// The target of events in the process log: a line of this target is the event's JSON and nothing else.
pub(super) const TARGET: &str = "meridian::event";

/// The last events of this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    ring: Arc<Mutex<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The number of the last event; 0 before the first.
    last: u64,
    /// The newest last.
    lines: VecDeque<Arc<str>>,
}

/// An event as it is written down.
#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    at: String,
    level: &'static str,
    message: String,
    #[serde(flatten)]
    event: &'a Event,
}

impl Journal {
    /// Writes an event of that time (Unix milliseconds) down, here and in the process log.
    pub(super) fn note(&self, event: &Event, at_ms: u64) {
        let level = level(event);
        let mut ring = self.lock();
        let seq = ring.last + 1;
        let word = match level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            _ => "debug",
        };
        let line = Line { seq, at: rfc3339(at_ms), level: word, message: event.to_string(), event };
        // Text and numbers always have a JSON.
        let line: Arc<str> = serde_json::to_string(&line).unwrap_or_default().into();
        ring.last = seq;
        if ring.lines.len() == ROOM {
            ring.lines.pop_front();
        }
        ring.lines.push_back(Arc::clone(&line));
        // Under the lock, so that the log has them in order; the log does not wait.
        match level {
            Level::ERROR => tracing::error!(target: TARGET, "{line}"),
            Level::WARN => tracing::warn!(target: TARGET, "{line}"),
            Level::INFO => tracing::info!(target: TARGET, "{line}"),
            _ => tracing::debug!(target: TARGET, "{line}"),
        }
    }

    /// The number of the last event, and those after `since` that are remembered, the newest last, each a JSON object. A number that lies ahead
    /// is one of another process: everything is new to who asks.
    pub fn since(&self, since: u64) -> (u64, Vec<Arc<str>>) {
        let ring = self.lock();
        let wanted = ring.last.checked_sub(since).unwrap_or(ring.last);
        let skipped = ring.lines.len().saturating_sub(usize::try_from(wanted).unwrap_or(usize::MAX));
        (ring.last, ring.lines.iter().skip(skipped).cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// How loud an event is.
fn level(event: &Event) -> Level {
    match event {
        // Every endpoint's first pass after a start says nothing new.
        Event::Endpoint { up: true, first: true, .. } => Level::DEBUG,
        Event::Endpoint { up: false, .. }
        | Event::Region { to: PoolState::Down, .. }
        | Event::Ejection { time: Some(_), .. }
        | Event::Shedding { on: true, .. }
        | Event::Late { .. } => Level::WARN,
        Event::Panic { on: true, .. }
        | Event::SelfSuspicion { on: true }
        | Event::ReloadRefused { .. }
        | Event::OverridesLost { .. } => Level::ERROR,
        _ => Level::INFO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(lines: &[Arc<str>]) -> Vec<u64> {
        let number =
            |line: &Arc<str>| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap();
        lines.iter().map(number).collect()
    }

    #[test]
    fn the_last_ones_are_remembered_in_order() {
        let journal = Journal::default();
        assert_eq!(journal.since(0), (0, Vec::new()));
        let most = ROOM as u64;
        for generation in 1..=most + 3 {
            journal.note(&Event::Published { generation }, 1_000);
        }
        let (last, lines) = journal.since(0);
        assert_eq!((last, lines.len(), numbers(&lines)[0]), (most + 3, ROOM, 4));
        assert_eq!(numbers(&journal.since(most + 1).1), [most + 2, most + 3]);
        assert!(journal.since(most + 3).1.is_empty());
        assert_eq!(journal.since(u64::MAX).1.len(), ROOM, "who was here before a restart gets everything");
        assert_eq!(
            &*lines[0],
            r#"{"seq":4,"at":"1970-01-01T00:00:01.000Z","level":"info","message":"generation 4 is published","kind":"published","generation":4}"#
        );
    }
}
