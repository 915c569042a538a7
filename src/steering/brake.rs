//! How many of a service's clients a change would move, before it is made.
//!
//! A slip of the pen (a weight, a coordinate, a pattern that fits too much, the wrong database) can move half the world at once, to regions that do
//! not expect it. So a change is tried on a sample of clients first: each is asked for with what is in force and with what would be. Only what was
//! changed counts: what was observed is so on both sides, and a region that fails moves nobody here. Who is served in panic only has nothing to lose either:
//! nothing that may help them is held back.
//!
//! The sample is what was seen of the service's traffic, or addresses until that is enough ([`clients`]).
//!
//! It must not know who asks, nor what is done with the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::geo::Canonical;
use crate::steering::clients;
use crate::steering::ids::{RegionSet, ServiceId};
use crate::steering::overrides::{Overrides, Word};
use crate::steering::snapshot::{Snapshot, View};
use crate::steering::walk::Query;

/// Walks in all, as far as that leaves [`LEAST`] clients for each service: a fraction of a second.
const WALKS: usize = 600_000;
const LEAST: usize = 300;

/// Ways that are told of one service.
const TOLD: usize = 4;

/// What a change does to the clients of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// Its name.
    pub service: String,
    /// How many of its clients move, in percent, rounded up.
    pub percent: u8,
    /// From which region to which (`None`: nowhere), in percent of all its clients; the most first.
    pub ways: Vec<(String, Option<String>, u8)>,
    /// Whether the clients are those of its traffic; else they are addresses.
    pub seen: bool,
}

impl fmt::Display for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Moves { service, percent, ways, seen } = self;
        let of = if *seen {
            "clients of the last hours"
        } else {
            "clients (by the addresses of geo data: hardly any were seen yet)"
        };
        write!(f, "{percent} % of the {of} of service `{service}`")?;
        for (index, (from, to, percent)) in ways.iter().take(TOLD).enumerate() {
            let to = to.as_ref().map_or_else(|| "nowhere".to_owned(), |to| format!("`{to}`"));
            write!(f, "{} {percent} % from `{from}` to {to}", if index == 0 { ":" } else { "," })?;
        }
        if ways.len() > TOLD { write!(f, " and others") } else { Ok(()) }
    }
}

/// The services of which `view` would move more clients than its own configuration lets pass at a time, with the words that are in force now. Some
/// milliseconds a service: not for the request path or the writer.
pub fn reload(now: &Snapshot, view: &View) -> Vec<Moves> {
    over(now, view, Arc::clone(&now.overrides))
}

/// The same of an operator's word.
pub fn word(now: &Snapshot, word: &Word) -> Vec<Moves> {
    over(now, &now.view, Arc::new(now.overrides.with(word)))
}

/// Each of them in words.
pub fn told(moves: &[Moves]) -> String {
    moves.iter().map(Moves::to_string).collect::<Vec<_>>().join("; ")
}

/// What is over the brake of `view`. A service that only one of both has is left out: who adds or takes away one means it.
fn over(now: &Snapshot, view: &View, overrides: Arc<Overrides>) -> Vec<Moves> {
    let brake = view.fleet.brake;
    if brake >= 100 {
        return Vec::new();
    }
    let before = &now.supposing(now.view.clone(), Arc::clone(&now.overrides));
    let after = &now.supposing(view.clone(), overrides);
    let mut addresses = None;
    let most = (WALKS / 2 / before.fleet().services.len().max(1)).max(LEAST);
    let services = before.fleet().services.iter().zip(0..);
    let both = services.filter_map(|(service, id)| Some((ServiceId(id), after.fleet().service_named(&service.name)?)));
    let moves = both.filter_map(|(id, to)| {
        let seen = now.clients[id.index()].networks();
        let of_traffic = seen.len() >= clients::ENOUGH;
        let clients =
            if of_traffic { &seen } else { addresses.get_or_insert_with(|| clients::addresses(&before.view.atlas)) };
        // Evenly from all of it: a ring has the hours one after the other.
        let some: Vec<Canonical> = clients.iter().step_by(clients.len().div_ceil(most).max(1)).copied().collect();
        moves((before, id), (after, to), &some, of_traffic, brake)
    });
    moves.collect()
}

fn moves(
    (before, id): (&Snapshot, ServiceId),
    (after, after_id): (&Snapshot, ServiceId),
    clients: &[Canonical],
    seen: bool,
    brake: u8,
) -> Option<Moves> {
    let mut ways: BTreeMap<(&str, Option<&str>), usize> = BTreeMap::new();
    let (mut served, mut moved) = (0_usize, 0_usize);
    for (client, n) in clients.iter().zip(1..) {
        // Who is served nowhere, or by what is known to be down, has nothing to lose.
        let (Some(from), false) = region(before, id, *client, n) else { continue };
        served += 1;
        let (to, _) = region(after, after_id, *client, n);
        if to != Some(from) {
            moved += 1;
            *ways.entry((from, to)).or_default() += 1;
        }
    }
    if moved * 100 <= served * usize::from(brake) {
        return None;
    }
    let percent = |count: usize| (count * 100).div_ceil(served.max(1)) as u8;
    let mut ways: Vec<_> = ways.into_iter().collect();
    ways.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let told =
        |((from, to), count): ((&str, Option<&str>), usize)| (from.to_owned(), to.map(str::to_owned), percent(count));
    Some(Moves {
        service: before.fleet().service(id).name.clone(),
        percent: percent(moved),
        ways: ways.into_iter().map(told).collect(),
        seen,
    })
}

/// Where the `n`-th client goes first, and whether only because of panic. Loads are of the moment, and no affinity says who is there already.
fn region(snapshot: &Snapshot, service: ServiceId, client: Canonical, n: u64) -> (Option<&str>, bool) {
    let query = Query { client, service, chance: clients::scatter(n), affinity: None, full: RegionSet::EMPTY };
    let mut walk = snapshot.walk(&query);
    let take = walk.take(snapshot).ok();
    (take.map(|take| snapshot.fleet().region(take.region).name.as_str()), walk.panics() && !snapshot.suspects_itself)
}
