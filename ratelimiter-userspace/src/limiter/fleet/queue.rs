//! Who waits for what: the clients whose units are exchanged, and the checks that wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::Who;
use super::ticket::Ticket;

/// Most clients whose units are exchanged at once.
const MAX_CLIENTS: usize = 1 << 20;
/// Most checks that wait at once.
const MAX_WAITING: usize = 1 << 16;

#[derive(Default)]
struct Waiting {
    tickets: VecDeque<Arc<Ticket>>,
    /// Is in [`Queue::order`].
    queued: bool,
    /// An entry is under way.
    under_way: bool,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Queue {
    clients: HashMap<Who, Waiting>,
    order: VecDeque<Who>,
    waiting: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Every client there is.
    pub(super) fn everybody(&self) -> Vec<Who> {
        self.clients.keys().copied().collect()
    }

    /// Notes that an entry is due; whether that is news.
    pub(super) fn due(&mut self, who: Who) -> bool {
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&who) {
            return false;
        }
        let waiting = self.clients.entry(who).or_default();
        let news = !waiting.queued && !waiting.under_way;
        if news {
            waiting.queued = true;
            self.order.push_back(who);
        }
        news
    }

    /// Lets a check wait; `false` where too many do.
    pub(super) fn wait(&mut self, who: Who, ticket: Arc<Ticket>) -> bool {
        if self.waiting >= MAX_WAITING {
            return false;
        }
        self.due(who);
        let Some(waiting) = self.clients.get_mut(&who) else {
            return false;
        };
        waiting.tickets.push_back(ticket);
        self.waiting += 1;
        true
    }

    /// The next client an entry is due for, with what its checks need in all and the least of them,
    /// in units. From now on its entry is under way.
    pub(super) fn next(&mut self) -> Option<(Who, (u64, u64))> {
        while let Some(who) = self.order.pop_front() {
            let Some(waiting) = self.clients.get_mut(&who) else {
                continue;
            };
            waiting.queued = false;
            if waiting.under_way {
                continue;
            }
            waiting.under_way = true;
            let before = waiting.tickets.len();
            waiting.tickets.retain(|ticket| ticket.is_waited_for());
            self.waiting -= before - waiting.tickets.len();
            let costs = || waiting.tickets.iter().map(|ticket| ticket.cost);
            let need = costs().fold(0_u64, u64::saturating_add);
            return Some((who, (need, costs().min().unwrap_or(0))));
        }
        None
    }

    /// The entry of `who` has come to an end: hands out its checks, to be asked again.
    pub(super) fn ended(&mut self, who: Who) -> VecDeque<Arc<Ticket>> {
        let Some(waiting) = self.clients.get_mut(&who) else {
            return VecDeque::new();
        };
        waiting.under_way = false;
        let tickets = std::mem::take(&mut waiting.tickets);
        self.waiting -= tickets.len();
        tickets
    }

    /// Every check that waits, because nobody will be asked.
    pub(super) fn all_checks(&mut self) -> Vec<Arc<Ticket>> {
        let mut all = Vec::new();
        for waiting in self.clients.values_mut() {
            all.extend(std::mem::take(&mut waiting.tickets));
        }
        self.waiting = 0;
        all
    }

    /// Forgets a client nobody waits for.
    pub(super) fn forget(&mut self, who: Who) {
        if let Some(waiting) = self.clients.get(&who)
            && waiting.tickets.is_empty()
            && !waiting.under_way
            && !waiting.queued
        {
            self.clients.remove(&who);
        }
    }
}
