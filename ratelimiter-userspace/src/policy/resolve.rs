//! Which limits apply to whom: the client's, else its segment's, else the default segment's.
//!
//! Nothing passes unlimited by omission: a segment that says nothing about packets, bytes and
//! connections has the default segment's limits of them, likewise for requests; and the default
//! segment always limits both. A unit a client does not limit has its segment's limit.
//! `mode = "off"` is how one says "unlimited".

use ratelimiter_common::quota::{KERNEL_UNITS, Limit, MAX_BURST, Quota, QuotaError};
use ratelimiter_common::verdict::Mode as CommonMode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clock::UnitTarget;
use super::model::{
    Algorithm, Client, DEFAULT_SEGMENT, Document, LimitSpec, Limits, Mode, Segment, Unit,
};
use crate::config::settings::default_limits;

/// Largest `rate_limit` for which requests are judged by the exact log unless told otherwise.
pub const SLIDING_LOG_LIMIT: u64 = 64;

/// Kernel units in the order of their numbers.
pub const KERNEL: [Unit; KERNEL_UNITS] = [Unit::Packets, Unit::Bytes, Unit::Connections];

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The client's own.
    Client,
    /// Its segment's.
    Segment,
    /// The default segment's, because the client's segment says nothing about it.
    DefaultSegment,
}

/// A limit as it applies to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective<'a> {
    /// The limit's name.
    pub name: &'a str,
    /// The limit as written.
    pub spec: &'a LimitSpec,
    /// Whose it is.
    pub source: Source,
    /// Its mode, bounded by the agent's.
    pub mode: Mode,
}

impl LimitSpec {
    /// The quota, with the default burst filled in.
    #[must_use]
    pub fn quota(&self) -> Quota {
        Quota {
            rate_limit: self.rate_limit,
            window_ns: self.time_window.as_ns(),
            burst: self
                .burst
                .unwrap_or_else(|| self.rate_limit.clamp(1, MAX_BURST)),
            unit: self.unit.into(),
        }
    }

    /// The compiled limit.
    pub fn limit(&self) -> Result<Limit, QuotaError> {
        self.quota().compile()
    }

    /// The algorithm, with the default filled in. A burst that differs from the limit asks for the
    /// token bucket: the window algorithms have none.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm.unwrap_or(match self.unit {
            Unit::Packets | Unit::Bytes | Unit::Connections => Algorithm::TokenBucket,
            Unit::Requests if self.burst.is_some_and(|burst| burst != self.rate_limit) => {
                Algorithm::TokenBucket
            }
            Unit::Requests if self.rate_limit <= SLIDING_LOG_LIMIT => Algorithm::SlidingLog,
            Unit::Requests => Algorithm::SlidingWindow,
        })
    }
}

impl Effective<'_> {
    /// What the kernel makes of it; `None` for a limit that does not compile.
    #[must_use]
    pub fn target(&self) -> Option<UnitTarget> {
        Some(UnitTarget {
            limit: self.spec.limit().ok()?,
            mode: self.mode.into(),
        })
    }
}

/// Makes sure that the default segment exists and limits what it must.
pub fn normalise(document: &mut Document) {
    let segment = document
        .segments
        .entry(DEFAULT_SEGMENT.to_owned())
        .or_default();
    let limits_requests = limits_unit(&segment.limits, &[Unit::Requests]);
    let limits_kernel = limits_unit(&segment.limits, &KERNEL);
    for (name, spec) in default_limits() {
        let present = if spec.unit == Unit::Requests {
            limits_requests
        } else {
            limits_kernel
        };
        if !present {
            let name = if segment.limits.contains_key(&name) {
                format!("{name}-default")
            } else {
                name
            };
            segment.limits.insert(name, spec);
        }
    }
}

/// Whether [`normalise`] would change nothing.
#[must_use]
pub fn is_normal(document: &Document) -> bool {
    document
        .segments
        .get(DEFAULT_SEGMENT)
        .is_some_and(|segment| {
            limits_unit(&segment.limits, &[Unit::Requests]) && limits_unit(&segment.limits, &KERNEL)
        })
}

fn limits_unit(limits: &Limits, units: &[Unit]) -> bool {
    limits.values().any(|spec| units.contains(&spec.unit))
}

