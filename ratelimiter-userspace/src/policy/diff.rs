//! What differs between two documents: for `--dry-run`, `limits diff` and the audit log.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::model::Document;
use super::validate::dotted;

/// Differences listed; those beyond are counted.
pub const MAX_DIFFERENCES: usize = 1_000;

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// What differs: names of fields, ids and prefixes from the document inwards.
    pub path: Vec<String>,
    /// What was there; absent for what is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub before: Option<Value>,
    /// What is there; absent for what is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub after: Option<Value>,
}

/// All differences.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    /// The first [`MAX_DIFFERENCES`], in the order of the document.
    pub differences: Vec<Difference>,
    /// How many more there are.
    pub beyond: u64,
}

impl Diff {
    /// Whether the documents say the same; their revisions do not count.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.differences.is_empty()
    }

    fn push(&mut self, path: &[String], before: Option<Value>, after: Option<Value>) {
        if self.differences.len() < MAX_DIFFERENCES {
            self.differences.push(Difference {
                path: path.to_vec(),
                before,
                after,
            });
        } else {
            self.beyond += 1;
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = dotted(&self.path);
        match (&self.before, &self.after) {
            (None, Some(after)) => write!(f, "+ {path} = {after}"),
            (Some(before), None) => write!(f, "- {path} = {before}"),
            (before, after) => {
                let show = |value: &Option<Value>| {
                    value
                        .as_ref()
                        .map_or_else(|| "-".to_owned(), Value::to_string)
                };
                write!(f, "~ {path}: {} -> {}", show(before), show(after))
            }
        }
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, difference) in self.differences.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{difference}")?;
        }
        if self.beyond > 0 {
            write!(f, "\nand {} more", self.beyond)?;
        }
        Ok(())
    }
}

/// Returns what differs from `before` to `after`, down to single fields.
#[must_use]
pub fn diff(before: &Document, after: &Document) -> Diff {
    let mut diff = Diff::default();
    maps("segments", &before.segments, &after.segments, &mut diff);
    maps("clients", &before.clients, &after.clients, &mut diff);
    maps("allow", &before.allow, &after.allow, &mut diff);
    maps("block", &before.block, &after.block, &mut diff);
    diff
}

fn maps<K: Ord + ToString, V: PartialEq + Serialize>(
    kind: &str,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    diff: &mut Diff,
) {
    let json = |value: &V| serde_json::to_value(value).unwrap_or_default();
    let path = |key: &K| vec![kind.to_owned(), key.to_string()];
    let mut old = before.iter().peekable();
    for (key, value) in after {
        while let Some((gone, was)) = old.next_if(|(old, _)| *old < key) {
            diff.push(&path(gone), Some(json(was)), None);
        }
        match old.next_if(|(old, _)| *old == key) {
            Some((_, was)) if was == value => {}
            Some((_, was)) => values(&mut path(key), &json(was), &json(value), diff),
            None => diff.push(&path(key), None, Some(json(value))),
        }
    }
    for (gone, was) in old {
        diff.push(&path(gone), Some(json(was)), None);
    }
}

fn values(path: &mut Vec<String>, before: &Value, after: &Value, diff: &mut Diff) {
    if before == after {
        return;
    }
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        diff.push(path, Some(before.clone()), Some(after.clone()));
        return;
    };
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        path.push(key.clone());
        match (old.get(key), new.get(key)) {
            (Some(before), Some(after)) => values(path, before, after, diff),
            (before, after) => diff.push(path, before.cloned(), after.cloned()),
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::ListEntry;

    fn document(text: &str) -> Document {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn names_what_is_new_gone_and_changed() {
        let before = document(
            "[segments.free]\nweight = 1\n[clients.a]\n[block.\"10.0.0.0/8\"]\n[clients.same]",
        );
        let after =
            document("[segments.free]\nweight = 2\n[clients.\"b.c\"]\n[clients.same]\n[block]\n");
        let text = diff(&before, &after).to_string();
        assert_eq!(
            text,
            "~ segments.free.weight: 1 -> 2\n\
             - clients.a = {\"limits\":{}}\n\
             + clients.\"b.c\" = {\"limits\":{}}\n\
             - block.\"10.0.0.0/8\" = {}"
        );
    }

    #[test]
    fn equal_documents_do_not_differ_whatever_their_revision() {
        let (a, b) = (document("revision = 1"), document("revision = 2"));
        assert!(diff(&a, &b).is_empty());
    }

    #[test]
    fn counts_what_it_does_not_list() {
        let mut after = Document::default();
        for n in 0..=MAX_DIFFERENCES as u32 {
            let prefix = ipnet::IpNet::from(std::net::IpAddr::from(n.to_be_bytes()));
            after.block.insert(prefix, ListEntry::default());
        }
        let diff = diff(&Document::default(), &after);
        assert_eq!((diff.differences.len(), diff.beyond), (MAX_DIFFERENCES, 1));
        assert!(diff.to_string().ends_with("and 1 more"));
    }
}
