//! The thread: commands in, steps, scales out.

use std::collections::BTreeMap;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::backend::{Around, Backend, Channel};
use super::fleet::Fleet;
use super::load::{Load, Meter};
use super::{Command, Commands, Handle, Incoming, memory, poll_on};
use crate::admin::views::{AdaptiveView, EventKind, HealthAnswer, WindowView};
use crate::admin::{AdminError, Result};
use crate::agent::control::Control;
use crate::agent::state::Shared;
use crate::clock;
use crate::config::Settings;
use crate::control::news::{Change, Topic};
use crate::control::report::Refusal;
use crate::control::window::{Patience, Scale};
use crate::dataplane::DataPlane;
use crate::store::Store;

/// How often the controllers are stepped.
const TICK: Duration = Duration::from_millis(100);
/// Scales that differ by less, relatively, are the same.
const SAME: f64 = 0.002;
/// How often the kernel's clocks are looked at although nothing changed, so that a slowed one is
/// prolonged.
const RENEW_S: f64 = 5.0;
/// How often states are saved.
const SAVE_EVERY_S: f64 = 10.0;

/// Everything the thread works with.
pub(in crate::agent) struct Worker {
    shared: Arc<Shared>,
    plane: Arc<dyn DataPlane>,
    store: Arc<dyn Store>,
    control: Control,
    handle: Weak<Handle>,
    runtime: tokio::runtime::Handle,
    fleet: Box<dyn Fleet>,
    /// Tells this run's polls from those before.
    boot: String,
    /// From CLOCK_MONOTONIC to the controllers' clock, in seconds.
    offset_s: f64,
    /// States found in the store, until their backends are configured.
    found: BTreeMap<String, crate::control::backend::State>,
    backends: BTreeMap<String, Backend>,
    polls: BTreeMap<String, JoinHandle<()>>,
    host: crate::config::adaptive::Host,
    window: Scale,
    window_s: Option<f64>,
    meter: Meter,
    load: Load,
    /// Scales the check API has, by segment.
    checks: BTreeMap<String, f64>,
    /// Scales the kernel was told, and when.
    kernel: (BTreeMap<String, f64>, f64),
    saved_s: f64,
}

impl Worker {
    /// The thread's state before its first tick, with what an earlier agent has learnt.
    pub(in crate::agent) fn new(
        settings: &Settings,
        (shared, plane, store): (Arc<Shared>, Arc<dyn DataPlane>, Arc<dyn Store>),
        control: Control,
        (handle, fleet): (&Arc<Handle>, Box<dyn Fleet>),
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let unix_ms = clock::unix_ms();
        let monotonic_s = clock::monotonic_ns() as f64 / 1e9;
        let (now_s, found) = memory::load(store.as_ref(), unix_ms).unwrap_or_default();
        let now_s = now_s.max(monotonic_s);
        let mut worker = Self {
            shared,
            plane,
            store,
            control,
            handle: Arc::downgrade(handle),
            runtime,
            fleet,
            boot: unix_ms.to_string(),
            offset_s: now_s - monotonic_s,
            found,
            backends: BTreeMap::new(),
            polls: BTreeMap::new(),
            host: crate::config::adaptive::Host::default(),
            window: Scale::default(),
            window_s: None,
            meter: Meter::default(),
            load: Load::default(),
            checks: BTreeMap::new(),
            kernel: (BTreeMap::new(), f64::NEG_INFINITY),
            saved_s: now_s,
        };
        worker.configure(settings);
        worker
    }

    /// Works until the last handle is dropped.
    pub(in crate::agent) fn run(mut self, commands: &Commands) {
        let mut next = clock::instant();
        loop {
            let wait = next.saturating_duration_since(clock::instant());
            match commands.0.recv_timeout(wait) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = clock::instant();
            if now >= next {
                next = later(next, now);
                self.tick();
            }
        }
        self.polls.values().for_each(JoinHandle::abort);
        self.save();
    }

