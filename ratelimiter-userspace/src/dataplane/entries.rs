//! Immutable map entries and the index that names the one in force.
//!
//! A change takes a free entry, writes it and swaps the index; an entry is reused [`GRACE_NS`]
//! after it was left, when no CPU can still be reading it. Pure: time is an argument.

use std::collections::VecDeque;

/// How long an entry rests after its index was swapped away, in nanoseconds: one second.
pub(super) const GRACE_NS: u64 = 1_000_000_000;

/// Which entries of a table are in force and which are free. Entry 0 is never handed out.
#[derive(Debug)]
pub(super) struct Entries {
    /// Entry in force by slot; 0 for none.
    current: Vec<u32>,
    /// Free entries and when each may be used, earliest first.
    free: VecDeque<(u32, u64)>,
}

impl Entries {
    /// Takes over a table of `capacity` entries whose index reads `current`. Entries that are not
    /// in force may have been left a moment ago, so they rest from `now_ns` on, unless the table
    /// is fresh.
    pub(super) fn new(current: Vec<u32>, capacity: u32, now_ns: u64, fresh: bool) -> Self {
        let mut used = vec![false; capacity as usize];
        for &entry in &current {
            if let Some(place) = used.get_mut(entry as usize) {
                *place = true;
            }
        }
        let usable_at = if fresh { 0 } else { now_ns + GRACE_NS };
        let free = (1..capacity)
            .filter(|&entry| !used.get(entry as usize).copied().unwrap_or(true))
            .map(|entry| (entry, usable_at))
            .collect();
        Self { current, free }
    }

    /// The entry in force for `slot`; 0 for none.
    pub(super) fn current(&self, slot: u32) -> u32 {
        self.current.get(slot as usize).copied().unwrap_or(0)
    }

    /// The index as it should read.
    pub(super) fn index(&self) -> &[u32] {
        &self.current
    }

    /// Number of slots that have an entry.
    pub(super) fn used(&self) -> usize {
        self.current.iter().filter(|&&entry| entry != 0).count()
    }

    /// Takes a free entry, or says when the next one becomes usable (`None`: never).
    pub(super) fn take(&mut self, now_ns: u64) -> Result<u32, Option<u64>> {
        match self.free.front() {
            None => Err(None),
            Some(&(_, usable_at)) if usable_at > now_ns => Err(Some(usable_at)),
            Some(&(entry, _)) => {
                self.free.pop_front();
                Ok(entry)
            }
        }
    }

    /// Returns an entry that was taken and never swapped in.
    pub(super) fn give_back(&mut self, entry: u32) {
        self.free.push_front((entry, 0));
    }

    /// Notes that `slot` now names `entry`; the one before rests from `now_ns` on.
    pub(super) fn swapped(&mut self, slot: u32, entry: u32, now_ns: u64) {
        if let Some(place) = self.current.get_mut(slot as usize) {
            let before = std::mem::replace(place, entry);
            if before != 0 && before != entry {
                self.free.push_back((before, now_ns + GRACE_NS));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuses_an_entry_one_second_after_it_was_left() {
        let mut entries = Entries::new(vec![0; 2], 3, 0, true);
        let first = entries.take(5).unwrap();
        entries.swapped(0, first, 5);
        let second = entries.take(6).unwrap();
        assert_ne!(first, second);
        entries.swapped(0, second, 6);
        assert_eq!(entries.take(7), Err(Some(6 + GRACE_NS)));
        assert_eq!(entries.take(6 + GRACE_NS), Ok(first));
        assert_eq!(entries.take(u64::MAX), Err(None));
    }

    #[test]
    fn never_hands_out_the_empty_entry_or_one_in_force() {
        let mut entries = Entries::new(vec![2, 0, 4], 6, 100, false);
        assert_eq!(entries.take(100), Err(Some(100 + GRACE_NS)));
        let later = 100 + GRACE_NS;
        let taken: Vec<u32> = std::iter::from_fn(|| entries.take(later).ok()).collect();
        assert_eq!(taken, [1, 3, 5]);
        assert_eq!(entries.used(), 2);
    }

    #[test]
    fn removing_a_slot_frees_its_entry() {
        let mut entries = Entries::new(vec![1], 2, 0, true);
        entries.swapped(0, 0, 50);
        assert_eq!(entries.current(0), 0);
        assert_eq!(entries.take(50 + GRACE_NS), Ok(1));
    }
}
