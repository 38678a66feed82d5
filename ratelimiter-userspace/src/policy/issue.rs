//! Issues: where, and what is wrong or probably not meant.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Errors and warnings reported of each kind; what is beyond is counted.
pub(super) const MAX_ISSUES: usize = 100;

/// One thing that is wrong, or probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Issue {
    /// Where: names of fields, ids and positions from the document inwards.
    pub path: Vec<String>,
    /// What: names the thing, the value and the bound.
    pub message: String,
}

impl Issue {
    /// An issue at `path`.
    #[must_use]
    pub fn at(path: &[&str], message: String) -> Self {
        Self {
            path: path.iter().map(|&part| part.to_owned()).collect(),
            message,
        }
    }

    /// The path as it is written in TOML: `clients."a.b".sources[2]`.
    #[must_use]
    pub fn dotted(&self) -> String {
        dotted(&self.path)
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.dotted(), self.message)
    }
}

impl std::error::Error for Issue {}

/// Writes a path as TOML does; positions in brackets, other parts quoted where they must be.
#[must_use]
pub fn dotted(path: &[String]) -> String {
    let bare = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-')
    };
    let mut text = String::new();
    let mut before = "";
    for part in path {
        let position = matches!(
            before,
            "sources" | "interfaces" | "rights" | "trusted_proxies"
        ) || (text == before && matches!(before, "allow" | "block"));
        if position && !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()) {
            text.push('[');
            text.push_str(part);
            text.push(']');
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            if bare(part) {
                text.push_str(part);
            } else {
                text.push('"');
                text.extend(part.escape_debug());
                text.push('"');
            }
        }
        before = part;
    }
    text
}

/// The outcome of [`validate`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Reasons to refuse the document.
    pub errors: Vec<Issue>,
    /// Legal, and probably not meant.
    pub warnings: Vec<Issue>,
}

/// Collects issues up to [`MAX_ISSUES`] and counts the rest.
#[derive(Default)]
pub(super) struct Collector {
    issues: Vec<Issue>,
    beyond: u64,
}

impl Collector {
    pub(super) fn push(&mut self, path: &[&str], message: String) {
        if self.issues.len() < MAX_ISSUES {
            self.issues.push(Issue::at(path, message));
        } else {
            self.beyond += 1;
        }
    }

    pub(super) fn finish(mut self) -> Vec<Issue> {
        if self.beyond > 0 {
            self.issues.push(Issue::at(
                &[],
                format!("and {} more of this kind", self.beyond),
            ));
        }
        self.issues
    }
}
