//! Top talkers: the sources that send most, in bounded memory, from samples.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi 2005): a source that is not in the table takes the
//! place of the smallest and inherits its count as its error, so the count of every listed source
//! is over-estimated by at most `packets_error`.

use std::collections::{HashMap, VecDeque};

use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::verdict::Verdict;

/// Sources kept.
pub(super) const CAPACITY: usize = 2_048;
/// Seconds over which rates are averaged.
const AVERAGE_S: f64 = 5.0;
/// Seconds of one slice of the last minute.
pub(super) const SLICE_S: f64 = 5.0;
/// Slices of the last minute.
const SLICES: usize = 12;

/// What is known of one source.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Talker {
    /// Its key.
    pub(super) key: SourceKey,
    /// 4 or 6.
    pub(super) family: u8,
    /// Policy slot of the newest sample.
    pub(super) slot: u32,
    /// Reason of the newest sample.
    pub(super) reason: u8,
    /// Packets since it is listed, its predecessor's included.
    pub(super) packets: u64,
    /// Packets it may be over-estimated by.
    pub(super) error: u64,
    /// Packets dropped since it is listed.
    pub(super) dropped: u64,
    /// Newest sample, CLOCK_MONOTONIC in nanoseconds.
    pub(super) seen_ns: u64,
    /// Packets per second.
    pub(super) packets_per_s: f64,
    /// Dropped packets per second.
    pub(super) dropped_per_s: f64,
    /// Bytes per second.
    pub(super) bytes_per_s: f64,
    /// Packets, dropped packets and bytes since the last tick.
    fresh: [u64; 3],
    /// Packets and bytes by [`SLICE_S`] of the last minute; the newest first.
    minute: VecDeque<[u64; 2]>,
}

impl Talker {
    /// Packets and bytes in the last minute, as far as samples tell.
    pub(super) fn last_minute(&self) -> [u64; 2] {
        let sum = |at: usize| self.minute.iter().filter_map(|slice| slice.get(at)).sum();
        [sum(0), sum(1)]
    }
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Talkers {
    sources: HashMap<(SourceKey, u8), Talker>,
    /// Age of the newest slice, in seconds.
    slice_s: f64,
    /// Whole slices observed, at most [`SLICES`].
    slices: usize,
}

impl Talkers {
    /// Notes a sample, which stands for `weight` packets of about its size.
    pub(super) fn note(&mut self, sample: &Sample) {
        if sample.family == 0 {
            return;
        }
        let id = (sample.key, sample.family);
        if !self.sources.contains_key(&id) && self.sources.len() >= CAPACITY {
            self.replace_smallest(id);
        }
        let weight = u64::from(sample.weight.max(1));
        let talker = self.sources.entry(id).or_default();
        talker.key = sample.key;
        talker.family = sample.family;
        talker.slot = sample.slot;
        talker.reason = sample.reason;
        talker.packets += weight;
        talker.seen_ns = talker.seen_ns.max(sample.at_ns);
        let [packets, dropped, bytes] = &mut talker.fresh;
        *packets += weight;
        *bytes += weight * u64::from(sample.bytes);
        if sample.verdict == Verdict::Drop as u8 {
            talker.dropped += weight;
            *dropped += weight;
        }
    }

    fn replace_smallest(&mut self, id: (SourceKey, u8)) {
        let smallest = self
            .sources
            .iter()
            .min_by_key(|(_, talker)| talker.packets)
            .map(|(id, _)| *id);
        if let Some(old) = smallest.and_then(|old| self.sources.remove(&old)) {
            let talker = Talker {
                packets: old.packets,
                error: old.packets,
                ..Talker::default()
            };
            self.sources.insert(id, talker);
        }
    }

