//! Limits that follow health, in a closed loop: the real agent, real checks over HTTP, and a real
//! backend in a namespace of its own that works on so many requests at once and queues the others.
//!
//! - [`backend`]: the server; [`load`]: clients that ask first; [`figures`]: what came of it
pub mod backend;
pub mod figures;
pub mod load;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ratelimiter_userspace::clock;
use serde_json::{Value, json};

use self::backend::Backend;
use self::figures::{Phase, phase};
use self::load::{Client, DRIVERS, Load, Log};
use super::Figure;
use crate::OrFail as _;
use crate::agent::{Agent, Setup};
use crate::netns::{Netns, veth};
use crate::process::rest;

/// Requests the backend works on at once, and how long one takes.
const WORKERS: usize = 20;
const SERVICE: Duration = Duration::from_millis(50);
/// Polite clients together ask for this share of the capacity, whatever happens.
const POLITE: f64 = 0.3;
const POLITE_CLIENTS: usize = 40;
const GREEDY_CLIENTS: usize = 10;
/// Load in calm, as a share of the capacity.
const CALM: f64 = 0.7;
/// How often the backend's health is reported.
const REPORT_EVERY: Duration = Duration::from_secs(1);

const CHECKS: &str = "127.0.0.1:9741";
const BACKEND: &str = "192.0.2.2:7000";

const SETTINGS: &str = "[tables]\ncrowd4_words = 65536\ncrowd6_ways = 16384\nregion_words = 4096\n\
    tracked = 4096\npolicies = 256\nprefixes = 65536\nevents_bytes = 65536\n\
    [segments.default.limits.default]\nrate_limit = 1000\ntime_window = 1\n\
    algorithm = \"token_bucket\"\n[segments.default.limits.packets]\nrate_limit = 1000000\n\
    time_window = 1\nunit = \"packets\"\n";

/// A stretch of a run.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    name: &'static str,
    seconds: f64,
    /// Load as a multiple of the capacity.
    multiple: f64,
    /// Workers of the backend, as a share.
    workers: f64,
    /// Whether health is reported.
    reported: bool,
}

const fn stretch(name: &'static str, seconds: f64, multiple: f64) -> Stretch {
    Stretch {
        name,
        seconds,
        multiple,
        workers: 1.0,
        reported: true,
    }
}

const SURGES: [Stretch; 7] = [
    stretch("calm", 12.0, CALM),
    stretch("2x", 25.0, 2.0),
    stretch("5x", 20.0, 5.0),
    stretch("10x", 30.0, 10.0),
    stretch("after", 12.0, CALM),
    Stretch {
        workers: 0.5,
        ..stretch("halved", 20.0, 0.9)
    },
    stretch("restored", 20.0, 0.9),
];

const BLIND: [Stretch; 3] = [
    stretch("calm", 15.0, CALM),
    Stretch {
        reported: false,
        ..stretch("lost", 6.0, CALM)
    },
    Stretch {
        reported: false,
        ..stretch("lost 5x", 25.0, 5.0)
    },
];

const LITERAL: [Stretch; 2] = [stretch("calm", 12.0, CALM), stretch("10x", 30.0, 10.0)];

/// Runs every scenario and returns the figures.
#[must_use]
pub fn run() -> Vec<Figure> {
    let share = |name: &str, value: f64| Figure {
        name: name.to_owned(),
        value,
        unit: "share".to_owned(),
        baseline: None,
        ratio: None,
    };
    let seconds = |name: &str, value: f64| Figure {
        unit: "s".to_owned(),
        ..share(name, value)
    };
    let (capacity, surges) = scenario("budget", &SURGES);
    let of = |name: &str| find(&surges, name);
    let ten = of("10x");
    let mut figures = vec![
        Figure {
            unit: "1/s".to_owned(),
            ..share("capacity", capacity)
        },
        share("goodput_2x", of("2x").settled),
        share("goodput_5x", of("5x").settled),
        share("goodput_10x", ten.settled),
        seconds("settle_first_surge_s", of("2x").settle_s),
        seconds("settle_2x_to_5x_s", of("5x").settle_s),
        seconds("settle_5x_to_10x_s", ten.settle_s),
        seconds("mean_10x_s", ten.mean_s),
        share("p99_10x_vs_t_high", ten.p99_s / 0.5),
        share("oscillation_10x", ten.oscillation),
        share("polite_served_10x", ten.polite),
        share("jain_polite", ten.jain_polite),
        share("goodput_calm", of("calm").settled),
        share("goodput_after", of("after").goodput),
        share("goodput_capacity_halved", of("halved").goodput),
        share("goodput_capacity_restored", of("restored").goodput),
    ];
    let (_, blind) = scenario("budget", &BLIND);
    let lost = find(&blind, "lost 5x");
    figures.push(share("goodput_signal_lost_calm_5x", lost.goodput));
    figures.push(share("polite_signal_lost_calm_5x", lost.polite));
    // Side by side on the same backend: the literal rule alone.
    let (_, literal) = scenario("threshold", &LITERAL);
    let ten = find(&literal, "10x");
    figures.push(share("threshold_goodput_10x", ten.settled));
    figures.push(share("threshold_polite_served_10x", ten.polite));
    figures.push(share("threshold_oscillation_10x", ten.oscillation));
    figures
}

