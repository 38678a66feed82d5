//! Side storage for clients whose state needs more than one word: sliding logs, several quotas at
//! once, and the caller's own clock.
//!
//! A block is a few words behind a spin lock of its own, so two clients never wait for each other.
//! Blocks are handed out from size classes and never returned to the operating system: a thread
//! that still holds the number of a block that was given to another client finds another owner in
//! it and looks again. The memory is bounded; whoever finds it full uses one word instead
//! ([`super::registry::Compiled::companion`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::memory::{Zeroable, Zeroed};
use super::rule::PolicyWord;

// SAFETY: an integer; zero is valid.
unsafe impl Zeroable for AtomicU64 {}

/// Words before the states: lock and policy, owner, newest stamp.
pub(super) const HEADER: usize = 3;
/// Chunks of a class, each twice as large as the one before.
const CHUNKS: usize = 32;
/// Words of a class's first chunk, about.
const FIRST_CHUNK_WORDS: usize = 4_096;
/// Tries for a block's lock before giving up; a holder copies a few words.
const LOCK_TRIES: u32 = 1 << 20;

/// The number of a block, as kept in a client's word. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockId(pub(super) u64);

impl BlockId {
    fn new(class: usize, index: u32) -> Self {
        Self(1 << 63 | (class as u64) << 32 | u64::from(index))
    }
    /// Whether this is no block's number.
    pub(super) fn is_none(self) -> bool {
        self.0 >> 63 == 0
    }
    fn class(self) -> usize {
        (self.0 >> 32 & 0xff) as usize
    }
    fn index(self) -> u32 {
        self.0 as u32
    }
}

struct Class {
    words: usize,
    first_chunk: u64,
    chunks: [OnceLock<Zeroed<AtomicU64>>; CHUNKS],
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    list: Vec<u32>,
    next: u32,
}

/// All blocks of a limiter.
pub(super) struct Blocks {
    classes: Vec<Class>,
    cap_words: u64,
    used_words: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Class {
    fn new(words: usize) -> Self {
        Self {
            words,
            first_chunk: (FIRST_CHUNK_WORDS / words).max(1) as u64,
            chunks: [const { OnceLock::new() }; CHUNKS],
            free: Mutex::default(),
        }
    }

    /// Returns chunk and place of block `index`: chunk k holds `first_chunk << k` blocks.
    fn locate(&self, index: u32) -> (usize, usize) {
        let shifted = u64::from(index) + self.first_chunk;
        let chunk = (shifted / self.first_chunk).ilog2();
        let place = shifted - (self.first_chunk << chunk);
        (chunk as usize, place as usize)
    }

    fn get(&self, index: u32) -> Option<&[AtomicU64]> {
        let (chunk, place) = self.locate(index);
        let start = place * self.words;
        self.chunks
            .get(chunk)?
            .get()?
            .get(start..start + self.words)
    }

    /// Makes sure the chunk of `index` exists.
    fn provide(&self, index: u32) -> Option<()> {
        let (chunk, _) = self.locate(index);
        let cell = self.chunks.get(chunk)?;
        if cell.get().is_none() {
            let blocks = usize::try_from(self.first_chunk << chunk).ok()?;
            let memory = Zeroed::new(blocks.checked_mul(self.words)?).ok()?;
            // Whoever came first wins; the caller holds the class's lock, so nobody does.
            let _first = cell.set(memory);
        }
        Some(())
    }
}

impl Blocks {
    /// Storage of at most `cap_bytes`.
    pub(super) fn new(cap_bytes: u64) -> Self {
        let mut classes = Vec::new();
        let mut words = HEADER + 1;
        while words < 80_000 {
            classes.push(Class::new(words));
            words += if words < 96 { 2 } else { words / 4 };
        }
        Self {
            classes,
            cap_words: cap_bytes / 8,
            used_words: AtomicU64::new(0),
        }
    }

    /// Bytes ever handed out.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_words.load(Ordering::Relaxed) * 8
    }

