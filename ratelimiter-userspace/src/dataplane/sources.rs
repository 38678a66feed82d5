//! Sources that are tracked because the configuration says so.

use ratelimiter_common::abi::merge::{BY_PREFIX, MergeOp, op, result};
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::tracked::{SourceKey, Tracked};

use super::apply::Writer;
use super::loader::Kernel;
use super::{Error, merge};

impl Writer {
    /// Inserts sources that are configured, each with what it owes in the crowd.
    pub(super) fn track(
        &mut self,
        kernel: &Kernel,
        sources: &[(SourceKey, u32)],
    ) -> Result<(), Error> {
        let map = kernel.map(names::TRACKED)?;
        let generation = u64::from(self.config.prefix_generation) << 32;
        let mut inserted = Vec::new();
        for &(key, slot) in sources {
            let value = Tracked {
                binding: generation | u64::from(slot),
                ..Tracked::default()
            };
            if map.insert(&key, &value)? {
                self.tracked += 1;
                inserted.extend(inherits(key));
            }
        }
        // While the prefixes still say where the sources come from.
        merge::run(kernel, &mut inserted)?;
        let there = inserted.iter().filter(|op| op.result == result::DONE);
        self.inherited.extend(there.map(|op| MergeOp {
            slot: op.level as u32,
            ..*op
        }));
        Ok(())
    }

    /// Once more, now that packets find the entries: what was charged in the crowd meanwhile.
    pub(super) fn inherit_again(&mut self, kernel: &Kernel) -> Result<(), Error> {
        merge::run(kernel, &mut std::mem::take(&mut self.inherited))
    }

    /// Deletes sources that are no longer configured; what they owe goes back to the crowd.
    pub(super) fn untrack(&mut self, kernel: &Kernel, sources: &[SourceKey]) -> Result<(), Error> {
        let map = kernel.map(names::TRACKED)?;
        let mut gone: Vec<MergeOp> = sources.iter().filter_map(|&key| leaves(key)).collect();
        merge::run(kernel, &mut gone)?;
        let settled = gone.iter().filter(|op| op.result == result::DONE).count();
        self.tracked = self.tracked.saturating_sub(settled as u64);
        // Those whose debt belongs nowhere: listed ones, shared buckets.
        for key in sources {
            let removed = map.remove(key)?;
            self.tracked = self.tracked.saturating_sub(u64::from(removed));
        }
        Ok(())
    }
}

/// The address family of a source; `None` for a client's shared bucket, which is nobody's in the crowd.
fn family(key: SourceKey) -> Option<u32> {
    match key >> 48 {
        0 => Some(4),
        1 => None,
        _ => Some(6),
    }
}

/// The operation that carries a source's debt over from the crowd.
fn inherits(key: SourceKey) -> Option<MergeOp> {
    Some(MergeOp {
        op: op::INHERIT,
        key,
        family: family(key)?,
        ..MergeOp::default()
    })
}

/// The operation that sends a source back to the crowd.
fn leaves(key: SourceKey) -> Option<MergeOp> {
    Some(MergeOp {
        op: op::DEMOTE,
        slot: BY_PREFIX,
        key,
        family: family(key)?,
        ..MergeOp::default()
    })
}
