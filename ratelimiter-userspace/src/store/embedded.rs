//! The default store: redb in the state directory, one process at a time.
//!
//! | file | what |
//! |---|---|
//! | `lock` | held while an agent runs; its process id |
//! | `state.redb` | the document by rows, and the audit log |
//! | `document.good`, `document.good.1` | the last two good copies of the document, checksummed |
//! | `usage-<name>.bin`, `.bin.1` | usage blobs, checksummed, and the save before |
//! | `state.redb.damaged` | a database that could not be read, set aside |

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, Durability, ReadableDatabase as _, StorageBackend};

use super::boxed::Boxed;
use super::goodcopy::{self, checksum};
use super::lock::DirectoryLock;
use super::rows;
use super::{Change, MAX_CHANGES, NewChange, Store, StoreError, StoreStatus, check_blob};
use crate::policy::model::Document;

/// A document of more entries than this is not copied with every change, but with every
/// [`COPY_EVERY`]th: should the database be damaged, up to that many changes are lost with it.
const SMALL_DOCUMENT: usize = 10_000;
/// See [`SMALL_DOCUMENT`].
const COPY_EVERY: u64 = 64;
/// Memory redb may use for pages, in bytes: 64 MiB. Only what a document fills is taken; a tenth of
/// it made the first commit of a million prefixes write every page many times.
const CACHE_BYTES: usize = 64 << 20;

type OpenBackend = dyn Fn(&Path) -> std::io::Result<Box<dyn StorageBackend>> + Send + Sync;

/// Keeps configuration durably and usage as of the last save.
pub struct EmbeddedStore {
    directory: PathBuf,
    backend: Option<Box<OpenBackend>>,
    state: Mutex<State>,
    _lock: DirectoryLock,
}

