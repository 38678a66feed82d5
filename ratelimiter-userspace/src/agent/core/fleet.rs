//! The configuration that the fleet shares, the agent's half: what [`crate::sync::config`] decides is
//! done here, on the control thread.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use super::answer::differences;
use super::own::{content, lasting, merged, shared};
use super::{Core, store_error};
use crate::admin::edit::object;
use crate::admin::views::{Changed, EventKind};
use crate::admin::{AdminError, Result};
use crate::agent::follow::Following;
use crate::agent::state::Trial;
use crate::clock;
use crate::policy::model::Document;
use crate::redis::{Found, Put, RedisStore, What};
use crate::store::{NewChange, Store};
use crate::sync::Unsettled;
use crate::sync::config::{Body, GRACE, Has, Head, MAX_BYTES, Standing, Step, decide};

/// Name under which it is kept where this host stands.
const STANDING: &str = "fleet-config";
/// Name under which the newest configuration is kept that lost against another.
const LOST: &str = "fleet-config-lost";
/// Rounds of compare-and-set before a change is given up.
const ROUNDS: usize = 8;
/// A configuration that this host refused is tried again after so long: 10 s.
const AGAIN_NS: u64 = 10_000_000_000;

/// What was made of a change that the fleet shall have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Claim {
    /// It concerns this host alone.
    Private,
    /// The store has it: where this host stands then.
    Written(Standing),
    /// The store is away: this host alone will have it.
    Alone(String),
    /// The store had another configuration, which is in force now: think again.
    Moved,
}

/// The fleet's side of the core.
pub(super) struct Fleet {
    redis: RedisStore,
    secret: [u8; 16],
    standing: Standing,
    /// The head that the store had last.
    expected: Vec<u8>,
    /// Since when the store has had nothing, monotonic.
    nothing_since_ns: Option<u64>,
    /// The head that was refused here, when, and why.
    refused: Option<(Vec<u8>, u64, AdminError)>,
}

impl Fleet {
    /// As it was written down, if that is still what is in force.
    pub(super) fn restore(
        redis: RedisStore,
        secret: [u8; 16],
        store: &dyn Store,
        (stored, trials): (&Document, &[Trial]),
    ) -> Result<Self> {
        let kept = store.load_usage(STANDING).map_err(store_error)?;
        let read = kept.and_then(|bytes| serde_json::from_slice::<(Standing, u64)>(&bytes).ok());
        let standing = match read {
            Some((standing, was)) if was == content(stored, trials) => standing,
            // Restored from a copy, or the last moment before a crash: as good as a newcomer.
            _ => Standing::default(),
        };
        Ok(Self {
            redis,
            secret,
            expected: standing.head.map_or_else(Vec::new, raw),
            standing,
            nothing_since_ns: None,
            refused: None,
        })
    }

    /// The next configuration under its name.
    fn sealed(&self, body: &Body, revision: u64, founds: bool) -> Result<(Head, Vec<u8>)> {
        let bytes = serde_json::to_vec(body).map_err(|error| {
            AdminError::Unavailable(format!("the configuration has no JSON form: {error}"))
        })?;
        if bytes.len() > MAX_BYTES {
            return Err(AdminError::Capacity(format!(
                "the configuration has {} bytes as JSON; a fleet shares at most {MAX_BYTES}",
                bytes.len()
            )));
        }
        let lineage = match self.standing.head {
            Some(head) if !founds => head.lineage,
            _ => RandomState::new().build_hasher().finish().max(1),
        };
        let head = Head::of(&self.secret, lineage, revision, &bytes);
        Ok((head, bytes))
    }

    fn put(&self, expected: &[u8], head: &Head, bytes: &[u8]) -> Result<Put, Unsettled> {
        let put = self.redis.configure(expected, head, bytes);
        self.redis.runtime().block_on(put)
    }
}

fn raw(head: Head) -> Vec<u8> {
    head.to_string().into_bytes()
}

impl Core {
    /// The revision in force over the fleet; 0 without one.
    pub(super) fn fleet_revision(&self) -> u64 {
        let fleet = self.fleet.as_ref();
        fleet.map_or(0, |fleet| fleet.standing.revision())
    }

