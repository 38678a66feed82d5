//! Single stores into the memory of maps: each is atomic for the packets that read it.
//!
//! An update by system call copies a whole value, and a packet could read half of it.

use ratelimiter_common::abi::config::Config;
use ratelimiter_common::abi::crowd::{Set4, Set6};
use ratelimiter_common::abi::names;
use ratelimiter_common::abi::policy::{PrefixKey4, PrefixKey6, Zone};

use super::Error;
use super::loader::Kernel;
use super::maps::Map;
use super::pod::bytes_of;

pub(super) fn key4(net: ipnet::Ipv4Net) -> PrefixKey4 {
    PrefixKey4 {
        prefix_len: u32::from(net.prefix_len()),
        address_be: net.network().octets(),
    }
}

pub(super) fn key6(net: ipnet::Ipv6Net) -> PrefixKey6 {
    PrefixKey6 {
        prefix_len: u32::from(net.prefix_len()),
        address_be: net.network().octets(),
    }
}

/// The words of a structure whose size is a multiple of 8.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|chunk| u64::from_ne_bytes(*chunk))
}

/// Makes `CONFIG` read as `config`; only words that differ are stored.
pub(super) fn config(kernel: &Kernel, config: &Config) -> Result<(), Error> {
    let memory = kernel.map(names::CONFIG)?.memory()?;
    for (index, word) in words(bytes_of(config)).enumerate() {
        if memory.word(index) != word {
            memory.store_word(index, word);
        }
    }
    Ok(())
}

/// Stores one element of an array of `u32`, which the kernel spaces by 8 bytes.
pub(super) fn index(map: &Map, slot: u32, entry: u32) -> Result<(), Error> {
    map.memory()?.store_half(slot as usize * 2, entry);
    Ok(())
}

/// Stores a zone: one word.
pub(super) fn zone(map: &Map, number: u32, zone: Zone) -> Result<(), Error> {
    for word in words(bytes_of(&zone)) {
        map.memory()?.store_word(number as usize, word);
    }
    Ok(())
}

/// Empties a region of both crowd tables. No zone may name it: a packet would find half of it.
pub(super) fn clear_region(kernel: &Kernel, config: &Config, number: usize) -> Result<(), Error> {
    for (name, regions, words) in [
        (names::CROWD4, &config.regions4, size_of::<Set4>() / 8),
        (names::CROWD6, &config.regions6, size_of::<Set6>() / 8),
    ] {
        let Some(region) = regions.get(number) else {
            continue;
        };
        let memory = kernel.map(name)?.memory()?;
        let first = region.base_set as usize * words;
        let count = (region.set_mask as usize + 1) * words;
        for word in first..first + count {
            // Only what holds something: pages nobody wrote stay untouched.
            if memory.word(word) != 0 {
                memory.store_word(word, 0);
            }
        }
    }
    Ok(())
}

/// Stores bytes of a coarse table.
pub(super) fn coarse(kernel: &Kernel, v6: bool, bytes: &[(u16, u8)]) -> Result<(), Error> {
    let map = kernel.map(if v6 { names::COARSE6 } else { names::COARSE4 })?;
    let memory = map.memory()?;
    for &(index, byte) in bytes {
        memory.store_byte(usize::from(index), byte);
    }
    Ok(())
}

/// Stores words of a fine table.
pub(super) fn fine(kernel: &Kernel, v6: bool, words: &[(u32, u64)]) -> Result<(), Error> {
    let map = kernel.map(if v6 { names::FINE6 } else { names::FINE4 })?;
    let memory = map.memory()?;
    for &(index, word) in words {
        memory.store_word(index as usize, word);
    }
    Ok(())
}
