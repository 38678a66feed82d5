//! Capability checks. A test that cannot run here fails with a sentence that says what is missing
//! and how to get it; it is never skipped.
use std::path::{Path, PathBuf};

/// Directories searched besides `PATH`: a user's `PATH` often lacks the `sbin` ones.
const EXTRA_PATH: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Fails unless the process may make namespaces and load BPF programs.
#[track_caller]
pub fn root() {
    // SAFETY: `geteuid` has no preconditions.
    let uid = unsafe { libc::geteuid() };
    assert!(
        uid == 0,
        "this test needs root (effective uid is `{uid}`): run it through `cargo xtask test`, which asks sudo"
    );
}

/// Returns the full path of a program, or fails naming the Debian package that brings it.
#[track_caller]
pub fn program(name: &str, debian_package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(EXTRA_PATH.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
        .unwrap_or_else(|| {
            panic!(
                "this test needs the program `{name}`: install the Debian package `{debian_package}`, or run `cargo xtask setup --tests`"
            )
        })
}

/// Fails unless the kernel has BPF with type information, which every program here needs.
#[track_caller]
pub fn bpf() {
    root();
    assert!(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "this test needs a kernel with BTF: `/sys/kernel/btf/vmlinux` is missing (CONFIG_DEBUG_INFO_BTF)"
    );
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
