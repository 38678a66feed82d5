//! Every case of `doctor`: the facts, and what it says about them, word for word.

use super::checks::{Finding, Level, examine, worst};
use super::facts::*;
use super::render::report;
use crate::cli::output::Style;

const VERSION: &str = "0.1.0";

fn healthy() -> Facts {
    Facts {
        kernel_release: "6.1.0-28-amd64".to_owned(),
        kernel_btf: true,
        jit: Some(1),
        clock_source: Some("tsc".to_owned()),
        memlock_bytes: Some(8 << 20),
        missing_capabilities: Vec::new(),
        bpffs: BpffsFacts {
            path: "/sys/fs/bpf/ratelimiter".into(),
            nearest: "/sys/fs/bpf".into(),
            is_bpffs: true,
            writable: true,
        },
        pins: PinFacts {
            links: vec!["eth0".to_owned()],
            maps: 20,
            maps_expected: 20,
            problem: None,
        },
        interfaces: vec![InterfaceFacts {
            name: "eth0".to_owned(),
            generic_asked: false,
            link: Some(LinkFacts {
                up: true,
                mtu: 1500,
                driver: "ixgbe".to_owned(),
                native: NativeXdp::Supported,
                multi_buffer: false,
                xdp: Some(AttachedXdp {
                    id: 7,
                    name: Some("ratelimiter".to_owned()),
                    ours: true,
                    generic: false,
                }),
            }),
        }],
        config: ConfigFacts {
            path: "/etc/ratelimiter/ratelimiter.toml".into(),
            state: ConfigState::Valid,
            world_writable: false,
        },
        state_dir: DirectoryFacts {
            path: "/var/lib/ratelimiter".into(),
            exists: true,
            writable: true,
            free_bytes: Some(10 << 30),
        },
        agent: AgentFacts {
            target: "`/run/ratelimiter/admin.sock`".to_owned(),
            state: Ok(RunningAgent {
                version: VERSION.to_owned(),
                mode: "enforce".to_owned(),
                problems: Vec::new(),
                tables: vec![TableFacts {
                    name: "IPv4 region 0".to_owned(),
                    capacity: 1 << 20,
                    over_limit: 1_000,
                    phi: 0.1,
                }],
                tracked: Some((100, 196_608)),
            }),
        },
    }
}

fn with(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = healthy();
    change(&mut facts);
    examine(&facts, VERSION)
}

fn link(facts: &mut Facts) -> &mut LinkFacts {
    facts.interfaces[0].link.as_mut().unwrap()
}

fn agent(facts: &mut Facts) -> &mut RunningAgent {
    facts.agent.state.as_mut().unwrap()
}

/// Asserts that exactly one finding is not ok, and what it says.
#[track_caller]
fn says(findings: &[Finding], level: Level, text: &str) {
    let bad: Vec<&Finding> = findings.iter().filter(|f| f.level != Level::Ok).collect();
    assert_eq!(bad.len(), 1, "{bad:#?}");
    let finding = bad[0];
    let shown = format!(
        "{} | {} | {} | {} | {}",
        finding.check,
        finding.thing,
        finding.value,
        finding.bound,
        finding.fix.as_deref().unwrap_or("-")
    );
    assert_eq!(shown, text);
    assert_eq!(finding.level, level);
    assert_eq!(worst(findings), level);
}

#[test]
fn healthy_machine_has_nothing_to_mend() {
    let findings = with(|_| {});
    assert_eq!(worst(&findings), Level::Ok, "{findings:#?}");
    assert_eq!(
        report(&findings, Style::PLAIN),
        "\
ok       kernel                             6.1.0-28-amd64
ok       /sys/kernel/btf/vmlinux            present
ok       net.core.bpf_jit_enable            1
ok       clock source                       tsc
ok       RLIMIT_MEMLOCK                     8 MiB
ok       capabilities                       all present
ok       /sys/fs/bpf/ratelimiter            mounted and writable
ok       pinned maps and links              20 maps, links on eth0
ok       /etc/ratelimiter/ratelimiter.toml  valid
ok       /var/lib/ratelimiter               writable
ok       eth0                               up
ok       eth0 driver                        ixgbe: native XDP
ok       eth0 mtu                           1500
ok       eth0 program                       ratelimiter (id 7), native mode
ok       agent                              version 0.1.0 at `/run/ratelimiter/admin.sock`
ok       mode                               enforce
ok       IPv4 region 0 offenders            1000 of 1048576 words (0.1 %)
ok       tracked sources                    100
18 checks: 18 ok, 0 notes, 0 warnings, 0 failed
"
    );
}

