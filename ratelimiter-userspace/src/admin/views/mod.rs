//! What is answered, by subject. Every type reads back what it writes, so that the command line
//! uses the same ones; a newer agent may add fields, which are ignored.

mod adaptive;
mod change;
mod page;
mod policy;
mod snapshot;
mod source;
mod status;
mod sync;

pub use adaptive::{
    AdaptiveView, BackendView, HealthAnswer, HealthReport, LatencyMs, PauseRequest, ResumeRequest,
    SegmentScale, WindowView,
};
pub use change::{
    Change, ChangeView, Changed, Difference, DryRun, Event, EventKind, Pending, Tagged,
};
pub use page::{DEFAULT_PAGE, MAX_PAGE, Page, PageQuery};
pub use policy::{ClientView, DefinedIn, LimitRow, ListEntryView, Owner, SegmentView};
pub use snapshot::{BreakerView, CallerView, ChecksView, Snapshot};
pub use source::{Explanation, ResetAnswer, Rule, RuleKind, SourceRow, UnitState};
pub use status::{
    AttachRequest, CountView, CrowdView, Detached, InterfaceView, Readiness, Status, StoreView,
    TableView,
};
pub use sync::{ConfigState, ConfigSyncView, SyncView};
