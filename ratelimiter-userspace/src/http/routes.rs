//! The table of routes. The router, the locks, the OpenAPI document, the metrics and the test that
//! tries every door are all made from it.

use axum::http::Method;
use axum::response::Response;
use futures_util::future::BoxFuture;

use super::call::Call;
use super::gate::Access;
use super::handlers as h;
use super::problem::Problem;
use crate::config::Right;

/// What a route's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// No body is read.
    Nothing,
    /// JSON of the schema so named.
    Json(&'static str),
}

pub(super) type Handler = fn(Call) -> BoxFuture<'static, Result<Response, Problem>>;

/// One route.
pub struct Route {
    /// The method; GET answers HEAD as well.
    pub method: Method,
    /// The path, parameters in braces.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    /// What it is for, one line.
    pub summary: &'static str,
    /// Names of its query parameters; see `openapi`.
    pub query: &'static [&'static str],
    /// Its body.
    pub takes: Takes,
    /// Media types of a good answer.
    pub gives: &'static [&'static str],
    /// Schema of a good answer by status; an empty name for one without a schema.
    pub answers: &'static [(u16, &'static str)],
    pub(super) handler: Handler,
}

const JSON: &[&str] = &["application/json"];
const NO_QUERY: &[&str] = &[];
const PAGE: &[&str] = &["limit", "after", "q"];
const EVENTS: &[&str] = &["limit", "after", "q", "snapshots"];
const CHANGE: &[&str] = &["dry_run", "try"];
const CHANGE_CIDR: &[&str] = &["cidr", "dry_run", "try"];
const CHANGE_NAMED: &[&str] = &["name", "dry_run", "try"];
const NAMED: &[&str] = &["name"];
const REVISION: &[&str] = &["revision"];
const CHANGED: &[(u16, &str)] = &[(200, "Changed"), (202, "Changed")];
const PUT: &[(u16, &str)] = &[(200, "Changed"), (201, "Changed"), (202, "Changed")];

const READ: Access = Access::Needs(Right::Read);
const WRITE: Access = Access::Needs(Right::Write);
const HEALTH: Access = Access::Needs(Right::Health);
const ADMIN: Access = Access::Needs(Right::Admin);

macro_rules! route {
    ($method:ident $path:literal $access:expr, $summary:literal,
     $query:expr, $takes:expr, $gives:expr, $answers:expr, $handler:path) => {
        Route {
            method: Method::$method,
            path: $path,
            access: $access,
            summary: $summary,
            query: $query,
            takes: $takes,
            gives: $gives,
            answers: $answers,
            handler: |call| Box::pin($handler(call)),
        }
    };
}

use Takes::{Json, Nothing};