#[test]
fn shows_bound_and_fix_below_what_is_wrong() {
    let findings = with(|f| f.jit = Some(0));
    let text = report(&findings, Style::PLAIN);
    assert!(text.contains(
        "
WARNING  net.core.bpf_jit_enable            0 (interpreter)
           wanted: 1
           fix:    sysctl -w net.core.bpf_jit_enable=1; the interpreter makes each packet several times dearer
"
    ), "{text}");
    assert!(text.ends_with("18 checks: 17 ok, 0 notes, 1 warning, 0 failed\n"));
}

#[test]
fn keeps_the_lines_of_a_broken_configuration() {
    let findings = with(|f| {
        f.config.state =
            ConfigState::Broken("line 3: `burst` is 0\n  burst = 0\n          ^".to_owned());
    });
    let text = report(&findings, Style::PLAIN);
    assert!(
        text.contains("  line 3: `burst` is 0\n             burst = 0\n                     ^\n"),
        "{text}"
    );
}

#[test]
fn old_kernel() {
    says(
        &with(|f| f.kernel_release = "5.14.21".to_owned()),
        Level::Failed,
        "kernel | kernel | 5.14.21 | 5.15 or later | install a kernel 5.15 or later; this one lacks BPF atomics or XDP links",
    );
}

#[test]
fn unreadable_kernel_version() {
    says(
        &with(|f| f.kernel_release = "custom".to_owned()),
        Level::Warning,
        "kernel | kernel | custom | 5.15 or later | the version cannot be read from `uname -r`; make sure it is 5.15 or later",
    );
}

#[test]
fn no_btf() {
    says(
        &with(|f| f.kernel_btf = false),
        Level::Warning,
        "btf | /sys/kernel/btf/vmlinux | missing | present | use a kernel built with CONFIG_DEBUG_INFO_BTF=y; without it the kernel may refuse the program, and bpftool shows maps as bytes",
    );
}

#[test]
fn jit_off_debugging_or_unknown() {
    says(
        &with(|f| f.jit = Some(0)),
        Level::Warning,
        "jit | net.core.bpf_jit_enable | 0 (interpreter) | 1 | sysctl -w net.core.bpf_jit_enable=1; the interpreter makes each packet several times dearer",
    );
    says(
        &with(|f| f.jit = Some(2)),
        Level::Warning,
        "jit | net.core.bpf_jit_enable | 2 (debug output) | 1 | sysctl -w net.core.bpf_jit_enable=1; this value dumps every program into the kernel log",
    );
    says(
        &with(|f| f.jit = None),
        Level::Note,
        "jit | net.core.bpf_jit_enable | not readable here | 1 | look at it in the host's network namespace: sysctl net.core.bpf_jit_enable",
    );
}

#[test]
fn slow_or_unknown_clock_source() {
    let bound = "tsc, kvm-clock, arch_sys_counter or another that needs no system call";
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    says(
        &with(|f| f.clock_source = Some("hpet".to_owned())),
        Level::Warning,
        &format!(
            "clock_source | clock source | hpet | {bound} | each reading of `hpet` may take a microsecond; boot with clocksource=tsc if the machine has a stable one, and see {path}"
        ),
    );
    says(
        &with(|f| f.clock_source = None),
        Level::Note,
        &format!(
            "clock_source | clock source | not readable | {bound} | look at {path} on the host"
        ),
    );
}