/// Everything that says something about one client or segment, most particular first.
struct Layers<'a> {
    client: Option<&'a Client>,
    segment: Option<&'a Segment>,
    default: Option<&'a Segment>,
}

impl<'a> Layers<'a> {
    fn new(document: &'a Document, client: Option<&'a Client>, segment: &str) -> Self {
        Self {
            client,
            segment: (segment != DEFAULT_SEGMENT)
                .then(|| document.segments.get(segment))
                .flatten(),
            default: document.segments.get(DEFAULT_SEGMENT),
        }
    }

    /// The layers' limits with whose they are; the default segment is `Segment` to itself.
    fn limits(&self) -> impl Iterator<Item = (Source, &'a Limits)> {
        let default = if self.segment.is_some() {
            Source::DefaultSegment
        } else {
            Source::Segment
        };
        [
            self.client.map(|c| (Source::Client, &c.limits)),
            self.segment.map(|s| (Source::Segment, &s.limits)),
            self.default.map(|s| (default, &s.limits)),
        ]
        .into_iter()
        .flatten()
    }

    /// A client's own mode outranks what its segment's limits say; a limit of the same layer
    /// outranks the layer.
    fn mode(&self, source: Source, spec: &LimitSpec, agent: Mode) -> Mode {
        let client = self.client.and_then(|client| client.mode);
        let segment = self
            .segment
            .or(self.default)
            .and_then(|segment| segment.mode);
        let default = self.default.and_then(|segment| segment.mode);
        let mode = match source {
            Source::Client => spec.mode.or(client).or(segment),
            Source::Segment => client.or(spec.mode).or(segment),
            Source::DefaultSegment => client.or(segment).or(spec.mode).or(default),
        };
        bounded(mode.unwrap_or(agent), agent)
    }
}

/// The weaker of a mode and the agent's; off stays off.
#[must_use]
pub fn bounded(mode: Mode, agent: Mode) -> Mode {
    match CommonMode::from(mode).min(agent.into()) {
        CommonMode::Off => Mode::Off,
        CommonMode::Shadow => Mode::Shadow,
        CommonMode::Enforce => Mode::Enforce,
    }
}

/// Name of a client's segment.
#[must_use]
pub fn segment_of(client: &Client) -> &str {
    client.segment.as_deref().unwrap_or(DEFAULT_SEGMENT)
}

/// Returns the limits of packets, bytes and connections that apply to `client`, or to the sources
/// of `segment` where there is no client.
#[must_use]
pub fn kernel_limits<'a>(
    document: &'a Document,
    client: Option<&'a Client>,
    segment: &str,
    agent: Mode,
) -> [Option<Effective<'a>>; KERNEL_UNITS] {
    let layers = Layers::new(document, client, segment);
    // A segment that limits bytes alone has chosen its unit: the default segment only stands in
    // for one that says nothing about the kernel's units at all.
    let base = layers
        .limits()
        .filter(|(source, _)| *source != Source::Client)
        .find(|(_, limits)| limits_unit(limits, &KERNEL));
    KERNEL.map(|unit| {
        layers
            .limits()
            .filter(|(source, _)| *source == Source::Client)
            .chain(base)
            .find_map(|(source, limits)| {
                let (name, spec) = limits.iter().find(|(_, spec)| spec.unit == unit)?;
                Some(Effective {
                    name,
                    spec,
                    source,
                    mode: layers.mode(source, spec, agent),
                })
            })
    })
}

/// Returns the request limits that apply to `client`, or to an unknown client of `segment`: all of
/// the most particular layer that has any.
#[must_use]
pub fn request_limits<'a>(
    document: &'a Document,
    client: Option<&'a Client>,
    segment: &str,
    agent: Mode,
) -> Vec<Effective<'a>> {
    let layers = Layers::new(document, client, segment);
    for (source, limits) in layers.limits() {
        let found: Vec<_> = limits
            .iter()
            .filter(|(_, spec)| spec.unit == Unit::Requests)
            .map(|(name, spec)| Effective {
                name,
                spec,
                source,
                mode: layers.mode(source, spec, agent),
            })
            .collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}