    fn now_s(&self) -> f64 {
        clock::monotonic_ns() as f64 / 1e9 + self.offset_s
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Report(incoming) => self.report(*incoming),
            Command::PollProblem(backend, why) => self.poll_problem(&backend, why),
            Command::Pause(backend, factor, answer) => {
                let now_s = self.now_s();
                let done = self.each(backend.as_deref(), |b| b.pause(factor, now_s));
                self.tick();
                let _gone = answer.send(done).is_err();
            }
            Command::Resume(backend, answer) => {
                let now_s = self.now_s();
                let done = self.each(backend.as_deref(), |b| b.resume(now_s));
                self.tick();
                let _gone = answer.send(done).is_err();
            }
            Command::Heard(backend) => self.heard(&backend),
            Command::Configure(settings) => {
                self.configure(&settings);
                self.tick();
            }
        }
    }

    fn each(&mut self, name: Option<&str>, mut act: impl FnMut(&mut Backend)) -> Result<()> {
        match name {
            Some(name) => act(self.backends.get_mut(name).ok_or_else(|| unknown(name))?),
            None => self.backends.values_mut().for_each(act),
        }
        Ok(())
    }

    fn configure(&mut self, settings: &Settings) {
        let now_s = self.now_s();
        self.host = settings.adaptive.clone();
        let wanted: BTreeMap<_, _> = settings
            .backends
            .iter()
            .filter_map(|(name, backend)| Some((name, backend.adaptive.as_ref()?)))
            .collect();
        let limiter = self.shared.checks.limiter();
        for name in self
            .backends
            .keys()
            .filter(|name| !wanted.contains_key(name))
        {
            let _last = limiter.observe_backend(name, false).is_err();
        }
        self.backends.retain(|name, _| wanted.contains_key(name));
        for (name, adaptive) in wanted {
            if let Err(error) = limiter.observe_backend(name, true) {
                tracing::error!(backend = %name, %error, "the backend is not observed");
                continue;
            }
            let found = self.found.remove(name);
            let backend = self.backends.entry(name.clone()).or_insert_with(|| {
                let mut backend = Backend::new(name, adaptive, now_s, &self.boot);
                if let Some(state) = found {
                    tracing::info!(backend = %name, "what was learnt before the restart is kept");
                    backend.state = state;
                }
                backend
            });
            let same = backend.settings.poll == adaptive.poll && self.polls.contains_key(name);
            backend.configure(adaptive);
            if same {
                continue;
            }
            backend.poll_problem = None;
            if let Some(poll) = &adaptive.poll {
                if poll.every_ms > 2_000 {
                    tracing::warn!(
                        backend = %name, every_ms = poll.every_ms,
                        "a page read this rarely lets a first surge last half a minute; push, or \
                         read it every second"
                    );
                }
                let boot = format!("{}-{now_s}", self.boot);
                let reading = poll_on(Weak::clone(&self.handle), name.clone(), poll.clone(), boot);
                let task = self.runtime.spawn(reading);
                if let Some(before) = self.polls.insert(name.clone(), task) {
                    before.abort();
                }
            }
        }
        self.polls.retain(|name, task| {
            let backend = self.backends.get(name);
            let keep = backend.is_some_and(|backend| backend.settings.poll.is_some());
            if !keep {
                task.abort();
            }
            keep
        });
    }

    fn report(&mut self, incoming: Incoming) {
        let answer = self.judge(&incoming);
        if let Err(error) = &answer
            && incoming.channel != Channel::Push
        {
            tracing::debug!(backend = %incoming.backend, %error, "a report is refused");
        }
        if incoming.channel == Channel::Poll {
            // A page that is read and says what cannot be is a problem of the page.
            let refused = match &answer {
                Err(error) => Some(error.to_string()),
                Ok(answer) => answer.reason.clone(),
            };
            let refused = refused.map(|why| format!("what it says is refused: {why}"));
            let why = incoming.problem.clone().or(refused).unwrap_or_default();
            self.poll_problem(&incoming.backend, why);
        }
        if let Some(waiting) = incoming.answer {
            let _gone = waiting.send(answer).is_err();
        }
    }

    fn judge(&mut self, incoming: &Incoming) -> Result<HealthAnswer> {
        let now_s = self.now_s();
        let name = &incoming.backend;
        let backend = self.backends.get_mut(name).ok_or_else(|| unknown(name))?;
        let report = incoming.report.report(backend.settings.latency);
        let report = report.inspect_err(|_| backend.refuse())?;
        if !backend.heeds(incoming.channel, now_s) {
            return Ok(HealthAnswer {
                service: name.clone(),
                ..HealthAnswer::default()
            });
        }
        let (view, figured) = (self.shared.view.load(), self.shared.figured.load());
        let conforming = conforming(self.plane.as_ref());
        let mut around = Around {
            checks: &self.shared.checks,
            view: &view,
            figured: &figured,
            conforming: &conforming,
            fleet: self.fleet.as_mut(),
            now_s,
        };
        let (refusal, changes) = backend.hear(&mut around, incoming.channel, &report);
        if refusal.is_none() && incoming.in_flight.is_some() {
            backend.in_flight = incoming.in_flight;
        }
        let factor = backend
            .decision
            .as_ref()
            .map_or(1.0, |decision| decision.in_force.factor);
        self.tell(name, &changes);
        self.enforce(now_s);
        self.publish(now_s);
        let reason = match refusal {
            None => None,
            Some(refusal @ (Refusal::Replayed { .. } | Refusal::FormerBoot { .. })) => {
                Some(refusal.to_string())
            }
            Some(refusal @ Refusal::TooManySources) => {
                return Err(AdminError::Capacity(refusal.to_string()));
            }
            Some(refusal @ Refusal::OutOfBounds { .. }) => return Err(out_of_bounds(&refusal)),
        };
        Ok(HealthAnswer {
            service: name.clone(),
            accepted: reason.is_none(),
            reason,
            factor,
        })
    }

    /// Other hosts have said something: it is in force at once.
    fn heard(&mut self, name: &str) {
        let now_s = self.now_s();
        let Some(backend) = self.backends.get_mut(name) else {
            return;
        };
        let (view, figured) = (self.shared.view.load(), self.shared.figured.load());
        let conforming = conforming(self.plane.as_ref());
        let mut around = Around {
            checks: &self.shared.checks,
            view: &view,
            figured: &figured,
            conforming: &conforming,
            fleet: self.fleet.as_mut(),
            now_s,
        };
        let changes = backend.listen(&mut around);
        backend.speak(&mut around);
        self.tell(name, &changes);
        self.enforce(now_s);
        self.publish(now_s);
    }

    fn poll_problem(&mut self, name: &str, why: String) {
        let Some(backend) = self.backends.get_mut(name) else {
            return;
        };
        let why = Some(why).filter(|why| !why.is_empty());
        if backend.poll_problem == why {
            return;
        }
        if let Some(why) = &why {
            tracing::warn!(backend = %name, %why, "the backend's page is not read");
        } else {
            tracing::info!(backend = %name, "the backend's page is read");
        }
        backend.poll_problem = why;
    }

    fn tick(&mut self) {
        let now_s = self.now_s();
        self.windows(now_s);
        let (view, figured) = (self.shared.view.load(), self.shared.figured.load());
        let counts = if self.backends.is_empty() {
            Vec::new()
        } else {
            conforming(self.plane.as_ref())
        };
        let mut told = Vec::new();
        for (name, backend) in &mut self.backends {
            let mut around = Around {
                checks: &self.shared.checks,
                view: &view,
                figured: &figured,
                conforming: &counts,
                fleet: self.fleet.as_mut(),
                now_s,
            };
            told.push((name.clone(), backend.tick(&mut around)));
        }
        drop((view, figured));
        for (name, changes) in told {
            self.tell(&name, &changes);
        }
        self.enforce(now_s);
        self.publish(now_s);
        if now_s - self.saved_s >= SAVE_EVERY_S && !self.backends.is_empty() {
            self.saved_s = now_s;
            self.save();
        }
    }

    /// The reason of each change: in the log, and among the events.
    fn tell(&self, backend: &str, changes: &[Change]) {
        for change in changes {
            tracing::info!(backend, topic = ?change.topic, reason = %change.reason, "adaptive");
            if change.topic != Topic::Capacity {
                let text = format!("backend `{backend}`: {}", change.reason);
                self.shared.events.push(EventKind::Adaptive, text);
            }
        }
    }

    /// Gives both planes the scales that have changed.
    fn enforce(&mut self, now_s: f64) {
        let mut requests = BTreeMap::new();
        let mut packets = BTreeMap::new();
        for backend in self.backends.values() {
            for (segment, [of_requests, of_packets]) in backend.segment_scales() {
                requests.insert(segment.to_owned(), of_requests);
                packets.insert(segment.to_owned(), of_packets);
            }
        }
        let limiter = self.shared.checks.limiter();
        for backend in self.backends.values() {
            limiter.set_guard(&backend.name, backend.guard(now_s));
        }
        let gone = self
            .checks
            .keys()
            .filter(|name| !requests.contains_key(*name));
        let gone: Vec<(String, f64)> = gone.map(|name| (name.clone(), 1.0)).collect();
        for (segment, scale) in gone
            .iter()
            .chain(&requests.clone().into_iter().collect::<Vec<_>>())
        {
            let before = self.checks.get(segment).copied().unwrap_or(1.0);
            if !same(before, *scale) {
                if let Err(error) = limiter.set_factor(segment, *scale) {
                    tracing::error!(%segment, %error, "the check API does not take a factor");
                    continue;
                }
                self.checks.insert(segment.clone(), *scale);
            }
        }
        self.checks.retain(|name, _| requests.contains_key(name));

        let (told, at_s) = &self.kernel;
        let differs = told.len() != packets.len()
            || packets.iter().any(|(segment, scale)| {
                told.get(segment)
                    .is_none_or(|before| !same(*before, *scale))
            });
        if !differs && now_s - at_s < RENEW_S {
            return;
        }
        let scales = packets.clone();
        let posted = self.control.post(move |core| {
            if let Err(error) = core.turn(&scales) {
                tracing::error!(%error, "the kernel does not take a factor");
            }
        });
        if posted {
            self.kernel = (packets, now_s);
        }
    }

    /// Bursts follow this host's load.
    fn windows(&mut self, now_s: f64) {
        let controls = self.host.window.controls();
        if self
            .window_s
            .is_some_and(|at_s| now_s - at_s < controls.period_s)
        {
            return;
        }
        self.window_s = Some(now_s);
        self.load = self.meter.read();
        let before = self.window.get();
        self.window = match self.load.worst() {
            Some(load) if self.host.window.enabled => self.window.after_period(&controls, load),
            Some(_) | None if self.host.window.enabled => self.window,
            _ => Scale::default(),
        };
        let scale = controls.window(1.0, self.window, Patience::default());
        if (self.window.get() - before).abs() > 0.0 {
            tracing::info!(scale, load = ?self.load, "bursts follow this host's load");
        }
        let limiter = self.shared.checks.limiter();
        if let Err(error) = limiter.set_burst_scale(scale, &self.host.window.fixed) {
            tracing::error!(%error, "the check API does not take a scale of bursts");
        }
    }

    fn publish(&self, now_s: f64) {
        self.shared.adaptive.store(Arc::new(AdaptiveView {
            backends: self.backends.values().map(|b| b.view(now_s)).collect(),
            window: WindowView {
                enabled: self.host.window.enabled,
                scale: self.window.get(),
                cpu: self.load.cpu,
                pressure: self.load.pressure,
            },
        }));
    }

    fn save(&self) {
        let states = self
            .backends
            .iter()
            .map(|(name, backend)| (name.clone(), backend.state.clone()))
            .collect();
        let saved = memory::save(self.store.as_ref(), states, self.now_s(), clock::unix_ms());
        if let Err(error) = saved {
            tracing::warn!(%error, "what the controllers have learnt is not saved");
        }
    }
}

