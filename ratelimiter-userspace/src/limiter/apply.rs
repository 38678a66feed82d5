//! From what people configure to what applies to each client.

use std::collections::HashMap;
use std::sync::PoisonError;

use super::assign::Assigned;
use super::engine::Engine;
use super::identity::{ClientKey, Identity};
use super::spec::{PolicySpec, SpecError};
use super::{Unknown, check_client_id};
use crate::policy::model::{DEFAULT_SEGMENT, Document, Mode};
use crate::policy::resolve::segment_of;

/// A document's policies: by segment, and by client with its segment.
struct Resolved<'a> {
    segments: Vec<(&'a str, PolicySpec)>,
    clients: Vec<(&'a str, Option<PolicySpec>, &'a str)>,
}

/// Why a document cannot be enforced, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}/{name}: {error}", if *.client { "clients" } else { "segments" })]
pub struct DocumentError {
    /// Whether it is a client; else a segment.
    pub client: bool,
    /// Its id or name.
    pub name: String,
    /// What is wrong.
    pub error: SpecError,
}

fn resolve(document: &Document, mode: Mode) -> Result<Resolved<'_>, DocumentError> {
    let at = |client, name: &str| {
        let name = name.to_owned();
        move |error| DocumentError {
            client,
            name,
            error,
        }
    };
    let implied = (!document.segments.contains_key(DEFAULT_SEGMENT)).then_some(DEFAULT_SEGMENT);
    let names = document.segments.keys().map(String::as_str).chain(implied);
    let mut segments = Vec::new();
    for name in names {
        let spec = PolicySpec::of_segment(document, name, mode).map_err(at(false, name))?;
        segments.push((name, spec));
    }
    let mut clients = Vec::with_capacity(document.clients.len());
    for (id, client) in &document.clients {
        check_client_id(id.as_bytes())
            .map_err(SpecError::from)
            .map_err(at(true, id))?;
        let own = PolicySpec::of_client(document, client, mode).map_err(at(true, id))?;
        clients.push((id.as_str(), own, segment_of(client)));
    }
    Ok(Resolved { segments, clients })
}

/// Whether a limiter could enforce `document` under `mode`; how many policies there may be is known
/// to the limiter alone.
pub fn check_document(document: &Document, mode: Mode) -> Result<(), DocumentError> {
    resolve(document, mode).map(drop)
}

/// What was applied last.
pub(super) struct Applied {
    mode: Mode,
    /// Policy of each segment, by name. Numbers stay while the limiter lives.
    segments: HashMap<String, u32>,
    /// Policy of each client of the document.
    clients: HashMap<ClientKey, u32>,
    unlimited: Option<u32>,
    unknown: Unknown,
}

impl Applied {
    /// Nothing yet.
    pub(super) fn new(mode: Mode) -> Self {
        Self {
            mode,
            segments: HashMap::new(),
            clients: HashMap::new(),
            unlimited: None,
            unknown: Unknown::default(),
        }
    }

