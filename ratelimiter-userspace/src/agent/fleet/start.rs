//! Starts the thread that settles; and undoes what it left where there is none any more.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use ratelimiter_common::abi::counters::Sample;

use super::{Worker, unscale};
use crate::agent::shared_store::SharedStore;
use crate::agent::state::Shared;
use crate::dataplane::DataPlane;
use crate::store::Store;
use crate::sync::KeyHasher;

impl Worker {
    /// For the host numbered `host`, once an `interval`.
    pub(in crate::agent) fn new(
        (plane, shared, keeps): (&Arc<dyn DataPlane>, &Arc<Shared>, &Arc<dyn Store>),
        store: &SharedStore,
        samples: Receiver<Vec<Sample>>,
        (host, interval): (u64, Duration),
    ) -> Self {
        Self {
            plane: Arc::clone(plane),
            shared: Arc::clone(shared),
            store: Arc::new(store.store.clone()),
            runtime: store.store.runtime(),
            hasher: KeyHasher::new(&store.key),
            samples,
            host,
            interval,
            keeps: Arc::clone(keeps),
        }
    }

    /// Starts the thread; it ends when the other end of `stopped` is dropped.
    pub(in crate::agent) fn start(self, stopped: Receiver<()>) -> anyhow::Result<JoinHandle<()>> {
        std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || self.run(&stopped))
            .context("starting the thread that settles with the fleet")
    }
}

/// Undoes what an earlier agent of a fleet left: sources it slowed down would stay slow.
pub(in crate::agent) async fn undo_parts(plane: &Arc<dyn DataPlane>) {
    let plane = Arc::clone(plane);
    let undone = tokio::task::spawn_blocking(move || unscale(plane.as_ref())).await;
    if let Ok(Err(error)) = undone {
        tracing::warn!(%error, "sources that a fleet's agent slowed down may still be slow");
    }
}
