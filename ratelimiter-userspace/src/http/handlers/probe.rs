//! Probes and metrics.

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::{Answer, ok};
use crate::admin::Admin;
use crate::admin::views::Readiness;
use crate::http::call::Call;
use crate::http::json_response;

const READY: &str = "ready";
const NOT_READY: &str = "not_ready";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(in crate::http) async fn livez(_: Call) -> Answer {
    ok(&Readiness {
        status: "alive".to_owned(),
        problems: Vec::new(),
    })
}

/// What is said of readiness.
pub(super) fn readiness_of(admin: &dyn Admin) -> Readiness {
    let problems = admin.problems();
    let (status, problems) = if !admin.started() || !problems.is_empty() {
        (NOT_READY, problems)
    } else if let Some(problem) = admin.degraded() {
        ("degraded", vec![problem])
    } else {
        (READY, problems)
    };
    Readiness {
        status: status.to_owned(),
        problems,
    }
}

pub(in crate::http) async fn readyz(call: Call) -> Answer {
    let readiness = readiness_of(call.admin.as_ref());
    // Degraded is alive and limiting, by itself: traffic must not be taken away from it for that.
    let status = if readiness.status == NOT_READY {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    json_response(status, &readiness)
}

pub(in crate::http) async fn startupz(call: Call) -> Answer {
    let (status, word) = if call.admin.started() {
        (StatusCode::OK, READY)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, NOT_READY)
    };
    let readiness = Readiness {
        status: word.to_owned(),
        problems: Vec::new(),
    };
    json_response(status, &readiness)
}

pub(in crate::http) async fn metrics(call: Call) -> Answer {
    let open_metrics = call
        .headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("application/openmetrics-text"));
    let text = call.admin.metrics(open_metrics).await?;
    let kind = if open_metrics { OPEN_METRICS } else { TEXT };
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
