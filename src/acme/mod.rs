//! Certificates by ACME (RFC 8555): ordered when there is none or its end is near, and kept in the state directory.
//!
//! What a listener wants stands in its configuration; what is there is read with that, like any certificate. This task compares the two, has
//! what is due ordered (`order`), one at a time, and writes it to its file (`store`). It ends there: that the file changed is seen by who watches files, and a reload
//! puts the certificate in force. Refused: to hand it to listeners directly, which would be a second way for certificates to come into force.
//!
//! Who fails is tried again after a minute, then later and later, up to six hours: authorities count failures. Must not know how listeners and
//! requests answer ([`challenge`]).

pub mod challenge;
mod directory;
mod order;
pub mod own;
mod plan;
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
use plan::{Next, Plan};

/// How long an order may take: authorities look from several places, and some of them slowly.
const ORDER: Duration = Duration::from_secs(300);

/// The longest sleep: the calendar may be set meanwhile.
const LOOK: Duration = Duration::from_secs(3600);

/// Orders what is due until the future is dropped.
pub async fn run(mut reader: Reader, challenges: Challenges, metrics: Metrics) {
    let mut plan = Plan::default();
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
                tokio::select! {
                    result = one(acme, &ordered, &challenges) => {
                        metrics.certificate_ordered(result.is_ok());
                        conclude(&mut plan, acme, &ordered, result);
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
fn conclude(plan: &mut Plan, acme: &Acme, ordered: &Ordered, result: Result<(i64, i64), String>) {
    let (names, directory) = (&ordered.names, &acme.host);
    match result {
        Ok(valid) => {
            plan.issued(ordered, valid);
            tracing::info!(?names, directory, until = day(valid.1), "certificate issued");
        }
        Err(error) => {
            let wait = plan.failed(ordered, Instant::now(), fastrand::f64());
            let seconds = wait.as_secs();
            tracing::error!(?names, directory, error, "no certificate was issued; trying again in {seconds} s");
        }
    }
}

/// One order, from the account to the file. Returns from when to when the certificate is valid.
async fn one(acme: &Arc<Acme>, ordered: &Arc<Ordered>, challenges: &Challenges) -> Result<(i64, i64), String> {
    // A task of its own, which ends when this is dropped: a mistake in it costs one order, not the process's control.
    let mut task = JoinSet::new();
    let (acme, ordered, challenges) = (Arc::clone(acme), Arc::clone(ordered), challenges.clone());
    task.spawn(async move {
        let order = order::certificate(&acme, &ordered, &challenges);
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