#[test]
fn memlock_counts_on_old_kernels_only() {
    let findings = with(|f| f.kernel_release = "5.10.0".to_owned());
    let finding = findings.iter().find(|f| f.check == "memlock").unwrap();
    assert_eq!(finding.level, Level::Failed);
    assert_eq!(finding.value, "8 MiB");
    assert_eq!(finding.bound, "256 MiB or more");
    assert_eq!(
        finding.fix.as_deref(),
        Some("set LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`")
    );
    let findings = with(|f| {
        f.kernel_release = "5.10.0".to_owned();
        f.memlock_bytes = None;
    });
    let finding = findings.iter().find(|f| f.check == "memlock").unwrap();
    assert_eq!(
        (finding.level, finding.value.as_str()),
        (Level::Ok, "unlimited")
    );
}

#[test]
fn missing_capabilities() {
    let missing = |f: &mut Facts| {
        f.missing_capabilities = vec!["CAP_BPF".to_owned(), "CAP_NET_ADMIN".to_owned()];
    };
    says(
        &with(missing),
        Level::Note,
        "capabilities | capabilities | missing CAP_BPF and CAP_NET_ADMIN | CAP_BPF, CAP_NET_ADMIN | the agent runs and has its own; run doctor as root to see pins and programs as it does",
    );
    let findings = with(|f| {
        missing(f);
        f.agent.state = Err("there is no socket".to_owned());
        f.pins = PinFacts::default();
    });
    let finding = findings.iter().find(|f| f.check == "capabilities").unwrap();
    assert_eq!(finding.level, Level::Failed);
    assert_eq!(
        finding.fix.as_deref(),
        Some(
            "run as root, by the systemd unit, or after `setcap cap_bpf,cap_net_admin+ep` on the binary"
        )
    );
}

#[test]
fn no_bpffs_or_not_writable() {
    says(
        &with(|f| f.bpffs.is_bpffs = false),
        Level::Failed,
        "bpffs | /sys/fs/bpf/ratelimiter | `/sys/fs/bpf` is not on a BPF file system | on a bpffs, writable | mount -t bpf bpf /sys/fs/bpf (in a container: mount the host's /sys/fs/bpf into it)",
    );
    says(
        &with(|f| f.bpffs.writable = false),
        Level::Failed,
        "bpffs | /sys/fs/bpf/ratelimiter | `/sys/fs/bpf` cannot be written by this user | on a bpffs, writable | run as the agent's user, or give `/sys/fs/bpf/ratelimiter` to it with mode 0700",
    );
}

#[test]
fn pins_of_another_shape_or_incomplete() {
    says(
        &with(|f| {
            f.pins.problem =
                Some("map `TRACKED` has value size 48, this version needs 96".to_owned());
        }),
        Level::Failed,
        "pins | pinned maps and links | map `TRACKED` has value size 48, this version needs 96 | none, or a whole set this version understands | run the version that made them, or start over with `ratelimiter agent --replace` (every bucket starts full)",
    );
    says(
        &with(|f| f.pins.maps = 18),
        Level::Failed,
        "pins | pinned maps and links | 18 maps, links on eth0; 2 maps are missing | none, or a whole set this version understands | a start was interrupted or somebody removed pins; restart the agent, which repairs them, or remove all with `ratelimiter detach --all`",
    );
}

#[test]
fn no_pins_are_fine_before_the_first_start() {
    let findings = with(|f| f.pins = PinFacts::default());
    assert_eq!(worst(&findings), Level::Ok);
    assert!(
        findings
            .iter()
            .any(|f| f.check == "pins" && f.value == "none")
    );
}

