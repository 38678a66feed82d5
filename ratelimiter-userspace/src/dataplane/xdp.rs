//! The real data plane: an XDP program on real interfaces.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::abi::merge::MergeOp;
use ratelimiter_common::abi::tracked::{SourceKey, Tracked};

use super::apply::Writer;
use super::attach::{self, OwnLink};
use super::loader::{self, Kernel};
use super::observe::{self, SampleReader};
use super::pins::Pins;
use super::state::{
    Applied, AttachMode, AttachOptions, CrowdSource, Drained, Figures, Health, Installed,
    Interface, InterfaceState, Stats,
};
use super::watch::Watcher;
use super::{DataPlane, Error, Tables, crowd, figures, installed, netlink};
use crate::clock::monotonic_ns;
use crate::policy::plan::Update;

/// Where the pins lie unless told otherwise.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/ratelimiter";

/// How to open the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Directory of the pins, on a bpffs.
    pub root: PathBuf,
    /// Sizes of the tables; pinned tables of other sizes are refused.
    pub tables: Tables,
    /// Whether pins that do not fit are replaced by new tables, in which every bucket is full.
    pub replace: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            root: DEFAULT_ROOT.into(),
            tables: Tables::default(),
            replace: false,
        }
    }
}

/// The XDP program, its maps and its links.
///
/// Dropping it ends the watch and nothing else: links and maps are pinned, so the program keeps
/// enforcing the last policy.
#[derive(Debug)]
pub struct XdpDataPlane {
    shared: Arc<Shared>,
    _watcher: Watcher,
}

/// What the caller's threads and the watch share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pins: Pins,
    pub(super) kernel: Kernel,
    pub(super) links: Mutex<BTreeMap<String, Watched>>,
    pub(super) writer: Mutex<Writer>,
    pub(super) health: Mutex<Health>,
    samples: Mutex<SampleReader>,
    tables: Tables,
}

/// An interface under watch.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) options: AttachOptions,
    /// False for a link that an earlier agent left and this one was not told about: it keeps
    /// running the program before this one, on the same maps.
    pub(super) wanted: bool,
    pub(super) link: Option<OwnLink>,
    pub(super) view: Interface,
}

impl Watched {
    /// Notes a state; the time only changes with it. Returns whether it is new.
    pub(super) fn set(&mut self, state: InterfaceState, index: u32, now_ns: u64) -> bool {
        let is_new = self.view.state != state || self.view.index != index;
        if is_new {
            self.view.since_ns = now_ns;
        }
        self.view.state = state;
        self.view.index = index;
        is_new
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl XdpDataPlane {
    /// Loads the program on the pinned maps, or on new ones where there are none, and begins to
    /// watch. Attaches nothing: what an earlier agent attached keeps running as it was until
    /// [`DataPlane::attach`] updates it.
    ///
    /// The calling thread's network and mount namespaces are the ones this data plane lives in.
    ///
    /// # Errors
    ///
    /// Pins of another shape are refused by name and left alone, unless `replace` is set.
    pub fn open(options: &OpenOptions) -> Result<Self, Error> {
        let pins = Pins::open(&options.root)?;
        let (kernel, adopted) = loader::load(&pins, &options.tables, options.replace)?;
        let writer = Writer::new(&kernel, options.tables, adopted)?;
        let health = Health {
            ok: true,
            program_id: kernel.program_id,
            adopted,
            ..Health::default()
        };
        let shared = Arc::new(Shared {
            links: Mutex::new(left_behind(&pins)),
            samples: Mutex::new(SampleReader::new(&kernel)?),
            pins,
            kernel,
            writer: Mutex::new(writer),
            health: Mutex::new(health),
            tables: options.tables,
        });
        shared.note_generic()?;
        let watcher = Watcher::start(&shared)?;
        Ok(Self {
            shared,
            _watcher: watcher,
        })
    }

    /// Verifies and repairs everything now instead of within the next half second.
    pub fn verify(&self) {
        self.shared.verify(monotonic_ns());
    }

    /// Ids of the pinned maps by name, for tests and `doctor`.
    pub fn map_ids(&self) -> BTreeMap<&'static str, u32> {
        self.shared
            .kernel
            .maps
            .iter()
            .map(|(&name, map)| (name, map.info.id))
            .collect()
    }
}

/// The links an earlier agent left.
fn left_behind(pins: &Pins) -> BTreeMap<String, Watched> {
    let now_ns = monotonic_ns();
    pins.links()
        .into_iter()
        .map(|(name, fd, info)| {
            let described = netlink::link(info.ifindex).ok().flatten();
            let here = info.ifindex != 0 && netlink::index(&name) == info.ifindex;
            let mode = described.map_or(AttachMode::Native, |described| {
                attach::mode_of(&described, info.prog_id)
            });
            let watched = Watched {
                options: AttachOptions {
                    mode,
                    replace: false,
                    wait: true,
                },
                wanted: false,
                link: Some(OwnLink { fd, id: info.id }),
                view: Interface {
                    name: name.clone(),
                    index: if here { info.ifindex } else { 0 },
                    mode,
                    state: if here {
                        InterfaceState::Attached
                    } else {
                        InterfaceState::Absent
                    },
                    since_ns: now_ns,
                },
            };
            (name, watched)
        })
        .collect()
}

impl Shared {
    /// Tells the program whether any interface is in generic mode.
    pub(super) fn note_generic(&self) -> Result<(), Error> {
        let generic = lock(&self.links)
            .values()
            .any(|watched| watched.options.mode == AttachMode::Generic);
        lock(&self.writer).set_generic(&self.kernel, generic)
    }

