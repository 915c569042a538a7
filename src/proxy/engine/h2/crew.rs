//! Tasks that serve one stream after the other.
//!
//! What serving a request needs to remember between two looks at it is some kilobytes. A task for each stream would have them allocated, moved about and freed each time; so a task that is done
//! waits for the next stream of its thread, of whatever connection, and no more of them are kept than may be busy at once.
//!
//! Must not know what a job is.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::proxy::engine::upstream::worker;

/// Tasks without a job that a thread keeps.
const IDLE: usize = 256;

/// The tasks of all threads.
pub struct Crew<J> {
    shards: Box<[Mutex<Idle<J>>]>,
}

type Idle<J> = Vec<Arc<Hand<J>>>;

/// What a task and who gives it a job have in common.
struct Hand<J>(Mutex<Waiting<J>>);

struct Waiting<J> {
    job: Option<J>,
    waker: Option<Waker>,
}

impl<J: Send + 'static> Crew<J> {
    /// For a runtime of that many workers.
    pub fn new(workers: usize) -> Crew<J> {
        Crew { shards: (0..workers.max(1)).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self) -> &Mutex<Idle<J>> {
        &self.shards[worker() % self.shards.len()]
    }

    /// Has `job` done by a task that has none, or by a new one. All jobs of a crew are done by the same `how`.
    pub fn give<T>(self: &Arc<Self>, job: J, how: impl Fn(J) -> T + Send + 'static)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let free = self.shard().lock().unwrap_or_else(PoisonError::into_inner).pop();
        match free {
            Some(hand) => hand.give(job),
            None => {
                let crew = Arc::clone(self);
                tokio::spawn(async move {
                    let hand = Arc::new(Hand(Mutex::new(Waiting { job: Some(job), waker: None })));
                    loop {
                        let job = hand.job().await;
                        how(job).await;
                        let mut idle = crew.shard().lock().unwrap_or_else(PoisonError::into_inner);
                        if idle.len() >= IDLE {
                            return;
                        }
                        idle.push(Arc::clone(&hand));
                    }
                });
            }
        }
    }
}

impl<J> Hand<J> {
    fn give(&self, job: J) {
        let waker = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.job = Some(job);
            waiting.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// The next job.
    async fn job(&self) -> J {
        poll_fn(|cx| {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.job.take() {
                Some(job) => Poll::Ready(job),
                None => {
                    waiting.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn every_job_is_done_once_and_tasks_are_used_again() {
        let (crew, (done, mut all)) = (Arc::new(Crew::new(1)), mpsc::unbounded_channel());
        let how = || {
            let done = done.clone();
            move |job: usize| {
                let done = done.clone();
                async move {
                    tokio::task::yield_now().await;
                    done.send((job, tokio::task::id())).unwrap();
                }
            }
        };
        let mut tasks = std::collections::HashSet::new();
        for round in 0..3 {
            (0..IDLE + 40).for_each(|n| crew.give(round * 1000 + n, how()));
            let mut jobs = Vec::new();
            for _ in 0..IDLE + 40 {
                let (job, task) = all.recv().await.unwrap();
                jobs.push(job);
                tasks.insert(task);
            }
            jobs.sort_unstable();
            assert!(jobs.into_iter().eq(round * 1000..round * 1000 + IDLE + 40));
        }
        assert_eq!(tasks.len(), IDLE + 3 * 40);
    }
}
