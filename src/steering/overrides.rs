//! An operator's words over regions and endpoints: which are in force, and which of them rules where several fit.
//!
//! A word names what it is over by a pattern (`*` any characters, `?` one): a region by its name, an endpoint by its address or by the
//! `host:port` of its line, in whichever service. The same kind and pattern said again replaces what was said before. Where several fit, one
//! that names its target in full goes before a pattern, so that one endpoint can be excepted from what was said of all; among
//! equals the newest rules. Words are kept by pattern, never by id: after a reload they are matched to the names that there are
//! then, and what fits nothing waits.
//!
//! It must not know what was observed: health never undoes a word, and no word touches health. Nor does it know a clock or a file:
//! when a word was said and until when it holds are Unix milliseconds that came with it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::steering::brake::Moves;
use crate::steering::fleet::Intent;
use crate::steering::snapshot::EndpointView;
use crate::text::{fits, rfc3339};

/// The most words in force: more is a loop that runs wild, not an operator.
pub const MOST: usize = 1000;

/// What a word is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Regions, for every service.
    Region,
    /// Endpoints, wherever they are.
    Endpoint,
}

impl Target {
    /// Every kind, for metrics.
    pub const ALL: [Target; 2] = [Target::Region, Target::Endpoint];

    /// The word of commands and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Target::Region => "region",
            Target::Endpoint => "endpoint",
        }
    }
}

/// One word in force. Its JSON is what the state file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// Over regions or endpoints.
    pub kind: Target,
    /// The pattern.
    pub name: String,
    /// What it says.
    pub state: Intent,
    /// Why; may be empty.
    #[serde(default)]
    pub reason: String,
    /// Who said it.
    pub who: String,
    /// When, Unix milliseconds.
    pub set_ms: u64,
    /// When it is over, Unix milliseconds; `None`: when it is taken back.
    #[serde(default)]
    pub until_ms: Option<u64>,
}

/// Whether a name is a pattern that several may fit.
fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?'])
}

impl Override {
    /// Whether it is over this kind of target and one of its names fits.
    pub fn is_over(&self, kind: Target, names: &[&str]) -> bool {
        self.kind == kind && names.iter().any(|name| fits(&self.name, name))
    }
}

/// What an operator says: a word, or that one is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// From now on this is in force.
    Set(Override),
    /// From now on the configuration rules again.
    Auto {
        /// Over regions or endpoints.
        kind: Target,
        /// The pattern, as it was set.
        name: String,
        /// Why.
        reason: String,
        /// Who says it.
        who: String,
    },
}

impl Word {
    /// Over regions or endpoints, and the pattern.
    pub fn target(&self) -> (Target, &str) {
        match self {
            Word::Set(Override { kind, name, .. }) | Word::Auto { kind, name, .. } => (*kind, name),
        }
    }
}

/// Why a word is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// Nothing that is configured has that name, or a name that fits.
    NoSuchName,
    /// There is nothing to take back.
    NotSet,
    /// These services would be left without any ready region. May be overruled.
    LastRegion(Vec<String>),
    /// It would move more clients than `[process] brake` lets pass. May be overruled.
    Brake(Vec<Moves>),
    /// [`MOST`] are in force.
    TooMany,
}

impl Objection {
    /// Whether who insists may have it all the same.
    pub fn may_be_overruled(&self) -> bool {
        matches!(self, Objection::LastRegion(_) | Objection::Brake(_))
    }
}

/// All words in force, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    list: Vec<Arc<Override>>,
}

