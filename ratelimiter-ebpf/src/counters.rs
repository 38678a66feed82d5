//! The one exit: every packet is counted here, once, and now and then sampled.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_smp_processor_id};
use aya_ebpf::programs::XdpContext;
use ratelimiter_common::abi::config::SEGMENTS;
use ratelimiter_common::abi::counters::{
    Count, CpuState, SAMPLE_SLOTS, Sample, SegmentCount, ZoneCache,
};
use ratelimiter_common::parse::Kind;
use ratelimiter_common::verdict::{REASONS, Reason, Verdict};

use crate::atomic::forget;
use crate::maps::SAMPLES;
use crate::outcome::Outcome;
use crate::scratch::{self, Arrival};
use crate::{events, limit, lookup};

/// Counts a packet and its bytes.
#[inline(always)]
pub(crate) unsafe fn count(cpu: *mut CpuState, outcome: Outcome, verdict: Verdict, bytes: u64) {
    // SAFETY: `cpu` is this CPU's map value; indices are masked.
    unsafe {
        // One unknown offset, not a sum of known ones: see `atomic::each_unit`.
        let place = (outcome.reason() << 1) as u32 | verdict as u32;
        let place = forget(place, bytes) as usize & (2 * REASONS - 1);
        let count: *mut Count = (&raw mut (*cpu).counts).cast::<Count>().add(place);
        (*count).packets += 1;
        (*count).bytes += bytes;
        if let Some(segment) = outcome.segment() {
            let which = if !outcome.refuses() {
                0
            } else if matches!(verdict, Verdict::Drop) {
                2
            } else {
                1
            };
            let place = (segment << 2) as u32 | which;
            let place = forget(place, bytes) as usize & (4 * SEGMENTS - 1);
            let counter: *mut u64 = (&raw mut (*cpu).segments).cast::<u64>().add(place);
            *counter += 1;
            if !outcome.refuses() {
                *counter.add(CONFORMING_BYTES) += bytes;
            }
        }
    }
}

/// Where [`SegmentCount::conforming_bytes`] lies, in words behind `conforming`.
const CONFORMING_BYTES: usize = 3;
const _: () = assert!(
    offset_of!(SegmentCount, conforming) == 0
        && offset_of!(SegmentCount, shadowed) == 8
        && offset_of!(SegmentCount, dropped) == 16
        && offset_of!(SegmentCount, conforming_bytes) == 8 * CONFORMING_BYTES
        && size_of::<SegmentCount>() == 32
);

/// Counts a packet of a simple zone that conformed.
#[inline(always)]
pub(crate) unsafe fn conforming(
    ctx: &XdpContext,
    cpu: *mut CpuState,
    cache: *const ZoneCache,
) -> Verdict {
    // SAFETY: both are this CPU's map value; indices are masked.
    unsafe {
        let bytes = (&raw const (*scratch::arrival(cpu)).bytes).read_volatile();
        let count = &raw mut (*cpu).counts[Reason::Conforming as usize][Verdict::Pass as usize];
        (*count).packets += 1;
        (*count).bytes += bytes;
        let label = (*cache).label;
        let segment = &raw mut (*cpu).segments[(label >> 24) as usize & (SEGMENTS - 1)];
        (*segment).conforming += 1;
        (*segment).conforming_bytes += bytes;
        let outcome = Outcome::judged(label, Reason::Conforming, (*cache).modes);
        tell(ctx, cpu, outcome, Verdict::Pass);
    }
    Verdict::Pass
}

/// Counts a packet of a simple zone that is dropped.
#[inline(always)]
pub(crate) unsafe fn over(
    ctx: &XdpContext,
    cpu: *mut CpuState,
    cache: *const ZoneCache,
) -> Verdict {
    // SAFETY: as `conforming`.
    unsafe {
        let bytes = (&raw const (*scratch::arrival(cpu)).bytes).read_volatile();
        let count = &raw mut (*cpu).counts[Reason::OverPackets as usize][Verdict::Drop as usize];
        (*count).packets += 1;
        (*count).bytes += bytes;
        let label = (*cache).label;
        (*cpu).segments[(label >> 24) as usize & (SEGMENTS - 1)].dropped += 1;
        let outcome = Outcome::judged(label, Reason::OverPackets, (*cache).modes);
        tell(ctx, cpu, outcome, Verdict::Drop);
    }
    Verdict::Drop
}

