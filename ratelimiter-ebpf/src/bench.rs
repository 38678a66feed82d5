//! Programs for the kernel benchmark: the limiter behind a source generator, and what it is
//! compared with. Never attached, in no agent.
//!
//! A test run repeats one frame, so the source must vary inside the kernel: the generator rewrites
//! it from a counter in the frame's own payload.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(dead_code)]

mod atomic;
mod bucket;
mod clock;
mod counters;
mod crowd4;
mod crowd6;
mod events;
mod first_seen;
mod known;
mod limit;
mod lookup;
mod maps;
mod outcome;
mod packet;
mod place;
mod policy;
mod rebind;
mod scratch;
mod straight;
mod tracked;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_map_update_elem};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use ratelimiter_common::abi::counters::UnitCache;
use ratelimiter_common::crowd::debt;
use ratelimiter_common::parse::plain4;
use ratelimiter_common::verdict::{Reason, Verdict};

use outcome::Outcome;
use packet::Frame;
use scratch::ONE;

/// The rival: one TAT by address.
#[btf_map]
static RIVAL: LruHashMap<u64, u64, 1024> = LruHashMap::new();

/// What the generator keeps in the payload, behind Ethernet, IP and UDP.
#[repr(C, packed)]
struct Generator {
    /// Packets so far.
    counter: u64,
    /// Bits of the source that vary; all ones for a new source each time, else at random among them.
    mask: u32,
    /// The others.
    base: u32,
    /// Where each source is new: log2 of the packets it sends, in turn with 63 others; 0 for one.
    shift: u32,
}

/// Where the generator begins: 14 + 20 + 8 and 14 + 40 + 8.
const V4_AT: usize = 42;
const V6_AT: usize = 62;

/// Where the source lies that varies: the IPv4 address, the second half of the /64's top in IPv6.
const SOURCE_AT: usize = 26;

/// Writes the next source; `at` is where the generator is kept.
#[inline(always)]
fn generate(ctx: &XdpContext, at: usize) -> bool {
    let start = ctx.data();
    if start + at + size_of::<Generator>() > ctx.data_end() {
        return false;
    }
    // SAFETY: compared with the end above, which lies behind the source too.
    unsafe {
        let generator = (start + at) as *mut Generator;
        let counter = (*generator).counter;
        (*generator).counter = counter + 1;
        let mask = (*generator).mask;
        let varied = if mask == u32::MAX {
            match (*generator).shift & 15 {
                0 => counter as u32,
                shift => ((counter >> (6 + shift)) << 6) as u32 | (counter & 63) as u32,
            }
        } else {
            (counter.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 36) as u32 & mask
        };
        let source = (*generator).base.wrapping_add(varied);
        ((start + SOURCE_AT) as *mut u32).write_unaligned(source.to_be());
    }
    true
}

#[inline(always)]
fn generate4(ctx: &XdpContext) -> bool {
    generate(ctx, V4_AT)
}

#[inline(always)]
fn generate6(ctx: &XdpContext) -> bool {
    generate(ctx, V6_AT)
}

/// Drops everything: what a packet costs at least.
#[xdp]
fn empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// The generator alone.
#[xdp]
fn generator(ctx: XdpContext) -> u32 {
    if generate4(&ctx) {
        xdp_action::XDP_DROP
    } else {
        xdp_action::XDP_ABORTED
    }
}

/// Generator and parser.
#[xdp]
fn parser(ctx: XdpContext) -> u32 {
    if !generate4(&ctx) {
        return xdp_action::XDP_ABORTED;
    }
    let Some(cpu) = lookup::cpu() else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: this CPU's map value.
    let packet = unsafe { plain4(&Frame::<false>::of(&ctx, cpu)) };
    if packet.is_some_and(|packet| packet.low != 0) {
        xdp_action::XDP_DROP
    } else {
        xdp_action::XDP_ABORTED
    }
}

#[inline(always)]
fn limited<const GUARDED: bool>(ctx: &XdpContext) -> u32 {
    match limit::limit::<GUARDED>(ctx) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// The limiter, IPv4 sources.
#[xdp]
fn limiter4(ctx: XdpContext) -> u32 {
    if !generate4(&ctx) {
        return xdp_action::XDP_ABORTED;
    }
    limited::<false>(&ctx)
}

/// The same, as it is loaded without CAP_PERFMON.
#[xdp]
fn guarded4(ctx: XdpContext) -> u32 {
    if !generate4(&ctx) {
        return xdp_action::XDP_ABORTED;
    }
    limited::<true>(&ctx)
}

/// The limiter, IPv6 sources.
#[xdp]
fn limiter6(ctx: XdpContext) -> u32 {
    if !generate6(&ctx) {
        return xdp_action::XDP_ABORTED;
    }
    limited::<false>(&ctx)
}

/// The same, as it is loaded without CAP_PERFMON.
#[xdp]
fn guarded6(ctx: XdpContext) -> u32 {
    if !generate6(&ctx) {
        return xdp_action::XDP_ABORTED;
    }
    limited::<true>(&ctx)
}

/// What most limiters are: GCRA in an LRU hash, with our parser and our clock. The quota is that of
/// zone 0.
#[xdp]
fn rival(ctx: XdpContext) -> u32 {
    if !generate4(&ctx) {
        return xdp_action::XDP_ABORTED;
    }
    let Some(cpu) = lookup::cpu() else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: map values live while the program runs.
    unsafe {
        clock::tick(cpu);
        let Some(packet) = plain4(&Frame::<false>::of(&ctx, cpu)) else {
            return xdp_action::XDP_ABORTED;
        };
        let cache = policy::zone_cache(cpu, 0);
        let unit = (&raw const (*cache).unit).cast::<UnitCache>();
        let (now, burst, cap) = ((*unit).now, (*unit).burst, (*unit).cap);
        let key = &raw mut (*scratch::of(cpu)).source;
        key.write_volatile(packet.low);
        let map = (&raw const RIVAL).cast_mut().cast();
        let word: *mut u64 = bpf_map_lookup_elem(map, key.cast()).cast();
        let conforms = if word.is_null() {
            let first = &raw mut (*scratch::arrival(cpu)).hash;
            first.write_volatile(now.wrapping_add(ONE));
            bpf_map_update_elem(map, key.cast(), first.cast(), 0);
            true
        } else {
            let tat = atomic::load(word);
            let after = debt(tat, now, cap, u64::MAX) + ONE;
            after <= burst && atomic::swap_if(word, tat, now.wrapping_add(after))
        };
        let (reason, verdict, action) = if conforms {
            (Reason::Conforming, Verdict::Pass, xdp_action::XDP_PASS)
        } else {
            (Reason::OverPackets, Verdict::Drop, xdp_action::XDP_DROP)
        };
        let bytes = atomic::load(&raw const (*scratch::arrival(cpu)).bytes);
        counters::count(cpu, Outcome::plain(reason), verdict, bytes);
        action
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
