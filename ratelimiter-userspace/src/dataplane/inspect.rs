//! Looks at pins and interfaces without taking hold of them: what `doctor` shows, and what
//! `detach` does where no agent runs. Reads only, except [`detach_interface`].

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use ratelimiter_common::abi::names;

pub use super::pins::is_bpffs;
use super::pins::{self, Pins};
use super::shape::{Found, Judgement, judge};
use super::{Error, Tables, loader, netlink, sys};

/// What is pinned under a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinReport {
    /// Interfaces with a pinned link, and the id of the program it runs; 0 for a zombie.
    pub links: Vec<(String, u32)>,
    /// Number of pinned maps.
    pub maps: usize,
    /// Number of maps of a whole set.
    pub maps_expected: usize,
    /// Why an agent with these tables would not adopt them, if it would not.
    pub problem: Option<String>,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramReport {
    /// Its id.
    pub id: u32,
    /// Its name, if this process may read it.
    pub name: Option<String>,
    /// Whether it runs in generic mode.
    pub generic: bool,
}

/// What the kernel says about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceReport {
    /// The kernel's number of it.
    pub index: u32,
    /// Bytes.
    pub mtu: u32,
    /// The program that runs there.
    pub program: Option<ProgramReport>,
}

/// Describes what is pinned under `root` and judges it as an agent with `tables` would.
pub fn pins(root: &Path, tables: &Tables) -> PinReport {
    let found = pins::found(root);
    let links: Vec<(String, u32)> = pins::links(root)
        .into_iter()
        .map(|(name, _, info)| (name, if info.ifindex == 0 { 0 } else { info.prog_id }))
        .collect();
    let maps = found
        .values()
        .filter(|f| matches!(f, Found::Map(_)))
        .count();
    let problem = match loader::wanted(tables) {
        Err(error) => Some(error.to_string()),
        Ok(expected) => match judge(&expected, &found, names::CONFIG, links.len()) {
            Judgement::Refuse(why) => Some(why),
            Judgement::Fresh | Judgement::Leftovers(_) | Judgement::Adopt => None,
        },
    };
    PinReport {
        links,
        maps,
        maps_expected: pins::every_map().count(),
        problem,
    }
}

/// Describes the interface called `name`; nothing if there is none.
pub fn interface(name: &str) -> io::Result<Option<InterfaceReport>> {
    let index = netlink::index(name);
    if index == 0 {
        return Ok(None);
    }
    let Some(link) = netlink::link(index)? else {
        return Ok(None);
    };
    let (id, generic) = if link.native_prog == 0 {
        (link.generic_prog, true)
    } else {
        (link.native_prog, false)
    };
    let program = (id != 0).then(|| ProgramReport {
        id,
        name: sys::prog_by_id(id)
            .and_then(|program| sys::prog_info(program.as_fd()))
            .ok()
            .map(|info| sys::name(&info.name)),
        generic,
    });
    Ok(Some(InterfaceReport {
        index,
        mtu: link.mtu,
        program,
    }))
}

/// Detaches from `interface` and removes the pin of its link; tables and other links stay. Returns
/// whether there was anything to detach. Refused while an agent runs.
pub fn detach_interface(root: &Path, interface: &str) -> Result<bool, Error> {
    let is_pinned = |links: Vec<(String, _, _)>| links.iter().any(|(name, ..)| name == interface);
    if !is_pinned(pins::links(root)) {
        return Ok(false);
    }
    let held = Pins::open(root)?;
    for (name, link, _) in held.links() {
        if name == interface {
            // Without an interface (a zombie) the kernel answers an error, and there is no need.
            let detached = sys::link_detach(link.as_fd());
            tracing::debug!(interface, ?detached, "removing link");
        }
    }
    held.remove_link(interface)
}
