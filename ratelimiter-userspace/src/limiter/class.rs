//! Policies that callers name with each question, instead of having them assigned to clients: what
//! a Redis command carries along, what a descriptor of Envoy's matched.
//!
//! The client's debt belongs to the client: when the same id is asked under another class, it is
//! carried over as by an edit. Classes take part in snapshots and in eviction like everybody.

use super::answer::Answer;
use super::engine::Ask;
use super::identity::{ClientKey, IdKind};
use super::rate_limiter::RateLimiter;
use super::spec::{PolicySpec, SpecError};

/// A policy in force, by number. Stays valid while the limiter lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class(u32);

/// One question under a class.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Who asks; see [`RateLimiter::meet`].
    pub key: ClientKey,
    /// What applies.
    pub class: Class,
    /// How many units it costs; 0 asks without spending.
    pub cost: u64,
    /// Whether what passes is charged.
    pub charge: bool,
}

impl RateLimiter {
    /// Returns the class of a policy made by [`PolicySpec::of_class`]; equal policies share one.
    /// A class is never given back, so bound what you ask for.
    pub fn class(&self, spec: &PolicySpec) -> Result<Class, SpecError> {
        let engine = &self.inner().engine;
        let index = engine
            .registry
            .edit(self.edit_ns(), |edit| edit.intern(spec))?;
        Ok(Class(index))
    }

    /// Changes classes (`Some`) and makes new ones (`None`), all or none; returns them in order.
    /// Whoever owes something keeps owing it, up to the new limit.
    pub fn change_classes(
        &self,
        changes: &[(Option<Class>, PolicySpec)],
    ) -> Result<Vec<Class>, SpecError> {
        self.inner().engine.registry.edit(self.edit_ns(), |edit| {
            let mut classes = Vec::with_capacity(changes.len());
            for (class, spec) in changes {
                classes.push(match class {
                    Some(class) => {
                        edit.replace(class.0, spec)?;
                        *class
                    }
                    None => Class(edit.add(spec)?),
                });
            }
            Ok(classes)
        })
    }

    /// Computes the identity of an id and asks the processor to fetch its state. Meet some dozens,
    /// then ask: each check is several times faster where clients are many.
    #[inline]
    #[must_use]
    pub fn meet(&self, kind: IdKind, id: &[u8]) -> ClientKey {
        let inner = self.inner();
        let key = inner.identity.of_kind(kind, id);
        inner.engine.table.prefetch(inner.engine.table.home(key));
        key
    }

    /// Answers one question under a class at `now_ns` (see [`RateLimiter::now_ns`]).
    #[inline]
    #[must_use]
    pub fn call(&self, call: &Call, now_ns: u64) -> Answer {
        let ask = Ask {
            key: call.key,
            now_ns,
            cost: call.cost,
            charge: call.charge,
            only: None,
            under: call.class.0,
            id: &[],
            alone: false,
        };
        self.inner().engine.check(ask, || ())
    }
}
