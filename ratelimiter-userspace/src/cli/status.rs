//! `ratelimiter status`: what is protected, what passes and what is dropped.

use clap::Args;

use super::change::pending_text;
use super::client::ConnectionArgs;
use super::exit::{Exit, Outcome};
use super::output::{Cell, Facts, OutputArgs, Style, Table, Tint, clean, show_bytes, show_seconds};
use crate::admin::views::{Status, StoreView};
use crate::config::AttachMode;
use crate::policy::model::Mode;

/// Flags of `status`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Exit code 0 if the agent is ready, 1 if it is degraded (an interface is not protected, a pin is
missing, the store fails), 4 if no agent answers.

Examples:
  ratelimiter status
  ratelimiter status -o json | jq .mode")]
pub struct StatusArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs `status`.
pub async fn run(args: StatusArgs) -> Outcome {
    let client = args.connection.client()?;
    let status: Status = client.get("/v1/status").await?;
    args.output.show(&status, |status, style| {
        render(status, style, crate::clock::unix_ms())
    })?;
    Ok(if status.ready { Exit::Ok } else { Exit::Failed })
}

fn render(status: &Status, style: Style, now_unix_ms: u64) -> String {
    let mut facts = Facts::default();
    facts.add(
        "agent",
        format!(
            "version {}, pid {}, up {}",
            status.version,
            status.pid,
            show_seconds(status.uptime_s.round())
        ),
    );
    if status.ready {
        facts.add_tinted("state", "ready", Tint::Green);
    } else {
        facts.add_tinted("state", "DEGRADED", Tint::Red);
    }
    match status.mode {
        Mode::Enforce => facts.add_tinted("mode", "enforce", Tint::Green),
        Mode::Shadow => facts.add_tinted(
            "mode",
            "shadow: counts what it would drop, drops nothing (`--enforce` or `enforce = true` applies the limits)",
            Tint::Yellow,
        ),
        Mode::Off => facts.add_tinted("mode", "off: decides and counts nothing", Tint::Yellow),
    };
    facts.add(
        "policy",
        format!(
            "revision {}: {}, {}, {} allowed, {} blocked",
            status.revision,
            plural(status.segments, "segment"),
            plural(status.clients, "client"),
            plural(status.allowed, "prefix"),
            plural(status.blocked, "prefix"),
        ),
    );
    facts.add(
        "config",
        status
            .config_file
            .as_deref()
            .unwrap_or("no file: defaults and flags"),
    );
    facts.add("store", store_text(&status.store));
    facts.add(
        "kernel",
        format!(
            "program {}, pins in {}{}{}",
            status.program_id,
            status.pin_dir,
            if status.adopted {
                ", tables of the agent before adopted"
            } else {
                ""
            },
            if status.repairs > 0 {
                format!(", {} repaired", status.repairs)
            } else {
                String::new()
            },
        ),
    );
    facts.add(
        "memory",
        format!(
            "agent {}, tables {}",
            show_bytes(status.rss_bytes),
            show_bytes(status.tables.iter().map(|table| table.bytes).sum()),
        ),
    );
    facts.add(
        "traffic",
        format!(
            "{:.0} packets/s, of which {:.0}/s {}",
            status.packets_per_s, status.dropped_per_s, "dropped"
        ),
    );
    let mut text = facts.render(style);
    let mut lines = |heading: &str, tint: Tint, lines: Vec<String>| {
        if !lines.is_empty() {
            text.push_str(&format!("\n{}\n", style.paint(Tint::Bold, heading)));
            for line in lines {
                text.push_str(&format!("  {}\n", style.paint(tint, &clean(&line))));
            }
        }
    };
    let problems = status.problems.clone();
    let problems = problems
        .into_iter()
        .chain(status.reload_error.as_ref().map(|why| {
            format!("the configuration file was refused, the policy before it stays: {why}")
        }))
        .collect();
    lines("problems", Tint::Red, problems);
    let warnings = status
        .warnings
        .iter()
        .chain(&status.store.warnings)
        .cloned();
    lines("warnings", Tint::Yellow, warnings.collect());
    let pending = status.pending.iter().map(|p| pending_text(p, now_unix_ms));
    lines("on trial", Tint::Yellow, pending.collect());
    text.push('\n');
    text.push_str(&interfaces(status, style));
    text.push('\n');
    text.push_str(&counts(status, style));
    text.push('\n');
    text.push_str(&crowd(status, style));
    text
}

/// The store and where it keeps things; some say their kind there already.
fn store_text(store: &StoreView) -> String {
    if store.location.starts_with(&store.kind) {
        store.location.clone()
    } else {
        format!("{} ({})", store.kind, store.location)
    }
}

/// `1 client`, `3 clients`, `2 prefixes`.
fn plural(count: u64, word: &str) -> String {
    match (count, word.ends_with('x')) {
        (1, _) => format!("1 {word}"),
        (_, true) => format!("{count} {word}es"),
        (_, false) => format!("{count} {word}s"),
    }
}

fn interfaces(status: &Status, style: Style) -> String {
    let mut table = Table::new(&["INTERFACE", "MODE", "STATE", ">SINCE", "PROBLEM"]);
    for interface in &status.interfaces {
        table.row(vec![
            interface.name.as_str().into(),
            match interface.mode {
                AttachMode::Native => "native".into(),
                AttachMode::Generic => Cell::new("generic", Tint::Yellow),
            },
            if interface.attached {
                Cell::new("attached", Tint::Green)
            } else {
                Cell::new(&interface.state, Tint::Red)
            },
            show_seconds(interface.since_s.round()).into(),
            interface.problem.as_deref().unwrap_or("").into(),
        ]);
    }
    table.render(
        style,
        "no interface is protected: `ratelimiter attach IFACE`, or `interfaces` in the configuration",
    )
}

