//! What was decided about a packet, in one register: reason, mode, and who it was judged by.
//!
//! | bits | meaning |
//! |---|---|
//! | 0..8 | reason |
//! | 8..10 | mode of the policy that decided |
//! | 15 | judged by a policy: the segment counts it |
//! | 16..24 | zone, 255 for a tracked source |
//! | 24..30 | segment |
//! | 32..64 | policy slot |

use ratelimiter_common::verdict::{Mode, Reason, Verdict};

const JUDGED: u64 = 1 << 15;
/// Zone of a tracked source.
pub(crate) const NO_ZONE: u64 = 255;

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Outcome(pub(crate) u64);

impl Outcome {
    /// Decided by no policy.
    #[inline(always)]
    pub(crate) const fn plain(reason: Reason) -> Self {
        Self(reason as u64 | (Mode::Enforce as u64) << 8)
    }

    /// Who judges: everything but reason and mode.
    #[inline(always)]
    pub(crate) const fn label(slot: u32, segment: u32, zone: u64) -> u64 {
        (slot as u64) << 32 | ((segment & 63) as u64) << 24 | zone << 16 | JUDGED
    }

    /// Decided by the policy `label` stands for. `mode` in its two bits.
    #[inline(always)]
    pub(crate) const fn judged(label: u64, reason: Reason, mode: u32) -> Self {
        Self(label | reason as u64 | ((mode & 3) as u64) << 8)
    }

    #[inline(always)]
    pub(crate) const fn reason(self) -> u64 {
        self.0 & 0xff
    }

    #[inline(always)]
    pub(crate) const fn zone(self) -> u64 {
        (self.0 >> 16) & 0xff
    }

    #[inline(always)]
    pub(crate) const fn segment(self) -> Option<u64> {
        if self.0 & JUDGED == 0 {
            None
        } else {
            Some((self.0 >> 24) & 63)
        }
    }

    #[inline(always)]
    pub(crate) const fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether the reason refuses, in any mode.
    #[inline(always)]
    pub(crate) const fn refuses(self) -> bool {
        REFUSING >> (self.reason() & 15) & 1 != 0
    }

    /// Whether somebody else was faster.
    #[inline(always)]
    pub(crate) const fn is_contended(self) -> bool {
        self.reason() == Reason::Contended as u64
    }

    /// What becomes of the packet. `enforce` is the agent's own mode.
    #[inline(always)]
    pub(crate) const fn verdict(self, enforce: bool) -> Verdict {
        if self.refuses() && enforce && (self.0 >> 8) & 3 == Mode::Enforce as u64 {
            Verdict::Drop
        } else {
            Verdict::Pass
        }
    }
}

/// Bit n: reason n refuses.
const REFUSING: u64 = {
    let mut bits = 0;
    let mut rest: &[Reason] = &Reason::ALL;
    while let [reason, tail @ ..] = rest {
        if reason.refuses() {
            bits |= 1 << *reason as u64;
        }
        rest = tail;
    }
    bits
};
