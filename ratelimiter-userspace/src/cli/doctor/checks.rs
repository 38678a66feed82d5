//! Judges [`Facts`]. Pure: the same facts give the same findings, in the same order.

use serde::Serialize;

use super::facts::{
    AgentFacts, BpffsFacts, ConfigFacts, ConfigState, DirectoryFacts, Facts, InterfaceFacts,
    LinkFacts, NativeXdp, PinFacts, RunningAgent, TableFacts,
};
use crate::cli::output::show_bytes;

/// Oldest kernel: atomics that return values (5.12), XDP links (5.9), tested from 5.15 on.
pub const MIN_KERNEL: (u32, u32) = (5, 15);
/// Since this kernel BPF memory is charged to the cgroup, not to `RLIMIT_MEMLOCK`.
const NO_MEMLOCK_KERNEL: (u32, u32) = (5, 11);
/// What the maps of a default agent need where `RLIMIT_MEMLOCK` still counts, in bytes.
const MEMLOCK_BYTES: u64 = 256 << 20;
/// Largest MTU whose frames fit one page with XDP's head room, on every driver.
pub const MAX_PAGE_MTU: u32 = 3498;
/// Least free space of the state directory, in bytes.
const MIN_FREE_BYTES: u64 = 64 << 20;
/// Sizing law: N >= 4 * H.
const MAX_OFFENDER_SHARE: f64 = 0.25;
/// Sizing law: N >= 1.25 * F / rate.
const MAX_PHI: f64 = 0.8;
/// Clock sources that are read in some ten nanoseconds.
const FAST_CLOCKS: [&str; 6] = [
    "tsc",
    "kvm-clock",
    "arch_sys_counter",
    "hyperv_clocksource_tsc_page",
    "timebase",
    "riscv_clocksource",
];

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Works, but not as well or as safely as it could.
    Warning,
    /// Does not work.
    Failed,
}

/// One judgement: the thing, its value, what it should be, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name of the check, for scripts.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub thing: String,
    /// What was found.
    pub value: String,
    /// What it should be.
    pub bound: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, thing: &str, value: impl Into<String>, bound: &str) -> Self {
        Self {
            check,
            level: Level::Ok,
            thing: thing.to_owned(),
            value: value.into(),
            bound: bound.to_owned(),
            fix: None,
        }
    }

    fn bad(self, level: Level, fix: impl Into<String>) -> Self {
        Self {
            level,
            fix: Some(fix.into()),
            ..self
        }
    }
}

/// Judges `facts`.
pub fn examine(facts: &Facts, own_version: &str) -> Vec<Finding> {
    let mut findings = vec![
        kernel(&facts.kernel_release),
        btf(facts.kernel_btf),
        jit(facts.jit),
        clock_source(facts.clock_source.as_deref()),
        memlock(&facts.kernel_release, facts.memlock_bytes),
        capabilities(&facts.missing_capabilities, facts.agent.state.is_ok()),
        bpffs(&facts.bpffs),
        pins(&facts.pins),
        config(&facts.config),
        state_dir(&facts.state_dir),
    ];
    if facts.interfaces.is_empty() {
        findings.push(
            Finding::ok("interface", "interfaces", "none", "one or more to protect").bad(
                Level::Note,
                "name them in the configuration (interfaces = [\"eth0\"]), or with `ratelimiter attach IFACE`; `ratelimiter doctor --iface IFACE` looks at one",
            ),
        );
    }
    for interface in &facts.interfaces {
        interface_findings(interface, &mut findings);
    }
    agent(&facts.agent, &facts.pins, own_version, &mut findings);
    findings
}

