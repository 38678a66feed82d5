//! The composition root: builds, starts and drains the agent.
//!
//! The only place that knows the data plane, the store, the policy and HTTP at once.
//!
//! - [`core`](self::core): the policy in force and every way to change it, on the `control` thread
//! - `adaptive`: limits that follow the health of what they protect, on a thread of its own
//! - `fleet`: packets over a fleet, on a thread of its own; `shared_store`: the store hosts share;
//!   `membership`: requests over a fleet
//! - `follow`: the configuration that a fleet shares; `core` has the other half
//! - `observe`: reads what the kernel counts; `talkers`, `usage` keep it
//! - `service`: the agent as people use it; `explain`, `events`, `reload` are parts of it
//! - [`privileges`]: what the agent keeps of its rights
mod adaptive;
mod checks;
mod control;
mod core;
mod credentials;
mod doors;
mod estimate;
mod events;
mod explain;
mod fleet;
mod follow;
mod membership;
mod observe;
mod peers;
pub mod privileges;
mod reload;
mod requests;
mod rows;
mod service;
mod shared_store;
mod signals;
mod standing;
mod state;
mod tag;
mod talkers;
#[cfg(test)]
mod tests;
mod usage;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use sd_notify::NotifyState;
use tokio::sync::watch;

use self::core::{Core, Joining, Parts};
use control::Control;
use credentials::credentials;
use membership::Membership;
use observe::{Keeper, Observer};
use reload::{Reloader, names};
use service::Service;
use signals::{tell_systemd, until_told};
use state::{Figured, Shared};

use crate::admin::views::EventKind;
use crate::clock;
use crate::config::statics::static_document;
use crate::config::{Malformed, Settings};
use crate::dataplane::tables::{FirstSeen, budgets_of};
use crate::dataplane::{self, DataPlane, OpenOptions, XdpDataPlane};
use crate::http::gate::Gate;
use crate::http::stats::HttpStats;
use crate::http::{self, Api, Limits, Listener, Workers};
use crate::policy::prefixes::TimeBase;
use crate::policy::set::{Geometry, Inputs};
use crate::store::{EmbeddedStore, MemoryStore, Store};

/// Reads the settings again: flags over environment over file. The error is the whole text for
/// people, with file, line and column.
pub type Loader = Arc<dyn Fn() -> Result<Settings, String> + Send + Sync>;

/// What the agent is started with.
#[derive(Clone, Default)]
pub struct Options {
    /// The validated settings: flags, environment and file merged.
    pub settings: Settings,
    /// The configuration file, read again on SIGHUP and when it changes; none if there is none.
    pub config_path: Option<PathBuf>,
    /// How the settings are read again; without it the agent never reloads.
    pub load: Option<Loader>,
    /// Keep nothing on disk.
    pub ephemeral: bool,
    /// Where whoever starts the agent is logged in from over SSH.
    pub ssh_peer: Option<std::net::IpAddr>,
    /// Make new kernel tables if those that are pinned do not fit (every bucket starts full).
    pub replace_pins: bool,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("settings", &self.settings)
            .field("config_path", &self.config_path)
            .field("ephemeral", &self.ephemeral)
            .field("ssh_peer", &self.ssh_peer)
            .field("replace_pins", &self.replace_pins)
            .finish_non_exhaustive()
    }
}

/// Runs the agent until `shutdown` resolves or SIGTERM or SIGINT arrives, then drains it. The
/// kernel goes on enforcing the last policy afterwards: pins stay.
///
/// Needs a multi-threaded tokio runtime with I/O and time.
///
/// # Errors
///
/// When the agent cannot start: the message names what and why. What an earlier agent left in the
/// kernel goes on as it was.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    if let Some(path) = options.config_path.as_deref() {
        privileges::check_file(path).map_err(anyhow::Error::msg)?;
    }
    let settings = &options.settings;
    let listeners = listen(settings).await?;
    let opened = OpenOptions {
        root: settings.pin_dir.clone().into(),
        tables: tables(settings),
        replace: options.replace_pins,
    };
    let plane = tokio::task::spawn_blocking(move || XdpDataPlane::open(&opened))
        .await
        .context("opening the data plane")??;
    let store: Arc<dyn Store> = if options.ephemeral {
        Arc::new(MemoryStore::new())
    } else {
        let directory = settings.state_dir.clone();
        let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(directory));
        Arc::new(opened.await.context("opening the store")??)
    };
    serve(options, listeners, Arc::new(plane), store, shutdown).await
}

