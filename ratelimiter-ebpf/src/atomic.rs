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
    forget64(value as u64, noise) as u32
}

/// [`forget`] for a word of 64 bits.
#[inline(always)]
pub(crate) fn forget64(value: u64, noise: u64) -> u64 {
    let mut value = value;
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
    value
}

/// Ends speculation: the verifier, and the CPU, follow a mispredicted loop no further than here.
///
/// Without CAP_PERFMON the verifier walks the paths a CPU may speculate into, and in a loop whose end
/// it knows there is one more per round, for ever. Behind a first write to a stack slot it puts a
/// barrier, and stops there. The barrier costs some nanoseconds, so it stands where a loop goes round
/// again, and not under a condition: that would be speculated past.
#[inline(always)]
pub(crate) fn fence() {
    let mut slot = core::mem::MaybeUninit::<u64>::uninit();
    // SAFETY: the slot is ours.
    unsafe { slot.as_mut_ptr().write_volatile(0) };
}

/// Does something for each kernel unit, written out three times: the verifier guards a pointer that
/// moves by what a register holds with one mask per instruction, and refuses to find another limit
/// there the next time round a loop. `break 'label` goes on to the next unit.
macro_rules! each_unit {
    ($label:lifetime, $unit:ident, $body:block) => {
        $label: {
            let $unit: usize = 0;
            $body
        }
        $label: {
            let $unit: usize = 1;
            $body
        }
        $label: {
            let $unit: usize = 2;
            $body
        }
    };
}
const _: () = assert!(ratelimiter_common::quota::KERNEL_UNITS == 3);
pub(crate) use each_unit;
