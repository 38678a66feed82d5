//! Where the real Envoy is: it comes from no Debian package.
use std::path::PathBuf;

use crate::OrFail as _;

/// Full path of the program: in the `PATH`, or where `cargo xtask setup --tests` puts it.
#[track_caller]
#[must_use]
pub fn program() -> PathBuf {
    let test = std::env::current_exe().or_fail("find the test binary");
    let installed = test
        .ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "target"))
        .map(|target| target.join("tools/envoy"))
        .filter(|path| path.is_file());
    let in_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join("envoy"))
            .find(|path| path.is_file())
    };
    installed
        .or_else(in_path)
        .unwrap_or_else(|| panic!("this test needs Envoy 1.40: run `cargo xtask setup --tests`"))
}