/// Runs the agent on listeners, a data plane and a store that exist already.
///
/// # Errors
///
/// As [`run`].
pub async fn serve(
    options: Options,
    listeners: Listeners,
    plane: Arc<dyn DataPlane>,
    store: Arc<dyn Store>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let settings = options.settings.clone();
    let gate = Arc::new(Gate::new(
        credentials(&settings).map_err(anyhow::Error::msg)?,
        &settings.admin.allowed_hosts,
    ));
    let shared_store = shared_store::open(&settings.redis).context("the shared store")?;
    let host = match &shared_store {
        Some(_) => shared_store::host_number(store.as_ref())?,
        None => 0,
    };
    let member = shared_store.as_ref().map(|shared_store| {
        let known = shared_store::known_hosts(store.as_ref());
        Membership::new(&settings.redis, shared_store, host, known)
    });
    let mut core = {
        let (plane, store, settings) = (Arc::clone(&plane), Arc::clone(&store), settings.clone());
        let gate = Arc::clone(&gate);
        tokio::task::spawn_blocking(move || build(&settings, plane, store, gate, member))
            .await
            .context("building the policy")??
    };
    let shared = Arc::clone(&core.shared);
    let doors = Arc::new(doors::Doors::new(&shared.checks));
    let descriptors = doors::read(&settings).map_err(anyhow::Error::msg)?;
    doors
        .configure(descriptors, settings.mode())
        .map_err(anyhow::Error::msg)?;
    usage::put_back(&shared, &plane, &store).await?;

    let wanted = settings.interfaces.clone();
    if !wanted.is_empty() {
        core = peers::let_in(core, &plane, &settings.redis.url, options.ssh_peer).await?;
    }
    let attaching = Arc::clone(&plane);
    let refused =
        tokio::task::spawn_blocking(move || reload::attach_all(attaching.as_ref(), &wanted))
            .await
            .context("attaching")?;
    if !refused.is_empty() {
        bail!("{}", refused.join("; "));
    }

    let (control, control_thread) = Control::start(core).context("starting the control thread")?;
    let (stop_observer, observer_stopped) = std::sync::mpsc::channel();
    let (admitted, samples) = fleet::channel();
    let observer = Observer {
        plane: Arc::clone(&plane),
        shared: Arc::clone(&shared),
        admitted: shared_store.is_some().then_some(admitted),
        v6_prefix_len: settings.kernel.v6_prefix_len,
    };
    let (stop_fleet, fleet_stopped) = std::sync::mpsc::channel();
    let fleet_thread = match &shared_store {
        None => {
            fleet::undo_parts(&plane).await;
            None
        }
        Some(shared_store) => {
            let interval = Duration::from_millis(settings.redis.sync_interval_ms);
            let worker = fleet::Worker::new(
                (&plane, &shared, &store),
                shared_store,
                samples,
                (host, interval),
            );
            Some(worker.start(fleet_stopped)?)
        }
    };
    let redis = shared_store.as_ref().map(|shared| shared.store.clone());
    let follower = follow::start(redis, &control, &shared)?;
    let tracked_keeper = Keeper {
        plane: Arc::clone(&plane),
        store: Arc::clone(&store),
        shared: Arc::clone(&shared),
        save_every: Duration::from_millis(settings.store.save_interval_ms),
    };
    let (stop_tracked_keeper, tracked_keeper_stopped) = std::sync::mpsc::channel();
    let tracked_keeper_thread = std::thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || tracked_keeper.run(&tracked_keeper_stopped))
        .context("starting the keeper thread")?;
    let observer_thread = std::thread::Builder::new()
        .name("observer".to_owned())
        .spawn(move || observer.run(&observer_stopped))
        .context("starting the observer thread")?;
    let (stop_keeper, keeper_stopped) = std::sync::mpsc::channel();
    let keeper = checks::Keeper {
        checks: shared.checks.clone(),
        store: Arc::clone(&store),
        shared: Arc::clone(&shared),
        // Usage of requests is in memory alone: it is written sooner than the kernel's.
        every: Duration::from_millis(settings.store.flush_interval_ms),
    };
    let keeper_thread = std::thread::Builder::new()
        .name("checks".to_owned())
        .spawn(move || keeper.run(&keeper_stopped))
        .context("starting the thread that saves usage")?;
    let (adaptive, commands) = adaptive::channel();
    let others: Box<dyn adaptive::fleet::Fleet> = match &shared_store {
        Some(shared) => Box::new(adaptive::fleet::Shared::new(
            shared.store.clone(),
            host,
            &adaptive,
        )),
        None => Box::new(adaptive::fleet::Alone),
    };
    let worker = adaptive::Worker::new(
        &settings,
        (Arc::clone(&shared), Arc::clone(&plane), Arc::clone(&store)),
        control.clone(),
        (&adaptive, others),
        tokio::runtime::Handle::current(),
    );
    let adaptive_thread = std::thread::Builder::new()
        .name("adaptive".to_owned())
        .spawn(move || worker.run(&commands))
        .context("starting the thread that follows health")?;
    let reloader = Arc::new(Reloader {
        adaptive: Arc::clone(&adaptive),
        path: options.config_path.clone(),
        load: options.load.clone(),
        started_with: settings.clone(),
        interfaces: std::sync::Mutex::new(names(&settings.interfaces)),
        shared: Arc::clone(&shared),
        plane: Arc::clone(&plane),
        gate: Arc::clone(&gate),
        doors: Arc::clone(&doors),
        descriptors: ArcSwap::from_pointee(settings.check.descriptors.clone()),
    });
    let service = Arc::new(Service {
        adaptive,
        control: control.clone(),
        plane: Arc::clone(&plane),
        store,
        shared: Arc::clone(&shared),
        reloader: Arc::clone(&reloader),
        store_url: settings.redis.url.clone(),
        v6_prefix_len: settings.kernel.v6_prefix_len,
        pin_dir: settings.pin_dir.clone(),
        config_file: options
            .config_path
            .as_ref()
            .map(|path| path.display().to_string()),
    });
    let api = Api::new(
        service,
        gate,
        Arc::clone(&shared.http),
        settings.admin.max_body_bytes as usize,
    );
    let (stop, stopped) = watch::channel(false);
    let limits = Limits {
        connections: settings.admin.max_connections as usize,
        connections_per_peer: (settings.admin.max_connections as usize / 4).max(8),
        header_timeout: Duration::from_millis(settings.admin.header_timeout_ms),
        drain: Duration::from_millis(settings.safety.drain_ms),
        ..Limits::default()
    };
    let mut servers = tokio::task::JoinSet::new();
    let until_stopped = || {
        let mut stopped = stopped.clone();
        async move {
            let _ended = stopped.wait_for(|stopped| *stopped).await.is_ok();
        }
    };
    for listener in listeners.admin {
        let stats = Arc::clone(&shared.http.connections);
        servers.spawn(http::serve(
            listener,
            api.router(),
            limits,
            stats,
            None,
            until_stopped(),
        ));
    }
    if let Some(listener) = listeners.check {
        let exposed = listener.is_exposed();
        let workers = Workers::start().context("starting the threads of the check API")?;
        let (answers, limits) = checks::api(&settings, &shared.checks, exposed);
        servers.spawn(http::serve(
            listener,
            answers,
            limits,
            Arc::clone(&shared.check_connections),
            Some(Arc::new(workers)),
            until_stopped(),
        ));
    }
    let others = (listeners.grpc, listeners.resp);
    doors.open(&settings, others, &mut servers, until_stopped)?;
    shared.started.store(true, Ordering::Relaxed);
    shared.events.push(EventKind::Agent, "started");
    tell_systemd(&[NotifyState::Ready]);
    tracing::info!(mode = ?settings.mode(), "started");

    until_told(&reloader, &control, &shared, shutdown).await?;

    tracing::info!("stopping; the kernel keeps the last policy");
    shared.stopping.store(true, Ordering::Relaxed);
    shared.events.push(EventKind::Agent, "stopping");
    tell_systemd(&[NotifyState::Stopping]);
    stop.send_replace(true);
    while servers.join_next().await.is_some() {}
    drop(api);
    drop(reloader);
    drop(control);
    drop((stop_observer, stop_keeper, stop_tracked_keeper, stop_fleet));
    let follower_thread = follower.map(|(stop_follower, thread)| {
        drop(stop_follower);
        thread
    });
    tokio::task::spawn_blocking(move || {
        // Before the control thread: they speak to that one.
        let followed = follower_thread.is_none_or(|thread| thread.join().is_ok());
        let adapted = adaptive_thread.join().is_ok();
        let settled = fleet_thread.is_none_or(|thread| thread.join().is_ok());
        let observed = observer_thread.join().is_ok();
        let controlled = control_thread.join().is_ok();
        let kept = keeper_thread.join().is_ok() && tracked_keeper_thread.join().is_ok();
        adapted && followed && settled && observed && controlled && kept
    })
    .await
    .context("ending the threads")?
    .then_some(())
    .context("a thread of the agent panicked")
}

