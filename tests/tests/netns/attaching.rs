//! Attach, detach, adopt; which errors a person sees.

use ratelimiter_userspace::dataplane::{
    AttachMode, AttachOptions, DataPlane, Error, ErrorKind, OpenOptions, detach_all,
};
use tests::OrFail as _;
use tests::netns::Netns;
use tests::residue::Residue;

use crate::edge::{EDGE, Edge, generic, native, running, small};

const ROOT: &str = ratelimiter_userspace::dataplane::DEFAULT_ROOT;

#[test]
fn attaches_counts_and_detaches() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let plane = edge.open();
    assert!(!plane.health().adopted);
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    let health = plane.health();
    assert!(health.ok, "{health:?}");
    assert_eq!(edge.running(), Some(health.program_id));
    let before = plane.stats().or_fail("stats").offered();
    assert_eq!(edge.pings(10), 10);
    let after = plane.stats().or_fail("stats").offered();
    assert!(after - before >= 10, "{before} {after}");
    let interfaces = plane.interfaces();
    assert_eq!(interfaces.len(), 1);
    assert!(interfaces[0].is_attached());
    assert_eq!(interfaces[0].index, edge.edge.ifindex(EDGE));
    assert!(edge.edge.run(|| plane.detach(EDGE)).or_fail("detach"));
    assert_eq!(edge.running(), None);
    assert!(!edge.edge.run(|| plane.detach(EDGE)).or_fail("detach again"));
}

#[test]
fn program_outlives_the_agent_and_the_next_one_adopts_counters_and_link() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let first = edge.open();
    edge.edge
        .run(|| first.attach(EDGE, native()))
        .or_fail("attach");
    let first_id = first.health().program_id;
    let maps = first.map_ids();
    let link = pinned_link(&edge);
    edge.pings(5);
    let counted = first.stats().or_fail("stats").offered();
    let perm = first.installed().or_fail("installed").config.perm;
    assert!(perm.mul.iter().all(|mul| mul % 2 == 1), "{perm:?}");
    drop(first);
    assert_eq!(edge.running(), Some(first_id));
    edge.pings(5);

    let second = edge.open();
    assert!(second.health().adopted);
    assert_eq!(second.map_ids(), maps);
    assert_eq!(second.installed().or_fail("installed").config.perm, perm);
    // Until it is told to attach, what was attached keeps running.
    assert_eq!(edge.running(), Some(first_id));
    let carrier = edge.edge.carrier_changes(EDGE);
    edge.edge
        .run(|| second.attach(EDGE, native()))
        .or_fail("adopt the link");
    assert_ne!(second.health().program_id, first_id);
    assert_eq!(edge.running(), Some(second.health().program_id));
    assert_eq!(pinned_link(&edge), link, "the link was made anew");
    assert_eq!(edge.edge.carrier_changes(EDGE), carrier);
    assert!(second.stats().or_fail("stats").offered() >= counted + 5);
}

#[test]
fn two_agents_never_share_the_pins() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let _first = edge.open();
    let error = edge.try_open(&small()).expect_err("a second agent");
    assert!(matches!(error, Error::Busy(_)), "{error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[test]
fn pins_are_for_the_owner_only() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let plane = edge.open();
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    for (path, mode) in [
        (ROOT.to_owned(), "700"),
        (format!("{ROOT}/links"), "700"),
        (format!("{ROOT}/CONFIG"), "600"),
        (format!("{ROOT}/links/{EDGE}"), "600"),
    ] {
        assert_eq!(
            edge.edge.sh(&format!("stat -c %a {path}")).trim(),
            mode,
            "{path}"
        );
    }
}

