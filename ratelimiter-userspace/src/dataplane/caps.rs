//! Which capabilities are missing, for the sentence that says so.

use std::io;

use caps::{CapSet, Capability};

use super::Error;

/// What the data plane needs: CAP_BPF for maps and programs, CAP_NET_ADMIN for XDP. Not CAP_PERFMON:
/// the program is written so that the verifier can guard it against speculation.
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
