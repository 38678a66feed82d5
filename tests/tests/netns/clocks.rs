//! R24, R25: what a changed limit is worth, and when, through the planner, the maps and the kernel.

use std::cell::Cell;
use std::time::Duration;

use ratelimiter_userspace::clock::monotonic_ns;
use ratelimiter_userspace::dataplane::{DataPlane as _, OpenOptions, Tables, XdpDataPlane};
use ratelimiter_userspace::policy::model::Document;
use serde_json::json;
use tests::OrFail as _;
use tests::netns::Netns;
use tests::packet::Packet;
use tests::policy::{Policies, document};
use tests::process::rest;
use tests::program::XDP_PASS;
use tests::runner::Runner;

const SECOND_NS: u64 = 1_000_000_000;

/// A data plane attached to nothing; its program is fed by test runs.
struct Bench {
    plane: XdpDataPlane,
    runner: Runner,
    policies: Policies,
    sources: Vec<(&'static str, Vec<u8>)>,
    /// When packets were last offered: what has become due since then passes with the next.
    last_ns: Cell<u64>,
    // Last: the pins go with it.
    _netns: Netns,
}

/// Packets that passed, by source, and the time since others were offered before them.
#[derive(Debug)]
struct Offered {
    passed: Vec<u64>,
    seconds: f64,
    /// Nanoseconds until the first packet of each source passed.
    first_ns: Vec<u64>,
}

impl Bench {
    fn new() -> Self {
        tests::requires::bpf();
        let netns = Netns::new();
        let options = OpenOptions {
            tables: Tables::small(),
            ..OpenOptions::default()
        };
        let plane = netns
            .run(|| XdpDataPlane::open(&options))
            .or_fail("open the data plane");
        let runner = Runner::by_id(plane.health().program_id);
        let v4 = |source| {
            let packet = Packet::eth().ipv4(source, "198.51.100.1").udp(1, 2);
            packet.zeros(18).build()
        };
        let sources = vec![
            ("crowd, IPv4", v4("203.0.113.1")),
            (
                "crowd, IPv6",
                Packet::eth()
                    .ipv6("2001:db8::1", "2001:db8:ffff::1")
                    .udp(1, 2)
                    .zeros(18)
                    .build(),
            ),
            ("tracked", v4("192.0.2.2")),
        ];
        Self {
            plane,
            runner,
            policies: Policies::default(),
            sources,
            last_ns: Cell::new(monotonic_ns()),
            _netns: netns,
        }
    }

    /// Sets the same quota for the crowd and the client; returns the moment it is in force.
    fn set(&mut self, rate: u64, burst: u64) -> u64 {
        self.policies.set(&self.plane, &limited(rate, burst))
    }

    /// Offers packets of all sources, as fast as it can, until `until_ns`.
    fn offer(&self, until_ns: u64) -> Offered {
        let began_ns = monotonic_ns();
        let mut passed = vec![0; self.sources.len()];
        let mut first_ns = vec![u64::MAX; self.sources.len()];
        loop {
            let now_ns = monotonic_ns();
            if now_ns >= until_ns {
                let seconds = (now_ns - self.last_ns.replace(now_ns)) as f64 / 1e9;
                return Offered {
                    passed,
                    seconds,
                    first_ns,
                };
            }
            for (n, (_, frame)) in self.sources.iter().enumerate() {
                if self.runner.run(frame) == XDP_PASS {
                    passed[n] += 1;
                    first_ns[n] = first_ns[n].min(now_ns - began_ns);
                }
            }
        }
    }

    /// Offers for so many milliseconds.
    fn offer_ms(&self, ms: u64) -> Offered {
        self.offer(monotonic_ns() + ms * 1_000_000)
    }

