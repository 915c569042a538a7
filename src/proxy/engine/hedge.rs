//! A second request beside one that waits too long (`retry.hedge`): whoever speaks first is heard, the other is cancelled.
//!
//! For requests that may be sent twice, of services that ask for it, and inside the retry budget: that is decided by who begins it. The
//! first request goes on waiting while the second one connects and is sent. Once one of them has a byte, its connection goes back to be
//! relayed as if nothing had happened, and the other's is closed, which is how HTTP/1.1 cancels.
//!
//! It must not know answers: a byte is enough.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};

use super::connecting::{Connecting, Entrant};
use super::now;
use super::relay::Client;
use super::upstream::{Connect, Upstream};
use crate::proxy::retry::Failure;

/// How a hedge ended.
pub(super) enum Hedged<U> {
    /// The first one spoke.
    First,
    /// The second one spoke.
    Second(Box<Upstream<U>>),
    /// Neither will.
    Failed(Failure),
    /// Nobody listens any more.
    ClientGone,
}

/// Where the second request is.
enum Second<C: Connect> {
    Connecting(Connecting<C>),
    /// So many of its bytes are sent.
    Sending(Box<Upstream<C::Stream>>, usize),
    Waiting(Box<Upstream<C::Stream>>),
    Lost,
}

/// Waits for an answer of `first`, to which `request` was sent whole, or of `second`, to which it is sent as well, until `due`. Leaves in
/// `at` when that ended. `second_is_lost` is called when only the first can answer any more.
pub(super) async fn hedge<C: Connect, S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<S>,
    first: &mut Upstream<C::Stream>,
    second: Entrant<C>,
    request: &[u8],
    due: Instant,
    at: &mut Instant,
    mut second_is_lost: impl FnMut(),
) -> Hedged<C::Stream> {
    let mut first_is_lost = false;
    let mut second = match second {
        Entrant::Kept(upstream) => Second::Sending(upstream, 0),
        Entrant::New(connecting) => Second::Connecting(connecting),
    };
    let hedged = poll_fn(|cx| {
        loop {
            let mut again = false;
            if !first_is_lost {
                match first.input.poll_fill(&mut first.stream, cx) {
                    Poll::Ready(Ok(1..)) => return Poll::Ready(Hedged::First),
                    Poll::Ready(_) => first_is_lost = true,
                    Poll::Pending => {}
                }
            }
            second = match std::mem::replace(&mut second, Second::Lost) {
                Second::Connecting(mut connecting) => match connecting.poll(cx) {
                    Poll::Ready(Ok(stream)) => {
                        again = true;
                        Second::Sending(connecting.done(stream), 0)
                    }
                    Poll::Ready(Err(_)) => {
                        connecting.failed();
                        Second::Lost
                    }
                    Poll::Pending => Second::Connecting(connecting),
                },
                Second::Sending(mut upstream, sent) => {
                    match Pin::new(&mut upstream.stream).poll_write(cx, &request[sent..]) {
                        Poll::Ready(Ok(count @ 1..)) => {
                            again = true;
                            let sent = sent + count;
                            if sent < request.len() {
                                Second::Sending(upstream, sent)
                            } else {
                                // What cannot be flushed now is flushed by reading.
                                let _ = Pin::new(&mut upstream.stream).poll_flush(cx);
                                Second::Waiting(upstream)
                            }
                        }
                        Poll::Ready(_) => Second::Lost,
                        Poll::Pending => Second::Sending(upstream, sent),
                    }
                }
                Second::Waiting(mut upstream) => match upstream.input.poll_fill(&mut upstream.stream, cx) {
                    Poll::Ready(Ok(1..)) => return Poll::Ready(Hedged::Second(upstream)),
                    Poll::Ready(_) => Second::Lost,
                    Poll::Pending => Second::Waiting(upstream),
                },
                Second::Lost => Second::Lost,
            };
            if matches!(second, Second::Lost) {
                second_is_lost();
            }
            if first_is_lost && matches!(second, Second::Lost) {
                return Poll::Ready(Hedged::Failed(Failure::Lost { reused: first.reused }));
            }
            if client.closed.is_none() && client.input.has_room() {
                match client.input.poll_fill(&mut client.stream, cx) {
                    Poll::Ready(Ok(0)) => client.closed = Some(now()),
                    // The next request, early.
                    Poll::Ready(Ok(_)) => again = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(Hedged::ClientGone),
                    Poll::Pending => {}
                }
            }
            if again {
                continue;
            }
            let connected_by = match &second {
                Second::Connecting(connecting) => connecting.due(),
                _ => due,
            };
            client.timer.set(Some(due.min(connected_by)));
            if client.timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = now();
            if now >= due {
                return Poll::Ready(Hedged::Failed(Failure::Silent));
            }
            second = match std::mem::replace(&mut second, Second::Lost) {
                Second::Connecting(connecting) if connecting.due() <= now => {
                    connecting.failed();
                    Second::Lost
                }
                other => other,
            };
        }
    })
    .await;
    *at = now();
    hedged
}
