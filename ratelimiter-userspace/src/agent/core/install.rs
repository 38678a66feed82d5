//! From a document to the kernel: compile, plan, apply; and back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ratelimiter_common::abi::config::ZONES;
use ratelimiter_common::abi::policy::{PolicyEntry, Zone};

use crate::admin::{AdminError, Result};
use crate::check::Checks;
use crate::clock;
use crate::config::statics::overlay;
use crate::policy::lookup::Lookup;
use crate::policy::model::{Document, Mode};
use crate::policy::plan::{Installed, KERNEL_FLAGS, plan};
use crate::policy::set::{Compiled, Inputs, compile};
use crate::policy::validate::Issue;

use super::Core;
use super::errors::{invalid, plane_error};
use super::protect::{Protected, shelter};

/// Rounds of planning before a change is given up: each waits less than 20 ms.
const MAX_ROUNDS: usize = 64;

/// Policies and zones whose numbers a compilation keeps.
pub(super) type Numbers = (BTreeMap<u32, PolicyEntry>, [Zone; ZONES]);

impl Core {
    pub(super) fn compile(
        &self,
        stored: &Document,
        fixed: &Document,
        mode: Mode,
    ) -> Result<(Document, Compiled)> {
        self.compile_with(stored, fixed, mode, &self.protected)
    }

    /// As [`Self::compile`], with others let in for a while.
    pub(super) fn compile_with(
        &self,
        stored: &Document,
        fixed: &Document,
        mode: Mode,
        protected: &Protected,
    ) -> Result<(Document, Compiled)> {
        let mut document = overlay(stored, fixed);
        shelter(&mut document, protected);
        let inputs = self.inputs_now(mode);
        let (policies, zones) = (&self.installed.policies, &self.installed.zones);
        let compiled =
            compile(&document, &inputs, policies, zones).map_err(|issues| invalid(&issues))?;
        Checks::check_document(&document, mode).map_err(|at| {
            let kind = if at.client { "clients" } else { "segments" };
            invalid(&[Issue::at(&[kind, &at.name], at.error.to_string())])
        })?;
        Ok((document, compiled))
    }

    /// Puts the document in force at the check API too.
    pub(super) fn apply_checks(&self) -> Result<()> {
        self.checks
            .apply(&self.document, self.inputs.mode)
            .map_err(|error| AdminError::Capacity(error.to_string()))
    }

    /// As [`Self::compile`], against numbers that are not all installed.
    pub(super) fn compile_against(
        &self,
        stored: &Document,
        fixed: &Document,
        mode: Mode,
        (policies, zones): &Numbers,
    ) -> Result<(Document, Compiled)> {
        let mut document = overlay(stored, fixed);
        shelter(&mut document, &self.protected);
        let compiled = compile(&document, &self.inputs_now(mode), policies, zones)
            .map_err(|issues| invalid(&issues))?;
        Ok((document, compiled))
    }

    fn inputs_now(&self, mode: Mode) -> Inputs {
        Inputs {
            mode,
            now_ns: clock::monotonic_ns(),
            ..self.inputs
        }
    }

    /// Writes what is missing in the kernel.
    pub(super) fn install(&mut self, desired: &Compiled) -> Result<()> {
        for _ in 0..MAX_ROUNDS {
            let plan = plan(&self.installed, desired, clock::monotonic_ns());
            if plan.is_empty() {
                return Ok(());
            }
            let applied = self.plane.apply(&plan.updates).map_err(plane_error)?;
            self.installed.apply(&plan.updates);
            self.installed.apply(&applied.moved);
            let Some(again_at_ns) = plan.again_at_ns else {
                return Ok(());
            };
            let wait_ns = again_at_ns.saturating_sub(clock::monotonic_ns());
            std::thread::park_timeout(Duration::from_nanos(wait_ns.clamp(1_000, 50_000_000)));
        }
        Err(AdminError::Unavailable(format!(
            "the policy did not settle in the kernel within {MAX_ROUNDS} rounds"
        )))
    }

    /// Puts the kernel back to the policy in force, whatever half of another it has.
    pub(super) fn reinstall(&mut self) {
        let again = self
            .plane
            .installed()
            .map_err(plane_error)
            .and_then(|found| {
                self.installed = known(found);
                let next = self.in_force();
                self.install(&next)
            })
            .and_then(|()| self.apply_checks());
        let text = match again {
            Ok(()) => String::new(),
            Err(error) => {
                tracing::error!(%error, "the kernel does not have the policy in force");
                format!("the kernel does not have the policy in force: {error}")
            }
        };
        self.shared.apply_error.store(Arc::new(text));
    }
}

/// What the kernel has, as the planner knows it.
pub(super) fn known(found: crate::dataplane::Installed) -> Installed {
    let mut zones = Installed::default().zones;
    for (number, zone) in found.zones {
        if let Some(place) = zones.get_mut(number as usize) {
            *place = zone;
        }
    }
    let mut prefixes = found.prefixes;
    prefixes.sort_unstable_by_key(|(prefix, _)| *prefix);
    let mut tracked = found.tracked;
    tracked.sort_unstable_by_key(|(key, _)| *key);
    Installed {
        policies: found
            .policies
            .into_iter()
            .map(|entry| (entry.slot, entry))
            .collect(),
        segments: found.segments.into_iter().collect(),
        zones,
        prefixes: Arc::new(prefixes),
        lookup: Arc::new(Lookup {
            coarse: found.coarse,
            fine: found.fine,
        }),
        tracked: Arc::new(tracked),
        flags: found.config.flags & !KERNEL_FLAGS,
    }
}
