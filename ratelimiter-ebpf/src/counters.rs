//! The one exit: every packet is counted here, once, and now and then sampled.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use ratelimiter_common::abi::counters::{CpuState, SAMPLE_SLOTS, Sample};
use ratelimiter_common::verdict::{REASONS, Verdict};

use crate::events;
use crate::maps::{CPU, SAMPLES};
use crate::outcome::Outcome;

/// What a sample tells. Numbers only, no padding: it crosses a call.
#[repr(C)]
pub struct Seen {
    pub(crate) key: u64,
    pub(crate) bytes: u64,
    pub(crate) outcome: u64,
    /// Verdict, family, protocol, flags: one byte each, from the lowest.
    pub(crate) small: u64,
}

/// Counts a packet and its bytes.
#[inline(always)]
pub(crate) unsafe fn count(cpu: *mut CpuState, outcome: Outcome, verdict: Verdict, bytes: u64) {
    // SAFETY: `cpu` is this CPU's map value; indices are masked.
    unsafe {
        let reason = outcome.reason() as usize & (REASONS - 1);
        let count = &raw mut (*cpu).counts[reason][verdict as usize & 1];
        (*count).packets += 1;
        (*count).bytes += bytes;
        if let Some(segment) = outcome.segment() {
            let segment = &raw mut (*cpu).segments[segment as usize & 63];
            if !outcome.refuses() {
                (*segment).conforming += 1;
                (*segment).conforming_bytes += bytes;
            } else if matches!(verdict, Verdict::Drop) {
                (*segment).dropped += 1;
            } else {
                (*segment).shadowed += 1;
            }
        }
    }
}

/// Counts down to the next sample; true when it is due.
#[inline(always)]
pub(crate) unsafe fn sample_is_due(cpu: *mut CpuState) -> bool {
    // SAFETY: as `count`.
    unsafe {
        let left = (*cpu).sample_left.wrapping_sub(1);
        (*cpu).sample_left = left;
        // Wraps before the very first sample.
        left.wrapping_add(1) <= 1
    }
}

/// Writes a sample and draws the next countdown, 1..=63 at random: nobody can hide behind another
/// source's packets.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sample(seen: *const Seen) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return 0;
    };
    if seen.is_null() {
        return 0;
    }
    // SAFETY: not null, so it is on the caller's stack.
    unsafe {
        let weight = (*cpu).sample_weight;
        // 63 of 64 values, drawn again by folding the last one to the middle.
        let random = bpf_get_prandom_u32() & 63;
        let next = if random == 0 { 32 } else { random };
        (*cpu).sample_left = next;
        (*cpu).sample_weight = next;
        let Some(ring) = SAMPLES.get_ptr_mut(aya_ebpf::helpers::bpf_get_smp_processor_id()) else {
            return 0;
        };
        let head = (*ring).head;
        let place = &raw mut (*ring).samples[head as usize & (SAMPLE_SLOTS - 1)];
        let weight = if weight == 0 { 1 } else { weight };
        place.write(describe(cpu, seen, weight));
        // The reader takes the head last of all and discards what may have been overwritten.
        (&raw mut (*ring).head).write_volatile(head + 1);
        0
    }
}

/// Puts a sample together.
#[inline(always)]
pub(crate) unsafe fn describe(cpu: *mut CpuState, seen: *const Seen, weight: u32) -> Sample {
    // SAFETY: as `sample`.
    unsafe {
        let outcome = Outcome((*seen).outcome);
        Sample {
            key: (*seen).key,
            at_ns: (*cpu).now_ns,
            slot: outcome.slot(),
            bytes: (*seen).bytes as u32,
            weight: weight as u16,
            verdict: (*seen).small as u8,
            reason: outcome.reason() as u8,
            family: ((*seen).small >> 8) as u8,
            protocol: ((*seen).small >> 16) as u8,
            zone: if outcome.segment().is_some() {
                outcome.zone() as u8
            } else {
                255
            },
            flags: ((*seen).small >> 24) as u8,
        }
    }
}

/// Reports a drop, at most one per CPU and jiffy.
#[inline(always)]
pub(crate) unsafe fn event_is_due(cpu: *mut CpuState, verdict: Verdict) -> bool {
    // SAFETY: as `count`.
    unsafe { matches!(verdict, Verdict::Drop) && (*cpu).event_jiffies != (*cpu).jiffies }
}

/// See [`event_is_due`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn event(seen: *const Seen) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return 0;
    };
    if seen.is_null() {
        return 0;
    }
    // SAFETY: as `sample`.
    unsafe {
        (*cpu).event_jiffies = (*cpu).jiffies;
        events::send(describe(cpu, seen, 1));
    }
    0
}
