//! A check that waits for the store.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::limiter::answer::{Answer, Reason};
use crate::limiter::engine::{Ask, Engine};
use crate::limiter::identity::ClientKey;
use crate::limiter::rate_limiter::Request;

#[derive(Default)]
struct State {
    answer: Option<Answer>,
    /// Nobody waits any more: nothing may be charged.
    given_up: bool,
    waker: Option<Waker>,
}

/// See the module's text.
pub(super) struct Ticket {
    key: ClientKey,
    id: Box<[u8]>,
    pub(super) cost: u64,
    only: Option<Box<str>>,
    state: Mutex<State>,
    answered: Condvar,
}

impl Ticket {
    pub(super) fn new(key: ClientKey, request: &Request<'_>) -> Self {
        Self {
            key,
            id: request.client_id.into(),
            cost: request.cost,
            only: request.limit.map(Into::into),
            state: Mutex::default(),
            answered: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The question, as of now.
    pub(super) fn ask(&self, now_ns: u64, alone: bool) -> Ask<'_> {
        Ask {
            key: self.key,
            now_ns,
            cost: self.cost,
            charge: true,
            only: self.only.as_deref(),
            under: 0,
            id: &self.id,
            alone,
        }
    }

    /// Asks again, now that the store has said something or will not; whether the check still waits.
    pub(super) fn retry(&self, engine: &Engine, now_ns: u64, alone: bool) -> bool {
        let mut state = self.state();
        if state.given_up || state.answer.is_some() {
            return false;
        }
        let answer = engine.check(self.ask(now_ns, alone), || ());
        if answer.reason == Reason::Pending {
            return true;
        }
        state.answer = Some(answer);
        let waker = state.waker.take();
        drop(state);
        self.answered.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
        false
    }

    /// Whether somebody waits.
    pub(super) fn is_waited_for(&self) -> bool {
        let state = self.state();
        !state.given_up && state.answer.is_none()
    }

    /// Waits on this thread.
    pub(super) fn wait(&self, at_most: Duration) -> Option<Answer> {
        let waiting = |state: &mut State| state.answer.is_none();
        let (state, _timeout) = self
            .answered
            .wait_timeout_while(self.state(), at_most, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        state.answer
    }

    /// Ends the wait; the answer, if it came.
    pub(super) fn give_up(&self) -> Option<Answer> {
        let mut state = self.state();
        state.given_up = true;
        state.answer
    }
}

/// Resolves when the ticket is answered.
pub(super) struct Ready(pub(super) Arc<Ticket>);

impl Future for Ready {
    type Output = Answer;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let mut state = self.0.state();
        if let Some(answer) = state.answer {
            return Poll::Ready(answer);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
