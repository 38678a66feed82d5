//! The policy in force and every way to change it: validate, persist, apply, acknowledge.
//!
//! Owned by the control thread; nothing else writes the store's document or the kernel's policy.

mod answer;
mod errors;
mod escalate;
mod fleet;
mod install;
mod own;
mod protect;
mod risk;
mod trials;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use self::answer::differences;
use self::errors::invalid;
pub(super) use self::errors::{plane_error, store_error};
pub(super) use self::fleet::Joining;
use self::fleet::{Claim, Fleet, warn_alone};
use self::install::known;
use super::estimate::estimate;
use super::state::{Shared, Trial, View};
use crate::admin::edit::object;
use crate::admin::views::{Changed, EventKind};
use crate::admin::{AdminError, Caller, ChangeOptions, Edit, Result};
use crate::check::Checks;
use crate::clock;
use crate::config::statics::overlay;
use crate::dataplane::DataPlane;
use crate::policy::model::{Document, Mode};
use crate::policy::plan::{Budgets, Installed, Update};
use crate::policy::set::{Compiled, Inputs, compile};
use crate::store::{NewChange, Store};

/// Times a change is built anew upon what others changed meanwhile.
const REBUILDS: usize = 8;
/// Name under which changes on trial are kept in the store.
const TRIALS: &str = "trials";
/// Name under which addresses that are let in for a while are kept in the store.
const PROTECTED: &str = "protected";

/// The control thread's state.
pub(super) struct Core {
    pub(super) store: Arc<dyn Store>,
    pub(super) plane: Arc<dyn DataPlane>,
    pub(super) shared: Arc<Shared>,
    pub(super) inputs: Inputs,
    pub(super) installed: Installed,
    stored: Arc<Document>,
    fixed: Arc<Document>,
    document: Arc<Document>,
    compiled: Arc<Compiled>,
    trials: Vec<Trial>,
    confirm_within: Duration,
    risky_percent: u8,
    protect_for: Duration,
    protected: protect::Protected,
    checks: Checks,
    offences: escalate::Offences,
    fleet: Option<Fleet>,
}

/// What the core is built from.
pub(super) struct Parts {
    pub(super) store: Arc<dyn Store>,
    pub(super) plane: Arc<dyn DataPlane>,
    pub(super) inputs: Inputs,
    pub(super) fixed: Document,
    pub(super) confirm_within: Duration,
    pub(super) risky_percent: u8,
    pub(super) protect_for: Duration,
    pub(super) checks: Checks,
    /// The store of the fleet that this host is in.
    pub(super) joining: Option<Joining>,
    /// What the kernel holds.
    pub(super) found: crate::dataplane::Installed,
    /// What all sources share, where the kernel has it otherwise.
    pub(super) budgets: Option<Budgets>,
}

impl Core {
    /// Reads the store, compiles, and installs what follows. `publish` makes the shared state of
    /// the first view.
    pub(super) fn new(parts: Parts, publish: impl FnOnce(View) -> Arc<Shared>) -> Result<Self> {
        let stored = parts.store.document().map_err(store_error)?;
        let trials = parts
            .store
            .load_usage(TRIALS)
            .map_err(store_error)?
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let trials: Vec<Trial> = trials;
        let joining = parts.joining;
        let fleet = joining
            .map(|joining| joining.restore(&parts.store, (&stored, &trials)))
            .transpose()?;
        let installed = known(parts.found);
        let fixed = Arc::new(parts.fixed);
        let protected = protect::kept(parts.store.as_ref())?;
        let mut document = overlay(&stored, &fixed);
        protect::shelter(&mut document, &protected);
        let document = Arc::new(document);
        let mut inputs = parts.inputs;
        inputs.now_ns = clock::monotonic_ns();
        let compiled = compile(&document, &inputs, &installed.policies, &installed.zones)
            .map_err(|issues| invalid(&issues))?;
        let view = View {
            stored: Arc::clone(&stored),
            fixed: Arc::clone(&fixed),
            document: Arc::clone(&document),
            compiled: Arc::new(compiled),
            policies: Arc::new(installed.policies.clone()),
            segments: installed.segments.clone(),
            trials: Vec::new(),
            mode: inputs.mode,
        };
        let compiled = Arc::clone(&view.compiled);
        let mut core = Self {
            store: parts.store,
            plane: parts.plane,
            shared: publish(view),
            inputs,
            installed,
            stored,
            fixed,
            document,
            compiled,
            trials,
            confirm_within: parts.confirm_within,
            risky_percent: parts.risky_percent,
            protect_for: parts.protect_for,
            protected,
            checks: parts.checks,
            offences: escalate::Offences::new(),
            fleet,
        };
        core.show_standing();
        // A trial that ended while nobody was there is taken back before anybody can see it.
        core.tick();
        if let Some(budgets) = parts.budgets {
            let update = Update::Budgets(Box::new(budgets));
            core.plane.apply(&[update]).map_err(plane_error)?;
        }
        let next = core.in_force();
        core.install(&next)?;
        // What was still to be clamped when an earlier agent died.
        core.clamp()?;
        core.apply_checks()?;
        core.publish();
        Ok(core)
    }

