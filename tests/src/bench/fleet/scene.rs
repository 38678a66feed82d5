//! Hosts behind veth pairs, and the Redis they share.
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tempfile::TempDir;

use crate::OrFail as _;
use crate::agent::{Agent, Setup};
use crate::flood::{Flood, Sent};
use crate::netns::{Netns, veth};
use crate::packet::Packet;
use crate::process::{Child, Spawn, holds_within};
use crate::residue::TEMP_PREFIX;

const EDGE: &str = "edge0";
const CLIENT: &str = "client0";

/// A Redis on a Unix socket, which every namespace reaches.
pub(super) struct Store {
    child: Child,
    directory: TempDir,
}

impl Store {
    pub(super) fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir()
            .or_fail("make a temporary directory");
        let mut command = Command::new(crate::requires::program("redis-server", "redis-server"));
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"])
            .arg(directory.path())
            .arg("--unixsocket")
            .arg(directory.path().join("redis.sock"));
        let store = Self {
            child: Spawn::new(command).start(),
            directory,
        };
        let made = holds_within(Duration::from_secs(10), || store.socket().exists());
        assert!(made, "redis-server makes no socket");
        store
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    pub(super) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Stops it without closing its sockets.
    pub(super) fn freeze(&mut self) {
        self.child.signal(libc::SIGSTOP);
    }

    pub(super) fn thaw(&mut self) {
        self.child.signal(libc::SIGCONT);
    }

    pub(super) fn cpu_time(&self) -> Duration {
        self.child.cpu_time()
    }
}

/// A host and a client, joined by a veth pair.
pub(super) struct Edge {
    pub(super) edge: Netns,
    client: Netns,
}

impl Edge {
    pub(super) fn new() -> Self {
        let (edge, client) = (Netns::new(), Netns::new());
        veth((&edge, EDGE), (&client, CLIENT));
        edge.address(EDGE, "192.0.2.1/16");
        client.address(CLIENT, "192.0.2.2/16");
        Self { edge, client }
    }

    /// A datagram from `source` to the host.
    pub(super) fn frame(&self, source: &str) -> Vec<u8> {
        Packet::eth_between(self.client.mac(CLIENT), self.edge.mac(EDGE))
            .ipv4(source, "192.0.2.1")
            .udp(4_000, 4_001)
            .zeros(18)
            .build()
    }

    pub(super) fn send(&self, flood: &Flood) -> Sent {
        self.send_until(flood, &AtomicBool::new(false))
    }

    pub(super) fn send_until(&self, flood: &Flood, stop: &AtomicBool) -> Sent {
        self.client.run(|| flood.send(CLIENT, stop))
    }
}

/// An agent of the fleet: `tracked` sources at most, and a limit on packets per second.
pub(super) fn agent<'a>(
    edge: &'a Edge,
    store: &Store,
    (limit, tracked): (u64, u64),
    on_loss: &str,
) -> Agent<'a> {
    Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(&format!(
            "[tables]\ncrowd4_words = 65536\ncrowd6_ways = 16384\nregion_words = 4096\n\
             tracked = {tracked}\npolicies = 256\nprefixes = 65536\nevents_bytes = 65536\n\
             [redis]\nurl = \"{}\"\n\
             [segments.default.limits.packets]\nrate_limit = {limit}\ntime_window = 1\n\
             burst = {limit}\nunit = \"packets\"\non_store_loss = \"{on_loss}\"",
            store.url()
        ))
        .start(&edge.edge)
}

/// A metric without labels; NaN if the agent has none of that name.
pub(super) fn metric(agent: &Agent<'_>, name: &str) -> f64 {
    let text = agent.get("/metrics").body;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or(f64::NAN)
}
