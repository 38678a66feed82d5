//! What is asked before a change and answered after it.

use std::collections::BTreeMap;

use crate::admin::edit::object;
use crate::admin::views::{Changed, Difference};
use crate::admin::{AdminError, IfMatch, Result};
use crate::agent::tag::{shown_tag, tag_of};
use crate::policy::model::{Document, Mode};
use crate::policy::set::Compiled;

use super::Core;

/// Differences listed in an answer.
const MAX_DIFFERENCES: usize = 1_000;

impl Core {
    pub(super) fn check_writable(&self, path: &str) -> Result<()> {
        if path != "document" && !object(&self.fixed, path).is_null() {
            return Err(AdminError::InFile {
                path: path.to_owned(),
            });
        }
        let other = self
            .trials
            .iter()
            .find(|trial| trial.path == path || trial.path == "document" || path == "document");
        match other {
            Some(trial) => Err(AdminError::Pending {
                path: trial.path.clone(),
                revision: trial.revision,
            }),
            None => Ok(()),
        }
    }

    pub(super) fn check_condition(&self, path: &str, condition: Option<&IfMatch>) -> Result<()> {
        let Some(condition) = condition else {
            return Ok(());
        };
        let found = shown_tag(&self.stored, &self.document, path);
        let (holds, expected) = match condition {
            IfMatch::Exists => (found.is_some(), "any".to_owned()),
            // What only the file or a default has may be created.
            IfMatch::Absent => (
                tag_of(&object(&self.stored, path)).is_none(),
                "none".to_owned(),
            ),
            IfMatch::Tags(tags) => (
                found.as_ref().is_some_and(|found| tags.contains(found)),
                tags.join(", "),
            ),
        };
        if holds {
            return Ok(());
        }
        Err(AdminError::Precondition {
            path: path.to_owned(),
            expected,
            found: found.unwrap_or_else(|| "none".to_owned()),
            revisions: None,
        })
    }

    pub(super) fn answer(
        &self,
        path: &str,
        what: String,
        edited: &Document,
        compiled: &Compiled,
    ) -> Changed {
        let mut changed = Changed {
            revision: self.stored.revision,
            path: path.to_owned(),
            what,
            tag: (path != "document")
                .then(|| tag_of(&object(edited, path)))
                .flatten(),
            ..Changed::default()
        };
        differences(&self.stored, edited, &mut changed);
        self.warn(compiled, &mut changed);
        changed
    }

    pub(super) fn warn(&self, compiled: &Compiled, changed: &mut Changed) {
        if self.inputs.mode == Mode::Shadow {
            changed
                .warnings
                .push("the agent runs in shadow: it counts and drops nothing".to_owned());
        }
        let issues = compiled.warnings.iter().map(ToString::to_string);
        changed.warnings.extend(issues.take(20));
    }
}

/// Names the entries of one map that differ.
fn keys<K: Ord + ToString, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    kind: &str,
    put: &mut dyn FnMut(String),
) {
    for (key, value) in after {
        if before.get(key) != Some(value) {
            put(format!("{kind}/{}", key.to_string()));
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        put(format!("{kind}/{}", key.to_string()));
    }
}

/// Lists the objects that differ.
pub(super) fn differences(before: &Document, after: &Document, changed: &mut Changed) {
    let mut put = |path: String| {
        let difference = Difference {
            before: object(before, &path),
            after: object(after, &path),
            path,
        };
        changed.changed = true;
        changed.differences_total += 1;
        if changed.differences.len() < MAX_DIFFERENCES {
            changed.differences.push(difference);
        }
    };
    keys(&before.segments, &after.segments, "segments", &mut put);
    keys(&before.clients, &after.clients, "clients", &mut put);
    keys(&before.allow, &after.allow, "allow", &mut put);
    keys(&before.block, &after.block, "block", &mut put);
}
