//! Names of kernel objects: at most 15 characters, the kernel's limit (`BPF_OBJ_NAME_LEN` - 1).

/// The limiter program (XDP).
pub const PROGRAM: &str = "ratelimiter";
/// The same limiter for an agent without CAP_PERFMON (XDP): the verifier allows it less and puts
/// barriers against speculation in.
pub const GUARDED_PROGRAM: &str = "limiter_guarded";
/// The helper program (XDP, only ever run by `BPF_PROG_TEST_RUN`) that changes buckets in place.
pub const MERGE_PROGRAM: &str = "merge";

/// Array of one [`super::config::Config`].
pub const CONFIG: &str = "CONFIG";
/// Array of one [`super::config::Coarse`]: which table an IPv4 /16 belongs to.
pub const COARSE4: &str = "COARSE4";
/// Array of one [`super::config::Coarse`]: the same for the top 16 bits of an IPv6 address.
pub const COARSE6: &str = "COARSE6";
/// Array of `u64`: one bit per IPv4 /24 (2 MiB), asked only where the /16 says `LOOK_FURTHER`.
pub const FINE4: &str = "FINE4";
/// Array of `u64`: one bit per hash of the top 32 bits of an IPv6 address (2 MiB).
pub const FINE6: &str = "FINE6";
/// Longest-prefix trie, [`super::policy::PrefixKey4`] to [`super::policy::PrefixValue`].
pub const PREFIXES4: &str = "PREFIXES4";
/// Longest-prefix trie, [`super::policy::PrefixKey6`] to [`super::policy::PrefixValue`].
pub const PREFIXES6: &str = "PREFIXES6";
/// Array: policy slot to the index of its entry in `POLICIES` (`u32`).
pub const POLICY_INDEX: &str = "POLICY_INDEX";
/// Array of immutable [`super::policy::PolicyEntry`].
pub const POLICIES: &str = "POLICIES";
/// Array: segment number to the index of its entry in `SEGMENT_CLOCKS` (`u32`).
pub const SEGMENT_INDEX: &str = "SEGMENT_INDEX";
/// Array of immutable [`crate::vclock::SegmentClock`].
pub const SEGMENT_CLOCKS: &str = "SEGMENT_CLOCKS";
/// Array: zone number to [`super::policy::Zone`].
pub const ZONES: &str = "ZONES";
/// Array of [`super::crowd::Set4`]: IPv4 crowd, all regions; `mmap`ed by the agent.
pub const CROWD4: &str = "CROWD4";
/// Array of [`super::crowd::Set6`]: IPv6 crowd, all regions; `mmap`ed by the agent.
pub const CROWD6: &str = "CROWD6";
/// Array of [`super::crowd::SharedBucket`]: first-seen budgets by region, IPv4 then IPv6, then the
/// malformed budget.
pub const BUDGETS: &str = "BUDGETS";
/// LRU hash, [`super::tracked::SourceKey`] to [`super::tracked::Tracked`].
pub const TRACKED: &str = "TRACKED";
/// Array of `u64`: one bit per hash of a promoted source's key.
pub const PROMOTED: &str = "PROMOTED";
/// Per-CPU array of one [`super::counters::CpuState`].
pub const CPU: &str = "CPU";
/// Array, one entry per possible CPU, of [`super::counters::SampleRing`]; `mmap`ed by the agent.
pub const SAMPLES: &str = "SAMPLES";
/// Ring buffer of [`super::counters::Sample`]: sampled drops, at most one per CPU and jiffy.
pub const EVENTS: &str = "EVENTS";

/// Every pinned map.
pub const MAPS: [&str; 18] = [
    CONFIG,
    COARSE4,
    COARSE6,
    FINE4,
    FINE6,
    PREFIXES4,
    PREFIXES6,
    POLICY_INDEX,
    POLICIES,
    SEGMENT_INDEX,
    SEGMENT_CLOCKS,
    ZONES,
    CROWD4,
    CROWD6,
    BUDGETS,
    TRACKED,
    PROMOTED,
    CPU,
];
/// Maps that carry observations only and are pinned with the others.
pub const OBSERVATION_MAPS: [&str; 2] = [SAMPLES, EVENTS];

/// Sizes in the object; the loader overrides those that the configuration names.
pub mod default_entries {
    /// Prefixes of one family. Tries take memory by use.
    pub const PREFIXES: u32 = 1 << 21;
    /// Policy slots.
    pub const SLOTS: u32 = 1 << 15;
    /// Policy entries: two per slot would let every policy change at once; an entry is free again a
    /// second after it was left. Index 0 is the empty entry.
    pub const POLICIES: u32 = 3 << 14;
    /// Segment clocks: four per segment.
    pub const SEGMENT_CLOCKS: u32 = 256;
    /// Sets of `CROWD4`: 1 M words for region 0, 64 k words for each of the 15 others.
    pub const SETS4: u32 = (1 << 17) + 15 * (1 << 13);
    /// Sets of `CROWD6`: 512 k ways for region 0, 64 k ways for each of the 15 others.
    pub const SETS6: u32 = (1 << 16) + 15 * (1 << 13);
    /// Tracked sources.
    pub const TRACKED: u32 = 1 << 18;
    /// Sample rings; the loader sets the number of possible CPUs.
    pub const CPUS: u32 = 1;
    /// Bytes of the event ring buffer.
    pub const EVENT_BYTES: u32 = 1 << 16;
}

const fn fits(names: &[&str]) -> bool {
    let mut rest = names;
    while let [name, tail @ ..] = rest {
        if name.len() > 15 {
            return false;
        }
        rest = tail;
    }
    true
}
const _: () = assert!(
    fits(&MAPS) && fits(&OBSERVATION_MAPS) && fits(&[PROGRAM, GUARDED_PROGRAM, MERGE_PROGRAM])
);
