//! What was seen of a fault: by the clients, by the origins, and in the proxy's log. Nothing here is worked out yet.
//!
//! Plain values that can be written and read, since a fault may be played in another process. Every moment is milliseconds since
//! the load began. Must not know processes, sockets or clocks.

use serde::{Deserialize, Serialize};

/// The regions, in the order of the configuration.
pub const REGIONS: [&str; 3] = ["us-east", "us-west", "eu-west"];

/// The region that faults befall.
pub const VICTIM: usize = 2;

/// One request and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Its number, which is its id at the origins.
    pub n: u64,
    /// Whether it was a POST.
    pub post: bool,
    /// The region nearest to its client.
    pub home: usize,
    /// When it was due.
    pub due_ms: f64,
    /// From then to the end of its answer.
    pub took_ms: f64,
    /// What came.
    pub answer: Answer,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// A whole answer.
    Whole {
        /// Its status.
        status: u16,
        /// The region that gave it, if one did.
        region: Option<usize>,
        /// Whether it says when to come back.
        retry_after: bool,
    },
    /// The connection ended first; what was wrong.
    Broken(String),
    /// Nothing, for longer than any client waits.
    Silence,
}

impl Request {
    /// Whether it was served.
    pub fn is_served(&self) -> bool {
        matches!(self.answer, Answer::Whole { status: 200, .. })
    }

    /// Whether it was told to come back later, which is no failure where there is no room.
    pub fn is_refused(&self) -> bool {
        matches!(self.answer, Answer::Whole { status: 503, region: None, retry_after: true })
    }

    /// When it was over.
    pub fn over_ms(&self) -> f64 {
        self.due_ms + self.took_ms
    }
}

/// A request that an origin executed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Executed {
    /// The request's number.
    pub n: u64,
    /// Whether it was a POST.
    pub post: bool,
    /// Where.
    pub region: usize,
    /// When.
    pub at_ms: f64,
}

/// A line of the proxy's log that tells of a change, or something that the drill did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When.
    pub at_ms: f64,
    /// The event's kind; empty for what the drill did.
    pub kind: String,
    /// The region it is about, if it is about one.
    pub region: String,
    /// The state that a region is in from then on.
    pub to: String,
    /// A line for people.
    pub text: String,
}

/// Everything that was seen of one fault.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// In the order in which they were due.
    pub requests: Vec<Request>,
    /// What the origins executed.
    pub executed: Vec<Executed>,
    /// When the fault began.
    pub fault_ms: f64,
    /// When it was no longer looked at.
    pub end_ms: f64,
    /// The most requests at once at each origin since the fault began; none of one that is not there to be asked.
    pub peaks: [Option<u64>; 3],
    /// Attempts at the region after it should be left alone, where the proxy counts them.
    pub late_attempts: Option<u64>,
    /// POSTs that failed though nothing of them was sent, where the proxy tells.
    pub unsent_posts: usize,
    /// Events and deeds.
    pub marks: Vec<Mark>,
    /// The end of the proxy's log, for people who look for a reason.
    pub log: String,
}

impl Seen {
    /// What was under way or due from the fault on, as long as it was looked at.
    pub fn during(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter(|request| request.over_ms() >= self.fault_ms)
    }
}

/// What a journal's lines say, `METHOD rNUMBER UNIX_MS`; `began` is when the load did.
pub fn executed(journal: &str, region: usize, began_unix_ms: f64) -> Vec<Executed> {
    let read = |line: &str| {
        let mut words = line.split(' ');
        let (method, id, at) = (words.next()?, words.next()?, words.next()?);
        let (n, at) = (id.strip_prefix('r')?.parse().ok()?, at.parse::<f64>().ok()?);
        Some(Executed { n, post: method == "POST", region, at_ms: at - began_unix_ms })
    };
    journal.lines().filter_map(read).collect()
}

/// A line of meridian's process log that is an event.
pub fn mark(line: &str, began_unix_ms: f64) -> Option<Mark> {
    #[derive(Deserialize)]
    struct Event {
        at: String,
        kind: String,
        message: String,
        #[serde(default)]
        region: String,
        #[serde(default)]
        to: String,
    }
    const DAY_MS: f64 = 86_400_000.0;
    let event: Event = serde_json::from_str(line).ok()?;
    // `2026-11-27T10:18:14.123Z`: no drill takes a day, so the time of the day says it all.
    let at = event.at.get(11..23)?;
    let part = |range: std::ops::Range<usize>| at.get(range)?.parse::<f64>().ok();
    let of_day = (part(0..2)? * 60.0 + part(3..5)?) * 60_000.0 + part(6..12)? * 1000.0;
    let since = of_day - began_unix_ms.rem_euclid(DAY_MS);
    let at_ms = if since < -DAY_MS / 2.0 { since + DAY_MS } else { since };
    Some(Mark { at_ms, kind: event.kind, region: event.region, to: event.to, text: event.message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journals_are_read_and_what_is_no_request_of_ours_is_passed() {
        let journal = "GET r4 1000500\nPOST r5 1000600\nGET - 1000700\nGET r6";
        let at = |n, post, at_ms| Executed { n, post, region: 1, at_ms };
        assert_eq!(executed(journal, 1, 1_000_000.0), [at(4, false, 500.0), at(5, true, 600.0)]);
    }

    #[test]
    fn events_are_read_across_midnight() {
        let line = |at: &str| {
            format!(r#"{{"seq":4,"at":"{at}","message":"down","kind":"region","region":"eu-west","to":"down"}}"#)
        };
        let began = 20_000.0 * 86_400_000.0 + 86_399_500.0;
        let found = mark(&line("2024-10-04T23:59:59.750Z"), began).unwrap();
        assert_eq!((found.at_ms, found.kind.as_str(), found.to.as_str()), (250.0, "region", "down"));
        assert_eq!(mark(&line("2024-10-05T00:00:00.500Z"), began).unwrap().at_ms, 1000.0);
        assert!(mark("no event", began).is_none());
        assert!(mark(&line("yesterday"), began).is_none());
    }
}
