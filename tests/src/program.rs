//! The kernel program in a private set of maps: nothing pinned, nothing attached; frames go in by
//! `BPF_PROG_TEST_RUN`, and maps are written the way the agent would, but by hand, so that these
//! tests depend on nothing but the shared layout.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};

use aya::maps::{Map, MapData};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use ratelimiter_common::abi::SCHEMA;
use ratelimiter_common::abi::config::{Config, PermKey, REGIONS, Region, flags};
use ratelimiter_common::abi::counters::{CpuState, SegmentCount};
use ratelimiter_common::abi::merge::{MAGIC, MergeHeader, MergeOp};
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{
    NO_REGION, PolicyEntry, PrefixKey4, PrefixKey6, PrefixValue, Zone,
};
use ratelimiter_common::abi::tracked::{LIMITED, SourceKey, Tracked, binding};
use ratelimiter_common::quota::{KERNEL_UNITS, Quota, Unit};
use ratelimiter_common::vclock::{Piece, SegmentClock, UnitClock};
use ratelimiter_common::verdict::{Mode, Reason, Verdict};
use ratelimiter_userspace::clock::monotonic_ns;

use crate::OrFail as _;

/// `XDP_DROP` as a test run returns it.
pub const XDP_DROP: u32 = 1;
/// `XDP_PASS` as a test run returns it.
pub const XDP_PASS: u32 = 2;

const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;

/// How large the tables are made.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// log2 of the sets of region 0, IPv4.
    pub bits4: u32,
    /// log2 of the sets of region 0, IPv6.
    pub bits6: u32,
    /// log2 of the sets of each further region.
    pub region_bits: u32,
    /// Tracked entries.
    pub tracked: u32,
    /// Policy slots.
    pub slots: u32,
    /// Entries of the LRU hash our programs are compared with.
    pub rival: u32,
}

/// Small tables: they load in milliseconds.
pub const SMALL: Sizes = Sizes {
    bits4: 13,
    bits6: 13,
    region_bits: 9,
    tracked: 1 << 12,
    slots: 256,
    rival: 1,
};

/// Both programs, loaded into maps of their own.
pub struct Program {
    /// The loaded object.
    pub ebpf: Ebpf,
    /// What `CONFIG` holds.
    pub config: Config,
    next_entry: u32,
}

/// One unit of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What is limited.
    pub unit: Unit,
    /// Units per second.
    pub per_s: u64,
    /// Units at once.
    pub burst: u64,
    /// How strictly.
    pub mode: Mode,
}

impl Rule {
    /// `per_s` packets with `burst` at once, enforced.
    pub const fn packets(per_s: u64, burst: u64) -> Self {
        Self {
            unit: Unit::Packets,
            per_s,
            burst,
            mode: Mode::Enforce,
        }
    }

    /// The same of another unit.
    #[must_use]
    pub const fn of(self, unit: Unit) -> Self {
        Self { unit, ..self }
    }

    /// The same in another mode.
    #[must_use]
    pub const fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// The piece of a clock that stood at `base` at `from_ns`, in a segment on real time.
    #[track_caller]
    pub fn piece(&self, from_ns: u64, base: u64) -> Piece {
        let limit = Quota {
            rate_limit: self.per_s,
            window_ns: 1_000_000_000,
            burst: self.burst,
            unit: self.unit,
        }
        .compile()
        .or_fail("quota");
        Piece {
            from_ns,
            base_ns: from_ns,
            base,
            speed: limit.speed,
            burst: limit.burst,
            mode: self.mode as u32,
            debt_bits: 0,
        }
    }
}

/// A policy entry of `rules` for a slot, on clocks that began a moment ago.
#[track_caller]
pub fn policy(slot: u32, rules: &[Rule]) -> PolicyEntry {
    let unused = UnitClock {
        pieces: [Piece::UNUSED; 3],
    };
    let mut entry = PolicyEntry {
        identity: [u64::from(slot) + 1, 1],
        units: 0,
        segment: 0,
        slot,
        tag: slot % 255 + 1,
        revision: 1,
        reserved: 0,
        clocks: [unused; KERNEL_UNITS],
    };
    let from_ns = monotonic_ns() - 1_000_000_000;
    for rule in rules {
        entry.units |= 1 << rule.unit as u32;
        entry.clocks[rule.unit as usize] = UnitClock::single(rule.piece(from_ns, 1 << 30));
    }
    entry
}

impl Program {
    /// Loads the limiter with small tables and no policy.
    #[track_caller]
    pub fn load() -> Self {
        Self::load_object(
            ratelimiter_userspace::dataplane::object::object().or_fail("kernel object"),
            SMALL,
            &[names::PROGRAM, names::GUARDED_PROGRAM, names::MERGE_PROGRAM],
        )
    }

