//! Scalars and geometry the program reads on every packet, and the coarse prefix table.

/// Number of regions of a crowd table, the default policy's region 0 included.
pub const REGIONS: usize = 16;
/// Number of zones: one per policy of the crowd; zone 0 is the default segment's policy.
pub const ZONES: usize = 16;
/// Number of segments, the default segment 0 included.
pub const SEGMENTS: usize = 64;

/// Byte of [`Coarse`] that sends a source on to the fine bits, the tracked table and the trie.
/// Every smaller value is a zone number.
pub const LOOK_FURTHER: u8 = 255;

/// Bits of [`Config::flags`].
pub mod flags {
    /// What is refused is really dropped, policies in shadow apart. Without it nothing ever is (the
    /// agent runs in shadow): frames are judged and counted, and pass.
    pub const ENFORCE: u32 = 1;
    /// Malformed frames are charged to the shared malformed budget instead of being dropped.
    pub const MALFORMED_BUDGET: u32 = 2;
    /// The interface runs in generic mode: charge a frame by the segments it stands for.
    pub const GENERIC: u32 = 4;
    /// At least one allow, block or client prefix exists in `PREFIXES4` / `PREFIXES6`, or a source
    /// is promoted. Off, the program skips the coarse tables.
    pub const PREFIXES: u32 = 8;
    /// At least one source is promoted: ask the bits of `PROMOTED`. Set before the first
    /// promotion.
    pub const PROMOTED: u32 = 16;
}

/// TCP payload of a full segment at an MTU of 1500 with timestamps: what a frame of generic mode is
/// divided by.
pub const GENERIC_SEGMENT_BYTES: u32 = 1_448;

/// Where a region lies in its crowd table, and its first-seen budget. One word of it never
/// changes while the table lives: geometry is fixed at creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Region {
    /// Index of the region's first set.
    pub base_set: u32,
    /// Number of sets minus one; the number of sets is a power of two.
    pub set_mask: u32,
    /// log2 of the number of sets.
    pub set_bits: u32,
    /// Newcomers drawn from the shared budget at a time, 1..=64.
    pub draw: u32,
    /// Nanoseconds one newcomer costs: 10^9 / budget per second; 0 switches the budget off.
    pub first_seen_ns: u64,
}

/// The keyed bijection that scatters addresses over sets. Chosen when the tables are created and
/// never again: another key would refill every bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PermKey {
    /// Secret words mixed in by exclusive or.
    pub xor: [u64; 2],
    /// Secret odd multipliers.
    pub mul: [u64; 2],
}

/// The program's scalars. One entry, read by every packet; words are changed one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Raised after every change of a prefix; a tracked source resolved under another generation
    /// walks the trie once.
    pub prefix_generation: u32,
    /// Prefix length of an IPv6 source key, 32..=64; 64 by default.
    pub v6_prefix_len: u32,
    /// Mask of the top 64 bits of an IPv6 source, host order: the top `v6_prefix_len` bits.
    pub v6_mask: u64,
    /// The bijection's key.
    pub perm: PermKey,
    /// Regions of `CROWD4`.
    pub regions4: [Region; REGIONS],
    /// Regions of `CROWD6`.
    pub regions6: [Region; REGIONS],
    /// Nanoseconds one malformed frame costs of the shared malformed budget; 0 admits none.
    pub malformed_ns: u64,
    /// Depth of the malformed budget in nanoseconds.
    pub malformed_burst_ns: u64,
    /// Generic mode only: TCP payload bytes that count as one packet; zero reads as
    /// [`GENERIC_SEGMENT_BYTES`].
    pub generic_segment_bytes: u32,
    /// Zero.
    pub reserved: u32,
}

/// One byte per value of the top 16 bits of an address: zone, or [`LOOK_FURTHER`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Coarse {
    /// Indexed by the top 16 bits, host order.
    pub zones: [u8; 65_536],
}

/// Entries of `COARSE4` and `COARSE6`.
pub const COARSE_ENTRIES: u32 = 1;
/// Number of `u64` words of `PROMOTED`: 2^20 bits.
pub const PROMOTED_WORDS: u32 = 1 << 14;

/// Bit of `FINE4` of an IPv4 address (host order): its /24. Word `bit >> 6`, bit `bit & 63`.
#[must_use]
pub const fn fine4_bit(address: u32) -> u32 {
    address >> 8
}

/// Bit of `FINE6` of the top 32 bits of an IPv6 address: a hash, so that neighbours spread. Two
/// that share a bit cost each other a look-up, never a verdict.
#[must_use]
pub const fn fine6_bit(top: u32) -> u32 {
    top.wrapping_mul(0x9e37_79b1) >> 8
}

/// Number of `u64` words of `FINE4` and `FINE6`: 2^24 bits.
pub const FINE_WORDS: u32 = 1 << 18;

const _: () = assert!(size_of::<Region>() == 24);
const _: () = assert!(size_of::<PermKey>() == 32);
const _: () = assert!(size_of::<Config>() == 24 + 32 + 2 * 16 * 24 + 24);
const _: () = assert!(align_of::<Config>() == 8);
