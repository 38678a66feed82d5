//! Three agents in namespaces of their own and one Redis on a Unix socket, which every namespace
//! reaches: what a source gets from all of them together.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tests::OrFail as _;
use tests::agent::{Agent, Setup};
use tests::flood::Flood;
use tests::netns::Netns;
use tests::packet::Packet;
use tests::process::{Child, Spawn, holds_within, rest};
use tests::residue::{Residue, TEMP_PREFIX};

use crate::edge::{CLIENT, EDGE, Edge};
use crate::limits::SMALL;

/// Packets a second, and at once.
const LIMIT: u64 = 300;
/// What one host is sent, a second.
const OFFERED: u64 = 900;
/// Before this the hosts need not know of each other.
const WARM: Duration = Duration::from_secs(10);
/// How long is counted.
const COUNTED: Duration = Duration::from_secs(30);

/// A Redis on a socket; killed, and its directory removed, when dropped.
struct Store {
    _child: Child,
    directory: tempfile::TempDir,
}

impl Store {
    fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir()
            .or_fail("make a temporary directory");
        let socket = directory.path().join("redis.sock");
        let mut command = Command::new(tests::requires::program("redis-server", "redis-server"));
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"])
            .arg(directory.path())
            .arg("--unixsocket")
            .arg(&socket);
        let child = Spawn::new(command).start();
        let made = holds_within(Duration::from_secs(10), || socket.exists());
        assert!(made, "redis-server makes no socket");
        Self {
            _child: child,
            directory,
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("redis.sock")
    }
}

fn agent<'a>(edge: &'a Edge, socket: &Path) -> Agent<'a> {
    Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(SMALL)
        .settings(&format!("[redis]\nurl = \"unix://{}\"", socket.display()))
        .settings(&format!(
            "[segments.default.limits.packets]\nrate_limit = {LIMIT}\ntime_window = 1\n\
             burst = {LIMIT}\nunit = \"packets\""
        ))
        .start(&edge.edge)
}

fn flood(edge: &Edge, packets_per_s: u64, time: Duration) {
    let frame = Packet::eth_between(edge.client.mac(CLIENT), edge.edge.mac(EDGE))
        .ipv4("192.0.2.77", "192.0.2.1")
        .udp(4_000, 4_001)
        .zeros(18)
        .build();
    let flood = Flood::new(vec![frame]).rate(packets_per_s).lasting(time);
    let stop = AtomicBool::new(false);
    edge.client.run(|| flood.send(CLIENT, &stop));
}

/// What the stacks of all hosts received while the counted time passes, over the limit.
fn admitted(edges: &[Edge], floods: &[u64]) -> f64 {
    let received = || -> u64 { edges.iter().map(|edge| received(&edge.edge)).sum() };
    let all = WARM + COUNTED + Duration::from_secs(1);
    std::thread::scope(|scope| {
        for (edge, per_s) in edges.iter().zip(floods).filter(|(_, per_s)| **per_s > 0) {
            scope.spawn(move || flood(edge, *per_s, all));
        }
        rest(WARM);
        let (before, began) = (received(), ratelimiter_userspace::clock::instant());
        rest(COUNTED);
        let counted = (received() - before) as f64;
        counted / (LIMIT as f64 * began.elapsed().as_secs_f64())
    })
}

fn received(netns: &Netns) -> u64 {
    netns.ipv4_received()
}

#[test]
fn three_hosts_admit_one_limit_and_one_host_the_whole_of_it() {
    let _residue = Residue::watch();
    let store = Store::start();
    let edges = [Edge::new(), Edge::new(), Edge::new()];
    let agents: Vec<Agent<'_>> = edges
        .iter()
        .map(|edge| agent(edge, &store.socket()))
        .collect();
    let all = admitted(&edges, &[OFFERED; 3]);
    println!("three hosts saturated: {all:.3} of the limit");
    assert!((0.95..=1.01).contains(&all), "{all}");
    let one = admitted(&edges, &[OFFERED, 0, 0]);
    println!("one host saturated: {one:.3} of the limit");
    assert!((0.95..=1.01).contains(&one), "{one}");
    drop(agents);
}
