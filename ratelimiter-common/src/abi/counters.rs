//! What one CPU knows: its clock, its counters, its samples.

use super::config::{SEGMENTS, ZONES};
use crate::quota::KERNEL_UNITS;
use crate::verdict::REASONS;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Count {
    /// Frames.
    pub packets: u64,
    /// Bytes of those frames, link header included.
    pub bytes: u64,
}

/// Decisions on one segment's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SegmentCount {
    /// Packets that conformed.
    pub conforming: u64,
    /// Packets that did not and were passed (shadow).
    pub shadowed: u64,
    /// Packets that did not and were dropped.
    pub dropped: u64,
    /// Bytes that conformed.
    pub conforming_bytes: u64,
}

/// What a CPU remembers of one unit of one zone: geometry, clock and depth as of `at_ns`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UnitCache {
    /// The unit clock at the CPU's clock.
    pub now: u64,
    /// Bucket depth.
    pub burst: u64,
    /// Debt above this reads as idle.
    pub cap: u64,
    /// Region geometry, `CROWD4`: first set, mask, log2.
    pub base4: u32,
    /// See `base4`.
    pub mask4: u32,
    /// See `base4`.
    pub bits4: u32,
    /// Region geometry, `CROWD6`.
    pub base6: u32,
    /// See `base6`.
    pub mask6: u32,
    /// Bits of a TAT in `CROWD4`: 32 + `bits4`.
    pub tat_bits4: u32,
    /// As many ones.
    pub tat_mask4: u64,
}

/// What a CPU remembers of one zone, refreshed when `at_ns` differs from the CPU's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ZoneCache {
    /// The CPU clock this was computed for, real nanoseconds.
    pub at_ns: u64,
    /// Bit n: unit n is limited.
    pub units: u32,
    /// [`crate::verdict::Mode`] of unit n in bits 2n and 2n + 1.
    pub modes: u32,
    /// Slot, segment and zone as the program carries them to its exit.
    pub label: u64,
    /// Newcomers this CPU may still admit from its last draw, IPv4.
    pub newcomers4: u32,
    /// The same for IPv6.
    pub newcomers6: u32,
    /// By unit.
    pub unit: [UnitCache; KERNEL_UNITS],
}

/// What a CPU remembers of one segment's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SegmentTime {
    /// The CPU clock this was computed for, real nanoseconds.
    pub at_ns: u64,
    /// Segment time then, nanoseconds.
    pub segment_ns: u64,
}

/// Words of [`CpuState::scratch`].
pub const SCRATCH_WORDS: usize = 128;

/// Everything one CPU keeps. One look-up per packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CpuState {
    /// Real time as last read, nanoseconds; 0 before the first packet.
    pub now_ns: u64,
    /// Jiffies at that reading.
    pub jiffies: u64,
    /// Packets until the clock is read again.
    pub clock_left: u32,
    /// Packets until the next sample.
    pub sample_left: u32,
    /// Refusals that may still re-read the clock in this jiffy.
    pub rereads_left: u32,
    /// What `sample_left` was drawn as: the weight of the next sample.
    pub sample_weight: u32,
    /// Jiffies of the last drop event.
    pub event_jiffies: u64,
    /// Zero.
    pub reserved: u64,
    /// Frames by [`crate::verdict::Reason`] and [`crate::verdict::Verdict`].
    pub counts: [[Count; 2]; REASONS],
    /// By zone.
    pub zones: [ZoneCache; ZONES],
    /// By segment.
    pub segments: [SegmentCount; SEGMENTS],
    /// By segment.
    pub segment_times: [SegmentTime; SEGMENTS],
    /// What the program keeps of the packet at hand. Of no meaning to anybody else.
    pub scratch: [u64; SCRATCH_WORDS],
}

/// One packet in about 32, chosen at random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sample {
    /// The source's key; 0 where the frame has none.
    pub key: u64,
    /// Real time, nanoseconds.
    pub at_ns: u64,
    /// Policy slot.
    pub slot: u32,
    /// Bytes of the frame.
    pub bytes: u32,
    /// Packets this sample stands for: the countdown that led to it, 1..=63.
    pub weight: u16,
    /// [`crate::verdict::Verdict`].
    pub verdict: u8,
    /// [`crate::verdict::Reason`].
    pub reason: u8,
    /// 4 or 6; 0 where the frame is not IP.
    pub family: u8,
    /// IP protocol number of the last header seen; 255 if unknown.
    pub protocol: u8,
    /// Zone number; 255 for a tracked source.
    pub zone: u8,
    /// Bit 0: counted as TCP SYN.
    pub flags: u8,
}

/// Samples kept per CPU.
pub const SAMPLE_SLOTS: usize = 4_096;

/// The last [`SAMPLE_SLOTS`] samples of one CPU; sample n is at `n % SAMPLE_SLOTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SampleRing {
    /// Samples ever written by this CPU.
    pub head: u64,
    /// Zero.
    pub reserved: [u64; 7],
    /// The samples.
    pub samples: [Sample; SAMPLE_SLOTS],
}

const _: () = assert!(size_of::<Sample>() == 32);
const _: () = assert!(size_of::<UnitCache>() == 56);
const _: () = assert!(size_of::<ZoneCache>() == 32 + 3 * 56);
const _: () =
    assert!(size_of::<CpuState>() == 48 + 16 * 2 * 16 + 16 * 200 + 64 * 48 + 8 * SCRATCH_WORDS);
const _: () = assert!(size_of::<SampleRing>() == 64 + 4_096 * 32);
