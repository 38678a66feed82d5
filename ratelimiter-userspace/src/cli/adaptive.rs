//! `ratelimiter adaptive`: limits that follow health: shown, held, and tried out on a trace.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use http::Method;
use serde::Serialize;

use super::client::{Call, ConnectionArgs};
use super::exit::{Exit, Failure, Outcome};
use super::output::{Cell, Facts, OutputArgs, Style, Table, Tint, clean, show_seconds};
use crate::admin::views::{AdaptiveView, BackendView, PauseRequest, ResumeRequest};
use crate::config::adaptive::Adaptive;
use crate::control::settings::Law;
use crate::control::trace::{Line, replay};

/// Largest trace, in bytes.
const MAX_TRACE_BYTES: u64 = 64 << 20;

/// Subcommands of `adaptive`.
#[derive(Clone, Debug, Subcommand)]
pub enum AdaptiveCommand {
    /// Show factors, budgets and the reason of each last change
    Status(StatusArgs),
    /// Hold what is in force, or a factor, until it is resumed
    Pause(PauseArgs),
    /// Let the controllers decide again
    Resume(ResumeArgs),
    /// Replay a trace of health reports and print the factor over time; asks no agent
    Simulate(SimulateArgs),
}

/// Flags of `adaptive status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `adaptive pause`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  ratelimiter adaptive pause                   every backend as it is now
  ratelimiter adaptive pause api --factor 1    configured limits, whatever the reports say")]
pub struct PauseArgs {
    /// The backend. Default: all
    #[arg(value_name = "BACKEND")]
    backend: Option<String>,
    /// Factor to hold, 0.001 to 1. Default: what is in force
    #[arg(long, value_name = "F")]
    factor: Option<f64>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `adaptive resume`.
#[derive(Clone, Debug, Args)]
pub struct ResumeArgs {
    /// The backend. Default: all
    #[arg(value_name = "BACKEND")]
    backend: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `adaptive simulate`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
FILE has one JSON object per line, in order of time; every key but `at_s` may be absent:
  {\"at_s\": 1, \"rt_s\": 0.8, \"errors\": 0, \"period_s\": 1, \"admitted\": 900, \"wanted\": 5000}
A line without `rt_s` is no report: only traffic. What the trace says was admitted is taken as given.

Examples:
  ratelimiter adaptive simulate incident.jsonl
  ratelimiter adaptive simulate incident.jsonl --law threshold --high-ms 800 -o json")]
pub struct SimulateArgs {
    /// The trace
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// `budget` or `threshold`
    #[arg(long, value_name = "LAW", default_value = "budget", value_parser = law)]
    law: Law,
    /// Response time above which limits are reduced, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500.0)]
    high_ms: f64,
    /// Response time below which they are raised, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 200.0)]
    low_ms: f64,
    #[command(flatten)]
    output: OutputArgs,
}

fn law(text: &str) -> Result<Law, String> {
    match text {
        "budget" => Ok(Law::Budget),
        "threshold" => Ok(Law::Threshold),
        _ => Err("it must be `budget` or `threshold`".to_owned()),
    }
}

/// Runs `adaptive`.
pub async fn run(command: AdaptiveCommand) -> Outcome {
    let (output, view): (OutputArgs, AdaptiveView) = match command {
        AdaptiveCommand::Simulate(args) => return simulate(&args),
        AdaptiveCommand::Status(args) => {
            let client = args.connection.client()?;
            (args.output, client.get("/v1/adaptive").await?)
        }
        AdaptiveCommand::Pause(args) => {
            let client = args.connection.client()?;
            let call = Call::new(Method::POST, "/v1/adaptive:pause").json(&PauseRequest {
                backend: args.backend,
                factor: args.factor,
            })?;
            (args.output, client.send(call).await?.json()?)
        }
        AdaptiveCommand::Resume(args) => {
            let client = args.connection.client()?;
            let call = Call::new(Method::POST, "/v1/adaptive:resume").json(&ResumeRequest {
                backend: args.backend,
            })?;
            (args.output, client.send(call).await?.json()?)
        }
    };
    output.show(&view, render)?;
    Ok(Exit::Ok)
}

fn render(view: &AdaptiveView, style: Style) -> String {
    let mut text = String::new();
    for backend in &view.backends {
        text += &render_backend(backend, style);
        text.push('\n');
    }
    if view.backends.is_empty() {
        text.push_str("no backend's health is followed: see `[backends.NAME.adaptive]`\n");
    }
    let percent = |share: Option<f64>| {
        share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0))
    };
    text += &format!(
        "bursts: {}, CPU {}, pressure {}\n",
        if view.window.enabled {
            format!("{:.0} % of what is configured", view.window.scale * 100.0)
        } else {
            "as configured".to_owned()
        },
        percent(view.window.cpu),
        percent(view.window.pressure)
    );
    text
}

fn render_backend(backend: &BackendView, style: Style) -> String {
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |r| format!("{r:.0}/s"));
    let mut facts = Facts::default();
    let tint = if backend.overall < 1.0 {
        Tint::Yellow
    } else {
        Tint::Green
    };
    facts.add_tinted("factor", format!("{:.3}", backend.factor), tint);
    facts.add(
        "admits",
        format!("{:.1} % of what is asked for", backend.overall * 100.0),
    );
    facts.add("why", clean(&backend.reason));
    facts.add("mode", &backend.mode);
    facts.add("budget", rate(backend.budget));
    facts.add("capacity", rate(backend.capacity));
    facts.add(
        "demand",
        format!(
            "{:.0}/s, {:.0}/s admitted",
            backend.demand, backend.admitted
        ),
    );
    facts.add("latency", format!("{:.0} ms", backend.latency_ms));
    let age = backend
        .signal_age_s
        .map_or_else(String::new, |age| format!(", {} old", show_seconds(age)));
    let fresh = if backend.signal == "stale" {
        Tint::Red
    } else {
        Tint::Plain
    };
    facts.add_tinted("signal", format!("{}{age}", backend.signal), fresh);
    if backend.apart {
        let text = "out of reach: this host goes by what it sees itself";
        facts.add_tinted("fleet", text, Tint::Yellow);
    } else if backend.hosts > 1 {
        facts.add(
            "fleet",
            format!("{} hosts follow it together", backend.hosts),
        );
    }
    if let Some(problem) = &backend.poll_problem {
        facts.add_tinted("poll", clean(problem), Tint::Red);
    }
    if backend.paused {
        facts.add_tinted("paused", "by hand", Tint::Yellow);
    }
    let mut table = Table::new(&[
        "SEGMENT",
        ">WEIGHT",
        ">REQUESTS",
        ">PACKETS",
        ">LEVEL",
        ">DEMAND",
    ]);
    for segment in &backend.segments {
        table.row(vec![
            Cell::from(segment.segment.as_str()),
            format!("{:.0}", segment.weight).into(),
            format!("{:.1} %", segment.requests * 100.0).into(),
            format!("{:.1} %", segment.packets * 100.0).into(),
            rate(segment.level).into(),
            format!("{:.0}/s", segment.demand).into(),
        ]);
    }
    format!(
        "backend {}\n{}{}",
        style.paint(Tint::Bold, &clean(&backend.backend)),
        facts.render(style),
        table.render(style, "no segment uses it")
    )
}

