//! The policy in force and every way to change it: validate, persist, apply, acknowledge.
//!
//! Owned by the control thread; nothing else writes the store's document or the kernel's policy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ratelimiter_common::abi::config::ZONES;
use ratelimiter_common::abi::policy::{PolicyEntry, PrefixValue, Zone, action};

use super::state::{Shared, Trial, View, covering};
use super::tag::{shown_tag, tag_of};
use crate::admin::edit::{object, restored};
use crate::admin::error::FieldError;
use crate::admin::views::{Changed, Difference, EventKind};
use crate::admin::{AdminError, Caller, ChangeOptions, Edit, IfMatch, Result};
use crate::clock;
use crate::config::statics::overlay;
use crate::dataplane::{DataPlane, Error as PlaneError, ErrorKind};
use crate::policy::lookup::Lookup;
use crate::policy::model::{Document, Mode};
use crate::policy::plan::{Installed, Prefix, clamps_in_force, plan};
use crate::policy::set::{Compiled, Inputs, compile};
use crate::policy::trial;
use crate::policy::validate::Issue;
use crate::store::{NewChange, Store, StoreError};

/// Rounds of planning before a change is given up: each waits less than 20 ms.
const MAX_ROUNDS: usize = 64;
/// Differences listed in an answer.
const MAX_DIFFERENCES: usize = 1_000;
/// Name under which changes on trial are kept in the store.
const TRIALS: &str = "trials";

/// Policies and zones whose numbers a compilation keeps.
type Numbers = (BTreeMap<u32, PolicyEntry>, [Zone; ZONES]);

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
}

