//! What applies to a client: its quotas, resolved from the [`Document`] with every default filled
//! in, and the limits of what this plane can represent.
//!
//! [`Document`]: crate::policy::model::Document

use std::sync::Arc;

use ratelimiter_common::quota::{MAX_BURST, Quota, QuotaError, Unit as CommonUnit};

use crate::policy::model::{
    Algorithm, Client, Consistency, DEFAULT_SEGMENT, Document, LimitSpec, Mode, OnStoreLoss,
    Segment, Unit,
};
use crate::policy::resolve::{Effective, SLIDING_LOG_LIMIT, request_limits, segment_of};

/// Largest limit of a sliding log: its memory is eight bytes per unit and client.
pub const MAX_LOG_LIMIT: u64 = 4_096;
/// Largest limit for which the sliding log is the default.
pub const DEFAULT_LOG_LIMIT: u64 = SLIDING_LOG_LIMIT;
/// Most request quotas a client may have at once.
pub const MAX_QUOTAS: usize = 16;
/// How the segments of classes begin; no configured segment may contain a colon.
const CLASS: char = ':';
/// Backend of segments that name none.
pub const DEFAULT_BACKEND: &str = "default";

/// One request quota, every default filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QuotaSpec {
    /// Its name among the client's limits.
    pub name: Arc<str>,
    /// How arrivals are judged.
    pub algorithm: Algorithm,
    /// Requests per window.
    pub rate_limit: u64,
    /// The window, in nanoseconds.
    pub window_ns: u64,
    /// Requests admitted at one instant; token bucket only.
    pub burst: u64,
    /// Shadow: decided and counted, never refused.
    pub shadow: bool,
    /// Over how many hosts it holds; `None` for the limiter's default.
    pub consistency: Option<Consistency>,
    /// What counts while the shared store is away.
    pub on_store_loss: OnStoreLoss,
}

/// Everything that decides how a client is judged. Clients with equal policies share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PolicySpec {
    /// Quotas by name; none means unlimited.
    pub quotas: Vec<QuotaSpec>,
    /// The client's segment.
    pub segment: Arc<str>,
    /// What the segment's clients use.
    pub backend: Arc<str>,
}

/// Why a request quota cannot be enforced here. Carries the limit's name, the value and the bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The quota cannot be compiled.
    #[error("limit `{0}`: {1}")]
    Quota(String, QuotaError),
    /// The sliding log would need too much memory.
    #[error(
        "limit `{0}`: `rate_limit` is {1}; `sliding_log` keeps every request and takes at most \
         {MAX_LOG_LIMIT}: use `sliding_window`"
    )]
    LogTooLarge(String, u64),
    /// The limit is above what a counter holds.
    #[error("limit `{0}`: `rate_limit` is {1}; it must be at most {MAX_BURST}")]
    TooLarge(String, u64),
    /// Too many quotas for one client.
    #[error("{0} request limits; a client has at most {MAX_QUOTAS}")]
    TooManyQuotas(usize),
    /// The client names a segment that does not exist.
    #[error("segment `{0}` does not exist")]
    UnknownSegment(String),
    /// More distinct policies than the limiter was built for.
    #[error("{0} distinct request policies are in use, the most this limiter was built for")]
    TooManyPolicies(usize),
    /// More distinct backends than are watched.
    #[error("{0} backends are in use, the most there may be")]
    TooManyBackends(usize),
    /// The client id is empty or too long.
    #[error("{0}")]
    ClientId(#[from] super::ClientIdError),
}

impl QuotaSpec {
    /// Resolves a limit; `None` where it is switched off.
    fn resolve(name: &str, limit: &LimitSpec, mode: Mode) -> Result<Option<Self>, SpecError> {
        if mode == Mode::Off {
            return Ok(None);
        }
        let algorithm = limit.algorithm();
        let spec = Self {
            name: Arc::from(name),
            algorithm,
            rate_limit: limit.rate_limit,
            window_ns: limit.time_window.as_ns(),
            burst: match algorithm {
                Algorithm::TokenBucket => limit.burst.unwrap_or(limit.rate_limit.max(1)),
                _ => limit.rate_limit,
            },
            shadow: mode == Mode::Shadow,
            consistency: limit.consistency,
            on_store_loss: limit.on_store_loss.unwrap_or_default(),
        };
        spec.check()?;
        Ok(Some(spec))
    }

