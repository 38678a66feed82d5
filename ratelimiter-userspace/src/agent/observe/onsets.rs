//! Which sources began to be dropped, from the kernel's sampled drop events, in bounded memory and
//! in at most one sentence a second, however many there are.

use std::collections::HashMap;

use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::verdict::{Reason, Verdict};

use crate::agent::state::shown;

/// Who was not dropped for this long begins anew, in nanoseconds.
const QUIET_NS: u64 = 10_000_000_000;
/// Shortest time between two sentences, in nanoseconds.
const PACE_NS: u64 = 1_000_000_000;
/// Sources remembered. Beyond that they are counted and not remembered.
const CAPACITY: usize = 4_096;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Onsets {
    /// When each source was dropped last.
    dropped_ns: HashMap<(SourceKey, u8), u64>,
    /// Those not yet told of: the first one, and how many.
    begun: Option<(Sample, u64)>,
    told_ns: Option<u64>,
}

impl Onsets {
    /// Notes a drop event.
    pub(super) fn note(&mut self, sample: &Sample, now_ns: u64) {
        if sample.verdict != Verdict::Drop as u8 {
            return;
        }
        let id = (sample.key, sample.family);
        let last_ns = self.dropped_ns.get(&id).copied();
        if last_ns.is_some() || self.dropped_ns.len() < CAPACITY {
            self.dropped_ns.insert(id, now_ns);
        }
        if last_ns.is_none_or(|last_ns| now_ns.saturating_sub(last_ns) > QUIET_NS) {
            self.begun.get_or_insert((*sample, 0)).1 += 1;
        }
    }

    /// One sentence on those that began since the last one, if there are any and it is time.
    pub(super) fn tell(&mut self, now_ns: u64, v6_prefix_len: u8) -> Option<String> {
        let is_early = |told_ns: u64| now_ns.saturating_sub(told_ns) < PACE_NS;
        if self.begun.is_none() || self.told_ns.is_some_and(is_early) {
            return None;
        }
        self.told_ns = Some(now_ns);
        self.dropped_ns
            .retain(|_, last_ns| now_ns.saturating_sub(*last_ns) <= QUIET_NS);
        let (first, count) = self.begun.take()?;
        let who = match first.family {
            4 | 6 => shown(first.key, first.family, v6_prefix_len),
            _ => "a frame without a source".to_owned(),
        };
        let why = Reason::from_abi(first.reason).map_or("unknown", Reason::as_str);
        Some(match count {
            0 | 1 => format!("{who} is being dropped: {why}"),
            2 => format!("{who} ({why}) and 1 more source are being dropped"),
            _ => format!(
                "{who} ({why}) and {} more sources are being dropped",
                count - 1
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn drop_of(key: u64) -> Sample {
        Sample {
            key,
            verdict: Verdict::Drop as u8,
            reason: Reason::OverPackets as u8,
            family: 4,
            ..Sample::default()
        }
    }

    #[test]
    fn a_source_is_told_of_once_until_it_was_quiet() {
        let mut onsets = Onsets::default();
        let mut told = Vec::new();
        for second in 0..30 {
            if !(5..=20).contains(&second) {
                onsets.note(&drop_of(0xc000_0201), second * SECOND);
            }
            told.extend(onsets.tell(second * SECOND, 64).map(|text| (second, text)));
        }
        let text = "192.0.2.1 is being dropped: over_packets".to_owned();
        assert_eq!(told, [(0, text.clone()), (21, text)]);
    }

    #[test]
    fn a_flood_is_one_sentence_a_second_and_bounded_memory() {
        let mut onsets = Onsets::default();
        let mut told = 0;
        for quarter in 0..40_u64 {
            let now_ns = quarter * SECOND / 4;
            for source in 0..1_000 {
                onsets.note(&drop_of(quarter * 1_000 + source), now_ns);
            }
            told += u64::from(onsets.tell(now_ns, 64).is_some());
        }
        assert_eq!(told, 10);
        assert!(onsets.dropped_ns.len() <= CAPACITY);
    }

    #[test]
    fn what_passes_is_no_drop() {
        let mut onsets = Onsets::default();
        let passed = Sample {
            verdict: Verdict::Pass as u8,
            ..drop_of(1)
        };
        onsets.note(&passed, 0);
        assert_eq!(onsets.tell(0, 64), None);
    }
}
