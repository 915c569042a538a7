//! `/api/overrides`: which of operators' words are in force, and a new one.
//!
//! From whom one is taken is in `accept`. What is wrong with it is answered in words that say what was expected.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use crate::admin::accept::{plain, said_by};
use crate::admin::{Admin, Answer, Door, page, text};
use crate::config::{duration, meant, show_duration};
use crate::state::{Lasting, Refused};
use crate::steering::brake;
use crate::steering::fleet::Intent;
use crate::steering::overrides::{MOST, Shown};
use crate::steering::{Objection, Override, Snapshot, Target, Word};

/// The most characters of a name and of a reason.
const MOST_NAME: usize = 300;
const MOST_REASON: usize = 500;

/// The longest time that can be asked for; for longer there is the configuration.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Names listed in an answer.
const LISTED: usize = 20;

#[derive(Serialize)]
struct Page {
    overrides: Vec<Shown>,
    /// The file that keeps them over a restart; `null`: none.
    kept: Option<String>,
}

/// What is sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    kind: String,
    name: String,
    state: String,
    #[serde(default, rename = "for")]
    lasting: Option<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    who: String,
}

const EXPECTED: &str = "expected {\"kind\": \"region\" or \"endpoint\", \"name\": …, \"state\": \"ready\", \"drain\", \"maint\" or \"auto\"} and, \
                        as far as wanted, \"for\": \"30m\", \"reason\", \"force\": true, \"who\"";

#[derive(Serialize)]
struct Done {
    /// What is in force now; `null` after `auto`.
    #[serde(rename = "override")]
    word: Option<Shown>,
    /// The regions or endpoints whose name fits.
    targets: Vec<String>,
    /// Whether it will be in force after a restart.
    kept: bool,
    /// Why not.
    note: Option<String>,
}

impl Admin {
    /// The words in force.
    pub(super) fn overrides_page(&self) -> Answer {
        let snapshot = self.reader.load().snapshot.clone();
        let overrides = snapshot.overrides.iter().map(|word| Shown::from(&**word)).collect();
        let kept = self.sender.kept().file().map(|file| file.display().to_string());
        page(&Page { overrides, kept })
    }

    /// Takes a word.
    pub(super) async fn operate(&self, door: Door, request: Request<Incoming>) -> Answer {
        let body = match self.accept(door, request).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        match self.word(door, &body).await {
            Ok((word, force)) => self.say(word, force).await,
            Err(wrong) => text(StatusCode::BAD_REQUEST, &format!("{wrong}\n")),
        }
    }

    /// What `body` says, and whether it is forced.
    #[expect(clippy::disallowed_methods, reason = "a shell: a word is dated")]
    async fn word(&self, door: Door, body: &Bytes) -> Result<(Word, bool), String> {
        let asked: Asked = serde_json::from_slice(body).map_err(|error| format!("{error}; {EXPECTED}"))?;
        let kind = match asked.kind.as_str() {
            "region" => Target::Region,
            "endpoint" => Target::Endpoint,
            other => return Err(format!("kind \"{other}\" is none; {EXPECTED}")),
        };
        let name = plain("name", &asked.name, MOST_NAME)?;
        if name.is_empty() {
            return Err(format!("name is empty; {EXPECTED}"));
        }
        // Endpoints are known by the canonical form of their address, and hosts in lower case.
        let name = match (kind, name.parse::<std::net::SocketAddr>()) {
            (Target::Region, _) => name,
            (Target::Endpoint, Ok(address)) => address.to_string(),
            (Target::Endpoint, Err(_)) => name.to_lowercase(),
        };
        let reason = plain("reason", &asked.reason, MOST_REASON)?;
        let who = said_by(door, &asked.who).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let lasting = match asked.lasting.as_deref() {
            None => None,
            Some(text) => match duration(text) {
                Ok(time) if !time.is_zero() && time <= LONGEST => Some(time),
                Ok(_) => {
                    let longest = show_duration(LONGEST);
                    return Err(format!("for (--for) must be longer than nothing and at most {longest}"));
                }
                Err(hint) => return Err(format!("for (--for) \"{}\" is no time: {hint}", text.escape_debug())),
            },
        };
        let intent = match asked.state.as_str() {
            "ready" => Intent::Ready,
            "drain" => Intent::Drain,
            "maint" => Intent::Maint,
            "auto" if lasting.is_some() => return Err("auto has no end: leave \"for\" out".to_owned()),
            "auto" => return Ok((Word::Auto { kind, name, reason, who }, asked.force)),
            other => return Err(format!("state \"{other}\" is none; {EXPECTED}")),
        };
        let until_ms = lasting.map(|time| (now + time).as_millis() as u64);
        let set_ms = now.as_millis() as u64;
        Ok((Word::Set(Override { kind, name, state: intent, reason, who, set_ms, until_ms }), asked.force))
    }

