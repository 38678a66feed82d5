//! One host's side of the packet plane: which sources are hot, what to settle and when, what the
//! answers mean for the local buckets, and how to go on while the store is away.
//!
//! The host never waits. Whoever drives it reads the local buckets of [`Host::hot`] once an
//! interval, sends what [`Host::due`] says, and does what [`Host::answered`], [`Host::scales`] and
//! [`Host::cold`] ask for. Times are microseconds of this host's monotonic clock.

mod detect;
mod members;
mod part;
mod words;

use std::collections::HashMap;

use ratelimiter_common::quota::KERNEL_UNITS;

use self::detect::Detector;
pub use self::members::Members;
use self::part::Part;
pub use self::part::{LEAST, PART_BITS, WHOLE};
use self::words::Sent;
pub use self::words::{Exchange, Figures, Id, Raise, Reading, Rule, Scale, Tuning};
use super::beat::{BEAT_US, Beat, Fleet, HOT_US, HotSource, MAX_HOT};
use super::loss::{OnStoreLoss, Share};
use super::settle::{Entry, FleetQuota, MAX_BATCH, Settled};

/// Intervals without an answer after which a host is apart.
const ALONE_AFTER: u64 = 3;
/// A key is settled at least this often, whatever the load, as far as one interval's most allows.
const OVERDUE_US: u64 = 900_000;
/// A source is looked at for demotion this often, in microseconds: 10 s.
const COLD_US: u64 = 10_000_000;
/// A hot source is announced again after this long.
const ANNOUNCE_US: u64 = 5_000_000;
/// How often a source that is hot elsewhere is looked for here.
const PROBE_US: u64 = 1_000_000;

/// One unit of a hot source.
#[derive(Clone, Debug)]
struct Key {
    /// The counter at the last exchange.
    spent: u64,
    settled_us: u64,
    heard_us: Option<u64>,
    /// When the first exchange since the last answer was sent that got none: what was spent since is
    /// old once the host is apart, and only what is still owed of it is sent.
    failed_us: Option<u64>,
    /// The same, of exchanges of which others were answered: this key's part of the store is away.
    lost_us: Option<u64>,
    part: Part,
    /// Since when [`Key::spent_since`] adds up.
    since_us: u64,
    /// What the fleet spent since, and whether that was below a quarter of the threshold the last
    /// time the window closed.
    spent_since: u64,
    cold: bool,
    on_loss: OnStoreLoss,
}

/// A hot source.
#[derive(Clone, Debug, Default)]
struct Source {
    units: [Option<Key>; KERNEL_UNITS],
    /// When anybody announced it.
    announced_us: Option<u64>,
    /// When it last spent here.
    spent_us: u64,
    /// The part its clock runs at; 0 reads as [`WHOLE`].
    scale: u32,
    /// Nobody knows whether it does: the kernel refused.
    unsure: bool,
}

/// The host.
#[derive(Clone, Debug)]
pub struct Host {
    id: u64,
    tuning: Tuning,
    detector: Detector,
    members: Members,
    hot: HashMap<HotSource, Source>,
    /// Hot elsewhere and not found here yet: when it was announced, when it was looked for.
    elsewhere: HashMap<HotSource, [u64; 2]>,
    /// The first of the questions since the last answer that have none.
    asked_us: Option<u64>,
    was_scaled: bool,
    /// Some keys were not answered although others were.
    was_lost: bool,
    beat_us: Option<u64>,
    cursor_us: u64,
    /// Intervals it takes to settle every key that has something to say, as last seen.
    stretch: u64,
    refused: u64,
}

impl Host {
    /// A host that knows nobody yet. `id` is its name in the registry.
    #[must_use]
    pub fn new(id: u64, tuning: Tuning) -> Self {
        Self {
            id,
            tuning,
            detector: Detector::default(),
            members: Members::remembering(1),
            hot: HashMap::new(),
            elsewhere: HashMap::new(),
            asked_us: None,
            was_scaled: false,
            was_lost: false,
            beat_us: None,
            cursor_us: 0,
            stretch: 1,
            refused: 0,
        }
    }

