//! What keeps one mishap from filling the process log: messages that come again and again are counted instead of written.
//!
//! Two bounds, because two things repeat. The same text of the same place in the program says nothing new after a few times; and one place
//! whose text differs each time (a peer's address in it) is stopped later, after so many that one lost data center, a line for each of its
//! endpoints, is told whole. What was left out is said once, when the window ends. Events of the world are numbered, each is news: they
//! never come here.
//!
//! Pure: the clock is the caller's. Must not know how lines look.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tracing::Level;

/// How long is counted, from the first message of a place on.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// How often the same text of one place is said in a window.
const SAME: u32 = 10;

/// How many messages of one place are said in a window.
const PLACE: u32 = 200;

/// How often what was said.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<u64, Window>>);

#[derive(Debug)]
struct Window {
    since: Instant,
    said: u32,
    /// By a hash of the text. No more than [`PLACE`].
    texts: HashMap<u64, u32>,
    left_out: Option<LeftOut>,
}

/// Messages of one place that were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) count: u64,
    pub(super) level: Level,
    pub(super) target: String,
    /// The last of them.
    pub(super) message: String,
}

/// A message, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// Which place in the program says it.
    pub(super) place: u64,
    /// A hash of all that it says.
    pub(super) text: u64,
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) message: &'a str,
}

impl Repeats {
    /// Whether this is to be said, and what of its place was left out in a window that is over.
    pub(super) fn say(&self, what: Message<'_>, now: Instant) -> (bool, Option<LeftOut>) {
        let mut windows = self.lock();
        let mut over = None;
        let fresh = || Window { since: now, said: 0, texts: HashMap::new(), left_out: None };
        let window = windows.entry(what.place).or_insert_with(fresh);
        if now.saturating_duration_since(window.since) >= WINDOW {
            over = std::mem::replace(window, fresh()).left_out;
        }
        let text = window.texts.get(&what.text).copied().unwrap_or(0);
        if text < SAME && window.said < PLACE {
            window.said += 1;
            window.texts.insert(what.text, text + 1);
            return (true, over);
        }
        let left_out = window.left_out.get_or_insert_with(|| LeftOut {
            count: 0,
            level: what.level,
            target: what.target.to_owned(),
            message: String::new(),
        });
        left_out.count += 1;
        left_out.message.clear();
        left_out.message.push_str(what.message);
        (false, over)
    }

    /// What was left out in windows that are over by `now`; these are forgotten. `None`: in all of them.
    pub(super) fn over(&self, now: Option<Instant>) -> Vec<LeftOut> {
        let mut over = Vec::new();
        self.lock().retain(|_, window| {
            let lasts = now.is_some_and(|now| now.saturating_duration_since(window.since) < WINDOW);
            if !lasts {
                over.extend(window.left_out.take());
            }
            lasts
        });
        over
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Window>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs a moment to begin at")]
mod tests {
    use super::*;

    fn message(place: u64, text: u64) -> Message<'static> {
        Message { place, text, level: Level::WARN, target: "meridian::test", message: "again" }
    }

    #[test]
    fn the_same_text_is_said_a_few_times_and_then_counted() {
        let (repeats, begun) = (Repeats::default(), Instant::now());
        let said = (0..1_000).filter(|_| repeats.say(message(1, 1), begun).0).count();
        assert_eq!(said, SAME as usize);
        // Another text of that place, and the same of another place.
        assert!(repeats.say(message(1, 2), begun).0 && repeats.say(message(2, 1), begun).0);
        assert_eq!(repeats.over(Some(begun + WINDOW / 2)), []);
        let over = repeats.over(Some(begun + WINDOW));
        assert_eq!((over.len(), over[0].count, over[0].message.as_str()), (1, 990, "again"));
        assert!(repeats.0.lock().unwrap().is_empty(), "what is over is forgotten");
    }

    #[test]
    fn a_place_that_says_something_else_each_time_is_bounded_too() {
        let (repeats, begun) = (Repeats::default(), Instant::now());
        let said = (0..1_000).filter(|text| repeats.say(message(1, *text), begun).0).count();
        assert_eq!(said, PLACE as usize);
        assert!(repeats.0.lock().unwrap()[&1].texts.len() <= PLACE as usize);
        assert_eq!(repeats.over(None)[0].count, 800);
    }

    #[test]
    fn a_new_window_begins_with_what_the_last_one_left_out() {
        let (repeats, begun) = (Repeats::default(), Instant::now());
        for _ in 0..SAME + 5 {
            repeats.say(message(1, 1), begun);
        }
        let (said, over) = repeats.say(message(1, 1), begun + WINDOW);
        assert!(said);
        assert_eq!(over.map(|over| over.count), Some(5));
        assert_eq!(repeats.over(None), []);
    }
}
