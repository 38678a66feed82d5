//! Bounds of what can be set, and what is said about them.

use super::*;

fn issues(text: &str) -> Vec<String> {
    let settings: Settings = toml::from_str(text).unwrap();
    super::super::check::check(&settings)
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn defaults_are_within_their_bounds() {
    assert_eq!(issues("[backends.api.adaptive]"), Vec::<String>::new());
    let controls = control::settings::Settings::default();
    assert_eq!(Adaptive::default().controls(), controls);
}

#[test]
fn names_thing_value_and_bound() {
    for (text, part) in [
        (
            "[backends.api.adaptive]\nhigh_ms = 100",
            "`high_ms` is 100; it must be above `low_ms`, which is 200",
        ),
        (
            "[backends.api.adaptive]\nlow_ms = 0",
            "`low_ms` is 0; it must be between 0.001 and 60000",
        ),
        (
            "[backends.api.adaptive]\nfloor = 2.0",
            "`floor` is 2; it must be between 0.001 and 1",
        ),
        (
            "[backends.api.adaptive.floors]\ngold = nan",
            "the floor of `gold` is NaN; it must be between 0.001 and 1",
        ),
        (
            "[adaptive.window]\nstep = 0.5",
            "`adaptive.window.step` is 0.5; it must be between 0.01 and 0.25",
        ),
        (
            "[backends.api.adaptive.poll]\nurl = \"ftp://x/\"\nlatency = \"/a\"",
            "`url` is `ftp://x/`; it must begin with `http://` or `https://`",
        ),
        (
            "[backends.api.adaptive.poll]\nurl = \"http://x/\"\nlatency = \"/a\"\nca_file = \"c\"",
            "`ca_file` is `c`; it must be empty where `url` is not `https`",
        ),
        (
            "[backends.api.adaptive.poll]\nurl = \"http://u:p@x/\"\nlatency = \"/a\"",
            "it must hold no user name or password",
        ),
        (
            "[backends.api.adaptive.poll]\nurl = \"http://2130706433/\"\nlatency = \"/a\"",
            "an address in its usual form",
        ),
        (
            "[backends.api.adaptive.poll]\nurl = \"file:///etc/passwd\"\nlatency = \"/a\"",
            "it must be",
        ),
        (
            "[backends.api.adaptive.poll]\nurl = \"http://x/\"\nlatency = \"a\"",
            "`latency` is `a`; it must be a JSON pointer",
        ),
        (
            "[backends.api.adaptive.poll]\nurl = \"http://x/\"\nlatency = \"/a\"\nevery_ms = 1",
            "`every_ms` is 1; it must be between 100 and 60000",
        ),
    ] {
        let found = issues(text);
        assert!(
            found.len() == 1 && found[0].contains(part),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn a_poll_target_is_taken_apart() {
    let poll = |url: &str| Poll {
        url: url.to_owned(),
        ..Poll::default()
    };
    for (url, tls, host, port, path) in [
        ("http://[::1]:81/a?b", false, "::1", 81, "/a?b"),
        ("http://web", false, "web", 80, "/"),
        ("https://web/x", true, "web", 443, "/x"),
    ] {
        let (host, path) = (host.to_owned(), path.to_owned());
        let target = Target {
            tls,
            host,
            port,
            path,
        };
        assert_eq!(poll(url).target(), Ok(target));
    }
}
