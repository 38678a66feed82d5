//! The document as rows of a database: one per segment, client and prefix, each with a checksum,
//! so that a change writes what changed and nothing else.

use std::collections::BTreeMap;

use ipnet::IpNet;
use redb::{ReadableTable as _, Table, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::goodcopy::checksum;
use crate::policy::model::Document;

type Rows = TableDefinition<'static, &'static str, &'static [u8]>;

pub(super) const META: Rows = TableDefinition::new("meta");
const SEGMENTS: Rows = TableDefinition::new("segments");
const CLIENTS: Rows = TableDefinition::new("clients");
const ALLOW: Rows = TableDefinition::new("allow");
const BLOCK: Rows = TableDefinition::new("block");
pub(super) const CHANGES: TableDefinition<'static, u64, &'static [u8]> =
    TableDefinition::new("changes");

/// Key of the revision in [`META`].
const REVISION: &str = "revision";
/// Key of the layout's version in [`META`].
const VERSION: &str = "version";
/// Version of this layout.
const LAYOUT: u64 = 1;

/// JSON with its checksum in front.
pub(super) fn sealed(value: &impl Serialize) -> Result<Vec<u8>, String> {
    let json = serde_json::to_vec(value).map_err(|error| error.to_string())?;
    let mut row = checksum(&json).to_le_bytes().to_vec();
    row.extend_from_slice(&json);
    Ok(row)
}

/// The value of a row, if its checksum fits.
pub(super) fn unsealed<T: DeserializeOwned>(row: &[u8]) -> Result<T, String> {
    let (sum, json) = row.split_first_chunk::<8>().ok_or("a row is too short")?;
    if u64::from_le_bytes(*sum) != checksum(json) {
        return Err("a row's checksum does not fit".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| format!("a row cannot be read: {error}"))
}

/// Writes what differs between two documents.
pub(super) fn write(
    transaction: &WriteTransaction,
    before: &Document,
    after: &Document,
) -> Result<(), redb::Error> {
    changed(transaction, SEGMENTS, &before.segments, &after.segments)?;
    changed(transaction, CLIENTS, &before.clients, &after.clients)?;
    changed(transaction, ALLOW, &before.allow, &after.allow)?;
    changed(transaction, BLOCK, &before.block, &after.block)?;
    let mut meta = transaction.open_table(META)?;
    put(&mut meta, REVISION, &after.revision)?;
    put(&mut meta, VERSION, &LAYOUT)?;
    Ok(())
}

fn put(
    table: &mut Table<'_, &'static str, &'static [u8]>,
    key: &str,
    value: &impl Serialize,
) -> Result<(), redb::Error> {
    let row = sealed(value).map_err(redb::Error::Corrupted)?;
    table.insert(key, row.as_slice())?;
    Ok(())
}

fn changed<K: Ord + ToString, V: Serialize + PartialEq>(
    transaction: &WriteTransaction,
    name: Rows,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(name)?;
    let mut old = before.iter().peekable();
    for (key, value) in after {
        while let Some((gone, _)) = old.next_if(|(old, _)| *old < key) {
            table.remove(gone.to_string().as_str())?;
        }
        match old.next_if(|(old, _)| *old == key) {
            Some((_, same)) if same == value => {}
            _ => put(&mut table, &key.to_string(), value)?,
        }
    }
    for (gone, _) in old {
        table.remove(gone.to_string().as_str())?;
    }
    Ok(())
}

/// Reads the whole document; a database never written to has the default one.
///
/// # Errors
///
/// A sentence that says what is damaged.
pub(super) fn read(database: &redb::Database) -> Result<Document, String> {
    use redb::ReadableDatabase as _;
    let text = |error: redb::Error| error.to_string();
    let transaction = database.begin_read().map_err(|error| text(error.into()))?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Document::default()),
        Err(error) => return Err(text(error.into())),
    };
    let number = |key: &str| -> Result<Option<u64>, String> {
        let row = meta.get(key).map_err(|error| text(error.into()))?;
        row.map(|row| unsealed(row.value())).transpose()
    };
    if let Some(version) = number(VERSION)?
        && version != LAYOUT
    {
        return Err(format!(
            "it has layout {version}; this agent reads layout {LAYOUT}"
        ));
    }
    let Some(revision) = number(REVISION)? else {
        return Err("it has no revision".to_owned());
    };
    let prefix = |key: &str| key.parse::<IpNet>().map_err(|error| error.to_string());
    let name = |key: &str| Ok(key.to_owned());
    Ok(Document {
        revision,
        segments: read_table(&transaction, SEGMENTS, name)?,
        clients: read_table(&transaction, CLIENTS, name)?,
        allow: read_table(&transaction, ALLOW, prefix)?,
        block: read_table(&transaction, BLOCK, prefix)?,
    })
}

fn read_table<K: Ord, V: DeserializeOwned>(
    transaction: &redb::ReadTransaction,
    name: Rows,
    key_of: impl Fn(&str) -> Result<K, String>,
) -> Result<BTreeMap<K, V>, String> {
    let text = |error: redb::Error| error.to_string();
    let table = match transaction.open_table(name) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
        Err(error) => return Err(text(error.into())),
    };
    let mut rows = Vec::new();
    for row in table.iter().map_err(|error| text(error.into()))? {
        let (key, value) = row.map_err(|error| text(error.into()))?;
        rows.push((key_of(key.value())?, unsealed(value.value())?));
    }
    Ok(rows.into_iter().collect())
}
