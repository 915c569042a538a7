//! What a worker does first when it has more to do than it can: answers that came before requests that wait.
//!
//! A worker's tasks run in the order in which the kernel told of their sockets. When it is busy with many connections, so many requests are
//! begun before the answers to the first of them are looked at that every connection has an exchange under way, and each of them, with its
//! sockets in the kernel, has left the processor's caches by the time it goes on. So when a worker has [`MANY`] requests under way that it
//! began since it slept last, those who come then wait, first come, first served, and [`FEW`] of them begin between two looks at the
//! sockets. Nobody waits while there is nothing else to do, and how long upstreams take does not matter: a worker that sleeps has time for all.
//!
//! It knows threads and wakers, and nothing of connections.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::Waker;

/// Requests under way before others wait. Measured with 64 and 256 connections against 64, 16 and 8: with 16 and 8 the former pay for turns
/// that gain them nothing, with 64 two workers share caches that hold one's.
const MANY: i32 = 32;

/// Requests that begin between two looks at the sockets while others wait. Measured with 256 connections: 8 and 32 gain less.
const FEW: usize = 16;

/// What is left while somebody waits: nothing, however many end.
const NOTHING: i32 = i32::MIN / 2;

thread_local! {
    /// Requests that may still begin at once.
    static LEFT: Cell<i32> = const { Cell::new(i32::MAX) };
    /// Who waits, while anybody does.
    static WAITING: RefCell<Option<VecDeque<Waker>>> = const { RefCell::new(None) };
}

/// This thread is a worker that has nothing under way: it begins, or it sleeps. On threads that never say so nobody waits.
pub fn idle() {
    LEFT.set(MANY);
}

/// A request begins.
pub fn begun() {
    LEFT.set(LEFT.get().wrapping_sub(1));
}

/// A request has ended.
pub fn ended() {
    let left = LEFT.get();
    if left < MANY {
        LEFT.set(left + 1);
    }
}

/// Whether a request may begin now; else `waker` is woken when it may.
pub fn take(waker: &Waker) -> bool {
    LEFT.get() > 0 || !wait(waker)
}

/// Puts it at the end of those who wait. False: nobody can look after them, so nobody waits.
#[cold]
fn wait(waker: &Waker) -> bool {
    WAITING.with_borrow_mut(|waiting| match waiting {
        Some(waiting) => {
            waiting.push_back(waker.clone());
            true
        }
        None => {
            let Ok(runtime) = tokio::runtime::Handle::try_current() else { return false };
            *waiting = Some(VecDeque::from([waker.clone()]));
            LEFT.set(NOTHING);
            runtime.spawn(serve());
            true
        }
    })
}

/// Lets those who wait begin, some after each look at the sockets, until nobody does.
async fn serve() {
    loop {
        // Goes on after the runtime looked at its sockets.
        tokio::task::yield_now().await;
        let mut next = [const { None }; FEW];
        let done = WAITING.with_borrow_mut(|waiting| {
            let Some(queue) = waiting else { return true };
            let count = FEW.min(queue.len());
            next.iter_mut().zip(queue.drain(..count)).for_each(|(next, waker)| *next = Some(waker));
            let done = queue.is_empty();
            if done {
                *waiting = None;
                LEFT.set(MANY);
            }
            done
        });
        next.into_iter().flatten().for_each(Waker::wake);
        if done {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;
    use tokio::task::{LocalSet, yield_now};

    /// Waits for its turn as a connection does.
    async fn turn() {
        let mut asked = false;
        poll_fn(|cx| {
            if asked || take(cx.waker()) {
                return Poll::Ready(());
            }
            asked = true;
            Poll::Pending
        })
        .await;
        begun();
    }

    #[tokio::test]
    async fn who_comes_when_many_are_under_way_waits_in_order() {
        idle();
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks = LocalSet::new();
        for number in 0..200 {
            let order = Rc::clone(&order);
            tasks.spawn_local(async move {
                turn().await;
                order.borrow_mut().push(number);
            });
        }
        let seen = Rc::clone(&order);
        tasks
            .run_until(async move {
                let mut before = 0;
                while seen.borrow().len() < 200 {
                    yield_now().await;
                    let now = seen.borrow().len();
                    assert!(now - before <= if before == 0 { MANY as usize } else { FEW }, "{before} {now}");
                    // Though some have ended, nobody overtakes.
                    (0..3).for_each(|_| ended());
                    before = now;
                }
            })
            .await;
        assert_eq!(*order.borrow(), (0..200).collect::<Vec<_>>());
        // Then as many may begin at once as before.
        assert_eq!((LEFT.get() > MANY / 2, WAITING.with_borrow(Option::is_none)), (true, true));
    }

    #[tokio::test]
    async fn nobody_waits_for_those_that_ended_or_on_a_thread_of_another_kind() {
        for _ in 0..10 * MANY {
            turn().await;
        }
        idle();
        for _ in 0..10 * MANY {
            turn().await;
            ended();
        }
        assert_eq!(LEFT.get(), MANY);
        for _ in 0..MANY {
            turn().await;
        }
        assert_eq!(LEFT.get(), 0);
        idle();
        turn().await;
    }
}
