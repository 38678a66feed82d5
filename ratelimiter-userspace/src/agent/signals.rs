//! What comes from outside the API: signals, the service manager's watchdog, changes of the
//! configuration file.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use super::control::Control;
use super::reload::Reloader;
use super::state::Shared;
use crate::clock;

/// Serves signals, the watchdog and the configuration file until it is time to stop.
pub(super) async fn until_told(
    reloader: &Reloader,
    control: &Control,
    shared: &Shared,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("watching SIGHUP")?;
    let mut period_us = 0;
    let watched = sd_notify::watchdog_enabled(false, &mut period_us);
    let mut watchdog = tokio::time::interval(Duration::from_micros(period_us.max(200_000) / 2));
    let watching = reloader.watch(control);
    tokio::pin!(watching, shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => {
                tell_systemd(&[NotifyState::Reloading]);
                // The outcome is in the log, the events and the metrics.
                let _outcome = reloader.reload(control, "SIGHUP").await;
                tell_systemd(&[NotifyState::Ready]);
            }
            _ = watchdog.tick(), if watched => {
                // A stale observer means a hung kernel call: then systemd shall restart us.
                let age_ns = clock::monotonic_ns()
                    .saturating_sub(shared.figured.load().at_ns);
                if age_ns < period_us.saturating_mul(1_000).max(10_000_000_000) {
                    tell_systemd(&[NotifyState::Watchdog]);
                }
            }
            () = &mut watching => {}
        }
    }
}

/// Tells the service manager, if there is one.
pub(super) fn tell_systemd(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd does not listen");
    }
}