/// Where the agent listens.
#[derive(Debug, Default)]
pub struct Listeners {
    /// The admin API.
    pub admin: Vec<Listener>,
    /// The check API over HTTP.
    pub check: Option<Listener>,
    /// The check API over gRPC.
    pub grpc: Option<Listener>,
    /// The check API in the Redis protocol.
    pub resp: Option<Listener>,
}

/// Binds every listener. Nothing else has been touched yet.
async fn listen(settings: &Settings) -> anyhow::Result<Listeners> {
    let mut listeners = Vec::new();
    if let Some(address) = settings.admin.listen.address() {
        let locked = !settings.credentials.is_empty();
        listeners.push(Listener::tcp(address, locked).await?);
    }
    if !settings.admin.socket.is_empty() {
        listeners.push(Listener::unix(Path::new(&settings.admin.socket)).await?);
    }
    let check = match settings.check.http.address() {
        Some(address) => Some(checks::bind(settings, address).await?),
        None => None,
    };
    let (grpc, resp) = doors::bind(settings).await?;
    if listeners.is_empty() {
        tracing::warn!(
            "neither `admin.listen` nor `admin.socket` is set: nobody can ask the agent"
        );
    }
    for address in listeners.iter().filter_map(Listener::address) {
        tracing::info!(%address, "admin API");
    }
    if let Some(address) = check.as_ref().and_then(Listener::address) {
        tracing::info!(%address, "check API");
    }
    Ok(Listeners {
        admin: listeners,
        check,
        grpc,
        resp,
    })
}

