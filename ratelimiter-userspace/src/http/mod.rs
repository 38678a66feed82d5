//! The admin API over HTTP: what design section 7 lists, from one table of routes.
//!
//! Knows [`crate::admin::Admin`] and nothing behind it: no store, no kernel, no policy. The service
//! is a function of its listener and its shutdown ([`serve`]).
//!
//! - [`routes`]: the table every other part is made from: router, locks, OpenAPI, metrics
//! - [`gate`]: who may use which route; foreign hosts and origins
//! - [`problem`]: every error as `application/problem+json`
//! - [`server`]: the accept loop with its limits; [`listen`]: where it listens
//! - [`stats`]: requests by route
//! - [`check`]: the check API, on a listener and threads of its own
#![expect(
    clippy::format_push_string,
    clippy::format_collect,
    reason = "texts for people: an allocation more does not matter, a fallible `write!` reads worse"
)]
mod call;
pub mod check;
pub mod connections;
pub mod gate;
mod handlers;
mod io;
pub mod listen;
pub mod openapi;
pub mod problem;
mod receive;
pub mod routes;
pub mod server;
pub mod stats;
pub mod workers;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{RawPathParams, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter};

use crate::admin::Admin;
use call::Call;
use gate::{Gate, Peer};
use problem::Problem;
use routes::{ROUTES, Route, Takes};
use stats::HttpStats;

pub use listen::Listener;
pub use server::{Limits, serve};
pub use workers::Workers;

/// How many times larger the whole document may be than any other body.
const DOCUMENT_BODIES: usize = 64;
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The admin API: an [`Admin`] behind a [`Gate`].
#[derive(Clone)]
pub struct Api {
    admin: Arc<dyn Admin>,
    gate: Arc<Gate>,
    stats: Arc<HttpStats>,
    max_body_bytes: usize,
}

impl Api {
    /// An API that refuses bodies above `max_body_bytes`.
    pub fn new(
        admin: Arc<dyn Admin>,
        gate: Arc<Gate>,
        stats: Arc<HttpStats>,
        max_body_bytes: usize,
    ) -> Self {
        Self {
            admin,
            gate,
            stats,
            max_body_bytes,
        }
    }

    /// The router: every route of the table, and problems for everything else. Requests need a
    /// [`Peer`] among their extensions; one without is refused.
    pub fn router(&self) -> Router {
        let mut router = Router::new();
        for path in routes::paths() {
            let mut methods = MethodRouter::new();
            for (number, route) in ROUTES.iter().enumerate().filter(|(_, r)| r.path == path) {
                let api = self.clone();
                let handle = move |params: Result<RawPathParams, _>, request: Request| async move {
                    api.handle(number, route, params.ok(), request).await
                };
                methods = methods.on(filter(&route.method), handle);
            }
            router = router.route(path, methods);
        }
        let (lost, refused) = (self.clone(), self.clone());
        router
            .method_not_allowed_fallback(move |request: Request| async move {
                let problem = Problem::method_not_allowed(request.method(), request.uri().path());
                refused.unrouted(&request, problem)
            })
            .fallback(move |request: Request| async move {
                let problem = Problem::no_route(request.uri().path());
                lost.unrouted(&request, problem)
            })
    }

    fn unrouted(&self, request: &Request, problem: Problem) -> Response {
        let problem = self
            .gate
            .check_host(request.headers())
            .err()
            .unwrap_or(problem);
        self.stats.record(None, problem.status(), 0.0);
        problem.into_response()
    }

    async fn handle(
        &self,
        number: usize,
        route: &'static Route,
        params: Option<RawPathParams>,
        request: Request,
    ) -> Response {
        let begin = crate::clock::instant();
        let head = request.method() == Method::HEAD;
        let mut response = match self.answer(route, params, request).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        self.stats.record(
            Some(number),
            response.status(),
            begin.elapsed().as_secs_f64(),
        );
        if head {
            *response.body_mut() = Body::empty();
        }
        response
    }

    async fn answer(
        &self,
        route: &'static Route,
        params: Option<RawPathParams>,
        request: Request,
    ) -> Result<Response, Problem> {
        let (parts, body) = request.into_parts();
        self.gate.check_host(&parts.headers)?;
        let peer = parts
            .extensions
            .get::<Peer>()
            .ok_or_else(|| Problem::internal("the request has no peer"))?;
        let mut caller = self.gate.admit(route.access, peer, &parts.headers)?;
        caller.ssh_peer = ssh_peer(&parts.headers);
        let params = params.ok_or_else(|| {
            Problem::bad_request(
                "the path is not percent-encoded UTF-8; encode every byte of an id",
            )
        })?;
        check_accept(route, &parts.headers)?;
        let body = self.body(route, &parts.headers, body).await?;
        let call = Call::new(
            Arc::clone(&self.admin),
            params
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            parts.uri,
            parts.headers,
            body,
            caller,
        );
        (route.handler)(call).await
    }

    async fn body(&self, route: &Route, headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
        if route.takes == Takes::Nothing {
            // A body nobody asked for is read and dropped within the same bounds, so that the
            // connection can be used again.
        } else if !is_json(headers) {
            return Err(Problem::unsupported_media_type(headers));
        }
        let limit_bytes = match route.takes {
            Takes::Json("Document") => self.max_body_bytes.saturating_mul(DOCUMENT_BODIES),
            _ => self.max_body_bytes,
        };
        receive::body(headers, body, limit_bytes, BODY_TIMEOUT).await
    }
}

fn filter(method: &Method) -> MethodFilter {
    match *method {
        Method::PUT => MethodFilter::PUT,
        Method::POST => MethodFilter::POST,
        Method::DELETE => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    }
}

/// Whether the body is declared as JSON. A missing type is not.
fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| {
            let kind = kind.trim().to_ascii_lowercase();
            kind == "application/json"
                || (kind.starts_with("application/") && kind.ends_with("+json"))
        })
}

fn check_accept(route: &Route, headers: &HeaderMap) -> Result<(), Problem> {
    let mut values = headers.get_all(header::ACCEPT).iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let accepted = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| accepts(range, route.gives));
    if accepted {
        Ok(())
    } else {
        Err(Problem::not_acceptable(route.gives))
    }
}

/// Whether a media range takes one of `types`.
fn accepts(range: &str, types: &[&str]) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default().to_ascii_lowercase();
    let refused = parts.any(|part| {
        part.strip_prefix("q=")
            .is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q == 0.0))
    });
    !refused
        && types.iter().any(|kind| {
            range == "*/*"
                || range == *kind
                || range
                    .strip_suffix("/*")
                    .is_some_and(|major| kind.split('/').next() == Some(major))
        })
}

/// A JSON answer.
fn json_response<T: serde::Serialize>(status: StatusCode, value: &T) -> Result<Response, Problem> {
    let text = serde_json::to_vec(value)
        .map_err(|error| Problem::internal(format!("the answer has no JSON form: {error}")))?;
    Ok((
        status,
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        text,
    )
        .into_response())
}

/// From where the user of the command line is logged in, if it said so.
fn ssh_peer(headers: &HeaderMap) -> Option<std::net::IpAddr> {
    let text = headers.get(crate::admin::SSH_PEER_HEADER)?.to_str().ok()?;
    text.parse::<std::net::IpAddr>()
        .ok()
        .map(|at| at.to_canonical())
}
