//! This CPU's clock. Reading time is the dearest instruction, so it is read once per 64 packets or
//! jiffy, and a bounded number of times more by packets that are about to be refused.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};
use ratelimiter_common::abi::counters::CpuState;

/// Packets one reading serves at most.
const PACKETS_PER_READING: u32 = 64;
/// Refusals that may read the clock again, per jiffy and CPU.
const REREADS_PER_JIFFY: u32 = 64;

/// Reads the clock if it is stale.
#[inline(always)]
pub(crate) unsafe fn tick(cpu: *mut CpuState) {
    // SAFETY: the helper has no preconditions; `cpu` is this CPU's map value.
    unsafe {
        let jiffies = bpf_jiffies64();
        let left = (*cpu).clock_left;
        if jiffies != (*cpu).jiffies || left == 0 {
            if jiffies != (*cpu).jiffies {
                (*cpu).rereads_left = REREADS_PER_JIFFY;
            }
            (*cpu).jiffies = jiffies;
            (*cpu).clock_left = PACKETS_PER_READING - 1;
            (*cpu).now_ns = bpf_ktime_get_ns();
        } else {
            (*cpu).clock_left = left - 1;
        }
    }
}

/// Reads the clock for a packet that would be refused, if this jiffy's allowance lasts; returns
/// whether it did. A clock too old never admits too much, but it may refuse what would conform now.
#[inline(always)]
pub(crate) unsafe fn reread(cpu: *mut CpuState) -> bool {
    // SAFETY: `cpu` is this CPU's map value.
    unsafe {
        let left = (*cpu).rereads_left;
        if left == 0 || (*cpu).clock_left == PACKETS_PER_READING - 1 {
            return false;
        }
        (*cpu).rereads_left = left - 1;
        (*cpu).clock_left = PACKETS_PER_READING - 1;
        (*cpu).now_ns = bpf_ktime_get_ns();
    }
    true
}
