//! The last good copy of the document: one checksummed file, and the one before it.
//!
//! ```text
//! ratelimiter-document 1 <bytes of JSON> <checksum of JSON, 16 hex digits>\n
//! <JSON>
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::policy::model::Document;

const HEAD: &str = "ratelimiter-document 1";
/// Largest copy read back: a document of two million prefixes.
const MAX_BYTES: u64 = 1 << 30;

/// A checksum that notices torn and damaged files; not meant to withstand forgery.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    use std::hash::Hasher as _;
    let mut hasher = siphasher::sip::SipHasher13::new_with_keys(0x7261_7465, 0x6c69_6d69);
    hasher.write(bytes);
    hasher.finish()
}

/// Replaces `path` at once and durably: a reader sees the old file or the new one whole, and after
/// `Ok` the new one survives a power cut.
pub(super) fn replace(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = Path::new(&name);
    let written = (|| {
        let mut file = File::create(temporary)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()
    })();
    if let Err(error) = written.and_then(|()| fs::rename(temporary, path)) {
        // What could not be finished is of no use; that it cannot be removed either changes nothing.
        drop(fs::remove_file(temporary));
        return Err(error);
    }
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Writes a copy, keeping the one before it as `<path>.1`.
pub(super) fn write(path: &Path, document: &Document) -> io::Result<()> {
    let json = serde_json::to_vec(document).map_err(io::Error::other)?;
    if path.exists() {
        fs::rename(path, older(path))?;
    }
    let head = format!("{HEAD} {} {:016x}\n", json.len(), checksum(&json));
    replace(path, &[head.as_bytes(), &json])
}

/// Keeps the file at `path` under its older name too, so that the save before is there should the
/// next one be damaged. Best effort: without it there is one copy.
pub(super) fn keep_older(path: &Path) {
    let older = older(path);
    if path.exists() {
        drop(fs::remove_file(&older));
        drop(fs::hard_link(path, &older));
    }
}

pub(super) fn older(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Reads a copy back; `Err` says in a sentence what is wrong with it.
pub(super) fn read(path: &Path) -> Result<Document, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    let end = bytes
        .iter()
        .take(80)
        .position(|byte| *byte == b'\n')
        .ok_or("it has no head")?;
    let (head, json) = (
        bytes.get(..end).unwrap_or_default(),
        bytes.get(end + 1..).unwrap_or_default(),
    );
    let expected = format!("{HEAD} {} {:016x}", json.len(), checksum(json));
    if head != expected.as_bytes() {
        return Err(format!(
            "its checksum over {} bytes does not fit",
            json.len()
        ));
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}
