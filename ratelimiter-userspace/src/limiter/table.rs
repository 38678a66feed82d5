//! The table of clients: cache lines of three ways.
//!
//! A way is a fingerprint, a state word and a policy word. A client's place chooses its home line,
//! and eight neighbouring lines form a group that shares a lock; a client lives in its home line,
//! or, where that was full, in another of the group. Whoever is known never takes the lock.
//!
//! Writing order, under the group's lock: fingerprint becomes [`TOMBSTONE`], then word, then
//! policy, then the new fingerprint. A reader takes policy, word, fingerprint, policy: if the
//! fingerprint is its own and both policies agree, the word belongs to that policy. After changing
//! the word it looks at the fingerprint again, and decides anew if the way is no longer its own.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::identity::{ClientKey, EMPTY, TOMBSTONE};
use super::memory::{Zeroable, Zeroed};
use super::rule::PolicyWord;

/// Ways of a line.
pub(super) const WAYS: usize = 3;
/// Lines of a group; a power of two.
pub(super) const GROUP: usize = 8;
/// Locks, each for every n-th group.
const LOCKS: usize = 1_024;

/// One cache line of the table.
#[repr(C, align(64))]
pub(super) struct Line {
    pub(super) prints: [AtomicU64; WAYS],
    pub(super) words: [AtomicU64; WAYS],
    policies: [AtomicU32; WAYS],
    /// Per way, three bits: the line of the group in which its client is at home.
    homes: AtomicU32,
}

const _: () = assert!(size_of::<Line>() == 64, "a line is one cache line");

// SAFETY: atomics of integers; zero is a valid value of each.
unsafe impl Zeroable for Line {}

impl Line {
    /// Returns the way that holds `print`. Compares all ways without branching.
    #[inline(always)]
    pub(super) fn find(&self, print: u64) -> Option<usize> {
        let [a, b, c] = &self.prints;
        let found = u32::from(a.load(Ordering::Acquire) == print)
            | u32::from(b.load(Ordering::Acquire) == print) << 1
            | u32::from(c.load(Ordering::Acquire) == print) << 2;
        (found != 0).then(|| found.trailing_zeros() as usize)
    }

    /// Returns one way.
    #[inline(always)]
    pub(super) fn way(&self, way: usize) -> Way<'_> {
        let way = way.min(WAYS - 1);
        #[expect(clippy::indexing_slicing, reason = "bounded on the line above")]
        Way {
            print: &self.prints[way],
            word: &self.words[way],
            policy: &self.policies[way],
            homes: &self.homes,
            number: way as u32,
        }
    }
}

/// The three parts of one way.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) print: &'a AtomicU64,
    pub(super) word: &'a AtomicU64,
    policy: &'a AtomicU32,
    homes: &'a AtomicU32,
    number: u32,
}

