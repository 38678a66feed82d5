//! The agent itself: status, interfaces, reload, the fleet.

use super::{Answer, ok};
use crate::admin::views::{AttachRequest, Detached};
use crate::http::call::Call;

pub(in crate::http) async fn status(call: Call) -> Answer {
    ok(&call.admin.status().await?)
}

pub(in crate::http) async fn reload(call: Call) -> Answer {
    ok(&call.admin.reload(&call.caller).await?)
}

pub(in crate::http) async fn interfaces(call: Call) -> Answer {
    ok(&call.admin.interfaces().await?)
}

pub(in crate::http) async fn attach(call: Call) -> Answer {
    let request: AttachRequest = call.json()?;
    let interface = call.name("interface")?;
    ok(&call.admin.attach(interface, request, &call.caller).await?)
}

pub(in crate::http) async fn detach(call: Call) -> Answer {
    let interface = call.name("interface")?;
    let detached = call.admin.detach(interface, &call.caller).await?;
    ok(&Detached { detached })
}

pub(in crate::http) async fn sync(call: Call) -> Answer {
    ok(&call.admin.sync().await?)
}

pub(in crate::http) async fn resync(call: Call) -> Answer {
    ok(&call.admin.resync(&call.caller).await?)
}
