//! What is said: the JSON of an answer, `RateLimit` headers, problems.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use serde::Serialize;
use utoipa::ToSchema;

use super::Answer as HttpAnswer;
use super::body;
use crate::admin::FieldError;
use crate::check::Checks;
use crate::http::problem::Problem;
use crate::limiter::{Answer, PolicySpec, Reason};

const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;
/// Policies whose header is kept per thread.
const KEPT: usize = 1_024;
/// What the IANA registry of problem types calls a quota that is used up.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
/// What it calls a service that does less than it promised.
const REDUCED_CAPACITY: &str =
    "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";

static RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static JSON: HeaderValue = HeaderValue::from_static("application/json");
static PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
static NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// The status of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// 403, for proxies that know no other.
    Forbidden,
    /// 429.
    TooMany,
}

/// The answer to a check; times in seconds, rounded up to the millisecond.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CheckAnswer)]
pub(super) struct Described {
    /// Whether the request may go on.
    pub(super) allowed: bool,
    /// Units per window of the tightest quota; 0 where there is none.
    pub(super) limit: u64,
    /// Units that may still be spent now.
    pub(super) remaining: u64,
    /// When the same check passes if nothing else arrives; 0 when allowed, null for never.
    pub(super) retry_after: Option<f64>,
    /// When the whole quota is available again.
    pub(super) reset_after: f64,
    /// Why: `conforming`, `unlimited`, `shadow`, `over_limit`, `exceeds_burst`, `unknown_client`,
    /// `backend_open`, `reduced_capacity` (over a limit that is reduced for the sake of the
    /// backend), `contended`; in a batch also `unknown_limit`.
    pub(super) reason: String,
    /// Whether this host decides alone although it is one of many, or the client was refused by a
    /// limit that is reduced for now.
    pub(super) degraded: bool,
    /// Whether `request_timestamp` was further from this host's clock than is believed.
    pub(super) clamped: bool,
}

/// A whole answer to one check.
pub(super) fn one(
    checks: &Checks,
    answer: &Answer,
    asked: &body::Check<'_>,
    deny: Option<Denial>,
) -> Result<HttpAnswer, Problem> {
    if answer.reason == Reason::UnknownLimit {
        let name = asked.limit.as_deref().unwrap_or_default();
        let text = format!(
            "client has no request limit named `{}`",
            name.escape_debug()
        );
        return Err(Problem {
            errors: vec![FieldError::new("/limit", text.as_str())],
            ..Problem::new(StatusCode::NOT_FOUND, "not-found", text)
        });
    }
    if let Some(deny) = deny.filter(|_| !answer.allowed) {
        return Ok(denied(checks, answer, deny));
    }
    let mut json = Vec::with_capacity(192);
    write_answer(&mut json, answer, checks.is_degraded());
    let mut response = Response::new(Full::new(Bytes::from(json)));
    let headers = response.headers_mut();
    headers.reserve(6);
    headers.insert(header::CONTENT_TYPE, JSON.clone());
    headers.insert(header::CACHE_CONTROL, NO_STORE.clone());
    rate_limit_headers(headers, checks, answer);
    Ok(response)
}

/// The answers to a batch.
pub(super) fn many(checks: &Checks, answers: &[Answer]) -> HttpAnswer {
    let degraded = checks.is_degraded();
    let mut json = Vec::with_capacity(16 + answers.len() * 160);
    json.extend_from_slice(b"{\"answers\":[");
    for (number, answer) in answers.iter().enumerate() {
        if number > 0 {
            json.push(b',');
        }
        write_answer(&mut json, answer, degraded);
    }
    json.extend_from_slice(b"]}");
    self::json(StatusCode::OK, Bytes::from(json))
}

