//! Who waits for what: the clients whose units are exchanged, and the checks that wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::Who;
use super::ticket::Ticket;

/// Most clients whose units are exchanged at once.
const MAX_CLIENTS: usize = 1 << 20;
/// Most checks that wait at once.
const MAX_WAITING: usize = 1 << 16;

/// Of many clients one in so many is looked after in a round.
const SHARE: usize = 10;
/// So many always are.
const TURN: usize = 4_096;

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
    /// The same, in the order in which they are looked after.
    ring: VecDeque<Who>,
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
        let waiting = self.clients.entry(who).or_insert_with(|| {
            self.ring.push_back(who);
            Waiting::default()
        });
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

    /// The clients to be looked after now: all of a few, a tenth of many, so that a million does not
    /// hold up those who wait for the store. They come back with [`Queue::stay`], or were forgotten.
    pub(super) fn turn(&mut self) -> Vec<Who> {
        let most = (self.ring.len() / SHARE).max(TURN).min(self.ring.len());
        self.ring.drain(..most).collect()
    }

    /// These are looked after again, after everybody else.
    pub(super) fn stay(&mut self, whos: Vec<Who>) {
        self.ring.extend(whos);
    }

    /// Forgets a client nobody waits for, whose turn it was; whether it is gone.
    pub(super) fn forget(&mut self, who: Who) -> bool {
        if let Some(waiting) = self.clients.get(&who)
            && waiting.tickets.is_empty()
            && !waiting.under_way
            && !waiting.queued
        {
            self.clients.remove(&who);
        }
        !self.clients.contains_key(&who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::identity::ClientKey;
    use crate::limiter::rule::PolicyWord;

    fn who(n: u64) -> Who {
        Who {
            key: ClientKey { place: n, print: n },
            policy: PolicyWord(1),
        }
    }

    #[test]
    fn a_round_takes_a_share_of_many_and_everybody_has_a_turn() {
        let many = 2 * TURN as u64 * SHARE as u64;
        let mut queue = Queue::default();
        for n in 0..many {
            queue.due(who(n));
            while queue.next().is_some() {}
            queue.ended(who(n));
        }
        let mut seen = std::collections::HashSet::new();
        for _ in 0..2 * SHARE {
            let turn = queue.turn();
            assert!(turn.len() <= many as usize / SHARE, "{}", turn.len());
            seen.extend(turn.iter().copied());
            queue.stay(turn);
        }
        assert_eq!(seen.len() as u64, many);
        // Who is forgotten has no turn any more, and one again when it is back.
        let turn = queue.turn();
        let (gone, kept) = turn.split_first().unwrap();
        assert!(queue.forget(*gone));
        queue.stay(kept.to_vec());
        assert_eq!(queue.ring.len() as u64, many - 1);
        queue.due(*gone);
        assert_eq!(queue.ring.len() as u64, many);
        assert!(!queue.forget(*gone), "an entry is due");
    }

    #[test]
    fn a_few_are_all_looked_after_in_every_round() {
        let mut queue = Queue::default();
        for n in 0..TURN as u64 {
            queue.due(who(n));
        }
        assert_eq!(queue.turn().len(), TURN);
    }
}
