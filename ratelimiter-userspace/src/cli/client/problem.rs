//! From an error answer (`application/problem+json`, RFC 9457) to a sentence and an exit code.

use http::StatusCode;
use serde::Deserialize;

use super::{Answer, Target};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::clean;

/// The members people read. Others may come and are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    #[serde(rename = "type")]
    kind: Option<String>,
    title: Option<String>,
    detail: Option<String>,
    errors: Vec<FieldError>,
}

/// One refused field.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FieldError {
    pointer: Option<String>,
    detail: Option<String>,
}

/// The failure an answer with an error status stands for.
pub(super) fn failure(target: &Target, answer: &Answer) -> Failure {
    let exit = match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::Permission,
        StatusCode::BAD_REQUEST
        | StatusCode::UNPROCESSABLE_ENTITY
        | StatusCode::PAYLOAD_TOO_LARGE => Exit::Usage,
        _ => Exit::Failed,
    };
    let Some(problem) = serde_json::from_slice::<Problem>(&answer.body)
        .ok()
        .filter(|problem| problem.title.is_some() || problem.detail.is_some())
    else {
        return Failure::new(format!("{target} answered `{}`", answer.status))
            .with_exit(exit)
            .with_help("the answer is not one of a ratelimiter agent; is this its admin address?");
    };
    // The last part of `type` tells "not now" from "not on this machine".
    let is_unavailable = problem
        .kind
        .as_deref()
        .is_some_and(|kind| kind.ends_with("unavailable"));
    let mut message = problem
        .detail
        .or(problem.title)
        .unwrap_or_else(|| answer.status.to_string());
    for error in &problem.errors {
        let pointer = error.pointer.as_deref().unwrap_or_default();
        if let Some(detail) = &error.detail
            && !message.contains(detail)
        {
            message.push_str(&format!("\n  {pointer} {detail}"));
        }
    }
    let message = message.lines().map(clean).collect::<Vec<_>>().join("\n");
    let failure = Failure::new(message).with_exit(exit);
    match answer.status {
        StatusCode::UNAUTHORIZED => {
            failure.with_help("the agent wants a token: --token-file PATH, or RATELIMITER_TOKEN")
        }
        StatusCode::PRECONDITION_FAILED => {
            failure.with_help("somebody changed it in between; look at it again and repeat")
        }
        _ if is_unavailable => failure
            .with_help("the agent starts, stops, or lacks something: `ratelimiter status` tells"),
        _ => failure,
    }
}
