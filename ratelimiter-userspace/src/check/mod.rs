//! The check plane: one [`RateLimiter`] that follows the policy in force, for every transport.
//!
//! The agent makes one [`Checks`] and hands a clone to each listener (HTTP, gRPC, RESP). A
//! transport asks [`Checks::limiter`] and needs nothing else to decide: documents, modes, breakers
//! and reloads reach the limiter by themselves, and saved usage was put back before the first
//! listener starts.
//!
//! ```
//! use std::sync::Arc;
//! use ratelimiter_userspace::check::Checks;
//! use ratelimiter_userspace::config::Settings;
//! use ratelimiter_userspace::limiter::IdentityKey;
//!
//! let checks = Checks::new(&Settings::default(), IdentityKey::random(), Arc::default())?;
//! let limiter = checks.limiter();
//! let mut answers = Vec::new();
//! limiter.check_many(&[("alice", 1), ("bob", 1)], limiter.now_ns(), &mut answers);
//! limiter.observe_duration(1_500, 2); // from reading the requests to having the answers
//! assert!(answers.iter().all(|answer| answer.allowed));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - who may ask: [`Checks::gate`], [`Gate::admit_check`]
//! - what an answer says of itself: [`Checks::is_degraded`]
//! - whose address a request came from: [`forwarded`]
//! - whose address is blocked in the kernel: [`escalation`]
pub mod escalation;
pub mod forwarded;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::settings::Breaker;
use crate::config::{Settings, UnknownClients};
use crate::control::breaker::BreakerConfig;
use crate::http::gate::Gate;
use crate::limiter::{
    BuildError, DocumentError, FleetOptions, IdentityKey, RateLimiter, SpecError, TimeMode,
    Unknown, check_document,
};
use crate::policy::model::{Document, Mode};
use escalation::Escalation;
use forwarded::Proxies;

/// What every transport of the check API is given. Clones share everything.
#[derive(Clone)]
pub struct Checks {
    limiter: RateLimiter,
    inner: Arc<Inner>,
}

struct Inner {
    gate: Arc<Gate>,
    proxies: ArcSwap<Proxies>,
    /// Backends whose breaker is on.
    broken: Mutex<BTreeSet<String>>,
    degraded: AtomicBool,
    escalation: Escalation,
}

impl Checks {
    /// A check plane without a document: nothing but the built-in default segment, enforced.
    ///
    /// `key` is that of the saved usage, if there is one
    /// ([`crate::limiter::snapshot::identity_key`]).
    ///
    /// # Errors
    ///
    /// If there is no memory for `check.max_clients`, or a setting is out of its bounds.
    pub fn new(settings: &Settings, key: IdentityKey, gate: Arc<Gate>) -> Result<Self, BuildError> {
        Self::of_fleet(settings, key, gate, None)
    }

    /// As [`Checks::new`], as one of the hosts of a fleet; see [`RateLimiter::join`].
    ///
    /// # Errors
    ///
    /// As [`Checks::new`].
    pub fn of_fleet(
        settings: &Settings,
        key: IdentityKey,
        gate: Arc<Gate>,
        fleet: Option<FleetOptions>,
    ) -> Result<Self, BuildError> {
        let check = &settings.check;
        let mut builder = RateLimiter::builder()
            .capacity(usize::try_from(check.max_clients).unwrap_or(usize::MAX))
            .time_mode(TimeMode::System {
                skew: Duration::from_millis(check.max_skew_ms),
            })
            .mode(settings.mode())
            .identity_key(key);
        if let Some(options) = fleet {
            builder = builder.fleet(options);
        }
        let limiter = builder.build()?;
        let checks = Self {
            limiter,
            inner: Arc::new(Inner {
                gate,
                proxies: ArcSwap::default(),
                broken: Mutex::default(),
                degraded: AtomicBool::new(false),
                escalation: Escalation::default(),
            }),
        };
        checks.configure(settings)?;
        Ok(checks)
    }

    /// The limiter that decides.
    #[must_use]
    pub fn limiter(&self) -> &RateLimiter {
        &self.limiter
    }

    /// Who may ask.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    /// Whose forwarded addresses are believed, as configured now.
    #[must_use]
    pub fn proxies(&self) -> Arc<Proxies> {
        self.inner.proxies.load_full()
    }

    /// Who was refused many times in a row.
    #[must_use]
    pub fn escalation(&self) -> &Escalation {
        &self.inner.escalation
    }

    /// Whether this host decides alone although it is one of many. Part of every answer.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.inner.degraded.load(Ordering::Relaxed) || self.limiter.is_alone()
    }

    /// Says whether the shared store is out of reach.
    pub fn set_degraded(&self, degraded: bool) {
        self.inner.degraded.store(degraded, Ordering::Relaxed);
    }

    /// Takes over what a reload may change: proxies, the identity header, unknown clients, breakers.
    ///
    /// # Errors
    ///
    /// If there are more backends or policies than the limiter was built for.
    pub fn configure(&self, settings: &Settings) -> Result<(), SpecError> {
        let check = &settings.check;
        self.inner.proxies.store(Arc::new(Proxies::new(
            check.trusted_proxies.clone(),
            &check.identity_header,
            settings.kernel.v6_prefix_len,
        )));
        self.limiter.set_unknown(match check.unknown_clients {
            UnknownClients::DefaultSegment => Unknown::DefaultSegment,
            UnknownClients::Deny => Unknown::Deny,
            UnknownClients::Allow => Unknown::Allow,
        })?;
        let mut broken = self
            .inner
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut wanted = BTreeSet::new();
        for (name, backend) in &settings.backends {
            if let Some(breaker) = &backend.breaker {
                self.limiter.set_breaker(name, Some(compiled(breaker)))?;
                wanted.insert(name.clone());
            }
        }
        for name in broken.difference(&wanted) {
            self.limiter.set_breaker(name, None)?;
        }
        *broken = wanted;
        Ok(())
    }

    /// Whether `document` could be put in force.
    ///
    /// # Errors
    ///
    /// Where it could not: which object, and the bound.
    pub fn check_document(document: &Document, mode: Mode) -> Result<(), DocumentError> {
        check_document(document, mode)
    }

    /// Puts `document` in force, whole or not at all. Nobody gets a second burst, nobody is locked
    /// out.
    ///
    /// # Errors
    ///
    /// What [`Checks::check_document`] says, or more distinct policies than there may be.
    pub fn apply(&self, document: &Document, mode: Mode) -> Result<(), SpecError> {
        self.limiter.apply_document_in(document, mode)?;
        self.inner.escalation.follow(document);
        Ok(())
    }
}

