//! Atomic operations on 64-bit words of map values.
//!
//! The BPF target declares no compare-and-swap of its own, so the instructions are written out.
//! Swaps are full barriers.

use core::arch::asm;

/// Replaces `*word` by `new` if it is `old`; returns whether it did.
///
/// # Safety
///
/// `word` points into a map value and is aligned to 8.
#[inline(always)]
pub(crate) unsafe fn swap_if(word: *mut u64, old: u64, new: u64) -> bool {
    let seen: u64;
    // SAFETY: the caller promises a valid word; the instruction reads and writes only that and r0.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") old => seen,
        );
    }
    seen == old
}

/// Stores `new` with a full barrier.
///
/// # Safety
///
/// As [`swap_if`].
#[inline(always)]
pub(crate) unsafe fn store(word: *mut u64, new: u64) {
    // SAFETY: the caller promises a valid word.
    unsafe {
        asm!(
            "{new} = xchg_64({word} + 0, {new})",
            word = in(reg) word,
            new = inout(reg) new => _,
        );
    }
}

/// Adds to a counter that several CPUs share.
///
/// # Safety
///
/// As [`swap_if`].
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, amount: u64) {
    // SAFETY: the caller promises a valid, aligned word.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) += {amount}",
            word = in(reg) word,
            amount = in(reg) amount,
        );
    }
}

/// Sets bits of a word that several CPUs share.
///
/// # Safety
///
/// As [`swap_if`].
#[inline(always)]
pub(crate) unsafe fn or(word: *mut u64, bits: u64) {
    // SAFETY: the caller promises a valid, aligned word.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) |= {bits}",
            word = in(reg) word,
            bits = in(reg) bits,
        );
    }
}

/// Reads a word that other CPUs change.
///
/// # Safety
///
/// As [`swap_if`].
#[inline(always)]
pub(crate) unsafe fn load(word: *const u64) -> u64 {
    // SAFETY: the caller promises a valid, aligned word.
    unsafe { word.read_volatile() }
}

/// Returns `value`, but lets the verifier forget what it is, so that it does not follow one path per
/// value. `noise` is anything the verifier does not know.
#[inline(always)]
pub(crate) fn forget(value: u32, noise: u64) -> u32 {
    let mut value = value as u64;
    // SAFETY: arithmetic on registers: adds zero, computed from the noise.
    unsafe {
        asm!(
            "{zero} = {noise}",
            "{zero} ^= {noise}",
            "{value} += {zero}",
            zero = out(reg) _,
            noise = in(reg) noise,
            value = inout(reg) value,
            options(pure, nomem, nostack),
        );
    }
    value as u32
}

/// The number of kernel units, known to the verifier and not to LLVM: a loop up to it stays a loop,
/// small and without spills.
#[inline(always)]
pub(crate) fn every_unit() -> usize {
    let units: u64;
    // SAFETY: loads a constant.
    unsafe { asm!("{units} = 3", units = out(reg) units, options(pure, nomem, nostack)) };
    const _: () = assert!(ratelimiter_common::quota::KERNEL_UNITS == 3);
    units as usize
}
