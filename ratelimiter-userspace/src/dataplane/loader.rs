//! From the built object to programs and maps in the kernel: fresh, or on adopted maps.
//!
//! Pinned maps are checked before aya sees them, because aya 0.14 adopts any pinned map as it is.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{MapData, RingBuf};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use ratelimiter_common::abi::config::{Config, PermKey};
use ratelimiter_common::abi::{SCHEMA, names};
use ratelimiter_common::vclock::SegmentClock;

use super::maps::Map;
use super::pins::{Pins, every_map};
use super::shape::{Judgement, Shape, judge};
use super::{Error, Tables, caps, object, sys};

/// Programs and maps in the kernel, open.
pub(super) struct Kernel {
    pub(super) program: OwnedFd,
    pub(super) program_id: u32,
    pub(super) merge: OwnedFd,
    pub(super) maps: BTreeMap<&'static str, Map>,
    pub(super) events: std::sync::Mutex<RingBuf<MapData>>,
    pub(super) cpus: usize,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("program_id", &self.program_id)
            .field("maps", &self.maps.len())
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// The map called `name`, which is one of [`names`].
    pub(super) fn map(&self, name: &'static str) -> Result<&Map, Error> {
        self.maps
            .get(name)
            .ok_or_else(|| Error::Corrupt(format!("the object has no map `{name}`")))
    }
}

/// Loads the programs, on the pinned maps where they fit, else on new ones, which are pinned
/// once they are initialised. Returns whether maps were adopted. Attaches nothing.
pub(super) fn load(pins: &Pins, tables: &Tables, replace: bool) -> Result<(Kernel, bool), Error> {
    tables.validate()?;
    let bytes = object::object().map_err(|error| Error::Object(error.to_string()))?;
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, source)| Error::kernel(format!("reading `{path}`"), source))?;
    let sizes = sizes(tables, cpus);
    let expected = expected(bytes, &sizes)?;
    if replace {
        for name in every_map() {
            pins.remove_map(name)?;
        }
        let kernel = fresh(pins, bytes, tables, &sizes, cpus)?;
        return Ok((kernel, false));
    }
    match judge(&expected, &pins.found(), names::CONFIG, pins.links().len()) {
        Judgement::Refuse(why) => Err(Error::Pins(why)),
        Judgement::Adopt => adopt(pins, bytes, tables, &sizes, cpus).map(|kernel| (kernel, true)),
        Judgement::Fresh => fresh(pins, bytes, tables, &sizes, cpus).map(|kernel| (kernel, false)),
        Judgement::Leftovers(pinned) => {
            tracing::warn!(
                maps = pinned.len(),
                "removing the pins of a start that was interrupted"
            );
            for name in pinned {
                pins.remove_map(name)?;
            }
            fresh(pins, bytes, tables, &sizes, cpus).map(|kernel| (kernel, false))
        }
    }
}

/// The shape of every pinned map as this agent would make it with `tables`.
pub(super) fn wanted(tables: &Tables) -> Result<BTreeMap<&'static str, Shape>, Error> {
    tables.validate()?;
    let bytes = object::object().map_err(|error| Error::Object(error.to_string()))?;
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, source)| Error::kernel(format!("reading `{path}`"), source))?;
    expected(bytes, &sizes(tables, cpus))
}

/// Entries by map, where they depend on the configuration or the machine.
fn sizes(tables: &Tables, cpus: usize) -> BTreeMap<&'static str, u32> {
    BTreeMap::from([
        (names::CROWD4, tables.sets4()),
        (names::CROWD6, tables.sets6()),
        (names::TRACKED, tables.tracked),
        (names::POLICIES, tables.policy_entries()),
        (names::POLICY_INDEX, tables.policies),
        (names::PREFIXES4, tables.prefixes),
        (names::PREFIXES6, tables.prefixes),
        (names::SAMPLES, cpus as u32),
        (names::EVENTS, tables.events_bytes),
    ])
}

/// The shape of every pinned map as this object and these sizes make it.
fn expected(
    bytes: &[u8],
    sizes: &BTreeMap<&'static str, u32>,
) -> Result<BTreeMap<&'static str, Shape>, Error> {
    let object = aya_obj::Object::parse(bytes)
        .map_err(|error| Error::Object(format!("the BPF object cannot be read: {error}")))?;
    every_map()
        .map(|name| {
            let map = object
                .maps
                .get(name)
                .ok_or_else(|| Error::Object(format!("the BPF object has no map `{name}`")))?;
            let shape = Shape {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: sizes.get(name).copied().unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            };
            Ok((name, shape))
        })
        .collect()
}