    /// The same, knowing how many hosts the fleet had when this one knew last: what `strict` goes by
    /// before the store has answered.
    #[must_use]
    pub fn remembering(mut self, known: u32) -> Self {
        self.members = Members::remembering(known);
        self
    }

    /// Notes a sample of admitted packets: it stands for `amount` of `source`, whose rule is
    /// `quota`. Returns whether the source is to be tracked and [`Host::heat`]ed.
    pub fn sampled(
        &mut self,
        now_us: u64,
        source: HotSource,
        amount: u64,
        quota: &FleetQuota,
    ) -> bool {
        if let Some(hot) = self.hot.get_mut(&source) {
            hot.spent_us = now_us;
            return false;
        }
        if self.elsewhere.contains_key(&source) {
            return true;
        }
        let threshold = self.threshold(quota);
        self.detector.note(now_us, source, amount, threshold)
    }

    /// What a source must admit in a second to be hot: its limit over twice the hosts.
    fn threshold(&self, quota: &FleetQuota) -> u64 {
        quota.in_time(1_000_000) / (2 * u64::from(self.members.live()))
    }

    /// The source is tracked here and hot from now on. False if there are too many.
    pub fn heat(&mut self, now_us: u64, source: HotSource) -> bool {
        if self.hot.len() >= self.tuning.max_hot && !self.hot.contains_key(&source) {
            self.refused += 1;
            return false;
        }
        let announced_us = self.elsewhere.remove(&source).map(|[at_us, _]| at_us);
        self.hot.entry(source).or_insert_with(|| Source {
            announced_us,
            spent_us: now_us,
            ..Source::default()
        });
        true
    }

    /// The source is no longer tracked here.
    pub fn cool(&mut self, source: HotSource) {
        self.hot.remove(&source);
    }

    /// The hot sources, in no order.
    pub fn hot(&self) -> impl Iterator<Item = HotSource> {
        self.hot.keys().copied()
    }

    /// Whether a source is hot here.
    #[must_use]
    pub fn is_hot(&self, source: HotSource) -> bool {
        self.hot.contains_key(&source)
    }

    /// Sources that are hot elsewhere and are to be looked for here, at most `most`: who is found is
    /// to be tracked and heated.
    pub fn probes(&mut self, now_us: u64, most: usize) -> Vec<HotSource> {
        self.elsewhere
            .retain(|_, [announced_us, _]| now_us.saturating_sub(*announced_us) <= HOT_US);
        let due = self
            .elsewhere
            .iter_mut()
            .filter(|(_, [_, looked_us])| now_us.saturating_sub(*looked_us) >= PROBE_US);
        due.take(most)
            .map(|(source, [_, looked_us])| {
                *looked_us = now_us;
                *source
            })
            .collect()
    }

