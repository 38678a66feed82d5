//! Clients, segments, limits, the whole document.

use serde::Deserialize;

use super::{Also, Answer, ChangeQuery, change, ok, tagged};
use crate::admin::{Edit, LimitPut};
use crate::http::call::{self, Call};
use crate::policy::model::{Client, DEFAULT_LIMIT, Document, Segment};

/// Query of a limit.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NameQuery {
    name: Option<String>,
}

pub(in crate::http) async fn clients(call: Call) -> Answer {
    ok(&call.admin.clients(call.query()?).await?)
}

pub(in crate::http) async fn client(call: Call) -> Answer {
    tagged(&call, &call.admin.client(call.client_id()?).await?)
}

pub(in crate::http) async fn put_client(call: Call) -> Answer {
    let query = ChangeQuery::of(&call, Also::Nothing)?;
    let client: Client = call.json()?;
    let edit = Edit::PutClient(call.client_id()?.to_owned(), client);
    change(&call, edit, &query).await
}

pub(in crate::http) async fn remove_client(call: Call) -> Answer {
    let query = ChangeQuery::of(&call, Also::Nothing)?;
    let edit = Edit::RemoveClient(call.client_id()?.to_owned());
    change(&call, edit, &query).await
}

fn limit_name(name: Option<&str>) -> Result<String, crate::http::problem::Problem> {
    call::name("name", name.unwrap_or(DEFAULT_LIMIT)).map(str::to_owned)
}

pub(in crate::http) async fn limit(call: Call) -> Answer {
    let query: NameQuery = call.query()?;
    let name = limit_name(query.name.as_deref())?;
    tagged(
        &call,
        &call.admin.client_limit(call.client_id()?, &name).await?,
    )
}

pub(in crate::http) async fn put_limit(call: Call) -> Answer {
    let query = ChangeQuery::of(&call, Also::Name)?;
    let limit: LimitPut = call.json()?;
    let edit = Edit::PutLimit {
        client: call.client_id()?.to_owned(),
        name: limit_name(query.name.as_deref())?,
        limit,
    };
    change(&call, edit, &query).await
}

pub(in crate::http) async fn remove_limit(call: Call) -> Answer {
    let query = ChangeQuery::of(&call, Also::Name)?;
    let edit = Edit::RemoveLimit {
        client: call.client_id()?.to_owned(),
        name: limit_name(query.name.as_deref())?,
    };
    change(&call, edit, &query).await
}

pub(in crate::http) async fn segments(call: Call) -> Answer {
    ok(&call.admin.segments(call.query()?).await?)
}

pub(in crate::http) async fn segment(call: Call) -> Answer {
    tagged(&call, &call.admin.segment(call.name("segment")?).await?)
}

pub(in crate::http) async fn put_segment(call: Call) -> Answer {
    let query = ChangeQuery::of(&call, Also::Nothing)?;
    let segment: Segment = call.json()?;
    let edit = Edit::PutSegment(call.name("segment")?.to_owned(), segment);
    change(&call, edit, &query).await
}

pub(in crate::http) async fn remove_segment(call: Call) -> Answer {
    let query = ChangeQuery::of(&call, Also::Nothing)?;
    let edit = Edit::RemoveSegment(call.name("segment")?.to_owned());
    change(&call, edit, &query).await
}

pub(in crate::http) async fn limits(call: Call) -> Answer {
    ok(&call.admin.limits(call.query()?).await?)
}

pub(in crate::http) async fn document(call: Call) -> Answer {
    tagged(&call, &call.admin.document().await?)
}

pub(in crate::http) async fn put_document(call: Call) -> Answer {
    let query = ChangeQuery::of(&call, Also::Nothing)?;
    let document: Document = call.json()?;
    change(&call, Edit::Replace(Box::new(document)), &query).await
}
