//! Packet bytes, as the verifier wants them read: compared with the end, then loaded.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use ratelimiter_common::parse::Bytes;

/// A frame between two packet pointers.
pub(crate) struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn of(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn length(&self) -> u32 {
        (self.end - self.start) as u32
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
    fn half_in_loop(&self, at: u32) -> Option<u16> {
        let here = self.start + at as usize;
        let mut past = here;
        // SAFETY: arithmetic on one register: `past` is two bytes on, unknown to the compiler.
        unsafe { asm!("{past} += 2", past = inout(reg) past, options(pure, nomem, nostack)) };
        if past > self.end {
            return None;
        }
        // SAFETY: both bytes lie inside the packet, as compared above and seen by the verifier.
        Some(u16::from_be(unsafe {
            (here as *const u16).read_unaligned()
        }))
    }

    #[inline(always)]
    fn forget(&self, value: u32, mask: u32) -> u32 {
        // The length is a number the verifier does not know.
        crate::atomic::forget(value, (self.end - self.start) as u64) & mask
    }
}
