//! The check API over HTTP: `/v1/check`, `/v1/check:batch`, `/v1/authz`, `/v1/outcome`.
//!
//! A listener of its own, without a router: `POST /v1/check` is recognised first, its body borrowed
//! by the parser, its answer written into one buffer. Everything else takes one table of routes
//! ([`ROUTES`]), from which the description and the test that tries every door are made too.
//!
//! - `body`: what may be asked; `answer`: what is said, as JSON, headers and problems
//! - `authz`: forward-auth for proxies
//! - `openapi`: the description
mod answer;
mod authz;
mod body;
mod openapi;

use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;

use self::answer::Denial;
use super::gate::{Peer, bearer};
use super::is_json;
use super::problem::Problem;
use super::receive;
use super::server::Answers;
use crate::check::Checks;
use crate::clock;
use crate::limiter::Reason;

/// Checks in one batch.
pub const MAX_BATCH: usize = 256;
/// How many times larger the body of a batch may be than any other.
const BATCH_BODIES: usize = 4;

/// An answer's body: always whole.
type Answer = Response<Full<Bytes>>;

/// What a route of the check API does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// One check.
    Check,
    /// Many checks.
    Batch,
    /// Forward-auth.
    Authz,
    /// Forward-auth for proxies that keep method, path and query of the request (Envoy): the query
    /// is the client's and says nothing here.
    AuthzAnyPath,
    /// What became of an allowed request.
    Outcome,
    /// Whether the process answers.
    Livez,
    /// The description.
    OpenApi,
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path; `{path}` stands for anything.
    pub path: &'static str,
    /// What it does.
    pub does: Does,
}

impl Route {
    /// Whether it says something about, or changes, anybody: then it may need a credential.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        !matches!(self.does, Does::Livez | Does::OpenApi)
    }
}

const fn route(method: &'static str, path: &'static str, does: Does) -> Route {
    Route { method, path, does }
}

/// Every route of the check API.
pub const ROUTES: [Route; 15] = [
    route("POST", "/v1/check", Does::Check),
    route("POST", "/v1/check:batch", Does::Batch),
    route("GET", "/v1/authz", Does::Authz),
    route("HEAD", "/v1/authz", Does::Authz),
    route("POST", "/v1/authz", Does::Authz),
    route("GET", "/v1/authz/{path}", Does::AuthzAnyPath),
    route("HEAD", "/v1/authz/{path}", Does::AuthzAnyPath),
    route("POST", "/v1/authz/{path}", Does::AuthzAnyPath),
    route("PUT", "/v1/authz/{path}", Does::AuthzAnyPath),
    route("PATCH", "/v1/authz/{path}", Does::AuthzAnyPath),
    route("DELETE", "/v1/authz/{path}", Does::AuthzAnyPath),
    route("OPTIONS", "/v1/authz/{path}", Does::AuthzAnyPath),
    route("POST", "/v1/outcome", Does::Outcome),
    route("GET", "/livez", Does::Livez),
    route("GET", "/openapi.json", Does::OpenApi),
];

const AUTHZ_PREFIX: &str = "/v1/authz/";

/// The routes of a path.
fn routes_at(path: &str) -> impl Iterator<Item = &'static Route> {
    let wanted = if path.starts_with(AUTHZ_PREFIX) {
        "/v1/authz/{path}"
    } else {
        path
    };
    let wanted = wanted.to_owned();
    ROUTES.iter().filter(move |route| route.path == wanted)
}

/// The check API of one listener.
#[derive(Clone, Debug)]
pub struct CheckApi {
    checks: Checks,
    /// Whether others than this machine can reach the listener.
    exposed: bool,
    max_body_bytes: usize,
    body_timeout: std::time::Duration,
}