/// The TCP address a test may bind before it calls [`serve`].
pub async fn bind(address: SocketAddr, settings: &Settings) -> anyhow::Result<Listener> {
    Ok(Listener::tcp(address, !settings.credentials.is_empty()).await?)
}

/// The TCP address a test may bind for the check API before it calls [`serve`].
pub async fn bind_check(address: SocketAddr, settings: &Settings) -> anyhow::Result<Listener> {
    Ok(checks::bind(settings, address).await?)
}

fn tables(settings: &Settings) -> dataplane::Tables {
    let tables = &settings.tables;
    dataplane::Tables {
        crowd4_words: tables.crowd4_words,
        crowd6_ways: tables.crowd6_ways,
        region_words: tables.region_words,
        tracked: tables.tracked,
        policies: tables.policies,
        prefixes: tables.prefixes,
        events_bytes: tables.events_bytes,
        v6_prefix_len: settings.kernel.v6_prefix_len,
    }
}

/// Restores the policy and installs it.
fn build(
    settings: &Settings,
    plane: Arc<dyn DataPlane>,
    store: Arc<dyn Store>,
    gate: Arc<Gate>,
    member: Option<Membership>,
) -> anyhow::Result<Core> {
    let usage = checks::load(store.as_ref());
    let fleet = member.as_ref().map(|member| member.options);
    let checks = checks::open(settings, gate, usage.as_ref(), fleet)?;
    let found = plane.installed()?;
    let (geometry, kernel) = (plane.tables(), &settings.kernel);
    let first_seen = FirstSeen::of(kernel.first_seen, kernel.first_seen_per_s);
    let budgets = geometry.budgets(kernel.malformed_per_s, first_seen);
    let mut flags = 0;
    if settings.kernel.malformed == Malformed::Budget {
        flags |= ratelimiter_common::abi::config::flags::MALFORMED_BUDGET;
    }
    let parts = Parts {
        store,
        plane,
        inputs: Inputs {
            mode: settings.mode(),
            flags,
            geometry: Geometry {
                tracked: geometry.tracked,
                policies: geometry.policies,
                prefixes: geometry.prefixes,
                v6_prefix_len: settings.kernel.v6_prefix_len,
            },
            identity_key: found.config.perm.xor,
            time: TimeBase::new(clock::monotonic_ns(), clock::unix_ms()),
            now_ns: clock::monotonic_ns(),
        },
        // Duplicates were refused when the settings were loaded.
        fixed: static_document(settings).0,
        confirm_within: Duration::from_secs(settings.safety.confirm_within_s),
        risky_percent: settings.safety.risky_percent,
        protect_for: Duration::from_secs(settings.safety.protect_for_s),
        checks: checks.clone(),
        joining: member.as_ref().map(|member| Joining {
            redis: member.redis.clone(),
            secret: member.options.secret,
        }),
        budgets: (budgets_of(&found.config) != budgets).then_some(budgets),
        found,
    };
    let core = Core::new(parts, |view| {
        Arc::new(Shared {
            view: ArcSwap::from_pointee(view),
            figured: ArcSwap::from_pointee(Figured::default()),
            events: events::Events::default(),
            http: Arc::new(HttpStats::default()),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            reloads_ok: AtomicU64::new(0),
            reloads_failed: AtomicU64::new(0),
            reload_error: ArcSwap::default(),
            save_error: ArcSwap::default(),
            apply_error: ArcSwap::default(),
            checks_error: ArcSwap::default(),
            check_connections: Arc::default(),
            checks: checks.clone(),
            redis: member
                .as_ref()
                .map(|member| (member.redis.clone(), settings.redis.url.shown())),
            adaptive: ArcSwap::default(),
            fleet: ArcSwap::default(),
            following: follow::ConfigSync::default(),
            begin: clock::instant(),
        })
    })?;
    if let Some(usage) = &usage {
        checks::restore(&checks, usage);
    }
    if let Some(Membership { redis, .. }) = member {
        let runtime = redis.runtime();
        checks.limiter().join(Arc::new(redis), &runtime);
    }
    Ok(core)
}
