//! A quota's flags in a snapshot, in one byte.

use super::spec::QuotaSpec;
use crate::policy::model::{Consistency, OnStoreLoss};

/// What a byte of flags can say in two bits.
const CONSISTENCIES: [Option<Consistency>; 4] = [
    None,
    Some(Consistency::Exact),
    Some(Consistency::Leased),
    Some(Consistency::Local),
];
const LOSSES: [OnStoreLoss; 4] = [
    OnStoreLoss::Hold,
    OnStoreLoss::Strict,
    OnStoreLoss::Local,
    OnStoreLoss::Deny,
];

/// The value that two bits stand for.
fn one_of<T: Copy>(values: [T; 4], bits: u8) -> T {
    let [first, second, third, fourth] = values;
    match bits & 3 {
        0 => first,
        1 => second,
        2 => third,
        _ => fourth,
    }
}

/// A quota's flags: shadow, then two bits of consistency and two of what counts on a loss.
pub(super) fn of(quota: &QuotaSpec) -> u8 {
    let consistency = CONSISTENCIES
        .iter()
        .position(|one| *one == quota.consistency);
    let loss = LOSSES.iter().position(|one| *one == quota.on_store_loss);
    let bits = |place: Option<usize>| place.unwrap_or(0) as u8;
    u8::from(quota.shadow) | bits(consistency) << 1 | bits(loss) << 3
}

/// The consistency in a byte of flags.
pub(super) fn consistency(flags: u8) -> Option<Consistency> {
    one_of(CONSISTENCIES, flags >> 1)
}

/// What counts on a loss, in a byte of flags.
pub(super) fn on_store_loss(flags: u8) -> OnStoreLoss {
    one_of(LOSSES, flags >> 3)
}
