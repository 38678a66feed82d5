//! A flood of spoofed sources beside many polite clients (R10), and what it leaves in the metrics
//! (R42).

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratelimiter_userspace::clock;
use ratelimiter_userspace::dataplane::Tables;
use tests::OrFail as _;
use tests::agent::{Agent, Setup};
use tests::flood::{Flood, Sent, Spoofed, respoofed};
use tests::netns::Netns;
use tests::packet::Packet;
use tests::process::rest;
use tests::program::pin_to_cpu;
use tests::residue::{Residue, TEMP_PREFIX};

use crate::edge::{CLIENT, EDGE, Edge};

/// Polite clients: 10.0.0.0 and on, at 1 to 10 packets per second.
const CLIENTS: u32 = 2_000;
/// Spoofed sources: 16.0.0.0 and on, each sending one packet.
const SPOOFED: Spoofed = Spoofed {
    first: 0x1000_0000,
    count: 10_000_000,
};

/// Counts what the limiter lets through by who sent it, and takes it away from the stack.
const COUNTERS: &str = "table ip seen {
    counter polite { }
    counter spoofed { }
    chain in {
        type filter hook prerouting priority raw;
        ip saddr 10.0.0.0/8 counter name polite drop;
        ip saddr 16.0.0.0/8 counter name spoofed drop;
    }
}
";

/// In force for everybody: no client is near it.
const LIMIT: &str = "[segments.default.limits.packets]
rate_limit = 20
time_window = 1
burst = 40
unit = \"packets\"
";

/// The agent at one moment of the flood.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Duration,
    resident_kib: u64,
    cpu: Duration,
}

#[test]
fn polite_clients_keep_their_packets_under_ten_million_spoofed_sources() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    count_arrivals(&edge.edge);
    let mut agent = Setup::new()
        .interface(EDGE)
        .enforce()
        .settings(LIMIT)
        .start(&edge.edge);

    // Present before the flood, as the guarantee says: every client sends at least three packets.
    let polite = polite(&edge);
    send(&edge, &polite.clone().lasting(Duration::from_secs(3)));
    rest(Duration::from_millis(50));
    let before = arrived(&edge.edge, "polite");
    let flood = Flood::spoofed(&frame(&edge, SPOOFED.first), SPOOFED)
        .packets(u64::from(SPOOFED.count))
        .lasting(Duration::from_secs(100));
    let (kind, spoof, moments) = flooded(&edge, &mut agent, &polite, &flood);
    rest(Duration::from_millis(50));

    let seconds = spoof.time.as_secs_f64();
    let per_second = spoof.packets as f64 / seconds;
    let budget = 1e9 / Tables::default().regions4()[0].first_seen_ns as f64;
    let goodput = (arrived(&edge.edge, "polite") - before) as f64 / kind.packets as f64;
    let of_budget = arrived(&edge.edge, "spoofed") as f64 / (budget * seconds);
    println!(
        "{} spoofed packets in {seconds:.1} s, {per_second:.0}/s; through: {of_budget:.4} of the \
         budget of {budget:.0}/s; polite: {} packets, {:.4} % through",
        spoof.packets,
        kind.packets,
        goodput * 100.0
    );
    assert!(
        per_second > 1.5 * budget,
        "a flood of {per_second:.0}/s does not press on a budget of {budget:.0}/s"
    );
    assert!(goodput >= 0.99, "polite clients kept {goodput:.4}");
    assert!(
        (0.5..=1.05).contains(&of_budget),
        "{of_budget:.4} of the first-seen budget reached the stack"
    );
    is_flat(&moments);
    metrics_are_bounded(&agent);
    assert_eq!(agent.get("/readyz").status, 200);
    assert_eq!(agent.terminate(), 0);
}

fn frame(edge: &Edge, source: u32) -> Vec<u8> {
    let source = std::net::Ipv4Addr::from(source).to_string();
    Packet::eth_between(edge.client.mac(CLIENT), edge.edge.mac(EDGE))
        .ipv4(&source, "192.0.2.1")
        .udp(4_000, 4_001)
        .zeros(18)
        .build()
}

/// One second of all clients, spread evenly: client n sends 1 + n % 10 packets.
fn polite(edge: &Edge) -> Flood {
    let template = frame(edge, 0x0a00_0000);
    let mut schedule: Vec<(u64, Vec<u8>)> = (0..CLIENTS)
        .flat_map(|n| {
            let rate = u64::from(1 + n % 10);
            let own = respoofed(&template, 0x0a00_0000 + n);
            (0..rate).map(move |k| {
                let micros = u64::from(n) * 499 + k * 1_000_000 / rate;
                (micros % 1_000_000, own.clone())
            })
        })
        .collect();
    schedule.sort_by_key(|(micros, _)| *micros);
    let frames: Vec<Vec<u8>> = schedule.into_iter().map(|(_, frame)| frame).collect();
    let per_second = frames.len() as u64;
    Flood::new(frames).rate(per_second)
}

