//! R3: pins of every wrong kind. The old program keeps enforcing, the message names the map and
//! both shapes, and `replace` makes new tables without a moment of no program.

use ratelimiter_userspace::dataplane::{
    AttachOptions, DEFAULT_ROOT, DataPlane, Error, ErrorKind, OpenOptions, Tables,
};
use tests::OrFail as _;
use tests::residue::Residue;

use crate::edge::{EDGE, Edge, native, small};

/// An edge whose agent has attached and died.
fn left_behind() -> (Edge, u32) {
    let edge = Edge::new();
    let plane = edge.open();
    edge.edge
        .run(|| plane.attach(EDGE, native()))
        .or_fail("attach");
    let id = plane.health().program_id;
    drop(plane);
    (edge, id)
}

fn pin(map: &str) -> String {
    format!("{DEFAULT_ROOT}/{map}")
}

/// Opens, expects a refusal and that nothing changed, and returns the sentence.
fn refused(edge: &Edge, id: u32, options: &OpenOptions) -> String {
    let before = edge.pins();
    let began = ratelimiter_userspace::clock::instant();
    let error = edge.try_open(options).err().or_fail("pins that do not fit");
    assert!(began.elapsed().as_secs() < 5);
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(matches!(error, Error::Pins(_)), "{error}");
    assert_eq!(edge.running(), Some(id), "the old program is gone");
    assert_eq!(edge.pins(), before, "pins were touched");
    let text = error.to_string();
    assert!(
        text.contains("keeps enforcing") && text.contains("--replace"),
        "{text}"
    );
    text
}

#[test]
fn refuses_maps_of_another_shape_and_names_both() {
    let _residue = Residue::watch();
    let (edge, id) = left_behind();
    for (what, map, made, says) in [
        (
            "smaller value",
            "CONFIG",
            "type array key 4 value 64 entries 1",
            "value 64 B",
        ),
        (
            "larger value",
            "TRACKED",
            "type lru_hash key 8 value 4096 entries 4096",
            "value 4096 B",
        ),
        (
            "other key size",
            "TRACKED",
            "type lru_hash key 16 value 96 entries 4096",
            "key 16 B",
        ),
        (
            "other type",
            "TRACKED",
            "type hash key 8 value 96 entries 4096",
            "(hash, key 8 B",
        ),
        (
            "other entries",
            "TRACKED",
            "type lru_hash key 8 value 96 entries 8192",
            "8192 entries",
        ),
    ] {
        let path = pin(map);
        let aside = pin("ASIDE");
        edge.edge.sh(&format!("mv {path} {aside}"));
        edge.edge
            .sh(&format!("bpftool map create {path} {made} name {map}"));
        let text = refused(&edge, id, &small());
        assert!(text.contains(&format!("`{map}`")), "{what}: {text}");
        assert!(text.contains(says), "{what}: {text}");
        assert!(text.contains("this agent needs ("), "{what}: {text}");
        edge.edge.sh(&format!("rm {path}"));
        edge.edge.sh(&format!("mv {aside} {path}"));
    }
    // Put back in order, they are adopted.
    assert!(edge.open().health().adopted);
}

#[test]
fn refuses_tables_of_another_configured_size() {
    let _residue = Residue::watch();
    let (edge, id) = left_behind();
    let larger = OpenOptions {
        tables: Tables {
            crowd4_words: 1 << 17,
            ..Tables::small()
        },
        ..small()
    };
    let text = refused(&edge, id, &larger);
    assert!(text.contains("`CROWD4`"), "{text}");
}

#[test]
fn refuses_an_older_schema_number() {
    let _residue = Residue::watch();
    let (edge, id) = left_behind();
    let out = edge.edge.sh(&format!(
        "bpftool -j map lookup pinned {} key 0 0 0 0",
        pin("CONFIG")
    ));
    let json: serde_json::Value = serde_json::from_str(&out).or_fail("bpftool's JSON");
    let mut bytes: Vec<String> = json["value"]
        .as_array()
        .or_fail("bytes")
        .iter()
        .map(|byte| byte.as_str().or_fail("a byte").to_owned())
        .collect();
    let schema = std::mem::replace(&mut bytes[0], "0xfe".to_owned());
    let write = |bytes: &[String]| {
        edge.edge.sh(&format!(
            "bpftool map update pinned {} key 0 0 0 0 value {}",
            pin("CONFIG"),
            bytes.join(" ")
        ));
    };
    write(&bytes);
    let text = refused(&edge, id, &small());
    assert!(text.contains("`CONFIG` has schema number 254"), "{text}");
    bytes[0] = schema;
    write(&bytes);
    assert!(edge.open().health().adopted);
}

#[test]
fn refuses_foreign_objects_and_half_a_set() {
    let _residue = Residue::watch();
    let (edge, id) = left_behind();
    let aside = pin("ASIDE");

    edge.edge.sh(&format!("mv {} {aside}", pin("CONFIG")));
    edge.edge
        .sh(&format!("bpftool prog pin id {id} {}", pin("CONFIG")));
    let text = refused(&edge, id, &small());
    assert!(text.contains("the pin `CONFIG` is a `bpf-prog`"), "{text}");
    edge.edge.sh(&format!("rm {}", pin("CONFIG")));

    edge.edge.sh(&format!("mkdir {}", pin("CONFIG")));
    let text = refused(&edge, id, &small());
    assert!(text.contains("the pin `CONFIG` is a directory"), "{text}");
    edge.edge.sh(&format!("rmdir {}", pin("CONFIG")));

    // `CONFIG` is missing while a link is pinned: something may enforce with these maps.
    let text = refused(&edge, id, &small());
    assert!(text.contains("`CONFIG` is missing"), "{text}");
    edge.edge.sh(&format!("mv {aside} {}", pin("CONFIG")));

    edge.edge.sh(&format!("rm {}", pin("CROWD4")));
    let text = refused(&edge, id, &small());
    assert!(text.contains("`CROWD4` is missing"), "{text}");
}

#[test]
fn clears_what_an_interrupted_start_left() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    drop(edge.open());
    // A start that was killed before its last pin: no `CONFIG`, no link.
    for map in ["CONFIG", "CROWD4", "EVENTS"] {
        edge.edge.sh(&format!("rm {}", pin(map)));
    }
    let plane = edge.open();
    assert!(!plane.health().adopted);
    assert!(plane.health().ok);
}

#[test]
fn replaces_on_request_without_a_moment_of_no_program() {
    let _residue = Residue::watch();
    let (edge, id) = left_behind();
    edge.edge.sh(&format!("rm {}", pin("CROWD4")));
    let plane = edge
        .try_open(&OpenOptions {
            replace: true,
            ..small()
        })
        .or_fail("replace");
    // The tables are new; the old program runs until the new one is told to attach.
    assert_eq!(edge.running(), Some(id));
    let carrier = edge.edge.carrier_changes(EDGE);
    edge.edge
        .run(|| plane.attach(EDGE, AttachOptions::default()))
        .or_fail("swap");
    assert_eq!(edge.running(), Some(plane.health().program_id));
    assert_eq!(edge.edge.carrier_changes(EDGE), carrier);
    drop(plane);
    assert!(edge.open().health().adopted);
}
