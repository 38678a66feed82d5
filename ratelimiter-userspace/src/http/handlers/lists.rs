//! The allow and block lists.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Also, Answer, ChangeQuery, change, ok};
use crate::admin::{Edit, ListName, ListPut};
use crate::http::call::Call;
use crate::http::problem::{Problem, shortened};
use crate::policy::model::ListEntry;

/// Longest reason, in characters.
const MAX_REASON: usize = 200;

pub(in crate::http) async fn allowed(call: Call) -> Answer {
    ok(&call.admin.list(ListName::Allow, call.query()?).await?)
}

pub(in crate::http) async fn blocked(call: Call) -> Answer {
    ok(&call.admin.list(ListName::Block, call.query()?).await?)
}

pub(in crate::http) async fn allow(call: Call) -> Answer {
    put(call, ListName::Allow).await
}

pub(in crate::http) async fn block(call: Call) -> Answer {
    put(call, ListName::Block).await
}

pub(in crate::http) async fn disallow(call: Call) -> Answer {
    remove(call, ListName::Allow).await
}

pub(in crate::http) async fn unblock(call: Call) -> Answer {
    remove(call, ListName::Block).await
}

async fn put(call: Call, list: ListName) -> Answer {
    let query = ChangeQuery::of(&call, Also::Nothing)?;
    let body: ListPut = call.json()?;
    let invalid = |pointer: &str, detail: String| {
        Problem::from(crate::admin::AdminError::invalid(pointer, detail))
    };
    let prefix = prefix(&body.cidr).map_err(|detail| invalid("/cidr", detail))?;
    let reason_chars = body.reason.as_ref().map_or(0, |r| r.chars().count());
    if reason_chars > MAX_REASON {
        return Err(invalid(
            "/reason",
            format!("`reason` has {reason_chars} characters; it must have at most {MAX_REASON}"),
        ));
    }
    let entry = ListEntry {
        reason: body.reason,
        by: Some(call.caller.name.clone()),
        expires_unix_ms: body
            .ttl
            .map(|ttl| crate::clock::unix_ms().saturating_add(ttl.as_ns() / 1_000_000)),
    };
    change(&call, Edit::PutList(list, prefix, entry), &query).await
}

async fn remove(call: Call, list: ListName) -> Answer {
    let query = ChangeQuery::of(&call, Also::Cidr)?;
    let cidr = query
        .cidr
        .as_deref()
        .ok_or_else(|| Problem::bad_parameter("cidr", "`cidr` is missing: which entry?"))?;
    let prefix = prefix(cidr).map_err(|detail| Problem::bad_parameter("cidr", detail))?;
    change(&call, Edit::RemoveList(list, prefix), &query).await
}

/// Reads an address or a prefix without host bits.
fn prefix(text: &str) -> Result<IpNet, String> {
    let shown = shortened(text);
    let prefix = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| {
            format!("`{shown}` is not an address or a prefix such as 192.0.2.0/24 or 2001:db8::/32")
        })?;
    if prefix.addr() != prefix.network() {
        return Err(format!(
            "`{shown}` has host bits; the prefix is `{}`",
            prefix.trunc()
        ));
    }
    Ok(prefix)
}