impl CheckApi {
    /// The check API on a listener that others can reach (`exposed`) or not. Bodies above
    /// `max_body_bytes` are refused, and those that take longer than `body_timeout`.
    #[must_use]
    pub fn new(
        checks: Checks,
        exposed: bool,
        max_body_bytes: usize,
        body_timeout: std::time::Duration,
    ) -> Self {
        Self {
            checks,
            exposed,
            max_body_bytes,
            body_timeout,
        }
    }

    async fn route(&self, peer: &Peer, request: Request<Incoming>) -> Result<Answer, Problem> {
        let (parts, incoming) = request.into_parts();
        let method = &parts.method;
        let path = parts.uri.path();
        let does = if method == Method::POST && path == "/v1/check" {
            Does::Check
        } else {
            let Some(route) = routes_at(path).find(|route| route.method == method.as_str()) else {
                return not_routed(method, path);
            };
            if !route.is_guarded() {
                return Ok(unguarded(route.does));
            }
            route.does
        };
        let headers = &parts.headers;
        let asks = self.checks.gate().asks_checks(self.exposed);
        if asks {
            self.checks
                .gate()
                .admit_check(self.exposed, bearer(headers)?)?;
        }
        let query = match does {
            Does::AuthzAnyPath => "",
            _ => parts.uri.query().unwrap_or_default(),
        };
        match does {
            Does::Authz | Does::AuthzAnyPath => {
                return self.authz(peer, headers, query).await;
            }
            // A page that a browser was tricked into has no credential to show; its name gives it
            // away. Forward-auth is exempt: proxies pass the names of other sites on.
            _ if !asks => self.checks.gate().check_host(headers)?,
            _ => {}
        }
        if !is_json(headers) {
            return Err(Problem::unsupported_media_type(headers));
        }
        let limit = match does {
            Does::Batch => self.max_body_bytes.saturating_mul(BATCH_BODIES),
            _ => self.max_body_bytes,
        };
        let body = receive::body(headers, incoming, limit, self.body_timeout).await?;
        match does {
            Does::Check => self.check(headers, query, &body).await,
            Does::Batch => self.batch(headers, query, &body).await,
            _ => self.outcome(query, &body),
        }
    }

    async fn check(
        &self,
        headers: &HeaderMap,
        query: &str,
        body: &[u8],
    ) -> Result<Answer, Problem> {
        let begin_ns = clock::fast_ns();
        let query = body::Query::parse(query, true)?;
        let asked = body::parse::<body::Check<'_>>(body)?;
        let request = asked.request(query.peek)?;
        let limiter = self.checks.limiter();
        let answer = limiter
            .check_request_soon(&request)
            .await
            .map_err(|error| body::refused("/client_id", &error.to_string()))?;
        if !query.peek && asked.source_ip.is_some() {
            self.escalate(headers, [(&asked, &answer)]);
        }
        let response = answer::one(&self.checks, &answer, &asked, query.deny)?;
        limiter.observe_duration(clock::fast_ns().saturating_sub(begin_ns), 1);
        Ok(response)
    }

    async fn batch(
        &self,
        headers: &HeaderMap,
        query: &str,
        body: &[u8],
    ) -> Result<Answer, Problem> {
        let begin_ns = clock::fast_ns();
        let query = body::Query::parse(query, false)?;
        let batch = body::parse::<body::Batch<'_>>(body)?;
        let asked = batch.checks.as_slice();
        if asked.is_empty() || asked.len() > MAX_BATCH {
            return Err(body::invalid(
                "/checks",
                &format!(
                    "`checks` has {} entries; it must have 1 to {MAX_BATCH}",
                    asked.len()
                ),
            ));
        }
        for (number, check) in asked.iter().enumerate() {
            check.request(query.peek).map_err(|problem| {
                let at = format!("/checks/{number}");
                body::below(&at, problem)
            })?;
        }
        let limiter = self.checks.limiter();
        let mut answers = Vec::new();
        if !query.peek && asked.iter().all(body::Check::is_plain) {
            let plain: Vec<(&[u8], u64)> = asked
                .iter()
                .map(|check| (check.client_id.as_bytes(), check.cost))
                .collect();
            limiter
                .check_many_soon(&plain, limiter.now_ns(), &mut answers)
                .await;
        } else {
            for check in asked {
                let request = check.request(query.peek)?;
                let answer = limiter.check_request_soon(&request).await;
                answers
                    .push(answer.map_err(|error| body::refused("/client_id", &error.to_string()))?);
            }
        }
        if !query.peek && asked.iter().any(|check| check.source_ip.is_some()) {
            self.escalate(headers, asked.iter().zip(&answers));
        }
        let response = answer::many(&self.checks, &answers);
        let took_ns = clock::fast_ns().saturating_sub(begin_ns);
        limiter.observe_duration(took_ns, asked.len() as u64);
        Ok(response)
    }

