//! Health reports, and limits that follow them.

use super::{Answer, ok};
use crate::admin::views::{HealthReport, PauseRequest, ResumeRequest};
use crate::http::call::Call;

pub(in crate::http) async fn health(call: Call) -> Answer {
    let report: HealthReport = call.json()?;
    ok(&call.admin.health(report, &call.caller).await?)
}

pub(in crate::http) async fn status(call: Call) -> Answer {
    ok(&call.admin.adaptive().await?)
}

pub(in crate::http) async fn pause(call: Call) -> Answer {
    let request: PauseRequest = call.json()?;
    ok(&call.admin.pause(request, &call.caller).await?)
}

pub(in crate::http) async fn resume(call: Call) -> Answer {
    let request: ResumeRequest = call.json()?;
    ok(&call.admin.resume(request, &call.caller).await?)
}
