//! What outlives the process: the configuration, its audit log, and saved usage.
//!
//! The trait is synchronous and every implementation may block on a disk or a socket: an async
//! caller wraps it in `spawn_blocking`. Nothing here knows the kernel, HTTP or a clock: times are
//! arguments.
//!
//! - [`EmbeddedStore`]: redb in the state directory; the default
//! - [`MemoryStore`]: forgets everything; for tests and `agent --ephemeral`
mod boxed;
pub mod change;
mod embedded;
mod goodcopy;
mod lock;
mod memory;
mod rows;

use std::sync::Arc;

pub use change::{Change, MAX_CHANGES, NewChange};
pub use embedded::EmbeddedStore;
pub use memory::MemoryStore;

use crate::policy::model::Document;

/// Longest name of a usage blob, in bytes: `[a-z0-9_-]+`.
pub const MAX_BLOB_NAME_BYTES: usize = 63;
/// Largest usage blob, in bytes: 256 MiB.
pub const MAX_BLOB_BYTES: usize = 256 << 20;

/// Why the store did not do what it was asked. The previous state is in force after any of them.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else changed the document first: read it again and repeat.
    #[error("the configuration is at revision `{found}`, not at the expected `{expected}`")]
    Conflict {
        /// Revision the caller built upon.
        expected: u64,
        /// Revision in force.
        found: u64,
    },
    /// Another process owns the state directory.
    #[error(
        "`{path}` is in use by process {holder}; stop it, or give this agent another `state_dir`"
    )]
    Locked {
        /// The lock file.
        path: String,
        /// Process id of the holder as it wrote it, or `unknown`.
        holder: String,
    },
    /// What is on disk is not what was written, and no good copy could be read either.
    #[error("`{path}` is damaged: {what}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The disk refused; nothing was changed.
    #[error("cannot {action} `{path}`: {source}; the previous state stays in force")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A name or a size outside its bounds.
    #[error("{0}")]
    Invalid(String),
}

/// What became of the store when it was opened, and how it is now. Shown in `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoreStatus {
    /// `embedded`, `memory`.
    pub kind: &'static str,
    /// Where it keeps things, for people.
    pub location: String,
    /// A sentence for each thing that is not as it should be: a damaged file that was set aside, a
    /// write that failed. Empty when all is well.
    pub warnings: Vec<String>,
}

/// The place where configuration and usage are kept.
///
/// A method that returns `Ok` has made its effect durable (as durable as the implementation is); one
/// that returns an error has changed nothing. All methods may be called from any thread at once.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Returns the newest document. A store never written to has the default one at revision 0.
    fn document(&self) -> Result<Arc<Document>, StoreError>;

    /// Replaces the document and appends `change` to the audit log, both or neither.
    ///
    /// With `expected`, only if the document in force has that revision (`If-Match`). The stored
    /// document's revision is the previous one plus one, whatever `document.revision` says; it is
    /// returned with its number.
    fn commit(
        &self,
        expected: Option<u64>,
        document: Document,
        change: NewChange,
    ) -> Result<Arc<Document>, StoreError>;

    /// Returns the newest `limit` entries of the audit log that are older than revision `before`
    /// (newest of all without it), newest first.
    fn changes(&self, before: Option<u64>, limit: usize) -> Result<Vec<Change>, StoreError>;

    /// Keeps `bytes` under `name` (`[a-z0-9_-]+`, at most [`MAX_BLOB_NAME_BYTES`]), replacing what
    /// was there at once: a reader sees the old or the new blob whole.
    fn save_usage(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Returns what was kept under `name`; `None` if nothing was, or if it was torn (which
    /// [`Store::status`] then says).
    fn load_usage(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// How the store is.
    fn status(&self) -> StoreStatus;
}

/// Refuses blob names that could leave the directory or blobs that could fill it.
pub(crate) fn check_blob(name: &str, bytes: usize) -> Result<(), StoreError> {
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_' || c == b'-';
    if name.is_empty() || name.len() > MAX_BLOB_NAME_BYTES || !name.bytes().all(legal) {
        return Err(StoreError::Invalid(format!(
            "usage name `{}` is not 1 to {MAX_BLOB_NAME_BYTES} characters of a-z, 0-9, _ and -",
            name.chars()
                .take(MAX_BLOB_NAME_BYTES)
                .collect::<String>()
                .escape_debug()
        )));
    }
    if bytes > MAX_BLOB_BYTES {
        return Err(StoreError::Invalid(format!(
            "usage `{name}` has {bytes} bytes; it must have at most {MAX_BLOB_BYTES}"
        )));
    }
    Ok(())
}
