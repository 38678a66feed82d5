//! Whom an interface that begins to be judged must not cut off: the default gateways, the servers of
//! the fleet's store, and whoever is logged in. Looks them up; lets nobody in by itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::core::Core;
use crate::config::store_url::{StoreForm, StoreUrl};
use crate::dataplane::DataPlane;

/// How long a name of the store may take to resolve.
const RESOLVE_WITHIN: Duration = Duration::from_secs(2);

/// The addresses to let in for a while, each with its reason. What cannot be found out is logged and
/// left out. `people` are those who attach: the peer of the SSH session, the caller over TCP.
pub(super) async fn to_protect(
    plane: &Arc<dyn DataPlane>,
    store: &StoreUrl,
    people: &[(Option<IpAddr>, &str)],
) -> Vec<(IpAddr, String)> {
    let mut found: Vec<(IpAddr, String)> = people
        .iter()
        .filter_map(|(address, who)| Some(((*address)?, (*who).to_owned())))
        .collect();
    let asked = Arc::clone(plane);
    match tokio::task::spawn_blocking(move || asked.gateways()).await {
        Ok(Ok(gateways)) => {
            found.extend(
                gateways
                    .into_iter()
                    .map(|g| (g, "default gateway".to_owned())),
            );
        }
        Ok(Err(error)) => tracing::warn!(%error, "the default gateway is not let in"),
        Err(_stopping) => {}
    }
    for (host, port) in hosts(store) {
        let resolved = tokio::net::lookup_host((host, port));
        match tokio::time::timeout(RESOLVE_WITHIN, resolved).await {
            Ok(Ok(addresses)) => {
                let why = format!("store of the fleet, `{host}`");
                found.extend(addresses.map(|at| (at.ip(), why.clone())));
            }
            Ok(Err(error)) => tracing::warn!(host, %error, "the store's server is not let in"),
            Err(_elapsed) => tracing::warn!(host, "the store's server is not let in: no answer"),
        }
    }
    found
}

/// Lets them in at the start, before any interface is attached. An agent that cannot starts all the
/// same, and says so.
pub(super) async fn let_in(
    mut core: Core,
    plane: &Arc<dyn DataPlane>,
    store: &StoreUrl,
    ssh_peer: Option<IpAddr>,
) -> anyhow::Result<Core> {
    let people = [(ssh_peer, "SSH peer of whoever started the agent")];
    let whom = to_protect(plane, store, &people).await;
    tokio::task::spawn_blocking(move || {
        if let Err(error) = core.protect(&whom) {
            tracing::error!(%error, "gateways and whoever is logged in are not let in");
        }
        core
    })
    .await
    .context("letting in whoever is logged in")
}

/// Hosts that `redis.url` names.
fn hosts(store: &StoreUrl) -> Vec<(&str, u16)> {
    match store.target().map(|target| &target.form) {
        None | Some(StoreForm::Socket(_)) => Vec::new(),
        Some(StoreForm::Server(host, port)) => vec![(host, *port)],
        Some(StoreForm::Sentinel(hosts, _) | StoreForm::Cluster(hosts)) => hosts
            .iter()
            .map(|(host, port)| (host.as_str(), *port))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::FakeDataPlane;

    #[tokio::test]
    async fn finds_gateways_stores_and_people() {
        let fake = FakeDataPlane::default();
        fake.state().gateways = vec!["192.0.2.1".parse().unwrap()];
        let plane: Arc<dyn DataPlane> = Arc::new(fake);
        let store: StoreUrl = "redis+cluster://198.51.100.1,198.51.100.2:7000"
            .parse()
            .unwrap();
        let people = [
            (Some("203.0.113.9".parse().unwrap()), "SSH peer"),
            (None, "caller"),
        ];
        let found = to_protect(&plane, &store, &people).await;
        let found: Vec<String> = found
            .iter()
            .map(|(at, why)| format!("{at} {why}"))
            .collect();
        assert_eq!(
            found,
            [
                "203.0.113.9 SSH peer",
                "192.0.2.1 default gateway",
                "198.51.100.1 store of the fleet, `198.51.100.1`",
                "198.51.100.2 store of the fleet, `198.51.100.2`",
            ]
        );
    }
}
