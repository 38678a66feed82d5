//! The audit log, and changes on trial.

use serde::Deserialize;

use super::{Answer, ok};
use crate::http::call::Call;

/// Query of confirm and rollback.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RevisionQuery {
    revision: Option<u64>,
}

pub(in crate::http) async fn list(call: Call) -> Answer {
    ok(&call.admin.changes(call.query()?).await?)
}

pub(in crate::http) async fn confirm(call: Call) -> Answer {
    let query: RevisionQuery = call.query()?;
    ok(&call.admin.confirm(query.revision, &call.caller).await?)
}

pub(in crate::http) async fn rollback(call: Call) -> Answer {
    let query: RevisionQuery = call.query()?;
    ok(&call.admin.rollback(query.revision, &call.caller).await?)
}
