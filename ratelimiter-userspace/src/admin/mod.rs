//! The operations people have, as one trait ([`Admin`]) and its request and answer types.
//!
//! Knows no transport: `http/` turns the types into JSON, `cli/` reads that JSON back into the same
//! types, `agent/` implements the trait. All times given to people are milliseconds since the Unix
//! epoch (`_unix_ms`), all durations seconds (`_s`).
//!
//! - [`edit`]: what can be changed, as a pure function from document to document
//! - [`error`]: why something was not done
//! - [`views`]: what is answered
pub mod edit;
pub mod error;
pub mod views;

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use crate::config::Right;
use crate::policy::model::Document;
pub use edit::{Edit, LimitPut, ListName, ListPut};
pub use error::{AdminError, FieldError};
use views::{
    AdaptiveView, AttachRequest, ChangeView, Changed, ChecksView, ClientView, Event, Explanation,
    HealthAnswer, HealthReport, InterfaceView, LimitRow, ListEntryView, Page, PageQuery,
    PauseRequest, ResetAnswer, ResumeRequest, SegmentView, SourceRow, Status, SyncView, Tagged,
};

/// Result of an operation.
pub type Result<T, E = AdminError> = std::result::Result<T, E>;

/// Shortest and longest `try`: a change must leave time to confirm it, and not be forgotten.
pub const TRY_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));

/// Header in which the command line says from where its user is logged in: the peer of the SSH session.
/// Believed of whoever may change things anyway.
pub const SSH_PEER_HEADER: &str = "ratelimiter-ssh-peer";

/// Who entries of the allow list are by that the agent made itself, so that nobody is locked out.
pub const PROTECTOR: &str = "agent";

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name of the credential, or `local` for somebody on loopback or the Unix socket.
    pub name: String,
    /// The peer's address; none on the Unix socket.
    pub address: Option<IpAddr>,
    /// Where the user of the command line is logged in from over SSH, if it said so.
    pub ssh_peer: Option<IpAddr>,
    /// What the caller may do.
    pub rights: Vec<Right>,
}

impl Caller {
    /// The addresses that must not be cut off: the peer's and where it is logged in from.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.address.into_iter().chain(self.ssh_peer).collect()
    }
}

/// How a change is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeOptions {
    /// Say what would happen and do nothing.
    pub dry_run: bool,
    /// Take the change back by itself unless it is confirmed within this time.
    pub try_for: Option<Duration>,
    /// Change only if the object's tag is one of these.
    pub if_match: Option<IfMatch>,
}

/// The condition of a change on the object's tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// The object exists, whatever it is (`If-Match: *`).
    Exists,
    /// The object does not exist (`If-None-Match: *`).
    Absent,
    /// The object's tag is one of these (`If-Match: "a", "b"`).
    Tags(Vec<String>),
}

