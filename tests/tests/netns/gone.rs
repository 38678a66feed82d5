//! R4: interfaces that go and come back.

use std::time::Duration;

use ratelimiter_userspace::dataplane::{DataPlane, InterfaceState, XdpDataPlane};
use tests::OrFail as _;
use tests::netns::Netns;
use tests::process::wait_until;
use tests::residue::Residue;

use crate::edge::{EDGE, Edge, native, running};

const ONE_SECOND: Duration = Duration::from_secs(1);
const TWO_SECONDS: Duration = Duration::from_secs(2);

fn attached() -> (Edge, XdpDataPlane) {
    let edge = Edge::new();
    let plane = edge.open();
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    (edge, plane)
}

fn absent(plane: &XdpDataPlane) -> bool {
    let interfaces = plane.interfaces();
    interfaces.len() == 1 && interfaces[0].state == InterfaceState::Absent && !plane.health().ok
}

fn protected(edge: &Edge, plane: &XdpDataPlane) -> bool {
    plane.health().ok && edge.running() == Some(plane.health().program_id)
}

#[test]
fn attaches_again_to_an_interface_that_was_deleted_and_made_again() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    for round in 1..=3 {
        edge.edge.ip(&format!("link del {EDGE}"));
        wait_until("told that the interface is gone", ONE_SECOND, || {
            absent(&plane)
        });
        assert!(
            edge.pins().iter().all(|pin| !pin.starts_with("links/")),
            "a zombie pin"
        );
        edge.join();
        wait_until("protected again", TWO_SECONDS, || protected(&edge, &plane));
        assert_eq!(plane.health().reattached, round);
        assert_eq!(edge.pings(3), 3);
    }
    assert_eq!(plane.health().repairs, 0);
}

#[test]
fn replaces_the_zombie_of_an_interface_that_was_made_again_while_no_agent_ran() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    drop(plane);
    edge.edge.ip(&format!("link del {EDGE}"));
    edge.join();
    assert!(edge.pins().contains(&format!("links/{EDGE}")));
    assert_eq!(edge.running(), None);
    let plane = edge.open();
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    assert!(protected(&edge, &plane));
}

#[test]
fn a_renamed_interface_stays_limited_and_its_old_name_is_watched() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    let id = plane.health().program_id;
    edge.edge.ip(&format!("link set {EDGE} name other0"));
    wait_until("told that the name is gone", ONE_SECOND, || absent(&plane));
    assert_eq!(running(&edge.edge, "other0"), Some(id));
    edge.edge.ip(&format!("link set other0 name {EDGE}"));
    wait_until("found under its name again", TWO_SECONDS, || {
        protected(&edge, &plane)
    });
    // Renamed while no agent runs: the next one finds its link by the interface.
    drop(plane);
    edge.edge.ip(&format!("link set {EDGE} name other0"));
    let plane = edge.open();
    edge.edge
        .run(|| plane.attach("other0", native()))
        .or_fail("attach");
    assert_eq!(
        running(&edge.edge, "other0"),
        Some(plane.health().program_id)
    );
    assert!(edge.pins().contains(&"links/other0".to_owned()));
    assert!(!edge.pins().contains(&format!("links/{EDGE}")));
    assert!(plane.health().ok, "{:?}", plane.health());
}

#[test]
fn an_interface_moved_to_another_namespace_and_back_is_protected_again() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    let other = Netns::new();
    edge.edge
        .ip(&format!("link set {EDGE} netns {}", other.path()));
    wait_until("told that it is gone", ONE_SECOND, || absent(&plane));
    other.ip(&format!("link set {EDGE} netns {}", edge.edge.path()));
    edge.edge.ip(&format!("link set {EDGE} up"));
    wait_until("protected again", TWO_SECONDS, || protected(&edge, &plane));
}

#[test]
fn one_of_the_same_name_replaces_an_interface_that_was_moved_away() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    let other = Netns::new();
    edge.edge
        .ip(&format!("link set {EDGE} netns {}", other.path()));
    wait_until("told that it is gone", ONE_SECOND, || absent(&plane));
    edge.edge
        .ip(&format!("link add {EDGE} type veth peer name peer0"));
    wait_until("protected again", TWO_SECONDS, || protected(&edge, &plane));
    // The link of the one that was moved went with its pin.
    assert_eq!(running(&other, EDGE), None);
}

#[test]
fn stays_protected_through_changes_of_the_mtu() {
    let _residue = Residue::watch();
    let (edge, plane) = attached();
    // Whether the kernel takes it depends on the program (multi-buffer or not): the interface is
    // protected either way.
    let (status, _, error) = edge.edge.try_sh(&format!("ip link set {EDGE} mtu 9000"));
    println!("mtu 9000 with the program attached: status {status} {error}");
    edge.edge.run(|| plane.verify());
    assert!(protected(&edge, &plane), "{:?}", plane.health());
    edge.edge.ip(&format!("link set {EDGE} mtu 1400"));
    edge.edge.run(|| plane.verify());
    assert!(protected(&edge, &plane));
    assert_eq!(edge.pings(3), 3);
}