    async fn say(&self, word: Word, force: bool) -> Answer {
        let said = self.sender.say(word.clone(), force).await;
        let snapshot = self.reader.load().snapshot.clone();
        let (kind, name) = word.target();
        match said {
            Ok(lasting) => {
                let fitting = Override { kind, name: name.to_owned(), ..EMPTY };
                let targets = names(&snapshot, kind).filter(|names| fitting.is_over(kind, &borrowed(names)));
                let mut targets: Vec<String> = targets.filter_map(|names| names.into_iter().next()).collect();
                targets.sort();
                targets.dedup();
                let shown = match &word {
                    Word::Set(word) => Some(Shown::from(word)),
                    Word::Auto { .. } => None,
                };
                let note = match lasting {
                    Lasting::Yes => None,
                    Lasting::NoDirectory => {
                        Some("kept in memory only: there is no [process] state_dir and no $STATE_DIRECTORY".to_owned())
                    }
                    Lasting::No(why) => Some(format!("in force, but not after a restart: {why}")),
                };
                page(&Done { word: shown, targets, kept: note.is_none(), note })
            }
            Err(Refused::Ending) => text(StatusCode::SERVICE_UNAVAILABLE, "this process is ending\n"),
            Err(Refused::Objection(objection)) => refused(&snapshot, kind, name, &objection),
        }
    }
}

/// A word of which only kind and name count.
const EMPTY: Override = Override {
    kind: Target::Region,
    name: String::new(),
    state: Intent::Ready,
    reason: String::new(),
    who: String::new(),
    set_ms: 0,
    until_ms: None,
};

fn refused(snapshot: &Snapshot, kind: Target, name: &str, objection: &Objection) -> Answer {
    let what = kind.as_str();
    let (status, why) = match objection {
        Objection::NoSuchName => {
            let mut known: Vec<String> = names(snapshot, kind).flatten().collect();
            known.sort();
            known.dedup();
            let hint = match meant(name, known.iter().map(String::as_str)) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("there are {}", listed(&known)),
            };
            (StatusCode::NOT_FOUND, format!("there is no {what} `{name}`; {hint}"))
        }
        Objection::NotSet => {
            let words = snapshot.overrides.iter().filter(|word| word.kind == kind);
            let set: Vec<String> = words.map(|word| word.name.clone()).collect();
            let hint = if set.is_empty() { "nothing is".to_owned() } else { format!("set are {}", listed(&set)) };
            (StatusCode::NOT_FOUND, format!("nothing is set over {what} `{name}`; {hint}"))
        }
        Objection::LastRegion(services) => (
            StatusCode::CONFLICT,
            format!(
                "refused: it would leave {} {} without any ready region that is not down; `meridian set … --force`, or \"force\": true, does it all the same",
                if services.len() == 1 { "service" } else { "services" },
                listed(services),
            ),
        ),
        Objection::Brake(moves) => {
            let why = format!(
                "refused: it would move {}; more than [process] brake = {} has to be forced: \"force\": true, or --force",
                brake::told(&moves[..moves.len().min(LISTED)]),
                snapshot.fleet().brake
            );
            (StatusCode::CONFLICT, why)
        }
        Objection::TooMany => (StatusCode::CONFLICT, format!("{MOST} overrides are in force: take some back first")),
    };
    text(status, &format!("{why}\n"))
}

/// What targets are called, each by all its names, the shown one first.
fn names(snapshot: &Snapshot, kind: Target) -> Box<dyn Iterator<Item = Vec<String>> + '_> {
    match kind {
        Target::Region => Box::new(snapshot.fleet().regions.iter().map(|region| vec![region.name.clone()])),
        Target::Endpoint => Box::new(
            snapshot
                .pools
                .iter()
                .flat_map(|pool| pool.endpoints.iter())
                .map(|endpoint| vec![endpoint.address.to_string(), endpoint.name.to_string()]),
        ),
    }
}

fn borrowed(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

fn listed(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(LISTED);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}
