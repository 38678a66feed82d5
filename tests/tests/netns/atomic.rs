//! R12 through the data plane's own writer: what it swaps, and what it writes again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratelimiter_common::abi::policy::{NO_REGION, Zone};
use ratelimiter_common::quota::Unit;
use ratelimiter_common::verdict::{Mode, Reason, Verdict};
use ratelimiter_userspace::dataplane::state::Stats;
use ratelimiter_userspace::dataplane::{DataPlane as _, OpenOptions, Tables, XdpDataPlane};
use ratelimiter_userspace::policy::plan::Update;
use serde_json::json;
use tests::OrFail as _;
use tests::netns::Netns;
use tests::packet::Packet;
use tests::policy::{Policies, document};
use tests::process::rest;
use tests::program::{Rule, policy};
use tests::residue::Residue;
use tests::runner::{Runner, on_two_cpus};

/// Updates applied at a time.
const BATCH: usize = 500;
/// Each empties a region besides, which takes its time.
const ZONE_FLIPS: usize = 8_000;

/// A data plane attached to nothing, with one packet per second for everybody, and its zone 0.
fn opened(tables: Tables) -> (XdpDataPlane, Zone, Netns) {
    tests::requires::bpf();
    let netns = Netns::new();
    let options = OpenOptions {
        tables,
        ..OpenOptions::default()
    };
    let plane = netns
        .run(|| XdpDataPlane::open(&options))
        .or_fail("open the data plane");
    let limits = json!({ "packets": {
        "rate_limit": 1, "time_window": 1, "burst": 1, "unit": "packets"
    } });
    let limited = json!({ "segments": { "default": { "limits": limits } } });
    Policies::default().set(&plane, &document(limited));
    rest(Duration::from_millis(50));
    let zones = plane.installed().or_fail("read back").zones;
    let (_, zone) = *zones.first().or_fail("a zone");
    (plane, zone, netns)
}

/// Applies `flips` updates, numbered from 0, while both CPUs run one source's packets; returns the
/// counters before and after.
fn flipped(
    plane: &XdpDataPlane,
    flips: usize,
    update: &(impl Fn(usize) -> Update + Sync),
) -> (Stats, Stats) {
    let runner = Runner::by_id(plane.health().program_id);
    let frame = Packet::eth()
        .ipv4("203.0.113.1", "198.51.100.1")
        .udp(1, 2)
        .zeros(18)
        .build();
    let before = plane.stats().or_fail("stats");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for first in (0..flips).step_by(BATCH) {
                let updates: Vec<Update> = (first..first + BATCH).map(update).collect();
                plane.apply(&updates).or_fail("flip");
            }
            done.store(true, Ordering::Relaxed);
        });
        on_two_cpus(|_| {
            while !done.load(Ordering::Relaxed) {
                runner.repeat(&frame, 100_000);
            }
        });
    });
    (before, plane.stats().or_fail("stats"))
}

/// Frames counted with a reason and a verdict between two readings.
fn between(stats: &(Stats, Stats), reason: Reason, verdict: Verdict) -> u64 {
    stats.1.count(reason, verdict).packets - stats.0.count(reason, verdict).packets
}

/// The index alone is not enough: an entry that was left is written again, after a rest.
#[test]
fn entries_that_are_used_again_tear_no_policy() {
    let _residue = Residue::watch();
    let (plane, zone, _netns) = opened(Tables {
        policies: 1 << 15,
        ..Tables::small()
    });
    // One limits packets in shadow for segment 1, the other bytes for good for segment 2: whatever
    // is counted as anything else was judged by parts of both.
    let mut shadow = policy(zone.slot, &[Rule::packets(1, 1).mode(Mode::Shadow)]);
    shadow.segment = 1;
    let mut enforce = policy(zone.slot, &[Rule::packets(1, 100).of(Unit::Bytes)]);
    enforce.segment = 2;
    let mut both = zone;
    both.regions[Unit::Bytes as usize] = 1;
    let flip =
        |n: usize| Update::Policy(Box::new(if n.is_multiple_of(2) { shadow } else { enforce }));
    let zone = Update::Zone {
        zone: 0,
        value: both,
    };
    plane.apply(&[flip(0), zone]).or_fail("the first policy");
    rest(Duration::from_millis(20));
    let stats = flipped(&plane, 100_000, &flip);
    let (one, two) = (stats.1.segments[1], stats.1.segments[2]);
    let total = stats.1.offered() - stats.0.offered();
    let shadowed = between(&stats, Reason::OverPackets, Verdict::Pass);
    let dropped = between(&stats, Reason::OverBytes, Verdict::Drop);
    let conforming = between(&stats, Reason::Conforming, Verdict::Pass);
    println!("{total} packets: {shadowed} in shadow, {dropped} dropped, {conforming} conforming");
    assert!(shadowed > 10_000 && dropped > 10_000);
    assert_eq!(total - shadowed - dropped - conforming, 0, "torn policies");
    assert_eq!((one.dropped, two.shadowed), (0, 0));
    assert!(conforming < 1_000, "{conforming}");
}

/// A zone names a slot and regions in one word: a packet that saw half of it would find a policy
/// and no region for its unit, and be judged as if the policy were switched off.
#[test]
fn a_zone_that_changes_slot_and_regions_is_never_seen_in_half() {
    let _residue = Residue::watch();
    let (plane, zone, _netns) = opened(Tables::small());
    let other = zone.slot + 1;
    let bytes = policy(other, &[Rule::packets(1, 100).of(Unit::Bytes)]);
    let zones = [
        zone,
        Zone {
            slot: other,
            regions: [NO_REGION, 1, NO_REGION],
            ..zone
        },
    ];
    let flip = |n: usize| Update::Zone {
        zone: 0,
        value: zones[n & 1],
    };
    plane
        .apply(&[Update::Policy(Box::new(bytes))])
        .or_fail("the other policy");
    let stats = flipped(&plane, ZONE_FLIPS, &flip);
    let total = stats.1.offered() - stats.0.offered();
    let packets = between(&stats, Reason::OverPackets, Verdict::Drop);
    let bytes = between(&stats, Reason::OverBytes, Verdict::Drop);
    let conforming = between(&stats, Reason::Conforming, Verdict::Pass);
    let off = between(&stats, Reason::Off, Verdict::Pass);
    println!("{total} packets: {packets} over packets, {bytes} over bytes, {off} off");
    assert!(packets > 10_000 && bytes > 10_000);
    assert_eq!(off, 0, "halves of two zones");
    assert_eq!(total - packets - bytes - conforming, 0);
    // A region that changes hands is emptied: one packet on each CPU finds its bucket full again.
    let most = 2 * ZONE_FLIPS as u64 + 1_000;
    assert!(conforming < most, "{conforming} of at most {most}");
}
