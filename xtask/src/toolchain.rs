//! The compiler and linker for the kernel program: what is there, and how to get it.
//!
//! Needed is a rustc that has the sources of `core` (no BPF target is shipped prebuilt), and a
//! bpf-linker built against the same LLVM or a newer one. `ratelimiter-userspace/build.rs` looks for
//! the toolchains `bpf-build` and `nightly`, in this order.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{apt, shell};

/// Name under which a compiler that rustup did not install is made known to rustup.
pub(crate) const LINKED: &str = "bpf-build";

/// Version of bpf-linker that is installed where there is none.
const LINKER_VERSION: &str = "0.13.0";

/// LLVM majors that this bpf-linker can be built against.
const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// Debian's current compiler with its sources, kept for its browsers and therefore recent.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// A compiler that can build `core` for BPF.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    /// Its name for `rustup run`.
    pub(crate) toolchain: String,
    /// `rustc 1.96.0 ...`.
    pub(crate) version: String,
    /// Major version of its LLVM.
    pub(crate) llvm: u32,
}

/// The compiler the build script would take, if there is one and a bpf-linker can be built for it.
pub(crate) fn compiler() -> Option<Compiler> {
    [LINKED, "nightly"]
        .into_iter()
        .find_map(inspect)
        .filter(|compiler| LINKER_LLVMS.contains(&compiler.llvm))
}

/// Installs a compiler by the first way that works here.
pub(crate) fn install_compiler() -> Result<Compiler> {
    if shell::find("rustup").is_none() {
        bail!("there is no `rustup`: install it from https://rustup.rs, then run this again");
    }
    if system_llvm().is_some_and(|llvm| LINKER_LLVMS.contains(&llvm)) {
        link_system()?;
    } else if debian_offers()? {
        apt::install(&DEBIAN_PACKAGES)?;
        link_system()?;
    } else {
        install_nightly()?;
    }
    compiler().with_context(|| {
        format!(
            "a compiler was installed, but rustup cannot run it, or its LLVM is not {} to {}",
            LINKER_LLVMS.start(),
            LINKER_LLVMS.end()
        )
    })
}

/// The LLVM of a compiler in `/usr` that has the sources of `core`.
fn system_llvm() -> Option<u32> {
    if !has_sources(Path::new("/usr")) {
        return None;
    }
    llvm_of(&shell::ask("/usr/bin/rustc", &["-vV"])?)
}

fn debian_offers() -> Result<bool> {
    // A fresh image has no package lists at all, or those of the day it was made.
    apt::refresh()?;
    Ok(apt::is_here() && apt::offers(DEBIAN_PACKAGES[0]))
}

fn link_system() -> Result<()> {
    println!("      rustup toolchain link {LINKED} /usr");
    let mut command = Command::new("rustup");
    command.args(["toolchain", "link", LINKED, "/usr"]);
    shell::quietly(command)?;
    Ok(())
}

fn install_nightly() -> Result<()> {
    println!("      rustup toolchain install nightly --profile minimal --component rust-src");
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
    command.args(["--component", "rust-src"]);
    shell::quietly(command)?;
    Ok(())
}

fn inspect(toolchain: &str) -> Option<Compiler> {
    let ask = |arguments: &[&str]| {
        let mut all = vec!["run", toolchain, "rustc"];
        all.extend(arguments);
        shell::ask("rustup", &all)
    };
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
    if !has_sources(&sysroot) {
        return None;
    }
    let verbose = ask(&["-vV"])?;
    Some(Compiler {
        toolchain: toolchain.to_owned(),
        version: verbose.lines().next()?.to_owned(),
        llvm: llvm_of(&verbose)?,
    })
}

fn has_sources(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
}

/// The LLVM major that `rustc -vV` names.
fn llvm_of(verbose: &str) -> Option<u32> {
    verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|version| version.split('.').next()?.parse().ok())
}

/// The bpf-linker on the `PATH`.
#[derive(Clone, Debug)]
pub(crate) struct Linker {
    /// `bpf-linker 0.13.0`.
    pub(crate) version: String,
    /// Major version of the LLVM it is linked to; unknown if it is linked statically.
    pub(crate) llvm: Option<u32>,
}

