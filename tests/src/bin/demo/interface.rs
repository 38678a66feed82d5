//! The demo on an interface of the machine: its real traffic, counted; dropped only if asked.
use std::collections::BTreeSet;
use std::time::Duration;

use ratelimiter_common::verdict::Reason;
use ratelimiter_userspace::clock;
use serde_json::Value;
use tests::agent::Setup;
use tests::netns::Netns;
use tests::redis::free_port;
use tests::residue::{left_of, traces_of};

use crate::signals;

/// Packets by what became of them.
#[derive(Clone, Copy, Default)]
struct Counts {
    passed: u64,
    dropped: u64,
    would_drop: u64,
}

/// Shows it until a signal or for `bound`. Returns whether nothing is left behind.
pub(crate) fn show(interface: &str, enforce: bool, bound: Option<Duration>) -> bool {
    let traces = play(interface, enforce, bound);
    // The kernel frees programs and maps a moment after their last user has gone.
    let left = left_of(&traces);
    if left.is_empty() {
        println!("detached from {interface} and removed everything");
        true
    } else {
        println!("left behind:\n  {}", left.join("\n  "));
        false
    }
}

/// Returns the traces that must be gone in the end.
fn play(interface: &str, enforce: bool, bound: Option<Duration>) -> BTreeSet<String> {
    let host = Netns::host();
    let port = free_port();
    let mut setup = Setup::new()
        .interface(interface)
        .listen(&format!("127.0.0.1:{port}"));
    if enforce {
        setup = setup.enforce();
    }
    let mut agent = setup.start(&host);
    println!(
        "      attached to {interface}, {}",
        if enforce {
            "enforcing: 1000 packets/s with a burst of 2000 for every source"
        } else {
            "in shadow: counts what it would drop and drops nothing (--enforce drops)"
        }
    );
    println!(
        "\ndashboard  http://127.0.0.1:{port}/    (the admin API is below it)\nend with Ctrl-C\n"
    );
    println!(
        "{:>6} |{:>12}{:>12}{:>12}  packets/s",
        "time", "passed", "dropped", "would drop"
    );
    let start = clock::instant();
    let mut before = counts(&agent.get("/v1/status").json());
    for row in 0_u64.. {
        let next = start + Duration::from_secs(row + 1);
        let asked = signals::came_within(next.saturating_duration_since(clock::instant()));
        let now = counts(&agent.get("/v1/status").json());
        println!(
            "{:>4} s |{:>12}{:>12}{:>12}",
            start.elapsed().as_secs(),
            now.passed - before.passed,
            now.dropped - before.dropped,
            now.would_drop - before.would_drop
        );
        before = now;
        if asked || bound.is_some_and(|bound| start.elapsed() >= bound) {
            break;
        }
    }
    let traces = traces_of(&mut agent);
    agent.terminate();
    traces
}

/// Sums the status by verdict. What passed although it was over a limit would be dropped by an
/// agent that enforces.
fn counts(status: &Value) -> Counts {
    let mut sum = Counts::default();
    for row in status["counts"].as_array().into_iter().flatten() {
        let packets = row["packets"].as_u64().unwrap_or(0);
        if row["verdict"] == "drop" {
            sum.dropped += packets;
        } else {
            sum.passed += packets;
            if reason_of(row["reason"].as_str()).is_some_and(Reason::refuses) {
                sum.would_drop += packets;
            }
        }
    }
    sum
}

fn reason_of(name: Option<&str>) -> Option<Reason> {
    Reason::ALL
        .into_iter()
        .find(|reason| Some(reason.as_str()) == name)
}
