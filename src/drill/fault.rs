//! The catalogue: what can befall a region, and what has to hold when it does.
//!
//! Pure: how a fault is brought about is the scene's, how its bars are read is `figures`'. The bars are those of meridian with default
//! settings but for `interval = "500ms"` and `first_byte = "3s"`; peers are measured, not judged.

use std::time::Duration;

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens, in a line.
    pub about: &'static str,
    /// How it is brought about.
    pub what: What,
    /// How long it is looked at.
    pub lasts: Duration,
    /// What it happens to.
    pub stage: Stage,
    /// What has to hold.
    pub bars: Bars,
}

/// How a fault is brought about; `eu-west` is the region that it befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// SIGKILL: connections are reset, new ones refused.
    Kill,
    /// SIGSTOP: handshakes complete, nothing answers.
    Stop,
    /// The machine is gone: packets to it come to nothing.
    Vanish,
    /// As `meridian origin --troubled` says.
    Trouble(&'static str),
    /// Its health page and its answers have this status.
    Everything(&'static str),
    /// Its health page answers with this status.
    Health(&'static str),
    /// The health pages of all regions answer with this status.
    HealthEverywhere(&'static str),
    /// Its health page is bad and good in turn, so long each.
    Flap(Duration),
    /// SIGKILL, and so many reloads one after the other.
    KillAndReload(u64),
    /// The proxy itself stands still for so long.
    Ourselves(Duration),
    /// All regions have this trouble.
    TroubleEverywhere(&'static str),
    /// SIGKILL, and a start after so long, cold: what it can carry grows over so many seconds.
    ColdReturn(Duration, u32),
    /// The configuration is cut in its middle.
    CutConfig,
    /// A broken database takes the place of the one in use, then another whole one does.
    SwapDatabase,
    /// The database in use is deleted, and the configuration touched.
    DeleteDatabase,
}

/// What a fault happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Three regions that carry whatever comes, at the rate that was asked for.
    Open,
    /// The same without a load: probes alone find out.
    Idle,
    /// Three regions with a [`CAPACITY`], all of which the proxy is told, and this percentage of it in requests.
    Bounded(u32),
    /// As `Open`, with a geo database in a file.
    Database,
}

/// What has to hold: the medians of several runs. What must never be is no bar: a request executed twice, a POST that fails though
/// nothing of it was sent, a failure before the fault.
#[derive(Clone, Copy, Debug)]
pub struct Bars {
    /// GETs that fail; refusals with `Retry-After` are no failures.
    pub failed_gets: usize,
    /// POSTs that fail, all of which had been sent.
    pub failed_posts: usize,
    /// Answers slower than a second.
    pub slower: usize,
    /// From so long after the fault on nothing but probes goes to the region.
    pub quiet_after: Option<Duration>,
    /// The region is down within this time.
    pub down_within: Option<Duration>,
    /// Attempts ÷ requests.
    pub attempts: Option<f64>,
    /// Turns of regions from one state to another.
    pub turns: Option<usize>,
    /// No survivor has more in flight than its limit.
    pub within_limit: bool,
    /// What is answered a second, of what the survivors can or what is asked, whichever is less.
    pub goodput: Option<f64>,
    /// Kinds of events one of which has to be there; none are asked for when it is empty.
    pub told: &'static [&'static str],
    /// Kinds of events that must not be.
    pub untold: &'static [&'static str],
    /// Requests may be refused with `Retry-After`.
    pub refusals: bool,
    /// Every answer is from the region that is nearest to its client.
    pub at_home: bool,
    /// Answers break, and none that broke looks whole.
    pub broken: bool,
}

/// What a region of [`Stage::Bounded`] can carry.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Requests it works on at a time.
    pub slots: u32,
    /// How long on each.
    pub service: Duration,
    /// What the proxy is told: requests in flight above which it should send clients elsewhere.
    pub target: u32,
    /// The same that must not be passed: what is worked on, and a short queue, without which no slot would always be busy.
    pub limit: u32,
}

/// 160 requests a second.
pub const CAPACITY: Capacity = Capacity { slots: 16, service: Duration::from_millis(100), target: 20, limit: 24 };

impl Capacity {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.slots) / self.service.as_secs_f64()
    }
}

