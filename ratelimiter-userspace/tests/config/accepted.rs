//! What is accepted: defaults, example, environment, flags, the static part.

use std::collections::BTreeMap;

use ratelimiter_userspace::config::check::{exposure, mode_problem};
use ratelimiter_userspace::config::settings::Breaker;
use ratelimiter_userspace::config::show::{default_text, example, schema, show};
use ratelimiter_userspace::config::statics::overlay;
use ratelimiter_userspace::config::{
    AttachMode, File, Listen, Loaded, Origin, Override, Refused, Settings, load,
};
use ratelimiter_userspace::policy::model::Document;

fn from_text(text: &str) -> Result<Loaded, Refused> {
    loaded(text, &[], &[])
}

fn loaded(text: &str, environment: &[(&str, &str)], flags: &[Override]) -> Result<Loaded, Refused> {
    let environment: BTreeMap<String, String> = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let file = File {
        name: "f.toml",
        bytes: text.as_bytes(),
    };
    load(Some(file), &environment, flags)
}

#[test]
fn nothing_at_all_is_the_defaults() {
    let none = BTreeMap::new();
    let loaded = load(None, &none, &[]).unwrap();
    assert_eq!(loaded.settings, Settings::default());
    assert_eq!(loaded.document, Document::default());
    assert!(loaded.origins.is_empty() && loaded.warnings.is_empty());
}

#[test]
fn the_default_file_is_the_defaults() {
    assert_eq!(
        from_text(&default_text()).unwrap().settings,
        Settings::default()
    );
}

#[test]
fn the_example_changes_nothing_and_its_comments_are_the_defaults() {
    let text = example();
    assert_eq!(
        from_text(&text).unwrap().settings,
        Settings::default(),
        "{text}"
    );
    let told = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n");
    let loaded = from_text(&told).unwrap_or_else(|refused| panic!("{refused}\n{told}"));
    let breaker = loaded.settings.backends["default"].breaker.clone();
    assert_eq!(breaker, Some(Breaker::default()));
    let plain = Settings {
        backends: BTreeMap::new(),
        credentials: BTreeMap::new(),
        segments: BTreeMap::new(),
        clients: BTreeMap::new(),
        allow: Vec::new(),
        block: Vec::new(),
        ..loaded.settings.clone()
    };
    assert_eq!(plain, Settings::default());
    assert_eq!(loaded.document.clients.len(), 1);
    assert_eq!(
        (loaded.document.allow.len(), loaded.document.block.len()),
        (1, 1)
    );
}

#[test]
fn every_setting_of_the_example_is_explained() {
    let mut before = "";
    for line in example()
        .lines()
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .leak()
    {
        let key = line.starts_with('#') && !line.starts_with("# ") && line.contains(" = ");
        let of_an_object = before.starts_with('#') && !before.starts_with("# ");
        assert!(
            !key || before.starts_with("# ") || of_an_object,
            "{line} is not explained"
        );
        before = line;
    }
}

#[test]
fn the_schema_knows_every_default() {
    let schema = schema();
    assert_eq!(schema["properties"]["enforce"]["default"], false);
    assert_eq!(
        schema["properties"]["tables"]["default"]["tracked"],
        262_144
    );
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    let text = schema.to_string();
    assert!(!text.contains("#/components/"));
    // Every reference leads somewhere.
    for part in text.split("\"#/$defs/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schema["$defs"][name].is_object(), "{name}");
    }
}

#[test]
fn flags_come_before_environment_before_file() {
    let text = "state_dir = \"/file\"\npin_dir = \"/file\"\n[admin]\nlisten = \"127.0.0.1:1\"\n";
    let flags = [Override::flag("--state-dir", "state_dir", "/flag")];
    let environment = [
        ("RATELIMITER_STATE_DIR", "/environment"),
        ("RATELIMITER_ADMIN_LISTEN", "off"),
        ("RATELIMITER_ENFORCE", "true"),
        ("RATELIMITER_INTERFACES", "eth0, eth1:generic"),
        ("RATELIMITER_TABLES_TRACKED", "1_024"),
    ];
    let loaded = loaded(text, &environment, &flags).unwrap();
    let settings = &loaded.settings;
    assert_eq!(settings.state_dir, "/flag");
    assert_eq!(settings.pin_dir, "/file");
    assert_eq!(settings.admin.listen, Listen::Off);
    assert!(settings.enforce);
    assert_eq!(settings.tables.tracked, 1_024);
    assert_eq!(settings.interfaces.len(), 2);
    assert_eq!(settings.interfaces[1].mode, AttachMode::Generic);
    assert_eq!(loaded.origins["pin_dir"], Origin::File("f.toml".to_owned()));
    assert_eq!(
        loaded.origins["state_dir"],
        Origin::Flag("--state-dir".to_owned())
    );
    let shown = show(&loaded);
    let of = |path: &str| shown.iter().find(|shown| shown.path == path).unwrap();
    assert_eq!(
        of("enforce").origin,
        Origin::Environment("RATELIMITER_ENFORCE".to_owned())
    );
    assert_eq!(of("check.http").origin, Origin::Default);
}