impl Overrides {
    /// The words, the oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Override>> {
        self.list.iter()
    }

    /// Whether none is over that kind of target.
    pub fn lacks(&self, kind: Target) -> bool {
        !self.list.iter().any(|word| word.kind == kind)
    }

    /// Takes a word; one over the same pattern goes, as the older.
    pub fn set(&mut self, word: Override) {
        self.take(word.kind, &word.name);
        self.list.push(Arc::new(word));
    }

    /// Takes back the word over exactly that pattern, and returns it.
    pub fn take(&mut self, kind: Target, name: &str) -> Option<Arc<Override>> {
        let at = self.position(kind, name)?;
        Some(self.list.remove(at))
    }

    /// As they would be after that word.
    pub fn with(&self, word: &Word) -> Overrides {
        let mut after = self.clone();
        match word {
            Word::Set(word) => after.set(word.clone()),
            Word::Auto { kind, name, .. } => drop(after.take(*kind, name)),
        }
        after
    }

    /// Whether there is a word over exactly that pattern.
    pub fn has(&self, kind: Target, name: &str) -> bool {
        self.position(kind, name).is_some()
    }

    /// Removes and returns the words that are over at that time.
    pub fn expire(&mut self, unix_ms: u64) -> Vec<Arc<Override>> {
        let is_over = |word: &Arc<Override>| word.until_ms.is_some_and(|until| until <= unix_ms);
        let (over, left) = std::mem::take(&mut self.list).into_iter().partition(is_over);
        self.list = left;
        over
    }

    /// When the next word is over, Unix milliseconds.
    pub fn next_expiry(&self) -> Option<u64> {
        self.list.iter().filter_map(|word| word.until_ms).min()
    }

    /// The word that rules over a target of these names, if any does.
    pub fn ruling(&self, kind: Target, names: &[&str]) -> Option<&Arc<Override>> {
        let newest = |precise: bool| {
            let fitting = self.list.iter().rev().filter(move |word| is_pattern(&word.name) != precise);
            fitting.into_iter().find(|word| word.is_over(kind, names))
        };
        newest(true).or_else(|| newest(false))
    }

    /// The word that rules over a region.
    pub fn of_region(&self, name: &str) -> Option<&Arc<Override>> {
        self.ruling(Target::Region, &[name])
    }

    /// The word that rules over an endpoint.
    pub fn of_endpoint(&self, endpoint: &EndpointView) -> Option<&Arc<Override>> {
        if self.lacks(Target::Endpoint) {
            return None;
        }
        self.ruling(Target::Endpoint, &[&endpoint.address.to_string(), &endpoint.name])
    }

    fn position(&self, kind: Target, name: &str) -> Option<usize> {
        self.list.iter().position(|word| word.kind == kind && word.name == name)
    }
}

impl FromIterator<Override> for Overrides {
    fn from_iter<I: IntoIterator<Item = Override>>(words: I) -> Overrides {
        let mut overrides = Overrides::default();
        words.into_iter().for_each(|word| overrides.set(word));
        overrides
    }
}

/// A word as pages show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// `region` or `endpoint`.
    pub kind: Target,
    /// The pattern.
    pub name: String,
    /// `ready`, `drain` or `maint`.
    pub state: Intent,
    /// Why; may be empty.
    pub reason: String,
    /// Who said it.
    pub who: String,
    /// When, RFC 3339.
    pub set: String,
    /// When it is over, RFC 3339; `null`: when it is taken back.
    pub until: Option<String>,
}

impl From<&Override> for Shown {
    fn from(word: &Override) -> Shown {
        Shown {
            kind: word.kind,
            name: word.name.clone(),
            state: word.state,
            reason: word.reason.clone(),
            who: word.who.clone(),
            set: rfc3339(word.set_ms),
            until: word.until_ms.map(rfc3339),
        }
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} by {}", self.state.as_str(), self.who)?;
        if let Some(until) = &self.until {
            write!(f, " until {until}")?;
        }
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(kind: Target, name: &str, state: Intent, until_ms: Option<u64>) -> Override {
        Override { kind, name: name.into(), state, reason: String::new(), who: "alice".into(), set_ms: 0, until_ms }
    }

    fn regions(words: &[(&str, Intent)]) -> Overrides {
        words.iter().map(|(name, state)| word(Target::Region, name, *state, None)).collect()
    }

