//! `docs/configuration.md` lists every setting as the code has it. Names and explanations come from
//! the schema, defaults from the types, and bounds from what the checker says when it is asked for
//! too much: nothing here knows a setting by name. With `RATELIMITER_BLESS=1` the test writes the
//! tables instead of comparing them.
#![expect(
    clippy::format_push_string,
    reason = "a text for people: an allocation more does not matter"
)]
use std::collections::BTreeMap;

use ratelimiter_userspace::config::adaptive::{Adaptive, Poll};
use ratelimiter_userspace::config::settings::{Backend, Breaker, Credential};
use ratelimiter_userspace::config::{File, Settings, load, show};
use ratelimiter_userspace::policy::model::{Client, Segment};
use serde_json::Value;
use tests::OrFail as _;

use crate::page;

/// Settings that are tables of the user's own names: described at the end.
const NAMED: [&str; 6] = [
    "backends",
    "credentials",
    "segments",
    "clients",
    "allow",
    "block",
];

/// Values that no setting takes, whatever its type.
const TOO_MUCH: [&str; 5] = ["9223372036854775807", "4294967295", "255", "1.0e12", "-1.0"];

/// One table of settings.
struct Section<'a> {
    /// Its header in the file.
    header: &'a str,
    /// What makes it legal apart from the setting that is asked about.
    rest: &'a [(&'a str, &'a str)],
    schema: &'a Value,
    defaults: Value,
}

fn resolve<'a>(schema: &'a Value, value: &'a Value) -> &'a Value {
    let reference = value["$ref"].as_str().or_else(|| {
        ["allOf", "oneOf", "anyOf"].iter().find_map(|kind| {
            let mut parts = value[*kind].as_array()?.iter();
            parts.find_map(|part| part["$ref"].as_str())
        })
    });
    match reference.and_then(|name| name.rsplit('/').next()) {
        Some(name) => &schema["$defs"][name],
        None => value,
    }
}

/// What is said of a setting: beside its type, in a part of it, or of the type.
fn explained<'a>(property: &'a Value, target: &'a Value) -> &'a str {
    let own = property["description"].as_str();
    let in_part = || {
        let mut parts = property["oneOf"].as_array()?.iter();
        parts.find_map(|part| part["description"].as_str())
    };
    own.or_else(in_part)
        .or(target["description"].as_str())
        .unwrap_or_default()
}

/// The unit that the last part of a name says.
fn unit(name: &str) -> &'static str {
    const UNITS: [(&str, &str); 5] = [
        ("_ms", "ms"),
        ("_per_s", "per second"),
        ("_s", "s"),
        ("_bytes", "bytes"),
        ("_percent", "%"),
    ];
    let found = UNITS.iter().find(|(end, _)| name.ends_with(end));
    found.map_or("", |(_, unit)| unit)
}

/// What the checker says a setting must be, asked by giving it what it cannot be.
fn bound(section: &Section<'_>, name: &str) -> String {
    for value in TOO_MUCH {
        let mut text = format!("{}\n", section.header);
        for (key, given) in section.rest.iter().filter(|(key, _)| *key != name) {
            text.push_str(&format!("{key} = {given}\n"));
        }
        text.push_str(&format!("{name} = {value}\n"));
        let file = File {
            name: "x",
            bytes: text.as_bytes(),
        };
        let Err(refused) = load(Some(file), &BTreeMap::<String, String>::new(), &[]) else {
            continue;
        };
        let said = refused.problems.iter().find_map(|problem| {
            let (about, must) = problem.message.split_once("must be ")?;
            (about.contains(name) && must.contains(|c: char| c.is_ascii_digit())).then_some(must)
        });
        if let Some(must) = said {
            return must.to_owned();
        }
    }
    String::new()
}