/// Every route of the admin API.
#[rustfmt::skip]
pub static ROUTES: &[Route] = &[
    route!(GET "/livez" Access::Open, "Whether the process runs", NO_QUERY, Nothing, JSON, &[(200, "Readiness")], h::probe::livez),
    route!(GET "/readyz" Access::Open, "Whether the agent does what it is configured to do", NO_QUERY, Nothing, JSON, &[(200, "Readiness")], h::probe::readyz),
    route!(GET "/startupz" Access::Open, "Whether start-up is over", NO_QUERY, Nothing, JSON, &[(200, "Readiness")], h::probe::startupz),
    route!(GET "/metrics" Access::Telemetry, "Metrics for Prometheus", NO_QUERY, Nothing, &["text/plain", "application/openmetrics-text"], &[(200, "")], h::probe::metrics),
    route!(GET "/" Access::Open, "The dashboard", NO_QUERY, Nothing, &["text/html"], &[(200, "")], h::dashboard::page),
    route!(GET "/dashboard/{file}" Access::Open, "A file of the dashboard", NO_QUERY, Nothing, &["text/javascript", "text/css", "image/svg+xml"], &[(200, "")], h::dashboard::file),
    route!(GET "/openapi.json" Access::Open, "This document", NO_QUERY, Nothing, JSON, &[(200, "")], h::docs::openapi),
    route!(GET "/docs" Access::Open, "This document for people", NO_QUERY, Nothing, &["text/html"], &[(200, "")], h::docs::page),
    route!(GET "/v1/status" READ, "How the agent is", NO_QUERY, Nothing, JSON, &[(200, "Status")], h::agent::status),
    route!(POST "/v1/reload" ADMIN, "Reads the configuration file again", NO_QUERY, Nothing, JSON, &[(200, "Changed")], h::agent::reload),
    route!(GET "/v1/interfaces" READ, "Interfaces the agent was told to protect", NO_QUERY, Nothing, JSON, &[(200, "InterfaceView[]")], h::agent::interfaces),
    route!(PUT "/v1/interfaces/{interface}" ADMIN, "Attaches to an interface and keeps it attached", NO_QUERY, Json("AttachRequest"), JSON, &[(200, "InterfaceView")], h::agent::attach),
    route!(DELETE "/v1/interfaces/{interface}" ADMIN, "Detaches from an interface; no error if there is nothing to detach", NO_QUERY, Nothing, JSON, &[(200, "Detached")], h::agent::detach),
    route!(GET "/v1/events" READ, "What happened lately; as server-sent events on `Accept: text/event-stream`", EVENTS, Nothing, &["application/json", "text/event-stream"], &[(200, "Page_Event")], h::events::events),
    route!(GET "/v1/clients" READ, "Clients by id", PAGE, Nothing, JSON, &[(200, "Page_ClientView")], h::policy::clients),
    route!(GET "/v1/clients/{client_id}" READ, "One client", NO_QUERY, Nothing, JSON, &[(200, "ClientView"), (304, "")], h::policy::client),
    route!(PUT "/v1/clients/{client_id}" WRITE, "Creates or replaces a client", CHANGE, Json("Client"), JSON, PUT, h::policy::put_client),
    route!(DELETE "/v1/clients/{client_id}" WRITE, "Removes a client and its limits", CHANGE, Nothing, JSON, CHANGED, h::policy::remove_client),
    route!(GET "/v1/clients/{client_id}/limit" READ, "One limit that applies to a client", NAMED, Nothing, JSON, &[(200, "LimitRow"), (304, "")], h::policy::limit),
    route!(PUT "/v1/clients/{client_id}/limit" WRITE, "Sets a limit of a client, which is created if need be", CHANGE_NAMED, Json("LimitPut"), JSON, PUT, h::policy::put_limit),
    route!(DELETE "/v1/clients/{client_id}/limit" WRITE, "Removes a limit of a client; its segment's applies again", CHANGE_NAMED, Nothing, JSON, CHANGED, h::policy::remove_limit),
    route!(GET "/v1/segments" READ, "Segments by name", PAGE, Nothing, JSON, &[(200, "Page_SegmentView")], h::policy::segments),
    route!(GET "/v1/segments/{segment}" READ, "One segment", NO_QUERY, Nothing, JSON, &[(200, "SegmentView"), (304, "")], h::policy::segment),
    route!(PUT "/v1/segments/{segment}" WRITE, "Creates or replaces a segment", CHANGE, Json("Segment"), JSON, PUT, h::policy::put_segment),
    route!(DELETE "/v1/segments/{segment}" WRITE, "Removes a segment that no client names", CHANGE, Nothing, JSON, CHANGED, h::policy::remove_segment),
    route!(GET "/v1/limits" READ, "Every limit of every segment and client", PAGE, Nothing, JSON, &[(200, "Page_LimitRow")], h::policy::limits),
    route!(GET "/v1/document" READ, "Everything configured at run time", NO_QUERY, Nothing, JSON, &[(200, "Document"), (304, "")], h::policy::document),
    route!(PUT "/v1/document" WRITE, "Replaces everything configured at run time", CHANGE, Json("Document"), JSON, PUT, h::policy::put_document),
    route!(GET "/v1/allowlist" READ, "Prefixes that are never limited", PAGE, Nothing, JSON, &[(200, "Page_ListEntryView")], h::lists::allowed),
    route!(POST "/v1/allowlist" WRITE, "Allows a prefix", CHANGE, Json("ListPut"), JSON, PUT, h::lists::allow),
    route!(DELETE "/v1/allowlist" WRITE, "No longer allows a prefix", CHANGE_CIDR, Nothing, JSON, CHANGED, h::lists::disallow),
    route!(GET "/v1/blocklist" READ, "Prefixes that are dropped", PAGE, Nothing, JSON, &[(200, "Page_ListEntryView")], h::lists::blocked),
    route!(POST "/v1/blocklist" WRITE, "Blocks a prefix", CHANGE, Json("ListPut"), JSON, PUT, h::lists::block),
    route!(DELETE "/v1/blocklist" WRITE, "No longer blocks a prefix", CHANGE_CIDR, Nothing, JSON, CHANGED, h::lists::unblock),
    route!(GET "/v1/sources" READ, "Sources by rate, the largest first", PAGE, Nothing, JSON, &[(200, "Page_SourceRow")], h::sources::list),
    route!(GET "/v1/sources/{ip}" READ, "One source: its rule and its buckets", NO_QUERY, Nothing, JSON, &[(200, "Explanation")], h::sources::one),
    route!(DELETE "/v1/sources/{ip}" WRITE, "Forgives everything a source owes", NO_QUERY, Nothing, JSON, &[(200, "ResetAnswer")], h::sources::reset),
    route!(DELETE "/v1/clients/{client_id}/debt" WRITE, "Forgives everything a client owes", NO_QUERY, Nothing, JSON, &[(200, "ResetAnswer")], h::sources::reset_client),
    route!(GET "/v1/explain" READ, "Why a source or a client is judged as it is", &["ip", "client_id"], Nothing, JSON, &[(200, "Explanation")], h::sources::explain),
    route!(POST "/v1/health" HEALTH, "Takes a report of a backend's health; the same one again changes nothing", NO_QUERY, Json("HealthReport"), JSON, &[(200, "HealthAnswer")], h::adaptive::health),
    route!(GET "/v1/adaptive" READ, "Limits that follow health: factors, reasons, inputs", NO_QUERY, Nothing, JSON, &[(200, "AdaptiveView")], h::adaptive::status),
    route!(POST "/v1/adaptive:pause" WRITE, "Holds what is in force, or a factor, until it is resumed", NO_QUERY, Json("PauseRequest"), JSON, &[(200, "AdaptiveView")], h::adaptive::pause),
    route!(POST "/v1/adaptive:resume" WRITE, "Lets the controllers decide again", NO_QUERY, Json("ResumeRequest"), JSON, &[(200, "AdaptiveView")], h::adaptive::resume),
    route!(GET "/v1/sync" READ, "The fleet: its shared store, and who is in it", NO_QUERY, Nothing, JSON, &[(200, "SyncView")], h::agent::sync),
    route!(POST "/v1/sync:resync" ADMIN, "Tells the fleet's store everything again at once", NO_QUERY, Nothing, JSON, &[(200, "SyncView")], h::agent::resync),
    route!(GET "/v1/changes" READ, "The audit log, newest first", PAGE, Nothing, JSON, &[(200, "Page_ChangeView")], h::changes::list),
    route!(POST "/v1/changes:confirm" WRITE, "Keeps what is on trial", REVISION, Nothing, JSON, &[(200, "Changed[]")], h::changes::confirm),
    route!(POST "/v1/changes:rollback" WRITE, "Takes back what is on trial", REVISION, Nothing, JSON, &[(200, "Changed[]")], h::changes::rollback),
];

/// Every path once.
pub fn paths() -> impl Iterator<Item = &'static str> {
    let mut paths: Vec<&'static str> = ROUTES.iter().map(|route| route.path).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.into_iter()
}
