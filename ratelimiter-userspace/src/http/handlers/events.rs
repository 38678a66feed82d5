//! What happened lately, as a page or as it comes; and in the same stream, for who watches, how
//! everything is each second.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::probe::readiness_of;
use super::{Answer, ok};
use crate::admin::Admin;
use crate::admin::views::{CallerView, Event, EventKind, PageQuery, Snapshot};
use crate::clock;
use crate::http::call::Call;
use crate::http::problem::Problem;

/// A comment is sent this often, so that a dead peer is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a watcher is told how everything is.
const SNAPSHOTS: Duration = Duration::from_secs(1);
/// Sources in a snapshot.
const SOURCES: usize = 20;

/// Query of events.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EventsQuery {
    limit: Option<usize>,
    after: Option<String>,
    q: Option<String>,
    snapshots: bool,
}

pub(in crate::http) async fn events(call: Call) -> Answer {
    let wants_stream = call
        .headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/event-stream"));
    let query: EventsQuery = call.query()?;
    if wants_stream {
        return stream(call, query);
    }
    if query.snapshots {
        return Err(Problem::bad_parameter(
            "snapshots",
            "`snapshots` is for a stream: send `Accept: text/event-stream`",
        ));
    }
    let page = PageQuery {
        limit: query.limit,
        after: query.after,
        q: query.q,
    };
    ok(&call.admin.events(page).await?)
}

/// How long a stream lasts: 10 minutes. Whoever goes on asks again, with a credential that is still
/// good.
const LONGEST: Duration = Duration::from_mins(10);

/// What a stream goes on from.
struct Watch {
    admin: Arc<dyn Admin>,
    begin: std::time::Instant,
    /// Number of the newest event sent.
    last: u64,
    ticks: Interval,
    snapshots: bool,
    /// Sent before everything else.
    greeting: String,
}

/// Events as they come, from `after` or `Last-Event-ID` on.
fn stream(call: Call, query: EventsQuery) -> Answer {
    let last = call
        .headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
        .or(query.after)
        .and_then(|id| id.parse::<u64>().ok())
        .unwrap_or(0);
    let (period, greeting) = if query.snapshots {
        let caller = CallerView {
            name: call.caller.name,
            rights: call.caller.rights,
        };
        (SNAPSHOTS, message("caller", None, &caller)?)
    } else {
        (KEEP_ALIVE, String::new())
    };
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if !query.snapshots {
        // The first tick is now: nobody needs to hear that we are still here.
        ticks.reset();
    }
    let watch = Watch {
        admin: call.admin,
        begin: clock::instant(),
        last,
        ticks,
        snapshots: query.snapshots,
        greeting,
    };
    let texts = stream::unfold(watch, |mut watch| async move {
        let text = watch.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), watch))
    });
    let body = Body::from_stream(texts);
    Ok::<Response, Problem>(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

impl Watch {
    /// What to send next; `None` is the end.
    async fn next(&mut self) -> Option<String> {
        if !self.greeting.is_empty() {
            return Some(std::mem::take(&mut self.greeting));
        }
        if self.admin.stopping() || self.begin.elapsed() >= LONGEST {
            return None;
        }
        let ticked = tokio::select! {
            () = self.admin.event_after(self.last) => false,
            _ = self.ticks.tick() => true,
        };
        let newer = PageQuery {
            after: Some(self.last.to_string()),
            ..PageQuery::default()
        };
        let mut text = String::new();
        let mut dropped = false;
        for event in self.admin.events(newer).await.ok()?.items {
            self.last = event.id;
            dropped |= event.kind == EventKind::Drop;
            text.push_str(&of_event(&event).ok()?);
        }
        if self.snapshots && (ticked || dropped) {
            let snapshot = snapshot(self.admin.as_ref()).await.ok()?;
            text.push_str(&message("snapshot", None, &snapshot).ok()?);
        } else if text.is_empty() {
            text.push_str(": still here\n\n");
        }
        Some(text)
    }
}

async fn snapshot(admin: &dyn Admin) -> crate::admin::Result<Snapshot> {
    let top = PageQuery {
        limit: Some(SOURCES),
        ..PageQuery::default()
    };
    let sources = admin.sources(top).await?;
    Ok(Snapshot {
        at_unix_ms: clock::unix_ms(),
        readiness: readiness_of(admin),
        status: admin.status().await?,
        checks: admin.checks().await?,
        adaptive: admin.adaptive().await?,
        sources: sources.items,
        sources_total: sources.total,
    })
}

fn of_event(event: &Event) -> Result<String, Problem> {
    message(event.kind.as_str(), Some(event.id), event)
}

/// One server-sent event. One line of JSON: newlines inside strings are escaped.
fn message(kind: &str, id: Option<u64>, data: &impl Serialize) -> Result<String, Problem> {
    let json = serde_json::to_string(data)
        .map_err(|error| Problem::internal(format!("the event has no JSON form: {error}")))?;
    let mut text = String::with_capacity(json.len() + 64);
    if let Some(id) = id {
        // A string takes whatever is written to it.
        let _written = writeln!(text, "id: {id}").is_ok();
    }
    let _written = write!(text, "event: {kind}\ndata: {json}\n\n").is_ok();
    Ok(text)
}