    /// Gives the fleet what shall be in force, if that changes what it has. The caller commits
    /// afterwards, and then says how that went to [`Core::claimed`].
    pub(super) fn claim(
        &mut self,
        next: &Document,
        trials: &[Trial],
        by: &str,
        what: &str,
    ) -> Result<Claim> {
        let now_unix_ms = clock::unix_ms();
        let document = shared(next, trials, now_unix_ms);
        if self.fleet.is_none() || document == shared(&self.stored, &self.trials, now_unix_ms) {
            return Ok(Claim::Private);
        }
        let mut body = Body {
            by: by.to_owned(),
            what: what.to_owned(),
            parents: Vec::new(),
            document,
        };
        for _ in 0..ROUNDS {
            let Some(fleet) = &mut self.fleet else {
                return Ok(Claim::Private);
            };
            body.parents = fleet.standing.next_parents();
            let founds = fleet.standing.head.is_none();
            let (head, bytes) = fleet.sealed(&body, fleet.standing.revision() + 1, founds)?;
            let found = match fleet.put(&fleet.expected, &head, &bytes) {
                Ok(Put::Written) => {
                    return Ok(Claim::Written(Standing::at(head, &body)));
                }
                Ok(Put::Moved(found)) => found,
                Err(error) => return Ok(Claim::Alone(error.to_string())),
            };
            match self.weigh(&found)? {
                Step::Follow { lost } => {
                    self.take_over(&found, lost)?;
                    return Ok(Claim::Moved);
                }
                Step::Agree => self.agree(&found),
                Step::Write { over, .. } => self.overwrites(&found, over),
                Step::Rest | Step::Wait => {}
            }
            if let Some(fleet) = &mut self.fleet {
                fleet.expected = found.raw;
            }
        }
        Err(AdminError::Conflict(format!(
            "the fleet's configuration was changed by others {ROUNDS} times meanwhile; try again"
        )))
    }

    /// What was claimed is in force here, or (`made` false) could not be made here.
    pub(super) fn claimed(&mut self, claim: &Claim, made: bool) {
        let Some(fleet) = &mut self.fleet else {
            return;
        };
        match (claim, made) {
            (Claim::Private | Claim::Moved, _) | (Claim::Alone(_), false) => return,
            (Claim::Alone(_), true) => fleet.standing.ahead += 1,
            (Claim::Written(standing), made) => {
                fleet.expected = standing.head.map_or_else(Vec::new, raw);
                fleet.standing = standing.clone();
                // What is in force here is then a change that the fleet has not: the way back.
                fleet.standing.ahead = u64::from(!made);
                fleet.nothing_since_ns = None;
                self.shared.following.count(|counts| counts.written += 1);
            }
        }
        self.note_standing();
        if !made {
            let found = self.fleet.as_ref().map(|fleet| fleet.expected.clone());
            self.write(&found.unwrap_or_default(), false, None);
        }
    }

    /// Does what follows from what the store has.
    pub(in crate::agent) fn follow(&mut self, found: &Found) {
        let step = self.weigh(found);
        let done = match step {
            Ok(Step::Rest | Step::Wait) => Ok(()),
            Ok(Step::Agree) => {
                self.agree(found);
                Ok(())
            }
            Ok(Step::Follow { lost }) => self.take_over(found, lost),
            Ok(Step::Write { founds, over, .. }) => {
                self.overwrites(found, over);
                self.write(&found.raw, founds, over);
                return;
            }
            Err(error) => Err(error),
        };
        // What is not in force here must not be overwritten from here.
        if done.is_ok()
            && let Some(fleet) = &mut self.fleet
        {
            fleet.expected.clone_from(&found.raw);
        }
        let foreign = matches!(found.what, What::Damaged).then(|| {
            "what the store has was not written with this `redis.key_secret_file`".to_owned()
        });
        let problem = done.err().map(|error| error.to_string()).or(foreign);
        self.shared.following.say(problem);
        self.show_standing();
    }

    /// Decides between what is in force here and what the store has.
    fn weigh(&mut self, found: &Found) -> Result<Step> {
        let now_unix_ms = clock::unix_ms();
        let mine = shared(&self.stored, &self.trials, now_unix_ms);
        let Some(fleet) = &mut self.fleet else {
            return Ok(Step::Rest);
        };
        let now_ns = clock::monotonic_ns();
        let nothing = matches!(found.what, What::Absent | What::Damaged);
        let since_ns = *fleet.nothing_since_ns.get_or_insert(now_ns);
        let waited = Duration::from_nanos(now_ns.saturating_sub(since_ns));
        if !nothing {
            fleet.nothing_since_ns = None;
        }
        let has = match &found.what {
            // Nobody hurries to overwrite what may be another secret's.
            What::Damaged if waited < GRACE => return Ok(Step::Wait),
            What::Absent | What::Damaged => Has::Nothing,
            What::Whole(head, body) => Has::One {
                head: *head,
                same: lasting(body.document.clone(), now_unix_ms) == mine,
                follows: fleet.standing.is_within(head, &body.parents),
            },
            What::Unknown(head, error) => {
                return Err(AdminError::Conflict(format!(
                    "the fleet's configuration (revision {}) is of another version: {error}",
                    head.revision
                )));
            }
        };
        let empty = mine == Document::default();
        Ok(decide(&fleet.standing, empty, has, waited))
    }

