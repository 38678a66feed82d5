//! Changes on trial: what the kernel holds of them, and how they end.

use std::sync::Arc;

use crate::admin::edit::{object, restored};
use crate::admin::views::{Changed, EventKind};
use crate::admin::{AdminError, Result};
use crate::agent::state::Trial;
use crate::clock;
use crate::policy::model::Document;
use crate::policy::plan::clamps_in_force;
use crate::policy::set::Compiled;
use crate::policy::trial;
use crate::store::NewChange;

use super::errors::{plane_error, store_error};
use super::fleet::{Claim, warn_alone};
use super::install::Numbers;
use super::{Core, REBUILDS, TRIALS};

impl Core {
    /// Keeps changes on trial.
    pub(in crate::agent) fn confirm(
        &mut self,
        revision: Option<u64>,
        by: &str,
    ) -> Result<Vec<Changed>> {
        for _ in 0..REBUILDS {
            if let Some(changed) = self.try_confirm(revision, by)? {
                return Ok(changed);
            }
        }
        Err(AdminError::Conflict(format!(
            "the fleet's configuration was changed by others {REBUILDS} times meanwhile; try again"
        )))
    }

    /// `None` if the fleet has another configuration, which is in force now.
    fn try_confirm(&mut self, revision: Option<u64>, by: &str) -> Result<Option<Vec<Changed>>> {
        let (chosen, rest) = self.choose(revision)?;
        let stored = Arc::clone(&self.stored);
        let what = match chosen.as_slice() {
            [one] => format!("confirm `{}`", one.path),
            many => format!("confirm {} changes", many.len()),
        };
        let claim = self.claim(&stored, &rest, by, &what)?;
        if claim == Claim::Moved {
            return Ok(None);
        }
        let kept = std::mem::replace(&mut self.trials, rest);
        let confirmed = self
            .leased(&self.stored, &self.compiled, &self.trials)
            .and_then(|next| self.install(&next))
            .and_then(|()| self.save_trials());
        if confirmed.is_err() {
            self.trials = kept;
        }
        self.claimed(&claim, confirmed.is_ok());
        if let Err(error) = confirmed {
            self.reinstall();
            return Err(error);
        }
        self.publish();
        let confirmed = chosen
            .iter()
            .map(|trial| {
                let what = format!("confirm `{}` (revision {})", trial.path, trial.revision);
                self.shared
                    .events
                    .push(EventKind::Change, format!("{by}: {what}"));
                let mut changed = Changed {
                    revision: self.stored.revision,
                    path: trial.path.clone(),
                    what,
                    ..Changed::default()
                };
                warn_alone(&claim, &mut changed);
                changed
            })
            .collect();
        Ok(Some(confirmed))
    }

    /// Takes changes on trial back, the newest first.
    pub(in crate::agent) fn rollback(
        &mut self,
        revision: Option<u64>,
        by: &str,
    ) -> Result<Vec<Changed>> {
        let (mut chosen, _) = self.choose(revision)?;
        chosen.sort_by_key(|trial| std::cmp::Reverse(trial.revision));
        let mut answers = Vec::new();
        for trial in chosen {
            let restored = restored(&self.stored, &trial.path, &trial.before).ok_or_else(|| {
                AdminError::Conflict(format!(
                    "`{}` cannot be taken back: what it was before is not known",
                    trial.path
                ))
            })?;
            let next = self.compile(&restored, &self.fixed, self.inputs.mode)?;
            let what = format!("roll back `{}` (revision {})", trial.path, trial.revision);
            let mut changed = self.answer(&trial.path, what.clone(), &restored, &next.1);
            let change = NewChange {
                at_unix_ms: clock::unix_ms(),
                by: by.to_owned(),
                what,
                path: trial.path.clone(),
                before: object(&self.stored, &trial.path),
                after: trial.before.clone(),
                confirm_by_unix_ms: None,
            };
            let kept = self.trials.clone();
            self.trials.retain(|other| other.revision != trial.revision);
            if let Err(error) = self.commit(restored, next, change, None) {
                self.trials = kept;
                return Err(error);
            }
            // The way back may have been taken by the kernel already: a debt under the larger burst
            // of the trial is then still there.
            self.clamp()?;
            changed.revision = self.stored.revision;
            answers.push(changed);
        }
        Ok(answers)
    }

