//! Reading the configuration file again: on SIGHUP, when it changes, when asked.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::adaptive::Handle;
use super::control::Control;
use super::doors::{self, Doors};
use super::rows::plane_mode;
use super::state::Shared;
use super::{Loader, credentials, peers, privileges};
use crate::admin::views::{Changed, EventKind};
use crate::admin::{AdminError, Result};
use crate::config::statics::static_document;
use crate::config::{Attach, Interface, Settings};
use crate::dataplane::{AttachOptions, DataPlane};
use crate::http::gate::Gate;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Reads the configuration again and hands what may change to whom it concerns.
pub(super) struct Reloader {
    pub(super) path: Option<PathBuf>,
    pub(super) load: Option<Loader>,
    pub(super) started_with: Settings,
    /// Interfaces the file named when it was last read: those it names no more are detached, those
    /// attached by hand stay.
    pub(super) interfaces: Mutex<Vec<String>>,
    pub(super) shared: Arc<Shared>,
    pub(super) plane: Arc<dyn DataPlane>,
    pub(super) gate: Arc<Gate>,
    pub(super) doors: Arc<Doors>,
    pub(super) adaptive: Arc<Handle>,
    /// Descriptor files in force.
    pub(super) descriptors: ArcSwap<Vec<String>>,
}

impl Reloader {
    /// Reloads. Whatever is wrong with the file, the policy in force stays.
    pub(super) async fn reload(&self, control: &Control, by: &str) -> Result<Changed> {
        let outcome = self.try_reload(control).await;
        match &outcome {
            Ok(changed) => {
                self.shared.reloads_ok.fetch_add(1, Ordering::Relaxed);
                self.shared.reload_error.store(Arc::default());
                tracing::info!(
                    by,
                    differences = changed.differences_total,
                    "configuration reloaded"
                );
                let text = format!(
                    "{by}: configuration reloaded, {} objects differ",
                    changed.differences_total
                );
                self.shared.events.push(EventKind::Change, text);
            }
            Err(error) => {
                self.shared.reloads_failed.fetch_add(1, Ordering::Relaxed);
                self.shared.reload_error.store(Arc::new(error.to_string()));
                tracing::error!(by, %error, "configuration refused; the previous one stays in force");
                self.shared
                    .events
                    .push(EventKind::ReloadFailed, error.to_string());
            }
        }
        outcome
    }

    async fn try_reload(&self, control: &Control) -> Result<Changed> {
        let load = self.load.clone().ok_or_else(|| {
            AdminError::Conflict("the agent was started without a configuration file".to_owned())
        })?;
        let path = self.path.clone();
        let settings = tokio::task::spawn_blocking(move || {
            if let Some(path) = &path {
                privileges::check_file(path)?;
            }
            load()
        })
        .await
        .map_err(|_| AdminError::Unavailable("the agent is stopping".to_owned()))?
        .map_err(|text| AdminError::invalid("", text))?;
        let credentials = credentials(&settings).map_err(|text| AdminError::invalid("", text))?;
        let open = settings.admin.listen.address();
        if credentials.is_empty() && open.is_some_and(|at| !at.ip().to_canonical().is_loopback()) {
            return Err(AdminError::invalid(
                "/credentials",
                "`admin.listen` is not loopback; at least one credential must stay",
            ));
        }
        let read = settings.clone();
        let descriptors = tokio::task::spawn_blocking(move || doors::read(&read))
            .await
            .map_err(|_| AdminError::Unavailable("the agent is stopping".to_owned()))?
            .map_err(|text| AdminError::invalid("/check/descriptors", text))?;
        let (fixed, _duplicates) = static_document(&settings);
        let mode = settings.mode();
        self.let_in(&settings, control).await?;
        let mut changed = control.with(move |core| core.reload(fixed, mode)).await?;
        if let Err(error) = self.shared.checks.configure(&settings) {
            changed.warnings.push(error.to_string());
        }
        if let Err(error) = self.adaptive.configure(&settings) {
            changed.warnings.push(error.to_string());
        }
        if let Err(error) = self.doors.configure(descriptors, mode) {
            changed.warnings.push(error);
        }
        self.descriptors
            .store(Arc::new(settings.check.descriptors.clone()));
        self.gate
            .replace(credentials, &settings.admin.allowed_hosts);
        let plane = Arc::clone(&self.plane);
        let wanted = settings.interfaces.clone();
        let named = names(&wanted);
        let before = std::mem::replace(
            &mut *self
                .interfaces
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
            named.clone(),
        );
        let refused = tokio::task::spawn_blocking(move || {
            let mut refused = attach_all(plane.as_ref(), &wanted);
            for gone in before.iter().filter(|name| !named.contains(name)) {
                if let Err(error) = plane.detach(gone) {
                    refused.push(error.to_string());
                }
            }
            refused
        })
        .await
        .unwrap_or_default();
        changed.warnings.extend(refused);
        if self.needs_restart(&settings) {
            changed.warnings.push(
                "listeners, directories, table sizes or kernel settings differ: they change with \
                 the next start"
                    .to_owned(),
            );
        }
        Ok(changed)
    }