impl Linker {
    /// Whether it reads what this compiler writes: bitcode of the same LLVM, or of an older one.
    pub(crate) fn fits(&self, compiler: &Compiler) -> bool {
        self.llvm.is_none_or(|llvm| llvm >= compiler.llvm)
    }
}

/// The linker the compiler would call, if it runs at all.
pub(crate) fn linker() -> Option<Linker> {
    let path = shell::find("bpf-linker")?;
    let path = path.to_str()?;
    Some(Linker {
        version: shell::ask(path, &["--version"])?,
        llvm: shell::ask("ldd", &[path]).and_then(|libraries| linked_llvm(&libraries)),
    })
}

/// The LLVM major among the libraries that `ldd` names.
fn linked_llvm(libraries: &str) -> Option<u32> {
    let (_, rest) = libraries.split_once("libLLVM")?;
    let digits: String = rest
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

/// Builds a linker against the LLVM of `compiler`.
pub(crate) fn install_linker(compiler: &Compiler) -> Result<Linker> {
    let llvm = compiler.llvm;
    if !LINKER_LLVMS.contains(&llvm) {
        bail!(
            "{} is built on LLVM {llvm}; bpf-linker {LINKER_VERSION} can be built on LLVM {} to {}",
            compiler.version,
            LINKER_LLVMS.start(),
            LINKER_LLVMS.end()
        );
    }
    let prefix = llvm_prefix(llvm)?;
    println!(
        "      cargo install bpf-linker {LINKER_VERSION} with LLVM {llvm} in {}",
        prefix.display()
    );
    let mut command = shell::cargo();
    command
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
            "--force",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
        ])
        // bpf-linker reads the first, llvm-sys the second; with the second alone bpf-linker finds
        // whatever `llvm-config` is first on the PATH.
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    shell::quietly(command)?;
    linker().context(
        "bpf-linker was installed, but it does not run: is `$CARGO_HOME/bin` in your PATH?",
    )
}

/// Where this LLVM's `llvm-config` and libraries are; installs Debian's where they are not.
fn llvm_prefix(llvm: u32) -> Result<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if debian.join("bin/llvm-config").exists() {
        return Ok(debian);
    }
    let own = shell::ask("llvm-config", &["--version"])
        .is_some_and(|version| version.starts_with(&format!("{llvm}.")));
    if own && let Some(prefix) = shell::ask("llvm-config", &["--prefix"]) {
        return Ok(PathBuf::from(prefix));
    }
    apt::install(&[&format!("llvm-{llvm}-dev")])?;
    if !debian.join("bin/llvm-config").exists() {
        bail!("`{}` has no `bin/llvm-config`", debian.display());
    }
    Ok(debian)
}

#[cfg(test)]
mod tests {
    use super::{Compiler, Linker, linked_llvm, llvm_of};

    #[test]
    fn reads_the_llvm_of_a_compiler() {
        let verbose = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_of(verbose), Some(22));
        assert_eq!(llvm_of("rustc 1.96.0\n"), None);
    }

    #[test]
    fn reads_the_llvm_of_a_linker() {
        let debian = "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007f)";
        assert_eq!(linked_llvm(debian), Some(22));
        assert_eq!(
            linked_llvm("\tlibLLVM-14.so.1 => /lib/libLLVM-14.so.1"),
            Some(14)
        );
        assert_eq!(linked_llvm("\tlibc.so.6 => /lib/libc.so.6"), None);
    }

    #[test]
    fn refuses_a_linker_on_an_older_llvm() {
        let compiler = Compiler {
            toolchain: "bpf-build".into(),
            version: "rustc".into(),
            llvm: 22,
        };
        let linker = |llvm| Linker {
            version: String::new(),
            llvm,
        };
        assert!(!linker(Some(21)).fits(&compiler));
        assert!(linker(Some(22)).fits(&compiler));
        assert!(linker(Some(23)).fits(&compiler));
        assert!(linker(None).fits(&compiler));
    }
}