impl std::fmt::Debug for Checks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checks")
            .field("limiter", &self.limiter)
            .finish_non_exhaustive()
    }
}

fn compiled(breaker: &Breaker) -> BreakerConfig {
    let ratio = |ratio: f64| (ratio > 0.0).then_some(ratio);
    BreakerConfig {
        error_ratio: ratio(breaker.error_ratio),
        deny_ratio: ratio(breaker.deny_ratio),
        deny_for_ns: breaker.deny_for.as_ns(),
        open_ns: breaker.open_for.as_ns(),
        probes: breaker.probes,
        ..BreakerConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Backend;
    use crate::limiter::Reason;
    use crate::policy::resolve::normalise;

    fn checks(settings: &Settings) -> Checks {
        Checks::new(settings, IdentityKey([7; 16]), Arc::default()).unwrap()
    }

    fn enforcing() -> Settings {
        let mut settings = Settings {
            enforce: true,
            ..Settings::default()
        };
        settings.check.max_clients = 1_000;
        settings
    }

    fn document(text: &str) -> Document {
        let mut document: Document = toml::from_str(text).unwrap();
        normalise(&mut document);
        document
    }

    const ALICE: &str = "[clients.alice.limits.default]\nrate_limit = 10\ntime_window = \"1m\"";

    #[test]
    fn a_document_applies_at_once_without_a_second_burst() {
        let checks = checks(&enforcing());
        checks.apply(&document(ALICE), Mode::Enforce).unwrap();
        let passed = |n| {
            (0..n)
                .filter(|_| checks.limiter().allow_request("alice"))
                .count()
        };
        assert_eq!(passed(12), 10);
        let raised = ALICE.replace("10", "15");
        checks.apply(&document(&raised), Mode::Enforce).unwrap();
        assert_eq!(passed(12), 5);
        checks.apply(&document(ALICE), Mode::Enforce).unwrap();
        assert_eq!(passed(1), 0);
    }

    #[test]
    fn the_agents_mode_bounds_every_other() {
        let checks = checks(&enforcing());
        let document = document(&format!("[clients.alice]\nmode = \"enforce\"\n{ALICE}"));
        checks.apply(&document, Mode::Shadow).unwrap();
        let mut last = Reason::Conforming;
        for _ in 0..12 {
            let answer = checks.limiter().check("alice", 1).unwrap();
            assert!(answer.allowed);
            last = answer.reason;
        }
        assert_eq!(last, Reason::Shadow);
        checks.apply(&document, Mode::Enforce).unwrap();
        assert!(!checks.limiter().allow_request("alice"), "debt is kept");
    }

    #[test]
    fn a_segment_without_request_limits_has_those_of_the_default_segment() {
        let checks = checks(&enforcing());
        let text = "[segments.gold]\nweight = 2\n[clients.a]\nsegment = \"gold\"";
        checks.apply(&document(text), Mode::Enforce).unwrap();
        assert_eq!(checks.limiter().check("a", 1).unwrap().limit, 100);
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_by_name_before_anything_changes() {
        let checks = checks(&enforcing());
        checks.apply(&document(ALICE), Mode::Enforce).unwrap();
        let large = "[clients.bob.limits.x]\nrate_limit = 5000\ntime_window = 60\n\
                     algorithm = \"sliding_log\"";
        let error = Checks::check_document(&document(large), Mode::Enforce).unwrap_err();
        assert!(error.client && error.name == "bob", "{error}");
        assert!(error.to_string().contains("at most 4096"), "{error}");
        checks.apply(&document(large), Mode::Enforce).unwrap_err();
        assert_eq!(checks.limiter().check("alice", 1).unwrap().limit, 10);
    }

    #[test]
    fn unknown_clients_and_breakers_follow_the_settings() {
        let mut settings = enforcing();
        settings.check.unknown_clients = UnknownClients::Deny;
        let checks = checks(&settings);
        checks.apply(&document(ALICE), Mode::Enforce).unwrap();
        assert!(!checks.limiter().allow_request("stranger"));
        assert!(checks.limiter().allow_request("alice"));
        assert!(checks.limiter().breakers().is_empty());

        settings.check.unknown_clients = UnknownClients::DefaultSegment;
        let backend = Backend {
            breaker: Some(Breaker::default()),
            ..Backend::default()
        };
        settings.backends.insert("default".to_owned(), backend);
        checks.configure(&settings).unwrap();
        assert!(checks.limiter().allow_request("stranger"));
        assert_eq!(checks.limiter().breakers().len(), 1);
        settings.backends.clear();
        checks.configure(&settings).unwrap();
        assert!(checks.limiter().breakers().is_empty());
    }
}