    /// What to settle now, in batches, from the readings of the hot sources: what is overdue first,
    /// then the largest spenders. What does not fit into an interval is left for the next.
    pub fn due(&mut self, now_us: u64, readings: &[Reading]) -> Vec<Exchange> {
        let strict = self.members.strict(false);
        let hosts = 2 * u64::from(self.members.live());
        let mut due = Vec::with_capacity(readings.len());
        for reading in readings {
            let Some(source) = self.hot.get_mut(&reading.id.source) else {
                continue;
            };
            let Some(place) = source.units.get_mut(usize::from(reading.id.unit)) else {
                continue;
            };
            let key = place.get_or_insert_with(|| Key::new(now_us, reading));
            key.on_loss = reading.rule.on_loss;
            if reading.spent < key.spent {
                key.spent = 0;
            }
            let spend = reading.spent - key.spent;
            if spend > 0 {
                source.spent_us = now_us;
            }
            let overdue = now_us.saturating_sub(key.settled_us) >= OVERDUE_US;
            if spend == 0 && reading.owed == 0 && !overdue {
                continue;
            }
            // Comparable between units: the spend as a share of the limit.
            let share = (u128::from(spend) << 32) / u128::from(reading.rule.quota.limit.max(1));
            due.push((overdue, share, reading, spend));
        }
        self.stretch = due.len().div_ceil(self.tuning.per_interval.max(1)).max(1) as u64;
        if due.len() > self.tuning.per_interval {
            due.select_nth_unstable_by(self.tuning.per_interval, |a, b| {
                (b.0, b.1).cmp(&(a.0, a.1))
            });
            due.truncate(self.tuning.per_interval);
        }
        let alone_us = ALONE_AFTER * self.stretch * self.tuning.interval_us;
        let mut exchanges = Vec::with_capacity(due.len().div_ceil(MAX_BATCH));
        for chunk in due.chunks(MAX_BATCH) {
            let mut exchange = Exchange {
                sent_us: now_us,
                ..Exchange::default()
            };
            for (_, _, reading, spend) in chunk {
                let Some(key) = self.key(reading.id) else {
                    continue;
                };
                let gap_us = now_us.saturating_sub(key.settled_us);
                key.spent = reading.spent;
                key.settled_us = now_us;
                let apart = |at_us| now_us.saturating_sub(at_us) >= alone_us;
                let old = key.heard_us.is_none() || key.failed_us.is_some_and(apart);
                let said = if old {
                    (*spend).min(reading.owed)
                } else {
                    *spend
                };
                let mut quota = reading.rule.quota;
                if reading.rule.on_loss == OnStoreLoss::Strict {
                    quota.limit = strict.of_amount(quota.limit);
                }
                let debt = reading.owed.saturating_sub(said);
                exchange
                    .entries
                    .push(Entry::charge(reading.rule.key, quota, said, debt));
                exchange.keys.push(Sent {
                    id: reading.id,
                    spend: *spend,
                    owed: reading.owed,
                    one: reading.rule.one,
                    quarter: reading.rule.quota.in_time(1_000_000) / hosts / 4,
                    drained: quota.in_time(gap_us),
                });
            }
            exchanges.push(exchange);
        }
        if !exchanges.is_empty() {
            self.asked_us.get_or_insert(now_us);
        }
        exchanges
    }

    fn key(&mut self, id: Id) -> Option<&mut Key> {
        let source = self.hot.get_mut(&id.source)?;
        source.units.get_mut(usize::from(id.unit))?.as_mut()
    }

    /// The answers to an exchange: which local buckets are to be raised.
    pub fn answered(&mut self, now_us: u64, exchange: &Exchange, settled: &Settled) -> Vec<Raise> {
        self.asked_us = None;
        // The level is as old as the way back was long: about half of the whole way. What drained
        // meanwhile is not owed any more.
        let way_us = now_us.saturating_sub(exchange.sent_us) / 2;
        let mut raises = Vec::new();
        self.was_lost |= !settled.lost.is_empty();
        let sent = exchange.keys.iter().zip(&exchange.entries);
        for (place, (sent, entry)) in sent.enumerate() {
            let Some(key) = self.key(sent.id) else {
                continue;
            };
            let Some(answer) = settled.answer(place) else {
                // Whether it was charged is not known: it is never sent again.
                key.unanswered();
                key.lost_us.get_or_insert(exchange.sent_us);
                continue;
            };
            key.lost_us = None;
            if answer.outdated {
                continue;
            }
            let known = key.heard_us.replace(now_us).is_some();
            key.failed_us = None;
            let more = key
                .part
                .note(now_us, entry.spend, answer.fleet_spend, sent.one);
            key.spent_since += more;
            let age_us = now_us.saturating_sub(key.since_us);
            if age_us >= COLD_US {
                let per_s = u128::from(key.spent_since) * 1_000_000 / u128::from(age_us);
                key.cold = per_s < u128::from(sent.quarter.max(1));
                key.since_us = now_us;
                key.spent_since = 0;
            }
            // Nobody else spent: then the local bucket is the truth, and the store's level may be
            // higher by what drained while the spend was not known there.
            let own = known && more == entry.spend && answer.level <= sent.owed + sent.drained;
            if answer.level > sent.owed && !own {
                raises.push(Raise {
                    id: sent.id,
                    level: answer.level.saturating_sub(entry.quota.in_time(way_us)),
                });
            }
        }
        raises
    }