struct State {
    /// Closed after an error and opened again by the next use.
    database: Option<Database>,
    document: Arc<Document>,
    /// Revision of the newest good copy.
    copied: u64,
    warnings: Vec<String>,
    /// What failed last, until it works again.
    failing: Option<String>,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store in `directory`, which is made (mode 0700) if it is not there.
    ///
    /// A database that cannot be read is set aside as `state.redb.damaged` and the last good copy
    /// is used; [`Store::status`] then says so.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if another process has it open; [`StoreError::Damaged`] if the
    /// database cannot be read and neither can a good copy: nothing is guessed then.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(directory.into(), None)
    }

    /// As [`EmbeddedStore::open`], the database's bytes kept by another backend: for tests that
    /// make a disk fail.
    pub fn open_on(
        directory: impl Into<PathBuf>,
        backend: impl Fn(&Path) -> std::io::Result<Box<dyn StorageBackend>> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        Self::open_with(directory.into(), Some(Box::new(backend)))
    }

    fn open_with(
        directory: PathBuf,
        backend: Option<Box<OpenBackend>>,
    ) -> Result<Self, StoreError> {
        make_directory(&directory)?;
        let lock = DirectoryLock::take(&directory.join("lock"))?;
        let mut warnings = Vec::new();
        let (database, document) = match open_and_read(&directory, backend.as_deref()) {
            Ok((database, document)) => (database, document),
            Err(Failure::Io(error)) => return Err(error),
            Err(Failure::Damaged(what)) => {
                recover(&directory, backend.as_deref(), &what, &mut warnings)?
            }
        };
        let copied = goodcopy::read(&directory.join("document.good"))
            .map_or(0, |document| document.revision);
        Ok(Self {
            directory,
            backend,
            state: Mutex::new(State {
                database: Some(database),
                document: Arc::new(document),
                copied,
                warnings,
                failing: None,
            }),
            _lock: lock,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic inside leaves `database` closed or whole; the document is swapped last.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn database_path(&self) -> PathBuf {
        self.directory.join("state.redb")
    }

    /// Runs `work` on the open database; an error closes it, and the next use opens it again.
    fn with_database<T>(
        &self,
        state: &mut State,
        action: &'static str,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let path = self.database_path();
        let io = |source| StoreError::Io {
            action,
            path: path.display().to_string(),
            source,
        };
        if state.database.is_none() {
            let database = open_database(&self.directory, self.backend.as_deref())
                .map_err(|failure| failure.into_error(&path))?;
            state.database = Some(database);
        }
        let Some(database) = &state.database else {
            return Err(io(std::io::Error::other("the database is closed")));
        };
        let result = catch_unwind(AssertUnwindSafe(|| work(database)))
            .unwrap_or_else(|_| Err(redb::Error::Corrupted("redb panicked".to_owned())));
        match result {
            Ok(value) => {
                state.failing = None;
                Ok(value)
            }
            Err(error) => {
                state.database = None;
                let source = match error {
                    redb::Error::Io(error) => error,
                    other => std::io::Error::other(other.to_string()),
                };
                let error = io(source);
                state.failing = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn copy(&self, state: &mut State) {
        let document = Arc::clone(&state.document);
        if state.copied == document.revision {
            return;
        }
        // A copy that cannot be written is a warning: the database itself has the change.
        match goodcopy::write(&self.directory.join("document.good"), &document) {
            Ok(()) => state.copied = document.revision,
            Err(error) => {
                state.failing = Some(format!(
                    "cannot write `{}`: {error}; a damaged database would lose changes since \
                     revision {}",
                    self.directory.join("document.good").display(),
                    state.copied
                ));
            }
        }
    }

    fn blob_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("usage-{name}.bin"))
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        let mut state = self.state();
        // A large document's copy takes seconds, which a service that stops does not have.
        if entries(&state.document) <= SMALL_DOCUMENT {
            self.copy(&mut state);
        }
    }
}

fn entries(document: &Document) -> usize {
    document.clients.len() + document.allow.len() + document.block.len()
}

/// A usage blob as it was found.
enum Blob {
    Good(Vec<u8>),
    Damaged,
    Absent,
}

fn read_blob(path: &Path) -> Result<Blob, StoreError> {
    let row = match fs::read(path) {
        Ok(row) => row,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Blob::Absent),
        Err(source) => {
            return Err(StoreError::Io {
                action: "read",
                path: path.display().to_string(),
                source,
            });
        }
    };
    Ok(match row.split_first_chunk::<8>() {
        Some((sum, bytes)) if u64::from_le_bytes(*sum) == checksum(bytes) => {
            Blob::Good(bytes.to_vec())
        }
        _ => Blob::Damaged,
    })
}

/// Why a database could not be opened.
enum Failure {
    Io(StoreError),
    Damaged(String),
}

impl Failure {
    fn into_error(self, path: &Path) -> StoreError {
        match self {
            Self::Io(error) => error,
            Self::Damaged(what) => StoreError::Damaged {
                path: path.display().to_string(),
                what,
            },
        }
    }
}

fn make_directory(directory: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| StoreError::Io {
            action: "make the directory",
            path: directory.display().to_string(),
            source,
        })
}

fn open_database(directory: &Path, backend: Option<&OpenBackend>) -> Result<Database, Failure> {
    let path = directory.join("state.redb");
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        match backend {
            None => builder.create(&path),
            Some(backend) => builder.create_with_backend(Boxed(backend(&path)?)),
        }
    }))
    .map_err(|_| Failure::Damaged("redb panicked while opening it".to_owned()))?;
    opened.map_err(|error| match error {
        redb::DatabaseError::Storage(redb::StorageError::Io(source))
            if source.kind() != std::io::ErrorKind::InvalidData
                && source.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            Failure::Io(StoreError::Io {
                action: "open",
                path: path.display().to_string(),
                source,
            })
        }
        redb::DatabaseError::DatabaseAlreadyOpen => Failure::Io(StoreError::Locked {
            path: path.display().to_string(),
            holder: "unknown".to_owned(),
        }),
        other => Failure::Damaged(other.to_string()),
    })
}

/// Opens, verifies every page, and reads the document.
fn open_and_read(
    directory: &Path,
    backend: Option<&OpenBackend>,
) -> Result<(Database, Document), Failure> {
    let mut database = open_database(directory, backend)?;
    let checked = catch_unwind(AssertUnwindSafe(|| match database.check_integrity() {
        Ok(true) => rows::read(&database),
        Ok(false) => Err("its pages do not fit their checksums".to_owned()),
        Err(error) => Err(error.to_string()),
    }))
    .unwrap_or_else(|_| Err("redb panicked while reading it".to_owned()));
    checked
        .map(|document| (database, document))
        .map_err(Failure::Damaged)
}