/// One row of a simulation.
#[derive(Clone, Debug, Serialize)]
struct Row {
    at_s: f64,
    factor: f64,
    overall: f64,
    mode: &'static str,
    budget: Option<f64>,
    capacity: Option<f64>,
    reason: String,
}

fn simulate(args: &SimulateArgs) -> Outcome {
    let adaptive = Adaptive {
        law: args.law,
        high_ms: args.high_ms,
        low_ms: args.low_ms,
        ..Adaptive::default()
    };
    let settings = adaptive.controls();
    settings
        .validate()
        .map_err(|error| Failure::new(error.to_string()).with_exit(Exit::Usage))?;
    let name = args.file.display();
    let unreadable = |error: std::io::Error| Failure::new(format!("cannot read `{name}`: {error}"));
    let bytes = std::fs::metadata(&args.file).map_err(unreadable)?.len();
    if bytes > MAX_TRACE_BYTES {
        return Err(Failure::new(format!(
            "`{name}` has {bytes} bytes; a trace has at most {MAX_TRACE_BYTES}"
        ))
        .with_exit(Exit::Usage));
    }
    let text = std::fs::read_to_string(&args.file).map_err(unreadable)?;
    let lines = parse(&text)
        .map_err(|error| Failure::new(format!("`{name}`, {error}")).with_exit(Exit::Usage))?;
    let rows: Vec<Row> = replay(&settings, &lines)
        .into_iter()
        .map(|(at_s, decision)| Row {
            at_s,
            factor: decision.in_force.factor,
            overall: decision.overall,
            mode: decision.mode.name(),
            budget: decision.in_force.budget,
            capacity: decision.capacity,
            reason: decision.reason,
        })
        .collect();
    args.output.show(&rows, |rows, style| table(rows, style))?;
    Ok(Exit::Ok)
}

fn parse(text: &str) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let parsed: Line =
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))?;
        if lines.last().is_some_and(|last| parsed.at_s < last.at_s) {
            return Err(format!(
                "line {}: `at_s` is {}; it must not go back",
                number + 1,
                parsed.at_s
            ));
        }
        lines.push(parsed);
    }
    Ok(lines)
}

fn table(rows: &[Row], style: Style) -> String {
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |r| format!("{r:.0}"));
    let mut table = Table::new(&[
        ">TIME",
        ">FACTOR",
        ">ADMITS",
        "MODE",
        ">BUDGET",
        ">CAPACITY",
        "WHY",
    ]);
    for row in rows {
        table.row(vec![
            format!("{:.1}", row.at_s).into(),
            format!("{:.3}", row.factor).into(),
            format!("{:.1} %", row.overall * 100.0).into(),
            row.mode.into(),
            rate(row.budget).into(),
            rate(row.capacity).into(),
            row.reason.as_str().into(),
        ]);
    }
    table.render(style, "the trace has no line that counts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_line_by_line() {
        let lines = parse("{\"at_s\": 1, \"rt_s\": 0.8}\n\n{\"at_s\": 2}\n").unwrap();
        assert_eq!((lines.len(), lines[0].rt_s), (2, Some(0.8)));
        assert!(
            parse("{\"at_s\": 1}\n{\"at_s\": 0}")
                .unwrap_err()
                .contains("line 2")
        );
        assert!(
            parse("{\"at_s\": 1, \"x\": 2}")
                .unwrap_err()
                .contains("line 1")
        );
    }

    #[test]
    fn shows_why_limits_are_what_they_are() {
        let view = AdaptiveView {
            backends: vec![BackendView {
                backend: "api".to_owned(),
                factor: 0.49,
                overall: 0.2,
                mode: "track".to_owned(),
                budget: Some(950.0),
                reason: "overload: it completes 990/s".to_owned(),
                signal: "fresh".to_owned(),
                signal_age_s: Some(0.4),
                ..BackendView::default()
            }],
            ..AdaptiveView::default()
        };
        let text = render(&view, Style::PLAIN);
        for part in [
            "0.490",
            "20.0 %",
            "950/s",
            "overload",
            "fresh",
            "no segment uses it",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(render(&AdaptiveView::default(), Style::PLAIN).contains("no backend"));
    }
}
