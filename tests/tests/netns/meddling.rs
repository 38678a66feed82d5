//! R5 and R6: others meddle with pins, links and maps; a foreign program is already there.

use std::time::Duration;

use ratelimiter_userspace::dataplane::{
    AttachOptions, DEFAULT_ROOT, DataPlane, Error, ErrorKind, XdpDataPlane,
};
use tests::OrFail as _;
use tests::process::wait_until;
use tests::residue::Residue;
use tests::stranger::Stranger;

use crate::edge::{EDGE, Edge, native};

const TWO_SECONDS: Duration = Duration::from_secs(2);

fn attached() -> (Edge, XdpDataPlane) {
    let edge = Edge::new();
    let plane = edge.open();
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    (edge, plane)
}

/// Waits until the repair is counted and everything is as it was.
fn repaired(edge: &Edge, plane: &XdpDataPlane, what: &str, repairs: u64) {
    wait_until(what, TWO_SECONDS, || {
        plane.health().repairs == repairs
            && plane.health().ok
            && edge.running() == Some(plane.health().program_id)
            && edge.pins().len() == 21
    });
    assert_eq!(edge.pings(3), 3);
}

#[test]
fn repairs_what_others_tear_down() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    let root = DEFAULT_ROOT;
    assert_eq!(edge.pins().len(), 21);

    edge.edge.sh(&format!("rm {root}/links/{EDGE}"));
    repaired(&edge, &plane, "the pin of the link is back", 1);

    edge.edge.sh(&format!("rm {root}/CONFIG {root}/TRACKED"));
    repaired(&edge, &plane, "the pins of two maps are back", 2);

    edge.edge
        .sh(&format!("bpftool link detach pinned {root}/links/{EDGE}"));
    repaired(
        &edge,
        &plane,
        "attached again after `bpftool link detach`",
        3,
    );

    edge.edge.sh("umount -l /sys/fs/bpf");
    repaired(&edge, &plane, "bpffs is mounted and filled again", 4);

    // The kernel itself refuses to take the program off an interface that has a link.
    let (status, _, _) = edge.edge.try_sh(&format!("ip link set {EDGE} xdp off"));
    assert_ne!(status, 0);
    assert_eq!(edge.running(), Some(plane.health().program_id));
    assert_eq!(plane.health().repairs, 4);
}

#[test]
fn restores_maps_that_others_overwrite() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    let config = plane.installed().or_fail("installed").config;
    let size = size_of_val(&config);
    let zeroes = vec!["0"; size].join(" ");
    edge.edge.sh(&format!(
        "bpftool map update pinned {DEFAULT_ROOT}/CONFIG key 0 0 0 0 value {zeroes}"
    ));
    repaired(&edge, &plane, "`CONFIG` is restored", 1);
    let out = edge.edge.sh(&format!(
        "bpftool -j map lookup pinned {DEFAULT_ROOT}/CONFIG key 0 0 0 0"
    ));
    let json: serde_json::Value = serde_json::from_str(&out).or_fail("bpftool's JSON");
    let schema = format!("0x{:02x}", config.schema);
    assert_eq!(json["value"][0].as_str(), Some(schema.as_str()));
    edge.edge.sh(&format!(
        "bpftool map update pinned {DEFAULT_ROOT}/POLICY_INDEX key 3 0 0 0 value 9 0 0 0"
    ));
    repaired(&edge, &plane, "`POLICY_INDEX` is restored", 2);
}

#[test]
fn leaves_a_foreign_program_alone_unless_told_to_replace_it() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let stranger = Stranger::load();
    edge.edge.sh(&format!(
        "bpftool net attach xdpdrv id {} dev {EDGE}",
        stranger.id()
    ));
    refused_then_replaced(&edge, &stranger, "netlink");
}

#[test]
fn leaves_a_foreign_link_alone_unless_told_to_replace_it() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let stranger = Stranger::load();
    let index = edge.edge.ifindex(EDGE);
    let link = edge.edge.run(|| stranger.link(index));
    refused_then_replaced(&edge, &stranger, "link ");
    drop(link);
}

fn refused_then_replaced(edge: &Edge, stranger: &Stranger, by: &str) {
    assert_eq!(edge.running(), Some(stranger.id()));
    let plane = edge.open();
    let refused = edge.edge.run(|| plane.attach(EDGE, native()));
    let Err(error @ Error::ForeignProgram { .. }) = refused else {
        panic!("a foreign program is there: {refused:?}");
    };
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let text = error.to_string();
    for part in [
        format!("(id {}, attached by {by}", stranger.id()),
        "`stranger`".to_owned(),
        "`--replace`".to_owned(),
    ] {
        assert!(text.contains(&part), "{text}");
    }
    assert_eq!(edge.running(), Some(stranger.id()));
    assert!(plane.interfaces().is_empty());
    let replace = AttachOptions {
        replace: true,
        ..native()
    };
    edge.edge
        .run(|| plane.attach(EDGE, replace))
        .or_fail("replace");
    assert_eq!(edge.running(), Some(plane.health().program_id));
    assert!(plane.health().ok);
}