    /// Makes a change. Where others in the fleet changed something meanwhile, it is made upon that,
    /// if its condition still holds.
    pub(super) fn change(
        &mut self,
        edit: &Edit,
        options: &ChangeOptions,
        caller: &Caller,
    ) -> Result<Changed> {
        let began_at = self.fleet_revision();
        for _ in 0..REBUILDS {
            let changed = self.try_change(edit, options, caller);
            let now_at = self.fleet_revision();
            if let Some(changed) = changed.map_err(|error| error.between(began_at, now_at))? {
                return Ok(changed);
            }
        }
        Err(AdminError::Conflict(format!(
            "the fleet's configuration was changed by others {REBUILDS} times meanwhile; try again"
        )))
    }

    /// `None` if the fleet has another configuration, which is in force now.
    fn try_change(
        &mut self,
        edit: &Edit,
        options: &ChangeOptions,
        caller: &Caller,
    ) -> Result<Option<Changed>> {
        let path = edit.path();
        self.check_writable(&path)?;
        self.check_condition(&path, options.if_match.as_ref())?;
        if let Some(changed) = self.unprotect(edit, options.dry_run, &caller.name)? {
            return Ok(Some(changed));
        }
        let edited = edit.apply(&self.stored)?;
        let next = self.compile(&edited, &self.fixed, self.inputs.mode)?;
        let mut changed = self.answer(&path, edit.what(), &edited, &next.1);
        changed.dry_run = options.dry_run;
        if !changed.changed {
            return Ok(Some(changed));
        }
        let risk = self.risk(&edited, &next.1, caller)?;
        let try_for = options
            .try_for
            .or_else(|| risk.is_some().then_some(self.confirm_within));
        let deadline_unix_ms =
            try_for.map(|within| clock::unix_ms().saturating_add(within.as_millis() as u64));
        let change = NewChange {
            at_unix_ms: clock::unix_ms(),
            by: caller.name.clone(),
            what: edit.what(),
            path: path.clone(),
            before: object(&self.stored, &path),
            after: object(&edited, &path),
            confirm_by_unix_ms: deadline_unix_ms,
        };
        let trial = deadline_unix_ms.map(|deadline_unix_ms| Trial {
            revision: self.stored.revision + 1,
            path: path.clone(),
            by: caller.name.clone(),
            before: change.before.clone(),
            deadline_unix_ms,
        });
        if let (Some(risk), Some(try_for)) = (&risk, try_for) {
            changed.warnings.push(format!(
                "{risk}: the change takes itself back unless it is confirmed within {} s",
                try_for.as_secs()
            ));
        }
        if options.dry_run {
            // A change that could not be taken back is refused here as it would be in earnest.
            let trials: Vec<Trial> = self.trials.iter().cloned().chain(trial).collect();
            let next = Arc::new(next.1);
            self.leased(&edited, &next, &trials)?;
            let figured = self.shared.figured.load();
            let (talkers, observed_s) = (&figured.talkers, figured.observed_s);
            changed.traffic = Some(estimate(&self.compiled, &next, talkers, observed_s));
            return Ok(Some(changed));
        }
        let trials: Vec<Trial> = self.trials.iter().chain(&trial).cloned().collect();
        let claim = self.claim(&edited, &trials, &caller.name, &change.what)?;
        if claim == Claim::Moved {
            return Ok(None);
        }
        let committed = self.commit(edited, next, change, trial.clone());
        self.claimed(&claim, committed.is_ok());
        committed?;
        warn_alone(&claim, &mut changed);
        changed.revision = self.stored.revision;
        changed.confirm_by = deadline_unix_ms.map(clock::rfc3339);
        changed.pending = trial.as_ref().map(Trial::pending);
        Ok(Some(changed))
    }

    /// Replaces what the configuration file says. Nothing is stored.
    pub(super) fn reload(&mut self, fixed: Document, mode: Mode) -> Result<Changed> {
        let (document, compiled) = self.compile(&self.stored, &fixed, mode)?;
        let mut changed = Changed {
            revision: self.stored.revision,
            path: "document".to_owned(),
            what: "reload the configuration file".to_owned(),
            ..Changed::default()
        };
        differences(&self.document, &document, &mut changed);
        changed.changed |= mode != self.inputs.mode;
        self.warn(&compiled, &mut changed);
        let before = (
            Arc::clone(&self.fixed),
            Arc::clone(&self.document),
            Arc::clone(&self.compiled),
            self.inputs.mode,
        );
        self.fixed = Arc::new(fixed);
        self.document = Arc::new(document);
        self.compiled = Arc::new(compiled);
        self.inputs.mode = mode;
        let installed = self
            .leased(&self.stored, &self.compiled, &self.trials)
            .and_then(|next| self.install(&next))
            .and_then(|()| self.apply_checks());
        if let Err(error) = installed {
            (self.fixed, self.document, self.compiled, self.inputs.mode) = before;
            self.reinstall();
            return Err(error);
        }
        self.publish();
        Ok(changed)
    }

