//! The demo on a stage of its own: a namespace, a veth pair, a polite and a noisy client.
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ratelimiter_userspace::clock;
use serde_json::json;
use tests::OrFail as _;
use tests::agent::{Agent, Setup, binary};
use tests::netns::{Netns, veth};
use tests::redis::free_port;
use tests::residue::{left_of, traces_of};

use crate::signals;
use crate::traffic::Traffic;

/// Packets per second each client sends.
const POLITE_RATE: u64 = 50;
const NOISY_RATE: u64 = 20_000;

/// The noisy client's limit, packets per second, and its burst.
const LIMIT: u64 = 1_000;
const BURST: u64 = 2_000;

/// Port of the admin API, if nobody has it.
const ADMIN_PORT: u16 = 9740;

/// How many rows before the head of the table is printed again.
const ROWS: u64 = 20;

/// A client on the stage, and what was last shown of it.
struct Player {
    address: Ipv4Addr,
    sent: Arc<AtomicU64>,
    shown_sent: u64,
    shown_arrived: u64,
}

/// What happened to a client's packets.
#[derive(Clone, Copy, Default)]
struct Score {
    sent: u64,
    passed: u64,
}

impl Score {
    fn dropped(self) -> u64 {
        self.sent.saturating_sub(self.passed)
    }
}

impl Player {
    /// What happened since the last call.
    fn since_last(&mut self, traffic: &Traffic) -> Score {
        let total = self.total(traffic);
        let score = Score {
            sent: total.sent - self.shown_sent,
            passed: total.passed - self.shown_arrived,
        };
        (self.shown_sent, self.shown_arrived) = (total.sent, total.passed);
        score
    }

    fn total(&self, traffic: &Traffic) -> Score {
        Score {
            passed: traffic.arrived_from(self.address),
            sent: self.sent.load(Ordering::Relaxed),
        }
    }
}

/// Shows it until a signal or for `bound`. Returns whether nothing is left behind.
pub(crate) fn show(bound: Option<Duration>) -> bool {
    let traces = play(bound);
    // The kernel frees programs and maps a moment after their last user has gone.
    let left = left_of(&traces);
    if left.is_empty() {
        println!("removed the agent, the namespace, the interface and everything pinned");
        true
    } else {
        println!("left behind:\n  {}", left.join("\n  "));
        false
    }
}

