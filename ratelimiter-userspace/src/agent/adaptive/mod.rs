//! Limits that follow the health of what they protect: the `adaptive` thread.
//!
//! It gathers what the controllers of [`crate::control`] look at (reports, outcomes, what was
//! admitted, what clients ask for), steps them every 100 ms and with each report at once, and gives
//! what they decide to both planes: the speed of segment clocks in the kernel, the scale of a
//! segment's policies in the check API.
//!
//! - `backend`: one backend; `demand`, `wants`: what its clients ask for; `scales`: from decisions to scales
//! - `fleet`: the seam to other hosts; `replica`: which of their states counts
//! - `poll`: pages that are read; `dial`: how they are reached; `load`: this host's load; `memory`: what outlives a restart
#![expect(
    clippy::format_push_string,
    reason = "texts for people: an allocation more does not matter, a fallible `write!` reads worse"
)]

mod backend;
mod demand;
mod dial;
pub(super) mod fleet;
mod load;
mod memory;
mod poll;
mod replica;
mod scales;
mod wants;
mod worker;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use self::backend::Channel;
use self::poll::{Polled, Poller};
pub(super) use self::worker::Worker;
use crate::admin::views::{AdaptiveView, Explanation, HealthAnswer, HealthReport, LatencyMs};
use crate::admin::{AdminError, Caller, Result};
use crate::config::Settings;
use crate::config::adaptive::{Latency, Poll};
use crate::control::report::Report;
use crate::policy::model::DEFAULT_SEGMENT;

/// Reports and commands that may wait; more are refused.
const QUEUE: usize = 1_024;
/// Longest name of an instance, in bytes: with its credential's it makes one source.
const INSTANCE_MAX_BYTES: usize = 64;

/// What the thread is told.
enum Command {
    /// A report came.
    Report(Box<Incoming>),
    /// A page could not be read.
    PollProblem(String, String),
    /// Hold what is in force, or a factor.
    Pause(Option<String>, Option<f64>, oneshot::Sender<Result<()>>),
    /// Decide again.
    Resume(Option<String>, oneshot::Sender<Result<()>>),
    /// Other hosts have said something of a backend.
    Heard(String),
    /// Other settings.
    Configure(Box<Settings>),
}

/// A report on its way.
struct Incoming {
    backend: String,
    channel: Channel,
    report: Seen,
    in_flight: Option<u64>,
    /// What was wrong with the page it comes from, where it was a page.
    problem: Option<String>,
    answer: Option<oneshot::Sender<Result<HealthAnswer>>>,
}

/// What was seen, before it is known which response time counts.
#[derive(Clone, Debug)]
struct Seen {
    report: Report,
    latency_ms: LatencyMs,
}

/// Speaks to the thread. Dropping the last one ends it.
#[derive(Debug)]
pub(super) struct Handle {
    commands: SyncSender<Command>,
}

/// Makes the two ends.
pub(super) fn channel() -> (Arc<Handle>, Commands) {
    let (commands, queue) = sync_channel(QUEUE);
    (Arc::new(Handle { commands }), Commands(queue))
}

/// The thread's end.
pub(super) struct Commands(Receiver<Command>);

impl Handle {
    fn send(&self, command: Command) -> Result<()> {
        self.commands
            .try_send(command)
            .map_err(|_| AdminError::Unavailable(format!("{QUEUE} reports wait already")))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.send(command(answer))?;
        answered
            .await
            .map_err(|_| AdminError::Unavailable("the agent is stopping".to_owned()))?
    }

    /// Takes a report that `caller` pushed.
    pub(super) async fn health(
        &self,
        report: HealthReport,
        caller: &Caller,
    ) -> Result<HealthAnswer> {
        let bytes = report.instance.len();
        if bytes == 0 || bytes > INSTANCE_MAX_BYTES {
            return Err(AdminError::invalid(
                "/instance",
                format!("`instance` has {bytes} bytes; it must have 1 to {INSTANCE_MAX_BYTES}"),
            ));
        }
        let seen = Seen {
            latency_ms: report.latency_ms.unwrap_or_default(),
            report: Report {
                // Whoever holds a credential speaks for nobody else.
                source: format!("{}/{}", caller.name, report.instance),
                boot: report.boot,
                seq: report.seq,
                age_s: report.age_s,
                period_s: report.window_s,
                rt_s: 0.0,
                errors: report.error_ratio,
                count: report.count,
            },
        };
        self.ask(|answer| {
            Command::Report(Box::new(Incoming {
                backend: report.service,
                channel: Channel::Push,
                report: seen,
                in_flight: report.in_flight,
                problem: None,
                answer: Some(answer),
            }))
        })
        .await
    }

