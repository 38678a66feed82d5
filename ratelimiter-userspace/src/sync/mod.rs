//! Many hosts, one limit: what is agreed between them, without the network.
//!
//! - [`settle`]: the words of the protocol: an [`Entry`] goes to the store, an [`Answer`] comes back
//! - [`beat`]: the registry of hosts, and which sources are hot
//! - [`config`]: who has the newest configuration, host or store
//! - [`host`]: one host on the packet plane: what is hot, what to settle, what answers mean
//! - [`loss`]: what a policy does while the store is away
//! - [`lease`]: what one host holds of one client's bucket
//! - [`ledger`]: what the store does with both, in memory: the reference for the store's scripts
//!
//! Pure: no clock is read, time is an argument, and nothing here knows a network or a kernel. How
//! the algorithm works is in `docs/fleet.md`.

pub mod beat;
pub mod config;
pub mod host;
pub mod lease;
pub mod ledger;
pub mod loss;
pub mod settle;

pub use beat::{Beat, Fleet, HotSource};
pub use host::{Host, Tuning};
pub use ledger::Ledger;
pub use loss::{OnStoreLoss, Share};
pub use settle::{Answer, Entry, FleetKey, FleetQuota, KeyHasher, Plane, Settled};

/// The store that hosts share, as the loops that settle see it.
///
/// Implementations give every call an outer deadline, answer [`Unsettled`] when it has passed, and
/// never send a batch a second time: what came of an unanswered batch is unknown, and charging it
/// twice denies the innocent.
#[async_trait::async_trait]
pub trait Settle: Send + Sync {
    /// Settles `batch`, at most [`settle::MAX_BATCH`] entries; the answers are in its order.
    async fn settle(&self, batch: &[Entry]) -> Result<Settled, Unsettled>;

    /// Tells the registry that this host lives, and learns who else does.
    async fn beat(&self, beat: &Beat) -> Result<Fleet, Unsettled>;
}

/// Why the store did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsettled {
    /// No store to be reached now: it refused, or the breaker is open. The batch was not settled.
    #[error("the store is away: {0}")]
    Away(String),
    /// The connection broke off, or one part of a cluster did not answer. The batch, or some of it,
    /// may have been settled nevertheless.
    #[error("the store broke off: {0}")]
    Broken(String),
    /// The deadline passed. The batch may have been settled nevertheless.
    #[error("no answer from the store within {0} ms")]
    Late(u64),
    /// The store answered, but not with what was asked for.
    #[error("the store's answer is not understood: {0}")]
    Garbled(String),
}
