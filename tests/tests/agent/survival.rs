//! R1 and R2: the agent is killed and swapped under a flood, and no packet passes unpoliced.
//!
//! The limit is one packet per second with a large burst, so that the expected number is exact:
//! a refilled bucket, a moment without a program or a policy read in half would each let thousands
//! through. The detector is the receiving stack's own count of IPv4 packets.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tests::OrFail as _;
use tests::agent::{Agent, Setup};
use tests::flood::{Flood, Sent};
use tests::netns::{Netns, veth};
use tests::packet::Packet;
use tests::process::{holds_within, rest};
use tests::residue::Residue;
use tests::variant::other_version;

const EDGE: &str = "edge0";
const CLIENT: &str = "client0";
const BURST: u64 = 5_000;
const FLOOD_PER_S: u64 = 200_000;
/// How long a round may flood at most.
const BOUND: Duration = Duration::from_mins(2);
/// Upgrades under one flood, unless `RATELIMITER_UPGRADES` says how many: a hundred take minutes.
const UPGRADES: usize = 10;

/// An edge with a client behind it, without IPv6: only what the flood sends arrives.
struct Field {
    edge: Netns,
    client: Netns,
}

impl Field {
    fn new() -> Self {
        tests::requires::bpf();
        let field = Self {
            edge: Netns::new(),
            client: Netns::new(),
        };
        for netns in [&field.edge, &field.client] {
            netns.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
            netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        }
        veth((&field.edge, EDGE), (&field.client, CLIENT));
        field.edge.address(EDGE, "192.0.2.1/24");
        field
    }

    /// A UDP frame from a source of its own, addressed to the edge.
    fn frame(&self) -> Vec<u8> {
        Packet::eth_between(self.client.mac(CLIENT), self.edge.mac(EDGE))
            .ipv4("192.0.2.77", "192.0.2.1")
            .udp(4_000, 4_001)
            .zeros(18)
            .build()
    }

    /// Floods while `work` runs; returns what was sent and what reached the stack.
    fn flood(&self, work: impl FnOnce() + Send) -> (Sent, u64) {
        let before = self.edge.ipv4_received();
        let stop = AtomicBool::new(false);
        let flood = Flood::new(vec![self.frame()])
            .rate(FLOOD_PER_S)
            .lasting(BOUND);
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| self.client.run(|| flood.send(CLIENT, &stop)));
            // Set also when `work` panics, else the scope would wait for the flood's bound.
            let _stop = StopOnDrop(&stop);
            work();
            stop.store(true, Ordering::Relaxed);
            sender.join().or_fail("the flood")
        });
        // What still lies in the ring is judged within milliseconds.
        rest(Duration::from_millis(100));
        (sent, self.edge.ipv4_received() - before)
    }

    fn program(&self) -> Option<u32> {
        let out = self.edge.ip(&format!("-d link show {EDGE}"));
        let id = out.split("prog/xdp id ").nth(1)?;
        id.split_whitespace().next()?.parse().ok()
    }

    /// What identifies a program's instructions.
    fn tag(&self) -> Option<String> {
        let id = self.program()?;
        let out = self.edge.sh(&format!("bpftool -j prog show id {id}"));
        let json: serde_json::Value = serde_json::from_str(&out).or_fail("bpftool's JSON");
        Some(json["tag"].as_str()?.to_owned())
    }

    /// Frames that the interface took and that the program counted since `before`, once no more come
    /// and the agent, which reads the counters now and then, has read all of them.
    fn taken_and_counted(&self, agent: &Agent<'_>, before: (u64, u64)) -> (u64, u64) {
        let taken = || self.edge.statistic(EDGE, "rx_packets") - before.0;
        let mut last = taken();
        let stands = holds_within(Duration::from_secs(10), || {
            rest(Duration::from_millis(50));
            std::mem::replace(&mut last, taken()) == last
        });
        assert!(stands, "frames still arrive");
        let counts = || counted(agent).saturating_sub(before.1);
        // If they differ for good, whoever asked says so.
        let _agreed = holds_within(Duration::from_secs(5), || counts() == last);
        (last, counts())
    }

    fn link(&self) -> u64 {
        let out = self.edge.sh(&format!(
            "bpftool -j link show pinned /sys/fs/bpf/ratelimiter/links/{EDGE}"
        ));
        let json: serde_json::Value = serde_json::from_str(&out).or_fail("bpftool's JSON");
        json["id"].as_u64().or_fail("a link id")
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn limited(field: &Field) -> Agent<'_> {
    let agent = Setup::new().interface(EDGE).enforce().start(&field.edge);
    let limit = json!({
        "limits": {
            "packets": { "rate_limit": 1, "time_window": 1, "burst": BURST, "unit": "packets" }
        }
    });
    let answer = agent.put("/v1/segments/default", &limit);
    assert!(
        (200..300).contains(&answer.status),
        "{} {}",
        answer.status,
        answer.body
    );
    // A change comes into force 20 ms after it was made: until then the old rate holds, and a flood
    // that begins sooner rightly gets it.
    rest(Duration::from_millis(100));
    agent
}

/// What a source may send in the time the flood took: burst and one packet per second, the issue's
/// tolerance, one packet per CPU. The clock starts with the first packet.
fn entitled(sent: Sent) -> u64 {
    let whole = BURST + sent.time.as_secs() + 1;
    whole + whole / 1_000 + 2
}