    fn attach(&self, interface: &str, options: AttachOptions) -> Result<(), Error> {
        attach::check_name(interface)?;
        let now_ns = monotonic_ns();
        let mut links = lock(&self.links);
        let held = links
            .get_mut(interface)
            .and_then(|watched| watched.link.take());
        let held_again = held.as_ref().and_then(OwnLink::again);
        let attached = attach::attach(&self.kernel, &self.pins, held, interface, options);
        let (link, state, index) = match attached {
            Ok(link) => {
                let index = link.info()?.ifindex;
                (Some(link), InterfaceState::Attached, index)
            }
            Err(Error::UnknownInterface(_)) if options.wait => (None, InterfaceState::Absent, 0),
            Err(error) => {
                if let Some(watched) = links.get_mut(interface) {
                    watched.link = held_again;
                }
                return Err(error);
            }
        };
        let watched = links
            .entry(interface.to_owned())
            .or_insert_with(|| Watched {
                options,
                wanted: true,
                link: None,
                view: Interface {
                    name: interface.to_owned(),
                    index: 0,
                    mode: options.mode,
                    state: InterfaceState::Absent,
                    since_ns: now_ns,
                },
            });
        watched.options = AttachOptions {
            // Said once, meant once: a program that appears later is not ours to replace.
            replace: options.replace && link.is_none(),
            ..options
        };
        watched.wanted = true;
        watched.view.mode = options.mode;
        let moved = link.as_ref().map(|link| link.id);
        watched.link = link;
        if watched.set(state, index, now_ns) {
            tracing::info!(
                interface,
                index,
                mode = options.mode.as_str(),
                state = ?watched.view.state,
                "interface"
            );
        }
        // A link found under another name (a renamed interface) belongs to this one now.
        links.retain(|name, other| {
            name == interface
                || moved.is_none()
                || other.wanted
                || other.link.as_ref().map(|link| link.id) != moved
        });
        Ok(())
    }

    fn detach(&self, interface: &str) -> Result<bool, Error> {
        let mut links = lock(&self.links);
        let watched = links.remove(interface);
        let mut detached = false;
        if let Some(link) = watched.and_then(|watched| watched.link) {
            detached = true;
            // A link that lost its interface has nothing to detach, and the kernel says so.
            let answer = super::sys::link_detach(std::os::fd::AsFd::as_fd(&link.fd));
            tracing::info!(interface, ?answer, "detached");
        }
        Ok(self.pins.remove_link(interface)? || detached)
    }
}

impl DataPlane for XdpDataPlane {
    fn attach(&self, interface: &str, options: AttachOptions) -> Result<(), Error> {
        self.shared.attach(interface, options)?;
        self.shared.note_generic()?;
        self.shared.verify(monotonic_ns());
        Ok(())
    }

    fn detach(&self, interface: &str) -> Result<bool, Error> {
        let detached = self.shared.detach(interface)?;
        self.shared.note_generic()?;
        self.shared.verify(monotonic_ns());
        Ok(detached)
    }

    fn interfaces(&self) -> Vec<Interface> {
        lock(&self.shared.links)
            .values()
            .map(|watched| watched.view.clone())
            .collect()
    }

    fn gateways(&self) -> Result<Vec<std::net::IpAddr>, Error> {
        super::routes::default_gateways()
            .map_err(|e| Error::kernel("reading the default routes", e))
    }

    fn health(&self) -> Health {
        lock(&self.shared.health).clone()
    }

    fn apply(&self, updates: &[Update]) -> Result<Applied, Error> {
        lock(&self.shared.writer).apply(&self.shared.kernel, updates)
    }

    fn installed(&self) -> Result<Installed, Error> {
        installed::read(&self.shared.kernel, &lock(&self.shared.writer))
    }

    fn stats(&self) -> Result<Stats, Error> {
        observe::stats(&self.shared.kernel)
    }

    fn drain_samples(&self, visit: &mut dyn FnMut(&Sample)) -> Result<Drained, Error> {
        lock(&self.shared.samples).drain(&self.shared.kernel, visit)
    }

    fn drain_events(&self, visit: &mut dyn FnMut(&Sample)) -> Result<u64, Error> {
        Ok(observe::drain_events(&self.shared.kernel, visit))
    }

    fn scan_crowd(&self, now_ns: u64, visit: &mut dyn FnMut(&CrowdSource)) -> Result<(), Error> {
        let views = crowd::views(&self.shared.kernel, &lock(&self.shared.writer), now_ns)?;
        crowd::scan(&self.shared.kernel, &views, visit)
    }

    fn scan_tracked(&self, visit: &mut dyn FnMut(SourceKey, &Tracked)) -> Result<(), Error> {
        observe::scan_tracked(&self.shared.kernel, visit)
    }

    fn read_tracked(
        &self,
        keys: &[SourceKey],
        visit: &mut dyn FnMut(SourceKey, Option<&Tracked>),
    ) -> Result<(), Error> {
        observe::read_tracked(&self.shared.kernel, keys, visit)
    }

    fn merge(&self, ops: &mut [MergeOp]) -> Result<(), Error> {
        lock(&self.shared.writer).merge(&self.shared.kernel, ops)
    }

    fn figures(&self, now_ns: u64) -> Result<Figures, Error> {
        figures::read(&self.shared.kernel, &lock(&self.shared.writer), now_ns)
    }

    fn tables(&self) -> Tables {
        self.shared.tables
    }
}
