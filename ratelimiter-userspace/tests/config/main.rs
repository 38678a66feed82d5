//! The configuration file: what is accepted, what is refused, and with which words.
#![allow(missing_docs, reason = "a test binary has no API")]
#![allow(
    clippy::unwrap_used,
    clippy::unnecessary_wraps,
    clippy::format_push_string,
    clippy::field_reassign_with_default,
    reason = "a test fails by panicking, and reads better plain"
)]

mod accepted;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ratelimiter_userspace::config::{File, MAX_FILE_BYTES, load};

const NAME: &str = "ratelimiter.toml";

fn refusal(bytes: &[u8]) -> String {
    let none = BTreeMap::new();
    match load(Some(File { name: NAME, bytes }), &none, &[]) {
        Ok(loaded) => panic!("accepted: {:?}", loaded.settings),
        Err(refused) => {
            assert!(!refused.problems.is_empty());
            refused.to_string()
        }
    }
}

/// Each file says in its first lines which words its refusal must contain.
#[test]
fn every_broken_file_is_refused_with_place_thing_value_and_bound() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/broken");
    let mut files: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 50, "{} broken files", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let expected: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# expect: "))
            .collect();
        assert!(!expected.is_empty(), "{name} expects nothing");
        let answer = refusal(text.as_bytes());
        for fragment in expected {
            if !answer.contains(fragment) {
                wrong.push(format!("{name}: no `{fragment}` in:\n{answer}\n"));
            }
        }
        // A place comes with an excerpt and a caret.
        if text.contains("# expect: ratelimiter.toml:") && !answer.contains('^') {
            wrong.push(format!("{name}: no caret in:\n{answer}\n"));
        }
        // In-house style: what is wrong never ends in a full stop.
        for line in answer.lines().filter(|line| line.starts_with(NAME)) {
            if line.ends_with('.') {
                wrong.push(format!("{name}: ends in a full stop: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_that_are_no_text_are_refused() {
    let answer = refusal(b"enforce = true\nname = \"\xff\"\n");
    assert!(
        answer.contains("ratelimiter.toml:2:9: the file is not UTF-8: byte `0xff`"),
        "{answer}"
    );
    let answer = refusal(&vec![b'#'; MAX_FILE_BYTES + 1]);
    assert!(
        answer.contains("the file has 1048577 bytes; it may have at most 1048576"),
        "{answer}"
    );
    let answer = refusal(&[0; 10]);
    assert!(answer.contains("ratelimiter.toml:1:1"), "{answer}");
}

#[test]
fn every_prefix_of_a_good_file_is_answered_without_a_panic() {
    let text = ratelimiter_userspace::config::show::example().replace("\n#", "\n");
    let none = BTreeMap::new();
    // A half-written file: cut at every 7th byte.
    for end in (0..text.len()).step_by(7) {
        let bytes = text.as_bytes().get(..end).unwrap();
        drop(load(Some(File { name: NAME, bytes }), &none, &[]));
    }
}

#[test]
fn several_problems_are_told_at_once() {
    let answer = refusal(
        b"state_dir = \"x\"\n[safety]\nconfirm_within_s = 1\n[segments.free]\nweight = 0\n",
    );
    for place in [
        "ratelimiter.toml:1:13",
        "ratelimiter.toml:3:20",
        "ratelimiter.toml:5:10",
    ] {
        assert!(answer.contains(place), "{answer}");
    }
}

#[test]
fn a_secret_is_never_repeated() {
    let answer = refusal(b"[credentials.a]\ntoken = \"hunter2\"\nrights = [\"read\"]\n");
    // The excerpt shows the line: for tokens it must not.
    assert!(!answer.contains("hunter2"), "{answer}");
}