/// A refusal as a proxy wants it.
pub(super) fn denied(checks: &Checks, answer: &Answer, deny: Denial) -> HttpAnswer {
    let (status, kind, title) = match (answer.reason, deny) {
        (Reason::BackendOpen, _) => (
            StatusCode::SERVICE_UNAVAILABLE,
            REDUCED_CAPACITY,
            "Temporary Reduced Capacity",
        ),
        (Reason::ReducedCapacity, deny) => (
            match deny {
                Denial::Forbidden => StatusCode::FORBIDDEN,
                Denial::TooMany => StatusCode::TOO_MANY_REQUESTS,
            },
            REDUCED_CAPACITY,
            "Temporary Reduced Capacity",
        ),
        (_, Denial::Forbidden) => (StatusCode::FORBIDDEN, QUOTA_EXCEEDED, "Quota Exceeded"),
        (_, Denial::TooMany) => (
            StatusCode::TOO_MANY_REQUESTS,
            QUOTA_EXCEEDED,
            "Quota Exceeded",
        ),
    };
    let wait = seconds_up(answer.retry_after_ns);
    let detail = match (answer.reason, wait) {
        (Reason::UnknownClient, _) => "the client is not known here".to_owned(),
        (Reason::BackendOpen, Some(wait)) => {
            format!("the backend is being spared; try again in {wait} s")
        }
        (Reason::ReducedCapacity, Some(wait)) => format!(
            "the quota is reduced for now because the backend is short of capacity; try again in \
             {wait} s"
        ),
        (Reason::StoreAway, _) => {
            "the store that the fleet shares is away, and this limit lets nothing pass without it"
                .to_owned()
        }
        (Reason::ExceedsBurst, _) => "the cost is more than the quota ever allows".to_owned(),
        (_, Some(wait)) => format!("the quota is used up; try again in {wait} s"),
        (_, None) => "the request is refused".to_owned(),
    };
    let problem = Problem {
        kind: kind.to_owned(),
        title: title.to_owned(),
        ..Problem::new(status, "", detail)
    };
    let mut response = of_problem(&problem, quota_name(checks, answer).as_deref());
    let headers = response.headers_mut();
    headers.remove(header::RETRY_AFTER);
    rate_limit_headers(headers, checks, answer);
    response
}

/// A problem as an answer, with the policy it violates.
pub(super) fn of_problem(problem: &Problem, violated: Option<&str>) -> HttpAnswer {
    #[derive(Serialize)]
    struct Violation<'a> {
        #[serde(flatten)]
        problem: &'a Problem,
        #[serde(rename = "violated-policies")]
        #[serde(skip_serializing_if = "Option::is_none")]
        violated: Option<[&'a str; 1]>,
    }
    let violation = Violation {
        problem,
        violated: violated.map(|name| [name]),
    };
    // Strings and a number: there always is a JSON form.
    let body = serde_json::to_vec(&violation).unwrap_or_default();
    let status = problem.status();
    let mut response = json(status, Bytes::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, PROBLEM.clone());
    match status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // What is left of the body is not worth reading.
        StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// Any JSON.
pub(super) fn json(status: StatusCode, body: Bytes) -> HttpAnswer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON.clone());
    headers.insert(header::CACHE_CONTROL, NO_STORE.clone());
    response
}

/// A status and nothing else.
pub(super) fn empty(status: StatusCode) -> HttpAnswer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// Adds `RateLimit`, `RateLimit-Policy` and, to a refusal, `Retry-After`.
pub(super) fn rate_limit_headers(headers: &mut HeaderMap, checks: &Checks, answer: &Answer) {
    if !answer.allowed
        && let Some(wait) = seconds_up(answer.retry_after_ns)
    {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait));
    }
    if answer.policy == 0 {
        return;
    }
    let Some(policy) = checks.limiter().policy(answer.policy) else {
        return;
    };
    with_policy_header(answer.policy, &policy.spec, |value| {
        headers.insert(RATE_LIMIT_POLICY.clone(), value.clone());
    });
    let Some(quota) = policy.spec.quotas.get(usize::from(answer.quota)) else {
        return;
    };
    // A refusal's `t` is when something is available again, so that `Retry-After` is never earlier.
    let until_ns = if answer.allowed {
        answer.reset_after_ns
    } else {
        answer.retry_after_ns
    };
    let mut text = Vec::with_capacity(48);
    text.push(b'"');
    text.extend_from_slice(quota.name.as_bytes());
    text.extend_from_slice(b"\";r=");
    write_u64(&mut text, answer.remaining);
    if let Some(until) = seconds_up(until_ns) {
        text.extend_from_slice(b";t=");
        write_u64(&mut text, until);
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
        headers.insert(RATE_LIMIT.clone(), value);
    }
}

thread_local! {
    /// `RateLimit-Policy` of the policies met last, each valid while its spec is the one in force.
    static HEADERS: RefCell<HashMap<u32, (Arc<PolicySpec>, HeaderValue)>> =
        RefCell::new(HashMap::new());
}

fn with_policy_header(number: u32, spec: &Arc<PolicySpec>, use_it: impl FnOnce(&HeaderValue)) {
    HEADERS.with_borrow_mut(|kept| {
        if let Some((of, value)) = kept.get(&number)
            && Arc::ptr_eq(of, spec)
        {
            return use_it(value);
        }
        if kept.len() >= KEPT {
            kept.clear();
        }
        if let Some(value) = policy_header(spec) {
            use_it(&value);
            kept.insert(number, (Arc::clone(spec), value));
        }
    });
}