    /// There will be no answer. `sent` says whether the store may have seen the exchange: then its
    /// spend is never sent again.
    pub fn unanswered(&mut self, exchange: &Exchange, sent: bool) {
        for gone in &exchange.keys {
            if let Some(key) = self.key(gone.id) {
                key.unanswered();
                if !sent {
                    key.spent = key.spent.saturating_sub(gone.spend);
                }
            }
        }
    }

    /// Whether the store has been silent for so long that this host is on its own.
    #[must_use]
    pub fn is_apart(&self, now_us: u64) -> bool {
        self.asked_us.is_some_and(|at_us| {
            now_us.saturating_sub(at_us) >= ALONE_AFTER * self.tuning.interval_us
        })
    }

    /// The sources whose clocks are to run at another part than they do: under `hold` while this
    /// host is apart, under `strict` also while others are.
    pub fn scales(&mut self, now_us: u64) -> Vec<Scale> {
        let apart = self.is_apart(now_us);
        let strict = self.members.strict(apart);
        if !apart && !self.was_scaled && !self.was_lost && strict.parts == strict.of {
            return Vec::new();
        }
        let alone_us = ALONE_AFTER * self.tuning.interval_us;
        let lost = |key: &Key| {
            let lost_us = key.lost_us;
            lost_us.is_some_and(|at_us| now_us.saturating_sub(at_us) >= alone_us)
        };
        self.was_lost = false;
        let strict = (strict.of_amount(u64::from(WHOLE)) as u32).max(LEAST);
        self.was_scaled = false;
        let mut scales = Vec::new();
        for (source, hot) in &mut self.hot {
            let part = hot.wanted(|key| apart || lost(key), strict);
            let now = if hot.scale == 0 { WHOLE } else { hot.scale };
            self.was_scaled |= part != WHOLE;
            self.was_lost |= hot.units.iter().flatten().any(|key| key.lost_us.is_some());
            if part != now || hot.unsure {
                hot.unsure = false;
                hot.scale = part;
                scales.push(Scale {
                    source: *source,
                    part,
                });
            }
        }
        scales
    }

    /// The kernel did not scale this source: it is tried again.
    pub fn unscaled(&mut self, source: HotSource) {
        if let Some(hot) = self.hot.get_mut(&source) {
            hot.unsure = true;
            self.was_scaled = true;
        }
    }

    /// Whether a source's clock may run at another part than [`WHOLE`]: to be undone before it is
    /// cooled, if it stays tracked.
    #[must_use]
    pub fn is_scaled(&self, source: HotSource) -> bool {
        let hot = self.hot.get(&source);
        hot.is_some_and(|hot| hot.unsure || !matches!(hot.scale, 0 | WHOLE))
    }

    /// What policies under `strict` give now, on this host: a share of the limit's rate.
    #[must_use]
    pub fn strict(&self, now_us: u64) -> Share {
        self.members.strict(self.is_apart(now_us))
    }

