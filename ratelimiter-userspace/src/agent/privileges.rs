//! Least privilege: what the agent keeps of its rights, and files it does not trust.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};

use crate::config::check::mode_problem;

/// The two capabilities the agent needs while it runs.
const NEEDED: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];
/// Put in effect by the data plane while it loads the program, where it is permitted: spares packets
/// the verifier's barriers against speculation.
const TO_LOAD: Capability = Capability::CAP_PERFMON;

/// Gives up every capability but CAP_BPF and CAP_NET_ADMIN, and the right to gain any by running
/// another program. CAP_PERFMON stays permitted where it was, and is in effect only while a program
/// is loaded. Applies to the calling thread and those it starts later: call it before there are any.
///
/// Root keeps its user id and so the files it owns; it loses the right to override permissions.
pub fn restrict() -> anyhow::Result<()> {
    // SAFETY: these arguments are the only ones PR_SET_NO_NEW_PRIVS takes; it touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        anyhow::bail!(
            "cannot set no-new-privileges: {}",
            std::io::Error::last_os_error()
        );
    }
    let permitted = caps::read(None, CapSet::Permitted)?;
    let of = |wanted: &[Capability]| -> CapsHashSet {
        let held = wanted.iter().filter(|wanted| permitted.contains(wanted));
        held.copied().collect()
    };
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &of(&NEEDED))?;
    let [bpf, net_admin] = NEEDED;
    caps::set(None, CapSet::Permitted, &of(&[bpf, net_admin, TO_LOAD]))?;
    Ok(())
}

/// Refuses a configuration file that others may write: whoever writes it writes the policy.
pub(super) fn check_file(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path)
        .map_err(|error| format!("`{}` cannot be read: {error}", path.display()))?;
    // SAFETY: geteuid has no preconditions and cannot fail.
    let own = unsafe { libc::geteuid() };
    let file = path.display().to_string();
    mode_problem(&file, metadata.mode(), metadata.uid(), own).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn refuses_a_file_that_everybody_may_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ratelimiter.toml");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        check_file(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let refusal = check_file(&path).unwrap_err();
        assert!(
            refusal.contains("has mode `0666`: everybody may write it"),
            "{refusal}"
        );
    }
}
