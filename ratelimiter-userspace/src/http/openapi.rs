//! The OpenAPI 3.1 document, made from the table of routes and the types of [`crate::admin`].

use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::gate::Access;
use super::problem::Problem;
use super::routes::{ROUTES, Route, Takes};
use crate::admin::views;
use crate::admin::{FieldError, LimitPut, ListPut};
use crate::policy::model;

#[derive(OpenApi)]
#[openapi(components(schemas(
    Problem,
    FieldError,
    LimitPut,
    ListPut,
    model::Client,
    model::Segment,
    model::Document,
    views::AdaptiveView,
    views::AttachRequest,
    views::HealthAnswer,
    views::HealthReport,
    views::PauseRequest,
    views::ResumeRequest,
    views::Changed,
    views::Detached,
    views::Explanation,
    views::InterfaceView,
    views::LimitRow,
    views::ClientView,
    views::SegmentView,
    views::CallerView,
    views::Readiness,
    views::Snapshot,
    views::ResetAnswer,
    views::Status,
    views::ConfigState,
    views::ConfigSyncView,
    views::SyncView,
    views::Page<views::ClientView>,
    views::Page<views::SegmentView>,
    views::Page<views::LimitRow>,
    views::Page<views::ListEntryView>,
    views::Page<views::SourceRow>,
    views::Page<views::ChangeView>,
    views::Page<views::Event>,
)))]
struct Components;

/// The document.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(build)
}

fn build() -> Value {
    // The derived components always have a JSON form.
    let mut components = serde_json::to_value(Components::openapi())
        .ok()
        .and_then(|mut derived| derived.get_mut("components").map(Value::take))
        .unwrap_or_else(|| json!({}));
    if let Some(components) = components.as_object_mut() {
        components.insert(
            "securitySchemes".to_owned(),
            json!({"bearer": {"type": "http", "scheme": "bearer",
                "description": "Not needed on the Unix socket, nor on loopback for root and the \
                                agent's own user while no credential is configured."}}),
        );
    }
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths
            .entry(route.path.to_owned())
            .or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(route.method.as_str().to_ascii_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ratelimiter admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Limits, lists and sources of one agent.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    })
}

fn operation(route: &Route) -> Value {
    let id = format!(
        "{}{}",
        route.method.as_str().to_ascii_lowercase(),
        route
            .path
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(|word| format!("_{word}"))
            .collect::<String>()
    );
    let mut operation = json!({
        "operationId": id,
        "summary": route.summary,
        "parameters": parameters(route),
        "responses": responses(route),
        "security": match route.access {
            Access::Open => json!([]),
            Access::Telemetry | Access::Needs(_) => json!([{"bearer": []}, {}]),
        },
    });
    if let (Takes::Json(schema), Some(operation)) = (route.takes, operation.as_object_mut()) {
        operation.insert(
            "requestBody".to_owned(),
            json!({"required": true, "content": {"application/json": {"schema": reference(schema)}}}),
        );
    }
    operation
}

fn reference(schema: &str) -> Value {
    match schema.strip_suffix("[]") {
        Some(item) => json!({"type": "array", "items": reference(item)}),
        None => json!({"$ref": format!("#/components/schemas/{schema}")}),
    }
}

fn parameters(route: &Route) -> Value {
    let in_path = route
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            let (schema, description) = parameter(name);
            json!({"name": name, "in": "path", "required": true, "schema": schema,
                   "description": description})
        });
    let in_query = route.query.iter().map(|name| {
        let (schema, description) = parameter(name);
        json!({"name": name, "in": "query", "required": *name == "cidr", "schema": schema,
               "description": description})
    });
    let conditions = route.query.contains(&"dry_run");
    let in_head = conditions
        .then_some([
            (
                "If-Match",
                "Change only what has one of these tags; `*`: only what exists",
            ),
            ("If-None-Match", "`*`: create only"),
        ])
        .into_iter()
        .flatten()
        .map(|(name, description)| {
            json!({"name": name, "in": "header", "required": false,
                   "schema": {"type": "string"}, "description": description})
        });
    in_path.chain(in_query).chain(in_head).collect()
}

