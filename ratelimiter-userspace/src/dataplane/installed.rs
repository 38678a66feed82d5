//! Reads back what is installed.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ratelimiter_common::abi::config::{Coarse, FINE_WORDS, SEGMENTS};
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixKey4, PrefixKey6, PrefixValue};
use ratelimiter_common::abi::tracked::{SLOT_MASK, SourceKey, Tracked};

use super::Error;
use super::apply::Writer;
use super::loader::Kernel;
use super::pod::bytes_of;
use super::state::Installed;

/// Reads everything the planner compares with what is desired.
pub(super) fn read(kernel: &Kernel, writer: &Writer) -> Result<Installed, Error> {
    let entries: Vec<PolicyEntry> = {
        let map = kernel.map(names::POLICIES)?;
        let mut entries = Vec::new();
        for &index in writer.policies.index().iter().filter(|&&index| index != 0) {
            entries.push(map.at(index)?);
        }
        entries
    };
    let mut segments = Vec::new();
    for segment in 0..SEGMENTS as u32 {
        if writer.segments.current(segment) != 0 {
            segments.push((segment, writer.segment_clock(kernel, segment)?));
        }
    }
    let zones = (0..)
        .zip(writer.zones)
        .filter(|(_, zone)| zone.used != 0)
        .collect();
    let mut tracked = Vec::new();
    kernel
        .map(names::TRACKED)?
        .walk::<SourceKey, Tracked>(|&key, value| {
            if !writer.promoted.may_be(key) {
                tracked.push((key, value.binding as u32 & SLOT_MASK));
            }
        })?;
    let coarse = |name| -> Result<Vec<u8>, Error> {
        Ok(bytes_of(&kernel.map(name)?.at::<Coarse>(0)?).to_vec())
    };
    Ok(Installed {
        config: writer.config,
        policies: entries,
        segments,
        zones,
        prefixes: prefixes(kernel)?,
        coarse: [coarse(names::COARSE4)?, coarse(names::COARSE6)?],
        fine: [
            kernel.map(names::FINE4)?.array(FINE_WORDS)?,
            kernel.map(names::FINE6)?.array(FINE_WORDS)?,
        ],
        tracked,
    })
}

fn prefixes(kernel: &Kernel) -> Result<Vec<(IpNet, PrefixValue)>, Error> {
    let mut prefixes = Vec::new();
    kernel
        .map(names::PREFIXES4)?
        .walk::<PrefixKey4, PrefixValue>(|key, value| {
            let address = Ipv4Addr::from(key.address_be);
            if let Ok(net) = Ipv4Net::new(address, key.prefix_len as u8) {
                prefixes.push((IpNet::V4(net), *value));
            }
        })?;
    kernel
        .map(names::PREFIXES6)?
        .walk::<PrefixKey6, PrefixValue>(|key, value| {
            let address = Ipv6Addr::from(key.address_be);
            if let Ok(net) = Ipv6Net::new(address, key.prefix_len as u8) {
                prefixes.push((IpNet::V6(net), *value));
            }
        })?;
    Ok(prefixes)
}
