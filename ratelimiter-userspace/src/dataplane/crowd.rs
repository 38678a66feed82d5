//! Reads the crowd tables: who owes what, and how full they are.
#![expect(
    clippy::unnecessary_wraps,
    reason = "the words are decoded once `ratelimiter_common::crowd` is there"
)]

use super::Error;
use super::apply::Writer;
use super::loader::Kernel;
use super::state::{CrowdFill, CrowdSource};

/// One unit of one zone: where its words lie and how to read them at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct View;

/// Returns a view of every unit of every zone in use, as of `now_ns`.
pub(super) fn views(_: &Kernel, _: &Writer, _now_ns: u64) -> Result<Vec<View>, Error> {
    Ok(Vec::new())
}

/// Visits every source that owes something.
pub(super) fn scan(_: &Kernel, _: &[View], _: &mut dyn FnMut(&CrowdSource)) -> Result<(), Error> {
    Ok(())
}

/// Counts claimed, indebted and offending words by region.
pub(super) fn fill(_: &Kernel, _: &[View]) -> Result<Vec<CrowdFill>, Error> {
    Ok(Vec::new())
}
