//! The composition root: builds, starts and drains the agent.
//!
//! The only place that knows the data plane, the store, the policy and HTTP at once.

use std::future::Future;
use std::path::PathBuf;

use crate::config::Settings;

/// What the agent is started with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The validated settings: flags, environment and file merged.
    pub settings: Settings,
    /// The configuration file, read again on SIGHUP and when it changes; none if there is none.
    pub config_path: Option<PathBuf>,
    /// Keep nothing on disk.
    pub ephemeral: bool,
    /// Make new kernel tables if those that are pinned do not fit (every bucket starts full).
    pub replace_pins: bool,
}

/// Runs the agent until `shutdown` resolves, then drains it. The kernel goes on enforcing the last
/// policy afterwards: pins stay.
///
/// Blocks the calling task; needs a multi-threaded tokio runtime with I/O and time.
///
/// # Errors
///
/// When the agent cannot start: the message names what and why. Nothing is changed then.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let _ = options;
    shutdown.await;
    anyhow::bail!("this build has no agent yet")
}