/// What the core is built from.
pub(super) struct Parts {
    pub(super) store: Arc<dyn Store>,
    pub(super) plane: Arc<dyn DataPlane>,
    pub(super) inputs: Inputs,
    pub(super) fixed: Document,
    pub(super) confirm_within: Duration,
    pub(super) risky_percent: u8,
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
        let installed = read_back(parts.plane.as_ref()).map_err(plane_error)?;
        let fixed = Arc::new(parts.fixed);
        let document = Arc::new(overlay(&stored, &fixed));
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
        };
        // A trial that ended while nobody was there is taken back before anybody can see it.
        core.tick();
        let next = core.in_force();
        core.install(&next)?;
        // What was still to be clamped when an earlier agent died.
        core.clamp()?;
        core.publish();
        Ok(core)
    }

    /// Makes a change.
    pub(super) fn change(
        &mut self,
        edit: &Edit,
        options: &ChangeOptions,
        caller: &Caller,
    ) -> Result<Changed> {
        let path = edit.path();
        self.check_writable(&path)?;
        self.check_condition(&path, options.if_match.as_ref())?;
        let edited = edit.apply(&self.stored)?;
        let next = self.compile(&edited, &self.fixed, self.inputs.mode)?;
        let mut changed = self.answer(&path, edit.what(), &edited, &next.1);
        changed.dry_run = options.dry_run;
        if !changed.changed {
            return Ok(changed);
        }
        let try_for = options.try_for.or_else(|| {
            self.is_risky(&next.1, caller)
                .then_some(self.confirm_within)
        });
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
        if try_for.is_some() && options.try_for.is_none() {
            changed.warnings.push(format!(
                "the change concerns your own address or many active sources: it takes itself \
                 back unless it is confirmed within {} s",
                self.confirm_within.as_secs()
            ));
        }
        if options.dry_run {
            // A change that could not be taken back is refused here as it would be in earnest.
            let trials: Vec<Trial> = self.trials.iter().cloned().chain(trial).collect();
            self.leased(&edited, &Arc::new(next.1), &trials)?;
            return Ok(changed);
        }
        self.commit(edited, next, change, trial.clone())?;
        changed.revision = self.stored.revision;
        changed.confirm_by = deadline_unix_ms.map(clock::rfc3339);
        changed.pending = trial.as_ref().map(Trial::pending);
        Ok(changed)
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
            .and_then(|next| self.install(&next));
        if let Err(error) = installed {
            (self.fixed, self.document, self.compiled, self.inputs.mode) = before;
            self.reinstall();
            return Err(error);
        }
        self.publish();
        Ok(changed)
    }

    /// Keeps changes on trial.
    pub(super) fn confirm(&mut self, revision: Option<u64>, by: &str) -> Result<Vec<Changed>> {
        let (chosen, rest) = self.choose(revision)?;
        let kept = std::mem::replace(&mut self.trials, rest);
        let confirmed = self
            .leased(&self.stored, &self.compiled, &self.trials)
            .and_then(|next| self.install(&next))
            .and_then(|()| self.save_trials());
        if let Err(error) = confirmed {
            self.trials = kept;
            self.reinstall();
            return Err(error);
        }
        self.publish();
        Ok(chosen
            .iter()
            .map(|trial| {
                let what = format!("confirm `{}` (revision {})", trial.path, trial.revision);
                self.shared
                    .events
                    .push(EventKind::Change, format!("{by}: {what}"));
                Changed {
                    revision: self.stored.revision,
                    path: trial.path.clone(),
                    what,
                    ..Changed::default()
                }
            })
            .collect())
    }

    /// Takes changes on trial back, the newest first.
    pub(super) fn rollback(&mut self, revision: Option<u64>, by: &str) -> Result<Vec<Changed>> {
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
    }

    /// Removes list entries that have ended. The kernel stopped heeding them by itself.
    fn expire(&mut self, now_unix_ms: u64) -> Result<()> {
        let mut next = (*self.stored).clone();
        for list in [&mut next.allow, &mut next.block] {
            list.retain(|_, entry| entry.expires_unix_ms.is_none_or(|end| end > now_unix_ms));
        }
        let removed =
            self.stored.allow.len() + self.stored.block.len() - next.allow.len() - next.block.len();
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
        let applied = self.save_trials().and_then(|()| self.install(&next));
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

    /// Puts the kernel back to the policy in force, whatever half of another it has.
    fn reinstall(&mut self) {
        let again = read_back(self.plane.as_ref())
            .map_err(plane_error)
            .and_then(|installed| {
                self.installed = installed;
                let next = self.in_force();
                self.install(&next)
            });
        let text = match again {
            Ok(()) => String::new(),
            Err(error) => {
                tracing::error!(%error, "the kernel does not have the policy in force");
                format!("the kernel does not have the policy in force: {error}")
            }
        };
        self.shared.apply_error.store(Arc::new(text));
    }

    fn compile(
        &self,
        stored: &Document,
        fixed: &Document,
        mode: Mode,
    ) -> Result<(Document, Compiled)> {
        let document = overlay(stored, fixed);
        let inputs = self.inputs_now(mode);
        let (policies, zones) = (&self.installed.policies, &self.installed.zones);
        let compiled =
            compile(&document, &inputs, policies, zones).map_err(|issues| invalid(&issues))?;
        Ok((document, compiled))
    }

    /// As [`Self::compile`], against numbers that are not all installed.
    fn compile_against(
        &self,
        stored: &Document,
        fixed: &Document,
        mode: Mode,
        (policies, zones): &Numbers,
    ) -> Result<(Document, Compiled)> {
        let document = overlay(stored, fixed);
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

    /// `compiled` with the ways back of the changes on trial: should the agent die, the kernel takes
    /// each back by itself at its own deadline.
    fn leased(
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
    fn in_force(&self) -> Arc<Compiled> {
        self.leased(&self.stored, &self.compiled, &self.trials)
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "changes on trial have no way back in the kernel");
                Arc::clone(&self.compiled)
            })
    }

    /// Lowers tracked debts to the bursts in force.
    fn clamp(&mut self) -> Result<()> {
        let clamps = clamps_in_force(&self.installed.policies, clock::monotonic_ns());
        if !clamps.is_empty() {
            self.plane.apply(&clamps).map_err(plane_error)?;
        }
        Ok(())
    }

    /// Writes what is missing in the kernel.
    fn install(&mut self, desired: &Compiled) -> Result<()> {
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

    fn publish(&self) {
        self.shared.view.store(Arc::new(View {
            stored: Arc::clone(&self.stored),
            fixed: Arc::clone(&self.fixed),
            document: Arc::clone(&self.document),
            compiled: Arc::clone(&self.compiled),
            policies: Arc::new(self.installed.policies.clone()),
            trials: self.trials.clone(),
            mode: self.inputs.mode,
        }));
    }

    fn save_trials(&self) -> Result<()> {
        let bytes = serde_json::to_vec(&self.trials).map_err(|error| {
            AdminError::Unavailable(format!("trials have no JSON form: {error}"))
        })?;
        self.store.save_usage(TRIALS, &bytes).map_err(store_error)
    }

    fn check_writable(&self, path: &str) -> Result<()> {
        if path != "document" && !object(&self.fixed, path).is_null() {
            return Err(AdminError::InFile {
                path: path.to_owned(),
            });
        }
        let other = self
            .trials
            .iter()
            .find(|trial| trial.path == path || trial.path == "document" || path == "document");
        match other {
            Some(trial) => Err(AdminError::Pending {
                path: trial.path.clone(),
                revision: trial.revision,
            }),
            None => Ok(()),
        }
    }

    fn check_condition(&self, path: &str, condition: Option<&IfMatch>) -> Result<()> {
        let Some(condition) = condition else {
            return Ok(());
        };
        let found = shown_tag(&self.stored, &self.document, path);
        let (holds, expected) = match condition {
            IfMatch::Exists => (found.is_some(), "any".to_owned()),
            // What only the file or a default has may be created.
            IfMatch::Absent => (
                tag_of(&object(&self.stored, path)).is_none(),
                "none".to_owned(),
            ),
            IfMatch::Tags(tags) => (
                found.as_ref().is_some_and(|found| tags.contains(found)),
                tags.join(", "),
            ),
        };
        if holds {
            return Ok(());
        }
        Err(AdminError::Precondition {
            path: path.to_owned(),
            expected,
            found: found.unwrap_or_else(|| "none".to_owned()),
        })
    }

    /// Whether a change blocks the caller's own address, or too many of the sources that are
    /// active now. In shadow nothing is dropped, so nothing is risky.
    fn is_risky(&self, next: &Compiled, caller: &Caller) -> bool {
        if self.inputs.mode != Mode::Enforce {
            return false;
        }
        let newly_blocked = |address| {
            let blocked = |prefixes: &[(Prefix, PrefixValue)]| {
                covering(prefixes, address).is_some_and(|(_, value)| value.action == action::BLOCK)
            };
            blocked(&next.prefixes) && !blocked(&self.compiled.prefixes)
        };
        if caller.address.is_some_and(newly_blocked) {
            return true;
        }
        let talkers = Arc::clone(&self.shared.figured.load().talkers);
        let active: Vec<_> = talkers
            .iter()
            .filter_map(super::explain::address_of)
            .collect();
        let hit = active.iter().filter(|a| newly_blocked(**a)).count();
        !active.is_empty() && hit * 100 > active.len() * usize::from(self.risky_percent)
    }

    fn answer(&self, path: &str, what: String, edited: &Document, compiled: &Compiled) -> Changed {
        let mut changed = Changed {
            revision: self.stored.revision,
            path: path.to_owned(),
            what,
            tag: (path != "document")
                .then(|| tag_of(&object(edited, path)))
                .flatten(),
            ..Changed::default()
        };
        differences(&self.stored, edited, &mut changed);
        self.warn(compiled, &mut changed);
        changed
    }

    fn warn(&self, compiled: &Compiled, changed: &mut Changed) {
        if self.inputs.mode == Mode::Shadow {
            changed
                .warnings
                .push("the agent runs in shadow: it counts and drops nothing".to_owned());
        }
        let issues = compiled.warnings.iter().map(ToString::to_string);
        changed.warnings.extend(issues.take(20));
    }
}

