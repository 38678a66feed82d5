//! One entry of the audit log: who changed what, when, from what to what.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Entries the audit log keeps; the oldest go first.
pub const MAX_CHANGES: usize = 1_000;
/// Largest `before` or `after` value kept with an entry, in bytes of JSON; larger ones are replaced
/// by a note of their size.
pub const MAX_VALUE_BYTES: usize = 16 * 1024;

/// What the caller says about a change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewChange {
    /// When, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// Who: a credential's name, `cli`, `config`, `escalation`, `rollback`.
    pub by: String,
    /// What was done, for people: `set limit default of client alice`.
    pub what: String,
    /// The object that changed, as a path: `clients/alice`, `block/10.0.0.0/8`.
    pub path: String,
    /// The object before; null if it did not exist.
    #[schema(value_type = Object)]
    pub before: serde_json::Value,
    /// The object afterwards; null if it was removed.
    #[schema(value_type = Object)]
    pub after: serde_json::Value,
    /// When a `--try` change takes itself back, milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_by_unix_ms: Option<u64>,
}

/// An entry of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// Revision of the document that this change made.
    pub revision: u64,
    /// What was said about it.
    #[serde(flatten)]
    pub change: NewChange,
}

impl NewChange {
    /// Returns the entry with oversize values replaced by a note, so that the log stays bounded
    /// whatever people import: at most about 33 KiB an entry.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for value in [&mut self.before, &mut self.after] {
            let size = json_size(value, MAX_VALUE_BYTES);
            if size > MAX_VALUE_BYTES {
                *value = serde_json::json!({
                    "omitted": format!("more than {MAX_VALUE_BYTES} bytes of JSON")
                });
            }
        }
        for text in [&mut self.by, &mut self.what, &mut self.path] {
            if text.len() > 512 {
                let end = (0..=512)
                    .rev()
                    .find(|at| text.is_char_boundary(*at))
                    .unwrap_or(0);
                text.truncate(end);
            }
        }
        self
    }
}

/// Rough size of `value` as JSON; stops counting soon after `limit`.
fn json_size(value: &serde_json::Value, limit: usize) -> usize {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 20,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => {
            let mut size = 2;
            for item in items {
                size += json_size(item, limit) + 1;
                if size > limit {
                    break;
                }
            }
            size
        }
        Value::Object(fields) => {
            let mut size = 2;
            for (key, item) in fields {
                size += key.len() + 4 + json_size(item, limit);
                if size > limit {
                    break;
                }
            }
            size
        }
    }
}
