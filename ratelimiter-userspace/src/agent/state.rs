//! What the agent's tasks share: the policy in force as everybody may read it, and the newest
//! figures.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixValue};
use ratelimiter_common::abi::tracked::SourceKey;
use ratelimiter_common::vclock::SegmentClock;
use serde::{Deserialize, Serialize};

use super::events::Events;
use super::follow::ConfigSync;
use super::talkers::Talker;
use crate::admin::ListName;
use crate::admin::views::{AdaptiveView, DefinedIn, Pending, SyncView};
use crate::check::Checks;
use crate::clock;
use crate::dataplane::{Figures, Health, Stats};
use crate::http::connections::ConnectionStats;
use crate::http::stats::HttpStats;
use crate::policy::model::{Document, Mode};
use crate::policy::plan::Prefix;
use crate::policy::set::Compiled;
use crate::redis::RedisStore;

/// How old the newest look at the kernel may be before the agent is not ready, in nanoseconds.
const STALE_NS: u64 = 2_000_000_000;

/// A change that takes itself back unless it is confirmed. Kept in the store, so that it does so
/// after a restart too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Trial {
    /// Revision the change made.
    pub(super) revision: u64,
    /// The object.
    pub(super) path: String,
    /// Who made it.
    pub(super) by: String,
    /// The object before.
    pub(super) before: serde_json::Value,
    /// When it ends, milliseconds since the Unix epoch.
    pub(super) deadline_unix_ms: u64,
}

impl Trial {
    pub(super) fn pending(&self) -> Pending {
        Pending {
            revision: self.revision,
            path: self.path.clone(),
            by: self.by.clone(),
            confirm_by: clock::rfc3339(self.deadline_unix_ms),
            confirm_by_unix_ms: self.deadline_unix_ms,
        }
    }
}

/// The policy in force. Immutable; a change publishes another.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// What the store has.
    pub(super) stored: Arc<Document>,
    /// What the configuration file has.
    pub(super) fixed: Arc<Document>,
    /// Both, complete with the defaults.
    pub(super) document: Arc<Document>,
    /// What follows for the kernel.
    pub(super) compiled: Arc<Compiled>,
    /// The entries in force, by slot.
    pub(super) policies: Arc<BTreeMap<u32, PolicyEntry>>,
    /// The segment clocks in force, by number.
    pub(super) segments: BTreeMap<u32, SegmentClock>,
    /// Changes on trial.
    pub(super) trials: Vec<Trial>,
    /// The strongest mode any policy has.
    pub(super) mode: Mode,
}

impl View {
    /// The clock of the segment a policy belongs to.
    pub(super) fn segment_clock(&self, entry: &PolicyEntry) -> SegmentClock {
        let clock = self.segments.get(&entry.segment);
        clock.copied().unwrap_or(SegmentClock::REAL)
    }

    /// The most specific prefix that covers `address`, with what it says.
    pub(super) fn covering(&self, address: IpAddr) -> Option<(Prefix, PrefixValue)> {
        covering(&self.compiled.prefixes, address)
    }

    /// Where the entry of a list is defined.
    pub(super) fn list_defined_in(&self, list: ListName, prefix: &IpNet) -> DefinedIn {
        if list.of(&self.fixed).contains_key(prefix) {
            DefinedIn::File
        } else if list.of(&self.stored).contains_key(prefix) {
            DefinedIn::Store
        } else {
            DefinedIn::Agent
        }
    }

    /// The trial of the object at `path`, if there is one.
    pub(super) fn trial(&self, path: &str) -> Option<Pending> {
        self.trials
            .iter()
            .find(|trial| trial.path == path)
            .map(Trial::pending)
    }
}

/// The most specific of `prefixes`, which ascend, that covers `address`.
pub(super) fn covering(
    prefixes: &[(Prefix, PrefixValue)],
    address: IpAddr,
) -> Option<(Prefix, PrefixValue)> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (0..=longest).rev().find_map(|len| {
        let wanted = Prefix::new(address, len).ok()?.trunc();
        let at = prefixes
            .binary_search_by(|(prefix, _)| prefix.cmp(&wanted))
            .ok()?;
        prefixes.get(at).copied()
    })
}

