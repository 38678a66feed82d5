//! Cores that Redis takes for 20 000 hot sources, and the agent for 10 000.
use std::time::Duration;

use ratelimiter_userspace::clock;
use ratelimiter_userspace::policy::model::Algorithm;
use ratelimiter_userspace::sync::settle::MAX_BATCH;
use ratelimiter_userspace::sync::{Entry, FleetKey, FleetQuota, Settle as _};

use super::scene::{Edge, Store, agent, metric};
use super::{Figure, figure, requests};
use crate::OrFail as _;
use crate::flood::{Flood, Spoofed};
use crate::process::{holds_within, rest};

const REDIS_SOURCES: usize = 20_000;
const AGENT_SOURCES: u32 = 10_000;
const INTERVAL: Duration = Duration::from_millis(100);
const COUNTED: Duration = Duration::from_secs(5);

pub(super) fn run() -> Vec<Figure> {
    vec![
        figure("redis_core_per_20k_hot", redis_cores(), "cores"),
        figure("agent_core_per_10k_hot", agent_cores(), "cores"),
    ]
}

/// Settles 20 000 keys an interval, as one host with so many hot sources does.
fn redis_cores() -> f64 {
    let server = Store::start();
    let store = requests::open(&server.url());
    let quota = FleetQuota {
        algorithm: Algorithm::TokenBucket,
        limit: 1_000 << 8,
        burst: 1_000 << 8,
        window_us: 1_000_000,
        grain: 1,
        revision: 1,
    };
    let entries: Vec<Entry> = (0..REDIS_SOURCES as u128)
        .map(|n| {
            let key = FleetKey(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            Entry::charge(key, quota, 50 << 8, 0)
        })
        .collect();
    let runtime = store.runtime();
    let (began, before) = (clock::instant(), server.cpu_time());
    let mut rounds = 0_u32;
    while began.elapsed() < COUNTED {
        for batch in entries.chunks(MAX_BATCH) {
            let settled = runtime.block_on(store.settle(batch)).or_fail("an answer");
            assert_eq!(settled.answers.len(), batch.len());
        }
        rounds += 1;
        rest((INTERVAL * rounds).saturating_sub(began.elapsed()));
    }
    let cores =
        server.cpu_time().saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
    let kept = rounds as f64 * INTERVAL.as_secs_f64() / began.elapsed().as_secs_f64();
    println!("{kept:.2} of the intervals were kept");
    // Where the intervals stretched, what it would have taken to keep them.
    cores / kept.min(1.0)
}

/// A real agent with 10 000 hot sources: the threads that settle.
fn agent_cores() -> f64 {
    let store = Store::start();
    let edge = Edge::new();
    // Hot above 5 a second; each sends 6.
    let mut agent = agent(&edge, &store, (10, 65_536), "hold");
    let flood = Flood::spoofed(
        &edge.frame("192.0.100.1"),
        Spoofed {
            first: u32::from(std::net::Ipv4Addr::new(192, 0, 100, 1)),
            count: AGENT_SOURCES,
        },
    )
    .rate(u64::from(AGENT_SOURCES) * 6)
    .lasting(Duration::from_mins(1));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| edge.send_until(&flood, &stop));
        let hot = |agent: &_| metric(agent, "ratelimiter_sync_hot_sources");
        let most = f64::from(AGENT_SOURCES) * 0.9;
        let heated = holds_within(Duration::from_secs(45), || hot(&agent) >= most);
        let pid = agent.child().pid();
        let (began, before) = (clock::instant(), settling(pid));
        rest(COUNTED);
        let cores =
            settling(pid).saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
        let sources = hot(&agent);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("{sources} sources are hot (enough: {heated}), {cores:.3} cores");
        cores * f64::from(AGENT_SOURCES) / sources
    })
}

/// CPU time of the threads of a process that settle.
fn settling(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).or_fail("list threads");
    let run_time_ns = |thread: std::fs::DirEntry| -> Option<u64> {
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        ["fleet", "redis"]
            .contains(&name.trim())
            .then(|| text.split_whitespace().next()?.parse().ok())?
    };
    Duration::from_nanos(threads.flatten().filter_map(run_time_ns).sum())
}
