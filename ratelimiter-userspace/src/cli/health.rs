//! `ratelimiter health push`: one report of a backend's health.

use clap::{Args, Subcommand};
use http::Method;

use super::client::{Call, ConnectionArgs};
use super::exit::{Exit, Outcome};
use super::output::{OutputArgs, Style, Tint, clean};
use crate::admin::views::{HealthAnswer, HealthReport, LatencyMs};

/// Subcommands of `health`.
#[derive(Clone, Debug, Subcommand)]
pub enum HealthCommand {
    /// Report how a backend is
    Push(PushArgs),
}

/// Flags of `health push`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A monitor that runs for long gives each report a higher --seq. Without one the time counts: then a
report is a repetition only within the same millisecond.

Examples:
  ratelimiter health push --mean 120 --errors 0.01
  ratelimiter health push --service api --instance web-1 --seq 17 --mean 640 --p99 2100 --count 900")]
pub struct PushArgs {
    /// The backend
    #[arg(long, value_name = "NAME", default_value = "default")]
    service: String,
    /// Who reports
    #[arg(long, value_name = "NAME", default_value = "cli")]
    instance: String,
    /// Number of the report, above that of the one before. Default: milliseconds since 1970
    #[arg(long, value_name = "N")]
    seq: Option<u64>,
    /// Length of the period in seconds
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    window: f64,
    /// Average response time in milliseconds
    #[arg(long, value_name = "MS")]
    mean: Option<f64>,
    /// Median response time in milliseconds
    #[arg(long, value_name = "MS")]
    p50: Option<f64>,
    /// 99th percentile of response times in milliseconds
    #[arg(long, value_name = "MS")]
    p99: Option<f64>,
    /// Share of failed requests, 0 to 1
    #[arg(long, value_name = "RATIO", default_value_t = 0.0)]
    errors: f64,
    /// Requests served in the period
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Requests in the backend now
    #[arg(long, value_name = "N")]
    in_flight: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs `health`.
pub async fn run(command: HealthCommand) -> Outcome {
    let HealthCommand::Push(args) = command;
    let client = args.connection.client()?;
    let report = HealthReport {
        service: args.service,
        instance: args.instance,
        boot: String::new(),
        seq: args.seq.unwrap_or_else(crate::clock::unix_ms),
        window_s: args.window,
        age_s: 0.0,
        latency_ms: Some(LatencyMs {
            mean: args.mean,
            p50: args.p50,
            p99: args.p99,
        }),
        error_ratio: args.errors,
        count: args.count,
        in_flight: args.in_flight,
    };
    let call = Call::new(Method::POST, "/v1/health").json(&report)?;
    let answer: HealthAnswer = client.send(call).await?.json()?;
    args.output.show(&answer, render)?;
    Ok(Exit::Ok)
}

fn render(answer: &HealthAnswer, style: Style) -> String {
    let service = clean(&answer.service);
    if answer.accepted {
        let word = style.paint(Tint::Green, "taken");
        format!("{service}: {word}, the factor is {:.3}\n", answer.factor)
    } else {
        let why = answer.reason.as_deref().unwrap_or("it does not count");
        let word = style.paint(Tint::Yellow, "not taken");
        format!("{service}: {word}: {}\n", clean(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_whether_a_report_counts() {
        let taken = HealthAnswer {
            service: "api".to_owned(),
            accepted: true,
            reason: None,
            factor: 0.7,
        };
        assert_eq!(
            render(&taken, Style::PLAIN),
            "api: taken, the factor is 0.700\n"
        );
        let again = HealthAnswer {
            accepted: false,
            reason: Some("`seq` is 3; it must be above 3".to_owned()),
            ..taken
        };
        assert_eq!(
            render(&again, Style::PLAIN),
            "api: not taken: `seq` is 3; it must be above 3\n"
        );
    }
}