#[test]
fn names_an_interface_that_does_not_exist_or_cannot() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let plane = edge.open();
    edge.edge.run(|| {
        let error = plane.attach("nope0", native()).expect_err("unknown");
        assert_eq!(error.to_string(), "there is no interface `nope0`");
        let error = plane.attach("a/b", native()).expect_err("bad name");
        assert!(
            error
                .to_string()
                .starts_with("`a/b` is not an interface name"),
            "{error}"
        );
        // R7: no silent fall-back to generic mode.
        let error = plane.attach("lo", native()).expect_err("no native XDP");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(
            text.contains("`lo`") && text.contains("--mode generic"),
            "{text}"
        );
    });
    assert!(plane.interfaces().is_empty());
    assert_eq!(running(&edge.edge, "lo"), None);
    edge.edge
        .run(|| plane.attach("lo", generic()))
        .or_fail("generic when asked");
    assert_eq!(plane.interfaces()[0].mode, AttachMode::Generic);
    assert!(plane.health().ok);
    let flags = plane.installed().or_fail("installed").config.flags;
    assert_ne!(flags & ratelimiter_common::abi::config::flags::GENERIC, 0);
    let error = edge
        .edge
        .run(|| plane.attach("lo", native()))
        .expect_err("other mode");
    assert!(matches!(error, Error::OtherMode { .. }), "{error}");
}

#[test]
fn waits_for_an_interface_when_asked_to() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let plane = edge.open();
    let waiting = AttachOptions {
        wait: true,
        ..native()
    };
    edge.edge
        .run(|| plane.attach("late0", waiting))
        .or_fail("wait for it");
    let health = plane.health();
    assert!(!health.ok);
    assert_eq!(health.problems, ["interface `late0` does not exist"]);
    edge.edge.ip("link add late0 type veth peer name late1");
    tests::process::wait_until(
        "attached to an interface that came later",
        std::time::Duration::from_secs(2),
        || plane.health().ok,
    );
    assert_eq!(
        running(&edge.edge, "late0"),
        Some(plane.health().program_id)
    );
}

#[test]
fn says_how_to_mount_when_there_is_no_bpffs() {
    let _residue = Residue::watch();
    let netns = Netns::new();
    let options = OpenOptions {
        root: "/tmp/no-bpffs-here/ratelimiter".into(),
        ..small()
    };
    let error = netns
        .run(|| ratelimiter_userspace::dataplane::XdpDataPlane::open(&options))
        .expect_err("no bpffs");
    assert_eq!(
        error.to_string(),
        "`/tmp/no-bpffs-here/ratelimiter` is not on a BPF file system; mount one with `mount -t bpf bpf /tmp/no-bpffs-here`"
    );
}

#[test]
fn uninstalls_without_a_trace_twice() {
    let residue = Residue::watch();
    let edge = Edge::new();
    let plane = edge.open();
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    edge.edge.ip("link add vlan.7 type veth peer name vlan.8");
    edge.edge
        .run(|| plane.attach("vlan.7", native()))
        .or_fail("a name with a dot");
    let busy = edge.edge.run(|| detach_all(ROOT.as_ref()));
    assert!(matches!(busy, Err(Error::Busy(_))), "{busy:?}");
    drop(plane);
    assert!(!residue.left().is_empty());
    let removed = edge
        .edge
        .run(|| detach_all(ROOT.as_ref()))
        .or_fail("detach all");
    assert_eq!(removed.interfaces, [EDGE, "vlan.7"]);
    assert_eq!(removed.maps, 20);
    assert_eq!(edge.running(), None);
    assert!(edge.pins().is_empty());
    assert!(!edge.edge.run(|| std::path::Path::new(ROOT).exists()));
    let again = edge.edge.run(|| detach_all(ROOT.as_ref())).or_fail("again");
    assert!(again.is_nothing());
}

/// Id of the link pinned for the edge's interface.
fn pinned_link(edge: &Edge) -> u32 {
    let out = edge
        .edge
        .sh(&format!("bpftool -j link show pinned {ROOT}/links/{EDGE}"));
    let value: serde_json::Value = serde_json::from_str(&out).or_fail("bpftool's JSON");
    value["id"].as_u64().or_fail("a link id") as u32
}