    /// Lets gateways and the store's servers in where an interface begins to be judged, or drops
    /// begin.
    async fn let_in(&self, settings: &Settings, control: &Control) -> Result<()> {
        let known = self
            .interfaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let begins = names(&settings.interfaces)
            .iter()
            .any(|name| !known.contains(name))
            || settings.mode() != self.shared.view.load().mode;
        if !begins {
            return Ok(());
        }
        let whom = peers::to_protect(&self.plane, &settings.redis.url, &[]).await;
        control
            .with(move |core| core.protect(&whom))
            .await
            .map(drop)
    }

    fn needs_restart(&self, new: &Settings) -> bool {
        let old = &self.started_with;
        (
            &old.admin.listen,
            &old.admin.socket,
            &old.state_dir,
            &old.pin_dir,
        ) != (
            &new.admin.listen,
            &new.admin.socket,
            &new.state_dir,
            &new.pin_dir,
        ) || old.tables != new.tables
            || old.kernel != new.kernel
            || {
                // The files are read again, whichever they are.
                let mut check = old.check.clone();
                check.descriptors.clone_from(&new.check.descriptors);
                check != new.check
            }
    }

    /// Reloads whenever the file is another one or has changed. Looks twice before it does: a file
    /// that is still being written is left to be finished.
    pub(super) async fn watch(&self, control: &Control) {
        let Some(path) = self.path.clone().filter(|_| self.load.is_some()) else {
            return std::future::pending().await;
        };
        let look_at = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(path)
                .ok()
                .map(|m| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
        };
        let look = || -> Vec<_> {
            let descriptors = self.descriptors.load();
            let others = descriptors.iter().map(Path::new);
            std::iter::once(path.as_path())
                .chain(others)
                .map(look_at)
                .collect()
        };
        let mut known = look();
        let mut seen = known.clone();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let mut now = look();
            if now == seen && now != known {
                // The outcome is in the log, the events and the metrics.
                let _outcome = self.reload(control, "file").await;
                // Other files may count from here on. What changed meanwhile is seen as well: it
                // differs from what will be seen next.
                if now.len() != self.descriptors.load().len() + 1 {
                    now = look();
                }
                known.clone_from(&now);
            }
            seen = now;
        }
    }
}

/// The names of interfaces.
pub(super) fn names(interfaces: &[Interface]) -> Vec<String> {
    interfaces
        .iter()
        .map(|interface| interface.name.clone())
        .collect()
}

/// Attaches to every interface wanted and returns a sentence for each that refused.
pub(super) fn attach_all(plane: &dyn DataPlane, wanted: &[Interface]) -> Vec<String> {
    let known: Vec<String> = plane
        .interfaces()
        .into_iter()
        .map(|interface| interface.name)
        .collect();
    wanted
        .iter()
        .filter_map(|interface| {
            let options = AttachOptions {
                mode: plane_mode(interface.mode),
                replace: interface.foreign == Attach::Replace,
                // An interface that was protected before has vanished and will come back; one
                // nobody has ever seen is a mistake.
                wait: known.contains(&interface.name),
            };
            plane
                .attach(&interface.name, options)
                .err()
                .map(|error| error.to_string())
        })
        .collect()
}
