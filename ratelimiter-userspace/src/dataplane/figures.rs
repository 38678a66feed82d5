//! How full the tables are, and what memory they take.

use ratelimiter_common::abi::names;

use super::apply::Writer;
use super::loader::Kernel;
use super::state::{Figures, TableFigure};
use super::{Error, crowd, sys};

/// Reads every map's memory, the entry counts the writer keeps, and the crowd.
pub(super) fn read(kernel: &Kernel, writer: &Writer, now_ns: u64) -> Result<Figures, Error> {
    let [prefixes4, prefixes6] = writer.prefixes;
    let tables = kernel
        .maps
        .values()
        .map(|map| {
            let capacity = u64::from(map.info.max_entries);
            let (capacity, used) = match map.name {
                names::TRACKED => (capacity, Some(writer.tracked)),
                names::PREFIXES4 => (capacity, Some(prefixes4)),
                names::PREFIXES6 => (capacity, Some(prefixes6)),
                names::POLICIES => (
                    writer.policies.index().len() as u64,
                    Some(writer.policies.used() as u64),
                ),
                names::ZONES => (
                    capacity,
                    Some(writer.zones.iter().filter(|zone| zone.used != 0).count() as u64),
                ),
                _ => (capacity, None),
            };
            TableFigure {
                name: map.name,
                capacity,
                used,
                bytes: sys::memory(map.fd()),
            }
        })
        .collect();
    let views = crowd::views(kernel, writer, now_ns)?;
    Ok(Figures {
        tables,
        crowd: crowd::fill(kernel, &views)?,
    })
}
