//! What may be asked: bodies and queries, bounded and without unknown fields.

use std::borrow::Cow;
use std::net::IpAddr;

use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::answer::Denial;
use crate::admin::FieldError;
use crate::http::call::{body_problem, pointer};
use crate::http::problem::{Problem, shortened};
use crate::limiter::{Request, Timestamp, check_client_id};
use crate::policy::model::MAX_NAME_BYTES;

/// Body of `POST /v1/check`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CheckRequest)]
pub(super) struct Check<'a> {
    /// Who asks, 1 to 256 bytes.
    #[serde(borrow)]
    #[schema(value_type = String, min_length = 1, max_length = 256)]
    pub(super) client_id: Cow<'a, str>,
    /// When, in seconds since the Unix epoch; this host's clock bounds it (`check.max_skew_ms`).
    #[serde(default)]
    #[schema(value_type = Option<f64>, minimum = 0)]
    pub(super) request_timestamp: Option<Seconds>,
    /// Units it costs; 0 asks without spending. 1 if absent.
    #[serde(default = "one", deserialize_with = "crate::policy::units::integral")]
    #[schema(maximum = 4_294_967_296_u64)]
    pub(super) cost: u64,
    /// Only the client's quota of this name is asked and charged; all of them if absent.
    #[serde(default, borrow)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 63)]
    pub(super) limit: Option<Cow<'a, str>>,
    /// Address the request came from; read where the client's segment escalates.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(super) source_ip: Option<IpAddr>,
}

/// Seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Seconds {
    /// Whole: exact.
    Whole(u64),
    /// Decimal, with its nanoseconds as near as a double has them.
    Decimal(f64),
}

const fn one() -> u64 {
    1
}

/// Largest cost.
const MAX_COST: u64 = 1 << 32;

impl Check<'_> {
    /// The question for the limiter; a problem says which field is out of its bounds.
    pub(super) fn request(&self, peek: bool) -> Result<Request<'_>, Problem> {
        check_client_id(self.client_id.as_bytes())
            .map_err(|error| refused("/client_id", &error.to_string()))?;
        if let Some(limit) = &self.limit
            && (limit.is_empty() || limit.len() > MAX_NAME_BYTES)
        {
            return Err(invalid(
                "/limit",
                &format!(
                    "`limit` has {} bytes; it must have 1 to {MAX_NAME_BYTES}",
                    limit.len()
                ),
            ));
        }
        if self.cost > MAX_COST {
            return Err(invalid(
                "/cost",
                &format!("`cost` is {}; it must be at most {MAX_COST}", self.cost),
            ));
        }
        let timestamp = match self.request_timestamp {
            None => None,
            Some(Seconds::Whole(seconds)) => Some(Timestamp::from(seconds)),
            Some(Seconds::Decimal(seconds)) if seconds >= 0.0 => Some(Timestamp::from(seconds)),
            Some(Seconds::Decimal(seconds)) => {
                return Err(invalid(
                    "/request_timestamp",
                    &format!("`request_timestamp` is {seconds}; it must be 0 or more"),
                ));
            }
        };
        Ok(Request {
            client_id: self.client_id.as_bytes(),
            cost: self.cost,
            timestamp,
            limit: self.limit.as_deref(),
            charge: !peek,
        })
    }

    /// Whether it can be asked together with others.
    pub(super) fn is_plain(&self) -> bool {
        self.limit.is_none() && self.request_timestamp.is_none()
    }
}

/// Body of `POST /v1/check:batch`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BatchRequest)]
pub(super) struct Batch<'a> {
    /// 1 to 256 checks, answered in order.
    #[serde(borrow)]
    #[schema(value_type = Vec<Check<'a>>, min_items = 1, max_items = 256)]
    pub(super) checks: Vec<Check<'a>>,
}

/// Body of `POST /v1/outcome`: what became of an allowed request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = OutcomeReport)]
pub(super) struct Outcome<'a> {
    /// Whose request it was, 1 to 256 bytes.
    #[serde(borrow)]
    #[schema(value_type = String, min_length = 1, max_length = 256)]
    pub(super) client_id: Cow<'a, str>,
    /// The backend that answered; that of the client's segment if absent.
    #[serde(default, borrow)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 63)]
    pub(super) backend: Option<Cow<'a, str>>,
    /// How long it took, in milliseconds.
    #[schema(minimum = 0)]
    pub(super) latency_ms: f64,
    /// Its HTTP status, 100 to 599; 500 and above are errors.
    #[serde(deserialize_with = "crate::policy::units::integral")]
    #[schema(minimum = 100, maximum = 599)]
    pub(super) status: u64,
}

impl Outcome<'_> {
    /// Refuses what is out of its bounds.
    pub(super) fn check(&self) -> Result<(), Problem> {
        check_client_id(self.client_id.as_bytes())
            .map_err(|error| refused("/client_id", &error.to_string()))?;
        if let Some(backend) = &self.backend
            && (backend.is_empty() || backend.len() > MAX_NAME_BYTES)
        {
            let text = format!(
                "`backend` has {} bytes; it must have 1 to {MAX_NAME_BYTES}",
                backend.len()
            );
            return Err(invalid("/backend", &text));
        }
        if !(self.latency_ms >= 0.0 && self.latency_ms.is_finite()) {
            let text = format!("`latency_ms` is {}; it must be 0 or more", self.latency_ms);
            return Err(invalid("/latency_ms", &text));
        }
        if !(100..=599).contains(&self.status) {
            let text = format!("`status` is {}; it must be 100 to 599", self.status);
            return Err(invalid("/status", &text));
        }
        Ok(())
    }
}