fn parameter(name: &str) -> (Value, &'static str) {
    match name {
        "client_id" => (
            json!({"type": "string", "minLength": 1, "maxLength": model::MAX_CLIENT_ID_BYTES}),
            "The client's id, every byte percent-encoded that is not unreserved; 1 to 256 bytes",
        ),
        "segment" | "name" => (
            json!({"type": "string", "minLength": 1, "maxLength": model::MAX_NAME_BYTES,
                   "pattern": "^[a-z0-9_-]+$"}),
            "A name; `default` if absent",
        ),
        "interface" => (
            json!({"type": "string", "minLength": 1, "maxLength": 15}),
            "Name of a network interface",
        ),
        "ip" => (json!({"type": "string"}), "An IPv4 or IPv6 address"),
        "cidr" => (
            json!({"type": "string"}),
            "The entry: an address or a prefix without host bits",
        ),
        "limit" => (
            json!({"type": "integer", "minimum": 1, "maximum": views::MAX_PAGE,
                   "default": views::DEFAULT_PAGE}),
            "Items on the page",
        ),
        "after" => (json!({"type": "string"}), "The `next` of the page before"),
        "q" => (
            json!({"type": "string", "maxLength": 256}),
            "Only items that contain this text, whatever its case",
        ),
        "file" => (
            json!({"type": "string", "pattern": "^[a-z-]+\\.[a-z]+$"}),
            "Name of the file",
        ),
        "snapshots" => (
            json!({"type": "boolean", "default": false}),
            "In a stream: first an event `caller` (schema `CallerView`), then every second, and at \
             once when somebody begins to be dropped, an event `snapshot` (schema `Snapshot`)",
        ),
        "dry_run" => (
            json!({"type": "boolean", "default": false}),
            "Say what would happen and do nothing",
        ),
        "try" => (
            json!({"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(ms|s|m|min|h)?$",
                   "examples": ["60s"]}),
            "Take the change back by itself unless it is confirmed within this time: 1 s to 1 h",
        ),
        "revision" => (
            json!({"type": "integer", "minimum": 0}),
            "The revision a change made; everything on trial if absent",
        ),
        _ => (json!({"type": "string"}), ""),
    }
}

fn responses(route: &Route) -> Value {
    let mut responses = Map::new();
    for (status, schema) in route.answers {
        let description = match status {
            201 => "Created",
            202 => "On trial: taken back at `confirm_by` unless confirmed",
            304 => "Not modified",
            _ => "Done",
        };
        let mut response = json!({"description": description});
        if *status != 304
            && let Some(response) = response.as_object_mut()
        {
            let content: Map<String, Value> = route
                .gives
                .iter()
                .map(|kind| {
                    let schema = match (*schema, *kind) {
                        ("", "application/json") => json!({"type": "object"}),
                        ("", _) | (_, "text/event-stream") => json!({"type": "string"}),
                        (schema, _) => reference(schema),
                    };
                    ((*kind).to_owned(), json!({"schema": schema}))
                })
                .collect();
            response.insert("content".to_owned(), Value::Object(content));
        }
        responses.insert(status.to_string(), response);
    }
    for (status, description, applies) in problems(route) {
        if applies {
            responses.insert(
                status.to_owned(),
                json!({"description": description, "content": {"application/problem+json":
                    {"schema": reference("Problem")}}}),
            );
        }
    }
    if matches!(route.path, "/readyz" | "/startupz") {
        responses.insert(
            "503".to_owned(),
            json!({"description": "Not ready", "content": {"application/json":
                {"schema": reference("Readiness")}}}),
        );
    }
    Value::Object(responses)
}

fn problems(route: &Route) -> [(&'static str, &'static str, bool); 14] {
    let locked = route.access != Access::Open;
    let body = route.takes != Takes::Nothing;
    let change = route.query.contains(&"dry_run");
    let named = route.path.contains('{') || change;
    let works = route.path.starts_with("/v1/") || route.path == "/metrics";
    [
        ("400", "The request is malformed", true),
        ("401", "No valid credential", locked),
        (
            "403",
            "The credential lacks the right, or the host or origin is foreign",
            true,
        ),
        ("404", "There is no such thing", named),
        ("405", "The path is not for this method", true),
        ("406", "`Accept` takes none of the types given", true),
        ("408", "The body did not arrive in time", true),
        (
            "409",
            "Something else is in the way: a change on trial, a foreign program",
            works,
        ),
        ("412", "The object has changed", change),
        ("413", "The body is too large", true),
        ("415", "The body is not declared as JSON", body),
        (
            "422",
            "A field is refused; `errors` names each",
            body || change,
        ),
        ("500", "The agent failed; its log says why", true),
        ("503", "Not now", works),
    ]
}

/// The document as a page: static HTML made from the table of routes.
pub fn page() -> String {
    let mut rows = String::new();
    for route in ROUTES {
        rows.push_str(&format!(
            "<tr><td><b>{}</b></td><td><code>{}</code></td><td>{}</td><td>{}</td></tr>\n",
            route.method,
            escape(route.path),
            escape(route.summary),
            match route.access {
                Access::Open => "nothing".to_owned(),
                Access::Telemetry => "read (not on loopback)".to_owned(),
                Access::Needs(right) => format!("{right:?}").to_ascii_lowercase(),
            }
        ));
    }
    include_str!("docs.html").replace("<!--ROUTES-->", &rows)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