/// `"default";q=100;w=60`, one item per quota.
fn policy_header(spec: &PolicySpec) -> Option<HeaderValue> {
    if spec.quotas.is_empty() {
        return None;
    }
    let mut text = Vec::new();
    for quota in &spec.quotas {
        if !text.is_empty() {
            text.extend_from_slice(b", ");
        }
        text.push(b'"');
        text.extend_from_slice(quota.name.as_bytes());
        text.extend_from_slice(b"\";q=");
        write_u64(&mut text, quota.rate_limit);
        text.extend_from_slice(b";w=");
        write_u64(&mut text, quota.window_ns.div_ceil(NS_PER_S));
    }
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

fn quota_name(checks: &Checks, answer: &Answer) -> Option<Arc<str>> {
    let policy = checks.limiter().policy(answer.policy)?;
    let quota = policy.spec.quotas.get(usize::from(answer.quota))?;
    Some(Arc::clone(&quota.name))
}

/// Whole seconds, rounded up; `None` for never.
fn seconds_up(ns: u64) -> Option<u64> {
    (ns != u64::MAX).then(|| ns.div_ceil(NS_PER_S))
}

/// Writes what [`Described`] describes.
fn write_answer(json: &mut Vec<u8>, answer: &Answer, degraded: bool) {
    json.extend_from_slice(b"{\"allowed\":");
    write_bool(json, answer.allowed);
    json.extend_from_slice(b",\"limit\":");
    write_u64(json, answer.limit);
    json.extend_from_slice(b",\"remaining\":");
    write_u64(json, answer.remaining);
    json.extend_from_slice(b",\"retry_after\":");
    write_seconds(json, answer.retry_after_ns);
    json.extend_from_slice(b",\"reset_after\":");
    write_seconds(json, answer.reset_after_ns);
    json.extend_from_slice(b",\"reason\":\"");
    json.extend_from_slice(answer.reason.as_str().as_bytes());
    json.extend_from_slice(b"\",\"degraded\":");
    write_bool(json, degraded || answer.reason == Reason::ReducedCapacity);
    json.extend_from_slice(b",\"clamped\":");
    write_bool(json, answer.clamped);
    json.push(b'}');
}

fn write_bool(out: &mut Vec<u8>, value: bool) {
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

/// Writes seconds with three decimals, rounded up; `null` for never.
fn write_seconds(out: &mut Vec<u8>, ns: u64) {
    if ns == u64::MAX {
        out.extend_from_slice(b"null");
        return;
    }
    let ms = ns.div_ceil(NS_PER_MS);
    write_u64(out, ms / 1_000);
    let rest = ms % 1_000;
    if rest > 0 {
        let digit = |n: u64| b'0' + (n % 10) as u8;
        out.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10), digit(rest)]);
    }
}

fn write_u64(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (value % 10) as u8;
        }
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_written_as_everybody_writes_them() {
        for value in [0, 1, 9, 10, 99, 1_000, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(written(|out| write_u64(out, value)), value.to_string());
        }
        for (ns, text) in [
            (0, "0"),
            (1, "0.001"),
            (1_000_000, "0.001"),
            (999_000_001, "1"),
            (59_321_000_000, "59.321"),
            (60_000_000_001, "60.001"),
            (10_010_000_000, "10.010"),
            (u64::MAX, "null"),
        ] {
            assert_eq!(written(|out| write_seconds(out, ns)), text);
        }
    }

    #[test]
    fn an_answer_is_the_json_that_is_described() {
        let answer = Answer {
            allowed: false,
            reason: Reason::OverLimit,
            clamped: true,
            quota: 0,
            policy: 1,
            limit: 10,
            remaining: 0,
            retry_after_ns: 1_500_000_000,
            reset_after_ns: 60_000_000_000,
        };
        let text = written(|out| write_answer(out, &answer, true));
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        let described = serde_json::to_value(Described {
            allowed: false,
            limit: 10,
            remaining: 0,
            retry_after: Some(1.5),
            reset_after: 60.0,
            reason: "over_limit".to_owned(),
            degraded: true,
            clamped: true,
        });
        let described = described.unwrap();
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(keys(&found), keys(&described));
        assert_eq!(found["retry_after"], described["retry_after"]);
        assert_eq!(found["reset_after"].as_f64(), Some(60.0));
    }
}
