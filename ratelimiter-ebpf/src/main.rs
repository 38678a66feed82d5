//! The XDP program: parse, exempt control traffic, look up prefixes, charge a bucket, count.
//!
//! This file holds the programs, the order of the steps and the only `xdp_action`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod bucket;
mod clock;
mod counters;
mod crowd4;
mod crowd6;
mod events;
mod first_seen;
mod inherit;
mod known;
mod limit;
mod lookup;
mod maps;
mod merge;
mod outcome;
mod packet;
mod place;
mod policy;
mod rebind;
mod scratch;
mod straight;
mod tracked;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use ratelimiter_common::verdict::Verdict;

/// Judges one packet.
#[xdp]
fn ratelimiter(ctx: XdpContext) -> u32 {
    action(limit::limit::<false>(&ctx))
}

/// The same, for an agent without CAP_PERFMON.
#[xdp]
fn limiter_guarded(ctx: XdpContext) -> u32 {
    action(limit::limit::<true>(&ctx))
}

#[inline(always)]
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// Changes buckets on behalf of the agent: one batch per test run. Aborts on anything else, and is
/// never attached.
#[xdp]
fn merge(ctx: XdpContext) -> u32 {
    if merge::merge(&ctx) {
        xdp_action::XDP_PASS
    } else {
        xdp_action::XDP_ABORTED
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
