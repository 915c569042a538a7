//! The two movers of bytes side by side: every request and every answer of one corpus goes through both, and what arrives at the other
//! side must be the same, or the difference is in the list with its reason.
//!
//! `differential/requests/*.txt` hold what a client sends, `differential/answers/*.txt` what an upstream answers; `differential/README.md` says
//! how they are written. What came out is compared line by line ([`transcript`]). Left out beforehand is only what is chance by nature:
//! request ids, dates, and where a chunked body is cut (it depends on how the bytes come in).
//!
//! `differential/differences.txt` lists the differences. Those of one kind that pingora makes everywhere have a name and a reason there
//! ([`CLASSES`]); whatever is left of a case after them is listed with that case, line by line, with a reason of its own. A difference that
//! is not listed fails the test, and so does a listed one that is not there any more.
//!
//! `UPDATE=1` writes the list anew and keeps its reasons; give the new ones theirs before committing it.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests may panic, and their modules are for one binary")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

#[path = "differential/classes.rs"]
mod classes;
#[path = "differential/corpus.rs"]
mod corpus;
#[path = "differential/list.rs"]
mod list;
#[path = "differential/run.rs"]
mod run;
#[path = "differential/transcript.rs"]
mod transcript;

use std::sync::Arc;

use meridian::config::Engine;
use tokio::sync::Semaphore;

use corpus::{Case, Side};
use list::List;

/// Cases under way at once: enough to be fast, few enough for the time limits of a proxy on a loaded machine.
const AT_ONCE: usize = 8;

/// What both movers made of a case.
struct Compared {
    case: Case,
    native: String,
    pingora: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_arrive_the_same_through_both_movers() {
    check(Side::Requests, 80).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_arrive_the_same_through_both_movers() {
    check(Side::Answers, 60).await;
}

/// Rounds in which the list may be met: some cases are about time limits, which a machine that is busy elsewhere can miss. A true difference is
/// there in every round.
const ROUNDS: usize = 3;

/// Runs one half of the corpus, which has at least so many cases, and holds it against the list.
async fn check(side: Side, least: usize) {
    let listed = List::read(side);
    let mut wrong = String::new();
    for _ in 0..ROUNDS {
        let cases = corpus::read(side);
        assert!(cases.len() >= least, "only {} cases", cases.len());
        let compared = run_all(cases).await;
        if std::env::var_os("SHOW").is_some() {
            for one in &compared {
                println!("{}", readable(one));
            }
        }
        let entries = compared.iter().map(|one| list::compare(&one.case.name, &one.native, &one.pingora));
        let found = List::of(entries.collect(), &listed);
        if std::env::var_os("UPDATE").is_some() {
            found.write(side);
        }
        wrong = listed.disagreements(&found, |name| {
            compared.iter().find(|one| one.case.name == name).map_or_else(String::new, readable)
        });
        if wrong.is_empty() {
            return;
        }
        eprintln!("{wrong}");
    }
    panic!("{wrong}\n(UPDATE=1 writes the list anew; give new differences a reason)");
}

async fn run_all(cases: Vec<Case>) -> Vec<Compared> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let tasks: Vec<_> = cases
        .into_iter()
        .map(|case| {
            let places = Arc::clone(&places);
            tokio::spawn(async move {
                let _place = places.acquire_owned().await.unwrap();
                let native = run::run(&case, Engine::Native).await;
                let pingora = run::run(&case, Engine::Pingora).await;
                Compared { case, native, pingora }
            })
        })
        .collect();
    let mut compared = Vec::new();
    for task in tasks {
        compared.push(task.await.unwrap());
    }
    compared
}

fn readable(one: &Compared) -> String {
    format!("{}\n--- native\n{}--- pingora\n{}", one.case, one.native, one.pingora)
}