    /// Holds what is in force, or `factor`, of one backend or all.
    pub(super) async fn pause(&self, backend: Option<String>, factor: Option<f64>) -> Result<()> {
        if let Some(factor) = factor
            && !(0.001..=1.0).contains(&factor)
        {
            return Err(AdminError::invalid(
                "/factor",
                format!("`factor` is {factor}; it must be between 0.001 and 1"),
            ));
        }
        self.ask(|answer| Command::Pause(backend, factor, answer))
            .await
    }

    /// Lets the controllers of one backend or all decide again.
    pub(super) async fn resume(&self, backend: Option<String>) -> Result<()> {
        self.ask(|answer| Command::Resume(backend, answer)).await
    }

    /// Takes over other settings.
    pub(super) fn configure(&self, settings: &Settings) -> Result<()> {
        self.send(Command::Configure(Box::new(settings.clone())))
    }
}

impl Seen {
    /// The report, with the response time that counts. Refused where something was served and it
    /// is not said how fast.
    fn report(&self, latency: Latency) -> Result<Report> {
        let (name, value) = match latency {
            Latency::Mean => ("mean", self.latency_ms.mean),
            Latency::P50 => ("p50", self.latency_ms.p50),
            Latency::P99 => ("p99", self.latency_ms.p99),
        };
        let mut report = self.report.clone();
        match value {
            Some(ms) => report.rt_s = ms / 1e3,
            None if report.count == Some(0) || report.errors >= 1.0 => report.rt_s = 0.0,
            None => {
                return Err(AdminError::invalid(
                    format!("/latency_ms/{name}"),
                    format!(
                        "`latency_ms.{name}` is missing; it is what `latency = \"{name}\"` goes by"
                    ),
                ));
            }
        }
        Ok(report)
    }
}

/// Adds what health and load have to do with it.
pub(super) fn explain(found: &mut Explanation, adaptive: &AdaptiveView) {
    let segment = found.segment.as_deref().unwrap_or(DEFAULT_SEGMENT);
    for backend in &adaptive.backends {
        let Some(scale) = backend.segments.iter().find(|s| s.segment == segment) else {
            continue;
        };
        let (requests, packets) = (scale.requests, scale.packets);
        let reduced = requests < 1.0 || packets < 1.0;
        let mut text = if reduced {
            format!(
                "for the sake of backend `{}` limits of segment `{segment}` are at {:.1} % \
                 (requests) and {:.1} % (packets)",
                backend.backend,
                requests * 100.0,
                packets * 100.0
            )
        } else {
            format!(
                "limits of segment `{segment}` follow the health of backend `{}`: as configured \
                 now",
                backend.backend
            )
        };
        if let Some(level) = scale.level {
            text.push_str(&format!(", a fair share is {level:.1}/s"));
        }
        found.path.push(format!("{text} ({})", backend.reason));
    }
    let window = &adaptive.window;
    if window.enabled {
        found.path.push(format!(
            "bursts of requests are at {:.0} %, by this host's load",
            window.scale * 100.0
        ));
    }
}

/// Reads a backend's page until the agent stops, or the task is aborted.
async fn poll_on(handle: Weak<Handle>, backend: String, poll: Poll, boot: String) {
    let every = Duration::from_millis(poll.every_ms);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let timeout_ms = poll.timeout_ms as f64;
    let mut poller = Poller::new(poll);
    let mut seq = 0;
    loop {
        ticks.tick().await;
        let polled = poller.read().await;
        let Some(handle) = handle.upgrade() else {
            return;
        };
        let (problem, said) = match polled {
            Polled::First => (None, None),
            Polled::Odd(why) => (Some(why), None),
            Polled::Said(said) => (None, Some((said.latency, said.errors, said.count))),
            Polled::Failed(why) => (Some(why), Some((Some(timeout_ms / 1e3), 1.0, None))),
        };
        if let Some((latency_s, errors, count)) = said {
            seq += 1;
            let latency_ms = latency_s.map(|latency_s| latency_s * 1e3);
            let incoming = Incoming {
                backend: backend.clone(),
                channel: Channel::Poll,
                report: Seen {
                    // A page has one response time: it is the one that counts.
                    latency_ms: LatencyMs {
                        mean: latency_ms,
                        p50: latency_ms,
                        p99: latency_ms,
                    },
                    report: Report {
                        source: "poll".to_owned(),
                        boot: boot.clone(),
                        seq,
                        age_s: 0.0,
                        period_s: every.as_secs_f64(),
                        rt_s: 0.0,
                        errors,
                        count: count.or(latency_ms.is_none().then_some(0)),
                    },
                },
                in_flight: None,
                problem,
                answer: None,
            };
            // One that finds the queue full is lost; the next one comes.
            let _full = handle.send(Command::Report(Box::new(incoming))).is_err();
            continue;
        }
        let told = Command::PollProblem(backend.clone(), problem.unwrap_or_default());
        let _full = handle.send(told).is_err();
    }
}
