//! Builds the eBPF object, or leaves an empty stub where no BPF toolchain is installed.
//!
//! The toolchain is the first of: `RATELIMITER_BPF_TOOLCHAIN`, the linked toolchain `bpf-build`
//! (see `cargo xtask setup`), `nightly`; each only if it has `rust-src`. Without one, or without
//! `bpf-linker`, or with `AYA_BUILD_SKIP=1`, the object is an empty file: everything compiles, host
//! tests run, and the loader refuses with a sentence that says what to do.
#![allow(
    clippy::disallowed_methods,
    reason = "a build script is configured by its environment"
)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// Binaries of `ratelimiter-ebpf`, and the variable that tells the crate where each lies.
const OBJECTS: [(&str, &str); 2] = [
    ("ratelimiter", "RATELIMITER_OBJECT"),
    ("ratelimiter-bench", "RATELIMITER_BENCH_OBJECT"),
];

fn main() -> Result<()> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("`OUT_DIR` is not set")?);
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("no manifest dir")?)
        .parent()
        .context("the crate lies in no workspace")?
        .to_path_buf();
    for (name, variable) in OBJECTS {
        println!(
            "cargo:rustc-env={variable}={}",
            out_dir.join(name).display()
        );
    }
    for variable in [
        "RATELIMITER_BPF_TOOLCHAIN",
        "RATELIMITER_BPF_LOG",
        "AYA_BUILD_SKIP",
        "PATH",
    ] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=build.rs");

    let skip = env::var("AYA_BUILD_SKIP").is_ok_and(|v| v == "1" || v == "true");
    let toolchain = if skip { None } else { toolchain() };
    match toolchain {
        Some(name) if linker_is_installed() => build(&workspace, &name),
        _ => write_stubs(&out_dir),
    }
}

fn build(workspace: &Path, toolchain: &str) -> Result<()> {
    for (name, value) in [
        // A rustc that is not a nightly needs this for `-Z build-std` and for the BPF intrinsics.
        ("RUSTC_BOOTSTRAP", "1"),
        // BPF v2: its compares, and registers of 64 bits only. (What rustc calls `generic` is v1, and
        // with 32-bit registers but no 32-bit jumps LLVM spells most conditions out in five
        // instructions. v3 has both, and spills 32 bits to slots that held a pointer, which the
        // verifier refuses without CAP_PERFMON.) Flags of the profile, because `aya-build` replaces
        // those of the environment and the cargo configuration.
        ("CARGO_UNSTABLE_PROFILE_RUSTFLAGS", "true"),
        ("CARGO_PROFILE_RELEASE_RUSTFLAGS", "-Ctarget-cpu=v2"),
        // Build scripts run here, where there is no such processor.
        (
            "CARGO_PROFILE_RELEASE_BUILD_OVERRIDE_RUSTFLAGS",
            "-Cdebuginfo=0",
        ),
    ] {
        // SAFETY: the build script has one thread.
        unsafe { env::set_var(name, value) };
    }
    let ebpf = workspace.join("ratelimiter-ebpf");
    let common = workspace.join("ratelimiter-common");
    println!("cargo:rerun-if-changed={}", common.display());
    let root_dir = ebpf.to_str().context("the workspace's path is not UTF-8")?;
    let log = env::var("RATELIMITER_BPF_LOG").is_ok_and(|v| v == "1");
    aya_build::build_ebpf(
        [Package {
            name: "ratelimiter-ebpf",
            root_dir,
            no_default_features: true,
            features: if log { &["log"] } else { &[] },
        }],
        Toolchain::Custom(toolchain),
    )
}

/// Leaves empty objects, and asks cargo to look again at the next build.
fn write_stubs(out_dir: &Path) -> Result<()> {
    for (name, _) in OBJECTS {
        std::fs::write(out_dir.join(name), [])
            .with_context(|| format!("cannot write the stub object `{name}`"))?;
    }
    // A file that never exists: this script runs at every build until there is a toolchain.
    println!(
        "cargo:rerun-if-changed={}",
        out_dir.join("no-bpf-toolchain").display()
    );
    println!(
        "cargo:warning=no BPF toolchain: the kernel program is left out; run `cargo xtask setup`"
    );
    Ok(())
}

/// Returns the first toolchain that can build `core` for BPF.
fn toolchain() -> Option<String> {
    if let Ok(named) = env::var("RATELIMITER_BPF_TOOLCHAIN") {
        return Some(named);
    }
    ["bpf-build", "nightly"]
        .into_iter()
        .find(|name| has_rust_src(name))
        .map(str::to_owned)
}

fn has_rust_src(toolchain: &str) -> bool {
    let sysroot = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .env_remove("RUSTC")
        .output();
    let Ok(output) = sysroot else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success()
        && Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
}

fn linker_is_installed() -> bool {
    Command::new("bpf-linker")
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success())
}