/// Names the entries of one map that differ.
fn keys<K: Ord + ToString, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    kind: &str,
    put: &mut dyn FnMut(String),
) {
    for (key, value) in after {
        if before.get(key) != Some(value) {
            put(format!("{kind}/{}", key.to_string()));
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        put(format!("{kind}/{}", key.to_string()));
    }
}

/// Lists the objects that differ.
fn differences(before: &Document, after: &Document, changed: &mut Changed) {
    let mut put = |path: String| {
        let difference = Difference {
            before: object(before, &path),
            after: object(after, &path),
            path,
        };
        changed.changed = true;
        changed.differences_total += 1;
        if changed.differences.len() < MAX_DIFFERENCES {
            changed.differences.push(difference);
        }
    };
    keys(&before.segments, &after.segments, "segments", &mut put);
    keys(&before.clients, &after.clients, "clients", &mut put);
    keys(&before.allow, &after.allow, "allow", &mut put);
    keys(&before.block, &after.block, "block", &mut put);
}

/// What the kernel has, as the planner knows it.
pub(super) fn read_back(plane: &dyn DataPlane) -> Result<Installed, PlaneError> {
    let found = plane.installed()?;
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
    Ok(Installed {
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
        flags: found.config.flags,
    })
}

fn invalid(issues: &[Issue]) -> AdminError {
    AdminError::Invalid(
        issues
            .iter()
            .map(|issue| {
                let pointer = issue.path.iter().fold(String::new(), |pointer, part| {
                    pointer + "/" + &part.replace('~', "~0").replace('/', "~1")
                });
                FieldError::new(pointer, issue.message.clone())
            })
            .collect(),
    )
}

pub(super) fn store_error(error: StoreError) -> AdminError {
    match error {
        StoreError::Conflict { .. } | StoreError::Locked { .. } => {
            AdminError::Conflict(error.to_string())
        }
        StoreError::Invalid(text) => AdminError::invalid("", text),
        StoreError::Damaged { .. } | StoreError::Io { .. } => {
            AdminError::Unavailable(error.to_string())
        }
    }
}

pub(super) fn plane_error(error: PlaneError) -> AdminError {
    let text = error.to_string();
    match error {
        PlaneError::Capacity(text) => AdminError::Capacity(text),
        PlaneError::UnknownInterface(name) => AdminError::NotFound {
            what: "interface",
            name,
        },
        PlaneError::BadInterfaceName(_) => AdminError::invalid("", text),
        _ => match error.kind() {
            ErrorKind::Invalid => AdminError::invalid("", text),
            ErrorKind::Conflict => AdminError::Conflict(text),
            ErrorKind::Permission => AdminError::Permission(text),
            ErrorKind::Unsupported => AdminError::Unsupported(text),
            ErrorKind::Kernel => AdminError::Unavailable(text),
        },
    }
}
