//! The OpenAPI 3.1 document of the check API, made from its table of routes and its types.

use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::answer::Described;
use super::body::{Batch, Check, Outcome};
use super::{Does, ROUTES, Route};
use crate::admin::FieldError;
use crate::http::problem::Problem;

#[derive(OpenApi)]
#[openapi(components(schemas(Check<'_>, Batch<'_>, Outcome<'_>, Described, Problem, FieldError)))]
struct Components;

/// The document.
pub(super) fn document() -> Bytes {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    DOCUMENT
        .get_or_init(|| Bytes::from(build().to_string()))
        .clone()
}

fn build() -> Value {
    // The derived components always have a JSON form.
    let mut components = serde_json::to_value(Components::openapi())
        .ok()
        .and_then(|mut derived| derived.get_mut("components").map(Value::take))
        .unwrap_or_else(|| json!({}));
    if let Some(address) = components.pointer_mut("/schemas/CheckRequest/properties/source_ip")
        && let Some(fields) = address.as_object_mut()
    {
        fields.remove("type");
        let address = |format: &str| json!({"type": "string", "format": format});
        let either = json!([address("ipv4"), address("ipv6"), {"type": "null"}]);
        fields.insert("anyOf".to_owned(), either);
    }
    if let Some(components) = components.as_object_mut() {
        components.insert(
            "securitySchemes".to_owned(),
            json!({"bearer": {"type": "http", "scheme": "bearer",
                "description": "Needed as soon as a credential names the right `check`, and \
                                always on a listener that is not on loopback."}}),
        );
    }
    let mut paths = Map::new();
    for route in &ROUTES {
        let path = paths
            .entry(route.path.to_owned())
            .or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(route.method.to_ascii_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ratelimiter check API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Whether a client's request may go on.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    })
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn operation(route: &Route) -> Value {
    let id: String = format!("{} {}", route.method.to_ascii_lowercase(), route.path)
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("_");
    let (summary, takes) = match route.does {
        Does::Check => ("Whether a client's request may go on", Some("CheckRequest")),
        Does::Batch => ("Up to 256 checks at one moment", Some("BatchRequest")),
        Does::Authz => ("Forward-auth for proxies: 200 allows", None),
        Does::AuthzAnyPath => (
            "Forward-auth for proxies that keep path and method (Envoy)",
            None,
        ),
        Does::Outcome => ("What became of an allowed request", Some("OutcomeReport")),
        Does::Livez => ("Whether the process answers", None),
        Does::OpenApi => ("This document", None),
    };
    let mut operation = json!({
        "operationId": id,
        "summary": summary,
        "responses": responses(route),
    });
    let Some(fields) = operation.as_object_mut() else {
        return operation;
    };
    if let Some(schema) = takes {
        fields.insert(
            "requestBody".to_owned(),
            json!({"required": true, "content": {"application/json": {"schema": reference(schema)}}}),
        );
    }
    let parameters = parameters(route);
    if !parameters.is_empty() {
        fields.insert("parameters".to_owned(), Value::Array(parameters));
    }
    if route.is_guarded() {
        fields.insert("security".to_owned(), json!([{}, {"bearer": []}]));
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let peek = json!({"name": "peek", "in": "query", "schema": {"type": "boolean"},
        "description": "Ask without charging."});
    let deny = json!({"name": "deny", "in": "query",
        "schema": {"type": "integer", "enum": [403, 429]},
        "description": "Status of a refusal; 503 where the backend's circuit breaker is open."});
    let path = json!({"name": "path", "in": "path", "required": true,
        "schema": {"type": "string"}, "description": "Anything; not looked at."});
    match route.does {
        Does::Check | Does::Authz => vec![peek, deny],
        Does::Batch => vec![peek],
        Does::AuthzAnyPath => vec![path],
        _ => Vec::new(),
    }
}

fn responses(route: &Route) -> Value {
    let head = route.method == "HEAD";
    let with = |description: &str, kind: &str, schema: Value, limited: bool| {
        let mut answer = json!({"description": description});
        if let Some(fields) = answer.as_object_mut() {
            if !head {
                let content = json!({kind: {"schema": schema}});
                fields.insert("content".to_owned(), content);
            }
            if limited {
                fields.insert("headers".to_owned(), rate_limit_headers());
            }
        }
        answer
    };
    let problem = |what: &str| {
        with(
            what,
            "application/problem+json",
            reference("Problem"),
            false,
        )
    };
    let refusal = |what: &str| with(what, "application/problem+json", reference("Problem"), true);
    let mut answers = Map::new();
    let mut put = |status: u16, answer: Value| {
        answers.insert(status.to_string(), answer);
    };
    match route.does {
        Does::Check => put(
            200,
            with(
                "The answer, also a refusal",
                "application/json",
                reference("CheckAnswer"),
                true,
            ),
        ),
        Does::Batch => put(
            200,
            with(
                "The answers, in order",
                "application/json",
                json!({"type": "object", "required": ["answers"], "properties":
                    {"answers": {"type": "array", "items": reference("CheckAnswer")}}}),
                false,
            ),
        ),
        Does::Authz | Does::AuthzAnyPath => put(
            200,
            json!({"description": "The request may go on", "headers": rate_limit_headers()}),
        ),
        Does::Outcome => put(204, json!({"description": "Noted"})),
        Does::Livez | Does::OpenApi => {
            put(
                200,
                with(
                    "It does",
                    "application/json",
                    json!({"type": "object"}),
                    false,
                ),
            );
            return Value::Object(answers);
        }
    }
    put(400, problem("The request is malformed"));
    put(401, problem("A credential is needed"));
    put(
        403,
        refusal("The credential lacks the right, or the refusal that was asked for"),
    );
    if matches!(route.does, Does::Check | Does::Authz | Does::AuthzAnyPath) {
        put(429, refusal("The quota is used up"));
        put(503, refusal("The backend's circuit breaker is open"));
    }
    if route.does == Does::Check {
        put(404, problem("The client has no limit of that name"));
    }
    if matches!(route.does, Does::Check | Does::Batch | Does::Outcome) {
        put(408, problem("The body took too long"));
        put(413, problem("The body is too large"));
        put(415, problem("The body is not declared as JSON"));
        put(422, problem("A field is out of its bounds"));
    }
    Value::Object(answers)
}

fn rate_limit_headers() -> Value {
    let text = |about: &str| json!({"description": about, "schema": {"type": "string"}});
    json!({
        "RateLimit": text("Structured field: the tightest quota, what is left (`r`), and in how \
                           many seconds that changes (`t`)"),
        "RateLimit-Policy": text("Structured field: every quota with its units (`q`) per window \
                                  in seconds (`w`)"),
        "Retry-After": {"description": "Seconds until the same request may pass; refusals only",
                        "schema": {"type": "integer"}},
    })
}
