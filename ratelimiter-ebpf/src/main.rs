//! The XDP program.
#![no_std]
#![no_main]

mod maps;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

/// Judges one packet.
#[xdp]
fn ratelimiter(ctx: XdpContext) -> u32 {
    let Some(cpu) = maps::CPU.get_ptr_mut(0) else {
        return xdp_action::XDP_PASS;
    };
    let bytes = (ctx.data_end() - ctx.data()) as u64;
    // SAFETY: both are map values, alive while the program runs.
    unsafe {
        let count = &raw mut (*cpu).counts[0][0];
        (*count).packets += 1;
        (*count).bytes += bytes;
    }
    xdp_action::XDP_PASS
}

/// Changes buckets on the agent's behalf.
#[xdp]
fn merge(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
