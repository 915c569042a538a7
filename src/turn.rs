//! What a worker does first when it has more to do than it can: answers that came before requests that wait.
//!
//! A worker's tasks run in the order in which the kernel told of their sockets. When it is busy with many connections, so many requests are
//! begun before the answers to the first of them are looked at that every connection has an exchange under way, and each of them, with its
//! sockets in the kernel, has left the processor's caches by the time it goes on. So when a worker has [`MANY`] more requests under way than
//! when it slept last, those who come then wait, first come, first served, and [`FEW`] of them begin each time round, or more where a round takes
//! long because of others. Nobody waits while there is nothing else to do, and how long upstreams take does not matter: a worker that sleeps has time for
//! all. Who sent its next request before it had its answer does not wait: it is in the caches.
//!
//! It knows threads and wakers, and nothing of connections.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

/// Requests under way before others wait. Measured with 64 and 256 connections against 64, 16 and 8: with 16 and 8 the former pay for turns
/// that gain them nothing, with 64 two workers share caches that hold one's.
const MANY: i32 = 32;

/// Requests that begin in a round while others wait. Measured with 256 connections: 8 and 32 gain less.
const FEW: usize = 16;

/// How long a round is in which so many begin: twice what they and their answers take. Long bodies make rounds longer, and then more
/// begin, so that short requests keep their share.
const ROUND: Duration = Duration::from_millis(2);

/// What is left while somebody waits: nothing, however many end.
const NOTHING: i32 = i32::MIN / 2;

thread_local! {
    /// Requests that may still begin at once; more than [`MANY`] on threads that are no workers.
    static LEFT: Cell<i32> = const { Cell::new(i32::MAX) };
    static WAITING: RefCell<Waiting> = const { RefCell::new(Waiting { queue: VecDeque::new(), served: false }) };
}

struct Waiting {
    queue: VecDeque<Waker>,
    /// Whether someone looks after them.
    served: bool,
}

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub struct Begun(());

/// This thread is a worker that has nothing to do: it begins, or it sleeps. On threads that never say so nobody waits.
pub fn idle() {
    LEFT.set(MANY);
}

/// A request begins.
pub fn begin() -> Begun {
    let left = LEFT.get();
    if left <= MANY {
        LEFT.set(left.saturating_sub(1));
    }
    Begun(())
}

impl Drop for Begun {
    fn drop(&mut self) {
        let left = LEFT.get();
        if (NOTHING / 2..MANY).contains(&left) {
            LEFT.set(left + 1);
        }
    }
}

/// Whether a request may begin at once.
pub fn is_free() -> bool {
    LEFT.get() > 0
}

/// Wakes `waker` when it is its turn.
#[cold]
pub fn wait(waker: &Waker) {
    let served = WAITING.with_borrow_mut(|waiting| {
        waiting.queue.push_back(waker.clone());
        std::mem::replace(&mut waiting.served, true)
    });
    if !served {
        LEFT.set(NOTHING);
        let serving = Serving;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(serve(serving));
        }
    }
}

/// Lets those who wait begin, some in each round, until nobody does.
async fn serve(serving: Serving) {
    let mut last = Instant::now();
    loop {
        // Goes on after the runtime looked at its sockets and ran what they woke.
        tokio::task::yield_now().await;
        let began = std::mem::replace(&mut last, Instant::now());
        let rounds = 1 + (last - began).as_micros() / ROUND.as_micros();
        let count = FEW.saturating_mul(usize::try_from(rounds).unwrap_or(usize::MAX));
        for _ in 0..count {
            match WAITING.with_borrow_mut(|waiting| waiting.queue.pop_front()) {
                Some(waker) => waker.wake(),
                None => return drop(serving),
            }
        }
    }
}

/// Somebody looks after those who wait, until this is dropped: then nobody waits any more, also where a runtime ends.
struct Serving;

