//! CPU per packet over a veth pair: our program beside a bare XDP drop, nftables and iptables; and
//! what a polite TCP stream keeps while others flood.
//!
//! The receiver runs in a threaded NAPI context on a CPU of its own, so that its CPU time is the
//! run time of one kernel thread (`/proc/<pid>/schedstat`, nanoseconds) and the sender's is not in
//! it. Frames come as from a network card, in pages with room in front (`tests::live`): those of a
//! local socket would be copied by the veth driver before XDP sees them, which costs more than any
//! of the programs. The receiver polls every 200 us, as a network card that coalesces interrupts would make it: else most
//! of its time goes into being woken, which is the same for every receiver and flatters the dear
//! ones. Every receiver sees the same 1 000 sources, all far over their limit of 10/s with a burst
//! of 20. Rounds are interleaved; figures are medians.
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratelimiter_userspace::dataplane::{
    AttachOptions, DataPlane as _, OpenOptions, XdpDataPlane, detach_all,
};
use serde_json::{Value, json};

use super::{Figure, median};
use crate::OrFail as _;
use crate::flood::Flood;
use crate::live::LiveFrames;
use crate::netns::{Netns, veth};
use crate::packet::Packet;
use crate::policy::{document, install};
use crate::process::{rest, wait_for};
use crate::stranger::Stranger;

const EDGE: &str = "edge0";
const CLIENT: &str = "client0";
/// CPU of the sender and of the receiver.
const CPUS: [usize; 2] = [0, 1];
const ROOT: &str = "/sys/fs/bpf/ratelimiter";
/// How often the receiver polls while packets come: the ring of a veth holds 256.
const POLL_NS: u64 = 200_000;
/// Port to which the frames go; somebody listens there, so that what passes costs no ICMP error.
const PORT: u16 = 4_001;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds, 1 or more.
    pub rounds: u32,
    /// Time one receiver is flooded per round.
    pub slice: Duration,
    /// Time of one TCP stream.
    pub stream: Duration,
    /// Sources that flood a receiver, 1 to 65 536.
    pub sources: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rounds: 5,
            slice: Duration::from_secs(1),
            stream: Duration::from_secs(4),
            sources: 1_000,
        }
    }
}

/// Who judges the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiver {
    XdpDrop,
    XdpLookAndDrop,
    Ours,
    NftIngress,
    NftPrerouting,
    Hashlimit,
}

const RECEIVERS: [Receiver; 6] = [
    Receiver::XdpDrop,
    Receiver::XdpLookAndDrop,
    Receiver::Ours,
    Receiver::NftIngress,
    Receiver::NftPrerouting,
    Receiver::Hashlimit,
];

/// Runs the benchmark.
#[must_use]
pub fn run(plan: Plan) -> Vec<Figure> {
    let mut costs = [const { Vec::new() }; RECEIVERS.len()];
    for round in 1..=plan.rounds {
        for (receiver, costs) in RECEIVERS.iter().zip(&mut costs) {
            let cost = measure(*receiver, plan);
            println!(
                "round {round}: {receiver:?} {:.1} ns of CPU per packet, {:.0} packets/s, {:.2} % passed",
                cost.ns, cost.per_second, cost.passed_percent
            );
            costs.push(cost.ns);
        }
    }
    let [xdp_drop, look, ours, ingress, prerouting, hashlimit] = costs.map(|costs| median(&costs));
    let over = |name: &str, value: f64, baseline: f64| Figure {
        name: name.to_owned(),
        value,
        unit: "ns/packet".to_owned(),
        baseline: Some(baseline),
        ratio: Some(value / baseline),
    };
    let mut figures = vec![
        over("veth_drop_vs_xdp_drop", ours, xdp_drop),
        over("veth_look_and_drop_vs_xdp_drop", look, xdp_drop),
        over("veth_drop_vs_look_and_drop", ours, look),
        over("nft_ingress_vs_ours", ingress, ours),
        over("nft_prerouting_vs_ours", prerouting, ours),
        over("hashlimit_vs_ours", hashlimit, ours),
    ];
    figures.extend(goodput(plan));
    figures
}