    /// Checks that this plane can enforce the quota exactly.
    fn check(&self) -> Result<(), SpecError> {
        let name = || self.name.to_string();
        match self.algorithm {
            Algorithm::TokenBucket => self
                .quota()
                .compile()
                .map(|_| ())
                .map_err(|error| SpecError::Quota(name(), error)),
            _ if self.rate_limit == 0 => Err(SpecError::Quota(name(), QuotaError::ZeroRate)),
            Algorithm::SlidingLog if self.rate_limit > MAX_LOG_LIMIT => {
                Err(SpecError::LogTooLarge(name(), self.rate_limit))
            }
            _ if self.rate_limit > MAX_BURST => Err(SpecError::TooLarge(name(), self.rate_limit)),
            _ => Ok(()),
        }
    }

    /// The quota as the token bucket compiles it.
    pub(super) fn quota(&self) -> Quota {
        Quota {
            rate_limit: self.rate_limit,
            window_ns: self.window_ns,
            burst: self.burst,
            unit: CommonUnit::Requests,
        }
    }

    /// A quota that is not from a [`Document`]: enforced unless it says otherwise itself.
    pub(super) fn simple(name: &str, limit: &LimitSpec) -> Result<Self, SpecError> {
        Self::resolve(name, limit, limit.mode.unwrap_or(Mode::Enforce))?
            .ok_or_else(|| SpecError::Quota(name.to_owned(), QuotaError::ZeroRate))
    }
}

fn resolve_all(limits: &[Effective<'_>]) -> Result<Vec<QuotaSpec>, SpecError> {
    let mut quotas = Vec::new();
    for limit in limits {
        quotas.extend(QuotaSpec::resolve(limit.name, limit.spec, limit.mode)?);
    }
    if quotas.len() > MAX_QUOTAS {
        return Err(SpecError::TooManyQuotas(quotas.len()));
    }
    Ok(quotas)
}

fn backend_of(segment: Option<&Segment>) -> Arc<str> {
    let named = segment.and_then(|segment| segment.backend.as_deref());
    Arc::from(named.unwrap_or(DEFAULT_BACKEND))
}

impl PolicySpec {
    /// The policy of a segment's clients that have no request limit of their own. `mode` is the
    /// agent's, which bounds every other.
    pub fn of_segment(document: &Document, name: &str, mode: Mode) -> Result<Self, SpecError> {
        Ok(Self {
            quotas: resolve_all(&request_limits(document, None, name, mode))?,
            segment: Arc::from(name),
            backend: backend_of(document.segments.get(name)),
        })
    }

    /// The policy of a client with request limits of its own; `None` where its segment's applies.
    pub fn of_client(
        document: &Document,
        client: &Client,
        mode: Mode,
    ) -> Result<Option<Self>, SpecError> {
        let name = segment_of(client);
        let segment = document.segments.get(name);
        if segment.is_none() && name != DEFAULT_SEGMENT {
            return Err(SpecError::UnknownSegment(name.to_owned()));
        }
        let own = client
            .limits
            .values()
            .any(|limit| limit.unit == Unit::Requests);
        // A client with its own mode is judged apart even where the limits are the segment's.
        if !own && client.mode.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            quotas: resolve_all(&request_limits(document, Some(client), name, mode))?,
            segment: Arc::from(name),
            backend: backend_of(segment),
        }))
    }

    /// A policy that callers name with each question ([`super::Class`]), instead of having it
    /// assigned to clients. `family` keeps the policies of different callers apart.
    pub fn of_class(family: &str, quotas: Vec<QuotaSpec>) -> Result<Self, SpecError> {
        if quotas.len() > MAX_QUOTAS {
            return Err(SpecError::TooManyQuotas(quotas.len()));
        }
        quotas.iter().try_for_each(QuotaSpec::check)?;
        // Callers name a class by identity alone: there is nothing to make a fleet's key of.
        let quotas = quotas
            .into_iter()
            .map(|quota| QuotaSpec {
                consistency: Some(Consistency::Local),
                ..quota
            })
            .collect();
        Ok(Self {
            quotas,
            segment: Arc::from(format!("{CLASS}{family}")),
            backend: Arc::from(DEFAULT_BACKEND),
        })
    }

    /// Whether callers name this policy with each question.
    pub(super) fn is_class(&self) -> bool {
        self.segment.starts_with(CLASS)
    }

    /// A policy without quotas: not limited.
    pub(super) fn unlimited() -> Self {
        Self {
            quotas: Vec::new(),
            segment: Arc::from(DEFAULT_SEGMENT),
            backend: Arc::from(DEFAULT_BACKEND),
        }
    }
}
