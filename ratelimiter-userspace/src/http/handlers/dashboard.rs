//! The dashboard: a page and its files, all of them in this binary. The page may load nothing from
//! elsewhere, run nothing but its own files, and make nothing of text but text.

use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};

use super::Answer;
use crate::admin::AdminError;
use crate::dashboard::{self, File};
use crate::http::call::Call;
use crate::http::problem::{Problem, shortened};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

pub(in crate::http) async fn page(_: Call) -> Answer {
    Ok(answer(&dashboard::PAGE))
}

pub(in crate::http) async fn file(call: Call) -> Answer {
    let name = call.param("file");
    dashboard::file(name).map(answer).ok_or_else(|| {
        Problem::from(AdminError::NotFound {
            what: "file of the dashboard",
            name: shortened(name),
        })
    })
}

fn answer(file: &File) -> Response {
    (
        [
            (header::CONTENT_TYPE, file.kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
            (
                HeaderName::from_static("cross-origin-opener-policy"),
                "same-origin",
            ),
        ],
        file.text,
    )
        .into_response()
}
