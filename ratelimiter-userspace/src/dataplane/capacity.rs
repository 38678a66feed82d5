//! Whether a list of updates fits into the tables, asked before the first of them is applied.

use std::collections::BTreeSet;

use ipnet::IpNet;
use ratelimiter_common::abi::config::{FINE_WORDS, SEGMENTS, ZONES};
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::PrefixValue;
use ratelimiter_common::abi::tracked::Tracked;

use super::Error;
use super::apply::Writer;
use super::loader::Kernel;
use super::store::{key4, key6};
use crate::policy::plan::Update;

/// What a list of updates adds and removes at most.
#[derive(Default)]
struct Demand {
    prefixes: [u64; 2],
    removed_prefixes: [u64; 2],
    tracked: u64,
    untracked: u64,
}

/// Refuses a list of updates that does not fit, naming value and bound. What is already installed
/// is looked for only where the sum gets tight.
pub(super) fn check(writer: &Writer, kernel: &Kernel, updates: &[Update]) -> Result<(), Error> {
    let mut demand = Demand::default();
    for update in updates {
        check_bounds(writer, update)?;
        count(update, &mut demand);
    }
    let room = u64::from(writer.tables.prefixes);
    for (v6, version) in [(false, 4), (true, 6)] {
        let place = usize::from(v6);
        let at = |counts: &[u64; 2]| counts.get(place).copied().unwrap_or(0);
        let (have, wanted) = (at(&writer.prefixes), at(&demand.prefixes));
        let after = (have + wanted).saturating_sub(at(&demand.removed_prefixes));
        if after > room && after > room + known_prefixes(kernel, updates, v6)? {
            return Err(Error::Capacity(format!(
                "{wanted} more IPv{version} prefixes do not fit: {have} of `prefixes` = {room} are in use"
            )));
        }
    }
    let limit = u64::from(writer.tables.tracked_limit());
    let after = (writer.tracked + demand.tracked).saturating_sub(demand.untracked);
    if after > limit && after > limit + known_sources(kernel, updates)? {
        return Err(Error::Capacity(format!(
            "{} more client addresses do not fit: {} are tracked, and at most {limit} may be (75 % of `tracked` = {})",
            demand.tracked, writer.tracked, writer.tables.tracked
        )));
    }
    Ok(())
}

fn check_bounds(writer: &Writer, update: &Update) -> Result<(), Error> {
    let (what, value, bound) = match update {
        Update::Policy(entry) => ("policy slot", entry.slot, writer.tables.policies),
        Update::RemovePolicy(slot) => ("policy slot", *slot, writer.tables.policies),
        Update::Segment { segment, .. } => ("segment", *segment, SEGMENTS as u32),
        Update::Zone { zone, .. } => ("zone", *zone, ZONES as u32),
        Update::Fine { words, .. } => {
            let last = words.iter().map(|word| word.0).max().unwrap_or(0);
            ("fine word", last, FINE_WORDS)
        }
        _ => return Ok(()),
    };
    if value < bound {
        Ok(())
    } else {
        Err(Error::Capacity(format!(
            "{what} {value} does not fit; it must be below {bound}"
        )))
    }
}

fn count(update: &Update, demand: &mut Demand) {
    let [four, six] = &mut demand.prefixes;
    let [removed_four, removed_six] = &mut demand.removed_prefixes;
    match update {
        Update::Prefixes(prefixes) => {
            for (prefix, _) in prefixes {
                match prefix {
                    IpNet::V4(_) => *four += 1,
                    IpNet::V6(_) => *six += 1,
                }
            }
        }
        Update::RemovePrefixes(prefixes) => {
            for prefix in prefixes {
                match prefix {
                    IpNet::V4(_) => *removed_four += 1,
                    IpNet::V6(_) => *removed_six += 1,
                }
            }
        }
        Update::Track(sources) => demand.tracked += sources.len() as u64,
        Update::Untrack(sources) => demand.untracked += sources.len() as u64,
        _ => {}
    }
}

/// Sources of `updates` that are tracked already.
fn known_sources(kernel: &Kernel, updates: &[Update]) -> Result<u64, Error> {
    let map = kernel.map(names::TRACKED)?;
    let mut known = 0;
    for update in updates {
        if let Update::Track(sources) = update {
            for (key, _) in sources {
                known += u64::from(map.get::<_, Tracked>(key)?.is_some());
            }
        }
    }
    Ok(known)
}

/// Prefixes of `updates` that are installed already. A look-up in a trie finds the longest match,
/// so only a match of the very same length counts.
fn known_prefixes(kernel: &Kernel, updates: &[Update], v6: bool) -> Result<u64, Error> {
    let mut seen = BTreeSet::new();
    let mut known = 0;
    for update in updates {
        let Update::Prefixes(prefixes) = update else {
            continue;
        };
        for (prefix, _) in prefixes {
            let found: Option<PrefixValue> = match prefix {
                IpNet::V4(net) if !v6 => kernel.map(names::PREFIXES4)?.get(&key4(*net))?,
                IpNet::V6(net) if v6 => kernel.map(names::PREFIXES6)?.get(&key6(*net))?,
                _ => continue,
            };
            let is_there =
                found.is_some_and(|found| found.prefix_len == u32::from(prefix.prefix_len()));
            known += u64::from(is_there || !seen.insert(*prefix));
        }
    }
    Ok(known)
}
