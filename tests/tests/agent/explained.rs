//! What `explain` says is what the kernel then does.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tests::OrFail as _;
use tests::flood::Flood;
use tests::packet::Packet;
use tests::process::rest;
use tests::residue::Residue;

use crate::edge::{CLIENT, EDGE, Edge};
use crate::limits::enforcing;

const SOURCES: u8 = 40;
const BURST: u64 = 40;

/// Arrivals by source, in microseconds since the Unix epoch.
type Arrived = Mutex<BTreeMap<IpAddr, Vec<u64>>>;

fn source(n: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, 10 + n).into()
}

fn unix_us() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "compares a date that the agent names with the moment a packet arrives"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH)
        .or_fail("a clock")
        .as_micros() as u64
}

/// Ends the listener, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn explains_what_the_kernel_then_does() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = enforcing(&edge);
    // One in three seconds: what is spent hardly comes back between a question and the packets behind it.
    let limit = json!({"limits": {"packets": {
        "rate_limit": 20, "time_window": "1m", "burst": BURST, "unit": "packets"
    }}});
    agent.put("/v1/segments/default", &limit).expect(201);
    rest(Duration::from_millis(100));
    let socket = edge
        .edge
        .run(|| UdpSocket::bind("192.0.2.1:9").or_fail("listen"));
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .or_fail("set a bound");
    let arrived = Arrived::default();
    let stop = AtomicBool::new(false);
    let macs = (edge.client.mac(CLIENT), edge.edge.mac(EDGE));
    let send = |frames: Vec<Vec<u8>>, rate: u64, packets: u64| {
        let flood = Flood::new(frames).rate(rate).packets(packets);
        let sent = edge
            .client
            .run(|| flood.send(CLIENT, &AtomicBool::new(false)));
        assert_eq!(sent.packets, packets);
    };
    let frame = |n: u8| {
        let between = Packet::eth_between(macs.0, macs.1);
        let from = source(n).to_string();
        between.ipv4(&from, "192.0.2.1").udp(1, 9).build()
    };
    let explain = |n: u8| {
        let unit = agent.get(&format!("/v1/explain?ip={}", source(n)));
        unit.expect(200).json()["units"][0].clone()
    };
    std::thread::scope(|scope| {
        let _ends = Ends(&stop);
        scope.spawn(|| {
            let mut bytes = [0; 2_048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut bytes) {
                    let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
                    arrived.entry(from.ip()).or_default().push(unix_us());
                }
            }
        });
        // States: what is left after so many packets, by the explanation and by what then passes.
        let mut explained = Vec::new();
        for n in 0..SOURCES {
            let spent = u64::from(n) * 7 % (BURST + 6);
            if spent > 0 {
                send(vec![frame(n)], 50_000, spent);
            }
            let tokens = explain(n)["tokens"].as_f64().or_fail("a number");
            send(vec![frame(n)], 50_000, 2 * BURST);
            explained.push((spent, tokens));
        }
        rest(Duration::from_millis(200));
        {
            let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
            for (n, (spent, tokens)) in (0..SOURCES).zip(&explained) {
                let total = arrived.get(&source(n)).map_or(0, Vec::len) as f64;
                let then = total - (*spent).min(BURST) as f64;
                assert!(
                    (then - tokens).abs() <= 1.5,
                    "source {n} spent {spent}: {tokens} were left, {then} passed"
                );
            }
        }
        // When: nobody passes a millisecond before the time that was named.
        let named: Vec<u64> = (0..SOURCES)
            .map(|n| {
                explain(n)["next_allowed_unix_ms"]
                    .as_u64()
                    .or_fail("a date")
            })
            .collect();
        let from_us = unix_us();
        arrived
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let probes: Vec<Vec<u8>> = (0..SOURCES).map(frame).collect();
        let flood = Flood::new(probes)
            .rate(20_000)
            .lasting(Duration::from_millis(3_800));
        edge.client
            .run(|| flood.send(CLIENT, &AtomicBool::new(false)));
        rest(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut compared, mut latest_us) = (0, 0);
        for (n, named_ms) in (0..SOURCES).zip(&named) {
            // Those whose time came before the first probe tell nothing.
            if named_ms * 1_000 <= from_us {
                continue;
            }
            let first_us = *arrived
                .get(&source(n))
                .and_then(|times| times.first())
                .or_fail("a packet passed within 3.8 s");
            assert!(
                first_us + 1_000 >= (named_ms - 1) * 1_000,
                "source {n} passed {} us before the time named",
                named_ms * 1_000 - first_us
            );
            compared += 1;
            latest_us = latest_us.max(first_us.saturating_sub(named_ms * 1_000));
        }
        println!("{compared} of {SOURCES} waited for, none early, the last {latest_us} us late");
        assert!(compared >= SOURCES / 4, "{compared} states were compared");
    });
}