impl Drop for Serving {
    fn drop(&mut self) {
        let left: Vec<Waker> = WAITING.with_borrow_mut(|waiting| {
            waiting.served = false;
            waiting.queue.drain(..).collect()
        });
        LEFT.set(MANY);
        left.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::sync::{Arc, Mutex};
    use std::task::Poll;
    use tokio::task::{LocalSet, yield_now};

    /// Waits for its turn as a connection does.
    async fn turn() -> Begun {
        let mut asked = false;
        poll_fn(|cx| {
            if asked || is_free() {
                return Poll::Ready(());
            }
            asked = true;
            wait(cx.waker());
            Poll::Pending
        })
        .await;
        begin()
    }

    fn nobody_waits() -> bool {
        WAITING.with_borrow(|waiting| waiting.queue.is_empty() && !waiting.served)
    }

    /// In a time that stands still, so that rounds take none.
    #[tokio::test(start_paused = true)]
    async fn who_comes_when_many_are_under_way_waits_in_order() {
        idle();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..200 {
            let order = Arc::clone(&order);
            tasks.push(tokio::spawn(async move {
                let begun = turn().await;
                order.lock().unwrap().push(number);
                // Some end at once, some later; nobody overtakes for that.
                if number % 3 > 0 {
                    yield_now().await;
                }
                drop(begun);
            }));
        }
        let (mut before, mut rounds) = (0, 0);
        while before < 200 {
            yield_now().await;
            let now = order.lock().unwrap().len();
            assert!(now - before <= if before == 0 { 2 * MANY as usize } else { 2 * FEW }, "{before} {now}");
            (before, rounds) = (now, rounds + 1);
            assert!(rounds < 1000, "{now}");
        }
        assert!(rounds >= (200 - 2 * MANY as usize) / FEW / 2, "{rounds}");
        assert_eq!(*order.lock().unwrap(), (0..200).collect::<Vec<_>>());
        for task in tasks {
            task.await.unwrap();
        }
        yield_now().await;
        assert!(nobody_waits() && LEFT.get() == MANY);
    }

    #[tokio::test(start_paused = true)]
    async fn long_rounds_let_more_begin() {
        idle();
        let held: Vec<Begun> = (0..MANY).map(|_| begin()).collect();
        let begun = Rc::new(Cell::new(0));
        let tasks = LocalSet::new();
        for _ in 0..100 {
            let begun = Rc::clone(&begun);
            tasks.spawn_local(async move {
                let turn = turn().await;
                begun.set(begun.get() + 1);
                std::mem::forget(turn);
            });
        }
        tasks
            .run_until(async {
                while begun.get() == 0 {
                    // Somebody else took that long.
                    tokio::time::advance(2 * ROUND).await;
                }
            })
            .await;
        assert!(begun.get() > FEW, "{}", begun.get());
        drop(held);
    }

    #[tokio::test]
    async fn nobody_waits_for_those_that_ended_or_on_a_thread_of_another_kind() {
        let mut held = Vec::new();
        for _ in 0..10 * MANY {
            held.push(turn().await);
        }
        drop(held);
        assert_eq!(LEFT.get(), i32::MAX);
        idle();
        for _ in 0..10 * MANY {
            drop(turn().await);
        }
        assert_eq!(LEFT.get(), MANY);
        let held: Vec<Begun> = (0..MANY).map(|_| begin()).collect();
        assert_eq!(LEFT.get(), 0);
        // A worker that sleeps has time for all.
        idle();
        assert!(is_free());
        drop(held);
        assert_eq!(LEFT.get(), MANY);
    }

    #[test]
    fn a_runtime_that_ends_leaves_nobody_waiting() {
        idle();
        for _ in 0..2 {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let held: Vec<Begun> = (0..MANY).map(|_| begin()).collect();
            assert!(!is_free());
            runtime.block_on(async { wait(Waker::noop()) });
            assert!(!nobody_waits());
            drop((runtime, held));
            assert!(nobody_waits() && LEFT.get() == MANY);
        }
        // Without any runtime nobody could look after them.
        let _held: Vec<Begun> = (0..MANY).map(|_| begin()).collect();
        assert!(!is_free());
        wait(Waker::noop());
        assert!(nobody_waits());
    }
}
