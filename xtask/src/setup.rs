//! `cargo xtask setup`: finds what is there and installs only what is missing.
use std::path::Path;

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::apt::{self, Tool};
use crate::browser;
use crate::deb;
use crate::envoy;
use crate::kubernetes;
use crate::report::Steps;
use crate::schemathesis;
use crate::throttlecrab;
use crate::toolchain::{self, Compiler, Linker};

/// What to make ready for.
#[derive(Clone, Copy, Debug, Default, ClapArgs)]
pub(crate) struct Args {
    /// Also install what the tests and benchmarks use: redis, promtool, nftables, iptables, ...
    #[arg(long)]
    pub(crate) tests: bool,
    /// Also build the rivals that `bench check` measures beside: throttlecrab-server
    #[arg(long)]
    pub(crate) rivals: bool,
}

/// What building and the demo use, beside the C compiler that `xtask/linker` has seen to.
pub(crate) const BUILD_TOOLS: [Tool; 1] = [Tool {
    program: "ip",
    package: "iproute2",
    why: "makes namespaces and veth pairs",
}];

/// What tests and benchmarks use besides.
pub(crate) const TEST_TOOLS: [Tool; 18] = [
    Tool {
        program: "nginx",
        package: "nginx-light",
        why: "asks forward-auth in tests",
    },
    Tool {
        program: "caddy",
        package: "caddy",
        why: "asks forward-auth in tests",
    },
    Tool {
        program: "haproxy",
        package: "haproxy",
        why: "asks forward-auth in tests",
    },
    Tool {
        program: "redis-server",
        package: "redis-server",
        why: "the shared store under test",
    },
    Tool {
        program: "promtool",
        package: "prometheus",
        why: "judges the metrics page",
    },
    Tool {
        program: "prometheus-alertmanager",
        package: "prometheus-alertmanager",
        why: "is told of alerts in tests",
    },
    Tool {
        program: "nft",
        package: "nftables",
        why: "a rival in the benchmarks",
    },
    Tool {
        program: "iptables",
        package: "iptables",
        why: "breaks connections in tests, and a rival in the benchmarks",
    },
    Tool {
        program: "ethtool",
        package: "ethtool",
        why: "switches offloads in the benchmarks",
    },
    Tool {
        program: "iperf3",
        package: "iperf3",
        why: "the legitimate traffic of the benchmarks",
    },
    Tool {
        program: "bpftool",
        package: "bpftool",
        why: "tampers with links in tests",
    },
    Tool {
        program: "tmux",
        package: "tmux",
        why: "the terminal of `ratelimiter top` in tests",
    },
    Tool {
        program: "ping",
        package: "iputils-ping",
        why: "checks that namespaces are connected",
    },
    Tool {
        program: "curl",
        package: "curl",
        why: "runs the README's commands",
    },
    Tool {
        program: "lintian",
        package: "lintian",
        why: "judges the Debian package",
    },
    Tool {
        program: "dpkg-shlibdeps",
        package: "dpkg-dev",
        why: "finds what the Debian package depends on",
    },
    Tool {
        program: "xz",
        package: "xz-utils",
        why: "compresses the Debian package",
    },
    Tool {
        program: "systemd-analyze",
        package: "systemd",
        why: "judges the systemd unit",
    },
];

/// Entry point.
pub(crate) fn main(args: Args) -> Result<()> {
    ensure(args)?;
    println!("ready");
    Ok(())
}

/// Makes the machine ready, and says each step.
pub(crate) fn ensure(args: Args) -> Result<()> {
    let more = if args.tests { 7 } else { 0 } + usize::from(args.rivals);
    let mut steps = Steps::new(3 + more);
    steps.step("tools to build", || apt::ensure(&BUILD_TOOLS))?;
    let mut compiler = None;
    steps.step(
        "compiler for the kernel program (rustc with the sources of core)",
        || {
            let (found, said) = ensure_compiler()?;
            compiler = Some(found);
            Ok(said)
        },
    )?;
    steps.step("linker for the kernel program (bpf-linker)", || {
        compiler
            .as_ref()
            .map_or_else(|| Ok(String::new()), ensure_linker)
    })?;
    if args.tests {
        steps.step("tools to test", || apt::ensure(&TEST_TOOLS))?;
        steps.step("Envoy, a proxy that asks the check API", envoy::ensure)?;
        steps.step(
            "schemathesis, which tries what the check API describes",
            schemathesis::ensure,
        )?;
        steps.step("Lua in nginx, for its recipe", nginx_lua)?;
        steps.step("cargo-deb, which makes the Debian package", deb::ensure)?;
        steps.step(
            "kubernetes-validate, which judges the manifests",
            kubernetes::ensure,
        )?;
        steps.step("a browser, and what drives it", browser::ensure)?;
    }
    if args.rivals {
        steps.step(
            "throttlecrab-server, a rival in the benchmarks",
            throttlecrab::ensure,
        )?;
    }
    Ok(())
}

/// A module of nginx, and so no program that could be found by its name.
fn nginx_lua() -> Result<String> {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_http_lua_module.so";
    if Path::new(MODULE).exists() {
        return Ok(format!("found {MODULE}"));
    }
    apt::install(&["libnginx-mod-http-lua"])?;
    Ok("installed libnginx-mod-http-lua".to_owned())
}

fn ensure_compiler() -> Result<(Compiler, String)> {
    if let Some(found) = toolchain::compiler() {
        let said = format!("found {}", describe_compiler(&found));
        return Ok((found, said));
    }
    let installed = toolchain::install_compiler()?;
    let said = format!("installed {}", describe_compiler(&installed));
    Ok((installed, said))
}

fn ensure_linker(compiler: &Compiler) -> Result<String> {
    match toolchain::linker() {
        Some(found) if found.fits(compiler) => Ok(format!("found {}", describe_linker(&found))),
        Some(older) => {
            println!(
                "      {} is too old for this compiler",
                describe_linker(&older)
            );
            let linker = toolchain::install_linker(compiler)?;
            Ok(format!("installed {}", describe_linker(&linker)))
        }
        None => {
            let linker = toolchain::install_linker(compiler)?;
            Ok(format!("installed {}", describe_linker(&linker)))
        }
    }
}

/// A compiler in one line.
pub(crate) fn describe_compiler(compiler: &Compiler) -> String {
    format!(
        "toolchain `{}`: {}, LLVM {}",
        compiler.toolchain, compiler.version, compiler.llvm
    )
}

/// A linker in one line.
pub(crate) fn describe_linker(linker: &Linker) -> String {
    match linker.llvm {
        Some(llvm) => format!("{}, LLVM {llvm}", linker.version),
        None => linker.version.clone(),
    }
}
