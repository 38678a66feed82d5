//! The kernel's maps, programs and links: load or adopt, attach, apply, observe.
//!
//! [`DataPlane`] is the role, [`XdpDataPlane`] the mechanism, [`FakeDataPlane`] the stand-in for
//! tests of the agent. Nothing here decides a policy: the only language spoken to a data plane is
//! [`crate::policy::plan::Update`]. This is the only module that writes kernel maps, and it knows
//! neither `store/` nor `http/`.
//!
//! Every call blocks for as long as its system calls take; call from a thread that may block
//! (`tokio::task::spawn_blocking`). All calls may be made from several threads at once.
mod apply;
mod attach;
mod capacity;
pub mod caps;
mod crowd;
mod entries;
pub mod error;
pub mod fake;
mod figures;
pub mod inspect;
mod installed;
mod loader;
mod maps;
mod merge;
mod mmap;
mod netlink;
pub mod object;
mod observe;
mod pins;
mod pod;
mod promoted;
mod redate;
mod routes;
mod shape;
mod sources;
pub mod state;
mod store;
mod sys;
pub mod tables;
mod watch;
mod xdp;

use ratelimiter_common::abi::counters::Sample;
use ratelimiter_common::abi::merge::MergeOp;
use ratelimiter_common::abi::tracked::{SourceKey, Tracked};

pub use error::{Error, ErrorKind};
pub use fake::FakeDataPlane;
pub use pins::{Removed, detach_all};
pub use state::{
    Applied, AttachMode, AttachOptions, CrowdFill, CrowdSource, Drained, Figures, Health,
    Installed, Interface, InterfaceState, Stats, TableFigure,
};
pub use tables::Tables;
pub use xdp::{DEFAULT_ROOT, OpenOptions, XdpDataPlane};

use crate::policy::plan::Update;

/// Where packets are judged: the seam between the agent and the kernel.
pub trait DataPlane: Send + Sync {
    /// Attaches the program to `interface`, or updates the link that is already there, and keeps
    /// it attached from now on: an interface that vanishes is waited for.
    ///
    /// Attaching twice in the same mode changes nothing. Nothing is attached when an error is
    /// returned, and a program that was attached before stays.
    fn attach(&self, interface: &str, options: AttachOptions) -> Result<(), Error>;

    /// Detaches from `interface` and no longer watches it. Returns whether there was anything to
    /// detach.
    fn detach(&self, interface: &str) -> Result<bool, Error>;

    /// Returns every interface this data plane was told to attach to, by name, as last verified
    /// (at most one second ago).
    fn interfaces(&self) -> Vec<Interface>;

    /// Returns the gateways of this machine's default routes, each once; asks the kernel.
    fn gateways(&self) -> Result<Vec<std::net::IpAddr>, Error>;

    /// Returns what `readyz` and the metrics need to know, as last verified.
    fn health(&self) -> Health;

    /// Applies `updates` in order.
    ///
    /// Capacity is checked for the whole list first, so that what does not fit changes nothing.
    /// A change of a clock that came too late for its date is given a later one, and the answer
    /// says so.
    ///
    /// When a system call fails later, the updates before it stay applied and the error names the
    /// one that failed; plan again from [`DataPlane::installed`].
    fn apply(&self, updates: &[Update]) -> Result<Applied, Error>;

    /// Reads back what is installed. Takes about a second per million prefixes.
    fn installed(&self) -> Result<Installed, Error>;

    /// Returns the counters, summed over CPUs. They never run backwards while the maps live, and
    /// survive the agent.
    fn stats(&self) -> Result<Stats, Error>;

    /// Hands out the samples taken since the last call, oldest first per CPU, and counts those
    /// that were overwritten before they were read.
    fn drain_samples(&self, visit: &mut dyn FnMut(&Sample)) -> Result<Drained, Error>;

    /// Hands out the drop events that wait in the ring buffer and returns their number.
    fn drain_events(&self, visit: &mut dyn FnMut(&Sample)) -> Result<u64, Error>;

    /// Visits every source of the crowd that owes anything at `now_ns` (CLOCK_MONOTONIC).
    fn scan_crowd(&self, now_ns: u64, visit: &mut dyn FnMut(&CrowdSource)) -> Result<(), Error>;

    /// Visits every tracked source. A source inserted or deleted meanwhile may be missed.
    fn scan_tracked(&self, visit: &mut dyn FnMut(SourceKey, &Tracked)) -> Result<(), Error>;

    /// Reads the tracked sources of `keys`, in order; `None` for those that are not there.
    fn read_tracked(
        &self,
        keys: &[SourceKey],
        visit: &mut dyn FnMut(SourceKey, Option<&Tracked>),
    ) -> Result<(), Error>;

    /// Runs bucket operations in the kernel and fills in their results.
    fn merge(&self, ops: &mut [MergeOp]) -> Result<(), Error>;

    /// Returns how full the tables are and how much memory they take. Scans the crowd.
    fn figures(&self, now_ns: u64) -> Result<Figures, Error>;

    /// Returns the geometry in force: of the adopted maps where there were any.
    fn tables(&self) -> Tables;
}