    /// Sources that have been cold everywhere for long enough. Whoever is back in the crowd, or was
    /// configured to be tracked, is to be [`Host::cool`]ed.
    pub fn cold(&self, now_us: u64) -> Vec<HotSource> {
        if self.is_apart(now_us) {
            return Vec::new();
        }
        let cold = |hot: &Source| hot.units.iter().flatten().all(|key| key.cold);
        let stays = |hot: &Source| now_us.saturating_sub(hot.spent_us) < COLD_US;
        self.hot
            .iter()
            .filter(|(_, hot)| cold(hot) && (hot.units.iter().any(Option::is_some) || !stays(hot)))
            .map(|(source, _)| *source)
            .collect()
    }

    /// The beat that is due, if one is: once a second, and when there is something to announce.
    pub fn beat(&mut self, now_us: u64) -> Option<Beat> {
        let mut hot = Vec::new();
        for (source, state) in &mut self.hot {
            let fresh = |at_us: u64| now_us.saturating_sub(at_us) < ANNOUNCE_US;
            if hot.len() < MAX_HOT
                && !state.announced_us.is_some_and(fresh)
                && fresh(state.spent_us)
            {
                state.announced_us = Some(now_us);
                hot.push(*source);
            }
        }
        let due = self
            .beat_us
            .is_none_or(|at_us| now_us.saturating_sub(at_us) >= BEAT_US);
        if hot.is_empty() && !due {
            return None;
        }
        self.beat_us = Some(now_us);
        self.asked_us.get_or_insert(now_us);
        Some(Beat {
            host: self.id,
            leaving: false,
            hot,
            cursor_us: self.cursor_us,
            most: MAX_HOT,
        })
    }

    /// The answer to a beat.
    pub fn beaten(&mut self, now_us: u64, fleet: &Fleet) {
        self.asked_us = None;
        self.members.note(now_us, fleet);
        self.cursor_us = fleet.cursor_us;
        for source in &fleet.hot {
            if let Some(hot) = self.hot.get_mut(source) {
                hot.announced_us = Some(now_us);
            } else if self.elsewhere.len() < self.tuning.max_hot {
                let seen = self.elsewhere.entry(*source).or_insert([now_us, 0]);
                seen[0] = now_us;
            }
        }
    }

    /// A beat got no answer: what it announced is announced again with the next.
    pub fn unbeaten(&mut self, beat: &Beat) {
        for source in &beat.hot {
            if let Some(hot) = self.hot.get_mut(source) {
                hot.announced_us = None;
            }
        }
    }

    /// Figures for status and metrics.
    #[must_use]
    pub fn figures(&self, now_us: u64) -> Figures {
        Figures {
            hot: self.hot.len() as u64,
            elsewhere: self.elsewhere.len() as u64,
            refused: self.refused,
            stretch: self.stretch,
            known: self.members.known(),
            live: self.members.live(),
            apart: self.is_apart(now_us),
        }
    }
}

impl Key {
    fn new(now_us: u64, reading: &Reading) -> Self {
        Self {
            spent: reading.spent,
            settled_us: 0,
            heard_us: None,
            failed_us: None,
            lost_us: None,
            part: Part::new(now_us),
            since_us: now_us,
            spent_since: 0,
            cold: false,
            on_loss: reading.rule.on_loss,
        }
    }

    /// An exchange got no answer. The fleet's spend is unknown for a while: that is no sign of a quiet
    /// source.
    fn unanswered(&mut self) {
        self.cold = false;
        self.failed_us.get_or_insert(self.settled_us);
    }
}

impl Source {
    /// The part its clock shall run at: the largest of its units', so that no unit that is shared
    /// otherwise denies it.
    fn wanted(&self, apart: impl Fn(&Key) -> bool, strict: u32) -> u32 {
        let part = |key: &Key| match key.on_loss {
            OnStoreLoss::Hold if apart(key) && key.heard_us.is_some() => key.part.part(),
            OnStoreLoss::Strict => strict,
            _ => WHOLE,
        };
        self.units.iter().flatten().map(part).max().unwrap_or(WHOLE)
    }
}

#[cfg(test)]
mod tests;