#[test]
fn a_wrong_variable_is_named() {
    let refused = loaded("", &[("RATELIMITER_TABLES_TRACKED", "lots")], &[]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "environment variable `RATELIMITER_TABLES_TRACKED`: `tables.tracked`: `lots` is not a \
         whole number, 0 or more"
    );
    let refused = loaded("", &[("RATELIMITER_SAFETY_RISKY_PERCENT", "101")], &[]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "environment variable `RATELIMITER_SAFETY_RISKY_PERCENT`: `safety.risky_percent` is 101; \
         it must be between 1 and 100"
    );
    let refused = loaded("", &[("RATELIMITER_ADMIN_LISTEN", "0.0.0.0:1")], &[]).unwrap_err();
    assert!(
        refused.to_string().contains("RATELIMITER_ADMIN_LISTEN"),
        "{refused}"
    );
}

#[test]
fn an_unknown_variable_is_a_warning() {
    let loaded = loaded("", &[("RATELIMITER_ENFORCED", "true")], &[]).unwrap();
    let warning = loaded.warnings[0].to_string();
    assert!(warning.contains("`RATELIMITER_ENFORCED`"), "{warning}");
    assert!(
        warning.contains("did you mean `RATELIMITER_ENFORCE`?"),
        "{warning}"
    );
}

#[test]
fn a_credential_opens_the_listener() {
    let text = "[admin]\nlisten = \"0.0.0.0:9740\"\n[credentials.ops]\n\
                token = \"0123456789abcdef\"\nrights = [\"admin\"]\n";
    let loaded = from_text(text).unwrap();
    // The token is nowhere to be seen.
    assert!(!format!("{:?}", loaded.settings).contains("0123456789abcdef"));
    let shown = serde_json::to_string(&show(&loaded)).unwrap();
    assert!(!shown.contains("0123456789abcdef"));
    assert_eq!(
        loaded.settings.credentials["ops"]
            .token
            .as_ref()
            .unwrap()
            .expose(),
        "0123456789abcdef"
    );
    assert!(
        exposure("f", 0o100_644, &loaded.settings)
            .unwrap()
            .contains("`0644`")
    );
    assert_eq!(exposure("f", 0o100_640, &loaded.settings), None);
}

#[test]
fn the_static_part_says_it_comes_from_the_file() {
    let loaded = from_text(
        "[segments.free]\nweight = 2\n[[allow]]\nprefix = \"10.0.0.0/8\"\nreason = \"ours\"\n",
    )
    .unwrap();
    let entry = loaded.document.allow.values().next().unwrap();
    assert_eq!(entry.by.as_deref(), Some("config"));
    assert_eq!(entry.reason.as_deref(), Some("ours"));
    let merged = overlay(&Document::default(), &loaded.document);
    assert_eq!(merged.segments["free"].weight, Some(2));
    assert!(merged.segments["default"].limits.contains_key("packets"));
}

#[test]
fn what_is_legal_and_not_meant_is_a_warning_with_its_place() {
    let loaded =
        from_text("[[allow]]\nprefix = \"10.0.0.0/8\"\n[[block]]\nprefix = \"10.1.0.0/16\"\n")
            .unwrap();
    let warning = loaded.warnings[0].to_string();
    assert!(warning.contains("f.toml:4:10"), "{warning}");
    assert!(warning.contains("allow `10.0.0.0/8` wins"), "{warning}");
}

#[test]
fn files_that_others_may_write_are_refused() {
    assert_eq!(mode_problem("f", 0o100_644, 0, 1_000), None);
    assert_eq!(mode_problem("f", 0o100_600, 1_000, 1_000), None);
    let problem = mode_problem("/etc/x", 0o100_666, 0, 1_000).unwrap();
    assert!(
        problem.contains("`/etc/x` has mode `0666`: everybody may write it"),
        "{problem}"
    );
    assert!(
        mode_problem("f", 0o100_644, 33, 1_000)
            .unwrap()
            .contains("user 33")
    );
    assert!(
        mode_problem("f", 0o010_644, 0, 0)
            .unwrap()
            .contains("regular file")
    );
}
