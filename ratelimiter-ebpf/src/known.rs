//! Sources with a bucket of their own, straight on: packets are the only unit, and the entry was resolved
//! in this generation of prefixes. Everything else is the business of `tracked`.

use aya_ebpf::bindings::xdp_md;
use ratelimiter_common::abi::config::flags;
use ratelimiter_common::abi::counters::CpuState;
use ratelimiter_common::abi::policy::PolicyEntry;
use ratelimiter_common::abi::tracked::{DEBT_SLACK_NS, LIMITED, SLOT_MASK, Tracked, binding};
use ratelimiter_common::verdict::{Mode, Reason};

use crate::outcome::{NO_ZONE, Outcome};
use crate::policy::{entry_at, in_force, place_of, segment_ns};
use crate::scratch::{self, Arrival, ONE};
use crate::tracked::{
    ONE_TO_ONE, TAT_MASK, TO_THE_CROWD, cell, count_admitted, count_offered, foreign, pack,
};
use crate::{atomic, limit, lookup};

/// Not an outcome: charge unit by unit.
pub(crate) const GENERAL: u64 = u64::MAX - 3;

/// Whether [`judge_known`] judged.
#[inline(always)]
pub(crate) const fn is_outcome(known: u64) -> bool {
    known < GENERAL
}

/// Judges a packet that was not written down, in the common case: the source of `key` has an entry of
/// its own, resolved in this generation of prefixes, and nothing is limited but packets. [`GENERAL`] in
/// any other, [`TO_THE_CROWD`] if there is no such entry; then nothing was counted or charged.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_known(ctx: *mut xdp_md, key: u64) -> u64 {
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return GENERAL;
    };
    // SAFETY: live map values.
    unsafe {
        let Some(tracked) = lookup::tracked(scratch::of(cpu), key) else {
            return TO_THE_CROWD;
        };
        let bound = atomic::load(&raw const (*tracked).binding);
        let slot = bound as u32 & SLOT_MASK;
        let generation = (*config).prefix_generation;
        if bound != binding(slot, LIMITED, generation) || (*config).flags & flags::GENERIC != 0 {
            return GENERAL;
        }
        let Some(policy) = entry_at(cpu, place_of(cpu, slot)) else {
            return GENERAL;
        };
        let label = Outcome::label(slot, (*policy).segment, NO_ZONE);
        let outcome = charge_packets(cpu, tracked, policy, label, ONE);
        if outcome == GENERAL {
            return GENERAL;
        }
        if !Outcome(outcome).refuses() {
            limit::write_down(ctx, 0);
            let arrival = scratch::arrival(cpu);
            count_admitted(tracked, 1, (*arrival).bytes, Arrival::packet(arrival).syn());
        } else if (*cpu).rereads_left != 0 {
            return GENERAL;
        }
        count_offered(cpu, 1, tracked);
        outcome
    }
}

/// The common case: packets are the only unit, the entry is neither scaled nor widened, its word
/// stands on the policy's clock and nobody else is in the way; [`GENERAL`] in any other.
#[inline(always)]
pub(crate) unsafe fn charge_packets(
    cpu: *mut CpuState,
    tracked: *mut Tracked,
    policy: *const PolicyEntry,
    label: u64,
    cost: u64,
) -> u64 {
    // SAFETY: live map values; entries are immutable.
    unsafe {
        let widened = (*tracked).window_eighths & 55;
        if (*policy).units != 1 || (*tracked).cost_scale as u64 > ONE_TO_ONE || widened != 0 {
            return GENERAL;
        }
        let Some(piece) = in_force(&raw const (*policy).clocks[0].pieces, (*cpu).now_ns) else {
            return GENERAL;
        };
        let piece = &*piece;
        let mode = piece.mode & 3;
        let tag = (*policy).tag;
        let cell = cell(tracked, 0);
        let word = atomic::load(cell);
        if mode == Mode::Off as u32 || foreign(word, tag) != 0 {
            return GENERAL;
        }
        let now = piece.at(segment_ns(cpu, (*policy).segment));
        let distance = word.wrapping_sub(now) & TAT_MASK;
        let idle = word == 0 || distance > piece.debt_cap(DEBT_SLACK_NS);
        let after = if idle { 0 } else { distance } + cost;
        if after > piece.burst {
            return Outcome::judged(label, Reason::OverPackets, mode).0;
        }
        if atomic::swap_if(cell, word, pack(tag, now.wrapping_add(after))) {
            Outcome::judged(label, Reason::Conforming, mode).0
        } else {
            GENERAL
        }
    }
}