const BARS: Bars = Bars {
    failed_gets: 0,
    failed_posts: 3,
    slower: 0,
    quiet_after: Some(Duration::from_millis(700)),
    down_within: None,
    attempts: None,
    turns: None,
    within_limit: false,
    goodput: None,
    told: &[],
    untold: &[],
    refusals: false,
    at_home: false,
    broken: false,
};

/// Nothing at all may be lost.
const NOTHING_LOST: Bars = Bars { failed_posts: 0, quiet_after: None, ..BARS };

const SIX: Duration = Duration::from_secs(6);

const fn fault(name: &'static str, about: &'static str, what: What, bars: Bars) -> Fault {
    Fault { name, about, what, lasts: SIX, stage: Stage::Open, bars }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Everything that can be played, in the order of tables.
pub const FAULTS: &[Fault] = &[
    fault("kill", "the region's process is killed: connections are reset, new ones refused", What::Kill, BARS),
    fault("refuse", "nobody listens any more: connections end, new ones are refused", What::Trouble("refuse"), BARS),
    fault(
        "stop",
        "the region's process is frozen (SIGSTOP): connections open, nothing answers",
        What::Stop,
        Bars { slower: 10, failed_posts: 12, ..BARS },
    ),
    fault(
        "vanish",
        "the region's machine is gone: packets to it come to nothing (in a network namespace)",
        What::Vanish,
        Bars { slower: 10, failed_posts: 12, ..BARS },
    ),
    fault(
        "503",
        "every answer of the region is a 503, its health page's too",
        What::Everything("503"),
        Bars { failed_posts: 8, ..BARS },
    ),
    fault(
        "gray",
        "every answer of the region is a 503, and its health page says 200",
        What::Trouble("503"),
        Bars { failed_posts: 8, ..BARS },
    ),
    fault(
        "half",
        "half of the region's answers are 503, and its health page says 200",
        What::Trouble("half"),
        Bars { failed_posts: 8, quiet_after: Some(ms(1500)), attempts: Some(1.2), ..BARS },
    ),
    fault(
        "executed",
        "the region executes each request, then resets the connection",
        What::Trouble("executed"),
        Bars { failed_posts: 8, ..BARS },
    ),
    fault(
        "body",
        "the region resets connections in the middle of its answers' bodies",
        What::Trouble("body"),
        // What the client has of an answer cannot be taken back: each is a failure, and is seen to be one.
        Bars { failed_gets: 10_000, failed_posts: 10_000, slower: 0, quiet_after: None, broken: true, ..BARS },
    ),
    fault(
        "close",
        "the region accepts connections and closes them",
        What::Trouble("close"),
        Bars { failed_posts: 8, ..BARS },
    ),
    fault("garbage", "what the region answers is no HTTP", What::Trouble("garbage"), Bars { failed_posts: 8, ..BARS }),
    fault(
        "drip",
        "the region's answers come at a byte a second",
        What::Trouble("drip"),
        Bars { slower: 60, failed_posts: 30, quiet_after: None, ..BARS },
    ),
    fault(
        "health",
        "the region's health page says 500, and its traffic is fine",
        What::Health("500"),
        Bars { quiet_after: Some(ms(1500)), failed_posts: 0, ..BARS },
    ),
    fault(
        "health-everywhere",
        "the health pages of all regions say 500, and their traffic is fine",
        What::HealthEverywhere("500"),
        Bars { told: &["self_suspicion", "panic"], ..NOTHING_LOST },
    ),
    fault(
        "flap",
        "the region's health page goes bad and good as fast as it can be noticed",
        What::Flap(ms(550)),
        Bars { turns: Some(8), ..NOTHING_LOST },
    ),
    fault(
        "pause",
        "the proxy itself is stopped for two seconds and goes on",
        What::Ourselves(ms(2000)),
        // Who waited for it waited two seconds.
        Bars { slower: 10_000, told: &["late"], untold: &["ejection", "region"], ..NOTHING_LOST },
    ),
    fault(
        "reloads",
        "the region is killed, and the configuration changes a hundred times meanwhile",
        What::KillAndReload(100),
        Bars { quiet_after: None, ..BARS },
    ),
    Fault {
        name: "kill-idle",
        about: "the region's process is killed while there is no traffic: probes alone find out",
        what: What::Kill,
        lasts: Duration::from_secs(3),
        stage: Stage::Idle,
        bars: Bars { quiet_after: None, down_within: Some(ms(1500)), ..BARS },
    },
    Fault {
        name: "vanish-idle",
        about: "the region's machine is gone while there is no traffic: probes alone find out",
        what: What::Vanish,
        lasts: Duration::from_secs(3),
        stage: Stage::Idle,
        bars: Bars { quiet_after: None, down_within: Some(ms(2500)), ..BARS },
    },
    Fault {
        name: "overload",
        about: "the region is killed at 80 % of what all three can carry: more than the other two can",
        what: What::Kill,
        lasts: Duration::from_secs(10),
        stage: Stage::Bounded(80),
        bars: Bars {
            // Those that were there when it died.
            failed_posts: 12,
            within_limit: true,
            goodput: Some(0.95),
            refusals: true,
            ..BARS
        },
    },
    Fault {
        name: "cold-return",
        about: "the region is killed, and comes back after 4 s with a tenth of its capacity, which grows over 60 s",
        what: What::ColdReturn(Duration::from_secs(4), 60),
        lasts: Duration::from_secs(75),
        stage: Stage::Bounded(60),
        bars: Bars { failed_posts: 12, quiet_after: None, within_limit: true, ..BARS },
    },
    Fault {
        name: "retry-storm",
        about: "half of all regions' answers are 503, at 80 % of what they can carry",
        what: What::TroubleEverywhere("half"),
        // Its last ten seconds count, when what was spared before it began is spent.
        lasts: Duration::from_secs(20),
        stage: Stage::Bounded(80),
        bars: Bars {
            // Half of what is asked fails at first, and what may be tried again is bounded.
            failed_gets: 10_000,
            failed_posts: 10_000,
            quiet_after: None,
            attempts: Some(1.2),
            within_limit: true,
            refusals: true,
            ..BARS
        },
    },
    fault(
        "cut-config",
        "the configuration is cut in its middle, and made whole again",
        What::CutConfig,
        Bars { told: &["reload_refused"], at_home: true, ..NOTHING_LOST },
    ),
    Fault {
        name: "swap-mmdb",
        about: "the geo database is replaced by a broken one, then by another whole one",
        what: What::SwapDatabase,
        lasts: SIX,
        stage: Stage::Database,
        bars: Bars { told: &["reload_refused"], at_home: true, ..NOTHING_LOST },
    },
    Fault {
        name: "delete-mmdb",
        about: "the geo database is deleted, and the configuration changes",
        what: What::DeleteDatabase,
        lasts: SIX,
        stage: Stage::Database,
        bars: Bars { at_home: true, ..NOTHING_LOST },
    },
];

impl Fault {
    /// The one of that name.
    pub fn named(name: &str) -> Option<&'static Fault> {
        FAULTS.iter().find(|fault| fault.name == name)
    }

    /// Whether it needs a network of its own.
    pub fn needs_a_hole(&self) -> bool {
        self.what == What::Vanish
    }

    /// Whether it can befall a peer, too: what it does is not done to meridian's own files, nor seen in meridian's own words.
    pub fn is_for_peers(&self) -> bool {
        let own =
            matches!(self.what, What::KillAndReload(_) | What::CutConfig | What::SwapDatabase | What::DeleteDatabase);
        !own && self.stage != Stage::Idle
    }

    /// Requests a second, where `asked` are asked for.
    pub fn rate(&self, asked: u32) -> u32 {
        match self.stage {
            Stage::Bounded(percent) => (3.0 * CAPACITY.rate() * f64::from(percent) / 100.0) as u32,
            Stage::Open | Stage::Database => asked,
            Stage::Idle => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_words_and_one_each() {
        let names: BTreeSet<_> = FAULTS.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), FAULTS.len());
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name}");
            assert_eq!(Fault::named(name).map(|fault| fault.name), Some(name));
        }
        assert!(Fault::named("list").is_none(), "a word of the command line");
    }

    #[test]
    fn bounded_scenes_ask_for_a_part_of_what_there_is() {
        assert_eq!(Fault::named("overload").map(|fault| fault.rate(1)), Some(384));
        assert_eq!(Fault::named("kill").map(|fault| fault.rate(7)), Some(7));
    }
}
