//! From a request to a call of [`crate::admin::Admin`], and from its result to a response.

pub(super) mod adaptive;
pub(super) mod agent;
pub(super) mod changes;
pub(super) mod dashboard;
pub(super) mod docs;
pub(super) mod events;
pub(super) mod lists;
pub(super) mod policy;
pub(super) mod probe;
pub(super) mod sources;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::call::Call;
use super::json_response;
use super::problem::Problem;
use crate::admin::views::{Changed, Tagged};
use crate::admin::{ChangeOptions, Edit, TRY_BOUNDS};
use crate::policy::units::parse_duration_ns;

type Answer = Result<Response, Problem>;

/// Query of a change.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ChangeQuery {
    dry_run: bool,
    r#try: Option<String>,
    name: Option<String>,
    cidr: Option<String>,
}

/// Which parameters beside `dry_run` and `try` a change takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Also {
    Nothing,
    Name,
    Cidr,
}

impl ChangeQuery {
    fn of(call: &Call, also: Also) -> Result<Self, Problem> {
        let query: Self = call.query()?;
        for (name, given, taken) in [
            ("name", query.name.is_some(), also == Also::Name),
            ("cidr", query.cidr.is_some(), also == Also::Cidr),
        ] {
            if given && !taken {
                return Err(Problem::bad_parameter(
                    name,
                    format!("the query is refused: `{name}` is not a parameter here"),
                ));
            }
        }
        Ok(query)
    }

    fn options(&self, call: &Call) -> Result<ChangeOptions, Problem> {
        let try_for = self.r#try.as_deref().map(try_for).transpose()?;
        Ok(ChangeOptions {
            dry_run: self.dry_run,
            try_for,
            if_match: call.condition()?,
        })
    }
}

fn try_for(text: &str) -> Result<std::time::Duration, Problem> {
    let refused = |detail| Problem::bad_parameter("try", detail);
    let ns = parse_duration_ns(text).map_err(refused)?;
    let duration = std::time::Duration::from_nanos(ns);
    let (shortest, longest) = TRY_BOUNDS;
    if (shortest..=longest).contains(&duration) {
        Ok(duration)
    } else {
        Err(refused(format!(
            "`try` is {} s; it must be between {} s and {} s",
            duration.as_secs_f64(),
            shortest.as_secs(),
            longest.as_secs()
        )))
    }
}

async fn change(call: &Call, edit: Edit, query: &ChangeQuery) -> Answer {
    let options = query.options(call)?;
    let changed = call.admin.change(edit, options, &call.caller).await?;
    let created = changed.changed
        && !changed.dry_run
        && changed.differences_total == 1
        && changed
            .differences
            .first()
            .is_some_and(|difference| difference.before.is_null());
    let status = match &changed {
        Changed {
            pending: Some(_), ..
        } => StatusCode::ACCEPTED,
        _ if created => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    let mut response = json_response(status, &changed)?;
    if let Some(tag) = &changed.tag {
        put_tag(&mut response, tag);
    }
    Ok(response)
}

fn put_tag(response: &mut Response, tag: &str) {
    if let Ok(value) = HeaderValue::try_from(format!("\"{tag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
}

/// An object with its tag; 304 for a caller that has it.
fn tagged<T: serde::Serialize>(call: &Call, found: &Tagged<T>) -> Answer {
    let mut response = if call.has(&found.tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        json_response(StatusCode::OK, &found.value)?
    };
    put_tag(&mut response, &found.tag);
    Ok(response)
}

fn ok<T: serde::Serialize>(value: &T) -> Answer {
    json_response(StatusCode::OK, value)
}