fn counts(status: &Status, style: Style) -> String {
    let mut table = Table::new(&["VERDICT", "REASON", ">PACKETS", ">BYTES", ">SHARE"]);
    for count in status.counts.iter().filter(|count| count.packets > 0) {
        let share = count.packets as f64 * 100.0 / status.offered.max(1) as f64;
        table.row(vec![
            if count.verdict == "drop" {
                Cell::new("drop", Tint::Red)
            } else {
                count.verdict.as_str().into()
            },
            count.reason.as_str().into(),
            count.packets.to_string().into(),
            show_bytes(count.bytes).into(),
            format!("{share:.1} %").into(),
        ]);
    }
    table.render(style, "no packet has been seen yet")
}

fn crowd(status: &Status, style: Style) -> String {
    let mut table = Table::new(&[
        "TABLE",
        "SEGMENT",
        "UNIT",
        ">ROOM FOR",
        ">OWING",
        ">OVER LIMIT",
        ">PHI (<= 0.8)",
        ">H/N (<= 0.25)",
    ]);
    for region in &status.crowd {
        let judged = |value: f64, bound: f64| {
            let tint = if value > bound {
                Tint::Red
            } else {
                Tint::Plain
            };
            Cell::new(format!("{value:.3}"), tint)
        };
        table.row(vec![
            format!("IPv{} region {}", region.family, region.region).into(),
            region.segment.as_str().into(),
            region.unit.as_str().into(),
            region.capacity.to_string().into(),
            region.indebted.to_string().into(),
            region.over_limit.to_string().into(),
            judged(region.phi, 0.8),
            judged(region.offender_share, 0.25),
        ]);
    }
    table.render(style, "no crowd table is in use")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::views::{CountView, CrowdView, InterfaceView, TableView};

    fn status() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            pid: 42,
            mode: Mode::Enforce,
            ready: true,
            problems: Vec::new(),
            warnings: Vec::new(),
            uptime_s: 200.0,
            revision: 7,
            segments: 1,
            clients: 3,
            allowed: 1,
            blocked: 2,
            config_file: None,
            reload_error: None,
            interfaces: vec![InterfaceView {
                name: "eth0".to_owned(),
                attached: true,
                state: "attached".to_owned(),
                since_s: 199.6,
                ..InterfaceView::default()
            }],
            pin_dir: "/sys/fs/bpf/ratelimiter".to_owned(),
            program_id: 99,
            adopted: false,
            repairs: 0,
            pending: Vec::new(),
            offered: 1_000,
            counts: vec![
                CountView {
                    reason: "conforming".to_owned(),
                    verdict: "pass".to_owned(),
                    packets: 900,
                    bytes: 90_000,
                },
                CountView {
                    reason: "over_packets".to_owned(),
                    verdict: "drop".to_owned(),
                    packets: 100,
                    bytes: 6_400,
                },
                CountView {
                    reason: "blocked".to_owned(),
                    verdict: "drop".to_owned(),
                    ..CountView::default()
                },
            ],
            packets_per_s: 50.4,
            dropped_per_s: 5.0,
            tables: vec![TableView {
                bytes: 8 << 20,
                ..TableView::default()
            }],
            crowd: vec![CrowdView {
                family: 4,
                region: 0,
                segment: "default".to_owned(),
                unit: "packets".to_owned(),
                capacity: 1 << 20,
                claimed: 10,
                indebted: 5,
                over_limit: 1,
                phi: 0.02,
                offender_share: 0.0,
            }],
            store: StoreView {
                kind: "embedded".to_owned(),
                location: "/var/lib/ratelimiter/state.redb".to_owned(),
                warnings: Vec::new(),
            },
            sync: crate::admin::views::SyncView::default(),
            rss_bytes: 20 << 20,
        }
    }

    #[test]
    fn shows_everything_on_one_screen() {
        assert_eq!(
            render(&status(), Style::PLAIN, 0),
            "\
agent    version 0.1.0, pid 42, up 3 min 20 s
state    ready
mode     enforce
policy   revision 7: 1 segment, 3 clients, 1 prefix allowed, 2 prefixes blocked
config   no file: defaults and flags
store    embedded (/var/lib/ratelimiter/state.redb)
kernel   program 99, pins in /sys/fs/bpf/ratelimiter
memory   agent 20 MiB, tables 8 MiB
traffic  50 packets/s, of which 5/s dropped

INTERFACE  MODE    STATE          SINCE  PROBLEM
eth0       native  attached  3 min 20 s

VERDICT  REASON        PACKETS   BYTES   SHARE
pass     conforming        900  87 KiB  90.0 %
drop     over_packets      100   6 KiB  10.0 %

TABLE          SEGMENT  UNIT     ROOM FOR  OWING  OVER LIMIT  PHI (<= 0.8)  H/N (<= 0.25)
IPv4 region 0  default  packets   1048576      5           1         0.020          0.000
"
        );
    }

    #[test]
    fn says_what_is_wrong_before_the_tables() {
        let degraded = Status {
            ready: false,
            mode: Mode::Shadow,
            problems: vec!["interface `eth1` is absent".to_owned()],
            warnings: vec!["the table is nearly full".to_owned()],
            reload_error: Some("line 3: `burst` is 0".to_owned()),
            interfaces: Vec::new(),
            ..status()
        };
        let text = render(&degraded, Style::PLAIN, 0);
        for part in [
            "state    DEGRADED\n",
            "mode     shadow: counts what it would drop, drops nothing",
            "\nproblems\n  interface `eth1` is absent\n  the configuration file was refused, the policy before it stays: line 3",
            "\nwarnings\n  the table is nearly full\n",
            "\nno interface is protected: `ratelimiter attach IFACE`",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
