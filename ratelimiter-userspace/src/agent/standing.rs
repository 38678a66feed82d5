//! Where a bucket stands on its clocks, and who set the rule it is under.

use ratelimiter_common::abi::policy::PolicyEntry;
use ratelimiter_common::quota::Unit as CommonUnit;
use ratelimiter_common::vclock::{NEVER, SegmentClock, Speed};
use ratelimiter_common::verdict::Mode as CommonMode;

use super::core::store_error;
use crate::admin::Result;
use crate::admin::views::{DefinedIn, Explanation, RuleKind, UnitState};
use crate::policy::model::Mode;
use crate::policy::resolve::Effective;
use crate::store::{MAX_CHANGES, Store};

/// Nanoseconds of a millisecond.
const MS_NS: u64 = 1_000_000;

/// One moment on three clocks.
pub(super) struct Now {
    pub(super) real_ns: u64,
    pub(super) unix_ms: u64,
    pub(super) segment: SegmentClock,
}

impl Now {
    /// Real time in which the segment's clock moves by `segment_ns`: a segment that is slowed makes
    /// its sources wait longer.
    fn wait_ns(&self, segment_ns: u64) -> u64 {
        let begins = self.segment.pieces.map(|piece| piece.from_ns);
        let (mut from_ns, mut left_ns, mut wait_ns) = (self.real_ns, segment_ns, 0_u64);
        loop {
            let in_force = begins
                .iter()
                .rposition(|begin| *begin <= from_ns)
                .unwrap_or(0);
            let speed = self
                .segment
                .pieces
                .get(in_force)
                .map_or(Speed::ONE, |piece| piece.speed);
            let until_ns = begins.get(in_force + 1).copied().unwrap_or(NEVER);
            let all_ns = speed.time_for(left_ns);
            let stretch_ns = until_ns.saturating_sub(from_ns);
            if until_ns == NEVER || all_ns <= stretch_ns {
                return wait_ns.saturating_add(all_ns);
            }
            wait_ns = wait_ns.saturating_add(stretch_ns);
            left_ns = left_ns.saturating_sub(speed.advance(stretch_ns));
            from_ns = until_ns;
        }
    }
}

/// Where one bucket stands: the piece in force now, and what it owes.
pub(super) fn unit_state(
    entry: &PolicyEntry,
    unit: u32,
    debt: u64,
    effective: Option<&Effective<'_>>,
    now: &Now,
) -> Option<UnitState> {
    let effective = effective?;
    let piece = entry.clocks.get(unit as usize)?.piece(now.real_ns);
    let one = 1_u64 << CommonUnit::from(effective.spec.unit).fraction_bits();
    let free = piece.burst.saturating_sub(debt);
    let wait_ns = now.wait_ns(piece.speed.time_for(one.saturating_sub(free)));
    let retry_after_ns = if free >= one { 0 } else { wait_ns };
    Some(UnitState {
        unit: effective.spec.unit,
        limit: effective.name.to_owned(),
        rate_limit: effective.spec.rate_limit,
        time_window: effective.spec.time_window,
        burst: piece.burst / one,
        mode: match CommonMode::from_abi(piece.mode) {
            CommonMode::Off => Mode::Off,
            CommonMode::Shadow => Mode::Shadow,
            CommonMode::Enforce => Mode::Enforce,
        },
        tokens: free as f64 / one as f64,
        debt: debt as f64 / one as f64,
        retry_after_s: retry_after_ns as f64 / 1e9,
        next_allowed_unix_ms: now.unix_ms.saturating_add(retry_after_ns.div_ceil(MS_NS)),
        reset_after_s: now.wait_ns(piece.speed.time_for(debt)) as f64 / 1e9,
    })
}

/// Completes an explanation with who set its rule and when, if the audit log still knows.
pub(super) fn sign(explanation: &mut Explanation, store: &dyn Store) -> Result<()> {
    let rule = &mut explanation.rule;
    let kind = match rule.kind {
        RuleKind::Client => "clients",
        RuleKind::Segment | RuleKind::Default => "segments",
        RuleKind::Allow => "allow",
        RuleKind::Block => "block",
        RuleKind::Malformed => return Ok(()),
    };
    if rule.defined_in != DefinedIn::Store {
        return Ok(());
    }
    let path = format!("{kind}/{}", rule.name);
    let changes = store.changes(None, MAX_CHANGES).map_err(store_error)?;
    let newest = changes
        .into_iter()
        .map(|change| change.change)
        .find(|change| change.path == path || change.path == "document");
    if let Some(change) = newest {
        rule.set_by = Some(change.by);
        rule.set_at_unix_ms = Some(change.at_unix_ms);
    }
    Ok(())
}