fn find(phases: &[(&'static str, Phase)], name: &str) -> Phase {
    let found = phases.iter().find(|(found, _)| *found == name);
    found.or_fail("a phase of that name").1
}

/// Runs one scenario under a law: the capacity measured before it, and each stretch.
fn scenario(law: &str, stretches: &[Stretch]) -> (f64, Vec<(&'static str, Phase)>) {
    let (edge, far) = (Netns::new(), Netns::new());
    veth((&edge, "edge0"), (&far, "backend0"));
    edge.address("edge0", "192.0.2.1/24");
    far.address("backend0", "192.0.2.2/24");
    let address: SocketAddr = BACKEND.parse().or_fail("an address");
    let backend = Backend::start(&far, address, WORKERS, SERVICE);
    let capacity = edge.run(|| load::capacity(address, 4 * WORKERS as u64, Duration::from_secs(4)));
    let _before = backend.take();
    let agent = Setup::new()
        .enforce()
        .settings(SETTINGS)
        .settings(&format!("[backends.default.adaptive]\nlaw = \"{law}\""))
        .check(CHECKS)
        .start(&edge);
    println!("{law}: the backend completes {capacity:.0}/s");
    let clients = population(capacity);
    let multiple = AtomicU64::new(CALM.to_bits());
    let [stop, reported] = [AtomicBool::new(false), AtomicBool::new(true)];
    let log = Mutex::new(Log::default());
    let load = Load {
        clients: &clients,
        multiple: &multiple,
        capacity,
        checks: CHECKS.parse().or_fail("an address"),
        backend: address,
        begin: clock::instant(),
        stop: &stop,
        log: &log,
    };
    let mut bounds = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..DRIVERS {
            let (edge, load) = (&edge, &load);
            scope.spawn(move || edge.run(|| load.drive(number)));
        }
        scope.spawn(|| report(&agent, &backend, &reported, &stop));
        for stretch in stretches {
            multiple.store(stretch.multiple.to_bits(), Ordering::Relaxed);
            reported.store(stretch.reported, Ordering::Relaxed);
            backend.set_workers((WORKERS as f64 * stretch.workers) as usize);
            let from_s = load.begin.elapsed().as_secs_f64();
            watch(&agent, stretch, load.begin, from_s + stretch.seconds);
            bounds.push((*stretch, from_s));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let log = log.into_inner().or_fail("the log");
    let phases = bounds
        .into_iter()
        .map(|(stretch, from_s)| {
            let capacity = capacity * stretch.workers;
            let found = phase(&log, &clients, capacity, from_s, from_s + stretch.seconds);
            println!("{law}, {}: {found:.3?}", stretch.name);
            (stretch.name, found)
        })
        .collect();
    (capacity, phases)
}

fn population(capacity: f64) -> Vec<Client> {
    let polite = Client {
        polite: true,
        calm: POLITE * capacity / POLITE_CLIENTS as f64,
        share: 0.0,
    };
    let greedy = Client {
        polite: false,
        calm: (CALM - POLITE) * capacity / GREEDY_CLIENTS as f64,
        share: 1.0 / GREEDY_CLIENTS as f64,
    };
    let mut clients = vec![polite; POLITE_CLIENTS];
    clients.extend(vec![greedy; GREEDY_CLIENTS]);
    clients
}

/// Lets a stretch pass, and says twice a second what the controllers do.
fn watch(agent: &Agent<'_>, stretch: &Stretch, begin: Instant, until_s: f64) {
    let mut told_s = 0.0;
    loop {
        let now_s = begin.elapsed().as_secs_f64();
        if now_s >= until_s {
            return;
        }
        if now_s - told_s >= 2.0 {
            told_s = now_s;
            let view = agent.get("/v1/adaptive").json();
            let of = |key: &str| view["backends"][0][key].as_f64().unwrap_or(f64::NAN);
            println!(
                "{now_s:6.1} s {:>8}: factor {:.2}, {} budget {:.0}, capacity {:.0}, demand \
                 {:.0}, admitted {:.0}, {:.0} ms",
                stretch.name,
                of("factor"),
                view["backends"][0]["mode"].as_str().unwrap_or_default(),
                of("budget"),
                of("capacity"),
                of("demand"),
                of("admitted"),
                of("latency_ms"),
            );
        }
        rest(Duration::from_secs_f64((until_s - now_s).min(0.5)));
    }
}

/// Reports the backend's health until the end.
fn report(agent: &Agent<'_>, backend: &Backend, reported: &AtomicBool, stop: &AtomicBool) {
    let mut seq = 0_u64;
    let mut last = clock::instant();
    while !stop.load(Ordering::Relaxed) {
        rest(REPORT_EVERY.saturating_sub(last.elapsed()));
        let window_s = last.elapsed().as_secs_f64();
        last = clock::instant();
        let (completed, in_flight) = backend.take();
        if !reported.load(Ordering::Relaxed) {
            continue;
        }
        seq += 1;
        let mean = completed.seconds / completed.served.max(1) as f64;
        let all = completed.served + completed.refused;
        let body: Value = json!({
            "instance": "backend",
            "seq": seq,
            "window_s": window_s.clamp(0.01, 60.0),
            "latency_ms": {"mean": mean * 1e3},
            "error_ratio": completed.refused as f64 / all.max(1) as f64,
            "count": completed.served,
            "in_flight": in_flight,
        });
        agent.post("/v1/health", &body).expect(200);
    }
}