/// Samples the packet and reports a drop, where that is due.
#[inline(always)]
pub(crate) unsafe fn tell(
    ctx: &XdpContext,
    cpu: *mut CpuState,
    outcome: Outcome,
    verdict: Verdict,
) {
    // SAFETY: as `count`.
    unsafe {
        let left = (*cpu).sample_left.wrapping_sub(1);
        (*cpu).sample_left = left;
        // Wraps before the very first sample.
        if left.wrapping_add(1) <= 1 {
            report(ctx.ctx, outcome.0, verdict as u32 | SAMPLE);
        } else if matches!(verdict, Verdict::Drop) && (*cpu).event_jiffies != (*cpu).jiffies {
            report(ctx.ctx, outcome.0, verdict as u32);
        }
    }
}

/// With the verdict for [`report`]: a sample is due.
const SAMPLE: u32 = 2;

/// Writes a sample, if one is due, and reports a drop, at most one per CPU and jiffy.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report(ctx: *mut xdp_md, outcome: u64, verdict: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return 0;
    };
    // SAFETY: this CPU's map value.
    unsafe {
        limit::write_down(ctx, 0);
        if verdict & SAMPLE != 0 {
            sample(cpu, Outcome(outcome), verdict & 1);
        }
        if verdict & 1 == Verdict::Drop as u32 && (*cpu).event_jiffies != (*cpu).jiffies {
            (*cpu).event_jiffies = (*cpu).jiffies;
            events::send(describe(cpu, Outcome(outcome), verdict & 1, 1));
        }
    }
    0
}

/// Writes a sample and draws the next countdown, 1..=63 at random: nobody can hide behind another
/// source's packets.
#[inline(always)]
unsafe fn sample(cpu: *mut CpuState, outcome: Outcome, verdict: u32) {
    // SAFETY: `cpu` is this CPU's map value.
    unsafe {
        let weight = (*cpu).sample_weight;
        // 63 of 64 values, drawn again by folding the last one to the middle.
        let random = bpf_get_prandom_u32() & 63;
        let next = if random == 0 { 32 } else { random };
        (*cpu).sample_left = next;
        (*cpu).sample_weight = next;
        let Some(ring) = lookup::element(&SAMPLES, scratch::of(cpu), bpf_get_smp_processor_id())
        else {
            return;
        };
        let head = (*ring).head;
        let place = &raw mut (*ring).samples[head as usize & (SAMPLE_SLOTS - 1)];
        let weight = if weight == 0 { 1 } else { weight };
        place.write(describe(cpu, outcome, verdict, weight));
        // The reader takes the head last of all and discards what may have been overwritten.
        (&raw mut (*ring).head).write_volatile(head + 1);
    }
}

/// Puts a sample together.
#[inline(always)]
unsafe fn describe(cpu: *mut CpuState, outcome: Outcome, verdict: u32, weight: u32) -> Sample {
    // SAFETY: as `sample`.
    unsafe {
        let arrival = scratch::arrival(cpu);
        let packet = Arrival::packet(arrival);
        let family = match packet.kind() {
            Kind::V4 => 4,
            Kind::V6 => 6,
            _ => 0,
        };
        Sample {
            key: (*arrival).key,
            at_ns: (*cpu).now_ns,
            slot: outcome.slot(),
            bytes: (*arrival).bytes as u32,
            weight: weight as u16,
            verdict: verdict as u8,
            reason: outcome.reason() as u8,
            family,
            protocol: packet.protocol(),
            zone: if outcome.segment().is_some() {
                outcome.zone() as u8
            } else {
                255
            },
            flags: packet.syn() as u8,
        }
    }
}
