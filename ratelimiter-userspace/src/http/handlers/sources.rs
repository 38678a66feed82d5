//! Sources: top talkers, explain, reset.

use std::net::IpAddr;

use serde::Deserialize;

use super::{Answer, ok};
use crate::http::call::{self, Call};
use crate::http::problem::{Problem, shortened};

/// Query of explain.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExplainQuery {
    ip: Option<String>,
    client_id: Option<String>,
}

fn address(text: &str) -> Result<IpAddr, Problem> {
    text.parse().map_err(|_| {
        Problem::bad_parameter("ip", format!("`{}` is not an IP address", shortened(text)))
    })
}

pub(in crate::http) async fn list(call: Call) -> Answer {
    ok(&call.admin.sources(call.query()?).await?)
}

pub(in crate::http) async fn one(call: Call) -> Answer {
    let address = address(call.param("ip"))?;
    ok(&call.admin.explain_source(address).await?)
}

pub(in crate::http) async fn reset(call: Call) -> Answer {
    let address = address(call.param("ip"))?;
    ok(&call.admin.reset_source(address, &call.caller).await?)
}

pub(in crate::http) async fn reset_client(call: Call) -> Answer {
    ok(&call
        .admin
        .reset_client(call.client_id()?, &call.caller)
        .await?)
}

pub(in crate::http) async fn explain(call: Call) -> Answer {
    let query: ExplainQuery = call.query()?;
    match (query.ip, query.client_id) {
        (Some(ip), None) => ok(&call.admin.explain_source(address(&ip)?).await?),
        (None, Some(id)) => ok(&call.admin.explain_client(call::client_id(&id)?).await?),
        _ => Err(Problem::bad_parameter(
            "query",
            "exactly one of `ip` and `client_id` is needed",
        )),
    }
}
