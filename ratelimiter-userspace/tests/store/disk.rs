//! What only a disk can do wrong: restarts, damage, a second process, no space.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ratelimiter_userspace::store::{EmbeddedStore, Store as _, StoreError};

use crate::{change, document};

fn open(directory: &Path) -> EmbeddedStore {
    EmbeddedStore::open(directory).unwrap()
}

#[test]
fn a_restart_finds_what_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for n in 1..=3 {
        store.commit(None, document(n), change("a")).unwrap();
    }
    store.save_usage("tracked", b"usage").unwrap();
    let before = store.document().unwrap();
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.document().unwrap(), before);
    assert_eq!(store.changes(None, 10).unwrap().len(), 3);
    assert_eq!(store.load_usage("tracked").unwrap().unwrap(), b"usage");
    assert!(store.status().warnings.is_empty());
}

#[test]
fn an_agent_that_was_killed_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.commit(None, document(5), change("a")).unwrap();
    // As SIGKILL leaves it: the files as they are, nothing closed.
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let after = open(copy.path());
    assert_eq!(after.document().unwrap(), store.document().unwrap());
    assert!(after.status().warnings.is_empty(), "{:?}", after.status());
}

#[test]
fn a_second_process_is_refused_with_the_first_ones_id() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let error = EmbeddedStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }));
    let sentence = format!("is in use by process {};", std::process::id());
    assert!(error.to_string().contains(&sentence), "{error}");
    drop(store);
    open(directory.path());
}

fn damage(path: &Path, from: u64, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    file.write_all(bytes).unwrap();
}

fn with_revision_2(directory: &Path) {
    let store = open(directory);
    store.commit(None, document(200), change("a")).unwrap();
    store.commit(None, document(300), change("b")).unwrap();
}

type Harm = fn(&Path);

#[test]
fn a_damaged_database_is_set_aside_and_the_good_copy_used() {
    // Overwritten in the middle, cut short, and replaced by something else.
    let harms: [(&str, Harm); 4] = [
        ("garbage", |path| {
            let len = fs::metadata(path).unwrap().len();
            damage(
                path,
                4_096,
                &vec![0xa5; (len - 4_096).min(1 << 20) as usize],
            );
        }),
        ("cut", |path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(5_000).unwrap();
        }),
        ("text", |path| fs::write(path, b"not a database").unwrap()),
        ("zeros", |path| {
            let len = fs::metadata(path).unwrap().len();
            fs::write(path, vec![0; len as usize]).unwrap();
        }),
    ];
    for (name, harm) in harms {
        let directory = tempfile::tempdir().unwrap();
        with_revision_2(directory.path());
        harm(&directory.path().join("state.redb"));
        let store = open(directory.path());
        let document = store.document().unwrap();
        assert_eq!(
            (document.revision, document.clients.len()),
            (2, 300),
            "{name}"
        );
        let warnings = store.status().warnings;
        assert!(warnings[0].contains("was damaged"), "{name}: {warnings:?}");
        assert!(
            directory.path().join("state.redb.damaged").exists(),
            "{name}"
        );
        // And it goes on from there.
        let next = store
            .commit(Some(2), crate::document(1), change("c"))
            .unwrap();
        assert_eq!(next.revision, 3);
        drop(store);
        assert_eq!(open(directory.path()).document().unwrap().revision, 3);
    }
}

#[test]
fn one_flipped_bit_in_a_row_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    with_revision_2(directory.path());
    let path = directory.path().join("state.redb");
    let mut bytes = fs::read(&path).unwrap();
    let needle = b"number 123";
    let at = bytes
        .windows(needle.len())
        .rposition(|w| w == needle)
        .unwrap();
    bytes[at + 8] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = open(directory.path());
    let reason = |n: &str| {
        let prefix: ipnet::IpNet = n.parse().unwrap();
        store.document().unwrap().block[&prefix]
            .reason
            .clone()
            .unwrap()
    };
    assert_eq!(reason("192.0.0.123/32"), "number 123");
    assert!(store.status().warnings[0].contains("was damaged"));
}

#[test]
fn the_older_copy_serves_when_the_newer_is_torn() {
    let directory = tempfile::tempdir().unwrap();
    with_revision_2(directory.path());
    let good = directory.path().join("document.good");
    let len = fs::metadata(&good).unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(&good)
        .unwrap()
        .set_len(len / 2)
        .unwrap();
    fs::write(directory.path().join("state.redb"), b"broken").unwrap();
    assert_eq!(open(directory.path()).document().unwrap().revision, 1);
}

#[test]
fn without_any_good_copy_the_store_refuses_to_guess() {
    let directory = tempfile::tempdir().unwrap();
    with_revision_2(directory.path());
    for name in ["document.good", "document.good.1"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    fs::write(directory.path().join("state.redb"), b"broken").unwrap();
    let error = EmbeddedStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(
        error.to_string().contains("state.redb` is damaged"),
        "{error}"
    );
    // It did not touch the evidence.
    assert_eq!(
        fs::read(directory.path().join("state.redb")).unwrap(),
        b"broken"
    );
}

#[test]
fn torn_usage_reads_as_none_and_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.save_usage("tracked", &[7; 1_000]).unwrap();
    damage(&directory.path().join("usage-tracked.bin"), 500, b"x");
    assert_eq!(store.load_usage("tracked").unwrap(), None);
    assert!(store.status().warnings[0].contains("usage-tracked.bin` is damaged"));
    store.save_usage("checks", b"before").unwrap();
    store.save_usage("checks", b"newest").unwrap();
    assert_eq!(store.load_usage("checks").unwrap().unwrap(), b"newest");
    damage(&directory.path().join("usage-checks.bin"), 9, b"x");
    assert_eq!(store.load_usage("checks").unwrap().unwrap(), b"before");
    assert!(store.status().warnings[1].contains("the save before it is used"));
}

/// A file that refuses writes on demand, as a full disk does.
#[derive(Debug)]
struct FullDisk {
    file: redb::backends::FileBackend,
    full: Arc<AtomicBool>,
}

impl FullDisk {
    fn check(&self) -> std::io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(std::io::Error::from_raw_os_error(28));
        }
        Ok(())
    }
}

impl redb::StorageBackend for FullDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }
    fn close(&self) -> std::io::Result<()> {
        self.file.close()
    }
}

#[test]
fn a_full_disk_leaves_the_old_state_and_heals_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&full);
    let store = EmbeddedStore::open_on(directory.path(), move |path| {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        Ok(Box::new(FullDisk {
            file: redb::backends::FileBackend::new(file).map_err(std::io::Error::other)?,
            full: Arc::clone(&flag),
        }))
    })
    .unwrap();
    store.commit(None, document(3), change("a")).unwrap();
    full.store(true, Ordering::SeqCst);
    let error = store.commit(None, document(900), change("b")).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(
        error.to_string().contains("previous state stays in force"),
        "{error}"
    );
    assert_eq!(store.document().unwrap().clients.len(), 3);
    assert!(!store.status().warnings.is_empty());
    full.store(false, Ordering::SeqCst);
    let stored = store.commit(Some(1), document(4), change("c")).unwrap();
    assert_eq!((stored.revision, stored.clients.len()), (2, 4));
    assert!(store.status().warnings.is_empty());
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.document().unwrap().clients.len(), 4);
    assert_eq!(store.changes(None, 10).unwrap().len(), 2);
}