    /// Offers `count` packets of each source at once.
    fn at_once(&self, count: u32) -> Offered {
        let began_ns = monotonic_ns();
        let mut passed = vec![0; self.sources.len()];
        for _ in 0..count {
            for (n, (_, frame)) in self.sources.iter().enumerate() {
                passed[n] += u64::from(self.runner.run(frame) == XDP_PASS);
            }
        }
        let now_ns = monotonic_ns();
        self.last_ns.set(now_ns);
        Offered {
            passed,
            seconds: (now_ns - began_ns) as f64 / 1e9,
            first_ns: Vec::new(),
        }
    }
}

fn limited(rate: u64, burst: u64) -> Document {
    let limits = json!({ "packets": {
        "rate_limit": rate, "time_window": 1, "burst": burst, "unit": "packets"
    } });
    document(json!({
        "segments": { "default": { "limits": limits } },
        "clients": { "alice": { "sources": ["192.0.2.2/32"], "limits": limits } },
    }))
}

/// The most that `rate` gives a drained source in the time since it was drained. The kernel's clock
/// is up to two jiffies old when it ends.
fn entitled(rate: f64, offered: &Offered) -> f64 {
    1.001 * rate * (offered.seconds + 0.01) + 3.0
}

/// What each source got lies between the bounds.
#[track_caller]
fn within(what: &str, offered: &Offered, bench: &Bench, least: f64, most: f64) {
    println!("{what}: {offered:?}, allowed {least:.1}..{most:.1}");
    for (passed, (source, _)) in offered.passed.iter().zip(&bench.sources) {
        let passed = *passed as f64;
        assert!(
            passed >= least && passed <= most,
            "{what}, {source}: {passed} passed, allowed {least:.1} to {most:.1}: {offered:?}"
        );
    }
}

#[test]
fn a_raised_limit_is_whole_within_a_second_and_gives_no_second_burst() {
    let mut bench = Bench::new();
    bench.set(10, 100);
    rest(Duration::from_millis(50));
    let drained = bench.at_once(300);
    let most = 101.0 + 10.0 * drained.seconds;
    within("a burst of 100", &drained, &bench, 100.0, most);
    let at_ns = bench.set(1_000, 100);
    let offered = bench.offer(at_ns + 1_000_000);
    let late_s = bench.last_ns.get().saturating_sub(at_ns) as f64 / 1e9;
    let most = 10.0 * offered.seconds + 1_000.0 * (late_s + 0.01) + 3.0;
    within("until it is in force", &offered, &bench, 0.0, most);
    let offered = bench.offer_ms(1_000);
    let most = entitled(1_000.0, &offered);
    within("10/s to 1000/s", &offered, &bench, 950.0, most);
    // And by a factor of 100 000, the debt worth 10 s at the old rate.
    bench.set(1, 100);
    rest(Duration::from_millis(50));
    bench.at_once(300);
    bench.set(100_000, 100);
    rest(Duration::from_millis(30));
    let offered = bench.offer_ms(20);
    assert!(
        offered.first_ns.iter().all(|&ns| ns < 5_000_000),
        "nobody is locked out: {offered:?}"
    );
}

#[test]
fn a_lowered_limit_holds_within_a_second_and_gives_no_burst() {
    let mut bench = Bench::new();
    bench.set(1_000, 100);
    rest(Duration::from_millis(50));
    bench.at_once(300);
    bench.offer_ms(200);
    let at_ns = bench.set(500, 100);
    bench.offer(at_ns + SECOND_NS / 100);
    let offered = bench.offer_ms(1_000);
    let most = entitled(500.0, &offered);
    within("1000/s to 500/s", &offered, &bench, 0.95 * 500.0, most);
    let at_ns = bench.set(10, 100);
    bench.offer(at_ns + SECOND_NS / 100);
    let offered = bench.offer_ms(1_000);
    let most = entitled(10.0, &offered);
    within("500/s to 10/s", &offered, &bench, 9.0, most);
}

#[test]
fn a_smaller_burst_forgives_nobody_and_locks_nobody_out() {
    let mut bench = Bench::new();
    bench.set(10, 200);
    rest(Duration::from_millis(50));
    let drained = bench.at_once(500);
    let most = 201.0 + 10.0 * drained.seconds;
    within("a burst of 200", &drained, &bench, 200.0, most);
    let at_ns = bench.set(10, 20);
    // Nothing is forgiven: what passes is the rate, from the first instant.
    let offered = bench.offer(at_ns + SECOND_NS);
    within(
        "burst 200 to 20",
        &offered,
        &bench,
        8.0,
        entitled(10.0, &offered),
    );
    // Nobody owes more than one new burst: two seconds later it is there, and no more than it.
    rest(Duration::from_millis(2_050));
    let passed = bench.at_once(100);
    let most = 21.0 + 10.0 * passed.seconds;
    within("the new burst", &passed, &bench, 20.0, most);
    // The larger burst is handed out with the edit, once: that is the edit.
    let drained_ns = bench.last_ns.get();
    bench.set(10, 200);
    rest(Duration::from_millis(50));
    let passed = bench.at_once(500);
    let seconds = (bench.last_ns.get() - drained_ns) as f64 / 1e9;
    let most = 181.0 + 10.0 * seconds;
    within("180 tokens more", &passed, &bench, 180.0, most);
}

#[test]
fn a_factor_of_a_tenth_and_back_is_the_integral_of_the_rate() {
    let mut bench = Bench::new();
    bench.set(1_000, 100);
    rest(Duration::from_millis(50));
    bench.at_once(300);
    let at_ns = bench.policies.turn(&bench.plane, 0, 0.1);
    bench.offer(at_ns);
    let offered = bench.offer_ms(1_000);
    let most = entitled(100.0, &offered);
    within("factor 0.1", &offered, &bench, 95.0, most);
    let at_ns = bench.policies.turn(&bench.plane, 0, 1.0);
    bench.offer(at_ns);
    let offered = bench.offer_ms(1_000);
    let most = entitled(1_000.0, &offered);
    within("factor 1 again", &offered, &bench, 950.0, most);
    // Turned 40 times: the integral, and no burst for any turn.
    let mut least = 0.0;
    let mut most = 100.0;
    let mut passed = vec![0; bench.sources.len()];
    for n in 0..40 {
        let factor = if n % 2 == 0 { 0.1 } else { 1.0 };
        let at_ns = bench.policies.turn(&bench.plane, 0, factor);
        let before_ns = monotonic_ns();
        let offered = bench.offer(at_ns + 30_000_000);
        // Until `at_ns` the other factor held.
        let other = if n % 2 == 0 { 1.0 } else { 0.1 };
        let early = at_ns.saturating_sub(before_ns) as f64 / 1e9;
        let late = offered.seconds - early;
        let sum = 1_000.0 * (other * early + factor * late);
        least += 0.95 * sum;
        most += 1.001 * sum + 13.0;
        for (sum, passed) in passed.iter_mut().zip(&offered.passed) {
            *sum += passed;
        }
    }
    println!("40 turns: {passed:?}, allowed {least:.0}..{most:.0}");
    for passed in passed {
        assert!((least..=most).contains(&(passed as f64)), "{passed}");
    }
}

#[test]
fn edits_applied_too_late_for_their_date_give_no_burst_and_lock_nobody_out() {
    let mut bench = Bench::new();
    bench.set(10, 100);
    rest(Duration::from_millis(50));
    bench.at_once(300);
    bench.policies.hold(Duration::from_millis(40));
    let began_ns = monotonic_ns();
    let mut passed = vec![0_u64; bench.sources.len()];
    for n in 0..20 {
        let at_ns = bench.set(if n % 2 == 0 { 100_000 } else { 10 }, 100);
        let offered = bench.offer(at_ns + 1_000_000);
        for (sum, passed) in passed.iter_mut().zip(&offered.passed) {
            *sum += passed;
        }
    }
    bench.policies.hold(Duration::ZERO);
    let at_ns = bench.set(10, 100);
    bench.offer(at_ns + 1_000_000);
    // Ten times fast for as long as it took, and not a packet more.
    let seconds = (monotonic_ns() - began_ns) as f64 / 1e9;
    println!("{passed:?} in {seconds:.2} s");
    let offered = bench.offer_ms(1_000);
    let most = entitled(10.0, &offered);
    within("10/s after twenty late edits", &offered, &bench, 9.0, most);
}
