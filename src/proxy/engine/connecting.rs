//! A connect under way, and the race of two.
//!
//! When connecting takes longer than it should, the next region is tried beside it: whichever has its connection first gets the request,
//! and nothing was sent to the other. The loser's connect goes on alone for what is left of its time: its connection is kept for later
//! requests, or its failure speaks against its endpoint, which would else hide behind the winner.
//!
//! It must not know requests: who races, and when, is told.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::timer::Timer;
use super::upstream::{Connect, Destination, Place, Upstream, Within};
use super::{Core, h2, now};
use crate::proxy::retry::Failure;
use crate::proxy::{Attempt, Exchange};
use crate::steering::fleet::Protocol;
use crate::steering::meter::Meter;

/// A connection that is being made.
pub(super) type Coming<S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send>>;

/// A connect under way.
pub(super) struct Connecting<C: Connect> {
    attempt: Attempt,
    future: Coming<C::Stream>,
    /// Unless it shares another's.
    place: Option<Place>,
    meter: Arc<Meter>,
    /// So many failures in a row are too many for the endpoint.
    many: u32,
    began: Instant,
}

impl<C: Connect> Connecting<C> {
    /// Begins to connect for that attempt of `exchange`, unless its endpoint has as many connections as it may have.
    pub(super) fn begin(
        core: &Arc<Core<C>>,
        exchange: &Exchange,
        attempt: &Attempt,
        began: Instant,
    ) -> Option<Connecting<C>> {
        let (meter, many) = exchange.counters(attempt)?;
        let tls = exchange.tls(attempt).map(|(tls, endpoint)| Within { tls, endpoint });
        let to = Destination { address: attempt.address, tls, preamble: exchange.preamble().cloned() };
        if attempt.protocol != Protocol::Http1 {
            let future = h2::call(core, *attempt, began, Arc::clone(&meter), to)?;
            return Some(Connecting { attempt: *attempt, future, place: None, meter, many, began });
        }
        let place = Some(Place::take(&meter, attempt.max_connections)?);
        let core = Arc::clone(core);
        let future = Box::pin(async move { core.connect.connect(to).await });
        Some(Connecting { attempt: *attempt, future, place, meter, many, began })
    }

    /// Whether it is for this attempt's endpoint, as that attempt would have it.
    pub(super) fn is_for(&self, attempt: &Attempt) -> bool {
        (self.attempt.endpoint, self.attempt.epoch, self.attempt.tls) == (attempt.endpoint, attempt.epoch, attempt.tls)
    }

    /// When its time is over.
    pub(super) fn due(&self) -> Instant {
        self.began + self.attempt.connect
    }

    /// Its connection, or that there is none. Its time is the caller's to keep.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<C::Stream, Failure>> {
        self.future.as_mut().poll(cx).map_err(|_| Failure::NotConnected)
    }

    /// Has its connection: an upstream.
    pub(super) fn done(self, stream: C::Stream) -> Box<Upstream<C::Stream>> {
        let now = now();
        self.meter.connected(now.saturating_duration_since(self.began));
        Upstream::new(stream, &self.attempt, self.place, now)
    }

    /// Has none, and nobody else will tell.
    pub(super) fn failed(self) {
        self.meter.failed(self.many);
        self.meter.first_failed(false);
    }

    /// Goes on alone: nobody waits for it any more.
    pub(super) fn leave(mut self, core: &Arc<Core<C>>) {
        let core = Arc::clone(core);
        tokio::spawn(async move {
            let due = tokio::time::Instant::from_std(self.due());
            match tokio::time::timeout_at(due, poll_fn(|cx| self.poll(cx))).await {
                Ok(Ok(stream)) if self.attempt.protocol == Protocol::Http1 => core.pool.put(self.done(stream), now()),
                // The connection that it would have shared is kept as it is.
                Ok(Ok(stream)) => drop(self.done(stream)),
                Ok(Err(_)) | Err(_) => self.failed(),
            }
        });
    }
}

/// How a race ended.
pub(super) enum Won<C: Connect> {
    /// The first one has its connection.
    First(Box<Upstream<C::Stream>>),
    /// The rival has its connection, and the first one none yet.
    Rival(Box<Upstream<C::Stream>>, Connecting<C>),
    /// The first one failed; the rival may still be under way.
    Failed(Failure, Option<Connecting<C>>),
}

/// Who comes in beside a connect that takes too long.
pub(super) enum Entrant<C: Connect> {
    /// A connection that is there already.
    Kept(Box<Upstream<C::Stream>>),
    /// One that has to be made.
    New(Connecting<C>),
}

impl<C: Connect> Entrant<C> {
    /// For that attempt of `exchange`; `None` when its endpoint has as many connections as it may have.
    pub(super) fn enter(
        core: &Arc<Core<C>>,
        exchange: &Exchange,
        attempt: &Attempt,
        now: Instant,
    ) -> Option<Entrant<C>> {
        match core.kept(attempt, now) {
            Some(upstream) => Some(Entrant::Kept(upstream)),
            None => Connecting::begin(core, exchange, attempt, now).map(Entrant::New),
        }
    }
}

/// Waits for `first`; after `patience`, if given, for the one that `enter` brings as well. Leaves in `at` when that ended.
pub(super) async fn race<C: Connect>(
    mut first: Connecting<C>,
    patience: Option<Duration>,
    timer: &mut Timer,
    at: &mut Instant,
    mut enter: impl FnMut(Instant) -> Option<Entrant<C>>,
) -> Won<C> {
    let mut enters = patience.map(|patience| first.began + patience);
    let mut rival: Option<Connecting<C>> = None;
    let end = poll_fn(|cx| {
        loop {
            if let Poll::Ready(connected) = first.poll(cx) {
                return Poll::Ready(End::First(connected));
            }
            if let Some(mut other) = rival.take() {
                match other.poll(cx) {
                    Poll::Ready(Ok(stream)) => return Poll::Ready(End::Rival(other.done(stream))),
                    Poll::Ready(Err(_)) => other.failed(),
                    Poll::Pending => rival = Some(other),
                }
            }
            let due = rival.as_ref().map(Connecting::due);
            timer.set([Some(first.due()), enters, due].into_iter().flatten().min());
            if timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = now();
            if first.due() <= now {
                return Poll::Ready(End::First(Err(Failure::ConnectTimeout)));
            }
            if let Some(other) = rival.take_if(|other| other.due() <= now) {
                other.failed();
            }
            if enters.take_if(|when| *when <= now).is_some() {
                match enter(now) {
                    Some(Entrant::Kept(upstream)) => return Poll::Ready(End::Rival(upstream)),
                    Some(Entrant::New(connecting)) => rival = Some(connecting),
                    None => {}
                }
            }
        }
    })
    .await;
    *at = now();
    match end {
        End::First(Ok(stream)) => Won::First(first.done(stream)),
        End::First(Err(failure)) => Won::Failed(failure, rival),
        End::Rival(upstream) => Won::Rival(upstream, first),
    }
}

/// What ended a race.
enum End<S> {
    First(Result<S, Failure>),
    Rival(Box<Upstream<S>>),
}
