//! What was seen of a fault, in figures; and whether they are within the fault's bars.
//!
//! Pure. Latency counts from the moment at which a request was due, whatever it waited for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::drill::fault::{Bars, CAPACITY, Fault, Stage};
use crate::drill::seen::{Answer, Mark, REGIONS, Request, Seen, VICTIM};

/// What was due or under way while a fault lasted, in figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests.
    pub requests: usize,
    /// GETs that failed.
    pub gets: Failed,
    /// POSTs that failed.
    pub posts: Failed,
    /// 503 with `Retry-After` from the proxy itself.
    pub refused: usize,
    /// POSTs that failed though nothing of them was sent; known of meridian only.
    pub unsent_posts: usize,
    /// POSTs that were executed more than once.
    pub duplicates: usize,
    /// Failures before the fault.
    pub failed_before: usize,
    /// Served, but in more than a second.
    pub slower: usize,
    /// The slowest answer of all.
    pub slowest_ms: f64,
    /// The first and the last request, from the fault on, that failed or took more than 200 ms.
    pub trouble_ms: Option<(f64, f64)>,
    /// When the region was left alone: the proxy found it down (meridian), or the last request reached it (peers).
    pub down_ms: Option<f64>,
    /// Attempts at the region after it should be left alone; known of meridian only.
    pub late_attempts: Option<u64>,
    /// The most that was at each survivor at once ÷ its limit.
    pub peak: Option<f64>,
    /// What origins executed ÷ requests, of those that were due in the last ten seconds of the fault: a budget of retries looks back so far.
    pub attempts: f64,
    /// What was served a second ÷ what survivors can or what was asked, whichever is less.
    pub goodput: Option<f64>,
    /// 99th percentile of what was served, less the same of the two seconds before the fault.
    pub added_p99_ms: f64,
    /// Answers from elsewhere than the region nearest to the client.
    pub away: usize,
    /// Whole answers of the region, from when it was surely in trouble.
    pub looked_whole: usize,
    /// Events since the fault, by kind; known of meridian only.
    pub events: BTreeMap<String, usize>,
}

/// Failures by what the client saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// An answer that is not 200.
    pub status: usize,
    /// A connection that ended before the answer did.
    pub broken: usize,
    /// Nothing for 20 seconds.
    pub silent: usize,
}

impl Failed {
    /// All of them.
    pub fn all(self) -> usize {
        self.status + self.broken + self.silent
    }

    fn of<'a>(requests: impl Iterator<Item = &'a Request>) -> Failed {
        let mut failed = Failed::default();
        for request in requests.filter(|request| !request.is_served() && !request.is_refused()) {
            match request.answer {
                Answer::Whole { .. } => failed.status += 1,
                Answer::Broken(_) => failed.broken += 1,
                Answer::Silence => failed.silent += 1,
            }
        }
        failed
    }
}

/// A request that took longer than this is trouble.
const TROUBLE_MS: f64 = 200.0;

/// So long before the fault is what latency is compared with.
const BEFORE_MS: f64 = 2_000.0;

/// How far a budget of retries looks back.
const BUDGET_MS: f64 = 10_000.0;

/// From so long after a fault on an origin surely does what it was told to.
const TOLD_MS: f64 = 200.0;

impl Figures {
    /// Works them out.
    pub fn of(fault: &Fault, seen: &Seen) -> Figures {
        let during: Vec<&Request> = seen.during().collect();
        let count = |is: &dyn Fn(&Request) -> bool| during.iter().filter(|request| is(request)).count();
        let trouble: Vec<f64> = during
            .iter()
            .filter(|request| !(request.is_served() || request.is_refused()) || request.took_ms > TROUBLE_MS)
            .map(|request| (request.due_ms - seen.fault_ms).max(0.0))
            .collect();
        let is_late = |request: &Request| request.due_ms > seen.fault_ms + TOLD_MS;
        let from_victim =
            |request: &Request| matches!(request.answer, Answer::Whole { status: 200, region: Some(VICTIM), .. });
        let elsewhere = |request: &Request| matches!(request.answer, Answer::Whole { region: Some(region), .. } if region != request.home);
        let mut events: BTreeMap<String, usize> = BTreeMap::new();
        for mark in seen.marks.iter().filter(|mark| mark.at_ms >= seen.fault_ms && !mark.kind.is_empty()) {
            *events.entry(mark.kind.clone()).or_default() += 1;
        }
        Figures {
            requests: during.len(),
            gets: Failed::of(during.iter().copied().filter(|request| !request.post)),
            posts: Failed::of(during.iter().copied().filter(|request| request.post)),
            refused: count(&|request| request.is_refused()),
            unsent_posts: seen.unsent_posts,
            duplicates: duplicates(seen),
            failed_before: seen.requests.iter().filter(|r| r.over_ms() < seen.fault_ms && !r.is_served()).count(),
            slower: count(&|request| request.is_served() && request.took_ms > 1000.0),
            slowest_ms: during.iter().map(|request| request.took_ms).fold(0.0, f64::max),
            trouble_ms: bounds(&trouble),
            down_ms: down(seen),
            late_attempts: seen.late_attempts,
            peak: peak(fault, seen),
            attempts: attempts(seen),
            goodput: goodput(fault, seen),
            added_p99_ms: p99(seen, seen.fault_ms..f64::INFINITY) - p99(seen, seen.fault_ms - BEFORE_MS..seen.fault_ms),
            away: count(&elsewhere),
            looked_whole: count(&|request| is_late(request) && from_victim(request)),
            events,
        }
    }
}

