//! Probes and metrics.

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::{Answer, ok};
use crate::admin::views::Readiness;
use crate::http::call::Call;
use crate::http::json_response;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(in crate::http) async fn livez(_: Call) -> Answer {
    ok(&Readiness {
        status: "alive".to_owned(),
        problems: Vec::new(),
    })
}

fn readiness(ready: bool, problems: Vec<String>) -> Answer {
    let (status, word) = if ready {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
    };
    json_response(
        status,
        &Readiness {
            status: word.to_owned(),
            problems,
        },
    )
}

pub(in crate::http) async fn readyz(call: Call) -> Answer {
    let problems = call.admin.problems();
    let ready = call.admin.started() && problems.is_empty();
    // Alive and limiting, by itself: traffic must not be taken away from it for that.
    if ready && let Some(problem) = call.admin.degraded() {
        let degraded = Readiness {
            status: "degraded".to_owned(),
            problems: vec![problem],
        };
        return json_response(StatusCode::OK, &degraded);
    }
    readiness(ready, problems)
}

pub(in crate::http) async fn startupz(call: Call) -> Answer {
    readiness(call.admin.started(), Vec::new())
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
