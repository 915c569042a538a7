//! Whether the process drains: asked with each answer, and waited for while a connection is idle.
//!
//! Both must cost next to nothing: nothing is locked, and nobody registered anew, unless something changed.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::sync::watch;
use tokio::task::unconstrained;

/// A connection's eye on the drain.
pub(super) struct Draining<'a> {
    receiver: &'a watch::Receiver<bool>,
    /// It had begun before the connection.
    from_the_start: bool,
    begun: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    /// Whom that future wakes.
    waker: Option<Waker>,
}

impl<'a> Draining<'a> {
    pub(super) fn new(receiver: &'a watch::Receiver<bool>) -> Draining<'a> {
        Draining { receiver, from_the_start: *receiver.borrow(), begun: None, waker: None }
    }

    /// Whether it has begun. Whoever could begin it being gone is as good a reason.
    pub(super) fn is_on(&self) -> bool {
        self.from_the_start || !self.is_unchanged() && (*self.receiver.borrow() || self.receiver.has_changed().is_err())
    }

    fn is_unchanged(&self) -> bool {
        matches!(self.receiver.has_changed(), Ok(false))
    }

    /// Ready once it has begun.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_on() {
            return Poll::Ready(());
        }
        let is_known = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if is_known && self.is_unchanged() {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        let begun = self.begun.get_or_insert_with(|| {
            let mut receiver = self.receiver.clone();
            Box::pin(async move { drop(receiver.wait_for(|draining| *draining).await) })
        });
        // Whatever this task did already: otherwise it would seem to wait, and nobody would wake it.
        pin!(unconstrained(begun.as_mut())).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn it_is_noticed_once_it_begins() {
        let (sender, receiver) = watch::channel(false);
        let mut draining = Draining::new(&receiver);
        for _ in 0..3 {
            assert!(poll_fn(|cx| Poll::Ready(draining.poll(cx).is_pending())).await && !draining.is_on());
        }
        let (waiting, ()) = tokio::join!(poll_fn(|cx| draining.poll(cx)), async {
            sender.send_replace(true);
        });
        let () = waiting;
        assert!(draining.is_on() && Draining::new(&receiver).is_on());
        let (sender, receiver) = watch::channel(false);
        let mut draining = Draining::new(&receiver);
        assert!(poll_fn(|cx| Poll::Ready(draining.poll(cx).is_pending())).await);
        drop(sender);
        poll_fn(|cx| draining.poll(cx)).await;
        assert!(draining.is_on());
    }
}