fn bounds(values: &[f64]) -> Option<(f64, f64)> {
    let first = values.iter().copied().reduce(f64::min)?;
    Some((first, values.iter().copied().fold(first, f64::max)))
}

/// POSTs that were executed more than once.
fn duplicates(seen: &Seen) -> usize {
    let mut counts: HashMap<u64, u32> = HashMap::new();
    for executed in seen.executed.iter().filter(|executed| executed.post) {
        *counts.entry(executed.n).or_default() += 1;
    }
    counts.values().filter(|count| **count > 1).count()
}

/// From the fault on: until the proxy said that the region is down; or, of one that says nothing, until the last request that reached it.
fn down(seen: &Seen) -> Option<f64> {
    if seen.marks.iter().any(|mark| !mark.kind.is_empty()) {
        let is = |mark: &&Mark| {
            mark.at_ms >= seen.fault_ms && mark.kind == "region" && mark.region == REGIONS[VICTIM] && mark.to == "down"
        };
        return seen.marks.iter().find(is).map(|mark| mark.at_ms - seen.fault_ms);
    }
    // A frozen process executes what it was sent when it goes on: then what counts is when that was due.
    let due: HashMap<u64, f64> = seen.requests.iter().map(|request| (request.n, request.due_ms)).collect();
    let reached = seen.executed.iter().filter(|executed| executed.region == VICTIM).filter_map(|executed| {
        let at = if executed.at_ms <= seen.end_ms { executed.at_ms } else { *due.get(&executed.n)? };
        (at >= seen.fault_ms).then_some(at - seen.fault_ms)
    });
    reached.reduce(f64::max)
}

fn peak(fault: &Fault, seen: &Seen) -> Option<f64> {
    let Stage::Bounded(_) = fault.stage else { return None };
    let most = seen.peaks.iter().flatten().max()?;
    Some(*most as f64 / f64::from(CAPACITY.limit))
}

fn attempts(seen: &Seen) -> f64 {
    let from = seen.fault_ms.max(seen.end_ms - BUDGET_MS);
    let due = seen.requests.iter().filter(|request| request.due_ms >= from && request.due_ms < seen.end_ms);
    let numbers: HashSet<u64> = due.map(|request| request.n).collect();
    let attempts = seen.executed.iter().filter(|executed| numbers.contains(&executed.n)).count();
    attempts as f64 / numbers.len().max(1) as f64
}

fn goodput(fault: &Fault, seen: &Seen) -> Option<f64> {
    fault.bars.goodput?;
    let seconds = (seen.end_ms - seen.fault_ms) / 1000.0;
    let within = |at: f64| at >= seen.fault_ms && at < seen.end_ms;
    let served = seen.requests.iter().filter(|request| request.is_served() && within(request.over_ms())).count();
    let asked = seen.requests.iter().filter(|request| within(request.due_ms)).count();
    let can = (CAPACITY.rate() * (REGIONS.len() - 1) as f64 * seconds).min(asked as f64);
    Some(served as f64 / can.max(1.0))
}