/// Sets a damaged database aside and starts from the newest good copy.
fn recover(
    directory: &Path,
    backend: Option<&OpenBackend>,
    what: &str,
    warnings: &mut Vec<String>,
) -> Result<(Database, Document), StoreError> {
    let path = directory.join("state.redb");
    let good = directory.join("document.good");
    let mut tried = vec![what.to_owned()];
    let mut found = None;
    for copy in [good.clone(), goodcopy::older(&good)] {
        match goodcopy::read(&copy) {
            Ok(document) => {
                found = Some((copy, document));
                break;
            }
            Err(error) => tried.push(format!("`{}`: {error}", copy.display())),
        }
    }
    let Some((copy, document)) = found else {
        return Err(StoreError::Damaged {
            path: path.display().to_string(),
            what: format!(
                "{}; put a good file in its place, or remove it to start empty",
                tried.join("; ")
            ),
        });
    };
    let aside = directory.join("state.redb.damaged");
    fs::rename(&path, &aside).map_err(|source| StoreError::Io {
        action: "set aside",
        path: path.display().to_string(),
        source,
    })?;
    let database =
        open_database(directory, backend).map_err(|failure| failure.into_error(&path))?;
    let written = (|| {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        rows::write(&transaction, &Document::default(), &document)?;
        transaction.commit()?;
        Ok::<(), redb::Error>(())
    })();
    written.map_err(|error| StoreError::Io {
        action: "write",
        path: path.display().to_string(),
        source: std::io::Error::other(error.to_string()),
    })?;
    warnings.push(format!(
        "`{}` was damaged ({what}) and is now `{}`; `{}` is in force, revision {}; the audit log \
         starts anew",
        path.display(),
        aside.display(),
        copy.display(),
        document.revision
    ));
    Ok((database, document))
}

/// Commits a document and its audit entry in one transaction.
fn commit_rows(
    database: &Database,
    before: &Document,
    after: &Document,
    entry: &Change,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    rows::write(&transaction, before, after)?;
    {
        let mut changes = transaction.open_table(rows::CHANGES)?;
        let row = rows::sealed(entry).map_err(redb::Error::Corrupted)?;
        changes.insert(after.revision, row.as_slice())?;
        let beyond = after.revision.saturating_sub(MAX_CHANGES as u64);
        changes.retain_in(..=beyond, |_, _| false)?;
    }
    transaction.commit()?;
    Ok(())
}

impl Store for EmbeddedStore {
    fn document(&self) -> Result<Arc<Document>, StoreError> {
        Ok(Arc::clone(&self.state().document))
    }

    fn commit(
        &self,
        expected: Option<u64>,
        mut document: Document,
        change: NewChange,
    ) -> Result<Arc<Document>, StoreError> {
        let mut state = self.state();
        let before = Arc::clone(&state.document);
        let found = before.revision;
        if let Some(expected) = expected
            && expected != found
        {
            return Err(StoreError::Conflict { expected, found });
        }
        document.revision = found + 1;
        let entry = Change {
            revision: document.revision,
            change: change.bounded(),
        };
        self.with_database(&mut state, "write", |database| {
            commit_rows(database, &before, &document, &entry)
        })?;
        let size = entries(&document);
        state.document = Arc::new(document);
        // Without any copy a damaged database could not be left behind at all.
        let due = state.copied == 0 || state.document.revision >= state.copied + COPY_EVERY;
        if size <= SMALL_DOCUMENT || due {
            self.copy(&mut state);
        }
        Ok(Arc::clone(&state.document))
    }

    fn changes(&self, before: Option<u64>, limit: usize) -> Result<Vec<Change>, StoreError> {
        let mut state = self.state();
        self.with_database(&mut state, "read", |database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(rows::CHANGES) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let mut found = Vec::new();
            for row in table.range(..before.unwrap_or(u64::MAX))?.rev() {
                if found.len() >= limit.min(MAX_CHANGES) {
                    break;
                }
                let (_, row) = row?;
                // One unreadable entry is no reason to hide the others.
                if let Ok(entry) = rows::unsealed(row.value()) {
                    found.push(entry);
                }
            }
            Ok(found)
        })
    }

    fn save_usage(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        check_blob(name, bytes.len())?;
        let path = self.blob_path(name);
        let sum = checksum(bytes).to_le_bytes();
        goodcopy::keep_older(&path);
        goodcopy::replace(&path, &[&sum, bytes]).map_err(|source| StoreError::Io {
            action: "write",
            path: path.display().to_string(),
            source,
        })
    }

    fn load_usage(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_blob(name, 0)?;
        let path = self.blob_path(name);
        let warn = |what: &str| {
            let mut state = self.state();
            let warning = format!("`{}` is damaged: {what}", path.display());
            if !state.warnings.contains(&warning) {
                state.warnings.push(warning);
            }
        };
        match read_blob(&path)? {
            Blob::Good(bytes) => return Ok(Some(bytes)),
            Blob::Absent => return Ok(None),
            Blob::Damaged => {}
        }
        if let Ok(Blob::Good(bytes)) = read_blob(&goodcopy::older(&path)) {
            warn("its checksum does not fit; the save before it is used");
            return Ok(Some(bytes));
        }
        warn("its checksum does not fit; that usage starts at zero");
        Ok(None)
    }

    fn status(&self) -> StoreStatus {
        let state = self.state();
        StoreStatus {
            kind: "embedded",
            location: self.directory.display().to_string(),
            warnings: state
                .warnings
                .iter()
                .chain(&state.failing)
                .cloned()
                .collect(),
        }
    }
}
