//! How a [`RateLimiter`] is set up; every value has a default.

use std::sync::Arc;
use std::time::Duration;

use super::Unknown;
use super::block::Blocks;
use super::engine::Engine;
use super::fleet::{Fleet, FleetOptions};
use super::identity::{Identity, IdentityKey};
use super::rate_limiter::RateLimiter;
use super::registry::Common;
use super::source::{ConfigurationService, SourceOptions};
use super::spec::SpecError;
use super::table::Table;
use super::time::{MAX_SKEW, TimeMode};
use crate::policy::model::{
    DEFAULT_LIMIT, DEFAULT_SEGMENT, Document, LimitSpec, Mode, Segment, Unit,
};
use crate::policy::units::Window;

/// Why a limiter cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The operating system has no memory for the table.
    #[error("no memory for {clients} clients: {error}")]
    Memory {
        /// The capacity asked for.
        clients: usize,
        /// The operating system's answer.
        error: std::io::Error,
    },
    /// The skew bound is too large.
    #[error("`skew` is {0:?}; it must be at most {MAX_SKEW:?}")]
    Skew(Duration),
    /// The capacity is out of range.
    #[error("`capacity` is {0} clients; it must be between 1 and {MAX_CAPACITY}")]
    Capacity(usize),
    /// The document cannot be enforced.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The thread that asks the configuration service could not be started.
    #[error("cannot start the thread that asks the configuration service: {0}")]
    Thread(std::io::Error),
}

/// Largest capacity, in clients.
pub(super) const MAX_CAPACITY: usize = 1 << 30;

/// Sets up a [`RateLimiter`].
pub struct Builder {
    capacity: usize,
    block_bytes: u64,
    policies: usize,
    time_mode: TimeMode,
    mode: Mode,
    unknown: Unknown,
    key: IdentityKey,
    document: Document,
    source: Option<(Arc<dyn ConfigurationService>, SourceOptions)>,
    fleet: Option<FleetOptions>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            capacity: 1_000_000,
            block_bytes: 256 << 20,
            policies: 65_536,
            time_mode: TimeMode::default(),
            mode: Mode::Enforce,
            unknown: Unknown::default(),
            key: IdentityKey::random(),
            document: default_document(),
            source: None,
            fleet: None,
        }
    }
}

/// A document whose default segment allows 100 requests per minute.
fn default_document() -> Document {
    let mut document = Document::default();
    if let Ok(time_window) = Window::from_ns(60_000_000_000) {
        let mut segment = Segment::default();
        segment.limits.insert(
            DEFAULT_LIMIT.to_owned(),
            LimitSpec {
                rate_limit: 100,
                time_window,
                burst: None,
                unit: Unit::Requests,
                algorithm: None,
                mode: None,
                consistency: None,
                on_store_loss: None,
            },
        );
        document
            .segments
            .insert(DEFAULT_SEGMENT.to_owned(), segment);
    }
    document
}

impl Builder {
    /// Most clients known at once; 1 million by default, about 43 bytes each. Beyond it those who
    /// owe least give way.
    #[must_use]
    pub fn capacity(mut self, clients: usize) -> Self {
        self.capacity = clients;
        self
    }

    /// Most bytes for states that need more than a word (sliding logs, several quotas at once, the
    /// caller's clock); 256 MiB by default. Where they are used up, a client is judged by one token
    /// bucket of the slowest rate and the smallest burst among its quotas.
    #[must_use]
    pub fn block_bytes(mut self, bytes: u64) -> Self {
        self.block_bytes = bytes;
        self
    }

    /// Most distinct policies; 65536 by default, at most 2^20.
    #[must_use]
    pub fn policies(mut self, policies: usize) -> Self {
        self.policies = policies;
        self
    }

    /// Whose clock counts; this host's by default, with a skew bound of 2 s.
    #[must_use]
    pub fn time_mode(mut self, mode: TimeMode) -> Self {
        self.time_mode = mode;
        self
    }

    /// Mode of limits for which nobody names one; enforce by default.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// What applies to clients nobody configured; the default segment's limits by default.
    #[must_use]
    pub fn unknown(mut self, unknown: Unknown) -> Self {
        self.unknown = unknown;
        self
    }

    /// The key under which ids are hashed; random by default. Give the saved one before restoring
    /// a snapshot.
    #[must_use]
    pub fn identity_key(mut self, key: IdentityKey) -> Self {
        self.key = key;
        self
    }

    /// What is configured at first; by default a default segment of 100 requests per minute.
    #[must_use]
    pub fn document(mut self, document: Document) -> Self {
        self.document = document;
        self
    }

    /// Asks `service` for the limits of clients the document does not name.
    #[must_use]
    pub fn configuration_service(
        mut self,
        service: Arc<dyn ConfigurationService>,
        options: SourceOptions,
    ) -> Self {
        self.source = Some((service, options));
        self
    }

    /// Makes the limiter one of a fleet: limits hold over all of its hosts unless they say
    /// otherwise, once [`RateLimiter::join`] was called; until then as while the store is away. With
    /// the caller's clock every limit is local.
    #[must_use]
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = Some(options);
        self
    }

    /// Builds the limiter.
    pub fn build(self) -> Result<RateLimiter, BuildError> {
        if self.capacity == 0 || self.capacity > MAX_CAPACITY {
            return Err(BuildError::Capacity(self.capacity));
        }
        if let TimeMode::System { skew } = self.time_mode
            && skew > MAX_SKEW
        {
            return Err(BuildError::Skew(skew));
        }
        let memory = |error| BuildError::Memory {
            clients: self.capacity,
            error,
        };
        let common = Common {
            caller_clock: self.time_mode == TimeMode::Caller,
            fleet: self.fleet.is_some(),
        };
        let table = Table::new(self.capacity).map_err(memory)?;
        let blocks = Blocks::new(self.block_bytes);
        let mut engine = Engine::new(table, blocks, self.policies, common).map_err(memory)?;
        engine.fleet = self.fleet.map(|options| Arc::new(Fleet::new(options)));
        let limiter =
            RateLimiter::assemble(engine, Identity::new(self.key), self.time_mode, self.mode);
        limiter.set_unknown(self.unknown)?;
        limiter.apply_document(&self.document)?;
        if let Some((service, options)) = self.source {
            limiter
                .follow(service, options)
                .map_err(BuildError::Thread)?;
        }
        Ok(limiter)
    }
}
