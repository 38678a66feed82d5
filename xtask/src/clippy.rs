//! `cargo xtask clippy`: everything that compiles for the host; warnings are errors.
use anyhow::Result;

use crate::shell;

/// Entry point.
pub(crate) fn main() -> Result<()> {
    let mut command = shell::cargo();
    // The kernel program only compiles for a BPF target, which clippy has no sysroot for.
    command
        .args([
            "clippy",
            "--workspace",
            "--exclude",
            "ratelimiter-ebpf",
            "--all-targets",
        ])
        .args(["--", "-D", "warnings"]);
    shell::show(command)
}