fn later(next: Instant, now: Instant) -> Instant {
    // What was missed is not made up for.
    (next + TICK).max(now)
}

fn same(a: f64, b: f64) -> bool {
    let ends = (a >= 1.0) == (b >= 1.0);
    ends && (a - b).abs() <= SAME * a.max(b)
}

fn conforming(plane: &dyn DataPlane) -> Vec<u64> {
    plane.stats().map_or_else(
        |_| Vec::new(),
        |stats| stats.segments.iter().map(|s| s.conforming).collect(),
    )
}

fn unknown(name: &str) -> AdminError {
    AdminError::NotFound {
        what: "backend with `adaptive` settings named",
        name: name.to_owned(),
    }
}

fn out_of_bounds(refusal: &Refusal) -> AdminError {
    let Refusal::OutOfBounds {
        field,
        value,
        bound,
    } = refusal
    else {
        return AdminError::invalid("", refusal.to_string());
    };
    // The field as the report's sender calls it.
    let (pointer, name) = match field.as_str() {
        "period_s" => ("/window_s", "window_s"),
        "rt_s" => ("/latency_ms", "latency_ms (in seconds)"),
        "errors" => ("/error_ratio", "error_ratio"),
        "source" => ("/instance", "instance"),
        "age_s" => ("/age_s", "age_s"),
        _ => ("/boot", "boot"),
    };
    AdminError::invalid(pointer, format!("`{name}` is {value}; it must be {bound}"))
}
