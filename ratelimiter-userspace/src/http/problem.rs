//! Every error as `application/problem+json` (RFC 9457).

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::{AdminError, FieldError};

/// What every problem type starts with; the rest is the kind.
pub const TYPE_PREFIX: &str = "urn:ratelimiter:problem:";

/// An error answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind of problem: `urn:ratelimiter:problem:<kind>`. Stable.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in a few words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What is wrong here: thing, value and bound.
    pub detail: String,
    /// Every refused field, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl Problem {
    /// A problem of `kind`.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{kind}"),
            title: kind.replace('-', " "),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
        }
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// 400.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// 400 for the part of the path or query at `name`.
    pub fn bad_parameter(name: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            errors: vec![FieldError::new(name, detail.clone())],
            ..Self::new(StatusCode::BAD_REQUEST, "bad-parameter", detail)
        }
    }

    /// 401.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// 403.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 404 for a path.
    #[must_use]
    pub fn no_route(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not-found",
            format!("there is nothing at `{}`; see /docs", shortened(path)),
        )
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed(method: &Method, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            format!(
                "`{}` is not for {}; `Allow` says what is",
                shortened(path),
                shortened(method.as_str())
            ),
        )
    }

    /// 406.
    #[must_use]
    pub fn not_acceptable(gives: &[&str]) -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "not-acceptable",
            format!(
                "the answer is `{}`; `Accept` takes none of these",
                gives.join("`, `")
            ),
        )
    }

    /// 408.
    #[must_use]
    pub fn timeout(limit_s: u64) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            format!("the body did not arrive within {limit_s} s"),
        )
    }

    /// 413.
    #[must_use]
    pub fn body_too_large(bytes: Option<u64>, limit: usize) -> Self {
        let found = bytes.map_or_else(|| "more".to_owned(), |bytes| format!("{bytes} bytes"));
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            format!("the body has {found}; it must have at most {limit} bytes"),
        )
    }

    /// 415.
    #[must_use]
    pub fn unsupported_media_type(headers: &HeaderMap) -> Self {
        let found = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map_or_else(
                || "missing".to_owned(),
                |kind| format!("`{}`", shortened(kind)),
            );
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            format!("`Content-Type` is {found}; it must be `application/json`"),
        )
    }

    /// 500. What went wrong inside is logged, not told.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        tracing::error!(%what, "an admin request failed inside");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the agent failed to answer; its log says why",
        )
    }
}

/// Text of a caller as it may stand in an answer: short, and no control characters.
pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(100).collect::<String>();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short.escape_debug().to_string()
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        let status = match &error {
            AdminError::NotFound { .. } => StatusCode::NOT_FOUND,
            AdminError::Invalid(_) | AdminError::Capacity(_) => StatusCode::UNPROCESSABLE_ENTITY,
            AdminError::Precondition { .. } => StatusCode::PRECONDITION_FAILED,
            AdminError::Pending { .. } | AdminError::InFile { .. } | AdminError::Conflict(_) => {
                StatusCode::CONFLICT
            }
            AdminError::Permission(_) | AdminError::Unsupported(_) | AdminError::Unavailable(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        let problem = Self::new(status, error.kind(), error.to_string());
        match error {
            AdminError::Invalid(errors) => Self { errors, ..problem },
            _ => problem,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        // Strings and a number: there always is a JSON form.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // What is left of the body is not worth reading.
            StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