/// A loader with the sizes set.
fn loader<'a>(sizes: &BTreeMap<&'static str, u32>) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    for (&name, &entries) in sizes {
        loader.map_max_entries(name, entries);
    }
    loader
}

fn fresh(
    pins: &Pins,
    bytes: &[u8],
    tables: &Tables,
    sizes: &BTreeMap<&'static str, u32>,
    cpus: usize,
) -> Result<Kernel, Error> {
    let mut loader = loader(sizes);
    let kernel = open(&mut loader, bytes, cpus)?;
    kernel.map(names::CONFIG)?.set(&0_u32, &config(tables)?)?;
    // Segments start at full speed: index 0 everywhere, and entry 0 is real time.
    kernel
        .map(names::SEGMENT_CLOCKS)?
        .set(&0_u32, &SegmentClock::REAL)?;
    // `CONFIG` last: with it the set of pins is complete and may be adopted.
    for name in every_map().filter(|&name| name != names::CONFIG) {
        Pins::pin(kernel.map(name)?.fd(), &pins.map(name))?;
    }
    Pins::pin(kernel.map(names::CONFIG)?.fd(), &pins.map(names::CONFIG))?;
    Ok(kernel)
}

fn adopt(
    pins: &Pins,
    bytes: &[u8],
    tables: &Tables,
    sizes: &BTreeMap<&'static str, u32>,
    cpus: usize,
) -> Result<Kernel, Error> {
    let failed = |name: &str| {
        let text = format!("opening pin `{name}`");
        move |source| Error::kernel(text, source)
    };
    let pinned = sys::open_pin(&pins.map(names::CONFIG)).map_err(failed(names::CONFIG))?;
    check_config(&Map::new(names::CONFIG, pinned)?.at(0)?, tables)?;
    let mut ids = BTreeMap::new();
    for name in every_map() {
        let pinned = sys::open_pin(&pins.map(name)).map_err(failed(name))?;
        ids.insert(
            name,
            sys::map_info(pinned.as_fd()).map_err(failed(name))?.id,
        );
    }
    let mut loader = loader(sizes);
    for name in every_map() {
        loader.map_pin_path(name, pins.map(name));
    }
    let kernel = open(&mut loader, bytes, cpus)?;
    for (name, id) in ids {
        // A pin that vanished between the check and the load was made again by aya, empty.
        if kernel.map(name)?.info.id != id {
            return Err(Error::Pins(format!(
                "the pinned map `{name}` was changed while it was adopted"
            )));
        }
    }
    Ok(kernel)
}

/// Checks what no shape shows: the meaning of the bytes.
fn check_config(config: &Config, tables: &Tables) -> Result<(), Error> {
    if config.schema != SCHEMA {
        return Err(Error::Pins(format!(
            "the pinned map `{}` has schema number {}; this agent speaks {SCHEMA}",
            names::CONFIG,
            config.schema
        )));
    }
    for (name, is, needed) in [
        (names::CROWD4, &config.regions4, tables.regions4()),
        (names::CROWD6, &config.regions6, tables.regions6()),
    ] {
        let differs = is.iter().zip(&needed).position(|(is, needed)| {
            (is.base_set, is.set_mask) != (needed.base_set, needed.set_mask)
        });
        if let Some(region) = differs {
            return Err(Error::Pins(format!(
                "the pinned map `{name}` is divided otherwise: region {region} differs from the configured tables"
            )));
        }
    }
    if config.v6_prefix_len != u32::from(tables.v6_prefix_len) {
        return Err(Error::Pins(format!(
            "the pinned map `{}` keys IPv6 sources by /{}; this agent is configured for /{}",
            names::CONFIG,
            config.v6_prefix_len,
            tables.v6_prefix_len
        )));
    }
    Ok(())
}

fn config(tables: &Tables) -> Result<Config, Error> {
    Ok(Config {
        schema: SCHEMA,
        flags: 0,
        prefix_generation: 0,
        v6_prefix_len: u32::from(tables.v6_prefix_len),
        v6_mask: u64::MAX << (64 - u32::from(tables.v6_prefix_len)),
        perm: perm_key()?,
        regions4: tables.regions4(),
        regions6: tables.regions6(),
        malformed_ns: 0,
        malformed_burst_ns: 0,
        generic_segment_bytes: 0,
        reserved: 0,
    })
}

