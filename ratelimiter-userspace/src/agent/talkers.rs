//! Top talkers: the sources that send most, in bounded memory, from samples.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi 2005): a source that is not in the table takes the
//! place of the smallest and inherits its count as its error, so the count of every listed source
//! is over-estimated by at most `packets_error`.

use std::collections::HashMap;

use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::verdict::Verdict;

/// Sources kept.
pub(super) const CAPACITY: usize = 2_048;
/// Seconds over which rates are averaged.
const AVERAGE_S: f64 = 5.0;

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
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Talkers {
    sources: HashMap<(SourceKey, u8), Talker>,
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
        for talker in self.sources.values_mut() {
            let fresh = std::mem::take(&mut talker.fresh);
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