    /// Brings the rates up to date, `elapsed_s` after the last time, and forgets who is silent.
    pub(super) fn tick(&mut self, elapsed_s: f64) {
        if elapsed_s <= 0.0 {
            return;
        }
        let keep = (-elapsed_s / AVERAGE_S).exp();
        self.slice_s += elapsed_s;
        let next_slice = self.slice_s >= SLICE_S;
        if next_slice {
            self.slice_s = 0.0;
            self.slices = (self.slices + 1).min(SLICES - 1);
        }
        for talker in self.sources.values_mut() {
            let fresh = std::mem::take(&mut talker.fresh);
            let [packets, _, bytes] = fresh;
            if talker.minute.is_empty() {
                talker.minute.push_front([0; 2]);
            }
            if let Some([in_slice, bytes_in_slice]) = talker.minute.front_mut() {
                *in_slice += packets;
                *bytes_in_slice += bytes;
            }
            if next_slice {
                talker.minute.push_front([0; 2]);
                talker.minute.truncate(SLICES);
            }
            let rates = [
                &mut talker.packets_per_s,
                &mut talker.dropped_per_s,
                &mut talker.bytes_per_s,
            ];
            for (rate, fresh) in rates.into_iter().zip(fresh) {
                *rate = *rate * keep + (1.0 - keep) * fresh as f64 / elapsed_s;
            }
        }
        self.sources.retain(|_, talker| talker.packets_per_s > 1e-3);
    }

    /// Seconds of traffic that [`Talker::last_minute`] stands for.
    pub(super) fn observed_s(&self) -> f64 {
        self.slices as f64 * SLICE_S + self.slice_s
    }

    /// Every source listed, the fastest first.
    pub(super) fn ranking(&self) -> Vec<Talker> {
        let mut talkers: Vec<Talker> = self.sources.values().cloned().collect();
        talkers.sort_by(|a, b| {
            b.packets_per_s
                .total_cmp(&a.packets_per_s)
                .then(a.key.cmp(&b.key))
        });
        talkers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(key: u64, weight: u16, verdict: Verdict) -> Sample {
        Sample {
            key,
            weight,
            bytes: 100,
            verdict: verdict as u8,
            family: 4,
            ..Sample::default()
        }
    }

    #[test]
    fn rates_approach_what_is_sent() {
        let mut talkers = Talkers::default();
        for _ in 0..200 {
            for _ in 0..10 {
                talkers.note(&sample(1, 32, Verdict::Drop));
            }
            talkers.note(&sample(2, 32, Verdict::Pass));
            talkers.tick(0.25);
        }
        let ranking = talkers.ranking();
        assert_eq!(ranking[0].key, 1);
        assert!((ranking[0].packets_per_s - 1_280.0).abs() < 1.0);
        assert!((ranking[0].dropped_per_s - 1_280.0).abs() < 1.0);
        assert!((ranking[1].bytes_per_s - 12_800.0).abs() < 10.0);
        assert!(ranking[1].dropped_per_s.abs() < 1e-9);
    }

    #[test]
    fn the_last_minute_is_kept_and_no_more() {
        let mut talkers = Talkers::default();
        for second in 0..90 {
            talkers.note(&sample(1, 32, Verdict::Pass));
            talkers.tick(1.0);
            let observed_s = talkers.observed_s();
            assert!(observed_s <= 60.0 && observed_s + 0.1 >= f64::from(second + 1).min(55.0));
            let [packets, bytes] = talkers.ranking()[0].last_minute();
            assert!(
                (packets as f64 - 32.0 * observed_s).abs() < 1.0,
                "{packets} {observed_s}"
            );
            assert_eq!(bytes, packets * 100);
        }
    }

    #[test]
    fn memory_is_bounded_and_a_heavy_source_is_never_lost() {
        let mut talkers = Talkers::default();
        for round in 0..200_u64 {
            for spoofed in 0..100 {
                talkers.note(&sample(1_000_000 + round * 100 + spoofed, 1, Verdict::Pass));
            }
            for _ in 0..10 {
                talkers.note(&sample(7, 32, Verdict::Drop));
            }
        }
        assert!(talkers.sources.len() <= CAPACITY);
        let heavy = &talkers.sources[&(7, 4)];
        assert!(heavy.packets - heavy.error <= 200 * 320);
        assert!(heavy.packets >= 200 * 320);
    }
}