/// The worst level, [`Level::Ok`] for none.
pub fn worst(findings: &[Finding]) -> Level {
    findings
        .iter()
        .map(|finding| finding.level)
        .max()
        .unwrap_or(Level::Ok)
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Finding {
    let bound = format!("{}.{} or later", MIN_KERNEL.0, MIN_KERNEL.1);
    let finding = Finding::ok("kernel", "kernel", release, &bound);
    match kernel_version(release) {
        Some(version) if version >= MIN_KERNEL => finding,
        Some(_) => finding.bad(
            Level::Failed,
            format!("install a kernel {bound}; this one lacks BPF atomics or XDP links"),
        ),
        None => finding.bad(
            Level::Warning,
            format!("the version cannot be read from `uname -r`; make sure it is {bound}"),
        ),
    }
}

fn btf(present: bool) -> Finding {
    let value = if present { "present" } else { "missing" };
    let finding = Finding::ok("btf", "/sys/kernel/btf/vmlinux", value, "present");
    if present {
        finding
    } else {
        finding.bad(
            Level::Warning,
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y; without it the kernel may refuse the program, and bpftool shows maps as bytes",
        )
    }
}

fn jit(value: Option<u8>) -> Finding {
    let finding = |value: &str| Finding::ok("jit", "net.core.bpf_jit_enable", value, "1");
    match value {
        Some(1) => finding("1"),
        Some(0) => finding("0 (interpreter)").bad(
            Level::Warning,
            "sysctl -w net.core.bpf_jit_enable=1; the interpreter makes each packet several times dearer",
        ),
        Some(other) => finding(&format!("{other} (debug output)")).bad(
            Level::Warning,
            "sysctl -w net.core.bpf_jit_enable=1; this value dumps every program into the kernel log",
        ),
        None => finding("not readable here").bad(
            Level::Note,
            "look at it in the host's network namespace: sysctl net.core.bpf_jit_enable",
        ),
    }
}

fn clock_source(name: Option<&str>) -> Finding {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let bound = "tsc, kvm-clock, arch_sys_counter or another that needs no system call";
    match name {
        Some(name) if FAST_CLOCKS.contains(&name) => {
            Finding::ok("clock_source", "clock source", name, bound)
        }
        Some(name) => Finding::ok("clock_source", "clock source", name, bound).bad(
            Level::Warning,
            format!("each reading of `{name}` may take a microsecond; boot with clocksource=tsc if the machine has a stable one, and see {path}"),
        ),
        None => Finding::ok("clock_source", "clock source", "not readable", bound)
            .bad(Level::Note, format!("look at {path} on the host")),
    }
}

fn memlock(release: &str, limit: Option<u64>) -> Finding {
    let value = limit.map_or_else(|| "unlimited".to_owned(), show_bytes);
    let old = kernel_version(release).is_some_and(|version| version < NO_MEMLOCK_KERNEL);
    if !old {
        return Finding::ok(
            "memlock",
            "RLIMIT_MEMLOCK",
            value,
            "any: BPF memory is charged to the cgroup since kernel 5.11",
        );
    }
    let bound = format!("{} or more", show_bytes(MEMLOCK_BYTES));
    let finding = Finding::ok("memlock", "RLIMIT_MEMLOCK", value, &bound);
    if limit.is_some_and(|limit| limit < MEMLOCK_BYTES) {
        finding.bad(
            Level::Failed,
            "set LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`",
        )
    } else {
        finding
    }
}

fn capabilities(missing: &[String], agent_runs: bool) -> Finding {
    let bound = "CAP_BPF, CAP_NET_ADMIN";
    if missing.is_empty() {
        return Finding::ok("capabilities", "capabilities", "all present", bound);
    }
    let finding = Finding::ok(
        "capabilities",
        "capabilities",
        format!("missing {}", missing.join(" and ")),
        bound,
    );
    if agent_runs {
        finding.bad(
            Level::Note,
            "the agent runs and has its own; run doctor as root to see pins and programs as it does",
        )
    } else {
        finding.bad(
            Level::Failed,
            "run as root, by the systemd unit, or after `setcap cap_bpf,cap_net_admin+ep` on the binary",
        )
    }
}

fn bpffs(facts: &BpffsFacts) -> Finding {
    let path = facts.path.display();
    let nearest = facts.nearest.display();
    let bound = "on a bpffs, writable";
    let finding = |value: String| Finding::ok("bpffs", &path.to_string(), value, bound);
    if !facts.is_bpffs {
        return finding(format!("`{nearest}` is not on a BPF file system")).bad(
            Level::Failed,
            "mount -t bpf bpf /sys/fs/bpf (in a container: mount the host's /sys/fs/bpf into it)",
        );
    }
    if !facts.writable {
        return finding(format!("`{nearest}` cannot be written by this user")).bad(
            Level::Failed,
            format!("run as the agent's user, or give `{path}` to it with mode 0700"),
        );
    }
    finding("mounted and writable".to_owned())
}

fn pins(facts: &PinFacts) -> Finding {
    let bound = "none, or a whole set this version understands";
    let finding = |value: String| Finding::ok("pins", "pinned maps and links", value, bound);
    if let Some(problem) = &facts.problem {
        return finding(problem.clone()).bad(
            Level::Failed,
            "run the version that made them, or start over with `ratelimiter agent --replace` (every bucket starts full)",
        );
    }
    if facts.maps == 0 && facts.links.is_empty() {
        return finding("none".to_owned());
    }
    let value = format!(
        "{} maps, links on {}",
        facts.maps,
        if facts.links.is_empty() {
            "no interface".to_owned()
        } else {
            facts.links.join(", ")
        }
    );
    if facts.maps < facts.maps_expected {
        return finding(format!("{value}; {} maps are missing", facts.maps_expected - facts.maps))
            .bad(
                Level::Failed,
                "a start was interrupted or somebody removed pins; restart the agent, which repairs them, or remove all with `ratelimiter detach --all`",
            );
    }
    finding(value)
}

fn config(facts: &ConfigFacts) -> Finding {
    let path = facts.path.display().to_string();
    let bound = "valid, writable by its owner only";
    let finding = |value: &str| Finding::ok("config", &path, value, bound);
    if facts.world_writable {
        return finding("everybody may write it").bad(Level::Failed, format!("chmod o-w {path}"));
    }
    match &facts.state {
        ConfigState::Valid => finding("valid"),
        ConfigState::Missing => finding("missing: defaults apply").bad(
            Level::Note,
            format!("ratelimiter config example > {path} gives a commented one"),
        ),
        ConfigState::Unreadable(why) => finding(why).bad(
            Level::Failed,
            format!("make {path} readable for the agent's user"),
        ),
        ConfigState::Broken(why) => finding(why).bad(
            Level::Failed,
            format!("mend the line; `ratelimiter config check --config {path}` checks again. A running agent keeps its previous policy"),
        ),
    }
}

fn state_dir(facts: &DirectoryFacts) -> Finding {
    let path = facts.path.display().to_string();
    let bound = format!("writable, {} free", show_bytes(MIN_FREE_BYTES));
    let finding = |value: String| Finding::ok("state_dir", &path, value, &bound);
    if !facts.writable {
        return finding("cannot be written by this user".to_owned()).bad(
            Level::Failed,
            format!("run as the agent's user, or: install -d -m 0700 -o USER {path}; or choose another with --state-dir"),
        );
    }
    if let Some(free) = facts.free_bytes
        && free < MIN_FREE_BYTES
    {
        return finding(format!("{} free", show_bytes(free))).bad(
            Level::Warning,
            "free some space: changes cannot be kept on a full disk, the kernel goes on enforcing",
        );
    }
    finding(if facts.exists {
        "writable".to_owned()
    } else {
        "missing: made at start".to_owned()
    })
}

fn interface_findings(facts: &InterfaceFacts, findings: &mut Vec<Finding>) {
    let name = &facts.name;
    let Some(link) = &facts.link else {
        findings.push(
            Finding::ok("interface", name, "no such interface", "exists").bad(
                Level::Failed,
                "`ip -brief link` lists them; the agent attaches as soon as it appears",
            ),
        );
        return;
    };
    findings.push(if link.up {
        Finding::ok("interface", name, "up", "exists and is up")
    } else {
        Finding::ok("interface", name, "down", "exists and is up")
            .bad(Level::Warning, format!("ip link set {name} up"))
    });
    findings.push(native(facts, link));
    findings.push(mtu(facts, link));
    findings.push(program(facts, link));
}

fn native(facts: &InterfaceFacts, link: &LinkFacts) -> Finding {
    let thing = format!("{} driver", facts.name);
    let bound = "native XDP";
    let finding = |what: &str| {
        Finding::ok(
            "native_xdp",
            &thing,
            format!("{}: {what}", link.driver),
            bound,
        )
    };
    match (link.native, facts.generic_asked) {
        (NativeXdp::Supported, false) => finding("native XDP"),
        (NativeXdp::Supported, true) => finding("native XDP, but generic mode is asked for").bad(
            Level::Warning,
            format!("drop `:generic` from `{}`: native mode is several times cheaper and sees every packet", facts.name),
        ),
        (NativeXdp::Unsupported, true) => finding("no native XDP; generic mode is asked for").bad(
            Level::Note,
            "generic mode is slower, and charges coalesced packets by their segments",
        ),
        (NativeXdp::Unsupported, false) => finding("no native XDP").bad(
            Level::Failed,
            format!("another driver or kernel, or allow generic mode: `--iface {0}:generic`, `ratelimiter attach {0} --mode generic`", facts.name),
        ),
        (NativeXdp::Unknown, _) => finding("not known to this kernel (before 6.3)").bad(
            Level::Note,
            "attaching tells: it is refused with a sentence where the driver has no native XDP",
        ),
    }
}

fn mtu(facts: &InterfaceFacts, link: &LinkFacts) -> Finding {
    let thing = format!("{} mtu", facts.name);
    let bound = format!("{MAX_PAGE_MTU} or less for native XDP");
    let finding = Finding::ok("mtu", &thing, link.mtu.to_string(), &bound);
    if link.mtu <= MAX_PAGE_MTU || facts.generic_asked || link.xdp.as_ref().is_some_and(|x| x.ours)
    {
        return finding;
    }
    let fix = format!(
        "ip link set {} mtu {MAX_PAGE_MTU}, or allow generic mode (`{0}:generic`)",
        facts.name
    );
    if link.multi_buffer {
        finding.bad(Level::Warning, fix)
    } else {
        finding.bad(Level::Failed, fix)
    }
}

fn program(facts: &InterfaceFacts, link: &LinkFacts) -> Finding {
    let thing = format!("{} program", facts.name);
    let bound = "none, or ratelimiter";
    let Some(xdp) = &link.xdp else {
        return Finding::ok("xdp_program", &thing, "none: not protected now", bound);
    };
    let name = xdp.name.as_deref().unwrap_or("name unknown");
    let mode = if xdp.generic { "generic" } else { "native" };
    let finding = Finding::ok(
        "xdp_program",
        &thing,
        format!("{name} (id {}), {mode} mode", xdp.id),
        bound,
    );
    if !xdp.ours {
        return finding.bad(
            Level::Failed,
            format!("`bpftool prog show id {}` tells what it is; remove it, or take its place with `ratelimiter attach {} --replace`", xdp.id, facts.name),
        );
    }
    if xdp.generic && !facts.generic_asked {
        return finding.bad(
            Level::Warning,
            format!("attached in generic mode; `ratelimiter detach {0}` and attach it again for native mode", facts.name),
        );
    }
    finding
}

fn agent(facts: &AgentFacts, pins: &PinFacts, own_version: &str, findings: &mut Vec<Finding>) {
    let bound = "answers and is ready";
    let running = match &facts.state {
        Ok(running) => running,
        Err(why) => {
            let finding = Finding::ok("agent", "agent", why, bound);
            findings.push(if pins.links.is_empty() {
                finding.bad(Level::Note, "`systemctl start ratelimiter`, or `ratelimiter agent`")
            } else {
                finding.bad(
                    Level::Warning,
                    "the last policy is still enforced in the kernel, but nobody can change or observe it: start the agent, or remove everything with `ratelimiter detach --all`",
                )
            });
            return;
        }
    };
    let finding = Finding::ok(
        "agent",
        "agent",
        format!("version {} at {}", running.version, facts.target),
        bound,
    );
    findings.push(if running.problems.is_empty() {
        finding
    } else {
        Finding {
            value: running.problems.join("; "),
            ..finding
        }
        .bad(
            Level::Failed,
            "`ratelimiter status` and the agent's log say more",
        )
    });
    if running.version != own_version {
        findings.push(
            Finding::ok("version", "agent's version", &running.version, own_version).bad(
                Level::Warning,
                "restart the agent so that it runs the installed version; it adopts maps and buckets as they are",
            ),
        );
    }
    findings.push(mode(&running.mode));
    tables(running, findings);
}

fn mode(mode: &str) -> Finding {
    let finding = Finding::ok("mode", "mode", mode, "enforce");
    if mode == "enforce" {
        finding
    } else {
        finding.bad(
            Level::Note,
            "nothing is dropped, only counted; `enforce = true` in the configuration, or `ratelimiter agent --enforce`, applies the limits",
        )
    }
}

fn tables(running: &RunningAgent, findings: &mut Vec<Finding>) {
    for table in &running.tables {
        findings.push(offenders(table));
        if table.phi > MAX_PHI {
            findings.push(
                Finding::ok(
                    "table_load",
                    &format!("{} load phi", table.name),
                    format!("{:.2}", table.phi),
                    "0.8 or less (N >= 1.25 * F / rate)",
                )
                .bad(
                    Level::Warning,
                    "polite sources may be forgotten: make the table larger or keep the first-seen budget on",
                ),
            );
        }
    }
    if let Some((used, limit)) = running.tracked {
        let bound = format!("{limit} or less (75 % of the table)");
        let finding = Finding::ok("tracked", "tracked sources", used.to_string(), &bound);
        findings.push(if used.saturating_mul(10) > limit.saturating_mul(9) {
            finding.bad(
                Level::Warning,
                "further client addresses will be refused; raise `tables.tracked` (a new size needs `ratelimiter detach --all` first)",
            )
        } else {
            finding
        });
    }
}

fn offenders(table: &TableFacts) -> Finding {
    let share = table.over_limit as f64 / table.capacity.max(1) as f64;
    let finding = Finding::ok(
        "table_offenders",
        &format!("{} offenders", table.name),
        format!(
            "{} of {} words ({:.1} %)",
            table.over_limit,
            table.capacity,
            share * 100.0
        ),
        "25 % or less (N >= 4 * H)",
    );
    if share > MAX_OFFENDER_SHARE {
        finding.bad(
            Level::Warning,
            "more sources are over their limit than the table can hold apart; double its size in `[tables]` (a new size needs `ratelimiter detach --all` first)",
        )
    } else {
        finding
    }
}
