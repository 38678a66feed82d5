//! Bucket operations: batches for the program `merge`, which changes buckets in place.

use std::os::fd::AsFd;

use ratelimiter_common::abi::merge::{MAGIC, MAX_OPS, MergeHeader, MergeOp, result};

use super::Error;
use super::loader::Kernel;
use super::pod::{bytes_of, bytes_of_all, read};
use super::sys;

/// How often operations that lost every compare-and-swap are asked for again.
const TRIES: usize = 3;

/// Runs `ops` in the kernel, in order, and fills in their results and levels.
pub(super) fn run(kernel: &Kernel, ops: &mut [MergeOp]) -> Result<(), Error> {
    for batch in ops.chunks_mut(MAX_OPS) {
        for merge_op in batch.iter_mut() {
            merge_op.result = result::PENDING;
        }
        run_batch(kernel, batch)?;
        for _ in 1..TRIES {
            let mut again: Vec<(usize, MergeOp)> = batch
                .iter()
                .copied()
                .enumerate()
                .filter(|(_, merge_op)| merge_op.result == result::CONTENDED)
                .collect();
            if again.is_empty() {
                break;
            }
            let mut retried: Vec<MergeOp> = again.iter().map(|(_, merge_op)| *merge_op).collect();
            run_batch(kernel, &mut retried)?;
            for ((at, _), merge_op) in again.drain(..).zip(retried) {
                if let Some(place) = batch.get_mut(at) {
                    *place = merge_op;
                }
            }
        }
    }
    Ok(())
}

fn run_batch(kernel: &Kernel, batch: &mut [MergeOp]) -> Result<(), Error> {
    let header = MergeHeader {
        magic: MAGIC,
        count: batch.len() as u32,
        reserved: 0,
    };
    let mut frame = bytes_of(&header).to_vec();
    frame.extend_from_slice(bytes_of_all(batch));
    sys::test_run(kernel.merge.as_fd(), &mut frame)
        .map_err(|source| Error::kernel("running program `merge`", source))?;
    let answers = frame
        .get(size_of::<MergeHeader>()..)
        .unwrap_or_default()
        .chunks_exact(size_of::<MergeOp>());
    for (place, answer) in batch.iter_mut().zip(answers) {
        if let Some(answer) = read(answer) {
            *place = answer;
        }
    }
    if let Some(merge_op) = batch
        .iter()
        .find(|merge_op| merge_op.result == result::PENDING)
    {
        return Err(Error::Corrupt(format!(
            "program `merge` left operation {} for key {:#x} undone",
            merge_op.op, merge_op.key
        )));
    }
    Ok(())
}