    #[test]
    fn a_name_in_full_goes_before_a_pattern_then_the_newest() {
        use Intent::{Drain, Maint, Ready};
        type Row<'a> = (&'a [(&'a str, Intent)], &'a str, Option<Intent>);
        // (words, oldest first; region; what rules)
        let rows: &[Row<'_>] = &[
            (&[], "eu-west", None),
            (&[("eu-west", Drain)], "eu-west", Some(Drain)),
            (&[("eu-west", Drain)], "eu-west-2", None),
            (&[("eu-*", Drain)], "eu-west", Some(Drain)),
            (&[("eu-?", Drain)], "eu-west", None),
            (&[("*", Drain), ("eu-*", Maint)], "eu-west", Some(Maint)),
            (&[("eu-*", Maint), ("*", Drain)], "eu-west", Some(Drain)),
            (&[("eu-west", Ready), ("*", Drain)], "eu-west", Some(Ready)),
            (&[("eu-west", Ready), ("*", Drain)], "us-east", Some(Drain)),
            (&[("eu-west", Drain), ("eu-west", Maint)], "eu-west", Some(Maint)),
        ];
        for (words, region, want) in rows {
            assert_eq!(regions(words).of_region(region).map(|word| word.state), *want, "{words:?} {region}");
        }
    }

    #[test]
    fn the_same_pattern_again_replaces_and_is_the_newest() {
        let mut overrides = regions(&[("eu-*", Intent::Drain), ("*-west", Intent::Maint), ("eu-*", Intent::Ready)]);
        assert_eq!(overrides.iter().len(), 2);
        assert_eq!(overrides.of_region("eu-west").map(|word| word.state), Some(Intent::Ready));
        // An endpoint of that name is another target.
        overrides.set(word(Target::Endpoint, "eu-*", Intent::Drain, None));
        assert_eq!(overrides.iter().len(), 3);
        assert!(overrides.take(Target::Region, "eu-*").is_some());
        assert!(overrides.take(Target::Region, "eu-*").is_none());
        assert_eq!(overrides.of_region("eu-west").map(|word| word.state), Some(Intent::Maint));
        assert_eq!(overrides.of_region("eu-east"), None);
    }

    #[test]
    fn what_is_over_leaves_at_that_moment() {
        let mut overrides: Overrides = [("a", Some(100)), ("b", None), ("c", Some(200))]
            .map(|(name, until)| word(Target::Region, name, Intent::Drain, until))
            .into_iter()
            .collect();
        assert_eq!(overrides.next_expiry(), Some(100));
        assert!(overrides.expire(99).is_empty());
        let names = |list: Vec<Arc<Override>>| list.iter().map(|word| word.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(overrides.expire(100)), ["a"]);
        assert_eq!(names(overrides.expire(u64::MAX)), ["c"]);
        assert_eq!((overrides.next_expiry(), overrides.iter().len()), (None, 1));
    }

    #[test]
    fn an_endpoint_has_two_names() {
        let overrides: Overrides = [
            word(Target::Endpoint, "origin.example:*", Intent::Drain, None),
            word(Target::Endpoint, "192.0.2.7:80", Intent::Ready, None),
        ]
        .into_iter()
        .collect();
        let ruling = |names: &[&str]| overrides.ruling(Target::Endpoint, names).map(|word| word.state);
        assert_eq!(ruling(&["192.0.2.1:80", "origin.example:80"]), Some(Intent::Drain));
        assert_eq!(ruling(&["192.0.2.7:80", "origin.example:80"]), Some(Intent::Ready));
        assert_eq!(ruling(&["192.0.2.1:80", "192.0.2.1:80"]), None);
    }

    #[test]
    fn the_state_file_keeps_a_word_as_it_is() {
        let said = word(Target::Endpoint, "10.0.0.*", Intent::Maint, Some(7));
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"endpoint","name":"10.0.0.*","state":"maint","reason":"","who":"alice","set_ms":0,"until_ms":7}"#
        );
        assert_eq!(serde_json::from_str::<Override>(&text).unwrap(), said);
        let short = r#"{"kind":"region","name":"a","state":"ready","who":"x","set_ms":1}"#;
        assert_eq!(serde_json::from_str::<Override>(short).unwrap().until_ms, None);
    }
}
