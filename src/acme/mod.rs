//! Certificates by ACME (RFC 8555): ordered when there is none or its end is near, and kept in the state directory.
//!
//! What a listener wants stands in its configuration; what is there is read with that, like any certificate. This task compares the two, has
//! what is due ordered (`order`), one at a time, and writes it to its file (`store`). It ends there: that the file changed is seen by who watches files, and a reload
//! puts the certificate in force. Refused: to hand it to listeners directly, which would be a second way for certificates to come into force.
//!
//! Who fails is tried again after a minute, then later and later, up to six hours, or when the authority says: authorities count failures. They count certificates, too: after each
//! nothing is ordered for a while, whatever the calendar says, and one that cannot be written is not ordered again (`shelf`). Must not know how listeners and
//! requests answer ([`challenge`]).

pub mod challenge;
mod directory;
mod order;
pub mod own;
mod plan;
mod shelf;
mod store;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{Acme, Edge, Ordered};
use crate::state::Reader;
use crate::telemetry::Metrics;
use crate::text::day;
use challenge::Challenges;
use directory::Pause;
use order::Means;
use plan::{Next, Plan};
use shelf::Shelf;

/// How long an order may take: authorities look from several places, and some of them slowly.
const ORDER: Duration = Duration::from_secs(300);

/// The longest sleep: the calendar may be set meanwhile.
const LOOK: Duration = Duration::from_secs(3600);

/// Orders what is due until the future is dropped.
pub async fn run(mut reader: Reader, challenges: Challenges, metrics: Metrics) {
    let (mut plan, shelf) = (Plan::default(), Shelf::default());
    loop {
        let edge = Arc::clone(&reader.load().edge);
        let Some(acme) = &edge.acme else {
            reader.changed().await;
            continue;
        };
        plan.see(acme, &edge.ordered());
        match plan.next(acme, unix_now(), Instant::now()) {
            Next::Order(ordered) => {
                tracing::info!(names = ?ordered.names, directory = acme.host, "ordering a certificate");
                let means = Means {
                    acme: Arc::clone(acme),
                    challenges: challenges.clone(),
                    shelf: shelf.clone(),
                    pause: Pause::default(),
                };
                tokio::select! {
                    result = one(&means, &ordered) => {
                        metrics.certificate_ordered(result.is_ok());
                        conclude(&mut plan, &means, &ordered, result);
                    }
                    () = unwanted(&mut reader, acme, &ordered) => {
                        tracing::info!(names = ?ordered.names, "the certificate is not wanted any more; its order is left");
                    }
                }
            }
            Next::Wait(wait) => {
                tokio::select! {
                    () = sleep(wait.min(LOOK)) => {}
                    () = changed(&mut reader, &edge) => {}
                }
            }
        }
    }
}

/// What came of an order, to the plan and the log.
fn conclude(plan: &mut Plan, means: &Means, ordered: &Ordered, result: Result<(i64, i64), String>) {
    let (names, directory) = (&ordered.names, &means.acme.host);
    match result {
        Ok(valid) => {
            let seconds = plan.issued(ordered, valid, Instant::now()).as_secs();
            tracing::info!(?names, directory, until = day(valid.1), "certificate issued");
            if means.acme.due(valid) <= unix_now() {
                tracing::warn!(
                    ?names,
                    directory,
                    from = day(valid.0),
                    until = day(valid.1),
                    "this certificate is due to be replaced as soon as it is issued: is the clock right? The next is ordered in {seconds} s"
                );
            }
        }
        Err(error) => {
            let wait = plan.failed(ordered, Instant::now(), fastrand::f64(), means.pause.get());
            let seconds = wait.as_secs();
            tracing::error!(?names, directory, error, "no certificate was issued; trying again in {seconds} s");
        }
    }
}

/// One order, from the account to the file. Returns from when to when the certificate is valid.
async fn one(means: &Means, ordered: &Arc<Ordered>) -> Result<(i64, i64), String> {
    // A task of its own, which ends when this is dropped: a mistake in it costs one order, not the process's control.
    let mut task = JoinSet::new();
    let (means, ordered) = (means.clone(), Arc::clone(ordered));
    task.spawn(async move {
        let order = order::certificate(&means, &ordered, unix_now());
        match timeout(ORDER, order).await {
            Ok(result) => result,
            Err(_) => Err(format!("it took longer than {} s", ORDER.as_secs())),
        }
    });
    match task.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(panic)) => Err(format!("a mistake of ours: {panic}")),
        None => Err("nothing was done".to_owned()),
    }
}

/// Resolves when other edge rules are published than those.
async fn changed(reader: &mut Reader, edge: &Arc<Edge>) {
    while Arc::ptr_eq(&reader.load().edge, edge) {
        reader.changed().await;
    }
}

/// Resolves when that certificate is not to be had from there any more.
async fn unwanted(reader: &mut Reader, acme: &Acme, ordered: &Ordered) {
    loop {
        reader.changed().await;
        let edge = Arc::clone(&reader.load().edge);
        let is_wanted = |other: &Arc<Ordered>| other.file == ordered.file && other.names == ordered.names;
        if edge.acme.as_deref() != Some(acme) || !edge.ordered().iter().any(is_wanted) {
            return;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a shell: certificates end by the calendar")]
fn unix_now() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}