#[test]
fn the_detector_sees_every_packet_when_nothing_is_attached() {
    let _residue = Residue::watch();
    let field = Field::new();
    let (sent, received) = field.flood(|| rest(Duration::from_millis(500)));
    assert!(sent.packets > 10_000, "{sent:?}");
    let lost = field.edge.statistic(EDGE, "rx_dropped");
    assert!(
        received + lost >= sent.packets,
        "{sent:?} {received} {lost}"
    );
    assert!(
        received > entitled(sent),
        "the flood is too slow to prove anything"
    );
}

#[test]
fn killed_ten_times_under_flood_without_an_unpoliced_packet() {
    let _residue = Residue::watch();
    let field = Field::new();
    let mut agent = limited(&field);
    let link = field.link();
    let carrier = field.edge.carrier_changes(EDGE);
    let policy = limits(&agent);
    let mut without_program = 0;
    let before = field.taken_and_counted(&agent, (0, 0));
    let (sent, received) = field.flood(|| {
        for round in 0..10_u64 {
            // From "just ready" over "about to be" to "still loading": every phase of a start.
            rest(Duration::from_millis(37 * round % 400));
            agent.kill();
            without_program += u32::from(field.program().is_none());
            agent.relaunch();
            if round % 3 == 0 {
                rest(Duration::from_millis(10 + 61 * round % 300));
                agent.kill();
                without_program += u32::from(field.program().is_none());
                agent.relaunch();
            }
            agent.wait_until_ready();
            if round % 2 == 1 {
                // A kill right behind a change: pushed or not, but never half.
                let half = json!({ "sources": [format!("198.51.{round}.0/24")] });
                drop(agent.put("/v1/clients/bystander", &half));
            }
        }
    });
    println!(
        "sent {} in {:?}, {received} reached the stack, entitled {}",
        sent.packets,
        sent.time,
        entitled(sent)
    );
    assert_eq!(without_program, 0);
    assert!(sent.packets > 100_000, "{sent:?}");
    assert!(
        received <= entitled(sent),
        "{received} of {sent:?} passed\n{}",
        reasons(&agent)
    );
    assert!(received >= BURST * 99 / 100, "only {received} passed");
    // R11: not one frame was lost to a dead agent, nor counted twice.
    let (taken, counted) = field.taken_and_counted(&agent, before);
    println!("{taken} frames taken, {counted} counted");
    assert!(taken > sent.packets / 2, "{taken} of {sent:?}");
    assert_eq!(counted, taken, "{}", reasons(&agent));
    assert_eq!(field.link(), link, "the link was made anew");
    assert_eq!(field.edge.carrier_changes(EDGE), carrier);
    assert_eq!(limits(&agent), policy);
    uninstall(agent);
}

#[test]
fn swapped_a_hundred_times_under_flood_without_an_unpoliced_packet() {
    let _residue = Residue::watch();
    let field = Field::new();
    let mut agent = limited(&field);
    let versions = [tests::agent::binary(), other_version(agent.directory())];
    let upgrades = std::env::var_os("RATELIMITER_UPGRADES")
        .map_or(Some(UPGRADES), |text| text.to_str()?.parse().ok())
        .filter(|upgrades| (1..=100).contains(upgrades))
        .or_fail("`RATELIMITER_UPGRADES` must be between 1 and 100");
    let link = field.link();
    let carrier = field.edge.carrier_changes(EDGE);
    let before = field.taken_and_counted(&agent, (0, 0));
    let mut programs = BTreeSet::new();
    let mut tags: BTreeSet<String> = field.tag().into_iter().collect();
    let (sent, received) = field.flood(|| {
        let mut upgraded = 0;
        for round in 0..100 {
            if round * upgrades / 100 == upgraded {
                // An upgrade: the old agent drains, the other version takes the link over.
                upgraded += 1;
                agent.becomes(&versions[upgraded % 2]);
                agent.terminate();
                assert!(field.program().is_some());
                agent.restart();
                tags.extend(field.tag());
            } else {
                agent.child().signal(libc::SIGHUP);
                rest(Duration::from_millis(30));
            }
            programs.extend(field.program());
        }
        assert_eq!(upgraded, upgrades);
    });
    println!(
        "sent {} in {:?}, {received} reached the stack, entitled {}, {} programs of {} versions",
        sent.packets,
        sent.time,
        entitled(sent),
        programs.len(),
        tags.len()
    );
    assert!(programs.len() >= upgrades, "{programs:?}");
    assert_eq!(tags.len(), 2, "two versions: {tags:?}");
    assert!(
        received <= entitled(sent),
        "{received} of {sent:?} passed\n{}",
        reasons(&agent)
    );
    assert_eq!(field.link(), link, "the link was made anew");
    assert_eq!(field.edge.carrier_changes(EDGE), carrier);
    let (taken, counted) = field.taken_and_counted(&agent, before);
    assert_eq!(counted, taken, "{}", reasons(&agent));
    uninstall(agent);
}

/// Frames counted by all reasons together.
fn counted(agent: &Agent<'_>) -> u64 {
    let metrics = agent.get("/metrics").body;
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("ratelimiter_reason_packets_total"));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

/// Why packets passed and were dropped, by the kernel's counters.
fn reasons(agent: &Agent<'_>) -> String {
    let metrics = agent.get("/metrics").body;
    let lines = metrics.lines().filter(|line| {
        line.starts_with("ratelimiter_reason_packets_total") && !line.ends_with(" 0")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The limits of the default segment, as the agent tells them.
fn limits(agent: &Agent<'_>) -> serde_json::Value {
    let body = agent.get("/v1/segments/default").body;
    let segment: serde_json::Value = serde_json::from_str(&body).or_fail("a segment");
    segment["limits"].clone()
}

/// Ends the agent and removes what it left in force.
fn uninstall(mut agent: Agent<'_>) {
    assert_eq!(agent.terminate(), 0, "{}", agent.child().output());
}