    /// Loads the limiter with small tables, a packet quota on everybody, enforced.
    #[track_caller]
    pub fn limiting(per_s: u64, burst: u64) -> Self {
        let mut program = Self::load();
        program.set_policy(&policy(0, &[Rule::packets(per_s, burst)]));
        program.set_zone(0, 0, &[Unit::Packets]);
        program
    }

    /// Loads `programs` of an object.
    #[track_caller]
    pub fn load_object(object: &[u8], sizes: Sizes, programs: &[&str]) -> Self {
        let regions = |bits: u32| {
            let mut base_set = 0;
            let mut regions = [Region::default(); REGIONS];
            for (number, region) in regions.iter_mut().enumerate() {
                let set_bits = if number == 0 { bits } else { sizes.region_bits };
                *region = Region {
                    base_set,
                    set_mask: (1 << set_bits) - 1,
                    set_bits,
                    draw: 64,
                    first_seen_ns: 0,
                };
                base_set += 1 << set_bits;
            }
            (regions, base_set)
        };
        let (regions4, sets4) = regions(sizes.bits4);
        let (regions6, sets6) = regions(sizes.bits6);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(names::SAMPLES, possible_cpus())
            .map_max_entries(names::CROWD4, sets4)
            .map_max_entries(names::CROWD6, sets6)
            .map_max_entries(names::TRACKED, sizes.tracked)
            .map_max_entries(names::POLICY_INDEX, sizes.slots)
            .map_max_entries(names::POLICIES, 3 * sizes.slots)
            .map_max_entries("RIVAL", sizes.rival)
            .load(object)
            .or_fail("loading the object");
        for name in programs {
            let program: &mut Xdp = ebpf
                .program_mut(name)
                .or_fail(name)
                .try_into()
                .or_fail("an XDP program");
            program.load().or_fail(name);
        }
        let mut program = Self {
            ebpf,
            config: Config {
                schema: SCHEMA,
                flags: flags::ENFORCE,
                prefix_generation: 1,
                v6_prefix_len: 64,
                v6_mask: u64::MAX,
                perm: PermKey {
                    xor: [0x9d3f_02aa_5c71_b64e, 0x1f83_d9ab_fb41_bd6b],
                    mul: [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f],
                },
                regions4,
                regions6,
                malformed_ns: 0,
                malformed_burst_ns: 0,
                generic_segment_bytes: 0,
                reserved: 0,
            },
            next_entry: 1,
        };
        program.change_config(|_| ());
        program.put(names::SEGMENT_INDEX, &0_u32, &1_u32);
        program.put(names::SEGMENT_CLOCKS, &1_u32, &SegmentClock::REAL);
        program
    }

    /// Changes `CONFIG`.
    #[track_caller]
    pub fn change_config(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.put(names::CONFIG, &0_u32, &self.config);
    }

    /// Writes a policy to a fresh place and swaps its slot to it.
    #[track_caller]
    pub fn set_policy(&mut self, entry: &PolicyEntry) {
        let place = self.next_entry;
        self.next_entry += 1;
        self.put(names::POLICIES, &place, entry);
        self.put(names::POLICY_INDEX, &entry.slot, &place);
    }

    /// Gives a zone the policy in `slot`. Unit n of the zone lives in region 3 * zone + n, so that
    /// at most five zones exist.
    #[track_caller]
    pub fn set_zone(&mut self, zone: u32, slot: u32, units: &[Unit]) {
        let mut regions = [NO_REGION; KERNEL_UNITS];
        for unit in units {
            let region = 3 * zone + *unit as u32;
            assert!(
                (region as usize) < REGIONS,
                "zone `{zone}` needs region `{region}`"
            );
            regions[*unit as usize] = region as u8;
        }
        self.put(
            names::ZONES,
            &zone,
            &Zone {
                slot,
                regions,
                used: 1,
            },
        );
    }

    /// Inserts an IPv4 prefix; marks its /24s and its /16.
    #[track_caller]
    pub fn prefix4(&mut self, address: [u8; 4], prefix_len: u32, value: PrefixValue) {
        let key = PrefixKey4 {
            prefix_len,
            address_be: address,
        };
        self.put(
            names::PREFIXES4,
            &key,
            &PrefixValue {
                prefix_len,
                ..value
            },
        );
        let start = u32::from_be_bytes(address);
        let span = 1_u64 << (32 - prefix_len);
        let mut word = 0_u64;
        let first = start >> 8;
        let last = ((u64::from(start) + span - 1) >> 8) as u32;
        for fine in first..=last {
            if fine % 64 == 0 || fine == first {
                word = self.get(names::FINE4, &(fine / 64)).unwrap_or(0);
            }
            word |= 1 << (fine % 64);
            if fine % 64 == 63 || fine == last {
                self.put(names::FINE4, &(fine / 64), &word);
            }
        }
        self.coarse(
            names::COARSE4,
            (first >> 8) as u16..=(last >> 8) as u16,
            255,
        );
        self.change_config(|config| {
            config.flags |= flags::PREFIXES;
            config.prefix_generation += 1;
        });
    }

