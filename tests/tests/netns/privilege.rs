//! R45 at the data plane: everything works for a non-root user with two capabilities and a bpffs
//! directory of its own, and nothing works for anybody else.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use caps::{CapSet, Capability, CapsHashSet};
use ratelimiter_common::abi::merge::{MergeOp, op, result};
use ratelimiter_common::verdict::{Reason, Verdict};
use ratelimiter_userspace::clock;
use ratelimiter_userspace::dataplane::caps::NEEDED;
use ratelimiter_userspace::dataplane::{
    DEFAULT_ROOT, DataPlane, Error, ErrorKind, XdpDataPlane, detach_all,
};
use ratelimiter_userspace::policy::plan::Update;
use serde_json::json;
use tests::OrFail as _;
use tests::flood::Flood;
use tests::packet::Packet;
use tests::policy::{document, install};
use tests::residue::Residue;

use crate::edge::{CLIENT, EDGE, Edge, native, small};

const NOBODY: u32 = 65_534;

/// Makes the calling thread (and those it starts) uid 65534 with these capabilities and no others.
fn become_nobody(capabilities: &[Capability]) {
    let keep = capabilities.iter().copied().collect::<CapsHashSet>();
    // SAFETY: system calls without memory. Raw, because glibc's `setresuid` changes every thread of
    // the process.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::syscall(libc::SYS_setgroups, 0, 0), 0);
        assert_eq!(
            libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY),
            0
        );
        assert_eq!(
            libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY),
            0
        );
    }
    caps::set(None, CapSet::Effective, &keep).or_fail("set effective capabilities");
    caps::set(None, CapSet::Permitted, &keep).or_fail("set permitted capabilities");
}

/// Gives uid 65534 a pin directory, as a service manager would.
fn own_directory(edge: &Edge) {
    // aya asks the kernel once per process what it can; here, threads differ in what they may ask.
    println!("{:?}", aya::features());
    edge.edge.run(|| {
        std::fs::set_permissions("/sys/fs/bpf", std::fs::Permissions::from_mode(0o711))
            .or_fail("let others pass");
        std::fs::create_dir(DEFAULT_ROOT).or_fail("make the pin directory");
        std::os::unix::fs::chown(DEFAULT_ROOT, Some(NOBODY), Some(NOBODY)).or_fail("chown");
        std::fs::set_permissions(DEFAULT_ROOT, std::fs::Permissions::from_mode(0o700))
            .or_fail("chmod");
    });
}

#[test]
fn two_capabilities_are_enough() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    own_directory(&edge);
    for round in 0..2 {
        edge.edge.run(|| {
            become_nobody(&NEEDED);
            let plane = XdpDataPlane::open(&small()).or_fail("open");
            assert_eq!(plane.health().adopted, round == 1);
            plane.attach(EDGE, native()).or_fail("attach");
            plane
                .apply(&[
                    Update::Flags(1),
                    Update::Track(vec![(7, 1)]),
                    Update::BumpGeneration,
                ])
                .or_fail("apply");
            let mut ops = [MergeOp {
                op: op::READ,
                key: 7,
                family: 4,
                ..MergeOp::default()
            }];
            plane.merge(&mut ops).or_fail("merge");
            assert_ne!(ops[0].result, result::PENDING);
            plane.stats().or_fail("stats");
            plane.installed().or_fail("installed");
            plane.figures(clock::monotonic_ns()).or_fail("figures");
            plane.drain_samples(&mut |_| ()).or_fail("samples");
            plane.verify();
            assert!(plane.health().ok, "{:?}", plane.health());
        });
    }
    assert!(edge.running().is_some());
    // And it limits: every packet of one source beyond its burst is dropped.
    let plane = edge.edge.run(|| {
        become_nobody(&NEEDED);
        let plane = XdpDataPlane::open(&small()).or_fail("open");
        let policy = json!({ "segments": { "default": { "limits": {
            "packets": { "rate_limit": 1, "time_window": 3_600, "burst": 50, "unit": "packets" }
        } } } });
        install(&plane, &document(policy));
        plane.attach(EDGE, native()).or_fail("attach");
        plane
    });
    let frame = Packet::eth_between(edge.client.mac(CLIENT), edge.edge.mac(EDGE))
        .ipv4("198.51.100.1", "192.0.2.1")
        .udp(4_000, 4_001)
        .zeros(18)
        .build();
    let flood = Flood::new(vec![frame]).packets(1_000).rate(10_000);
    let sent = edge
        .client
        .run(|| flood.send(CLIENT, &AtomicBool::new(false)));
    tests::process::rest(Duration::from_millis(50));
    let stats = plane.stats().or_fail("stats");
    let dropped = stats.count(Reason::OverPackets, Verdict::Drop).packets;
    let passed = stats.count(Reason::Conforming, Verdict::Pass).packets;
    assert!(passed >= 50, "{passed} of {sent:?}");
    assert!((900..=950).contains(&dropped), "{dropped} of {sent:?}");
    drop(plane);
    // Another user of the machine sees and changes nothing.
    edge.edge.run(|| {
        // SAFETY: system calls without memory, on this thread only.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setresuid, 1_000, 1_000, 1_000), 0);
        }
        let denied = std::fs::read_dir(DEFAULT_ROOT)
            .map(|_| ())
            .map_err(|error| error.kind());
        assert_eq!(denied, Err(std::io::ErrorKind::PermissionDenied));
    });
    edge.edge.run(|| {
        become_nobody(&NEEDED);
        let removed = detach_all(DEFAULT_ROOT.as_ref()).or_fail("detach all");
        assert_eq!(removed.interfaces, [EDGE]);
    });
    assert_eq!(edge.running(), None);
    assert!(edge.pins().is_empty());
}