    /// Counts refusals in a row, where a segment wants it and the caller may.
    #[cold]
    fn escalate<'a, 'b: 'a>(
        &self,
        headers: &HeaderMap,
        answered: impl IntoIterator<Item = (&'a body::Check<'b>, &'a crate::limiter::Answer)>,
    ) {
        let escalation = self.checks.escalation();
        if !escalation.is_on() {
            return;
        }
        let token = bearer(headers).ok().flatten();
        if !self.checks.gate().may_escalate(token) {
            return;
        }
        let limiter = self.checks.limiter();
        for (asked, answer) in answered {
            let Some(address) = asked.source_ip else {
                continue;
            };
            if answer.allowed {
                escalation.allowed(&asked.client_id);
            } else if answer.reason == Reason::OverLimit
                && let Some(policy) = limiter.policy(answer.policy)
            {
                let segment = &policy.spec.segment;
                escalation.refused(segment, &asked.client_id, address, clock::fast_ns());
            }
        }
    }

    fn outcome(&self, query: &str, body: &[u8]) -> Result<Answer, Problem> {
        if !query.is_empty() {
            return Err(Problem::bad_parameter(
                "query",
                "there is no parameter here",
            ));
        }
        let outcome = body::parse::<body::Outcome<'_>>(body)?;
        outcome.check()?;
        let good = outcome.status < 500;
        let limiter = self.checks.limiter();
        match &outcome.backend {
            Some(backend) => limiter.outcome(backend, good, outcome.latency_ms),
            None => limiter.outcome_of(outcome.client_id.as_bytes(), good, outcome.latency_ms),
        }
        Ok(answer::empty(StatusCode::NO_CONTENT))
    }
}

impl Answers for CheckApi {
    type Body = Full<Bytes>;

    fn peer(&self, address: SocketAddr) -> Peer {
        // Nobody is trusted here for the user behind a socket.
        Peer::Tcp {
            address,
            trusted: false,
        }
    }

    async fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Answer {
        let head = request.method() == Method::HEAD;
        let mut response = match self.route(peer, request).await {
            Ok(response) => response,
            Err(problem) => answer::of_problem(&problem, None),
        };
        if head {
            *response.body_mut() = Full::default();
        }
        response
    }
}

fn not_routed(method: &Method, path: &str) -> Result<Answer, Problem> {
    let mut allowed: Vec<&str> = routes_at(path).map(|route| route.method).collect();
    if allowed.is_empty() {
        return Err(Problem::no_route(path));
    }
    allowed.dedup();
    let problem = Problem::method_not_allowed(method, path);
    let mut response = answer::of_problem(&problem, None);
    if let Ok(allow) = HeaderValue::from_str(&allowed.join(", ")) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    Ok(response)
}

fn unguarded(does: Does) -> Answer {
    match does {
        Does::OpenApi => answer::json(StatusCode::OK, openapi::document()),
        _ => answer::json(StatusCode::OK, Bytes::from_static(b"{\"live\":true}")),
    }
}

impl Denial {
    /// The refusal of forward-auth unless another is asked for.
    const AUTHZ: Self = Self::TooMany;
}
