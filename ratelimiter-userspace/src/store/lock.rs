//! One process per state directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use super::StoreError;

/// Holds the directory until it is dropped, or the process ends in any way.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let io = |action, source| StoreError::Io {
            action,
            path: shown.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| io("open", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = file.take(32).read_to_string(&mut holder);
                let known = read.is_ok() && holder.trim().parse::<u32>().is_ok();
                return Err(StoreError::Locked {
                    path: shown,
                    holder: if known {
                        holder.trim().to_owned()
                    } else {
                        "unknown".to_owned()
                    },
                });
            }
            Err(TryLockError::Error(error)) => return Err(io("lock", error)),
        }
        // For the message above only: a disk that is full need not stop the agent.
        let noted = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        drop(noted);
        Ok(Self { _file: file })
    }
}
