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

/// Returns the capabilities of [`NEEDED`] that this thread lacks, by name. CAP_PERFMON counts as
/// present while it is permitted: it is in effect for the moment of loading only.
pub fn missing() -> Vec<String> {
    let has = |capability| {
        let set = match capability {
            Capability::CAP_PERFMON => CapSet::Permitted,
            _ => CapSet::Effective,
        };
        [capability, Capability::CAP_SYS_ADMIN]
            .into_iter()
            .any(|capability| caps::has_cap(None, set, capability).unwrap_or(false))
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
