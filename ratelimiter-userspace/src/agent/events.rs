//! What happened lately: a bounded log that people can follow.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::admin::views::{Event, EventKind, Page, PageQuery};
use crate::clock;

/// Events kept; the oldest go first.
const MAX_EVENTS: usize = 1_000;
/// Of these, drops: whoever sends a flood does not push everything else out.
const MAX_DROPS: usize = 200;

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
        if kind == EventKind::Drop {
            let is_drop = |event: &Event| event.kind == EventKind::Drop;
            let drops = log.1.iter().filter(|event| is_drop(event)).count();
            if drops >= MAX_DROPS
                && let Some(oldest) = log.1.iter().position(is_drop)
            {
                log.1.remove(oldest);
            }
        }
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
        let after = known(after, log.0);
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
            let newest = self.lock().0;
            if newest > known(after, newest) {
                return;
            }
            news.await;
        }
    }
}

/// The newest event somebody knows who last saw `after`. A number that is not given yet is one of an
/// agent before this one, whose events are gone: then everything is new.
fn known(after: u64, newest: u64) -> u64 {
    if after > newest { 0 } else { after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_followed_an_agent_before_this_one_misses_nothing() {
        let events = Events::default();
        events.push(EventKind::Agent, "started");
        let before = PageQuery {
            after: Some("500".to_owned()),
            ..PageQuery::default()
        };
        events.after(500).await;
        assert_eq!(events.page(&before).items[0].text, "started");
        let newest = PageQuery {
            after: Some("1".to_owned()),
            ..PageQuery::default()
        };
        assert_eq!(events.page(&newest).total, 0);
    }

    #[test]
    fn a_flood_of_drops_pushes_nothing_else_out() {
        let events = Events::default();
        events.push(EventKind::Change, "a change");
        for n in 0..5_000 {
            events.push(EventKind::Drop, format!("drop {n}"));
        }
        let all = PageQuery {
            limit: Some(1_000),
            ..PageQuery::default()
        };
        let page = events.page(&all);
        assert_eq!(page.total, 1 + MAX_DROPS as u64);
        assert_eq!(page.items[0].text, "a change");
        assert_eq!(page.items[MAX_DROPS].text, "drop 4999");
        assert!(page.items.windows(2).all(|two| two[0].id < two[1].id));
    }
}
