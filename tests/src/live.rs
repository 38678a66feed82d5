//! Frames that no stack has touched: made in the kernel by `BPF_PROG_TEST_RUN` in its live mode and
//! sent out of an interface as XDP frames, as a network card's driver hands them on.
//!
//! The other end of a veth takes them without a copy, a hundred nanoseconds cheaper per packet than
//! [`crate::flood`], and they come faster than any receiver here can take them: what its ring has
//! no room for is lost.
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use ratelimiter_userspace::clock;

use crate::OrFail as _;
use crate::stranger::load_xdp;

const PROG_TEST_RUN: libc::c_long = 10;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE: u32 = 1 << 1;
/// Frames per call, and per batch.
const FRAMES: u32 = 1 << 16;
const BATCH: u32 = 64;

/// IPv4 packets of random sources among a few.
#[derive(Clone, Debug)]
pub struct LiveFrames {
    frame: Vec<u8>,
    sources: u32,
}

/// The part of `bpf_attr` that `BPF_PROG_TEST_RUN` reads.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    answer: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

/// One instruction.
const fn op(code: u8, dst: u8, src: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (value.cast_unsigned() as u64) << 32
}

impl LiveFrames {
    /// `frame` is Ethernet and IPv4 without options; the low half of its source is replaced by
    /// 0..`sources`, which is at most 65 536.
    #[must_use]
    #[track_caller]
    pub fn new(frame: &[u8], sources: u32) -> Self {
        assert!(
            frame.get(12..15) == Some(&[8, 0, 0x45]) && (1..=1 << 16).contains(&sources),
            "only IPv4 without options has {sources} sources here"
        );
        Self {
            frame: frame.to_vec(),
            sources,
        }
    }

    /// Sends out of `interface` of the calling thread's network namespace for at least `time`;
    /// returns how long it was.
    #[track_caller]
    pub fn send(&self, interface: &str, time: Duration) -> Duration {
        let name = std::ffi::CString::new(interface).or_fail("an interface name");
        // SAFETY: a NUL-terminated string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert!(index != 0, "there is no interface `{interface}`");
        let program = load_xdp(&self.program(index));
        let began = clock::instant();
        while began.elapsed() < time {
            self.run(&program);
        }
        began.elapsed()
    }

    /// Gives the frame a source and a checksum, and redirects it to the interface.
    fn program(&self, index: u32) -> Vec<u64> {
        // The header's sum without its checksum and without the half that changes.
        let mut header = self.frame[14..34].to_vec();
        header[10..12].fill(0);
        header[14..16].fill(0);
        let mut sum: u32 = header
            .chunks_exact(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        vec![
            op(0x61, 7, 1, 0, 0),                          // r7 = data
            op(0x61, 2, 1, 4, 0),                          // r2 = data_end
            op(0xbf, 3, 7, 0, 0),                          // r3 = r7
            op(0x07, 3, 0, 0, 34),                         // r3 += 34
            op(0x2d, 3, 2, 16, 0),                         // if r3 > r2 goto drop
            op(0x85, 0, 0, 0, 7),                          // r0 = bpf_get_prandom_u32()
            op(0x97, 0, 0, 0, self.sources.cast_signed()), // r0 %= sources
            op(0xbf, 4, 0, 0, 0),                          // r4 = r0
            op(0xdc, 4, 0, 0, 16),                         // r4 = be16(r4)
            op(0x6b, 7, 4, 28, 0),                         // source's low half = r4
            op(0x07, 0, 0, 0, sum.cast_signed()),          // r0 += sum
            op(0xbf, 4, 0, 0, 0),                          // r4 = r0
            op(0x77, 4, 0, 0, 16),                         // r4 >>= 16
            op(0x0f, 0, 4, 0, 0),                          // r0 += r4
            op(0xa7, 0, 0, 0, -1),                         // r0 = !r0
            op(0xdc, 0, 0, 0, 16),                         // r0 = be16(r0)
            op(0x6b, 7, 0, 24, 0),                         // checksum = r0
            op(0xb7, 1, 0, 0, index.cast_signed()),        // r1 = index
            op(0xb7, 2, 0, 0, 0),                          // r2 = 0
            op(0x85, 0, 0, 0, 23),                         // r0 = bpf_redirect(r1, r2)
            op(0x95, 0, 0, 0, 0),                          // exit
            op(0xb7, 0, 0, 0, 1),                          // drop: r0 = XDP_DROP
            op(0x95, 0, 0, 0, 0),                          // exit
        ]
    }

    #[track_caller]
    fn run(&self, program: &OwnedFd) {
        let mut attr = TestRun {
            program: program.as_raw_fd().cast_unsigned(),
            size_in: self.frame.len() as u32,
            data_in: self.frame.as_ptr() as u64,
            repeat: FRAMES,
            flags: LIVE,
            batch: BATCH,
            ..TestRun::default()
        };
        // SAFETY: the attribute is the command's part of `bpf_attr`; the frame it points to lives,
        // and the kernel writes only to the attribute.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_TEST_RUN,
                &raw mut attr,
                size_of::<TestRun>(),
            )
        };
        assert!(
            result >= 0,
            "send live frames: {}",
            std::io::Error::last_os_error()
        );
    }
}
