//! Packet bytes, as the verifier wants them read.
//!
//! Without CAP_PERFMON a packet pointer moves by constants only, and two of them are never
//! subtracted. So what stands at a constant offset is compared with the end and loaded
//! ([`Frame`]), anything else is copied by a helper ([`Far`]), and the frame's length is found by
//! halving.

use core::arch::asm;

use aya_ebpf::helpers::generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use ratelimiter_common::abi::counters::CpuState;
use ratelimiter_common::parse::{Bytes, Packet};

use crate::lookup;
use crate::scratch::{self, Arrival, FAR_BYTES, Scratch};

/// Frames shorter than this are measured by halving, in some 3 ns; longer ones by a helper, in 7.
const HALVED: usize = 2_048;

/// A frame between two packet pointers. `GUARDED` is for a program loaded without CAP_PERFMON, which
/// must not subtract one from the other.
pub(crate) struct Frame<const GUARDED: bool> {
    start: usize,
    end: usize,
    length: u64,
    far: Far,
}

/// A frame read through a helper, at any offset.
#[derive(Clone, Copy)]
pub(crate) struct Far {
    ctx: *mut aya_ebpf::bindings::xdp_md,
    cpu: *mut CpuState,
}

impl<const GUARDED: bool> Frame<GUARDED> {
    /// Measures the frame and stores its length in the scratch.
    ///
    /// # Safety
    ///
    /// `cpu` is this CPU's map value.
    #[inline(always)]
    pub(crate) unsafe fn of(ctx: &XdpContext, cpu: *mut CpuState) -> Self {
        let (start, end) = (ctx.data(), ctx.data_end());
        // SAFETY: a live map value.
        let length = unsafe {
            let cell = &raw mut (*scratch::arrival(cpu)).bytes;
            if GUARDED {
                if start + HALVED <= end {
                    scratch::put(cell, bpf_xdp_get_buff_len(ctx.ctx));
                } else {
                    scratch::put(cell, halve(start, end));
                }
                // Read back, so that the verifier sees one unknown number and not two thousand.
                cell.read_volatile()
            } else {
                let length = subtract(end, start);
                scratch::put(cell, length);
                length
            }
        };
        if GUARDED {
            // Anew: pointers of which halving found nothing out.
            // SAFETY: as the caller promises.
            return unsafe { Self::measured(ctx, cpu) };
        }
        Self {
            start,
            end,
            length,
            far: Far { ctx: ctx.ctx, cpu },
        }
    }

    /// The frame that was measured already.
    ///
    /// # Safety
    ///
    /// `cpu` is this CPU's map value.
    #[inline(always)]
    pub(crate) unsafe fn measured(ctx: &XdpContext, cpu: *mut CpuState) -> Self {
        // SAFETY: a live map value.
        let length = unsafe { (&raw const (*scratch::arrival(cpu)).bytes).read_volatile() };
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
            length,
            far: Far { ctx: ctx.ctx, cpu },
        }
    }
}

/// Returns the distance of two packet pointers. In 64 bits: of a pointer, the verifier lets nobody
/// take half.
#[inline(always)]
fn subtract(end: usize, start: usize) -> u64 {
    let length: u64;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{end} -= {start}",
            start = in(reg) start,
            end = inout(reg) end => length,
            options(pure, nomem, nostack),
        );
    }
    length
}

