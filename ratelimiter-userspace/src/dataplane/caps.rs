//! Which capabilities are missing, for the sentence that says so.

use std::io;

use caps::{CapSet, Capability};

use super::Error;

/// What the data plane needs: CAP_BPF for maps and programs, CAP_NET_ADMIN for XDP, CAP_PERFMON for
/// pointer arithmetic: without it the verifier (6.18, `sanitize_ptr_alu`) refuses packet lengths and
/// loops over pointers as possible Spectre gadgets.
pub const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
];

/// Returns the capabilities of [`NEEDED`] that this thread lacks, by name.
pub fn missing() -> Vec<String> {
    NEEDED
        .into_iter()
        .filter(|&capability| {
            !caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
                && !caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN)
                    .unwrap_or(false)
        })
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
