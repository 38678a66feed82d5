//! schemathesis asks the check API what its own description says may be asked, and what it says may
//! not.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use tests::OrFail as _;
use tests::agent::{Agent, Setup};
use tests::netns::Netns;
use tests::residue::{Residue, TEMP_PREFIX};

use crate::limits::SMALL;

/// Random requests for each operation, beside the systematic ones. 700 take a quarter of an hour
/// and make 9466 requests.
const EXAMPLES: u32 = 5;
const TOKEN: &str = "0123456789-the-token-of-the-checker";
const HOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis/hooks.py");

/// Where `cargo xtask setup --tests` puts it.
fn program() -> PathBuf {
    let test = std::env::current_exe().or_fail("find the test binary");
    test.ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "target"))
        .map(|target| target.join("tools/schemathesis/bin/st"))
        .filter(|path| path.is_file())
        .or_fail("this test needs schemathesis: run `cargo xtask setup --tests`")
}

/// Tries every operation with at most `examples` random requests beside the systematic ones;
/// returns how many there were together.
fn ask_everything(edge: &Netns, examples: u32, token: Option<&str>) -> u64 {
    let directory = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempdir()
        .or_fail("make a directory");
    let mut command = Command::new(program());
    command
        .args(["run", "http://127.0.0.1:9741/openapi.json", "--no-color"])
        .args(["--seed", "1", "--max-examples", &examples.to_string()])
        .env("SCHEMATHESIS_HOOKS", HOOKS)
        .current_dir(directory.path());
    if let Some(token) = token {
        command.args(["--header", &format!("Authorization: Bearer {token}")]);
    }
    edge.prepare(&mut command);
    let output = command.output().or_fail("run schemathesis");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    // "Test cases:", then "1666 generated, 1666 passed".
    let counts: Vec<u64> = said
        .split("Test cases:")
        .nth(1)
        .and_then(|rest| rest.trim().lines().next())
        .or_fail(&said)
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    let [generated, passed] = counts[..] else {
        panic!("{said}");
    };
    assert_eq!(generated, passed, "{said}");
    generated
}

fn agent<'a>(edge: &'a Netns, more: &str) -> Agent<'a> {
    Setup::new()
        .enforce()
        .settings(&format!("{SMALL}\n{more}"))
        .check("127.0.0.1:9741")
        .start(edge)
}

#[test]
fn the_check_api_is_as_it_is_described() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let open = agent(&edge, "");
    let mut asked = ask_everything(&edge, EXAMPLES, None);
    drop(open);

    let directory = tempfile::tempdir().or_fail("make a directory");
    let file = directory.path().join("token");
    fs::write(&file, TOKEN).or_fail("write a token");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).or_fail("protect the token");
    let locked = agent(
        &edge,
        &format!(
            "[credentials.checker]\ntoken_file = \"{}\"\nrights = [\"check\"]",
            file.display()
        ),
    );
    asked += ask_everything(&edge, EXAMPLES, Some(TOKEN));
    asked += ask_everything(&edge, EXAMPLES, None);
    drop(locked);
    assert!(asked >= 1_000, "{asked}");
}