/// What a running agent does for people.
#[async_trait]
pub trait Admin: Send + Sync + 'static {
    /// How the agent is.
    async fn status(&self) -> Result<Status>;

    /// Whether the agent does what it is configured to do right now: an empty list, or one
    /// sentence for each thing it does not. Never blocks; as true as at most 2 s ago.
    fn problems(&self) -> Vec<String>;

    /// Whether start-up is over.
    fn started(&self) -> bool;

    /// Whether the agent is about to end: what would go on for ever ends too.
    fn stopping(&self) -> bool;

    /// Clients by id; `q` searches ids, segments and sources.
    async fn clients(&self, query: PageQuery) -> Result<Page<ClientView>>;
    /// One client.
    async fn client(&self, id: &str) -> Result<Tagged<ClientView>>;
    /// One limit of a client by name: its own, or the one it has from its segment.
    async fn client_limit(&self, id: &str, name: &str) -> Result<Tagged<LimitRow>>;
    /// Segments by name.
    async fn segments(&self, query: PageQuery) -> Result<Page<SegmentView>>;
    /// One segment.
    async fn segment(&self, name: &str) -> Result<Tagged<SegmentView>>;
    /// Every limit of every segment and client.
    async fn limits(&self, query: PageQuery) -> Result<Page<LimitRow>>;
    /// The allow or the block list.
    async fn list(&self, list: ListName, query: PageQuery) -> Result<Page<ListEntryView>>;
    /// Everything configured at run time, to be edited and sent back with [`Edit::Replace`].
    async fn document(&self) -> Result<Tagged<Document>>;

    /// Makes a change: validates, persists, applies, then acknowledges. After an error the policy
    /// in force is the one before.
    async fn change(&self, edit: Edit, options: ChangeOptions, caller: &Caller) -> Result<Changed>;
    /// The audit log, newest first; `after` is a revision.
    async fn changes(&self, query: PageQuery) -> Result<Page<ChangeView>>;
    /// Keeps what is on trial: the change that made `revision`, or all.
    async fn confirm(&self, revision: Option<u64>, caller: &Caller) -> Result<Vec<Changed>>;
    /// Takes back what is on trial: the change that made `revision`, or all.
    async fn rollback(&self, revision: Option<u64>, caller: &Caller) -> Result<Vec<Changed>>;

    /// Sources by rate, the largest first; `q` searches addresses, clients and segments.
    async fn sources(&self, query: PageQuery) -> Result<Page<SourceRow>>;
    /// What would become of a packet from `address` now, and why.
    async fn explain_source(&self, address: IpAddr) -> Result<Explanation>;
    /// The same for a client: each of its sources' buckets, or its shared one.
    async fn explain_client(&self, id: &str) -> Result<Explanation>;
    /// Forgives everything a source owes.
    async fn reset_source(&self, address: IpAddr, caller: &Caller) -> Result<ResetAnswer>;
    /// Forgives everything a client owes.
    async fn reset_client(&self, id: &str, caller: &Caller) -> Result<ResetAnswer>;

    /// Interfaces the agent was told to protect.
    async fn interfaces(&self) -> Result<Vec<InterfaceView>>;
    /// Attaches to an interface and keeps it attached.
    async fn attach(
        &self,
        interface: &str,
        request: AttachRequest,
        caller: &Caller,
    ) -> Result<InterfaceView>;
    /// Detaches from an interface. Returns whether there was anything to detach.
    async fn detach(&self, interface: &str, caller: &Caller) -> Result<bool>;

    /// Reads the configuration file again, as SIGHUP does.
    async fn reload(&self, caller: &Caller) -> Result<Changed>;

    /// The newest events, oldest first; `after` is an event's number.
    async fn events(&self, query: PageQuery) -> Result<Page<Event>>;
    /// Resolves when there is an event newer than `after`.
    async fn event_after(&self, after: u64);

    /// How the check API does.
    async fn checks(&self) -> Result<ChecksView>;

    /// Takes a report of a backend's health; the answer comes when it has been acted upon.
    async fn health(&self, report: HealthReport, caller: &Caller) -> Result<HealthAnswer>;
    /// Limits that follow health and load, as they are now.
    async fn adaptive(&self) -> Result<AdaptiveView>;
    /// Holds what is in force, or a factor, until it is resumed.
    async fn pause(&self, request: PauseRequest, caller: &Caller) -> Result<AdaptiveView>;
    /// Lets the controllers decide again.
    async fn resume(&self, request: ResumeRequest, caller: &Caller) -> Result<AdaptiveView>;

    /// How it goes with the fleet.
    async fn sync(&self) -> Result<SyncView>;
    /// Tells the fleet's store everything again at once.
    async fn resync(&self, caller: &Caller) -> Result<SyncView>;
    /// What does not work although everything that is promised does: the fleet's store is away.
    fn degraded(&self) -> Option<String>;

    /// The metrics as text: Prometheus 0.0.4, or OpenMetrics 1.0.
    async fn metrics(&self, open_metrics: bool) -> Result<String>;
}
