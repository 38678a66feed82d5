//! `cargo xtask doctor`: what this machine can build, test and run. Changes nothing.
use std::path::Path;

use anyhow::Result;

use crate::apt::Tool;
use crate::setup::{self, BUILD_TOOLS, TEST_TOOLS};
use crate::{Said, shell, toolchain};

/// Entry point.
pub(crate) fn main() -> Result<()> {
    let mut missing = 0;
    let mut say = |good: bool, text: &str| {
        println!("{} {text}", if good { "ok     " } else { "missing" });
        missing += u32::from(!good);
    };
    for tool in BUILD_TOOLS.iter().chain(&TEST_TOOLS) {
        let (good, text) = describe(tool);
        say(good, &text);
    }
    match toolchain::compiler() {
        Some(compiler) => say(true, &setup::describe_compiler(&compiler)),
        None => say(
            false,
            "a rustc with the sources of core, as `bpf-build` or `nightly`",
        ),
    }
    match (toolchain::linker(), toolchain::compiler()) {
        (Some(linker), Some(compiler)) if !linker.fits(&compiler) => say(
            false,
            &format!(
                "a bpf-linker on LLVM {} ({} is older)",
                compiler.llvm,
                setup::describe_linker(&linker)
            ),
        ),
        (Some(linker), _) => say(true, &setup::describe_linker(&linker)),
        (None, _) => say(false, "bpf-linker"),
    }
    let kernel = shell::ask("uname", &["-r"]).unwrap_or_default();
    say(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        &format!("kernel {kernel} with type information (BTF)"),
    );
    say(
        shell::is_root() || shell::find("sudo").is_some(),
        if shell::is_root() {
            "root"
        } else {
            "root through sudo"
        },
    );
    if missing > 0 {
        println!("\n{missing} missing; `cargo xtask setup --tests` installs what can be installed");
        return Err(Said.into());
    }
    println!("\nthis machine can build, test and run everything");
    Ok(())
}

fn describe(tool: &Tool) -> (bool, String) {
    match shell::find(tool.program) {
        Some(path) => (true, format!("{} ({})", tool.program, path.display())),
        None => (
            false,
            format!(
                "{}: {} (Debian package {})",
                tool.program, tool.why, tool.package
            ),
        ),
    }
}