    /// The mode that bounds every other.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Puts `document` in force, whole or not at all.
    pub(super) fn apply(
        &mut self,
        engine: &Engine,
        identity: &Identity,
        document: &Document,
        mode: Mode,
        now_ns: u64,
    ) -> Result<(), SpecError> {
        // Everything that can be refused is, before anything changes.
        let Resolved { segments, clients } = resolve(document, mode).map_err(|at| at.error)?;
        let clients: Vec<(ClientKey, Option<PolicySpec>, &str)> = clients
            .into_iter()
            .map(|(id, own, segment)| (identity.of(id.as_bytes()), own, segment))
            .collect();

        let known = self.segments.clone();
        let (numbers, assigned) = engine.registry.edit(now_ns, |edit| {
            let mut numbers = known;
            for (name, spec) in &segments {
                if let Some(&index) = numbers.get(*name) {
                    edit.replace(index, spec)?;
                } else {
                    numbers.insert((*name).to_owned(), edit.add(spec)?);
                }
            }
            let mut assigned = HashMap::with_capacity(clients.len());
            for (key, own, segment) in &clients {
                let index = match own {
                    Some(spec) => edit.intern(spec)?,
                    None => match numbers.get(*segment) {
                        Some(&index) => index,
                        None => return Err(SpecError::UnknownSegment((*segment).to_owned())),
                    },
                };
                assigned.insert(*key, index);
            }
            Ok((numbers, assigned))
        })?;
        self.segments = numbers;
        self.mode = mode;

        let before = std::mem::replace(&mut self.clients, assigned);
        let default_changed = self.assign(engine, &before, now_ns)?;
        if default_changed {
            engine.reassign_all(now_ns);
            return Ok(());
        }
        for (&key, &index) in &self.clients {
            if before.get(&key) != Some(&index) {
                engine.reassign(key, index, now_ns);
            }
        }
        for &key in before.keys() {
            if !self.clients.contains_key(&key) {
                Self::back_to_default(engine, key, now_ns);
            }
        }
        Ok(())
    }

    /// Publishes the assignments; whether the default changed.
    fn assign(
        &mut self,
        engine: &Engine,
        before: &HashMap<ClientKey, u32>,
        now_ns: u64,
    ) -> Result<bool, SpecError> {
        let default = self.default_policy(engine, now_ns)?;
        let mut assignments = engine
            .assignments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for key in before.keys() {
            if !self.clients.contains_key(key) {
                assignments.remove(*key);
            }
        }
        for (&key, &index) in &self.clients {
            assignments.set(key, index);
        }
        let changed = assignments.default != default;
        assignments.default = default;
        Ok(changed)
    }

    fn default_policy(&mut self, engine: &Engine, now_ns: u64) -> Result<Option<u32>, SpecError> {
        Ok(match self.unknown {
            Unknown::Deny => None,
            Unknown::DefaultSegment => self.segments.get(DEFAULT_SEGMENT).copied(),
            Unknown::Allow => {
                if self.unlimited.is_none() {
                    let spec = PolicySpec::unlimited();
                    self.unlimited = Some(engine.registry.edit(now_ns, |edit| edit.add(&spec))?);
                }
                self.unlimited
            }
        })
    }

    fn back_to_default(engine: &Engine, key: ClientKey, now_ns: u64) {
        match engine.assigned(key) {
            Assigned::Configured(index) | Assigned::Default(index) => {
                engine.reassign(key, index, now_ns);
            }
            Assigned::Refused => {
                engine.forget(key);
            }
        }
    }

    /// Decides what applies to clients nobody configured.
    pub(super) fn set_unknown(
        &mut self,
        engine: &Engine,
        unknown: Unknown,
        now_ns: u64,
    ) -> Result<(), SpecError> {
        self.unknown = unknown;
        let before = self.clients.clone();
        if self.assign(engine, &before, now_ns)? {
            engine.reassign_all(now_ns);
        }
        Ok(())
    }

    /// Gives one client a policy of its own (`Some`), or what the document says (`None`).
    pub(super) fn set_client(
        &self,
        engine: &Engine,
        key: ClientKey,
        spec: Option<&PolicySpec>,
        now_ns: u64,
    ) -> Result<(), SpecError> {
        let index = match spec {
            Some(spec) => Some(engine.registry.edit(now_ns, |edit| edit.intern(spec))?),
            None => self.clients.get(&key).copied(),
        };
        let mut assignments = engine
            .assignments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match index {
            Some(index) => assignments.set(key, index),
            None => assignments.remove(key),
        };
        drop(assignments);
        Self::back_to_default(engine, key, now_ns);
        Ok(())
    }

    /// The policy of the segment `name`.
    pub(super) fn segment(&self, name: &str) -> Option<u32> {
        self.segments.get(name).copied()
    }
}
