//! The agent beside the packets' path: how long until it enforces, how long large lists take to
//! load, and how much memory it holds.
//!
//! Everything is the real thing: the optimised binary in a namespace, a veth with traffic on it,
//! the admin API.
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratelimiter_userspace::clock;
use serde_json::{Value, json};

use super::{Figure, median};
use crate::OrFail as _;
use crate::agent::{Agent, Setup};
use crate::flood::{Flood, Spoofed};
use crate::http::request_within;
use crate::netns::{Netns, veth};
use crate::packet::Packet;
use crate::process::rest;

const EDGE: &str = "edge0";
const CLIENT: &str = "client0";
/// Where the edge listens for the traffic that must stop.
const PORT: u16 = 4_001;

/// A value without a baseline.
fn value(name: &str, unit: &str, value: f64) -> Figure {
    Figure {
        name: name.to_owned(),
        value,
        unit: unit.to_owned(),
        baseline: None,
        ratio: None,
    }
}

/// Runs the benchmark; `rounds` of each, 1 or more.
#[must_use]
pub fn run(rounds: u32) -> Vec<Figure> {
    let [mut fresh, mut again] = [const { Vec::new() }; 2];
    for round in 1..=rounds {
        let [first, second] = starts();
        println!("round {round}: enforcing {first:.3} s after the start, again {second:.3} s");
        fresh.push(first);
        again.push(second);
    }
    let mut figures = vec![
        value("agent_start_to_enforcing", "s", median(&fresh)),
        value("agent_restart_to_ready", "s", median(&again)),
    ];
    let lists = [
        ("load_1m_prefixes", million_blocks()),
        ("load_190k_client_addresses", many_clients()),
    ];
    for (name, document) in lists {
        let times: Vec<f64> = (1..=rounds.min(3))
            .map(|round| {
                let time = load(&document);
                println!("round {round}: {name} {time:.2} s");
                time
            })
            .collect();
        figures.push(value(name, "s", median(&times)));
    }
    figures.extend(memory());
    figures
}

/// An edge and a client behind it.
struct Field {
    edge: Netns,
    client: Netns,
}

impl Field {
    fn new() -> Self {
        let field = Self {
            edge: Netns::new(),
            client: Netns::new(),
        };
        veth((&field.edge, EDGE), (&field.client, CLIENT));
        field.edge.address(EDGE, "192.0.2.1/24");
        field.client.address(CLIENT, "192.0.2.2/24");
        field
    }

    fn frame(&self, source: &str) -> Vec<u8> {
        Packet::eth_between(self.client.mac(CLIENT), self.edge.mac(EDGE))
            .ipv4(source, "192.0.2.1")
            .udp(4_000, PORT)
            .zeros(18)
            .build()
    }
}

/// Seconds from the start of an agent on new tables until the last packet that it had to drop got
/// through; and from the start of the next one, on the same tables, until it is ready.
fn starts() -> [f64; 2] {
    let field = Field::new();
    let frame = field.frame("198.18.0.1");
    let setup = Setup::new()
        .interface(EDGE)
        .enforce()
        .settings("[[block]]\nprefix = \"198.18.0.0/15\"\n");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let last = scope.spawn(|| field.edge.run(|| last_arrival(&stop)));
        scope.spawn(|| {
            field.client.run(|| {
                Flood::new(vec![frame.clone()])
                    .rate(2_000)
                    .lasting(Duration::from_mins(1))
                    .send(CLIENT, &stop)
            })
        });
        rest(Duration::from_millis(100));
        let began = clock::instant();
        let mut agent = setup.start(&field.edge);
        rest(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        let last = last
            .join()
            .unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        assert!(last > began, "no packet arrived before the agent enforced");
        let first = last.duration_since(began).as_secs_f64();
        agent.terminate();
        let began = clock::instant();
        agent.restart();
        let again = began.elapsed().as_secs_f64();
        agent.terminate();
        [first, again]
    })
}

/// When the last packet arrived before `stop` was set.
fn last_arrival(stop: &AtomicBool) -> Instant {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).or_fail("bind");
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .or_fail("bound a read");
    let mut last = clock::instant();
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if socket.recv(&mut buffer).is_ok() {
            last = clock::instant();
        }
    }
    last
}

/// A document that blocks a million addresses.
fn million_blocks() -> Value {
    let block: BTreeMap<String, Value> = (0..1_000_000_u32)
        .map(|n| {
            let address = Ipv4Addr::from(0x0100_0000 + n * 211);
            (format!("{address}/32"), json!({}))
        })
        .collect();
    json!({ "block": block })
}

/// A document of 1 900 clients with 100 addresses each.
fn many_clients() -> Value {
    let clients: BTreeMap<String, Value> = (0..1_900_u32)
        .map(|client| {
            let sources: Vec<String> = (0..100)
                .map(|n| {
                    let address = Ipv4Addr::from(0x0a00_0000 + (client * 100 + n) * 17);
                    format!("{address}/32")
                })
                .collect();
            (format!("client-{client}"), json!({ "sources": sources }))
        })
        .collect();
    json!({ "clients": clients })
}

/// Seconds from the request that replaces the document until its answer: validated, stored and in
/// force.
fn load(document: &Value) -> f64 {
    let netns = Netns::new();
    let agent = Setup::new().enforce().start(&netns);
    let began = clock::instant();
    let answer = request_within(
        Duration::from_mins(1),
        &agent.socket(),
        "PUT",
        "/v1/document",
        Some(document),
    );
    answer.or_fail("an answer").expect(200);
    began.elapsed().as_secs_f64()
}

/// Resident memory of an agent whose crowd table holds a million sources.
fn memory() -> Vec<Figure> {
    let field = Field::new();
    let mut agent = Setup::new().interface(EDGE).enforce().start(&field.edge);
    let empty = resident(&mut agent);
    let sources = fill(&field, &agent);
    // The observer scans the tables every 5 s.
    rest(Duration::from_secs(6));
    let full = resident(&mut agent);
    println!(
        "resident without maps: {empty:.1} MiB empty, {full:.1} MiB with {sources:.0} sources"
    );
    agent.terminate();
    vec![
        value("agent_rss_empty", "MiB", empty),
        value("agent_rss_1m_sources", "MiB", full),
        value("agent_rss_1m_sources_counted", "sources", sources),
    ]
}

/// Sends from more sources than the table has words until it is full; returns how many it holds.
fn fill(field: &Field, agent: &Agent<'_>) -> f64 {
    let frame = field.frame("198.18.0.1");
    let sent = field.client.run(|| {
        Flood::spoofed(
            &frame,
            Spoofed {
                first: 0x1000_0000,
                count: 1 << 22,
            },
        )
        .rate(200_000)
        .lasting(Duration::from_secs(14))
        .send(CLIENT, &AtomicBool::new(false))
    });
    println!("filled by {} packets", sent.packets);
    rest(Duration::from_secs(6));
    let status = agent.get("/v1/status").expect(200).json();
    let claimed: u64 = status["crowd"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|region| region["claimed"].as_u64())
        .sum();
    claimed as f64
}

/// Resident memory of an agent without the kernel's maps that it has mapped, in MiB.
fn resident(agent: &mut Agent<'_>) -> f64 {
    agent.child().resident_kib().own as f64 / 1_024.0
}