/// A key nobody can guess; its multipliers are odd, else they would have no inverse.
fn perm_key() -> Result<PermKey, Error> {
    let mut words = [0_u64; 4];
    let bytes = super::pod::bytes_of_mut(&mut words);
    // SAFETY: a live buffer of the length given.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got != bytes.len() as isize {
        return Err(Error::kernel(
            "reading random bytes",
            std::io::Error::last_os_error(),
        ));
    }
    let [first, second, third, fourth] = words;
    Ok(PermKey {
        xor: [first, second],
        mul: [third | 1, fourth | 1],
    })
}

/// Creates or adopts the maps, loads the limiter this agent is allowed and the helper program, and
/// opens every map.
fn open(loader: &mut EbpfLoader<'_>, bytes: &[u8], cpus: usize) -> Result<Kernel, Error> {
    let (mut ebpf, limiter) = caps::unguarded(|unguarded| {
        // The maps too: what a map was created with decides how its elements are addressed.
        let ebpf = loader.load(bytes).map_err(|error| refused(&error))?;
        let limiter = if unguarded {
            names::PROGRAM
        } else {
            names::GUARDED_PROGRAM
        };
        Ok((ebpf, limiter))
    })?;
    let program = load_program(&mut ebpf, limiter)?;
    let merge = load_program(&mut ebpf, names::MERGE_PROGRAM)?;
    let mut maps = BTreeMap::new();
    for name in every_map() {
        let map = ebpf
            .map(name)
            .ok_or_else(|| Error::Object(format!("the BPF object has no map `{name}`")))?;
        maps.insert(name, Map::new(name, map_fd(map, name)?)?);
    }
    let events = ebpf
        .take_map(names::EVENTS)
        .ok_or_else(|| Error::Object(format!("the BPF object has no map `{}`", names::EVENTS)))?;
    let events = RingBuf::try_from(events)
        .map_err(|error| Error::Object(format!("map `{}`: {error}", names::EVENTS)))?;
    let program_id = sys::prog_info(program.as_fd())
        .map_err(|source| Error::kernel("describing the program", source))?
        .id;
    Ok(Kernel {
        program,
        program_id,
        merge,
        maps,
        events: std::sync::Mutex::new(events),
        cpus,
    })
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd, Error> {
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .ok_or_else(|| Error::Object(format!("the BPF object has no program `{name}`")))?
        .try_into()
        .map_err(|error| Error::Object(format!("program `{name}`: {error}")))?;
    caps::unguarded(|_| program.load()).map_err(|error| match missing(&error) {
        // The verifier says EACCES too; with every capability at hand, its log is the answer.
        Some(source) if !caps::missing().is_empty() => caps::denied("loading the program", source),
        _ => Error::Program(format!("`{name}`: {}", chain(&error))),
    })?;
    program
        .fd()
        .map_err(|error| Error::Program(format!("`{name}`: {error}")))?
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| Error::kernel("duplicating a descriptor", source))
}

fn map_fd(map: &aya::maps::Map, name: &str) -> Result<OwnedFd, Error> {
    use aya::maps::Map as Aya;
    let (Aya::Array(data)
    | Aya::PerCpuArray(data)
    | Aya::HashMap(data)
    | Aya::LruHashMap(data)
    | Aya::LpmTrie(data)
    | Aya::RingBuf(data)
    | Aya::Unsupported(data)) = map
    else {
        return Err(Error::Object(format!(
            "map `{name}` of the BPF object has a type this agent does not use"
        )));
    };
    data.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| Error::kernel("duplicating a descriptor", source))
}

fn refused(error: &aya::EbpfError) -> Error {
    match missing(error) {
        Some(source) => caps::denied("creating the maps", source),
        None => Error::Program(chain(error)),
    }
}

/// The system call's error behind `error`, if it says that a right is missing.
fn missing(error: &(dyn std::error::Error + 'static)) -> Option<std::io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error)
            .filter(|code| matches!(*code, libc::EPERM | libc::EACCES))
        {
            return Some(std::io::Error::from_raw_os_error(code));
        }
        next = error.source();
    }
    None
}

/// Most bytes kept of the verifier's log: its end says why.
const LOG_TAIL_BYTES: usize = 2_000;

/// An error and what is behind it; of a long log only the end.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    if text.len() > 2 * LOG_TAIL_BYTES {
        let head = text.chars().take(LOG_TAIL_BYTES / 4);
        let tail: Vec<char> = text.chars().rev().take(LOG_TAIL_BYTES).collect();
        text = head
            .chain(" [...] ".chars())
            .chain(tail.into_iter().rev())
            .collect();
    }
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = error.source();
    }
    text
}
