//! What the controllers remember over a restart of the agent: their state, if it is younger than
//! ten minutes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::backend::State;
use crate::store::Store;

/// Name of the blob.
const NAME: &str = "adaptive";
/// Older states are forgotten: a capacity proven longer ago says little.
const OLDEST_S: f64 = 600.0;

/// States as they are saved.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// When, milliseconds since the Unix epoch.
    at_unix_ms: u64,
    /// The same on the controllers' clock, in seconds.
    now_s: f64,
    states: BTreeMap<String, State>,
}

/// Saves states.
///
/// # Errors
///
/// What the store says.
pub(super) fn save(
    store: &dyn Store,
    states: BTreeMap<String, State>,
    now_s: f64,
    at_unix_ms: u64,
) -> Result<(), String> {
    let saved = Saved {
        at_unix_ms,
        now_s,
        states,
    };
    let bytes = serde_json::to_vec(&saved).map_err(|error| error.to_string())?;
    store
        .save_usage(NAME, &bytes)
        .map_err(|error| error.to_string())
}

/// Loads states and the time it is now on their clock; nothing where there is none that is young
/// enough.
pub(super) fn load(store: &dyn Store, unix_ms: u64) -> Option<(f64, BTreeMap<String, State>)> {
    let bytes = store.load_usage(NAME).ok()??;
    let saved: Saved = match serde_json::from_slice(&bytes) {
        Ok(saved) => saved,
        Err(error) => {
            tracing::warn!(%error, "what the controllers had learnt is not understood: cold start");
            return None;
        }
    };
    let age_s = unix_ms.checked_sub(saved.at_unix_ms)? as f64 / 1e3;
    (age_s <= OLDEST_S).then_some((saved.now_s + age_s, saved.states))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::settings::Settings;
    use crate::store::MemoryStore;

    #[test]
    fn what_was_learnt_is_remembered_for_ten_minutes() {
        let store = MemoryStore::new();
        assert!(load(&store, 1_000_000).is_none());
        let states = || BTreeMap::from([("api".to_owned(), State::new(&Settings::default(), 7.0))]);
        save(&store, states(), 50.0, 1_000_000).unwrap();
        let (now_s, found) = load(&store, 1_090_000).unwrap();
        assert!((now_s - 140.0).abs() < 1e-9);
        assert_eq!(found, states());
        assert!(load(&store, 1_600_001).is_none(), "too old");
        assert!(load(&store, 999_999).is_none(), "from the future");
        store.save_usage(NAME, b"{").unwrap();
        assert!(load(&store, 1_000_001).is_none());
    }
}
