//! `config example`, `default`, `show` and `schema`: all made from the settings' types, doc
//! comments and defaults, so that none of them can drift.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema as _, ToSchema as _};

use super::load::Loaded;
use super::problem::Origin;
use super::settings::Settings;

/// Settings that are tables of the user's own names, or lists of tables: shown in [`OBJECTS`].
const OPEN: [&str; 6] = [
    "backends",
    "credentials",
    "segments",
    "clients",
    "allow",
    "block",
];

/// The commented objects at the end of the example.
const OBJECTS: &str = r#"
# Who may use the admin API. Needed for every listener that is not on loopback.
#[credentials.operator]
#token_file = "/etc/ratelimiter/operator.token"
#rights = ["write"]

# What is protected: `default`, unless a segment names another `backend`. The breaker refuses
# its clients' checks for a while when outcomes are errors, or most checks are refused.
#[backends.default.breaker]
#deny_ratio = 0.5
#for = "30s"
#error_ratio = 0.5
#open_for = "10s"
#probes = 10

# Limits of its clients follow its health: docs/adaptive.md. Every key is optional.
#[backends.default.adaptive]
#law = "budget"
#counts = "requests"
#latency = "mean"
#high_ms = 500.0
#low_ms = 200.0
#error_high = 0.05
#error_trip = 0.5
#rise_per_s = 0.05
#stale_hold_s = 60.0
#ceiling_ttl_s = 600.0
#budget_min = 10.0
#outcomes = true
#floors = { free = 0.25 }
#[backends.default.adaptive.poll]
#url = "http://127.0.0.1:8080/metrics"
#every_ms = 1000
#timeout_ms = 500
#max_body_bytes = 65536
#format = "prometheus"
#latency = "http_request_duration_seconds"
#latency_unit = "s"
#errors = 'http_requests_total{code="500"}'
#requests = "http_requests_total"

# Segments: limits of each of their clients, and of each source in `sources`.
# `default` is the segment of everybody else: what it does not limit here has the
# built-in limits, packets 1000 per second (burst 2000) and 100 requests per minute.
#[segments.free]
#weight = 1
#escalate_after = 100
#sources = ["10.0.0.0/8"]
#limits.packets = { rate_limit = 200, time_window = 1, burst = 400, unit = "packets" }
#limits.default = { rate_limit = 60, time_window = "1m" }

# Clients: who they are, where they send from, and limits of their own.
#[clients.example]
#segment = "free"
#sources = ["192.0.2.0/30", "2001:db8::/64"]
#limits.packets = { rate_limit = 5000, time_window = 1, unit = "packets" }
#limits.bytes = { rate_limit = 12500000, time_window = 1, unit = "bytes" }

# Prefixes that are never limited, and prefixes that are dropped unless allowed.
#[[allow]]
#prefix = "198.51.100.0/24"
#reason = "our own monitoring"

#[[block]]
#prefix = "203.0.113.0/24"
"#;

/// The defaults as a configuration file.
#[must_use]
pub fn default_text() -> String {
    let table = toml::Value::try_from(Settings::default()).ok();
    let mut text = String::new();
    if let Some(toml::Value::Table(mut table)) = table {
        for name in OPEN {
            table.remove(name);
        }
        text = toml::to_string(&table).unwrap_or_default();
    }
    text
}

/// A commented configuration file that changes nothing: every default stands in it, behind a `#`.
#[must_use]
pub fn example() -> String {
    let schema = schema();
    let mut text = String::from(
        "# Configuration of ratelimiter: /etc/ratelimiter/ratelimiter.toml\n\
         # Every key is optional; what follows a lone `#` is its default.\n\
         # Precedence: flags, RATELIMITER_* variables, this file, defaults.\n\
         # Check it with `ratelimiter config check`.\n",
    );
    let mut section = String::new();
    for line in default_text().lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.clone_into(&mut section);
            text.push('\n');
            comment(&mut text, &describe(&schema, name, None));
            text.extend(["[", name, "]\n"]);
        } else if let Some((key, _)) = line.split_once(" = ") {
            let about = if section.is_empty() {
                describe(&schema, key, None)
            } else {
                describe(&schema, &section, Some(key))
            };
            comment(&mut text, &about);
            text.extend(["#", line, "\n"]);
        }
    }
    text.push_str(OBJECTS);
    text
}

