//! The window algorithms: each keeps its own state, in the store's time, and a window begins with
//! the first request after idleness on any host.

use std::collections::VecDeque;

use super::super::settle::{Answer, MAX_AMOUNT, MAX_LOG};
use super::{Bounded, grant, whole};

/// Part of a window by which two hosts' ideas of its start may differ: 1/64.
const SAME_WINDOW: u64 = 64;

/// Whether what an entry says of a window that began `age_us` ago is about the one that began
/// `elapsed_us` ago. Answers travel, so ages come out too small rather than too large.
fn same_window(entry: &Bounded, elapsed_us: u64) -> bool {
    entry.age_us <= elapsed_us + entry.quota.window_us / SAME_WINDOW
}

/// What is in use once the entry's debt, returns and spend are in; at most twice the limit.
fn charged(used: u64, same: bool, entry: &Bounded) -> u64 {
    let mut used = used;
    if same {
        used = used.max(entry.debt).saturating_sub(entry.returned);
    }
    (used + entry.spend).min(entry.quota.debt_cap())
}

/// `wait_us` of an answer, where `wait` says how long until the least that is taken fits.
fn wait_us(granted: u64, entry: &Bounded, wait: impl FnOnce() -> u64) -> u64 {
    if granted >= entry.least {
        0
    } else if entry.least > entry.quota.limit {
        MAX_AMOUNT
    } else {
        wait().max(1)
    }
}

/// One counter that starts anew when the window is over.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fixed {
    pub(super) start_us: u64,
    pub(super) current: u64,
}

impl Fixed {
    pub(super) fn carried(used: u64, entry: &Bounded) -> Self {
        Self {
            start_us: entry.now_us,
            current: used,
        }
    }

    fn ends(&self, entry: &Bounded) -> u64 {
        let elapsed = entry.now_us.saturating_sub(self.start_us);
        entry.quota.window_us.saturating_sub(elapsed)
    }

    pub(super) fn level(&self, entry: &Bounded) -> u64 {
        if self.ends(entry) == 0 {
            0
        } else {
            self.current
        }
    }

    pub(super) fn idle_after(&self, entry: &Bounded) -> u64 {
        if self.current == 0 {
            0
        } else {
            self.ends(entry)
        }
    }
}

/// The window in force: the one that runs, else one that the entry tells of, else a new one.
fn fixed_now(state: Option<Fixed>, newer: bool, entry: &Bounded) -> Fixed {
    if let Some(mut fixed) = state
        && fixed.current != 0
        && fixed.ends(entry) != 0
    {
        if newer {
            fixed.current = fixed.current.min(entry.quota.limit);
        }
        return fixed;
    }
    let told = entry.debt != 0 && entry.age_us < entry.quota.window_us;
    Fixed {
        start_us: if told {
            entry.now_us.saturating_sub(entry.age_us)
        } else {
            entry.now_us
        },
        current: 0,
    }
}

pub(super) fn settle_fixed(state: Option<Fixed>, newer: bool, entry: &Bounded) -> (Answer, Fixed) {
    let mut fixed = fixed_now(state, newer, entry);
    let same = same_window(entry, entry.now_us.saturating_sub(fixed.start_us));
    fixed.current = charged(fixed.current, same, entry);
    let room = entry.quota.limit.saturating_sub(fixed.current);
    let granted = grant(room, entry);
    fixed.current += granted;
    let ends_us = fixed.ends(entry);
    let answer = Answer {
        level: fixed.current,
        granted,
        wait_us: wait_us(granted, entry, || ends_us),
        ends_us,
        ..Answer::default()
    };
    (answer, fixed)
}

/// Two counters; the previous one counts as far as its window still overlaps the last one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sliding {
    pub(super) start_us: u64,
    pub(super) current: u64,
    pub(super) previous: u64,
}

impl Sliding {
    pub(super) fn carried(used: u64, entry: &Bounded) -> Self {
        Self {
            start_us: entry.now_us,
            current: used,
            previous: 0,
        }
    }

    /// Windows that ended shifted out.
    fn rolled(&self, entry: &Bounded) -> Self {
        let window_us = entry.quota.window_us;
        let elapsed = entry.now_us.saturating_sub(self.start_us);
        if elapsed < window_us && (self.current != 0 || self.previous != 0) {
            return self.clone();
        }
        if elapsed >= window_us && elapsed - window_us < window_us && self.current != 0 {
            return Self {
                start_us: self.start_us + window_us,
                current: 0,
                previous: self.current,
            };
        }
        Self::carried(0, entry)
    }

    fn left(&self, entry: &Bounded) -> u64 {
        let elapsed = entry.now_us.saturating_sub(self.start_us);
        entry.quota.window_us.saturating_sub(elapsed)
    }

    /// `current + previous * left / window`, rounded up, in this order.
    fn weighted(&self, entry: &Bounded) -> u64 {
        let weight = self.previous as f64 * self.left(entry) as f64;
        let weighted = whole(weight / entry.quota.window_us as f64);
        (self.current + weighted).min(MAX_AMOUNT)
    }

    pub(super) fn level(&self, entry: &Bounded) -> u64 {
        self.rolled(entry).weighted(entry)
    }

    pub(super) fn idle_after(&self, entry: &Bounded) -> u64 {
        if self.current != 0 {
            self.left(entry).saturating_add(entry.quota.window_us)
        } else if self.previous != 0 {
            self.left(entry)
        } else {
            0
        }
    }

