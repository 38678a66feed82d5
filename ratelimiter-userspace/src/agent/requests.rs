//! What the check API has to say about a client: every request quota's state; and forgiving.
//!
//! Any id is a client here: one that nobody configured has the default segment's limits.

use super::explain::segment_defined_in;
use super::state::View;
use crate::admin::views::{Explanation, ResetAnswer, Rule, RuleKind, UnitState};
use crate::admin::{AdminError, Result};
use crate::check::Checks;
use crate::clock;
use crate::limiter::{Answer, Reason, Request};
use crate::policy::model::{Mode, Unit};
use crate::policy::units::Window;

/// Adds every request quota to what is known about a client's packets. A client that nobody
/// configured has requests alone.
pub(super) fn explain(
    checks: &Checks,
    view: &View,
    id: &str,
    packets: Result<Explanation>,
) -> Result<Explanation> {
    let (mut explanation, alone) = match packets {
        Ok(explanation) => {
            let client = view.document.clients.get(id);
            let alone = client.is_none_or(|client| client.sources.is_empty());
            (explanation, alone)
        }
        Err(AdminError::NotFound { .. }) => (stranger(view, id), true),
        Err(error) => return Err(error),
    };
    let Some(policy) = checks.limiter().policy_of(id) else {
        explanation
            .path
            .push("requests: nobody configured the client, and unknown clients are refused".into());
        if alone {
            judge(&mut explanation, Reason::UnknownClient, f64::INFINITY);
        }
        return Ok(explanation);
    };
    let now_unix_ms = clock::unix_ms();
    let mut worst = (Reason::Conforming, 0.0);
    for quota in &policy.spec.quotas {
        let answer = checks.limiter().check_request(&Request {
            limit: Some(&quota.name),
            charge: false,
            ..Request::new(id.as_bytes())
        });
        let Ok(answer) = answer else {
            continue;
        };
        let retry_after_s = seconds(answer.retry_after_ns);
        if !answer.allowed && retry_after_s >= worst.1 {
            worst = (answer.reason, retry_after_s);
        }
        explanation.path.push(format!(
            "requests, `{}`: {} of {} left",
            quota.name, answer.remaining, quota.rate_limit
        ));
        explanation.units.push(UnitState {
            unit: Unit::Requests,
            limit: quota.name.to_string(),
            rate_limit: quota.rate_limit,
            time_window: Window::from_ns(quota.window_ns).unwrap_or(Window::SECOND),
            burst: quota.burst,
            mode: if quota.shadow {
                Mode::Shadow
            } else {
                Mode::Enforce
            },
            tokens: left(&answer),
            debt: quota.burst as f64 - left(&answer),
            retry_after_s,
            next_allowed_unix_ms: now_unix_ms.saturating_add((retry_after_s * 1e3).ceil() as u64),
            reset_after_s: seconds(answer.reset_after_ns),
        });
    }
    if policy.spec.quotas.is_empty() {
        explanation.path.push("requests: not limited".to_owned());
    }
    if alone {
        judge(&mut explanation, worst.0, worst.1);
    }
    Ok(explanation)
}

/// What a peek says is left counts the request that asked.
fn left(answer: &Answer) -> f64 {
    (answer.remaining + u64::from(answer.reason == Reason::Conforming)) as f64
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn stranger(view: &View, id: &str) -> Explanation {
    let segment = crate::policy::model::DEFAULT_SEGMENT;
    Explanation {
        subject: id.to_owned(),
        client: Some(id.to_owned()),
        segment: Some(segment.to_owned()),
        rule: Rule {
            kind: RuleKind::Default,
            name: segment.to_owned(),
            defined_in: segment_defined_in(view, segment),
            ..Rule::default()
        },
        path: vec!["nobody configured the client: no packet is limited under its name".to_owned()],
        agent_mode: Some(view.mode),
        ..Explanation::default()
    }
}

/// The verdict on a client of which only requests are limited.
fn judge(explanation: &mut Explanation, reason: Reason, retry_after_s: f64) {
    let passes = reason.allows();
    if passes { "pass" } else { "drop" }.clone_into(&mut explanation.verdict);
    reason.as_str().clone_into(&mut explanation.reason);
    let subject = &explanation.subject;
    explanation.summary = if passes {
        format!("a request of `{subject}` passes now")
    } else if retry_after_s.is_finite() {
        format!(
            "a request of `{subject}` is refused ({}); the next one passes in {retry_after_s:.3} s",
            reason.as_str()
        )
    } else {
        format!("a request of `{subject}` is refused ({})", reason.as_str())
    };
}

/// Forgives a client's requests beside its packets.
pub(super) fn reset(
    checks: &Checks,
    id: &str,
    packets: Result<ResetAnswer>,
) -> Result<ResetAnswer> {
    let mut answer = match packets {
        Ok(answer) => answer,
        Err(AdminError::NotFound { .. }) => ResetAnswer {
            subject: id.to_owned(),
            ..ResetAnswer::default()
        },
        Err(error) => return Err(error),
    };
    answer.buckets += u64::from(checks.limiter().reset(id));
    answer.summary = match answer.buckets {
        0 => format!("client `{id}` owed nothing"),
        1 => format!("client `{id}`: 1 bucket emptied"),
        buckets => format!("client `{id}`: {buckets} buckets emptied"),
    };
    Ok(answer)
}

/// Adds how many blocks of escalation a reset has lifted.
pub(super) fn say_lifted(answer: &mut ResetAnswer, lifted: u64) {
    if lifted > 0 {
        answer.summary.push_str("; blocks lifted: ");
        answer.summary.push_str(&lifted.to_string());
    }
}