    /// The store has what is in force here.
    fn agree(&mut self, found: &Found) {
        if let (What::Whole(head, body), Some(fleet)) = (&found.what, &mut self.fleet) {
            fleet.standing = Standing::at(*head, body);
            self.note_standing();
        }
    }

    /// Puts what the store has in force.
    fn take_over(&mut self, found: &Found, lost: bool) -> Result<()> {
        let (What::Whole(head, body), Some(fleet)) = (&found.what, &mut self.fleet) else {
            return Ok(());
        };
        let now_ns = clock::monotonic_ns();
        match fleet.refused.take() {
            Some((raw, at_ns, why))
                if raw == found.raw && now_ns.saturating_sub(at_ns) < AGAIN_NS =>
            {
                fleet.refused = Some((raw, at_ns, why.clone()));
                return Err(why);
            }
            _ => {}
        }
        let was = fleet.standing.revision();
        let mine = lost.then(|| shared(&self.stored, &self.trials, clock::unix_ms()));
        if let Err(error) = self.commit_followed(head, body) {
            let error = AdminError::Conflict(format!(
                "the fleet's configuration (revision {}) is refused on this host, which keeps the \
                 one before: {error}",
                head.revision
            ));
            if let Some(fleet) = &mut self.fleet {
                fleet.refused = Some((found.raw.clone(), now_ns, error.clone()));
            }
            tracing::error!(%error, "the fleet's configuration is not followed");
            self.shared.following.count(|counts| counts.refused += 1);
            self.shared.following.say(Some(error.to_string()));
            return Err(error);
        }
        if let Some(fleet) = &mut self.fleet {
            fleet.standing = Standing::at(*head, body);
            fleet.expected.clone_from(&found.raw);
        }
        self.note_standing();
        self.shared.following.count(|counts| counts.followed += 1);
        if let Some(mine) = mine {
            self.lose(
                &mine,
                &format!(
                    "what was configured on this host (revision {was}) gave way to the fleet's \
                     revision {}",
                    head.revision
                ),
            );
        }
        Ok(())
    }

    fn commit_followed(&mut self, head: &Head, body: &Body) -> Result<()> {
        let (next, trials) = merged(&body.document, &self.stored, &self.trials, clock::unix_ms());
        let mut changed = Changed::default();
        differences(&self.stored, &next, &mut changed);
        if !changed.changed {
            return self.follow_beneath_trials(trials);
        }
        let compiled = self.compile(&next, &self.fixed, self.inputs.mode)?;
        let path = match changed.differences.as_slice() {
            [one] => one.path.clone(),
            _ => "document".to_owned(),
        };
        let change = NewChange {
            at_unix_ms: clock::unix_ms(),
            by: body.by.clone(),
            what: format!("{} (revision {} of the fleet)", body.what, head.revision),
            before: object(&self.stored, &path),
            after: object(&next, &path),
            path,
            confirm_by_unix_ms: None,
        };
        let kept = std::mem::replace(&mut self.trials, trials);
        let committed = self.commit(next, compiled, change, None);
        if committed.is_err() {
            self.trials = kept;
        }
        committed
    }

    /// What the fleet changed is on trial here: what is in force stays, and the way back of the trials
    /// is what the fleet has.
    fn follow_beneath_trials(&mut self, trials: Vec<Trial>) -> Result<()> {
        if trials == self.trials {
            return Ok(());
        }
        let kept = std::mem::replace(&mut self.trials, trials);
        let done = self
            .leased(&self.stored, &self.compiled, &self.trials)
            .and_then(|next| self.install(&next))
            .and_then(|()| self.save_trials());
        if done.is_err() {
            self.trials = kept;
            self.reinstall();
        } else {
            self.publish();
        }
        done
    }

