//! What this host believes of the others.

use super::super::beat::Fleet;
use super::super::loss::Share;

/// An answer that knows of fewer hosts than the one before is believed after this long: the registry
/// of a store that was emptied fills within a beat.
const BELIEVED_US: u64 = 2_000_000;

/// How many hosts there are, as far as this one believes.
#[derive(Clone, Debug)]
pub struct Members {
    known: u32,
    live: u32,
    /// Since when answers have named fewer known hosts.
    fewer_since_us: Option<u64>,
}

impl Members {
    /// Before the first answer: `known` hosts, as this one remembers, 1 or more; all live.
    #[must_use]
    pub const fn remembering(known: u32) -> Self {
        let known = if known == 0 { 1 } else { known };
        Self {
            known,
            live: known,
            fewer_since_us: None,
        }
    }

    /// Takes in what the registry says.
    pub fn note(&mut self, now_us: u64, fleet: &Fleet) {
        let live = fleet.live.max(1);
        let known = fleet.known.max(live);
        if known < self.known {
            let since_us = *self.fewer_since_us.get_or_insert(now_us);
            if now_us.saturating_sub(since_us) < BELIEVED_US {
                return;
            }
        }
        self.live = live;
        self.known = known;
        self.fewer_since_us = None;
    }

    /// Hosts that are not forgotten, 1 or more.
    #[must_use]
    pub const fn known(&self) -> u32 {
        self.known
    }

    /// Hosts that live, 1 or more.
    #[must_use]
    pub const fn live(&self) -> u32 {
        self.live
    }

    /// What `strict` gives: one part if alone, else those of the hosts that live.
    #[must_use]
    pub const fn strict(&self, apart: bool) -> Share {
        Share::new(if apart { 1 } else { self.live }, self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(known: u32, live: u32) -> Fleet {
        Fleet {
            known,
            live,
            ..Fleet::default()
        }
    }

    #[test]
    fn strict_gives_up_the_parts_of_who_is_absent() {
        let mut members = Members::remembering(1);
        assert_eq!(members.strict(true), Share::WHOLE);
        members.note(0, &fleet(3, 3));
        assert_eq!(members.strict(false), Share::new(3, 3));
        assert_eq!(members.strict(true), Share::new(1, 3));
        members.note(1, &fleet(3, 2));
        assert_eq!(members.strict(false), Share::new(2, 3));
    }

    #[test]
    fn a_host_that_starts_without_the_store_takes_the_part_it_remembers() {
        let mut members = Members::remembering(4);
        assert_eq!(members.strict(true), Share::new(1, 4));
        assert_eq!(members.strict(false), Share::new(4, 4));
        // The registry fills again: it is not believed at once that the others are gone.
        members.note(0, &fleet(1, 1));
        assert_eq!(members.known(), 4);
        members.note(BELIEVED_US, &fleet(2, 2));
        assert_eq!(members.strict(true), Share::new(1, 2));
    }

    #[test]
    fn an_emptied_registry_does_not_hide_hosts_and_one_that_left_is_forgotten() {
        let mut members = Members::remembering(0);
        members.note(0, &fleet(3, 3));
        members.note(1, &fleet(1, 1));
        assert_eq!((members.known(), members.live()), (3, 3));
        members.note(2, &fleet(3, 3));
        members.note(3, &fleet(2, 2));
        members.note(3 + BELIEVED_US, &fleet(2, 2));
        assert_eq!(members.strict(false), Share::new(2, 2));
    }
}