/// Sends on CPU 0, where the receiver's work is then done too.
fn send(edge: &Edge, flood: &Flood) -> Sent {
    send_until(edge, flood, &AtomicBool::new(false))
}

fn send_until(edge: &Edge, flood: &Flood, stop: &AtomicBool) -> Sent {
    edge.client.run(|| {
        pin_to_cpu(0);
        flood.send(CLIENT, stop)
    })
}

/// Floods beside the polite clients, and looks at the agent meanwhile.
fn flooded(
    edge: &Edge,
    agent: &mut Agent<'_>,
    polite: &Flood,
    flood: &Flood,
) -> (Sent, Sent, Vec<Moment>) {
    let ended = AtomicBool::new(false);
    let began = clock::instant();
    let mut moments = Vec::new();
    let (kind, spoof) = std::thread::scope(|scope| {
        let kind = scope.spawn(|| {
            let long = polite.clone().lasting(Duration::from_secs(110));
            send_until(edge, &long, &ended)
        });
        let spoof = scope.spawn(|| {
            let sent = send(edge, flood);
            ended.store(true, Ordering::Relaxed);
            sent
        });
        while !ended.load(Ordering::Relaxed) {
            rest(Duration::from_millis(500));
            moments.push(Moment {
                at: began.elapsed(),
                resident_kib: agent.child().resident_kib().own,
                cpu: agent.child().cpu_time(),
            });
        }
        let join = |thread: std::thread::ScopedJoinHandle<'_, Sent>| {
            thread
                .join()
                .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        };
        (join(kind), join(spoof))
    });
    (kind, spoof, moments)
}

/// The agent takes no more memory, and no more CPU time per second, at the end of the flood than at
/// its beginning.
fn is_flat(moments: &[Moment]) {
    let third = moments.len() / 3;
    assert!(third >= 4, "too few looks at the agent: {}", moments.len());
    let (first, last) = (&moments[..third], &moments[moments.len() - third..]);
    let load = |part: &[Moment]| {
        let (from, to) = (part[0], part[part.len() - 1]);
        (to.cpu.as_secs_f64() - from.cpu.as_secs_f64())
            / (to.at.as_secs_f64() - from.at.as_secs_f64())
    };
    let peak = |part: &[Moment]| part.iter().map(|moment| moment.resident_kib).max();
    let (early, late) = (load(first), load(last));
    let (before, after) = (
        peak(first).or_fail("a moment"),
        peak(last).or_fail("a moment"),
    );
    println!(
        "agent: {before} KiB and {:.1} % of a CPU in the first third, {after} KiB and {:.1} % in the last",
        early * 100.0,
        late * 100.0
    );
    assert!(
        after <= before + 2_048,
        "the agent grew from {before} KiB to {after} KiB"
    );
    assert!(
        late <= 1.5 * early + 0.05,
        "the agent took {early:.3} of a CPU at first and {late:.3} in the end"
    );
}

/// R42: series, size and time of a scrape, and no address anywhere in a label.
fn metrics_are_bounded(agent: &Agent<'_>) {
    let mut times = Vec::new();
    let mut page = String::new();
    for _ in 0..5 {
        let began = clock::instant();
        page = agent.get("/metrics").expect(200).body;
        times.push(began.elapsed());
    }
    let fastest = times.iter().min().or_fail("a scrape");
    let series: Vec<&str> = page
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    println!(
        "metrics: {} series, {} bytes, {fastest:?}",
        series.len(),
        page.len()
    );
    assert!(series.len() <= 300, "{} series", series.len());
    assert!(page.len() <= 1 << 20, "{} bytes", page.len());
    assert!(*fastest <= Duration::from_millis(100), "took {fastest:?}");
    for line in series {
        let Some((_, labels)) = line.split_once('{') else {
            continue;
        };
        let address = labels
            .split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':'))
            .find(|word| word.parse::<IpAddr>().is_ok());
        assert_eq!(address, None, "an address in `{line}`");
    }
}

fn count_arrivals(edge: &Netns) {
    let file = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempfile()
        .or_fail("make a rule file");
    std::fs::write(file.path(), COUNTERS).or_fail("write the rules");
    edge.sh(&format!("nft -f {}", file.path().display()));
}

/// What a counter has seen.
fn arrived(edge: &Netns, counter: &str) -> u64 {
    let text = edge.sh(&format!("nft list counter ip seen {counter}"));
    let mut words = text.split_whitespace();
    words
        .find(|word| *word == "packets")
        .and_then(|_| words.next()?.parse().ok())
        .or_fail("a counter of nft")
}