    /// Until `least` fits: in this window, when the previous count weighs little enough; else in
    /// the next, where today's count is the previous one.
    fn wait(&self, entry: &Bounded) -> u64 {
        let window_us = entry.quota.window_us;
        let room = entry.quota.limit - entry.least;
        let (start_us, old, room) = match room.checked_sub(self.current) {
            Some(room) if self.previous != 0 => (self.start_us, self.previous, room),
            _ => (self.start_us + window_us, self.current, room),
        };
        // Nothing in the way but what is weighted: it may weigh all it does.
        if old == 0 {
            return 1;
        }
        let may_be_left = (room as f64 * window_us as f64 / old as f64).floor();
        let after = window_us.saturating_sub(may_be_left as u64);
        (start_us + after).saturating_sub(entry.now_us)
    }
}

pub(super) fn settle_sliding(
    state: Option<Sliding>,
    newer: bool,
    entry: &Bounded,
) -> (Answer, Sliding) {
    let mut sliding = state.map_or_else(
        || Sliding::carried(0, entry),
        |sliding| sliding.rolled(entry),
    );
    if newer {
        sliding.current = sliding.current.min(entry.quota.limit);
        sliding.previous = sliding.previous.min(entry.quota.limit);
    }
    let idle = sliding.current == 0 && sliding.previous == 0;
    if idle && entry.debt != 0 && entry.age_us < entry.quota.window_us {
        sliding.start_us = entry.now_us.saturating_sub(entry.age_us);
    }
    let same = same_window(entry, entry.now_us.saturating_sub(sliding.start_us));
    sliding.current = charged(sliding.current, same, entry);
    let room = entry.quota.limit.saturating_sub(sliding.weighted(entry));
    let granted = grant(room, entry);
    sliding.current += granted;
    let answer = Answer {
        level: sliding.weighted(entry),
        granted,
        wait_us: wait_us(granted, entry, || sliding.wait(entry)),
        ends_us: sliding.left(entry),
        ..Answer::default()
    };
    (answer, sliding)
}

/// The amounts and times of what was taken; oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Log {
    pub(super) entries: VecDeque<(u64, u64)>,
}

impl Log {
    pub(super) fn carried(used: u64, entry: &Bounded) -> Self {
        let mut log = Self::default();
        log.push(entry.now_us, used);
        log
    }

    fn push(&mut self, at_us: u64, amount: u64) {
        if amount == 0 {
            return;
        }
        match self.entries.back_mut() {
            Some(newest) if newest.0 >= at_us => newest.1 += amount,
            _ => self.entries.push_back((at_us, amount)),
        }
        // The oldest joins the second oldest: it leaves later, never earlier.
        if self.entries.len() > MAX_LOG
            && let Some(oldest) = self.entries.pop_front()
            && let Some(next) = self.entries.front_mut()
        {
            next.1 += oldest.1;
        }
    }

    fn roll(&mut self, entry: &Bounded) {
        while let Some((at_us, _)) = self.entries.front() {
            if entry.now_us.saturating_sub(*at_us) < entry.quota.window_us {
                break;
            }
            self.entries.pop_front();
        }
    }

    fn sum(&self) -> u64 {
        self.entries.iter().map(|(_, amount)| amount).sum()
    }

    pub(super) fn level(&self, entry: &Bounded) -> u64 {
        let mut log = self.clone();
        log.roll(entry);
        log.sum()
    }

    fn leaves(at_us: u64, entry: &Bounded) -> u64 {
        (at_us + entry.quota.window_us).saturating_sub(entry.now_us)
    }

    pub(super) fn idle_after(&self, entry: &Bounded) -> u64 {
        self.entries
            .back()
            .map_or(0, |(at_us, _)| Self::leaves(*at_us, entry))
    }

    /// Takes `amount` off the newest entries.
    fn give_back(&mut self, amount: u64) {
        let mut amount = amount;
        while amount > 0
            && let Some(newest) = self.entries.back_mut()
        {
            let taken = amount.min(newest.1);
            newest.1 -= taken;
            amount -= taken;
            if newest.1 == 0 {
                self.entries.pop_back();
            }
        }
    }

    /// Until so much of the oldest has left that `least` fits.
    fn wait(&self, entry: &Bounded) -> u64 {
        let mut must_leave = (self.sum() + entry.least).saturating_sub(entry.quota.limit);
        for (at_us, amount) in &self.entries {
            if *amount >= must_leave {
                return Self::leaves(*at_us, entry);
            }
            must_leave -= amount;
        }
        1
    }
}

pub(super) fn settle_log(state: Option<Log>, entry: &Bounded) -> (Answer, Log) {
    let mut log = state.unwrap_or_default();
    log.roll(entry);
    let mut used = log.sum();
    if entry.age_us < entry.quota.window_us {
        // What the store has lost is put back where this host knows it to have begun.
        if used < entry.debt {
            let at_us = entry.now_us.saturating_sub(entry.age_us);
            log.entries.push_front((at_us, entry.debt - used));
            log.entries
                .make_contiguous()
                .sort_by_key(|(at_us, _)| *at_us);
            used = entry.debt;
        }
        let returned = entry.returned.min(used);
        log.give_back(returned);
        used -= returned;
    }
    let cap = entry.quota.debt_cap();
    let spend = entry.spend.min(cap.saturating_sub(used));
    log.push(entry.now_us, spend);
    used += spend;
    let granted = grant(entry.quota.limit.saturating_sub(used), entry);
    log.push(entry.now_us, granted);
    used += granted;
    let answer = Answer {
        level: used,
        granted,
        wait_us: wait_us(granted, entry, || log.wait(entry)),
        ends_us: log.idle_after(entry),
        ..Answer::default()
    };
    (answer, log)
}
