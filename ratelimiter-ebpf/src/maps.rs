//! The maps, and nothing but maps. Names and layouts are those of `ratelimiter_common::abi`; sizes
//! are the documented defaults, which the loader may override.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use ratelimiter_common::abi::config::{
    COARSE_ENTRIES, Coarse, Config, FINE_WORDS, PROMOTED_WORDS, SEGMENTS, ZONES as ZONE_COUNT,
};
use ratelimiter_common::abi::counters::{CpuState, SampleRing};
use ratelimiter_common::abi::crowd::{BUDGETS as BUDGET_COUNT, Set4, Set6, SharedBucket};
use ratelimiter_common::abi::names::default_entries;
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixWords, Zone};
use ratelimiter_common::abi::tracked::{SourceKey, Tracked};
use ratelimiter_common::vclock::SegmentClock;

/// The agent changes scalars, indices and bits by single stores into the map's memory: an update
/// by system call copies a whole value, and a packet could read half of it.
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Scalars and geometry.
#[btf_map]
pub(crate) static CONFIG: Array<Config, 1, MMAPABLE> = Array::new();
/// Zone by the top 16 bits of an IPv4 source.
#[btf_map]
pub(crate) static COARSE4: Array<Coarse, { COARSE_ENTRIES as usize }, MMAPABLE> = Array::new();
/// Zone by the top 16 bits of an IPv6 source.
#[btf_map]
pub(crate) static COARSE6: Array<Coarse, { COARSE_ENTRIES as usize }, MMAPABLE> = Array::new();
/// Touched IPv4 /24s, one bit each.
#[btf_map]
pub(crate) static FINE4: Array<u64, { FINE_WORDS as usize }, MMAPABLE> = Array::new();
/// Touched IPv6 /32s, one bit per hash.
#[btf_map]
pub(crate) static FINE6: Array<u64, { FINE_WORDS as usize }, MMAPABLE> = Array::new();
/// IPv4 prefixes.
#[btf_map]
pub(crate) static PREFIXES4: LpmTrie<[u8; 4], PrefixWords, { default_entries::PREFIXES as usize }> =
    LpmTrie::new();
/// IPv6 prefixes.
#[btf_map]
pub(crate) static PREFIXES6: LpmTrie<
    [u8; 16],
    PrefixWords,
    { default_entries::PREFIXES as usize },
> = LpmTrie::new();
/// Policy slot to entry.
#[btf_map]
pub(crate) static POLICY_INDEX: Array<u32, { default_entries::SLOTS as usize }, MMAPABLE> =
    Array::new();
/// Immutable policies.
#[btf_map]
pub(crate) static POLICIES: Array<PolicyEntry, { default_entries::POLICIES as usize }> =
    Array::new();
/// Segment to clock.
#[btf_map]
pub(crate) static SEGMENT_INDEX: Array<u32, SEGMENTS, MMAPABLE> = Array::new();
/// Immutable segment clocks.
#[btf_map]
pub(crate) static SEGMENT_CLOCKS: Array<
    SegmentClock,
    { default_entries::SEGMENT_CLOCKS as usize },
> = Array::new();
/// Parts of the crowd.
#[btf_map]
pub(crate) static ZONES: Array<Zone, ZONE_COUNT, MMAPABLE> = Array::new();
/// IPv4 crowd, all regions.
#[btf_map]
pub(crate) static CROWD4: Array<Set4, { default_entries::SETS4 as usize }, MMAPABLE> = Array::new();
/// IPv6 crowd, all regions.
#[btf_map]
pub(crate) static CROWD6: Array<Set6, { default_entries::SETS6 as usize }, MMAPABLE> = Array::new();
/// First-seen budgets and the malformed budget.
#[btf_map]
pub(crate) static BUDGETS: Array<SharedBucket, { BUDGET_COUNT as usize }> = Array::new();
/// Sources with a bucket of their own.
#[btf_map]
pub(crate) static TRACKED: LruHashMap<SourceKey, Tracked, { default_entries::TRACKED as usize }> =
    LruHashMap::new();
/// Promoted sources, one bit per hash of the key.
#[btf_map]
pub(crate) static PROMOTED: Array<u64, { PROMOTED_WORDS as usize }, MMAPABLE> = Array::new();
/// What this CPU keeps: clock, caches, counters.
#[btf_map]
pub(crate) static CPU: PerCpuArray<CpuState, 1> = PerCpuArray::new();
/// Samples by CPU.
#[btf_map]
pub(crate) static SAMPLES: Array<SampleRing, { default_entries::CPUS as usize }, MMAPABLE> =
    Array::new();
/// Sampled drops, for people who watch: one `Sample` each. Not named as the value, because libbpf
/// takes a ring buffer to have none.
#[btf_map]
pub(crate) static EVENTS: RingBuf<(), { default_entries::EVENT_BYTES as usize }> = RingBuf::new();
