//! How long large configurations take, with default tables, and what does not fit.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use ratelimiter_common::abi::policy::{PrefixValue, action};
use ratelimiter_common::vclock::NEVER;
use ratelimiter_userspace::clock;
use ratelimiter_userspace::dataplane::{DataPlane, ErrorKind, OpenOptions, XdpDataPlane};
use ratelimiter_userspace::policy::plan::{BATCH, Update};
use tests::OrFail as _;
use tests::bpffs::Bpffs;
use tests::residue::Residue;

use crate::edge::small;

fn block(prefix_len: u8) -> PrefixValue {
    PrefixValue {
        action: action::BLOCK,
        until_ns: NEVER,
        after_action: action::PARENT,
        prefix_len: u32::from(prefix_len),
        ..PrefixValue::default()
    }
}

/// CPU time of the calling thread. Loading is the work of one thread, and on a busy machine the
/// wall clock measures its neighbours.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live, writable timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// `count` different /32s, in ascending order, cut into updates as the planner cuts them.
fn prefixes(count: u32) -> Vec<Update> {
    let all: Vec<(IpNet, PrefixValue)> = (0..count)
        .map(|n| {
            let address = Ipv4Addr::from(0x0100_0000 + n * 211);
            (IpNet::V4(Ipv4Net::from(address)), block(32))
        })
        .collect();
    all.chunks(BATCH)
        .map(|chunk| Update::Prefixes(chunk.to_vec()))
        .collect()
}

#[test]
fn loads_a_million_prefixes_within_ten_seconds() {
    let _residue = Residue::watch();
    let bpffs = Bpffs::new();
    let plane = bpffs
        .run(|| XdpDataPlane::open(&OpenOptions::default()))
        .or_fail("open");
    let updates = prefixes(1_000_000);
    let (began, cpu_began) = (clock::instant(), cpu_time());
    plane.apply(&updates).or_fail("apply");
    let took = cpu_time().saturating_sub(cpu_began);
    println!(
        "1 000 000 prefixes loaded in {:?}, {took:?} of CPU",
        began.elapsed()
    );
    assert!(took.as_secs_f64() <= 10.0, "took {took:?}");
    let began = clock::instant();
    let installed = plane.installed().or_fail("installed");
    println!("read back in {:?}", began.elapsed());
    assert_eq!(installed.prefixes.len(), 1_000_000);
    let figures = plane.figures(clock::monotonic_ns()).or_fail("figures");
    let trie = figures
        .tables
        .iter()
        .find(|table| table.name == "PREFIXES4")
        .or_fail("a figure");
    assert_eq!(trie.used, Some(1_000_000));
    println!("{} B of memory per prefix", trie.bytes / 1_000_000);
}

#[test]
fn loads_190_000_client_addresses_within_five_seconds_and_refuses_more_than_fit() {
    let _residue = Residue::watch();
    let bpffs = Bpffs::new();
    let plane = bpffs
        .run(|| XdpDataPlane::open(&OpenOptions::default()))
        .or_fail("open");
    let keys: Vec<(u64, u32)> = (0..190_000_u32)
        .map(|n| (u64::from(0x0a00_0000 + n * 17), 1 + n % 1_000))
        .collect();
    let updates: Vec<Update> = keys
        .chunks(BATCH)
        .map(|chunk| Update::Track(chunk.to_vec()))
        .collect();
    let (began, cpu_began) = (clock::instant(), cpu_time());
    plane.apply(&updates).or_fail("apply");
    let took = cpu_time().saturating_sub(cpu_began);
    println!(
        "190 000 client addresses loaded in {:?}, {took:?} of CPU",
        began.elapsed()
    );
    assert!(took.as_secs_f64() <= 5.0, "took {took:?}");
    // None was evicted by those that came later.
    let installed = plane.installed().or_fail("installed");
    assert_eq!(installed.tracked.len(), 190_000);
    // The same again changes nothing and still fits.
    plane.apply(&updates).or_fail("apply again");
    let more: Vec<(u64, u32)> = (0..10_000).map(|n| (0x7f00_0000 + n, 1)).collect();
    let error = plane
        .apply(&[Update::Flags(1), Update::Track(more)])
        .map_err(|error| (error.kind(), error.to_string()));
    assert_eq!(
        error,
        Err((
            ErrorKind::Invalid,
            "10000 more client addresses do not fit: 190000 are tracked, and at most 196608 may be (75 % of `tracked` = 262144)".to_owned()
        ))
    );
    let installed = plane.installed().or_fail("installed");
    assert_eq!(installed.tracked.len(), 190_000);
    assert_eq!(
        installed.config.flags, 0,
        "a refused list was applied in part"
    );
}

#[test]
fn refuses_more_prefixes_than_fit_before_the_first_is_applied() {
    let _residue = Residue::watch();
    let bpffs = Bpffs::new();
    let plane = bpffs.run(|| XdpDataPlane::open(&small())).or_fail("open");
    let room = plane.tables().prefixes;
    plane.apply(&prefixes(room)).or_fail("as many as fit");
    plane.apply(&prefixes(room)).or_fail("the same again");
    let one_more = prefixes(room + 1);
    let error = plane.apply(&one_more).map_err(|error| error.to_string());
    assert_eq!(
        error,
        Err(format!(
            "{} more IPv4 prefixes do not fit: {room} of `prefixes` = {room} are in use",
            room + 1
        ))
    );
}
