//! Which bits of `PROMOTED` stand for how many promoted sources.
//!
//! The program `merge` sets the bit of a source it promotes; a bit may stand for several sources, so
//! it is cleared here, when the last of them is demoted.

use std::collections::HashMap;

use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::source::promoted_bit;

use super::mmap::Mmap;

/// Promoted sources by bit.
#[derive(Debug, Default)]
pub(super) struct Promoted {
    sources: HashMap<u32, u32>,
}

impl Promoted {
    /// A tracked source was found in adopted tables: it counts as promoted if its bit is set. A
    /// configured source that shares the bit counts too, and then the bit stays for good: it costs
    /// packets a look-up, never a verdict.
    pub(super) fn found(&mut self, bits: &Mmap, key: SourceKey) {
        let bit = promoted_bit(key);
        if bits.word(bit as usize / 64) >> (bit % 64) & 1 != 0 {
            self.promoted(key);
        }
    }

    /// `key` was promoted.
    pub(super) fn promoted(&mut self, key: SourceKey) {
        *self.sources.entry(promoted_bit(key)).or_default() += 1;
    }

    /// `key` was demoted: its bit is cleared if it stands for nobody else.
    pub(super) fn demoted(&mut self, bits: &Mmap, key: SourceKey) {
        let bit = promoted_bit(key);
        let Some(count) = self.sources.get_mut(&bit) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.sources.remove(&bit);
            bits.and_word(bit as usize / 64, !(1 << (bit % 64)));
        }
    }

    /// Whether `key` may be promoted.
    pub(super) fn may_be(&self, key: SourceKey) -> bool {
        self.sources.contains_key(&promoted_bit(key))
    }

    /// Whether nobody is.
    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }
}