    /// Inserts an IPv6 prefix of /32 or longer; marks its /32 and its /16.
    #[track_caller]
    pub fn prefix6(&mut self, address: u128, prefix_len: u32, value: PrefixValue) {
        assert!(prefix_len >= 32, "`{prefix_len}` touches more than one /32");
        let key = PrefixKey6 {
            prefix_len,
            address_be: address.to_be_bytes(),
        };
        self.put(
            names::PREFIXES6,
            &key,
            &PrefixValue {
                prefix_len,
                ..value
            },
        );
        let high = (address >> 64) as u64;
        let fine = ratelimiter_common::abi::config::fine6_bit((high >> 32) as u32);
        let word: u64 = self.get(names::FINE6, &(fine / 64)).unwrap_or(0);
        self.put(names::FINE6, &(fine / 64), &(word | 1 << (fine % 64)));
        let coarse = (high >> 48) as u16;
        self.coarse(names::COARSE6, coarse..=coarse, 255);
        self.change_config(|config| {
            config.flags |= flags::PREFIXES;
            config.prefix_generation += 1;
        });
    }

    /// Sets bytes of a coarse table.
    #[track_caller]
    pub fn coarse(&mut self, map: &str, range: std::ops::RangeInclusive<u16>, zone: u8) {
        let mut bytes: [u8; 65_536] = self.get(map, &0_u32).or_fail(map);
        for index in range {
            bytes[usize::from(index)] = zone;
        }
        self.put(map, &0_u32, &bytes);
    }

    /// Whether a byte of a coarse table is set.
    #[track_caller]
    pub fn is_coarse(&self, map: &str, index: u16) -> bool {
        let bytes: [u8; 65_536] = self.get(map, &0_u32).or_fail(map);
        bytes[usize::from(index)] != 0
    }

    /// Inserts a tracked source bound to a policy slot.
    #[track_caller]
    pub fn track(&mut self, key: SourceKey, slot: u32) {
        let generation = self.config.prefix_generation;
        let tracked = Tracked {
            binding: binding(slot, LIMITED, generation),
            ..Tracked::default()
        };
        self.put(names::TRACKED, &key, &tracked);
    }

    /// Reads a tracked source.
    #[track_caller]
    pub fn tracked(&self, key: SourceKey) -> Option<Tracked> {
        self.get(names::TRACKED, &key)
    }

    /// Runs one frame through the limiter and returns the XDP action.
    #[track_caller]
    pub fn run(&self, frame: &[u8]) -> u32 {
        self.run_many(frame, 1).0
    }

    /// Runs one frame through either form of the limiter and returns the XDP action.
    #[track_caller]
    pub fn run_in(&self, form: &str, frame: &[u8]) -> u32 {
        run(self.xdp(form), frame, 1).0
    }

    /// Runs the same frame `repeat` times; returns the last action and nanoseconds per run.
    #[track_caller]
    pub fn run_many(&self, frame: &[u8], repeat: u32) -> (u32, u32) {
        run(self.xdp(names::PROGRAM), frame, repeat)
    }

