//! A loaded program that frames are fed to from several threads, by plain `BPF_PROG_TEST_RUN`.

use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Barrier;
use std::thread;

use aya::programs::Xdp;

use crate::OrFail as _;
use crate::program::pin_to_cpu;

const PROG_TEST_RUN: libc::c_long = 10;
const PROG_GET_FD_BY_ID: libc::c_long = 13;

/// The part of `bpf_attr` of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct TestRun {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// A loaded program. All calls may be made from several threads at once.
#[derive(Debug)]
pub struct Runner(OwnedFd);

impl Runner {
    /// One that a test loaded.
    #[must_use]
    #[track_caller]
    pub fn of(program: &Xdp) -> Self {
        let fd = program.fd().or_fail("a loaded program");
        let fd = fd.as_fd().try_clone_to_owned();
        Self(fd.or_fail("a descriptor"))
    }

    /// One the kernel knows by this id, for example the program of a running agent.
    #[must_use]
    #[track_caller]
    pub fn by_id(id: u32) -> Self {
        let attributes = [id, 0, 0, 0];
        // SAFETY: 16 live bytes, laid out as the command's part of `bpf_attr`.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_GET_FD_BY_ID,
                attributes.as_ptr(),
                16_usize,
            )
        };
        assert!(fd >= 0, "program {id}: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
        Self(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Runs one frame; returns the XDP action. About 2 us.
    #[track_caller]
    pub fn run(&self, frame: &[u8]) -> u32 {
        self.repeat(frame, 1)
    }

    /// Runs one frame `times` times on the calling thread's CPU; returns the last XDP action. More
    /// than once costs tens of milliseconds in addition.
    #[track_caller]
    pub fn repeat(&self, frame: &[u8], times: u32) -> u32 {
        let mut attributes = TestRun {
            program: self.0.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: times,
            ..TestRun::default()
        };
        // SAFETY: the attributes are those of the command, and the frame outlives the call, which
        // only reads it.
        let status = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_TEST_RUN,
                &raw mut attributes,
                size_of::<TestRun>(),
            )
        };
        assert!(
            status == 0,
            "test run of {} bytes: {}",
            frame.len(),
            std::io::Error::last_os_error()
        );
        attributes.retval
    }
}

/// Runs `work` on two threads that start together, pinned to CPU 0 and CPU 1; the argument is the
/// CPU.
#[track_caller]
pub fn on_two_cpus<T: Send>(work: impl Fn(usize) -> T + Sync) -> [T; 2] {
    let barrier = Barrier::new(2);
    let pinned = |cpu| {
        pin_to_cpu(cpu);
        barrier.wait();
        work(cpu)
    };
    thread::scope(|scope| {
        let threads = [0, 1].map(|cpu| {
            let pinned = &pinned;
            scope.spawn(move || pinned(cpu))
        });
        threads.map(|thread| match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}