    /// Does what is due: trials that were not confirmed, list entries that ended.
    pub(super) fn tick(&mut self) {
        let now_unix_ms = clock::unix_ms();
        let due: Vec<u64> = self
            .trials
            .iter()
            .filter(|trial| trial.deadline_unix_ms <= now_unix_ms)
            .map(|trial| trial.revision)
            .collect();
        for revision in due {
            if let Err(error) = self.rollback(Some(revision), "rollback") {
                tracing::error!(revision, %error, "a change on trial could not be taken back");
                self.shared.apply_error.store(Arc::new(format!(
                    "the change of revision {revision} could not be taken back: {error}"
                )));
                return;
            }
        }
        let ended = self
            .compiled
            .next_expiry_unix_ms
            .is_some_and(|at| at <= now_unix_ms);
        if ended && let Err(error) = self.expire(now_unix_ms) {
            tracing::error!(%error, "ended list entries could not be removed");
        }
        self.escalate();
    }

    /// Removes list entries that have ended. The kernel stopped heeding them by itself.
    fn expire(&mut self, now_unix_ms: u64) -> Result<()> {
        self.end_protection(now_unix_ms)?;
        let mut next = (*self.stored).clone();
        for list in [&mut next.allow, &mut next.block] {
            list.retain(|_, entry| entry.expires_unix_ms.is_none_or(|end| end > now_unix_ms));
        }
        let removed =
            self.stored.allow.len() + self.stored.block.len() - next.allow.len() - next.block.len();
        if removed == 0 {
            // Those of the file, or of whoever was let in for a while.
            let (fixed, mode) = ((*self.fixed).clone(), self.inputs.mode);
            return self.reload(fixed, mode).map(drop);
        }
        let compiled = self.compile(&next, &self.fixed, self.inputs.mode)?;
        let change = NewChange {
            at_unix_ms: now_unix_ms,
            by: "expiry".to_owned(),
            what: format!("remove {removed} list entries that have ended"),
            path: "lists".to_owned(),
            ..NewChange::default()
        };
        self.commit(next, compiled, change, None)
    }

    /// Persists, applies, publishes. After an error everything is as before.
    fn commit(
        &mut self,
        edited: Document,
        (document, compiled): (Document, Compiled),
        change: NewChange,
        trial: Option<Trial>,
    ) -> Result<()> {
        let what = format!("{}: {}", change.by, change.what);
        let compiled = Arc::new(compiled);
        let mut trials = self.trials.clone();
        trials.extend(trial);
        let next = self.leased(&edited, &compiled, &trials)?;
        let before = (
            Arc::clone(&self.stored),
            Arc::clone(&self.document),
            Arc::clone(&self.compiled),
            self.trials.clone(),
        );
        let stored = self
            .store
            .commit(Some(self.stored.revision), edited, change)
            .map_err(store_error)?;
        self.trials = trials;
        self.document = Arc::new(Document {
            revision: stored.revision,
            ..document
        });
        self.stored = stored;
        self.compiled = compiled;
        let applied = self
            .save_trials()
            .and_then(|()| self.install(&next))
            .and_then(|()| self.apply_checks());
        if let Err(error) = applied {
            self.take_back(before, &what, &error);
            return Err(error);
        }
        self.shared.apply_error.store(Arc::default());
        self.shared.events.push(EventKind::Change, what);
        self.publish();
        Ok(())
    }

    /// Undoes a commit whose policy the kernel refused.
    fn take_back(
        &mut self,
        (stored, document, compiled, trials): (
            Arc<Document>,
            Arc<Document>,
            Arc<Compiled>,
            Vec<Trial>,
        ),
        what: &str,
        error: &AdminError,
    ) {
        let undo = NewChange {
            at_unix_ms: clock::unix_ms(),
            by: "agent".to_owned(),
            what: format!("undo ({what}): {error}"),
            path: "document".to_owned(),
            ..NewChange::default()
        };
        self.trials = trials;
        self.document = document;
        self.compiled = compiled;
        match self
            .store
            .commit(Some(self.stored.revision), (*stored).clone(), undo)
        {
            Ok(stored) => self.stored = stored,
            Err(failed) => {
                tracing::error!(%failed, "the store keeps a change that the kernel refused");
                self.stored = stored;
            }
        }
        if let Err(failed) = self.save_trials() {
            tracing::error!(%failed, "changes on trial are not saved");
        }
        self.reinstall();
        self.publish();
    }

    fn publish(&self) {
        self.shared.view.store(Arc::new(View {
            stored: Arc::clone(&self.stored),
            fixed: Arc::clone(&self.fixed),
            document: Arc::clone(&self.document),
            compiled: Arc::clone(&self.compiled),
            policies: Arc::new(self.installed.policies.clone()),
            segments: self.installed.segments.clone(),
            trials: self.trials.clone(),
            mode: self.inputs.mode,
        }));
    }
}