impl Way<'_> {
    /// Reads the policy word.
    #[inline(always)]
    pub(super) fn policy(&self) -> PolicyWord {
        PolicyWord(self.policy.load(Ordering::Acquire))
    }

    /// Reads a word and the policy it belongs to; `None` if the way is not `print`'s.
    #[inline(always)]
    pub(super) fn read(&self, print: u64) -> Option<(PolicyWord, u64)> {
        let before = self.policy();
        let word = self.word.load(Ordering::Acquire);
        let same = self.print.load(Ordering::Acquire) == print;
        (same && self.policy() == before).then_some((before, word))
    }

    /// Takes the way away from `print` and returns its last word, which nobody can change any more
    /// without noticing; `None` if it was not `print`'s. Under the group's lock.
    pub(super) fn seize(&self, print: u64) -> Option<u64> {
        self.print
            .compare_exchange(print, TOMBSTONE, Ordering::SeqCst, Ordering::SeqCst)
            .ok()?;
        Some(self.word.load(Ordering::SeqCst))
    }

    /// Gives a seized or empty way to `print`. Under the group's lock.
    pub(super) fn settle(&self, print: u64, word: u64, policy: PolicyWord) {
        self.word.store(word, Ordering::SeqCst);
        self.policy.store(policy.0, Ordering::SeqCst);
        self.print.store(print, Ordering::SeqCst);
    }

    /// Notes the line of the group in which the way's client is at home; snapshots need it. Under
    /// the group's lock.
    pub(super) fn set_home(&self, line: usize) {
        let shift = 3 * self.number;
        let others = self.homes.load(Ordering::Relaxed) & !(7 << shift);
        let home = (line % GROUP) as u32;
        self.homes.store(others | home << shift, Ordering::Relaxed);
    }

    /// Returns the line of the group in which the way's client is at home.
    pub(super) fn home(&self) -> usize {
        (self.homes.load(Ordering::Relaxed) >> (3 * self.number)) as usize % GROUP
    }

    /// Gives a seized way back to its owner, unchanged.
    pub(super) fn restore(&self, print: u64) {
        self.print.store(print, Ordering::SeqCst);
    }

    /// Empties a seized way.
    pub(super) fn clear(&self) {
        self.print.store(EMPTY, Ordering::SeqCst);
    }
}

#[repr(align(64))]
#[derive(Default)]
struct Padded(Mutex<()>);

/// All lines.
pub(super) struct Table {
    lines: Zeroed<Line>,
    locks: Box<[Padded]>,
}

impl Table {
    /// A table for `clients`: twice as many ways, so that few are crowded out of a full group.
    pub(super) fn new(clients: usize) -> std::io::Result<Self> {
        let lines = (clients.max(1).saturating_mul(2)).div_ceil(WAYS);
        Self::with_lines(lines)
    }

    /// A table of at least `lines` lines.
    pub(super) fn with_lines(lines: usize) -> std::io::Result<Self> {
        let groups = lines.div_ceil(GROUP).max(1);
        Ok(Self {
            lines: Zeroed::new(groups * GROUP)?,
            locks: (0..LOCKS.min(groups)).map(|_| Padded::default()).collect(),
        })
    }

    /// Number of lines.
    pub(super) fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Bytes the table takes when it is full.
    pub(super) fn bytes(&self) -> usize {
        self.lines.reserved_bytes()
    }

    /// Returns the number of a client's home line.
    #[inline(always)]
    pub(super) fn home(&self, key: ClientKey) -> usize {
        ((u128::from(key.place) * self.lines.len() as u128) >> 64) as usize
    }

    /// Returns a line; numbers beyond the end wrap to the first (no caller asks).
    #[inline(always)]
    pub(super) fn line(&self, number: usize) -> &Line {
        #[expect(
            clippy::indexing_slicing,
            reason = "`home` and `neighbours` stay below the length"
        )]
        &self.lines[number]
    }

    /// The group's lines, `home` first.
    #[inline(always)]
    pub(super) fn neighbours(&self, home: usize) -> impl Iterator<Item = &Line> {
        (0..GROUP).map(move |offset| self.line(home ^ offset))
    }

    /// Locks the group of line `home`.
    pub(super) fn lock(&self, home: usize) -> MutexGuard<'_, ()> {
        #[expect(
            clippy::indexing_slicing,
            reason = "a remainder of the length, which is not 0"
        )]
        let padded = &self.locks[(home / GROUP) % self.locks.len()];
        padded.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the processor to fetch the lines in which most clients are that their home line had no
    /// way for.
    #[inline(always)]
    pub(super) fn prefetch_neighbours(&self, home: usize) {
        self.prefetch(home ^ 1);
        self.prefetch(home ^ 2);
    }

    /// Asks the processor to fetch a line.
    #[inline(always)]
    pub(super) fn prefetch(&self, number: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let line: *const Line = self.line(number);
            // SAFETY: a prefetch changes nothing and cannot fault; SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _hint = number;
    }
}
