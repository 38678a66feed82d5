//! The check API: decisions on `client_id` in memory, exact and without waiting.
//!
//! A [`RateLimiter`] is cheap to clone and shared by all threads. A check of a known client touches
//! one cache line of the table and one of its policy, takes no lock and allocates nothing. Memory
//! is bounded: a full table gives a newcomer the place, and the debt, of the client that owes
//! least. Nothing here does I/O; the clock is read in [`crate::clock`] only, and every decision
//! takes its time as an argument.
//!
//! ```
//! use std::time::Duration;
//! use ratelimiter_userspace::limiter::{RateLimiter, TimeMode};
//!
//! let limiter = RateLimiter::builder().time_mode(TimeMode::Caller).build()?;
//! limiter.update_limit("c", 10, Duration::from_secs(60))?;
//! for _ in 0..10 {
//!     assert!(limiter.is_allowed("c", 1000));
//! }
//! assert!(!limiter.is_allowed("c", 1000));
//! assert!(limiter.is_allowed("c", 1061));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`answer`]: what a check answers; [`time`]: whose clock counts; [`spec`]: what is refused
//! - `identity`, `table`, `block`: who is known, and where its state is
//! - `rule`, `registry`, `meter`, `word`: policies and how a state is judged
//! - `engine`, `place`, `quotas`: the fast path, the slow path, and several quotas at once
//! - `many`: checks by the dozen
//! - `fleet`: limits that hold over several hosts
//! - `assign`, `apply`: from a document to each client; [`source`]: from a configuration service
//! - [`class`]: policies that callers name with each question
//! - `adapt`, `demand`: what controllers see and set
//! - `breakers`, `counters`, [`snapshot`]: what stands beside the checks

mod adapt;
pub mod answer;
mod apply;
mod assign;
mod block;
mod breakers;
mod builder;
pub mod class;
mod counters;
mod demand;
mod engine;
mod flags;
mod fleet;
mod identity;
mod many;
mod memory;
mod meter;
mod place;
mod quotas;
mod rate_limiter;
mod registry;
mod rule;
pub mod snapshot;
pub mod source;
pub mod spec;
mod table;
pub mod time;
mod upkeep;
mod word;

pub use adapt::{BackendCounts, ClientDemand};
pub use answer::{Answer, Reason};
pub use apply::{DocumentError, check_document};
pub use breakers::BreakerStatus;
pub use builder::{BuildError, Builder};
pub use class::{Call, Class};
pub use counters::{DURATION_BOUNDS_NS, DURATION_BUCKETS, Totals};
pub use fleet::{FleetOptions, FleetStatus};
pub use identity::{ClientKey, IdKind, Identity, IdentityKey};
pub use rate_limiter::{Policy, RateLimiter, Request, Stats};
pub use snapshot::{Restored, SnapshotError};
pub use source::{ConfigurationError, ConfigurationService, RateLimitConfiguration};
pub use spec::{PolicySpec, QuotaSpec, SpecError};
pub use time::{TimeMode, Timestamp};

use crate::policy::model::MAX_CLIENT_ID_BYTES;

/// What applies to a client nobody configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// The default segment's limits.
    #[default]
    DefaultSegment,
    /// Nothing passes.
    Deny,
    /// Everything passes.
    Allow,
}

/// Why a client id is refused. Any bytes are legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientIdError {
    /// No bytes.
    #[error("`client_id` is empty; it must have 1 to {MAX_CLIENT_ID_BYTES} bytes")]
    Empty,
    /// Too many bytes.
    #[error("`client_id` has {0} bytes; it must have 1 to {MAX_CLIENT_ID_BYTES}")]
    TooLong(usize),
}

/// Checks the length of a client id.
pub const fn check_client_id(id: &[u8]) -> Result<(), ClientIdError> {
    if id.is_empty() {
        Err(ClientIdError::Empty)
    } else if id.len() > MAX_CLIENT_ID_BYTES {
        Err(ClientIdError::TooLong(id.len()))
    } else {
        Ok(())
    }
}
