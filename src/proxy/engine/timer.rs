//! One timer for all deadlines of a connection.
//!
//! Deadlines come and go with every read and write, and almost none of them passes. So moving one is a store: the runtime's timer is armed anew
//! only for a moment earlier than the one it is armed for, and when it goes off too early it is armed for what is due by then.
//!
//! After a process stood still its timers go off before it has looked at its sockets, in which the answer may lie that was waited for. So one that
//! goes off late lets the runtime look first.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::task::{unconstrained, yield_now};
use tokio::time::{Sleep, sleep_until};

/// Later than a timer is whose worker is not held up.
const LATE: Duration = Duration::from_millis(10);

/// When a connection is to be woken whatever else happens.
#[derive(Debug, Default)]
pub(super) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom the runtime's timer wakes.
    waker: Option<Waker>,
    due: Option<Instant>,
    /// It was late, and the runtime has had its look since.
    looked: bool,
}

impl Timer {
    /// Goes off at `due`, instead of whatever was set before; `None`: never.
    pub(super) fn set(&mut self, due: Option<Instant>) {
        self.due = due;
    }

    /// Ready once what was set last is past.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        let due = tokio::time::Instant::from_std(due);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
        let wakes_us = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if wakes_us && sleep.deadline() <= due && !sleep.is_elapsed() {
            // Armed, early enough, and still to go off: the runtime need not be told again.
            return Poll::Pending;
        }
        if due < sleep.deadline() {
            sleep.as_mut().reset(due);
        }
        // Not to be told to wait because this task did much already: then the timer would not be armed, and seem to be.
        while pin!(unconstrained(sleep.as_mut())).poll(cx).is_ready() {
            if sleep.deadline() >= due {
                if !std::mem::take(&mut self.looked) && super::now() > due.into_std() + LATE {
                    self.looked = true;
                    // Wakes this task after the runtime has asked the system what is ready.
                    return pin!(yield_now()).poll(cx);
                }
                return Poll::Ready(());
            }
            self.looked = false;
            sleep.as_mut().reset(due);
        }
        if !wakes_us {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a timer's test looks at the clock")]
    async fn it_goes_off_at_the_moment_set_last() {
        let mut timer = Timer::default();
        let begun = Instant::now();
        let ms = |n| Some(begun + Duration::from_millis(n));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx))).await.is_pending());
        // Later, earlier, and later again than what it is armed for.
        for due in [ms(60_000), ms(20), ms(40)] {
            timer.set(due);
            assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx))).await.is_pending());
        }
        poll_fn(|cx| timer.poll(cx)).await;
        assert!(begun.elapsed() >= Duration::from_millis(40));
        // What is past goes off at once, also after it went off.
        timer.set(ms(0));
        poll_fn(|cx| timer.poll(cx)).await;
        timer.set(ms(80));
        poll_fn(|cx| timer.poll(cx)).await;
        assert!(begun.elapsed() >= Duration::from_millis(80));
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_is_late_the_runtime_looks_first() {
        let mut timer = Timer::default();
        for late in [Duration::from_secs(5), Duration::ZERO] {
            timer.set(Some((tokio::time::Instant::now() + Duration::from_secs(1)).into_std()));
            assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx))).await.is_pending());
            tokio::time::advance(Duration::from_secs(1) + late).await;
            let first = poll_fn(|cx| Poll::Ready(timer.poll(cx))).await;
            assert_eq!(first.is_pending(), !late.is_zero());
            poll_fn(|cx| timer.poll(cx)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_armed_by_a_task_that_may_do_no_more_now() {
        let mut timer = Timer::default();
        timer.set(Some((tokio::time::Instant::now() + Duration::from_secs(1)).into_std()));
        let mut is_first = true;
        // A task, as a connection is: its waker stays the same.
        let waiting = tokio::spawn(poll_fn(move |cx| {
            if std::mem::take(&mut is_first) {
                while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            }
            timer.poll(cx)
        }));
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it goes off").unwrap();
    }
}
