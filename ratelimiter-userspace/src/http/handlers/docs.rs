//! The OpenAPI document and a page that shows it. No external request.

use axum::http::header;
use axum::response::IntoResponse;

use super::{Answer, ok};
use crate::http::call::Call;
use crate::http::openapi;

pub(in crate::http) async fn openapi(_: Call) -> Answer {
    ok(openapi::document())
}

pub(in crate::http) async fn page(_: Call) -> Answer {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                  form-action 'none'; frame-ancestors 'none'";
    Ok((
        [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CONTENT_SECURITY_POLICY, policy),
        ],
        openapi::page(),
    )
        .into_response())
}
