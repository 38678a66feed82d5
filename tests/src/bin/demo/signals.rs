//! Ending on request: SIGINT, SIGTERM and SIGHUP are waited for, never handled in between.
use std::time::Duration;

/// The signals that ask us to end.
fn set() -> libc::sigset_t {
    // SAFETY: the set is initialised by `sigemptyset` before it is used, and lives here.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

/// Keeps the signals pending for this thread and every thread started later.
pub(crate) fn hold() {
    let set = set();
    // SAFETY: the set is initialised; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Waits for one of them, at most `bound`. Returns whether one came.
pub(crate) fn came_within(bound: Duration) -> bool {
    let set = set();
    let timeout = libc::timespec {
        tv_sec: bound.as_secs().cast_signed(),
        tv_nsec: i64::from(bound.subsec_nanos()),
    };
    // SAFETY: both structures live until the call returns; no information is asked for.
    let signal =
        unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const timeout) };
    signal > 0
}