    /// Gives the store what is in force here.
    fn write(&mut self, expected: &[u8], founds: bool, over: Option<u64>) {
        let document = shared(&self.stored, &self.trials, clock::unix_ms());
        let Some(fleet) = &mut self.fleet else {
            return;
        };
        let revision = fleet.standing.revision().max(1);
        let again = fleet.standing.again(&document);
        let what = match over {
            _ if founds => "the first configuration of the fleet".to_owned(),
            Some(over) => format!(
                "changes made while the store was away; they take the place of revision {over}"
            ),
            None if fleet.standing.ahead > 0 => "changes made while the store was away".to_owned(),
            None => "the store had lost its configuration".to_owned(),
        };
        let body = again.unwrap_or_else(|| Body {
            by: "fleet".to_owned(),
            what: what.clone(),
            parents: fleet.standing.next_parents(),
            document,
        });
        let put = fleet
            .sealed(&body, revision, founds)
            .and_then(|(head, bytes)| {
                let put = fleet.put(expected, &head, &bytes);
                let put = put.map_err(|error| AdminError::Unavailable(error.to_string()))?;
                Ok((head, put))
            });
        let problem = match put {
            Ok((head, Put::Written)) => {
                tracing::info!(revision, what, "the fleet has this host's configuration");
                fleet.standing = Standing::at(head, &body);
                fleet.expected = raw(head);
                fleet.nothing_since_ns = None;
                self.note_standing();
                self.shared.following.count(|counts| counts.written += 1);
                None
            }
            // Somebody was faster: the next look tells.
            Ok((_, Put::Moved(_))) => None,
            Err(error) => Some(error.to_string()),
        };
        self.shared.following.say(problem);
        self.show_standing();
    }

    /// Says that a configuration of the store's is about to be overwritten.
    fn overwrites(&mut self, found: &Found, over: Option<u64>) {
        if let (Some(over), What::Whole(_, body)) = (over, &found.what) {
            let revision = self.fleet_revision();
            self.lose(
                &body.document,
                &format!(
                    "revision {over} of the fleet (`{}`, by {}) gives way to revision {revision} of \
                     this host",
                    body.what, body.by
                ),
            );
        }
    }

    /// Keeps what lost, and says so.
    fn lose(&mut self, document: &Document, what: &str) {
        tracing::error!(
            kept = LOST,
            "{what}: both were changed while they were apart"
        );
        self.shared.following.count(|counts| counts.lost += 1);
        self.shared
            .events
            .push(EventKind::Change, format!("fleet: {what}"));
        let kept = serde_json::to_vec(document)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let saved = self.store.save_usage(LOST, &bytes);
                saved.map_err(|error| error.to_string())
            });
        if let Err(error) = kept {
            tracing::error!(error, "what lost could not be kept");
        }
    }

    /// Writes down where this host stands, and shows it.
    fn note_standing(&mut self) {
        let Some(fleet) = &self.fleet else {
            return;
        };
        let kept = (&fleet.standing, content(&self.stored, &self.trials));
        let saved = serde_json::to_vec(&kept)
            .map_err(|error| AdminError::Unavailable(error.to_string()))
            .and_then(|bytes| {
                let saved = self.store.save_usage(STANDING, &bytes);
                saved.map_err(store_error)
            });
        if let Err(error) = saved {
            tracing::error!(%error, "where this host stands with the fleet is not saved");
        }
        self.show_standing();
    }

    pub(super) fn show_standing(&self) {
        if let Some(fleet) = &self.fleet {
            self.shared.following.show(Following {
                standing: fleet.standing.clone(),
                store: fleet.expected.clone(),
            });
            self.checks
                .limiter()
                .quotas_are_of(fleet.standing.revision());
        }
    }
}

/// Says in an answer that the fleet does not have a change.
pub(super) fn warn_alone(claim: &Claim, changed: &mut Changed) {
    if let Claim::Alone(error) = claim {
        changed.warnings.push(format!(
            "the fleet's store has not got it yet ({error}): this host alone has the change until then"
        ));
    }
}

/// What a core joins a fleet with.
pub(in crate::agent) struct Joining {
    pub(in crate::agent) redis: RedisStore,
    pub(in crate::agent) secret: [u8; 16],
}

impl Joining {
    pub(super) fn restore(
        self,
        store: &Arc<dyn Store>,
        of: (&Document, &[Trial]),
    ) -> Result<Fleet> {
        Fleet::restore(self.redis, self.secret, store.as_ref(), of)
    }
}
