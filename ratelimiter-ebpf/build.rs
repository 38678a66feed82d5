//! Tells bpf-linker which BPF instructions to use.
//!
//! `aya-build` replaces rustflags from the environment and the cargo configuration, so code
//! generation options go to the linker, which is where BPF code is generated. The processor, v2, is
//! said by the agent's build script: rustc passes the linker one of its own.

fn main() {
    #[expect(
        clippy::disallowed_methods,
        reason = "a build script is configured by its environment"
    )]
    let target = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if target == "bpf" {
        // Whole words from packets and packed structures instead of byte by byte.
        println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
