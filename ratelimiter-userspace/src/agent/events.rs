//! What happened lately: a bounded log that people can follow.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::admin::views::{Event, EventKind, Page, PageQuery};
use crate::clock;

/// Events kept; the oldest go first.
const MAX_EVENTS: usize = 1_000;

/// The log.
#[derive(Debug, Default)]
pub(super) struct Events {
    log: Mutex<(u64, VecDeque<Event>)>,
    news: Notify,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, (u64, VecDeque<Event>)> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something happened.
    pub(super) fn push(&self, kind: EventKind, text: impl Into<String>) {
        let mut log = self.lock();
        log.0 += 1;
        let event = Event {
            id: log.0,
            at_unix_ms: clock::unix_ms(),
            kind,
            text: text.into(),
        };
        log.1.push_back(event);
        if log.1.len() > MAX_EVENTS {
            log.1.pop_front();
        }
        drop(log);
        self.news.notify_waiters();
    }

    /// Events after the number `after`, oldest first.
    pub(super) fn page(&self, query: &PageQuery) -> Page<Event> {
        let after = query
            .after
            .as_deref()
            .and_then(|after| after.parse().ok())
            .unwrap_or(0);
        let log = self.lock();
        let newer: Vec<&Event> = log
            .1
            .iter()
            .filter(|event| event.id > after)
            .filter(|event| query.matches([event.text.as_str()]))
            .collect();
        let items: Vec<Event> = newer
            .iter()
            .take(query.size())
            .map(|event| (*event).clone())
            .collect();
        Page {
            total: newer.len() as u64,
            next: (newer.len() > items.len())
                .then(|| items.last().map(|event| event.id.to_string()))
                .flatten(),
            items,
        }
    }

    /// Resolves when there is an event after the number `after`.
    pub(super) async fn after(&self, after: u64) {
        loop {
            let news = self.news.notified();
            if self.lock().0 > after {
                return;
            }
            news.await;
        }
    }
}
