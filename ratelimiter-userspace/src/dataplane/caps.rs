//! Which capabilities are missing, for the sentence that says so.

use std::io;

use caps::{CapSet, Capability};

use super::Error;

/// What the data plane needs: CAP_BPF for maps and programs, CAP_NET_ADMIN for XDP. Not CAP_PERFMON,
/// see [`unguarded`].
pub const NEEDED: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// Returns the capabilities of [`NEEDED`] that this thread lacks, by name.
pub fn missing() -> Vec<String> {
    let has = |capability| {
        [capability, Capability::CAP_SYS_ADMIN]
            .into_iter()
            .any(|capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false))
    };
    NEEDED
        .into_iter()
        .filter(|&capability| !has(capability))
        .map(|capability| capability.to_string())
        .collect()
}

/// Runs `load` with CAP_PERFMON in effect on this thread, where that is permitted, and only so long;
/// tells it whether it is.
///
/// A program loaded without it is given barriers against speculation by the verifier, which make a
/// packet several times as dear (`cargo xtask bench kernel` prints both); it loads and limits all the
/// same.
pub(super) fn unguarded<T>(load: impl FnOnce(bool) -> T) -> T {
    let has = |set, capability| caps::has_cap(None, set, capability).unwrap_or(false);
    let held = |set| has(set, Capability::CAP_PERFMON);
    if held(CapSet::Effective) || !held(CapSet::Permitted) {
        return load(held(CapSet::Effective) || has(CapSet::Effective, Capability::CAP_SYS_ADMIN));
    }
    let raised = caps::raise(None, CapSet::Effective, Capability::CAP_PERFMON);
    let loaded = load(raised.is_ok());
    if raised.is_ok()
        && let Err(error) = caps::drop(None, CapSet::Effective, Capability::CAP_PERFMON)
    {
        tracing::warn!(%error, "CAP_PERFMON stays in effect on the thread that loaded the program");
    }
    loaded
}

/// A refusal for want of a right.
pub(super) fn denied(doing: &str, source: io::Error) -> Error {
    let missing = missing();
    if missing.is_empty() {
        return Error::kernel(doing, source);
    }
    Error::Permission {
        missing: missing.join(" and "),
        doing: doing.to_owned(),
        source,
    }
}