#[test]
fn configuration_file_states() {
    let path = "/etc/ratelimiter/ratelimiter.toml";
    let bound = "valid, writable by its owner only";
    let head = format!("config | {path}");
    for (state, level, value, fix) in [
        (
            ConfigState::Missing,
            Level::Note,
            "missing: defaults apply",
            format!("ratelimiter config example > {path} gives a commented one"),
        ),
        (
            ConfigState::Unreadable("permission denied".to_owned()),
            Level::Failed,
            "permission denied",
            format!("make {path} readable for the agent's user"),
        ),
        (
            ConfigState::Broken("line 3, column 9: `burst` is 0".to_owned()),
            Level::Failed,
            "line 3, column 9: `burst` is 0",
            format!(
                "mend the line; `ratelimiter config check --config {path}` checks again. A running agent keeps its previous policy"
            ),
        ),
    ] {
        says(
            &with(|f| f.config.state = state),
            level,
            &format!("{head} | {value} | {bound} | {fix}"),
        );
    }
    says(
        &with(|f| f.config.world_writable = true),
        Level::Failed,
        &format!("{head} | everybody may write it | {bound} | chmod o-w {path}"),
    );
}

#[test]
fn state_directory_not_writable_or_full() {
    says(
        &with(|f| f.state_dir.writable = false),
        Level::Failed,
        "state_dir | /var/lib/ratelimiter | cannot be written by this user | writable, 64 MiB free | run as the agent's user, or: install -d -m 0700 -o USER /var/lib/ratelimiter; or choose another with --state-dir",
    );
    says(
        &with(|f| f.state_dir.free_bytes = Some(1 << 20)),
        Level::Warning,
        "state_dir | /var/lib/ratelimiter | 1 MiB free | writable, 64 MiB free | free some space: changes cannot be kept on a full disk, the kernel goes on enforcing",
    );
    let findings = with(|f| f.state_dir.exists = false);
    assert!(findings.iter().any(|f| f.value == "missing: made at start"));
    assert_eq!(worst(&findings), Level::Ok);
}

#[test]
fn no_interface_named_or_absent_or_down() {
    says(
        &with(|f| f.interfaces.clear()),
        Level::Note,
        "interface | interfaces | none | one or more to protect | name them in the configuration (interfaces = [\"eth0\"]), or with `ratelimiter attach IFACE`; `ratelimiter doctor --iface IFACE` looks at one",
    );
    says(
        &with(|f| f.interfaces[0].link = None),
        Level::Failed,
        "interface | eth0 | no such interface | exists | `ip -brief link` lists them; the agent attaches as soon as it appears",
    );
    says(
        &with(|f| link(f).up = false),
        Level::Warning,
        "interface | eth0 | down | exists and is up | ip link set eth0 up",
    );
}

#[test]
fn driver_without_native_xdp() {
    says(
        &with(|f| link(f).native = NativeXdp::Unsupported),
        Level::Failed,
        "native_xdp | eth0 driver | ixgbe: no native XDP | native XDP | another driver or kernel, or allow generic mode: `--iface eth0:generic`, `ratelimiter attach eth0 --mode generic`",
    );
    says(
        &with(|f| {
            link(f).native = NativeXdp::Unsupported;
            f.interfaces[0].generic_asked = true;
        }),
        Level::Note,
        "native_xdp | eth0 driver | ixgbe: no native XDP; generic mode is asked for | native XDP | generic mode is slower, and charges coalesced packets by their segments",
    );
    says(
        &with(|f| f.interfaces[0].generic_asked = true),
        Level::Warning,
        "native_xdp | eth0 driver | ixgbe: native XDP, but generic mode is asked for | native XDP | drop `:generic` from `eth0`: native mode is several times cheaper and sees every packet",
    );
    says(
        &with(|f| link(f).native = NativeXdp::Unknown),
        Level::Note,
        "native_xdp | eth0 driver | ixgbe: not known to this kernel (before 6.3) | native XDP | attaching tells: it is refused with a sentence where the driver has no native XDP",
    );
}