    /// Runs a batch through the merge program and returns it with its results.
    #[track_caller]
    pub fn merge(&self, ops: &[MergeOp]) -> Vec<MergeOp> {
        let header = MergeHeader {
            magic: MAGIC,
            count: ops.len() as u32,
            reserved: 0,
        };
        let mut frame = bytes_of(&header).to_vec();
        for op in ops {
            frame.extend_from_slice(bytes_of(op));
        }
        let mut out = vec![0; frame.len()];
        self.xdp(names::MERGE_PROGRAM)
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                data_out: Some(&mut out),
                ..TestRunOptions::new()
            })
            .or_fail("merge run");
        (0..ops.len())
            .map(|n| from_bytes(&out[16 + n * size_of::<MergeOp>()..]))
            .collect()
    }

    /// The program called `name`.
    #[track_caller]
    pub fn xdp(&self, name: &str) -> &Xdp {
        self.ebpf
            .program(name)
            .or_fail(name)
            .try_into()
            .or_fail("an XDP program")
    }

    /// What each CPU keeps.
    #[track_caller]
    pub fn cpus(&self) -> Vec<CpuState> {
        let each = size_of::<CpuState>();
        let mut bytes = vec![0_u8; each * possible_cpus() as usize];
        let found = element(
            MAP_LOOKUP,
            self.fd(names::CPU),
            bytes_of(&0_u32),
            bytes.as_mut_ptr(),
        );
        assert!(found, "no CPU state");
        bytes.chunks_exact(each).map(from_bytes).collect()
    }

    /// Packets counted with a reason and a verdict, over all CPUs.
    #[track_caller]
    pub fn count(&self, reason: Reason, verdict: Verdict) -> u64 {
        self.cpus()
            .iter()
            .map(|cpu| cpu.counts[reason as usize][verdict as usize].packets)
            .sum()
    }

    /// Packets counted with a reason, whatever became of them.
    #[track_caller]
    pub fn reason(&self, reason: Reason) -> u64 {
        self.count(reason, Verdict::Pass) + self.count(reason, Verdict::Drop)
    }

    /// Every packet ever counted.
    #[track_caller]
    pub fn counted(&self) -> u64 {
        Reason::ALL.iter().map(|reason| self.reason(*reason)).sum()
    }

    /// A segment's counters over all CPUs.
    #[track_caller]
    pub fn segment(&self, segment: usize) -> SegmentCount {
        let mut sum = SegmentCount::default();
        for cpu in self.cpus() {
            let count = cpu.segments[segment];
            sum.conforming += count.conforming;
            sum.shadowed += count.shadowed;
            sum.dropped += count.dropped;
            sum.conforming_bytes += count.conforming_bytes;
        }
        sum
    }

    /// Writes a map element.
    #[track_caller]
    pub fn put<K, V>(&self, map: &str, key: &K, value: &V) {
        let value: *const V = value;
        let done = element(
            MAP_UPDATE,
            self.fd(map),
            bytes_of(key),
            value.cast_mut().cast(),
        );
        assert!(done, "`{map}`: {}", std::io::Error::last_os_error());
    }

    /// Reads a map element.
    #[track_caller]
    pub fn get<K, V: Copy>(&self, map: &str, key: &K) -> Option<V> {
        let mut value = MaybeUninit::<V>::zeroed();
        if !element(
            MAP_LOOKUP,
            self.fd(map),
            bytes_of(key),
            value.as_mut_ptr().cast(),
        ) {
            return None;
        }
        // SAFETY: the kernel filled in every byte, and shared structures are valid for any.
        Some(unsafe { value.assume_init() })
    }

    /// Deletes a map element; whether there was one.
    #[track_caller]
    pub fn delete<K>(&self, map: &str, key: &K) -> bool {
        element(
            MAP_DELETE,
            self.fd(map),
            bytes_of(key),
            std::ptr::null_mut(),
        )
    }

    #[track_caller]
    fn fd(&self, map: &str) -> RawFd {
        let data: &MapData = match self.ebpf.map(map).or_fail(map) {
            Map::Array(data)
            | Map::LpmTrie(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::HashMap(data)
            | Map::RingBuf(data) => data,
            other => panic!("`{map}` is {other:?}"),
        };
        data.fd().as_fd().as_raw_fd()
    }
}

/// Runs a frame `repeat` times; returns the last action and nanoseconds per run.
#[track_caller]
pub fn run(program: &Xdp, frame: &[u8], repeat: u32) -> (u32, u32) {
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..TestRunOptions::new()
        })
        .or_fail("test run");
    (result.return_value, result.duration.as_nanos() as u32)
}

/// Number of CPUs the kernel may ever have.
#[track_caller]
pub fn possible_cpus() -> u32 {
    aya::util::nr_cpus()
        .map_err(|(what, error)| format!("{what}: {error}"))
        .or_fail("CPUs") as u32
}

/// Pins the calling thread to one CPU.
#[track_caller]
pub fn pin_to_cpu(cpu: usize) {
    // SAFETY: the set is initialised by `CPU_ZERO` semantics of all zeroes; the call reads it only.
    let status = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(status, 0, "cannot pin to CPU {cpu}");
}

/// The bytes of a shared structure: they have no padding.
pub fn bytes_of<T>(value: &T) -> &[u8] {
    let start: *const T = value;
    // SAFETY: shared structures have no padding, so every byte is initialised.
    unsafe { std::slice::from_raw_parts(start.cast(), size_of::<T>()) }
}

fn from_bytes<T: Copy>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= size_of::<T>());
    // SAFETY: long enough, read unaligned, and shared structures are valid for any bytes.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

fn element(command: libc::c_long, map: RawFd, key: &[u8], value: *mut u8) -> bool {
    #[repr(C)]
    struct Attributes {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let attributes = Attributes {
        map: map as u32,
        padding: 0,
        key: key.as_ptr() as u64,
        value: value as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command; the kernel writes at most the map's value
    // size, which the caller's type has.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    status == 0
}
