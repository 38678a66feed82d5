//! The scripts' arguments and answers in bytes.

use crate::policy::model::Algorithm;
use crate::sync::settle::{MAX_AMOUNT, MAX_BATCH};
use crate::sync::{Answer, Entry, Settled};

/// What a byte says about the algorithm, as in `settle.lua`.
const fn code(algorithm: Algorithm) -> u8 {
    match algorithm {
        Algorithm::TokenBucket => 1,
        Algorithm::SlidingLog => 2,
        Algorithm::SlidingWindow => 3,
        Algorithm::FixedWindow => 4,
    }
}

/// One entry as the script unpacks it.
pub(super) fn pack(entry: &Entry) -> Vec<u8> {
    let quota = &entry.quota;
    let mut out = Vec::with_capacity(1 + 13 * 8);
    out.push(code(quota.algorithm));
    for value in [
        quota.limit,
        quota.burst,
        quota.window_us,
        quota.grain,
        quota.revision,
        quota.entry_cap(),
        quota.debt_cap(),
        entry.spend,
        entry.debt,
        entry.returned,
        entry.age_us,
        entry.want,
        entry.least,
    ] {
        out.extend_from_slice(&(value as f64).to_le_bytes());
    }
    out
}

/// What a batch was answered, and the store's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unpacked {
    pub(super) now_us: u64,
    pub(super) settled: Settled,
}

/// Reads the script's answer to `entries` entries.
pub(super) fn unpack(bytes: &[u8], entries: usize) -> Result<Unpacked, String> {
    const HEAD: usize = 24;
    const EACH: usize = 41;
    let expected = HEAD + entries.min(MAX_BATCH) * EACH;
    if bytes.len() != expected {
        return Err(format!(
            "{} bytes for {entries} entries instead of {expected}",
            bytes.len()
        ));
    }
    let (head, rest) = bytes.split_at(HEAD);
    let mut head = head.chunks_exact(8).map(whole);
    let mut next = || head.next().unwrap_or(Err(NOT_WHOLE.to_owned()));
    let (now_us, clamped, mended) = (next()?, next()?, next()?);
    let mut answers = Vec::with_capacity(entries);
    for one in rest.chunks_exact(EACH) {
        let mut numbers = one.chunks_exact(8).map(whole);
        let mut next = || numbers.next().unwrap_or(Err(NOT_WHOLE.to_owned()));
        answers.push(Answer {
            level: next()?,
            granted: next()?,
            fleet_spend: next()?,
            wait_us: next()?,
            ends_us: next()?,
            outdated: one.last() == Some(&1),
        });
    }
    Ok(Unpacked {
        now_us,
        settled: Settled {
            answers,
            clamped,
            mended,
            lost: Vec::new(),
        },
    })
}

const NOT_WHOLE: &str = "a number that is not whole, or not between 0 and 2^53";

fn whole(bytes: &[u8]) -> Result<u64, String> {
    let value = bytes.try_into().map_or(f64::NAN, f64::from_le_bytes);
    if value.fract() == 0.0 && (0.0..=MAX_AMOUNT as f64).contains(&value) {
        Ok(value as u64)
    } else {
        Err(NOT_WHOLE.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(numbers: &[f64], rest: &[f64]) -> Vec<u8> {
        let mut out = Vec::new();
        for number in numbers.iter().chain(rest) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(0);
        out
    }

    #[test]
    fn nonsense_is_refused() {
        let head = [5.0, 0.0, 1.0];
        let fine = answer(&head, &[1.0, 2.0, 3.0, 4.0, 5.0]);
        let read = unpack(&fine, 1).unwrap();
        assert_eq!((read.now_us, read.settled.mended), (5, 1));
        assert_eq!(read.settled.answers[0].granted, 2);
        for bad in [f64::NAN, f64::INFINITY, -1.0, 0.5, 1e17] {
            assert!(unpack(&answer(&head, &[1.0, bad, 3.0, 4.0, 5.0]), 1).is_err());
        }
        assert!(unpack(&fine, 2).is_err());
        assert!(unpack(b"", 1).is_err());
    }
}