fn comment(text: &mut String, about: &str) {
    let mut line = String::new();
    for word in about.split_whitespace() {
        if !line.is_empty() && line.len() + word.len() > 76 {
            text.extend(["# ", line.as_str(), "\n"]);
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        text.extend(["# ", line.as_str(), "\n"]);
    }
}

/// The description of a setting, or of a field of its table.
fn describe(schema: &Value, name: &str, field: Option<&str>) -> String {
    let about = |value: &Value| value["description"].as_str().unwrap_or_default().to_owned();
    // A section may lie in another: `adaptive.window`.
    let mut property = schema;
    for part in name.split('.') {
        property = &resolve(schema, property)["properties"][part];
    }
    match field {
        None => about(property),
        Some(field) => {
            let target = resolve(schema, property);
            about(&target["properties"][field])
        }
    }
}

/// Follows a reference into `$defs`, also one wrapped to carry a description.
fn resolve<'a>(schema: &'a Value, property: &'a Value) -> &'a Value {
    let reference = property["$ref"].as_str().or_else(|| {
        ["allOf", "oneOf"].iter().find_map(|kind| {
            property[*kind]
                .as_array()?
                .iter()
                .find_map(|part| part["$ref"].as_str())
        })
    });
    match reference.and_then(|reference| reference.rsplit('/').next()) {
        Some(name) => &schema["$defs"][name],
        None => property,
    }
}

/// The JSON Schema (draft 2020-12) of the configuration file.
#[must_use]
pub fn schema() -> Value {
    let mut root = serde_json::to_value(Settings::schema()).unwrap_or_default();
    let mut parts = Vec::new();
    Settings::schemas(&mut parts);
    let defs: Map<String, Value> = parts
        .into_iter()
        .filter_map(|(name, part)| Some((name, serde_json::to_value(part).ok()?)))
        .collect();
    let defaults = serde_json::to_value(Settings::default()).unwrap_or_default();
    if let Value::Object(root) = &mut root {
        root.insert(
            "$schema".to_owned(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        root.insert("title".to_owned(), json!("ratelimiter configuration"));
        root.insert("$defs".to_owned(), Value::Object(defs));
        root.remove("required");
        if let Some(Value::Object(properties)) = root.get_mut("properties") {
            for (name, property) in properties {
                if let Value::Object(property) = property
                    && let Some(default) = defaults.get(name)
                    && !OPEN.contains(&name.as_str())
                {
                    property.insert("default".to_owned(), default.clone());
                }
            }
        }
    }
    relink(&mut root);
    root
}

/// Points references at `$defs`, where JSON Schema has what OpenAPI has elsewhere.
fn relink(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref") {
                *reference = reference.replace("#/components/schemas/", "#/$defs/");
            }
            fields.values_mut().for_each(relink);
        }
        Value::Array(items) => items.iter_mut().for_each(relink),
        _ => {}
    }
}

/// One setting in force, for `config show`.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Shown {
    /// Dotted path.
    pub path: String,
    /// Value; secrets are not shown.
    pub value: Value,
    /// Where it was given.
    pub origin: Origin,
}

/// Every setting in force with where it was given, in the order of the example; then the static
/// part.
#[must_use]
pub fn show(loaded: &Loaded) -> Vec<Shown> {
    let mut shown = Vec::new();
    let value = serde_json::to_value(&loaded.settings).unwrap_or_default();
    flatten(&value, &mut Vec::new(), &loaded.origins, &mut shown);
    shown
}

fn flatten(
    value: &Value,
    path: &mut Vec<String>,
    origins: &BTreeMap<String, Origin>,
    shown: &mut Vec<Shown>,
) {
    match value {
        Value::Object(fields) if !(fields.is_empty() && path.len() > 1) => {
            for (key, inner) in fields {
                path.push(key.clone());
                flatten(inner, path, origins, shown);
                path.pop();
            }
        }
        value => {
            let path = crate::policy::validate::dotted(path);
            shown.push(Shown {
                origin: origins.get(&path).cloned().unwrap_or(Origin::Default),
                path,
                value: value.clone(),
            });
        }
    }
}
