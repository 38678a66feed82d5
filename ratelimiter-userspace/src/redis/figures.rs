//! How it goes with the store, for metrics and people.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;

/// What is counted, by whoever does it.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) connected: AtomicBool,
    /// When `connected` changed last, monotonic; 0 before.
    pub(super) since_ns: AtomicU64,
    pub(super) answered_ns: AtomicU64,
    pub(super) tries: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) calls: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) reloads: AtomicU64,
    pub(super) clamped: AtomicU64,
    pub(super) mended: AtomicU64,
    pub(super) call_ns: AtomicU64,
    pub(super) error: ArcSwap<String>,
}

/// The same, read at one moment. Counts are since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Whether commands go out: connected, and the breaker is closed.
    pub connected: bool,
    /// Since when `connected` is as it is, monotonic nanoseconds; 0 if it never changed.
    pub since_ns: u64,
    /// When the store answered last, monotonic nanoseconds; 0 for never.
    pub answered_ns: u64,
    /// Tries to connect.
    pub tries: u64,
    /// Tries that succeeded.
    pub connections: u64,
    /// Scripts called.
    pub calls: u64,
    /// Entries in them.
    pub entries: u64,
    /// Calls without an answer in time.
    pub late: u64,
    /// Calls that failed otherwise.
    pub failed: u64,
    /// Calls not made: no connection, or too many under way.
    pub refused: u64,
    /// Scripts the store had forgotten and was given again.
    pub reloads: u64,
    /// Amounts that were larger than they may be.
    pub clamped: u64,
    /// Keys whose state made no sense and was dropped.
    pub mended: u64,
    /// Nanoseconds all answered calls took together.
    pub call_ns: u64,
    /// Why the last call or try failed; empty if none did, or if all is well since.
    pub error: String,
}

pub(super) fn count(cell: &AtomicU64, n: u64) {
    cell.fetch_add(n, Ordering::Relaxed);
}

impl Counts {
    pub(super) fn read(&self) -> Figures {
        let of = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Figures {
            connected: self.connected.load(Ordering::Relaxed),
            since_ns: of(&self.since_ns),
            answered_ns: of(&self.answered_ns),
            tries: of(&self.tries),
            connections: of(&self.connections),
            calls: of(&self.calls),
            entries: of(&self.entries),
            late: of(&self.late),
            failed: of(&self.failed),
            refused: of(&self.refused),
            reloads: of(&self.reloads),
            clamped: of(&self.clamped),
            mended: of(&self.mended),
            call_ns: of(&self.call_ns),
            error: self.error.load().as_ref().clone(),
        }
    }

    /// Notes a change of `connected`; whether it was one.
    pub(super) fn turn(&self, connected: bool, now_ns: u64) -> bool {
        let changed = self.connected.swap(connected, Ordering::Relaxed) != connected;
        if changed {
            self.since_ns.store(now_ns, Ordering::Relaxed);
        }
        changed
    }

    pub(super) fn say(&self, error: String) {
        self.error.store(Arc::new(error));
    }
}
