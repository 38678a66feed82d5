//! `ratelimiter check`: one decision of the check API.

use std::net::IpAddr;

use clap::Args;

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::client::{Call, CheckConnectionArgs};
use super::exit::{Exit, Failure, Outcome};
use super::output::{OutputArgs, Style, Tint, clean, show_seconds};

/// Flags of `check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Exit code 0 if allowed, 3 if denied.

Examples:
  ratelimiter check customer-42
  ratelimiter check customer-42 --cost 5 --limit api
  ratelimiter check customer-42 --peek       ask without charging")]
pub struct CheckArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    client: String,
    /// Units the request costs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cost: u64,
    /// Only this one of the client's limits
    #[arg(long, value_name = "NAME")]
    limit: Option<String>,
    /// Address the request came from
    #[arg(long, value_name = "IP")]
    source_ip: Option<IpAddr>,
    /// Do not charge
    #[arg(long)]
    peek: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: CheckConnectionArgs,
}

/// Body of `POST /v1/check`.
#[derive(Clone, Debug, Serialize)]
struct CheckRequest {
    client_id: String,
    cost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_ip: Option<IpAddr>,
}

/// Its answer; times in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct CheckAnswer {
    allowed: bool,
    limit: serde_json::Value,
    remaining: f64,
    retry_after: Option<f64>,
    reset_after: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default)]
    degraded: bool,
}

/// Runs `check`.
pub async fn run(args: CheckArgs) -> Outcome {
    let client = args.connection.client()?;
    let mut call = Call::new(Method::POST, "/v1/check").json(&CheckRequest {
        client_id: args.client.clone(),
        cost: args.cost,
        limit: args.limit.clone(),
        source_ip: args.source_ip,
    })?;
    if args.peek {
        call = call.query("peek", "true");
    }
    let answer = client.send_any(call).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Err(
            Failure::new(format!("{} serves no check API", client.target())).with_help(
                "this may be the admin API; the check API is at --url http://127.0.0.1:9741",
            ),
        );
    }
    let answer: CheckAnswer = client.accept(answer)?.json()?;
    args.output
        .show(&answer, |answer, style| render(&args.client, answer, style))?;
    Ok(if answer.allowed {
        Exit::Ok
    } else {
        Exit::Denied
    })
}

fn render(id: &str, answer: &CheckAnswer, style: Style) -> String {
    let id = clean(id);
    let degraded = if answer.reason.as_deref() == Some("reduced_capacity") {
        "\n  degraded: limits are reduced because the backend is short of capacity"
    } else if answer.degraded {
        "\n  degraded: the store does not answer, this host decides alone"
    } else {
        ""
    };
    let reason = answer.reason.as_deref().unwrap_or("over_limit");
    if answer.allowed && reason == "unlimited" {
        let allowed = style.paint(Tint::Green, "allowed");
        format!("{id}: {allowed}, not limited{degraded}\n")
    } else if answer.allowed {
        format!(
            "{id}: {}, {} left{degraded}\n",
            style.paint(Tint::Green, "allowed"),
            answer.remaining
        )
    } else {
        let denied = style.paint(Tint::Red, "denied");
        match answer.retry_after {
            Some(wait) => {
                let wait = show_seconds(wait);
                format!("{id}: {denied}, next allowed in {wait}{degraded}\n")
            }
            None => format!(
                "{id}: {denied}, and never allowed ({}){degraded}\n",
                clean(reason)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_left_or_when_to_come_back() {
        let allowed = CheckAnswer {
            allowed: true,
            limit: serde_json::Value::Null,
            remaining: 9.0,
            retry_after: Some(0.0),
            reset_after: 6.0,
            reason: None,
            degraded: false,
        };
        assert_eq!(
            render("alice", &allowed, Style::PLAIN),
            "alice: allowed, 9 left\n"
        );
        let denied = CheckAnswer {
            allowed: false,
            retry_after: Some(12.0),
            degraded: true,
            ..allowed.clone()
        };
        assert_eq!(
            render("alice", &denied, Style::PLAIN),
            "alice: denied, next allowed in 12 s\n  degraded: the store does not answer, this host decides alone\n"
        );
        let never = CheckAnswer {
            allowed: false,
            retry_after: None,
            reason: Some("exceeds_burst".to_owned()),
            ..allowed
        };
        assert_eq!(
            render("alice", &never, Style::PLAIN),
            "alice: denied, and never allowed (exceeds_burst)\n"
        );
    }
}