/// Returns the distance of two packet pointers that are less than [`HALVED`] apart.
#[inline(always)]
fn halve(start: usize, end: usize) -> u64 {
    let length: u64;
    // SAFETY: arithmetic and comparisons on registers.
    unsafe {
        asm!(
            "{length} = 0",
            "{past} = {at}", "{past} += 1024", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 1024",
            "{past} = {at}", "{past} += 512", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 512",
            "{past} = {at}", "{past} += 256", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 256",
            "{past} = {at}", "{past} += 128", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 128",
            "{past} = {at}", "{past} += 64", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 64",
            "{past} = {at}", "{past} += 32", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 32",
            "{past} = {at}", "{past} += 16", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 16",
            "{past} = {at}", "{past} += 8", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 8",
            "{past} = {at}", "{past} += 4", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 4",
            "{past} = {at}", "{past} += 2", "if {past} > {end} goto +2",
            "{at} = {past}", "{length} += 2",
            "{past} = {at}", "{past} += 1", "if {past} > {end} goto +1",
            "{length} += 1",
            length = out(reg) length,
            past = out(reg) _,
            at = inout(reg) start => _,
            end = in(reg) end,
            options(pure, nomem, nostack),
        );
    }
    length
}

impl<const GUARDED: bool> Bytes for Frame<GUARDED> {
    type Far = Far;

    #[inline(always)]
    fn length(&self) -> u32 {
        self.length as u32
    }

    #[inline(always)]
    fn half(&self, at: u32) -> Option<u16> {
        let here = self.start + at as usize;
        if here + 2 > self.end {
            return None;
        }
        // SAFETY: both bytes lie inside the packet, as compared above and seen by the verifier.
        Some(u16::from_be(unsafe {
            (here as *const u16).read_unaligned()
        }))
    }

    #[inline(always)]
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let here = self.start + at as usize;
        if here + 4 * N > self.end {
            return None;
        }
        let mut words = [0; N];
        for (n, word) in words.iter_mut().enumerate() {
            // SAFETY: as above.
            *word = u32::from_be(unsafe { ((here + 4 * n) as *const u32).read_unaligned() });
        }
        Some(words)
    }

    #[inline(always)]
    fn far(&self) -> Far {
        self.far
    }

    #[inline(always)]
    fn place<'a>(&self, packet: &'a mut Packet) -> &'a mut Packet {
        match lookup::cpu() {
            // SAFETY: this CPU's map value, where `packet` lies.
            Some(cpu) => unsafe { &mut (*scratch::arrival(cpu)).packet },
            None => packet,
        }
    }
}

impl Far {
    /// Copies `bytes` bytes at `at` to the scratch; returns where they are and whether there were as
    /// many. Callers read them either way: a value that is undefined on one way only is one that
    /// LLVM may spill, and the verifier refuses.
    #[inline(always)]
    fn load(&self, at: u32, bytes: usize) -> (*const u32, bool) {
        // SAFETY: a live map value, with room for the longest that the parser asks for.
        unsafe {
            let scratch: *mut Scratch = scratch::of(self.cpu);
            let to: *mut u32 = (&raw mut (*scratch).far).cast();
            let status = bpf_xdp_load_bytes(self.ctx, at & 0xffff, to.cast(), bytes as u32);
            (to, status == 0)
        }
    }
}

impl Bytes for Far {
    type Far = Self;

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: a live map value.
        unsafe {
            let arrival: *const Arrival = scratch::arrival(self.cpu);
            (&raw const (*arrival).bytes).read_volatile() as u32
        }
    }

    #[inline(always)]
    fn half(&self, at: u32) -> Option<u16> {
        let (from, whole) = self.load(at, 2);
        // SAFETY: as `load`.
        let half = u16::from_be(unsafe { from.cast::<u16>().read_volatile() });
        if whole { Some(half) } else { None }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        const { assert!(4 * N <= FAR_BYTES) };
        let (from, whole) = self.load(at, 4 * N);
        let mut words = [0; N];
        for (n, word) in words.iter_mut().enumerate() {
            // SAFETY: as `load`.
            *word = u32::from_be(unsafe { from.add(n).read_volatile() });
        }
        if whole { Some(words) } else { None }
    }

    #[inline(always)]
    fn far(&self) -> Self {
        *self
    }

    #[inline(always)]
    fn forget(&self, value: u32, mask: u32) -> u32 {
        crate::atomic::fence();
        // The length is a number the verifier does not know.
        crate::atomic::forget(value, self.length() as u64) & mask
    }
}
