//! The part of the policy that stands in the configuration file.

use crate::config::Settings;
use crate::policy::model::{Document, ListEntry};
use crate::policy::resolve::normalise;

/// The document that the file amounts to.
pub(super) fn fixed_document(settings: &Settings) -> Document {
    let entry = |reason: &Option<String>| ListEntry {
        reason: reason.clone(),
        by: Some("config".to_owned()),
        expires_unix_ms: None,
    };
    Document {
        revision: 0,
        segments: settings.segments.clone(),
        clients: settings.clients.clone(),
        allow: settings
            .allow
            .iter()
            .map(|e| (e.prefix, entry(&e.reason)))
            .collect(),
        block: settings
            .block
            .iter()
            .map(|e| (e.prefix, entry(&e.reason)))
            .collect(),
    }
}

/// The stored document with the file's over it, complete with the defaults.
pub(super) fn overlay(stored: &Document, fixed: &Document) -> Document {
    let mut merged = stored.clone();
    merged.segments.extend(fixed.segments.clone());
    merged.clients.extend(fixed.clients.clone());
    merged.allow.extend(fixed.allow.clone());
    merged.block.extend(fixed.block.clone());
    normalise(&mut merged);
    merged
}