/// What a query may say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) peek: bool,
    pub(super) deny: Option<Denial>,
}

impl Query {
    /// Reads `peek` and, where it means something, `deny`. Each once at most.
    pub(super) fn parse(query: &str, deny: bool) -> Result<Self, Problem> {
        let mut found = Self::default();
        let mut seen = [false; 2];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = match name {
                "peek" => 0,
                "deny" if deny => 1,
                _ => {
                    let detail = format!("there is no parameter `{}`", shortened(name));
                    return Err(Problem::bad_parameter("query", detail));
                }
            };
            if let Some(seen) = seen.get_mut(number)
                && std::mem::replace(seen, true)
            {
                let detail = format!("`{name}` stands there twice");
                return Err(Problem::bad_parameter(name, detail));
            }
            match (name, value) {
                ("peek", "true") => found.peek = true,
                ("peek", "false") => found.peek = false,
                ("deny", "403") => found.deny = Some(Denial::Forbidden),
                ("deny", "429") => found.deny = Some(Denial::TooMany),
                _ => {
                    let legal = if name == "peek" {
                        "`true` or `false`"
                    } else {
                        "403 or 429"
                    };
                    let detail = format!("`{name}` is `{}`; it must be {legal}", shortened(value));
                    return Err(Problem::bad_parameter(name, detail));
                }
            }
        }
        Ok(found)
    }
}

/// Reads a body; what is wrong is found out in a second reading.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|_| {
        let mut parser = serde_json::Deserializer::from_slice(body);
        match serde_path_to_error::deserialize::<_, T>(&mut parser) {
            Ok(_) => match parser.end() {
                Err(error) => body_problem(String::new(), &error),
                Ok(()) => Problem::bad_request("the body is not what it must be"),
            },
            Err(error) => {
                let pointer = pointer(error.path());
                body_problem(pointer, &error.into_inner())
            }
        }
    })
}

/// 422 for the field at `at`.
pub(super) fn invalid(at: &str, text: &str) -> Problem {
    Problem {
        errors: vec![FieldError::new(at, text)],
        ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", text)
    }
}

/// 400 for the field at `at`: what can be no name of anybody.
pub(super) fn refused(at: &str, text: &str) -> Problem {
    Problem {
        errors: vec![FieldError::new(at, text)],
        ..Problem::new(StatusCode::BAD_REQUEST, "bad-request", text)
    }
}

/// A problem of a part, as one of the whole.
pub(super) fn below(at: &str, mut problem: Problem) -> Problem {
    for error in &mut problem.errors {
        error.pointer.insert_str(0, at);
    }
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_legal() {
        let check: Check<'_> = parse(br#"{"client_id":"a"}"#).unwrap();
        assert!(matches!(check.client_id, Cow::Borrowed("a")));
        assert_eq!((check.cost, check.limit.is_none()), (1, true));
        let text = br#"{"client_id":"a\u0000\n","cost":3.0,"request_timestamp":1000.5,
            "limit":"api","source_ip":"2001:db8::1"}"#;
        let check: Check<'_> = parse(text).unwrap();
        let request = check.request(true).unwrap();
        assert_eq!(request.client_id, b"a\0\n");
        assert_eq!((request.cost, request.charge), (3, false));
        assert_eq!(
            request.timestamp,
            Some(Timestamp::from_ns(1_000_500_000_000))
        );
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        for (body, status, pointer) in [
            (r#"{"client_id":"a","tier":1}"#, 422, "/tier"),
            (r#"{"client_id":7}"#, 422, "/client_id"),
            (r#"{"client_id":"a","cost":-1}"#, 422, "/cost"),
            (r#"{"client_id":"a","cost":1.5}"#, 422, "/cost"),
            (r#"{"client_id":"a","cost":4294967297}"#, 422, "/cost"),
            (
                r#"{"client_id":"a","request_timestamp":-1}"#,
                422,
                "/request_timestamp",
            ),
            (r#"{"client_id":"a","source_ip":"x"}"#, 422, "/source_ip"),
            (r#"{"client_id":"a","limit":""}"#, 422, "/limit"),
            (r#"{"client_id":""}"#, 400, "/client_id"),
            ("{}", 422, ""),
        ] {
            let problem = parse::<Check<'_>>(body.as_bytes())
                .and_then(|check| check.request(false).map(drop))
                .unwrap_err();
            assert_eq!(problem.status, status, "{body}: {problem:?}");
            assert_eq!(problem.errors[0].pointer, pointer, "{body}: {problem:?}");
        }
        for body in ["", "{", r#"{"client_id":"a"} x"#, "\u{feff}{}"] {
            let problem = parse::<Check<'_>>(body.as_bytes()).unwrap_err();
            assert_eq!(problem.status, 400, "{body}");
        }
        let bad_utf8 = parse::<Check<'_>>(b"{\"client_id\":\"\xff\"}").unwrap_err();
        assert_eq!(bad_utf8.status, 400);
    }

    #[test]
    fn queries_are_read_strictly() {
        let ok = Query::parse("peek=true&deny=403", true).unwrap();
        assert_eq!((ok.peek, ok.deny), (true, Some(Denial::Forbidden)));
        assert_eq!(Query::parse("", true).unwrap(), Query::default());
        for bad in [
            "deny=500",
            "peek",
            "peek=1",
            "x=1",
            "peek=true&peek=true",
            "deny=429",
        ] {
            assert_eq!(
                Query::parse(bad, bad == "deny=500").unwrap_err().status,
                400,
                "{bad}"
            );
        }
    }
}
