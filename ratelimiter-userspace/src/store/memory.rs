//! A store that forgets everything with the process.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Change, MAX_CHANGES, NewChange, Store, StoreError, StoreStatus, check_blob};
use crate::policy::model::Document;

/// Keeps everything in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    document: Arc<Document>,
    changes: VecDeque<Change>,
    usage: BTreeMap<String, Vec<u8>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below is whole before the guard is released, so poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
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
        let found = state.document.revision;
        if let Some(expected) = expected
            && expected != found
        {
            return Err(StoreError::Conflict { expected, found });
        }
        document.revision = found + 1;
        state.document = Arc::new(document);
        state.changes.push_back(Change {
            revision: found + 1,
            change: change.bounded(),
        });
        while state.changes.len() > MAX_CHANGES {
            state.changes.pop_front();
        }
        Ok(Arc::clone(&state.document))
    }

    fn changes(&self, before: Option<u64>, limit: usize) -> Result<Vec<Change>, StoreError> {
        Ok(self
            .state()
            .changes
            .iter()
            .rev()
            .filter(|entry| before.is_none_or(|before| entry.revision < before))
            .take(limit.min(MAX_CHANGES))
            .cloned()
            .collect())
    }

    fn save_usage(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        check_blob(name, bytes.len())?;
        self.state().usage.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn load_usage(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        check_blob(name, 0)?;
        Ok(self.state().usage.get(name).cloned())
    }

    fn status(&self) -> StoreStatus {
        StoreStatus {
            kind: "memory",
            location: "memory (nothing outlives the process)".to_owned(),
            warnings: Vec::new(),
        }
    }
}