#[test]
fn frames_larger_than_a_page() {
    let large = |f: &mut Facts| {
        link(f).mtu = 9000;
        link(f).xdp = None;
    };
    let text = "mtu | eth0 mtu | 9000 | 3498 or less for native XDP | ip link set eth0 mtu 3498, or allow generic mode (`eth0:generic`)";
    says(&with(large), Level::Failed, text);
    says(
        &with(|f| {
            large(f);
            link(f).multi_buffer = true;
        }),
        Level::Warning,
        text,
    );
}

#[test]
fn foreign_program() {
    says(
        &with(|f| {
            link(f).xdp = Some(AttachedXdp {
                id: 42,
                name: Some("xdp_lb".to_owned()),
                ours: false,
                generic: false,
            });
        }),
        Level::Failed,
        "xdp_program | eth0 program | xdp_lb (id 42), native mode | none, or ratelimiter | `bpftool prog show id 42` tells what it is; remove it, or take its place with `ratelimiter attach eth0 --replace`",
    );
}

#[test]
fn generic_although_native_was_asked() {
    says(
        &with(|f| link(f).xdp.as_mut().unwrap().generic = true),
        Level::Warning,
        "xdp_program | eth0 program | ratelimiter (id 7), generic mode | none, or ratelimiter | attached in generic mode; `ratelimiter detach eth0` and attach it again for native mode",
    );
}

#[test]
fn agent_away_with_and_without_pins() {
    says(
        &with(|f| {
            f.agent.state = Err("nobody listens at `/run/ratelimiter/admin.sock`".to_owned());
        }),
        Level::Warning,
        "agent | agent | nobody listens at `/run/ratelimiter/admin.sock` | answers and is ready | the last policy is still enforced in the kernel, but nobody can change or observe it: start the agent, or remove everything with `ratelimiter detach --all`",
    );
    says(
        &with(|f| {
            f.agent.state = Err("there is no socket at `/x`".to_owned());
            f.pins = PinFacts::default();
        }),
        Level::Note,
        "agent | agent | there is no socket at `/x` | answers and is ready | `systemctl start ratelimiter`, or `ratelimiter agent`",
    );
}

#[test]
fn agent_not_ready() {
    says(
        &with(|f| {
            agent(f).problems = vec![
                "`eth1` is absent".to_owned(),
                "the store is read-only".to_owned(),
            ];
        }),
        Level::Failed,
        "agent | agent | `eth1` is absent; the store is read-only | answers and is ready | `ratelimiter status` and the agent's log say more",
    );
}

#[test]
fn agent_of_another_version() {
    says(
        &with(|f| agent(f).version = "0.0.9".to_owned()),
        Level::Warning,
        "version | agent's version | 0.0.9 | 0.1.0 | restart the agent so that it runs the installed version; it adopts maps and buckets as they are",
    );
}

#[test]
fn shadow_mode_is_said_aloud() {
    says(
        &with(|f| agent(f).mode = "shadow".to_owned()),
        Level::Note,
        "mode | mode | shadow | enforce | nothing is dropped, only counted; `enforce = true` in the configuration, or `ratelimiter agent --enforce`, applies the limits",
    );
}

#[test]
fn tables_beyond_the_sizing_law() {
    says(
        &with(|f| agent(f).tables[0].over_limit = 300_000),
        Level::Warning,
        "table_offenders | IPv4 region 0 offenders | 300000 of 1048576 words (28.6 %) | 25 % or less (N >= 4 * H) | more sources are over their limit than the table can hold apart; double its size in `[tables]` (a new size needs `ratelimiter detach --all` first)",
    );
    says(
        &with(|f| agent(f).tables[0].phi = 0.95),
        Level::Warning,
        "table_load | IPv4 region 0 load phi | 0.95 | 0.8 or less (N >= 1.25 * F / rate) | polite sources may be forgotten: make the table larger or keep the first-seen budget on",
    );
    says(
        &with(|f| agent(f).tracked = Some((180_000, 196_608))),
        Level::Warning,
        "tracked | tracked sources | 180000 | 196608 or less (75 % of the table) | further client addresses will be refused; raise `tables.tracked` (a new size needs `ratelimiter detach --all` first)",
    );
}
