//! The seam to other hosts: what this one says of a backend, and what it hears.
//!
//! Without a shared store a host is [`Alone`]. Nothing here waits: what is said goes out in the
//! background, and what comes back is there when it is asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Command, Handle};
use crate::redis::RedisStore;
use crate::redis::adaptive::{Heard, Said};

/// The other hosts.
pub(in crate::agent) trait Fleet: Send {
    /// This host's number among them; `None` if there are no others.
    fn host(&self) -> Option<u64>;

    /// Whether what was said last of a backend has been answered, or lost.
    fn is_free(&self, backend: &str) -> bool;

    /// Says something; only while it is free.
    fn say(&mut self, said: Said);

    /// What came back of what was said last of a backend; `None` if nothing did, or it was lost.
    fn hear(&mut self, backend: &str) -> Option<Heard>;
}

/// There are no others.
pub(in crate::agent) struct Alone;

impl Fleet for Alone {
    fn host(&self) -> Option<u64> {
        None
    }

    fn is_free(&self, _backend: &str) -> bool {
        false
    }

    fn say(&mut self, _said: Said) {}

    fn hear(&mut self, _backend: &str) -> Option<Heard> {
        None
    }
}

/// What becomes of what was said of one backend.
enum Post {
    Sent,
    Answered(Heard),
    Lost,
}

/// Hosts that share a Redis.
pub(in crate::agent) struct Shared {
    store: RedisStore,
    host: u64,
    /// Told of each answer, so that it is acted upon at once.
    handle: Weak<Handle>,
    posts: Arc<Mutex<BTreeMap<String, Post>>>,
}

impl Shared {
    pub(in crate::agent) fn new(store: RedisStore, host: u64, handle: &Arc<Handle>) -> Self {
        Self {
            store,
            host,
            handle: Arc::downgrade(handle),
            posts: Arc::default(),
        }
    }

    fn posts(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Post>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fleet for Shared {
    fn host(&self) -> Option<u64> {
        Some(self.host)
    }

    fn is_free(&self, backend: &str) -> bool {
        // What was answered is heard before more is said.
        !matches!(
            self.posts().get(backend),
            Some(Post::Sent | Post::Answered(_))
        )
    }

    fn say(&mut self, said: Said) {
        let backend = said.backend.clone();
        self.posts().insert(backend.clone(), Post::Sent);
        let (store, posts) = (self.store.clone(), Arc::clone(&self.posts));
        let handle = Weak::clone(&self.handle);
        self.store.runtime().spawn(async move {
            let post = match store.adapt(&said).await {
                Ok(heard) => Post::Answered(heard),
                Err(error) => {
                    tracing::debug!(%error, backend = %said.backend, "the fleet does not answer");
                    Post::Lost
                }
            };
            let answered = matches!(post, Post::Answered(_));
            posts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(backend.clone(), post);
            // Where the queue is full, the next tick looks.
            if answered && let Some(handle) = handle.upgrade() {
                let _full = handle.send(Command::Heard(backend)).is_err();
            }
        });
    }

    fn hear(&mut self, backend: &str) -> Option<Heard> {
        let mut posts = self.posts();
        if !matches!(posts.get(backend), Some(Post::Answered(_))) {
            return None;
        }
        match posts.insert(backend.to_owned(), Post::Lost) {
            Some(Post::Answered(heard)) => Some(heard),
            _ => None,
        }
    }
}