fn range(section: &Section<'_>, name: &str, whole: &Value, property: &Value) -> String {
    let target = resolve(whole, property);
    if let Some(words) = target["enum"].as_array() {
        let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
        return words.join(", ").replace('"', "");
    }
    let kinds = match &property["type"] {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    if kinds.iter().any(|kind| kind == "boolean") {
        return "`true`, `false`".to_owned();
    }
    let parts = [unit(name).to_owned(), bound(section, name)];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

fn shown(default: &Value) -> String {
    match default {
        Value::Null => "none".to_owned(),
        Value::String(text) if text.is_empty() => "empty".to_owned(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Object(fields) if fields.is_empty() => "none".to_owned(),
        value => format!("`{}`", value.to_string().replace('"', "")),
    }
}

fn table(section: &Section<'_>, whole: &Value, text: &mut String) {
    text.push_str("| setting | default | unit, range | |\n|---|---|---|---|\n");
    let fields = section.schema["properties"].as_object();
    for (name, property) in fields.or_fail("a table of the schema") {
        let target = resolve(whole, property);
        if target["properties"].is_object() || (section.header.is_empty() && is_named(name)) {
            continue;
        }
        let about = explained(property, target);
        assert!(!about.is_empty(), "`{name}` is not explained");
        let about = about.split_whitespace().collect::<Vec<_>>().join(" ");
        text.push_str(&format!(
            "| `{name}` | {} | {} | {} |\n",
            shown(&section.defaults[name]),
            range(section, name, whole, property),
            about.replace('|', "\\|")
        ));
    }
}

fn is_named(name: &str) -> bool {
    NAMED.contains(&name)
}

fn json<T: serde::Serialize>(value: T) -> Value {
    serde_json::to_value(value).or_fail("defaults as JSON")
}

fn reference() -> String {
    let whole = show::schema();
    let defaults = json(Settings::default());
    let mut text = String::from("\n## Top level\n\n");
    let top = Section {
        header: "",
        rest: &[],
        schema: &whole,
        defaults: defaults.clone(),
    };
    table(&top, &whole, &mut text);
    let mut sections = Vec::new();
    plain_sections(&whole, &whole, "", &defaults, &mut sections);
    for (name, schema, defaults) in sections {
        let about = describe(&whole, &name);
        text.push_str(&format!("\n## `[{name}]`\n\n{about}\n\n"));
        let header = format!("[{name}]");
        let section = Section {
            header: &header,
            rest: &[],
            schema,
            defaults,
        };
        table(&section, &whole, &mut text);
    }
    for (title, of, header, rest, defaults) in named_sections() {
        let schema = whole.pointer(&format!("/$defs/{of}")).or_fail(of);
        let about = schema["description"].as_str().unwrap_or_default();
        text.push_str(&format!("\n## {title}\n\n{about}\n\n"));
        let section = Section {
            header,
            rest,
            schema,
            defaults,
        };
        table(&section, &whole, &mut text);
    }
    text.push('\n');
    text
}

/// The explanation of a section, by its dotted name.
fn describe(whole: &Value, name: &str) -> String {
    let mut property = whole;
    for part in name.split('.') {
        property = &resolve(whole, property)["properties"][part];
    }
    property["description"].as_str().unwrap_or_default().into()
}

/// Every table that has a name of its own, tables inside tables too.
fn plain_sections<'a>(
    whole: &'a Value,
    of: &'a Value,
    prefix: &str,
    defaults: &Value,
    found: &mut Vec<(String, &'a Value, Value)>,
) {
    let fields = of["properties"].as_object().or_fail("properties");
    for (name, property) in fields.iter().filter(|(name, _)| !is_named(name)) {
        let target = resolve(whole, property);
        if target["properties"].is_object() {
            let path = if prefix.is_empty() {
                name.clone()
            } else {
                format!("{prefix}.{name}")
            };
            let has_own = target["properties"].as_object().is_some_and(|own| {
                own.values()
                    .any(|value| !resolve(whole, value)["properties"].is_object())
            });
            if has_own {
                found.push((path.clone(), target, defaults[name].clone()));
            }
            plain_sections(whole, target, &path, &defaults[name], found);
        }
    }
}

type Named = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    Value,
);

fn named_sections() -> Vec<Named> {
    // A backend is two tables and nothing else.
    let _: Backend = Backend::default();
    vec![
        (
            "`[backends.NAME.breaker]`",
            "Breaker",
            "[backends.x.breaker]",
            &[],
            json(Breaker::default()),
        ),
        (
            "`[backends.NAME.adaptive]`",
            "Adaptive",
            "[backends.x.adaptive]",
            &[],
            json(Adaptive::default()),
        ),
        (
            "`[backends.NAME.adaptive.poll]`",
            "Poll",
            "[backends.x.adaptive.poll]",
            &[("url", "\"http://x/\""), ("latency", "\"/a\"")],
            json(Poll::default()),
        ),
        (
            "`[credentials.NAME]`",
            "Credential",
            "[credentials.x]",
            &[("token_file", "\"/x\""), ("rights", "[\"read\"]")],
            json(Credential::default()),
        ),
        (
            "`[segments.NAME]`",
            "Segment",
            "[segments.x]",
            &[],
            json(Segment::default()),
        ),
        (
            "`[clients.ID]`",
            "Client",
            "[clients.x]",
            &[],
            json(Client::default()),
        ),
        (
            "A limit: `limits.NAME` of a segment or client",
            // A map by a name of its own, which holds the schema of what is in it.
            "BTreeMap/additionalProperties",
            "[segments.x.limits.y]",
            &[("rate_limit", "1"), ("time_window", "1")],
            Value::Null,
        ),
        (
            "`[[allow]]` and `[[block]]`",
            "StaticPrefix",
            "[[allow]]",
            &[("prefix", "\"192.0.2.0/24\"")],
            Value::Null,
        ),
    ]
}

#[test]
fn every_setting_is_listed_as_it_is() {
    page::hold("configuration.md", "settings", &reference());
}
