//! How many connections are open, and the way to none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use pingora::server::ShutdownWatch;
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};

use super::networks::Counted;

/// The open connections of a listening service. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Drain(Arc<State>);

#[derive(Debug)]
struct State {
    begun: watch::Sender<bool>,
    open: AtomicUsize,
    gone: Notify,
    /// The same as `open`, for operators.
    shown: Option<IntGauge>,
}

impl Default for State {
    fn default() -> State {
        State { begun: watch::Sender::new(false), open: AtomicUsize::new(0), gone: Notify::new(), shown: None }
    }
}

/// A connection, counted until this is dropped.
#[derive(Debug)]
pub(super) struct Guard(Drain, Option<Counted>);

impl Guard {
    /// It counts for its network as well.
    pub(super) fn of(&mut self, counted: Option<Counted>) {
        self.1 = counted;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(shown) = &self.0.0.shown {
            shown.dec();
        }
        if self.0.0.open.fetch_sub(1, SeqCst) == 1 {
            self.0.0.gone.notify_waiters();
        }
    }
}

impl Drain {
    /// One that shows how many there are.
    pub(super) fn counting(shown: IntGauge) -> Drain {
        Drain(Arc::new(State { shown: Some(shown), ..State::default() }))
    }

    /// Begins: listeners close, connections close after the request they are at.
    pub fn begin(&self) {
        self.0.begun.send_replace(true);
    }

    /// Resolves when the drain has begun.
    pub async fn begun(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.0.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// Waits until no connection is open, at most `timeout`; returns how many still are.
    pub async fn wait(&self, timeout: Duration) -> usize {
        let none_left = async {
            loop {
                let gone = self.0.gone.notified();
                tokio::pin!(gone);
                // Registered before the count is read, so that the last one cannot leave unnoticed in between.
                gone.as_mut().enable();
                if self.open() == 0 {
                    return;
                }
                gone.await;
            }
        };
        let _ = tokio::time::timeout(timeout, none_left).await;
        self.open()
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.0.open.load(SeqCst)
    }

    /// Counts a connection in, unless `limit` are open.
    pub(super) fn enter(&self, limit: usize) -> Option<Guard> {
        if let Some(shown) = &self.0.shown {
            shown.inc();
        }
        let guard = Guard(self.clone(), None);
        (self.0.open.fetch_add(1, SeqCst) < limit).then_some(guard)
    }

    /// The signal in pingora's form.
    pub(super) fn watch(&self) -> ShutdownWatch {
        self.0.begun.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_ends_with_the_last_connection() {
        let drain = Drain::default();
        let first = drain.enter(2).unwrap();
        let second = drain.enter(2).unwrap();
        assert!(drain.enter(2).is_none());
        assert_eq!(drain.open(), 2);
        drop(first);
        assert_eq!(drain.wait(Duration::ZERO).await, 1);
        let waiting = tokio::spawn({
            let drain = drain.clone();
            async move { drain.wait(Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        drop(second);
        assert_eq!(waiting.await.unwrap(), 0);
    }
}