    fn choose(&self, revision: Option<u64>) -> Result<(Vec<Trial>, Vec<Trial>)> {
        let (chosen, rest): (Vec<Trial>, Vec<Trial>) = self
            .trials
            .iter()
            .cloned()
            .partition(|trial| revision.is_none_or(|revision| trial.revision == revision));
        match revision {
            Some(revision) if chosen.is_empty() => Err(AdminError::NotFound {
                what: "change on trial of revision",
                name: revision.to_string(),
            }),
            _ => Ok((chosen, rest)),
        }
    }

    /// `compiled` with the ways back of the changes on trial: should the agent die, the kernel takes
    /// each back by itself at its own deadline.
    pub(super) fn leased(
        &self,
        stored: &Document,
        compiled: &Arc<Compiled>,
        trials: &[Trial],
    ) -> Result<Arc<Compiled>> {
        if trials.is_empty() {
            return Ok(Arc::clone(compiled));
        }
        let mut first_to_end: Vec<&Trial> = trials.iter().collect();
        first_to_end.sort_by_key(|trial| (trial.deadline_unix_ms, trial.revision));
        // What each stage adds gets numbers that no other stage has.
        let known = self.numbered(compiled);
        let mut stages = vec![(Arc::clone(compiled), 0)];
        let mut left = stored.clone();
        for trial in first_to_end {
            let deadline_ns = self.inputs.time.monotonic_ns(trial.deadline_unix_ms);
            if let Some(last) = stages.last_mut() {
                last.1 = deadline_ns;
            }
            if let Some(restored) = restored(&left, &trial.path, &trial.before) {
                left = restored;
            }
            let next = self.compile_against(&left, &self.fixed, self.inputs.mode, &known);
            let (_, next) = next.map_err(|error| {
                AdminError::Conflict(format!(
                    "without the change of `{}` on trial (revision {}), which may take itself \
                     back, this would be refused: {error}",
                    trial.path, trial.revision
                ))
            })?;
            stages.push((Arc::new(next), 0));
        }
        let Some(((confirmed, _), pending)) = stages.split_last() else {
            return Ok(Arc::clone(compiled));
        };
        let pending: Vec<trial::Stage<'_>> = pending
            .iter()
            .map(|(set, until_ns)| trial::Stage {
                set,
                until_ns: *until_ns,
            })
            .collect();
        trial::overlay(&pending, confirmed)
            .map(Arc::new)
            .map_err(|issue| AdminError::Conflict(issue.message))
    }

    /// The numbers in use: those that are installed and those that `compiled` hands out.
    fn numbered(&self, compiled: &Compiled) -> Numbers {
        let mut policies = self.installed.policies.clone();
        for (slot, target) in &compiled.policies {
            policies
                .entry(*slot)
                .and_modify(|entry| entry.identity = target.identity)
                .or_insert_with(|| target.empty_entry(*slot));
        }
        let mut zones = self.installed.zones;
        for (zone, wanted) in zones.iter_mut().zip(&compiled.zones) {
            if wanted.used == 1 {
                *zone = *wanted;
            }
        }
        (policies, zones)
    }

    /// What the kernel shall have now: with ways back where that can be done. Where it cannot (new
    /// tables gave other numbers), the agent alone takes the changes on trial back.
    pub(super) fn in_force(&self) -> Arc<Compiled> {
        self.leased(&self.stored, &self.compiled, &self.trials)
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "changes on trial have no way back in the kernel");
                Arc::clone(&self.compiled)
            })
    }

    /// Lowers tracked debts to the bursts in force.
    pub(super) fn clamp(&mut self) -> Result<()> {
        let clamps = clamps_in_force(&self.installed.policies, clock::monotonic_ns());
        if !clamps.is_empty() {
            self.plane.apply(&clamps).map_err(plane_error)?;
        }
        Ok(())
    }

    pub(super) fn save_trials(&self) -> Result<()> {
        let bytes = serde_json::to_vec(&self.trials).map_err(|error| {
            AdminError::Unavailable(format!("trials have no JSON form: {error}"))
        })?;
        self.store.save_usage(TRIALS, &bytes).map_err(store_error)
    }
}
