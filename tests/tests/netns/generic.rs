//! R7 on a real interface: TCP that the sender's stack merged, through generic XDP.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use ratelimiter_common::verdict::{Reason, Verdict};
use ratelimiter_userspace::clock::{instant, monotonic_ns};
use ratelimiter_userspace::dataplane::DataPlane as _;
use serde_json::json;
use tests::OrFail as _;
use tests::policy::{Policies, document};
use tests::process::rest;
use tests::residue::Residue;

use crate::edge::{EDGE, Edge, generic};

const BURST: u64 = 3_000;
const RATE: u64 = 100;
/// Most payload of one segment, without timestamps.
const SEGMENT: u64 = 1_460;

/// Sends for two seconds; returns the bytes that arrived and the seconds it took.
fn transfer(edge: &Edge) -> (u64, f64) {
    let listener = edge
        .edge
        .run(|| TcpListener::bind("192.0.2.1:9000"))
        .or_fail("listen");
    let began = instant();
    let arrived = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().or_fail("accept");
            let timeout = Some(Duration::from_secs(3));
            stream.set_read_timeout(timeout).or_fail("a timeout");
            let mut buffer = vec![0; 1 << 16];
            let mut arrived = 0;
            while began.elapsed() < Duration::from_secs(3) {
                match stream.read(&mut buffer) {
                    Ok(bytes @ 1..) => arrived += bytes as u64,
                    _ => break,
                }
            }
            arrived
        });
        edge.client.run(|| {
            let mut stream = TcpStream::connect("192.0.2.1:9000").or_fail("connect");
            let timeout = Some(Duration::from_millis(100));
            stream.set_write_timeout(timeout).or_fail("a timeout");
            let block = vec![0x5a; 1 << 16];
            while began.elapsed() < Duration::from_secs(2) {
                // What does not fit while the limit holds it back is tried again.
                if stream.write(&block).is_err() {
                    rest(Duration::from_millis(10));
                }
            }
        });
        receiver.join().or_fail("the receiver")
    });
    (arrived, began.elapsed().as_secs_f64())
}

#[test]
fn merged_segments_are_charged_one_by_one_in_generic_mode() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let plane = edge.open();
    edge.edge
        .run(|| plane.attach(EDGE, generic()))
        .or_fail("attach");
    let limit = json!({"rate_limit": RATE, "time_window": 1, "burst": BURST, "unit": "packets"});
    let policy = json!({"segments": {"default": {"limits": {"packets": limit}}}});
    let at_ns = Policies::default().set(&plane, &document(policy));
    rest(Duration::from_nanos(at_ns.saturating_sub(monotonic_ns())) + Duration::from_millis(50));
    let (arrived, seconds) = transfer(&edge);
    let stats = plane.stats().or_fail("stats");
    let passed = stats.count(Reason::Conforming, Verdict::Pass);
    println!(
        "{arrived} bytes in {seconds:.1} s; {} frames of {} bytes passed",
        passed.packets, passed.bytes
    );
    let each = passed.bytes / passed.packets.max(1);
    assert!(
        each > 2 * SEGMENT,
        "nothing was merged: {each} bytes a frame"
    );
    let entitled = (BURST + RATE * (seconds as u64 + 1)) * SEGMENT;
    assert!(arrived <= entitled, "{arrived} of {entitled}");
    assert!(arrived >= entitled / 4, "{arrived} of {entitled}");
}