/// Returns the traces that must be gone in the end.
fn play(bound: Option<Duration>) -> BTreeSet<String> {
    let begin = clock::instant();
    let host = Netns::host();
    let clients = Netns::new();
    let number = (0..200)
        .find(|n| !Path::new(&format!("/sys/class/net/rl-demo{n}")).exists())
        .or_fail("a free interface name");
    let interface = format!("rl-demo{number}");
    let net = |last| Ipv4Addr::new(198, 18, number, last);
    let (edge, polite, noisy) = (net(1), net(2), net(3));
    veth((&host, &interface), (&clients, "client0"));
    host.address(&interface, &format!("{edge}/24"));
    clients.address("client0", &format!("{polite}/24"));
    clients.address("client0", &format!("{noisy}/24"));
    println!(
        "      interface {interface} ({edge}); behind it a namespace with {polite} and {noisy}"
    );

    let listen = free_admin_port();
    let mut agent = Setup::new()
        .interface(&interface)
        .enforce()
        .listen(&format!("127.0.0.1:{listen}"))
        .start(&host);
    println!(
        "      agent attached and enforcing after {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    configure(&agent, polite, noisy);
    let mut traces = traces_of(&mut agent);

    let mut traffic = Traffic::default();
    traffic.receive(edge);
    let mut players = [(polite, POLITE_RATE), (noisy, NOISY_RATE)].map(|(address, rate)| Player {
        address,
        sent: traffic.send(&clients, address, edge, rate),
        shown_sent: 0,
        shown_arrived: 0,
    });
    introduce(listen);
    let shown = clock::instant();
    let mut first_drop = true;
    for row in 0_u64.. {
        let next = shown + Duration::from_secs(row + 1);
        let asked = signals::came_within(next.saturating_duration_since(clock::instant()));
        let scores = [0, 1].map(|index| players[index].since_last(&traffic));
        if row % ROWS == 0 {
            print_head();
        }
        print_row(shown.elapsed().as_secs(), scores);
        if first_drop && scores[1].dropped() > 0 {
            first_drop = false;
            println!(
                "      ^ first packets dropped {:.1} s after the start",
                begin.elapsed().as_secs_f64()
            );
        }
        if let Some(status) = agent.child().exited() {
            panic!(
                "the agent ended with `{status}`: {}",
                agent.child().output()
            );
        }
        if asked || bound.is_some_and(|bound| shown.elapsed() >= bound) {
            break;
        }
    }
    let elapsed = shown.elapsed().as_secs_f64();
    println!();
    for (name, player) in ["polite", "noisy"].iter().zip(&players) {
        let total = player.total(&traffic);
        println!(
            "{name:<7} sent {}, passed {}, dropped {}",
            total.sent,
            total.passed,
            total.dropped()
        );
    }
    let entitled = BURST as f64 + LIMIT as f64 * elapsed;
    println!(
        "noisy was entitled to burst + rate * time = {entitled:.0}, unless you changed its limit"
    );
    drop(traffic);
    traces.extend(traces_of(&mut agent));
    agent.terminate();
    drop(agent);
    // Removed here and not only with the namespace, so that it is gone when we say so.
    host.ip(&format!("link del {interface}"));
    traces
}

/// The default port, so that the documentation's examples work, or a free one.
fn free_admin_port() -> u16 {
    match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, ADMIN_PORT)) {
        Ok(_) => ADMIN_PORT,
        Err(_) => free_port(),
    }
}

fn configure(agent: &Agent<'_>, polite: Ipv4Addr, noisy: Ipv4Addr) {
    let limits = json!({"packets": {
        "rate_limit": LIMIT, "time_window": 1, "burst": BURST, "unit": "packets"}});
    for (name, address, limits) in [("polite", polite, json!({})), ("noisy", noisy, limits)] {
        let body = json!({"sources": [format!("{address}/32")], "limits": limits});
        let answer = agent.put(&format!("/v1/clients/{name}"), &body);
        assert!(
            answer.status < 300,
            "the agent refused client `{name}` with {}: {}",
            answer.status,
            answer.body
        );
    }
    println!("      set over HTTP: client `noisy` may send {LIMIT}/s with a burst of {BURST}");
}

fn introduce(port: u16) {
    let url = format!("http://127.0.0.1:{port}");
    let program = binary();
    let program = std::env::current_dir()
        .ok()
        .and_then(|here| program.strip_prefix(here).ok().map(Path::to_path_buf))
        .unwrap_or(program);
    println!();
    println!("dashboard  {url}/    (the admin API is below it)");
    println!("try, in another terminal:");
    println!(
        "  curl -X PUT {url}/v1/clients/noisy/limit?name=packets -H 'content-type: application/json' \\"
    );
    println!("       -d '{{\"rate_limit\": 100, \"time_window\": 1, \"unit\": \"packets\"}}'");
    println!("  {} sources --url {url}", program.display());
    println!("end with Ctrl-C");
    println!();
}

fn print_head() {
    println!(
        "{:>6} | {:^32} | {:^32}",
        "", "polite, packets/s", "noisy, packets/s"
    );
    let columns = format!("{:>10}{:>11}{:>11}", "sent", "passed", "dropped");
    println!("{:>6} | {columns} | {columns}", "time");
}

fn print_row(seconds: u64, scores: [Score; 2]) {
    let [polite, noisy] = scores.map(|score| {
        format!(
            "{:>10}{:>11}{:>11}",
            score.sent,
            score.passed,
            score.dropped()
        )
    });
    println!("{seconds:>4} s | {polite} | {noisy}");
}