/// A fresh edge and client.
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
        for netns in [&field.edge, &field.client] {
            netns.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
            netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        }
        veth((&field.edge, EDGE), (&field.client, CLIENT));
        field.edge.address(EDGE, "192.0.2.1/24");
        field.client.address(CLIENT, "192.0.2.2/24");
        field
    }

    fn frames(&self, sources: u32) -> Vec<Vec<u8>> {
        (0..sources)
            .map(|n| {
                let source = format!("198.18.{}.{}", n >> 8, n & 255);
                Packet::eth_between(self.client.mac(CLIENT), self.edge.mac(EDGE))
                    .ipv4(&source, "192.0.2.1")
                    .udp(4_000, PORT)
                    .zeros(18)
                    .build()
            })
            .collect()
    }

    /// Moves the receiver into a kernel thread on its own CPU that polls every [`POLL_NS`];
    /// returns the thread's id.
    fn thread_the_receiver(&self) -> u32 {
        for (setting, value) in [
            ("gro_flush_timeout", POLL_NS.to_string()),
            ("napi_defer_hard_irqs", "1".to_owned()),
            ("threaded", "1".to_owned()),
        ] {
            self.edge
                .run(|| std::fs::write(format!("/sys/class/net/{EDGE}/{setting}"), &value))
                .or_fail(setting);
        }
        let pid = wait_for(
            "the receiver's kernel thread",
            Duration::from_secs(2),
            napi_thread,
        );
        pin(pid as i32, CPUS[1]);
        pid
    }
}

/// The kernel thread of the edge's only receive queue. Benchmarks run one field at a time.
fn napi_thread() -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        name.starts_with(&format!("napi/{EDGE}")).then_some(pid)
    })
}

/// Binds a thread (0: the calling one) to a CPU.
fn pin(pid: i32, cpu: usize) {
    // SAFETY: all-zero is an empty set; `CPU_SET` stays inside it for CPUs below 1 024; the kernel
    // only reads it.
    let bound = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(pid, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    crate::space::check(bound).or_fail("bind a thread to a CPU");
}

/// CPU time of a thread, in nanoseconds.
fn cpu_ns(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).or_fail("schedstat");
    text.split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .or_fail("a run time")
}

/// What a receiver took.
struct Cost {
    /// CPU time per packet.
    ns: f64,
    /// Packets it was given.
    per_second: f64,
    /// Share it let through.
    passed_percent: f64,
}

/// CPU time of the receiver per packet it took.
fn measure(receiver: Receiver, plan: Plan) -> Cost {
    let field = Field::new();
    let _installed = Installed::new(receiver, &field);
    let _listener = field
        .edge
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))
        .or_fail("bind");
    let pid = field.thread_the_receiver();
    let frame = field.frames(1).remove(0);
    let flood = |time| {
        field.client.run(|| {
            pin(0, CPUS[0]);
            LiveFrames::new(&frame, plan.sources).send(CLIENT, time)
        })
    };
    // Empties every bucket and warms the caches.
    flood(Duration::from_millis(200));
    rest(Duration::from_millis(20));
    let (packets, cpu) = (taken(&field), cpu_ns(pid));
    let delivered = field.edge.ipv4_delivered();
    let time = flood(plan.slice);
    rest(Duration::from_millis(20));
    let (packets, cpu) = (taken(&field) - packets, cpu_ns(pid) - cpu);
    let passed = field.edge.ipv4_delivered() - delivered;
    assert!(packets > 10_000, "{receiver:?} took only {packets} packets");
    // What passes costs more than what is dropped: it must not be more than what has to pass, with
    // some tolerance for how others count.
    let entitled = f64::from(plan.sources) * (10.0 * time.as_secs_f64() + 2.0);
    assert!(
        passed as f64 <= 1.5 * entitled,
        "{receiver:?} let {passed} of {packets} pass, entitled are {entitled:.0}"
    );
    Cost {
        ns: cpu as f64 / packets as f64,
        per_second: packets as f64 / time.as_secs_f64(),
        passed_percent: 100.0 * passed as f64 / packets as f64,
    }
}

