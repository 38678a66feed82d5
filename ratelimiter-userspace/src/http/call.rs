//! One request as a handler sees it: already admitted, its body read.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Query;
use axum::http::{HeaderMap, Uri, header};
use serde::de::DeserializeOwned;

use super::problem::{Problem, shortened};
use crate::admin::{Admin, Caller, FieldError, IfMatch};
use crate::policy::model::{MAX_CLIENT_ID_BYTES, MAX_NAME_BYTES};

/// One request.
pub(super) struct Call {
    /// Who does it.
    pub(super) admin: Arc<dyn Admin>,
    params: Vec<(String, String)>,
    uri: Uri,
    /// Headers of the request.
    pub(super) headers: HeaderMap,
    body: Bytes,
    /// Who asks.
    pub(super) caller: Caller,
}

impl Call {
    pub(super) fn new(
        admin: Arc<dyn Admin>,
        params: Vec<(String, String)>,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
        caller: Caller,
    ) -> Self {
        Self {
            admin,
            params,
            uri,
            headers,
            body,
            caller,
        }
    }

    /// The decoded path parameter `name`; empty if the route has none.
    pub(super) fn param(&self, name: &str) -> &str {
        self.params
            .iter()
            .find(|(found, _)| found == name)
            .map_or("", |(_, value)| value)
    }

    /// A client id, within its bounds.
    pub(super) fn client_id(&self) -> Result<&str, Problem> {
        client_id(self.param("client_id"))
    }

    /// The name of a segment, a limit or an interface, within its bounds.
    pub(super) fn name(&self, what: &str) -> Result<&str, Problem> {
        name(what, self.param(what))
    }

    /// The query; parameters nobody knows are refused.
    pub(super) fn query<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        Query::try_from_uri(&self.uri)
            .map(|Query(query)| query)
            .map_err(|rejection| {
                let text = rejection.body_text();
                let cause = text
                    .strip_prefix("Failed to deserialize query string: ")
                    .unwrap_or(&text);
                Problem::bad_parameter(
                    "query",
                    format!("the query is refused: {}", shortened(cause)),
                )
            })
    }

    /// The body as `T`: 400 if it is not JSON, 422 with the field if it is something else.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let mut parser = serde_json::Deserializer::from_slice(&self.body);
        let value = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
            let pointer = pointer(error.path());
            let inner = error.into_inner();
            body_problem(pointer, &inner)
        })?;
        parser
            .end()
            .map_err(|error| body_problem(String::new(), &error))?;
        Ok(value)
    }

    /// The condition of a change: `If-Match`, `If-None-Match: *`.
    pub(super) fn condition(&self) -> Result<Option<IfMatch>, Problem> {
        let text = |name: header::HeaderName| {
            self.headers
                .get(&name)
                .map(|value| {
                    value.to_str().map_err(|_| {
                        Problem::bad_parameter(name.as_str(), format!("`{name}` is not ASCII"))
                    })
                })
                .transpose()
        };
        if let Some(none) = text(header::IF_NONE_MATCH)? {
            return if none.trim() == "*" {
                Ok(Some(IfMatch::Absent))
            } else {
                Err(Problem::bad_parameter(
                    "If-None-Match",
                    "`If-None-Match` of a change must be `*`",
                ))
            };
        }
        Ok(text(header::IF_MATCH)?.map(|matching| {
            if matching.trim() == "*" {
                IfMatch::Exists
            } else {
                IfMatch::Tags(tags(matching))
            }
        }))
    }

    /// Whether the caller already has the object with `tag` (`If-None-Match` of a GET).
    pub(super) fn has(&self, tag: &str) -> bool {
        self.headers
            .get(header::IF_NONE_MATCH)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|have| have.trim() == "*" || tags(have).iter().any(|have| have == tag))
    }
}

/// Tags of a list such as `"a", W/"b"`. A weak tag never matches a change, so it is left out.
fn tags(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter_map(|tag| tag.strip_prefix('"')?.strip_suffix('"'))
        .map(str::to_owned)
        .collect()
}

pub(super) fn body_problem(pointer: String, error: &serde_json::Error) -> Problem {
    use axum::http::StatusCode;
    use serde_json::error::Category;
    let text = shortened_message(&error.to_string());
    match error.classify() {
        Category::Data => Problem {
            errors: vec![FieldError::new(pointer, text.clone())],
            ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", text)
        },
        _ => Problem::new(
            StatusCode::BAD_REQUEST,
            "malformed-json",
            format!("the body is not JSON: {text}"),
        ),
    }
}

/// A parser's message without what the caller sent beyond the first few words.
fn shortened_message(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect();
    clean
}

pub(super) fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => format!("/{}", key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { variant } => format!("/{variant}"),
            Segment::Unknown => String::new(),
        })
        .collect()
}

/// A client id, within its bounds.
pub(super) fn client_id(id: &str) -> Result<&str, Problem> {
    if id.is_empty() || id.len() > MAX_CLIENT_ID_BYTES {
        return Err(Problem::bad_parameter(
            "client_id",
            format!(
                "`client_id` has {} bytes; it must have 1 to {MAX_CLIENT_ID_BYTES}",
                id.len()
            ),
        ));
    }
    Ok(id)
}

/// A name of `[a-z0-9_-]` and the like; what exactly is legal is for the policy to say.
pub(super) fn name<'a>(what: &str, name: &'a str) -> Result<&'a str, Problem> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Problem::bad_parameter(
            what,
            format!(
                "`{what}` has {} bytes; it must have 1 to {MAX_NAME_BYTES}",
                name.len()
            ),
        ));
    }
    Ok(name)
}