fn p99(seen: &Seen, due: Range<f64>) -> f64 {
    let served = seen.requests.iter().filter(|request| request.is_served() && due.contains(&request.due_ms));
    let mut took: Vec<f64> = served.map(|request| request.took_ms).collect();
    took.sort_unstable_by(f64::total_cmp);
    took.get((took.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0)
}

/// The median of each figure.
pub fn medians(runs: &[Figures]) -> Figures {
    let values: Vec<Value> = runs.iter().filter_map(|run| serde_json::to_value(run).ok()).collect();
    serde_json::from_value(median(&values)).unwrap_or_default()
}

/// Of numbers the median, of what is made of numbers the same of each part; what is missing counts as the least.
fn median(values: &[Value]) -> Value {
    if let Some(first) = values.iter().find_map(Value::as_object) {
        let names = values.iter().filter_map(Value::as_object).flat_map(Map::keys);
        let mut parts: Map<String, Value> = first.clone();
        for name in names {
            let missing = if first.get(name).is_some_and(|value| !value.is_number()) { Value::Null } else { 0.into() };
            let of = |value: &Value| value.get(name).cloned().unwrap_or_else(|| missing.clone());
            parts.insert(name.clone(), median(&values.iter().map(of).collect::<Vec<_>>()));
        }
        return Value::Object(parts);
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(|one, other| key(one).total_cmp(&key(other)));
    let middle = sorted.get(sorted.len() / 2).cloned().unwrap_or_default();
    match middle {
        Value::Array(pair) => {
            let part = |n: usize| {
                let parts: Vec<Value> =
                    values.iter().filter_map(Value::as_array).filter_map(|pair| pair.get(n)).cloned().collect();
                median(&parts)
            };
            Value::Array((0..pair.len()).map(part).collect())
        }
        middle => middle,
    }
}

/// What a value is sorted by: `null` before everything.
fn key(value: &Value) -> f64 {
    match value {
        Value::Array(parts) => parts.last().map_or(f64::MIN, key),
        value => value.as_f64().unwrap_or(f64::NEG_INFINITY),
    }
}

/// What is not within the bars, a line each; empty if everything is. What must never be is looked for in each run.
pub fn judge(fault: &Fault, runs: &[Figures]) -> Vec<String> {
    let bars = &fault.bars;
    let mut misses = Vec::new();
    let mut held = |kept: bool, what: String| {
        if !kept {
            misses.push(what);
        }
    };
    for run in runs {
        held(run.failed_before == 0, format!("{} requests failed before the fault", run.failed_before));
        held(run.duplicates == 0, format!("{} POSTs were executed more than once", run.duplicates));
        held(run.unsent_posts == 0, format!("{} POSTs failed though nothing of them was sent", run.unsent_posts));
        held(!bars.broken || run.looked_whole == 0, format!("{} broken answers looked whole", run.looked_whole));
        for kind in bars.untold {
            let count = run.events.get(*kind).copied().unwrap_or(0);
            held(count == 0, format!("{count} events of the kind `{kind}`"));
        }
        let told = bars.told.is_empty() || bars.told.iter().any(|kind| run.events.contains_key(*kind));
        held(told, format!("no event of the kind `{}`", bars.told.join("` or `")));
    }
    let of = medians(runs);
    let at_most = |figure: usize, most: usize| (figure <= most, format!("{figure}, at most {most}"));
    let mut bounded = |(kept, figures): (bool, String), what: &str| held(kept, format!("{what}: {figures}"));
    bounded(at_most(of.gets.all(), bars.failed_gets), "GETs failed");
    bounded(at_most(of.posts.all(), bars.failed_posts), "POSTs failed");
    bounded(at_most(of.slower, bars.slower), "answers slower than a second");
    if !bars.refusals {
        bounded(at_most(of.refused, 0), "requests refused");
    }
    if bars.at_home {
        bounded(at_most(of.away, 0), "answers from elsewhere than the nearest region");
    }
    if let Some(most) = bars.turns {
        bounded(at_most(of.events.get("region").copied().unwrap_or(0), most), "turns of regions");
    }
    measured(&of, bars, &mut bounded);
    misses
}

fn measured(of: &Figures, bars: &Bars, bounded: &mut dyn FnMut((bool, String), &str)) {
    let no_more = |figure: f64, most: f64| (figure <= most, format!("{figure:.3}, at most {most}"));
    if let (Some(after), Some(late)) = (bars.quiet_after, of.late_attempts) {
        let what = format!("attempts at the region later than {} ms", after.as_millis());
        bounded((late == 0, late.to_string()), &what);
    }
    if let Some(within) = bars.down_within {
        let most = within.as_millis() as f64;
        bounded(no_more(of.down_ms.unwrap_or(f64::INFINITY), most), "milliseconds until the region is down");
    }
    if let Some(most) = bars.attempts {
        bounded(no_more(of.attempts, most), "attempts ÷ requests");
    }
    if bars.within_limit {
        bounded(no_more(of.peak.unwrap_or(f64::INFINITY), 1.0), "the most at a region at once ÷ its limit");
    }
    if let (Some(least), Some(goodput)) = (bars.goodput, of.goodput) {
        bounded((goodput >= least, format!("{goodput:.3}, at least {least}")), "served ÷ what survivors can");
    }
    if bars.broken {
        let failed = of.gets.all() + of.posts.all();
        bounded((failed > 10, format!("{failed}, more than 10")), "answers that broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::seen::Executed;

    fn request(n: u64, due_ms: f64, took_ms: f64, answer: Answer) -> Request {
        Request { n, post: n.is_multiple_of(4), home: VICTIM, due_ms, took_ms, answer }
    }

    fn whole(status: u16, region: Option<usize>) -> Answer {
        Answer::Whole { status, region, retry_after: region.is_none() }
    }

    fn executed(n: u64, region: usize, at_ms: f64) -> Executed {
        Executed { n, post: n.is_multiple_of(4), region, at_ms }
    }

    /// A fault at 1,000 ms.
    fn seen() -> Seen {
        Seen {
            requests: vec![
                request(1, 100.0, 4.0, whole(200, Some(2))),
                request(2, 990.0, 30.0, Answer::Broken("reset".to_owned())),
                request(4, 1100.0, 350.0, whole(200, Some(0))),
                request(5, 1300.0, 1200.0, whole(200, Some(2))),
                request(8, 1500.0, 2.0, whole(502, None)),
                request(9, 1600.0, 2.0, whole(503, None)),
                request(12, 1700.0, 20_000.0, Answer::Silence),
            ],
            executed: vec![
                executed(1, 2, 101.0),
                executed(4, 2, 1101.0),
                executed(4, 0, 1200.0),
                executed(5, 2, 9000.0),
                executed(8, 2, 1501.0),
            ],
            fault_ms: 1000.0,
            end_ms: 7000.0,
            peaks: [Some(12), Some(24), None],
            ..Seen::default()
        }
    }

    #[test]
    fn figures_of_what_was_seen() {
        let fault = Fault::named("overload").unwrap();
        let of = Figures::of(fault, &seen());
        assert_eq!(of.requests, 6, "what was under way counts");
        assert_eq!(of.gets, Failed { broken: 1, ..Failed::default() });
        assert_eq!(of.posts, Failed { status: 1, silent: 1, ..Failed::default() });
        assert_eq!((of.refused, of.slower, of.duplicates, of.failed_before), (1, 1, 1, 0));
        assert_eq!(of.trouble_ms, Some((0.0, 700.0)));
        assert_eq!(of.down_ms, Some(501.0), "what a frozen process did later counts from when it was due");
        assert_eq!((of.peak, of.attempts, of.added_p99_ms), (Some(1.0), 4.0 / 5.0, 1196.0));
        assert_eq!((of.away, of.looked_whole), (1, 1));
        assert!((of.goodput.unwrap() - 2.0 / 5.0).abs() < 1e-9, "{of:?}");
    }

    #[test]
    fn what_the_proxy_says_of_a_region_goes_before_what_reached_it() {
        let mut seen = seen();
        let mark = |at_ms, to: &str| Mark {
            at_ms,
            kind: "region".to_owned(),
            region: "eu-west".to_owned(),
            to: to.to_owned(),
            text: String::new(),
        };
        seen.marks = vec![mark(500.0, "down"), mark(600.0, "up"), mark(1250.0, "down")];
        let of = Figures::of(Fault::named("kill").unwrap(), &seen);
        assert_eq!((of.down_ms, of.events.get("region"), of.peak), (Some(250.0), Some(&1), None));
    }

    #[test]
    fn medians_are_taken_of_each_figure() {
        let run = |slower, down_ms, last| Figures {
            slower,
            down_ms,
            gets: Failed { status: slower * 2, ..Failed::default() },
            trouble_ms: Some((1.0, last)),
            events: BTreeMap::from([("region".to_owned(), slower)]),
            ..Figures::default()
        };
        let of = medians(&[run(1, None, 7.0), run(9, Some(3.0), 5.0), run(4, Some(5.0), 6.0)]);
        assert_eq!(of, run(4, Some(3.0), 6.0));
        assert_eq!(medians(&[run(3, Some(1.5), 2.0)]), run(3, Some(1.5), 2.0));
        let mut without = run(0, None, 0.0);
        without.trouble_ms = None;
        without.events.clear();
        assert_eq!(medians(&[without.clone(), without.clone(), run(4, None, 1.0)]).trouble_ms, None);
    }

    #[test]
    fn bars_are_held_to_medians_and_what_must_never_be_to_each_run() {
        let fault = Fault::named("kill").unwrap();
        let good = Figures { late_attempts: Some(0), ..Figures::default() };
        let bad = Figures { gets: Failed { status: 1, ..Failed::default() }, ..good.clone() };
        let never = Figures { duplicates: 1, ..good.clone() };
        assert_eq!(judge(fault, std::slice::from_ref(&good)), Vec::<String>::new());
        assert_eq!(judge(fault, &[good.clone(), bad.clone(), good.clone()]), Vec::<String>::new());
        assert_eq!(judge(fault, &[good.clone(), bad.clone(), bad]), ["GETs failed: 1, at most 0"]);
        assert_eq!(judge(fault, &[good.clone(), never, good]), ["1 POSTs were executed more than once"]);
        let idle = Fault::named("kill-idle").unwrap();
        let found = Figures { down_ms: Some(1600.0), ..Figures::default() };
        assert_eq!(judge(idle, &[found]), ["milliseconds until the region is down: 1600.000, at most 1500"]);
    }
}