    /// Takes a block of at least `words` words, all zero but the header; `None` where the memory
    /// is used up.
    pub(super) fn take(&self, words: usize) -> Option<BlockId> {
        let class = self.classes.partition_point(|class| class.words < words);
        let of = self.classes.get(class)?;
        let mut free = lock(&of.free);
        let index = if let Some(index) = free.list.pop() {
            index
        } else {
            let need = of.words as u64;
            let index = free.next;
            let taken =
                self.used_words
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                        (used + need <= self.cap_words).then_some(used + need)
                    });
            taken.ok()?;
            of.provide(index)?;
            free.next = index.checked_add(1)?;
            index
        };
        drop(free);
        let id = BlockId::new(class, index);
        let block = self.get(id)?;
        for word in block.words.iter().skip(1) {
            word.store(0, Ordering::Relaxed);
        }
        Some(id)
    }

    /// Gives a block back. Its owner word must have been cleared under its lock.
    pub(super) fn give_back(&self, id: BlockId) {
        if let Some(class) = self.classes.get(id.class()) {
            lock(&class.free).list.push(id.index());
        }
    }

    /// Returns a block.
    #[inline(always)]
    pub(super) fn get(&self, id: BlockId) -> Option<Block<'_>> {
        let words = self.classes.get(id.class())?.get(id.index())?;
        Some(Block { words })
    }
}

/// A block nobody has locked yet.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    words: &'a [AtomicU64],
}

/// A block this thread alone may read and change, until dropped.
pub(super) struct Held<'a> {
    words: &'a [AtomicU64],
    policy: u32,
}

impl<'a> Block<'a> {
    /// Locks the block; `None` if that does not succeed for a very long time.
    #[inline(always)]
    pub(super) fn lock(self) -> Option<Held<'a>> {
        let first = self.words.first()?;
        for tries in 0..LOCK_TRIES {
            let word = first.load(Ordering::Relaxed);
            if word & 1 == 0
                && first
                    .compare_exchange_weak(word, word | 1, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return Some(Held {
                    words: self.words,
                    policy: (word >> 32) as u32,
                });
            }
            if tries % 128 == 127 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        None
    }
}

impl<'a> Held<'a> {
    /// The policy the states belong to.
    pub(super) fn policy(&self) -> PolicyWord {
        PolicyWord(self.policy)
    }

    /// The owner's fingerprint.
    pub(super) fn owner(&self) -> u64 {
        self.words
            .get(1)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Gives the block to `owner` under `policy`.
    pub(super) fn hand_over(&mut self, owner: u64, policy: PolicyWord) {
        self.policy = policy.0;
        if let Some(word) = self.words.get(1) {
            word.store(owner, Ordering::Relaxed);
        }
    }

    /// The newest stamp seen, in nanoseconds; caller's clock only.
    pub(super) fn newest(&self) -> u64 {
        self.words
            .get(2)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Remembers the newest stamp.
    pub(super) fn set_newest(&mut self, now_ns: u64) {
        if let Some(word) = self.words.get(2) {
            word.store(now_ns, Ordering::Relaxed);
        }
    }

    /// The `len` state words from `offset` on; empty where they do not exist.
    #[inline(always)]
    pub(super) fn states(&self, offset: usize, len: usize) -> &'a [AtomicU64] {
        let start = HEADER + offset;
        self.words.get(start..start + len).unwrap_or(&[])
    }

    /// Number of state words.
    #[cfg(test)]
    fn room(&self) -> usize {
        self.words.len().saturating_sub(HEADER)
    }
}

impl Drop for Held<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(first) = self.words.first() {
            first.store(u64::from(self.policy) << 32, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_are_used_again() {
        let blocks = Blocks::new(8 << 20);
        let mut ids = Vec::new();
        for n in 0..3_000_u64 {
            let id = blocks.take(HEADER + 1 + (n as usize * 7) % 200).unwrap();
            let held = blocks.get(id).unwrap().lock().unwrap();
            for word in held.states(0, held.room()) {
                assert_eq!(word.load(Ordering::Relaxed), 0);
                word.store(n, Ordering::Relaxed);
            }
            ids.push(id);
        }
        for (n, &id) in ids.iter().enumerate() {
            let held = blocks.get(id).unwrap().lock().unwrap();
            assert!(
                held.states(0, held.room())
                    .iter()
                    .all(|w| w.load(Ordering::Relaxed) == n as u64)
            );
        }
        let used = blocks.used_bytes();
        for &id in &ids {
            blocks.give_back(id);
        }
        for n in 0..3_000 {
            assert!(blocks.take(HEADER + 1 + (n * 7) % 200).is_some());
        }
        assert_eq!(blocks.used_bytes(), used);
    }

    #[test]
    fn memory_is_bounded() {
        let blocks = Blocks::new(80_000);
        let taken = (0..10_000).filter_map(|_| blocks.take(64)).count();
        assert!((100..=80_000 / (64 * 8)).contains(&taken), "{taken}");
        assert!(blocks.used_bytes() <= 80_000);
        assert!(blocks.take(1 << 20).is_none(), "larger than any class");
    }
}
