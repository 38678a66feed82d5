//! The agent itself: status, interfaces, reload, events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::{Answer, ok};
use crate::admin::views::{AttachRequest, Detached, PageQuery};
use crate::http::call::Call;

/// A comment is sent this often, so that a dead peer is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

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

pub(in crate::http) async fn events(call: Call) -> Answer {
    let wants_stream = call
        .headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/event-stream"));
    let query: PageQuery = call.query()?;
    if wants_stream {
        return Ok(event_stream(call, query));
    }
    ok(&call.admin.events(query).await?)
}

/// Events as they come, from `after` or `Last-Event-ID` on.
fn event_stream(call: Call, query: PageQuery) -> Response {
    let last = call
        .headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
        .or(query.after)
        .and_then(|id| id.parse::<u64>().ok())
        .unwrap_or(0);
    let events = stream::unfold((call.admin, last), |(admin, last)| async move {
        let waited = tokio::time::timeout(KEEP_ALIVE, admin.event_after(last)).await;
        if waited.is_err() {
            return Some((Bytes::from_static(b": still here\n\n"), (admin, last)));
        }
        let newer = PageQuery {
            after: Some(last.to_string()),
            ..PageQuery::default()
        };
        let page = admin.events(newer).await.ok()?;
        let mut text = String::new();
        let mut newest = last;
        for event in &page.items {
            newest = event.id;
            // One line of JSON: newlines inside strings are escaped.
            let json = serde_json::to_string(event).ok()?;
            text.push_str(&format!(
                "id: {}\nevent: {}\ndata: {json}\n\n",
                event.id,
                event.kind.as_str()
            ));
        }
        Some((Bytes::from(text), (admin, newest)))
    });
    let body = Body::from_stream(futures_util::StreamExt::map(events, Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

pub(in crate::http) async fn sync(call: Call) -> Answer {
    ok(&call.admin.sync().await?)
}

pub(in crate::http) async fn resync(call: Call) -> Answer {
    ok(&call.admin.resync(&call.caller).await?)
}
