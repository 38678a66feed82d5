//! Usage of tracked sources, saved so that a reboot refills no bucket.
//!
//! A restart of the agent alone needs none of this: the buckets are in the kernel. After a reboot
//! the tables are new, and what a source owed when it was last saved, less what has drained since,
//! is put back. What was spent after the last save is lost: at most one save interval.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use ratelimiter_common::abi::merge::{MergeOp, op};
use ratelimiter_common::abi::policy::PolicyEntry;
use ratelimiter_common::abi::tracked::{SLOT_MASK, SourceKey, TAT_BITS};
use ratelimiter_common::quota::KERNEL_UNITS;

use super::state::{Shared, View};
use crate::clock;
use crate::dataplane::DataPlane;
use crate::store::{Store, StoreError};

/// Name of the blob.
const NAME: &str = "tracked";
/// First bytes of the blob.
const MAGIC: &[u8; 8] = b"RLUSAGE1";
/// Bytes of one entry: key, unit, debt.
const ENTRY: usize = 8 + 1 + 8;

/// Debts by source and unit, in fractions of a unit, when they were read.
#[derive(Debug, Default, PartialEq)]
struct Saved {
    at_unix_ms: u64,
    debts: Vec<(SourceKey, u8, u64)>,
}

/// Saves what tracked sources owe.
pub(super) fn save(plane: &dyn DataPlane, store: &dyn Store, view: &View) -> Result<(), String> {
    let now_ns = clock::monotonic_ns();
    let mut saved = Saved {
        at_unix_ms: clock::unix_ms(),
        debts: Vec::new(),
    };
    let mut clocks: HashMap<u32, [u64; KERNEL_UNITS]> = HashMap::new();
    plane
        .scan_tracked(&mut |key, tracked| {
            let slot = tracked.binding as u32 & SLOT_MASK;
            let Some(entry) = view.policies.get(&slot) else {
                return;
            };
            let now = clocks
                .entry(slot)
                .or_insert_with(|| readings(entry, view.segment_clock(entry).at(now_ns), now_ns));
            for ((unit, tat), now) in (0..).zip(tracked.tats).zip(now.iter()) {
                if tat >> TAT_BITS == u64::from(entry.tag) {
                    // Serial arithmetic: a TAT is never half of its range away from the clock.
                    let ahead = tat.wrapping_sub(*now) << (64 - TAT_BITS);
                    if (ahead as i64) > 0 {
                        saved.debts.push((key, unit, ahead >> (64 - TAT_BITS)));
                    }
                }
            }
        })
        .map_err(|error| error.to_string())?;
    store
        .save_usage(NAME, &encode(&saved))
        .map_err(|error: StoreError| error.to_string())
}

fn readings(entry: &PolicyEntry, segment_ns: u64, now_ns: u64) -> [u64; KERNEL_UNITS] {
    entry
        .clocks
        .each_ref()
        .map(|clock| clock.piece(now_ns).at(segment_ns))
}

/// Puts back what was saved, less what has drained since. Returns the number of buckets.
pub(super) fn restore(
    plane: &dyn DataPlane,
    store: &dyn Store,
    view: &View,
) -> Result<u64, String> {
    let Some(bytes) = store.load_usage(NAME).map_err(|error| error.to_string())? else {
        return Ok(0);
    };
    let saved = decode(&bytes).ok_or("the saved usage is not readable")?;
    let elapsed_ns = clock::unix_ms()
        .saturating_sub(saved.at_unix_ms)
        .saturating_mul(1_000_000);
    let slots: HashMap<SourceKey, u32> = view.compiled.tracked.iter().copied().collect();
    let now_ns = clock::monotonic_ns();
    let mut ops: Vec<MergeOp> = saved
        .debts
        .iter()
        .filter_map(|(key, unit, debt)| {
            let slot = *slots.get(key)?;
            let piece = view
                .policies
                .get(&slot)?
                .clocks
                .get(usize::from(*unit))?
                .piece(now_ns);
            let level = debt
                .saturating_sub(piece.speed.advance(elapsed_ns))
                .min(piece.burst);
            (level > 0).then(|| MergeOp {
                op: op::RAISE,
                unit: u32::from(*unit),
                key: *key,
                level,
                slot,
                ..MergeOp::default()
            })
        })
        .collect();
    plane.merge(&mut ops).map_err(|error| error.to_string())?;
    Ok(ops.len() as u64)
}

fn encode(saved: &Saved) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + saved.debts.len() * ENTRY);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&saved.at_unix_ms.to_le_bytes());
    for (key, unit, debt) in &saved.debts {
        bytes.extend_from_slice(&key.to_le_bytes());
        bytes.push(*unit);
        bytes.extend_from_slice(&debt.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<Saved> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (at, entries) = rest.split_first_chunk::<8>()?;
    if magic != MAGIC || !entries.len().is_multiple_of(ENTRY) {
        return None;
    }
    let debts = entries
        .chunks_exact(ENTRY)
        .map(|entry| {
            let (key, rest) = entry.split_first_chunk::<8>()?;
            let (unit, debt) = rest.split_first()?;
            let debt = debt.try_into().ok()?;
            Some((u64::from_le_bytes(*key), *unit, u64::from_le_bytes(debt)))
        })
        .collect::<Option<_>>()?;
    Some(Saved {
        at_unix_ms: u64::from_le_bytes(*at),
        debts,
    })
}

/// Puts saved debts back, if the tables are new.
pub(super) async fn put_back(
    shared: &Arc<Shared>,
    plane: &Arc<dyn DataPlane>,
    store: &Arc<dyn Store>,
) -> anyhow::Result<()> {
    let (shared, plane, store) = (Arc::clone(shared), Arc::clone(plane), Arc::clone(store));
    tokio::task::spawn_blocking(move || {
        if plane.health().adopted {
            return;
        }
        let view = shared.view.load_full();
        match restore(plane.as_ref(), store.as_ref(), &view) {
            Ok(0) => {}
            Ok(buckets) => tracing::info!(buckets, "saved usage put back"),
            Err(error) => {
                tracing::error!(%error, "saved usage is not put back: every bucket starts full");
            }
        }
    })
    .await
    .context("restoring usage")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_refuses_what_is_torn() {
        let saved = Saved {
            at_unix_ms: 1_795_255_199_999,
            debts: vec![(0xc000_0201, 0, 256), (1 << 48, 2, u64::MAX >> 8)],
        };
        let bytes = encode(&saved);
        assert_eq!(decode(&bytes), Some(saved));
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(decode(b"RLUSAGE2"), None);
        assert_eq!(decode(b""), None);
    }
}
