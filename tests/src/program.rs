//! The kernel program in a private set of maps: nothing pinned, nothing attached; frames go in by
//! `BPF_PROG_TEST_RUN`.

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use ratelimiter_common::abi::names;

use crate::OrFail as _;

/// `XDP_DROP` as a test run returns it.
pub const XDP_DROP: u32 = 1;
/// `XDP_PASS` as a test run returns it.
pub const XDP_PASS: u32 = 2;

/// Both programs, loaded into maps of their own.
pub struct Program {
    /// The loaded object.
    pub ebpf: Ebpf,
}

impl Program {
    /// Loads the limiter with small tables.
    #[track_caller]
    pub fn load() -> Self {
        let object = ratelimiter_userspace::dataplane::object::object().or_fail("kernel object");
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(names::SAMPLES, possible_cpus())
            .map_max_entries(names::CROWD4, (1 << 13) + 15 * (1 << 9))
            .map_max_entries(names::CROWD6, (1 << 13) + 15 * (1 << 9))
            .map_max_entries(names::TRACKED, 1 << 12)
            .map_max_entries(names::POLICY_INDEX, 256)
            .map_max_entries(names::POLICIES, 768)
            .load(object)
            .or_fail("loading the object");
        for name in [names::PROGRAM, names::MERGE_PROGRAM] {
            let program: &mut Xdp = ebpf
                .program_mut(name)
                .or_fail(name)
                .try_into()
                .or_fail("an XDP program");
            program.load().or_fail(name);
        }
        Self { ebpf }
    }

    /// Runs one frame through the limiter and returns the XDP action.
    #[track_caller]
    pub fn run(&self, frame: &[u8]) -> u32 {
        self.run_many(frame, 1).0
    }

    /// Runs the same frame `repeat` times; returns the last action and nanoseconds per run.
    #[track_caller]
    pub fn run_many(&self, frame: &[u8], repeat: u32) -> (u32, u32) {
        let result = self
            .xdp(names::PROGRAM)
            .test_run(TestRunOptions {
                data_in: Some(frame),
                repeat,
                ..TestRunOptions::new()
            })
            .or_fail("test run");
        (result.return_value, result.duration.as_nanos() as u32)
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
}

/// Number of CPUs the kernel may ever have.
#[track_caller]
pub fn possible_cpus() -> u32 {
    aya::util::nr_cpus()
        .map_err(|(what, error)| format!("{what}: {error}"))
        .or_fail("CPUs") as u32
}
