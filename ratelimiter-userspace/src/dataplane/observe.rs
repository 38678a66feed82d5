//! What the kernel counted, sampled and reported.

use std::sync::PoisonError;

use ratelimiter_common::abi::counters::{CpuState, SAMPLE_SLOTS, Sample, SampleRing};
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::tracked::{SourceKey, Tracked};

use super::Error;
use super::loader::Kernel;
use super::mmap::Mmap;
use super::pod::{bytes_of_all, read};
use super::state::{Drained, Stats};

/// Most events handed out by one call: a flood must not keep the caller here.
const MAX_EVENTS: u64 = 65_536;
/// Words of a ring's head and of one sample.
const HEAD_WORDS: usize = 8;
const SAMPLE_WORDS: usize = size_of::<Sample>() / 8;
const RING_WORDS: usize = size_of::<SampleRing>() / 8;

/// Sums the counters over CPUs.
pub(super) fn stats(kernel: &Kernel) -> Result<Stats, Error> {
    let mut stats = Stats::default();
    for cpu in kernel
        .map(names::CPU)?
        .per_cpu::<CpuState>(0, kernel.cpus)?
    {
        let counted = cpu.counts.iter().flatten();
        for (sum, count) in stats.counts.iter_mut().flatten().zip(counted) {
            sum.packets = sum.packets.wrapping_add(count.packets);
            sum.bytes = sum.bytes.wrapping_add(count.bytes);
        }
        for (sum, count) in stats.segments.iter_mut().zip(&cpu.segments) {
            sum.conforming = sum.conforming.wrapping_add(count.conforming);
            sum.shadowed = sum.shadowed.wrapping_add(count.shadowed);
            sum.dropped = sum.dropped.wrapping_add(count.dropped);
            sum.conforming_bytes = sum.conforming_bytes.wrapping_add(count.conforming_bytes);
        }
    }
    Ok(stats)
}

/// Where the reader of the sample rings stands: samples read or skipped, by CPU.
#[derive(Debug)]
pub(super) struct SampleReader {
    read: Vec<u64>,
}

impl SampleReader {
    /// Starts behind what is there: an earlier agent has seen it.
    pub(super) fn new(kernel: &Kernel) -> Result<Self, Error> {
        let memory = kernel.map(names::SAMPLES)?.memory()?;
        Ok(Self {
            read: (0..memory.words() / RING_WORDS)
                .map(|cpu| memory.word_acquire(cpu * RING_WORDS))
                .collect(),
        })
    }

    /// Hands out what came since, oldest first per CPU.
    pub(super) fn drain(
        &mut self,
        kernel: &Kernel,
        visit: &mut dyn FnMut(&Sample),
    ) -> Result<Drained, Error> {
        let memory = kernel.map(names::SAMPLES)?.memory()?;
        let mut drained = Drained::default();
        for (cpu, read) in self.read.iter_mut().enumerate() {
            drain_ring(memory, cpu * RING_WORDS, read, &mut drained, visit);
        }
        Ok(drained)
    }
}

/// Reads one ring. The kernel may overwrite a sample while it is copied: the head, read again
/// after the copy, tells. The slot at the head itself is being written, hence the one in reserve.
fn drain_ring(
    memory: &Mmap,
    base: usize,
    read_until: &mut u64,
    drained: &mut Drained,
    visit: &mut dyn FnMut(&Sample),
) {
    const KEPT: u64 = SAMPLE_SLOTS as u64 - 1;
    let head = memory.word_acquire(base);
    // A head that ran backwards is a table that was made anew: start over.
    let waiting = head.saturating_sub(*read_until);
    let lost = waiting.saturating_sub(KEPT);
    drained.lost += lost;
    let first = head - (waiting - lost);
    for number in first..head {
        let slot = base + HEAD_WORDS + (number % SAMPLE_SLOTS as u64) as usize * SAMPLE_WORDS;
        let words: [u64; SAMPLE_WORDS] = std::array::from_fn(|at| memory.word(slot + at));
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        if memory.word_acquire(base).wrapping_sub(number) > KEPT {
            drained.lost += 1;
            continue;
        }
        if let Some(sample) = read::<Sample>(bytes_of_all(&words)) {
            visit(&sample);
            drained.taken += 1;
        }
    }
    *read_until = head;
}

/// Hands out waiting drop events.
pub(super) fn drain_events(kernel: &Kernel, visit: &mut dyn FnMut(&Sample)) -> u64 {
    let mut ring = kernel.events.lock().unwrap_or_else(PoisonError::into_inner);
    let mut taken = 0;
    while taken < MAX_EVENTS {
        let Some(item) = ring.next() else {
            break;
        };
        if let Some(sample) = read::<Sample>(&item) {
            visit(&sample);
        }
        taken += 1;
    }
    taken
}

/// Visits every tracked source.
pub(super) fn scan_tracked(
    kernel: &Kernel,
    visit: &mut dyn FnMut(SourceKey, &Tracked),
) -> Result<(), Error> {
    kernel
        .map(names::TRACKED)?
        .walk::<SourceKey, Tracked>(|key, value| visit(*key, value))
}

/// Reads some tracked sources.
pub(super) fn read_tracked(
    kernel: &Kernel,
    keys: &[SourceKey],
    visit: &mut dyn FnMut(SourceKey, Option<&Tracked>),
) -> Result<(), Error> {
    let map = kernel.map(names::TRACKED)?;
    for key in keys {
        let value = map.get::<SourceKey, Tracked>(key)?;
        visit(*key, value.as_ref());
    }
    Ok(())
}
