//! The connections that are open: how many, whose, and which has been idle longest.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

use super::server::Limits;
use crate::clock;

/// Counters of a listener's connections.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections refused or closed because there were too many, or the process had no more
    /// descriptors.
    pub refused: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
}

/// Every open connection of a listener.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: HashMap<u64, Entry>,
    /// Connections by counted address.
    peers: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Entry {
    peer: Option<IpAddr>,
    state: Arc<State>,
    task: Option<AbortHandle>,
}

/// What a connection does; written by itself alone, without a lock.
#[derive(Debug)]
struct State {
    busy: AtomicBool,
    since_ns: AtomicU64,
}

impl Open {
    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.all.remove(&id)?;
        if let Some(address) = entry.peer
            && let Some(count) = self.peers.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&address);
            }
        }
        Some(entry)
    }

    /// Closes the connection that has been idle longest, of `peer` alone if it is given. Returns
    /// whether there was one.
    fn evict_idlest(&mut self, peer: Option<IpAddr>) -> bool {
        let idlest = self
            .all
            .iter()
            .filter(|(_, entry)| !entry.state.busy.load(Ordering::Relaxed) && entry.task.is_some())
            .filter(|(_, entry)| peer.is_none() || entry.peer == peer)
            .min_by_key(|(_, entry)| entry.state.since_ns.load(Ordering::Relaxed))
            .map(|(id, _)| *id);
        let Some(found) = idlest.and_then(|id| self.remove(id)) else {
            return false;
        };
        if let Some(task) = found.task {
            task.abort();
        }
        true
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection that has been idle longest.
    pub(super) fn evict_idlest(&self) {
        self.lock().evict_idlest(None);
    }

    /// A place for a connection of `address`, after closing an idle one if need be; `None` if there
    /// is no room. Loopback has no address here and is bounded by all connections alone.
    pub(super) fn admit(
        self: &Arc<Self>,
        address: Option<IpAddr>,
        limits: Limits,
        stats: &Arc<ConnectionStats>,
    ) -> Option<Ticket> {
        let peer = address
            .map(|address| address.to_canonical())
            .filter(|address| !address.is_loopback());
        let mut open = self.lock();
        if let Some(peer) = peer {
            let theirs = open.peers.get(&peer).copied().unwrap_or(0);
            if theirs >= limits.connections_per_peer && !open.evict_idlest(Some(peer)) {
                return None;
            }
        }
        if open.all.len() >= limits.connections && !open.evict_idlest(None) {
            return None;
        }
        let id = open.next;
        open.next += 1;
        let state = Arc::new(State {
            busy: AtomicBool::new(false),
            since_ns: AtomicU64::new(clock::fast_ns()),
        });
        if let Some(peer) = peer {
            *open.peers.entry(peer).or_default() += 1;
        }
        let entry = Entry {
            peer,
            state: Arc::clone(&state),
            task: None,
        };
        open.all.insert(id, entry);
        stats.open.fetch_add(1, Ordering::Relaxed);
        Some(Ticket {
            id,
            state,
            connections: Arc::clone(self),
            stats: Arc::clone(stats),
        })
    }

    /// Says which task serves a connection.
    pub(super) fn started(&self, id: u64, task: AbortHandle) {
        if let Some(entry) = self.lock().all.get_mut(&id) {
            entry.task = Some(task);
        }
    }
}

/// A place among the open connections, given back when dropped.
pub(super) struct Ticket {
    pub(super) id: u64,
    state: Arc<State>,
    connections: Arc<Connections>,
    stats: Arc<ConnectionStats>,
}

impl Ticket {
    /// Says whether a request is under way.
    pub(super) fn busy(&self, busy: bool) {
        self.state.busy.store(busy, Ordering::Relaxed);
        if !busy {
            self.state
                .since_ns
                .store(clock::fast_ns(), Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.connections.lock().remove(self.id);
        self.stats.open.fetch_sub(1, Ordering::Relaxed);
    }
}