/// The newest figures.
#[derive(Clone, Debug, Default)]
pub(super) struct Figured {
    /// When they were taken, CLOCK_MONOTONIC in nanoseconds; 0 for never.
    pub(super) at_ns: u64,
    /// Counters.
    pub(super) stats: Stats,
    /// Frames offered per second.
    pub(super) packets_per_s: f64,
    /// Frames dropped per second.
    pub(super) dropped_per_s: f64,
    /// Conforming units per second and segment number.
    pub(super) conforming_per_s: Vec<f64>,
    /// Tables and crowd; taken less often.
    pub(super) figures: Figures,
    /// Links and pins.
    pub(super) health: Health,
    /// Top talkers, the fastest first.
    pub(super) talkers: Arc<Vec<Talker>>,
    /// Seconds of traffic their last minutes stand for.
    pub(super) observed_s: f64,
    /// Samples that were overwritten before they were read.
    pub(super) samples_lost: u64,
    /// Drop events read.
    pub(super) drop_events: u64,
    /// Checks over the last seconds.
    pub(super) checks: super::observe::throughput::CheckRates,
    /// Why the kernel could not be read, if it could not.
    pub(super) error: Option<String>,
}

/// What the agent's tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) view: ArcSwap<View>,
    pub(super) figured: ArcSwap<Figured>,
    pub(super) events: Events,
    pub(super) http: Arc<HttpStats>,
    pub(super) started: AtomicBool,
    pub(super) stopping: AtomicBool,
    pub(super) reloads_ok: AtomicU64,
    pub(super) reloads_failed: AtomicU64,
    /// Why the last reload was refused; empty if it was not.
    pub(super) reload_error: ArcSwap<String>,
    /// Why the last save of usage failed; empty if it did not.
    pub(super) save_error: ArcSwap<String>,
    /// Why the last write of the policy failed; empty if it did not.
    pub(super) apply_error: ArcSwap<String>,
    /// Why the last save of the check API's usage failed; empty if it did not.
    pub(super) checks_error: ArcSwap<String>,
    pub(super) checks: Checks,
    /// The store that the fleet shares, and its URL without the password.
    pub(super) redis: Option<(RedisStore, String)>,
    /// What follows health and load.
    pub(super) adaptive: ArcSwap<AdaptiveView>,
    /// Connections of the check API.
    pub(super) check_connections: Arc<ConnectionStats>,
    /// How packets are settled with the fleet; `None` without a shared store.
    pub(super) fleet: ArcSwap<super::fleet::Shown>,
    /// How it goes with the configuration that the fleet shares.
    pub(super) following: ConfigSync,
    pub(super) begin: Instant,
}

impl Shared {
    /// How it goes with the fleet.
    pub(super) fn sync(&self) -> SyncView {
        let (redis, url) = match &self.redis {
            Some((redis, url)) => (Some(redis), url.as_str()),
            None => (None, ""),
        };
        let config = self.following.view(redis.is_some());
        super::membership::view(&self.checks, redis, url, config)
    }

    /// What the reader of `readyz` should know although it works.
    pub(super) fn degraded(&self) -> Option<String> {
        let (redis, _) = self.redis.as_ref()?;
        if let Some(problem) = self.following.problem() {
            return Some(problem);
        }
        if !self.checks.limiter().is_alone() {
            return None;
        }
        let error = redis.figures().error;
        Some(format!(
            "the fleet's store is away, limits hold on this host alone: {error}"
        ))
    }

    /// What is not as it should be right now.
    pub(super) fn problems(&self) -> Vec<String> {
        let figured = self.figured.load();
        let mut problems = figured.health.problems.clone();
        if let Some(error) = &figured.error {
            problems.push(format!("the kernel's maps cannot be read: {error}"));
        }
        let age_ns = clock::monotonic_ns().saturating_sub(figured.at_ns);
        if age_ns > STALE_NS {
            problems.push(format!(
                "the kernel's state was last verified {:.1} s ago",
                age_ns as f64 / 1e9
            ));
        }
        for error in [&self.apply_error, &self.save_error, &self.checks_error] {
            let error = error.load();
            if !error.is_empty() {
                problems.push(error.to_string());
            }
        }
        if self.stopping.load(Ordering::Relaxed) {
            problems.push("the agent is stopping".to_owned());
        }
        problems
    }
}

/// How a source is shown: its address, or for IPv6 the prefix that makes one source.
pub(super) fn shown(key: SourceKey, family: u8, v6_prefix_len: u8) -> String {
    match key >> 48 {
        0x0001 => format!("shared bucket of policy {}", key as u32),
        0x0064 if key >> 32 == 0x0064 << 16 => {
            format!("64:ff9b::{}", Ipv4Addr::from(key as u32))
        }
        _ if family == 4 => Ipv4Addr::from(key as u32).to_string(),
        top if top >> 8 == 0xff => {
            // 56 of 64 bits of the interface identifier; the rest is folded into them.
            format!(
                "fe80::{}",
                Ipv6Addr::from(u128::from(key & ((1 << 56) - 1)))
            )
            .replace("::::", "::")
        }
        _ => format!("{}/{v6_prefix_len}", Ipv6Addr::from(u128::from(key) << 64)),
    }
}
