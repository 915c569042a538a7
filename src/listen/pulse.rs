//! Whether worker threads still move: a question to each, and the last one that it answered.
//!
//! A worker that computes for ever, or waits for what never comes, answers nothing; who asks may then let the service manager begin anew. Workers that
//! nobody asks are never woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// The pulse of all workers of a service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pulse {
    asked: watch::Sender<u64>,
    /// By worker.
    answered: Arc<[AtomicU64]>,
}

impl Pulse {
    pub(super) fn of(workers: usize) -> Pulse {
        Pulse { asked: watch::Sender::new(0), answered: (0..workers).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The part of a worker: to be run there.
    pub(super) fn beats(&self, worker: usize) -> impl Future<Output = ()> + Send + 'static {
        let (mut asked, answered) = (self.asked.subscribe(), Arc::clone(&self.answered));
        async move {
            loop {
                answered[worker].store(*asked.borrow_and_update(), Ordering::Relaxed);
                if asked.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// Asks every worker once more; returns those that have not answered the last question.
    pub fn ask(&self) -> Vec<usize> {
        let last = *self.asked.borrow();
        let silent = |(_, answered): &(usize, &AtomicU64)| answered.load(Ordering::Relaxed) < last;
        let silent = self.answered.iter().enumerate().filter(silent).map(|(worker, _)| worker).collect();
        self.asked.send_replace(last + 1);
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_answer_is_found() {
        let pulse = Pulse::of(2);
        let first = tokio::spawn(pulse.beats(0));
        assert!(pulse.ask().is_empty(), "nobody was asked before");
        while pulse.answered[0].load(Ordering::Relaxed) < 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pulse.ask(), [1]);
        first.abort();
    }
}