/// Name of a program in the kernel, and barriers against speculation in it.
fn form_of(id: u32) -> (String, usize) {
    let bpftool = |words: &[&str]| {
        let mut command = std::process::Command::new("bpftool");
        let out = command.args(words).arg(id.to_string()).output();
        let out = out.or_fail("bpftool");
        assert!(out.status.success(), "{words:?}: {out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let shown = bpftool(&["--json", "prog", "show", "id"]);
    let described: serde_json::Value = serde_json::from_str(&shown).or_fail("JSON");
    let text = bpftool(&["prog", "dump", "xlated", "id"]);
    let barriers = text.lines().filter(|line| line.contains("nospec")).count();
    let name = described["name"].as_str().or_fail("a name").to_owned();
    (name, barriers)
}

#[test]
fn a_third_capability_while_loading_leaves_the_barriers_out() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    own_directory(&edge);
    let mut capabilities = NEEDED.to_vec();
    for (name, guarded) in [("limiter_guarded", true), ("ratelimiter", false)] {
        let plane = edge.edge.run(|| {
            become_nobody(&capabilities);
            // Permitted, and not in effect: as the agent's own.
            caps::set(None, CapSet::Effective, &NEEDED.into_iter().collect()).or_fail("effective");
            let plane = XdpDataPlane::open(&small()).or_fail("open");
            let perfmon = caps::has_cap(None, CapSet::Effective, Capability::CAP_PERFMON);
            assert!(!perfmon.or_fail("capabilities"), "it stays in effect");
            plane
        });
        let (is, barriers) = form_of(plane.health().program_id);
        println!("{is}: {barriers} barriers");
        assert_eq!(is, name);
        assert_eq!(barriers > 0, guarded, "{barriers} barriers in `{is}`");
        drop(plane);
        capabilities.push(Capability::CAP_PERFMON);
    }
    edge.edge.run(|| {
        become_nobody(&NEEDED);
        detach_all(DEFAULT_ROOT.as_ref()).or_fail("detach all");
    });
}

#[test]
fn says_which_capability_is_missing() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    own_directory(&edge);
    for lacking in NEEDED {
        let missing = lacking.to_string();
        let has: Vec<Capability> = NEEDED.into_iter().filter(|&c| c != lacking).collect();
        let error: Error = edge.edge.run(|| {
            become_nobody(&has);
            match XdpDataPlane::open(&small()) {
                Err(error) => error,
                Ok(plane) => match plane.attach(EDGE, native()) {
                    Err(error) => error,
                    Ok(()) => panic!("attached without {missing}"),
                },
            }
        });
        assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("missing {missing}: run with ")),
            "{text}"
        );
        assert_eq!(edge.running(), None);
    }
}
