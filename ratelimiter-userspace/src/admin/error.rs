//! Why an operation was not done. The policy in force is the one before, after any of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One refused field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// JSON pointer to the field: `/limits/default/burst`; empty for the whole body.
    pub pointer: String,
    /// The field, its value and the bound, as one sentence.
    pub detail: String,
}

impl FieldError {
    /// A refusal of the field at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

/// Why an operation was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// There is no such thing.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// The kind of thing: `client`, `segment`, `limit`, `block`.
        what: &'static str,
        /// Its name as asked for.
        name: String,
    },
    /// The request is understood and wrong; every refused field is named.
    #[error("{}", sentences(.0))]
    Invalid(Vec<FieldError>),
    /// The request does not fit into the tables.
    #[error("{0}")]
    Capacity(String),
    /// The object is not what the caller last saw.
    #[error("`{path}` has changed: its tag is {found}, not {expected}{}", said(.revisions.as_ref()))]
    Precondition {
        /// The object as a path: `clients/alice`.
        path: String,
        /// Tags the caller named.
        expected: String,
        /// Tag now, or `none`.
        found: String,
        /// Revision of the fleet's configuration that this host had when it was asked, and the one
        /// that another host made meanwhile.
        revisions: Option<(u64, u64)>,
    },
    /// Another change of the same object waits to be confirmed.
    #[error(
        "`{path}` has a change on trial (revision {revision}); confirm it or roll it back first"
    )]
    Pending {
        /// The object as a path.
        path: String,
        /// Revision of the change on trial.
        revision: u64,
    },
    /// The object is in the configuration file, which the API does not write.
    #[error("`{path}` is set in the configuration file; change it there and reload")]
    InFile {
        /// The object as a path.
        path: String,
    },
    /// Something else is in the way: a foreign program, clients of a segment.
    #[error("{0}")]
    Conflict(String),
    /// The agent's process lacks a right on this machine.
    #[error("{0}")]
    Permission(String),
    /// This machine cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// Not now: starting, stopping, or the store or the kernel does not answer.
    #[error("{0}")]
    Unavailable(String),
}

fn said(revisions: Option<&(u64, u64)>) -> String {
    revisions.map_or_else(String::new, |(had, found)| {
        format!(
            "; the fleet's configuration is at revision {found}, this host had {had} when it was \
             asked"
        )
    })
}

fn sentences(errors: &[FieldError]) -> String {
    let sentences: Vec<&str> = errors.iter().map(|error| error.detail.as_str()).collect();
    sentences.join("; ")
}

impl AdminError {
    /// The same, where others changed the fleet's configuration from `had` to `found` meanwhile.
    #[must_use]
    pub fn between(mut self, had: u64, found: u64) -> Self {
        if let Self::Precondition { revisions, .. } = &mut self
            && had != found
        {
            *revisions = Some((had, found));
        }
        self
    }

    /// A single refused field.
    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError::new(pointer, detail)])
    }

    /// The stable word of the error's kind, the last part of a problem's `type`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not-found",
            Self::Invalid(_) => "invalid",
            Self::Capacity(_) => "capacity",
            Self::Precondition { .. } => "precondition-failed",
            Self::Pending { .. } => "change-pending",
            Self::InFile { .. } => "set-in-file",
            Self::Conflict(_) => "conflict",
            Self::Permission(_) => "agent-permission",
            Self::Unsupported(_) => "unsupported",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_every_refused_field() {
        let error = AdminError::Invalid(vec![
            FieldError::new("/burst", "`burst` is 0; it must be 1 or more"),
            FieldError::new("/rate_limit", "`rate_limit` is 0; it must be 1 or more"),
        ]);
        assert_eq!(
            error.to_string(),
            "`burst` is 0; it must be 1 or more; `rate_limit` is 0; it must be 1 or more"
        );
        assert_eq!(error.kind(), "invalid");
    }
}
