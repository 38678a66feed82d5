//! The check API in the Redis protocol: `CL.THROTTLE` as redis-cell answers it, so that any Redis
//! client works unchanged.
//!
//! - [`reader`]: bytes to commands, pure
//! - [`session`]: commands to replies, pure but for the limiter and its clock
//! - `serve`: connections
//!
//! The whole read buffer is decoded, its ids hashed and fetched together, decided, and answered by
//! one write. Buckets of this protocol are apart from those of clients: each command carries its
//! own limit.

pub mod reader;
pub mod serve;
pub mod session;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::limiter::{Class, PolicySpec, QuotaSpec, RateLimiter, SpecError};
use crate::policy::model::Algorithm;

pub use serve::{Limits, serve};
pub use session::Session;

/// Most distinct triples of burst, count and period. Each takes a policy for good.
pub const MAX_LIMITS: usize = 4_096;

/// The limit a command carries along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Units admitted at one instant beyond the first.
    pub max_burst: u64,
    /// Units per period.
    pub count: u64,
    /// The period, in seconds.
    pub period_s: u64,
}

/// Why a limit is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The limiter cannot enforce it.
    #[error("{0}")]
    Spec(#[from] SpecError),
    /// Too many distinct ones.
    #[error(
        "{MAX_LIMITS} distinct limits are in use; use fewer combinations of burst, count and period"
    )]
    TooMany,
}

/// Whether whoever shows this token, or none, may check.
pub type Admit = Arc<dyn Fn(Option<&str>) -> bool + Send + Sync>;

/// What all connections share.
pub struct Throttle {
    limiter: RateLimiter,
    /// By limit, and whether in shadow mode.
    limits: RwLock<HashMap<(Limit, bool), Class>>,
    shadow: AtomicBool,
}

impl Throttle {
    /// Answers from `limiter`.
    #[must_use]
    pub fn new(limiter: RateLimiter) -> Self {
        Self {
            limiter,
            limits: RwLock::default(),
            shadow: AtomicBool::new(false),
        }
    }

    /// Whether everything passes and is only counted: the agent's mode bounds every limit.
    pub fn set_shadow(&self, shadow: bool) {
        self.shadow.store(shadow, Ordering::Relaxed);
    }

    fn is_shadow(&self) -> bool {
        self.shadow.load(Ordering::Relaxed)
    }

    /// Returns the class of a limit, made now if there is none.
    fn class(&self, limit: Limit, shadow: bool) -> Result<Class, LimitError> {
        let key = (limit, shadow);
        let known = |limits: &HashMap<(Limit, bool), Class>| limits.get(&key).copied();
        if let Some(class) = known(&self.limits.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(class);
        }
        let mut limits = self.limits.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(class) = known(&limits) {
            return Ok(class);
        }
        if limits.len() >= MAX_LIMITS {
            return Err(LimitError::TooMany);
        }
        let quota = QuotaSpec {
            name: Arc::from("throttle"),
            algorithm: Algorithm::TokenBucket,
            rate_limit: limit.count,
            window_ns: limit.period_s.saturating_mul(1_000_000_000),
            burst: limit.max_burst.saturating_add(1),
            shadow,
            consistency: None,
            on_store_loss: crate::policy::model::OnStoreLoss::Hold,
        };
        let class = self
            .limiter
            .class(&PolicySpec::of_class("throttle", vec![quota])?)?;
        limits.insert(key, class);
        Ok(class)
    }
}