/// Packets the edge's interface took from the ring, dropped ones included.
fn taken(field: &Field) -> u64 {
    field.client.statistic(CLIENT, "tx_packets")
}

/// A receiver in force; removed when dropped.
enum Installed<'a> {
    Xdp(#[expect(dead_code, reason = "holds the link")] std::os::fd::OwnedFd),
    Ours(Option<XdpDataPlane>, &'a Field),
    Rules,
}

impl<'a> Installed<'a> {
    fn new(receiver: Receiver, field: &'a Field) -> Self {
        match receiver {
            Receiver::XdpDrop => {
                let index = field.edge.ifindex(EDGE);
                Self::Xdp(field.edge.run(|| Stranger::dropping().link(index)))
            }
            Receiver::XdpLookAndDrop => {
                let index = field.edge.ifindex(EDGE);
                let link = || Stranger::dropping_after_a_look().link(index);
                Self::Xdp(field.edge.run(link))
            }
            Receiver::Ours => Self::Ours(
                Some(ours(
                    field,
                    json!({ "segments": { "default": limit(10, 20) } }),
                )),
                field,
            ),
            Receiver::NftIngress => {
                coalesce(field);
                nft(
                    field,
                    "netdev",
                    &format!("hook ingress device {EDGE} priority 0"),
                );
                Self::Rules
            }
            Receiver::NftPrerouting => {
                coalesce(field);
                nft(field, "ip", "hook prerouting priority -300");
                Self::Rules
            }
            Receiver::Hashlimit => {
                coalesce(field);
                field.edge.sh(
                    "iptables -t raw -A PREROUTING -m hashlimit --hashlimit-above 10/second \
                     --hashlimit-burst 20 --hashlimit-mode srcip --hashlimit-name bench \
                     --hashlimit-htable-size 65536 --hashlimit-htable-max 1000000 -j DROP",
                );
                Self::Rules
            }
        }
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        if let Self::Ours(plane, field) = self {
            drop(plane.take());
            field
                .edge
                .run(|| detach_all(ROOT.as_ref()))
                .or_fail("detach all");
        }
    }
}

/// Without XDP a veth only has a NAPI context (and so a thread) of its own while GRO is on, and
/// only uses it for packets of a sender without TSO.
fn coalesce(field: &Field) {
    field.edge.sh(&format!("ethtool -K {EDGE} gro on"));
    field.client.sh(&format!("ethtool -K {CLIENT} tso off"));
}

fn nft(field: &Field, family: &str, hook: &str) {
    let rules = format!(
        "table {family} bench {{\n\
         set seen {{ type ipv4_addr; flags dynamic; size 1000000; timeout 1m; }}\n\
         chain in {{ type filter {hook}; policy accept;\n\
         ip saddr 198.18.0.0/15 update @seen {{ ip saddr limit rate over 10/second burst 20 packets }} drop; }}\n\
         }}\n"
    );
    let file = tempfile::Builder::new()
        .prefix(crate::residue::TEMP_PREFIX)
        .tempfile()
        .or_fail("make a rule file");
    std::fs::write(file.path(), rules).or_fail("write the rules");
    field.edge.sh(&format!("nft -f {}", file.path().display()));
}

/// A segment's or client's only limit.
fn limit(rate_limit: u64, burst: u64) -> Value {
    json!({ "limits": { "packets": {
        "rate_limit": rate_limit, "time_window": 1, "burst": burst, "unit": "packets"
    } } })
}

/// Our program with default tables, enforcing a policy.
fn ours(field: &Field, policy: Value) -> XdpDataPlane {
    let plane = field
        .edge
        .run(|| XdpDataPlane::open(&OpenOptions::default()))
        .or_fail("open");
    install(&plane, &document(policy));
    field
        .edge
        .run(|| plane.attach(EDGE, AttachOptions::default()))
        .or_fail("attach");
    plane
}

/// Goodput of a polite TCP stream beside a flood of 100 000 packets per second, over the same
/// without the flood; the program is attached both times. The flood's five sources have the
/// product's default limit, the stream's a larger one.
fn goodput(plan: Plan) -> Vec<Figure> {
    let field = Field::new();
    let mut polite = limit(1_000_000, 2_000_000);
    polite["sources"] = json!(["192.0.2.2/32"]);
    let policy = json!({
        "segments": { "default": limit(1_000, 2_000) },
        "clients": { "polite": polite },
    });
    let installed = Installed::Ours(Some(ours(&field, policy)), &field);
    let mut paced = [Vec::new(), Vec::new()];
    for round in 1..=plan.rounds {
        for (flooded, rates) in [false, true].into_iter().zip(&mut paced) {
            let rate = stream(&field, "-b 50M", plan.stream, flooded);
            println!("round {round}: paced TCP, flood {flooded}: {rate:.2} Mbit/s");
            rates.push(rate);
        }
    }
    let saturating = [false, true].map(|flooded| stream(&field, "", plan.stream, flooded));
    println!(
        "saturating TCP: {:.0} Mbit/s without the flood, {:.0} with it",
        saturating[0], saturating[1]
    );
    drop(installed);
    let [quiet, flooded] = paced.map(|rates| median(&rates));
    vec![Figure {
        name: "legit_goodput_under_flood".to_owned(),
        value: flooded,
        unit: "Mbit/s".to_owned(),
        baseline: Some(quiet),
        ratio: Some(flooded / quiet),
    }]
}

/// Received Mbit/s of one TCP stream from the client to the edge.
fn stream(field: &Field, pace: &str, time: Duration, flooded: bool) -> f64 {
    let mut command = std::process::Command::new(crate::requires::program("iperf3", "iperf3"));
    command.args(["-s", "-1", "-p", "5201"]);
    let mut server = field.edge.spawn(command);
    crate::process::wait_until("the server listens", Duration::from_secs(5), || {
        field.edge.sh("ss -Hltn sport = :5201").contains("5201")
    });
    let stop = AtomicBool::new(false);
    let frames = field.frames(5);
    let out = std::thread::scope(|scope| {
        let flood = flooded.then(|| {
            scope.spawn(|| {
                field.client.run(|| {
                    Flood::new(frames.clone())
                        .rate(100_000)
                        .lasting(time + Duration::from_secs(5))
                        .send(CLIENT, &stop)
                })
            })
        });
        let line = format!(
            "iperf3 -c 192.0.2.1 -p 5201 -t {} -J {pace}",
            time.as_secs()
        );
        let (status, out, error) = field.client.try_sh(&line);
        stop.store(true, Ordering::Relaxed);
        if let Some(flood) = flood {
            let sent = flood
                .join()
                .unwrap_or_else(|cause| std::panic::resume_unwind(cause));
            let per_second = sent.packets as f64 / sent.time.as_secs_f64();
            // A stream without a pace takes what CPU time there is.
            assert!(
                pace.is_empty() || per_second >= 90_000.0,
                "a flood of only {per_second:.0} packets/s"
            );
        }
        assert!(status == 0, "`{line}` exited with {status}: {error}{out}");
        out
    });
    server.wait(Duration::from_secs(5));
    let report: Value = serde_json::from_str(&out).or_fail("iperf3's JSON");
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .or_fail("a rate")
        / 1e6
}
