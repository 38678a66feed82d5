//! The store that the hosts of a fleet share, as the settings describe it.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::config::Secret;
use crate::config::settings::Redis;
use crate::redis::{Access, Options, RedisStore};
use crate::store::Store;

/// Name under which this host's number is kept.
const HOST: &str = "fleet-host";

/// Name under which it is kept how many hosts there were.
const HOSTS: &str = "fleet-hosts";

/// Shortest secret: what cannot be tried out.
const KEY_SECRET_BYTES: usize = 16;

/// The store, and the secret of its keys.
pub(super) struct SharedStore {
    pub(super) store: RedisStore,
    /// What keys are hashed under, in both planes.
    pub(super) key: [u8; 16],
}

/// Opens the store, if one is configured. Does not wait for it: it may be away.
pub(super) fn open(settings: &Redis) -> anyhow::Result<Option<SharedStore>> {
    let Some(target) = settings.url.target() else {
        return Ok(None);
    };
    let certificate = match (settings.cert_file.as_str(), settings.key_file.as_str()) {
        ("", _) | (_, "") => None,
        (certificate, key) => Some((bytes(certificate)?, bytes(key)?)),
    };
    let access = Access {
        target: target.clone(),
        username: settings.username.clone(),
        password: first_line(&settings.password_file)?.map(Secret::new),
        authorities: optional_bytes(&settings.ca_file)?,
        certificate,
    };
    let key = key(&key_secret(&settings.key_secret_file)?);
    let store = RedisStore::open(Options {
        access,
        prefix: settings.prefix.clone(),
        deadline: Duration::from_millis(settings.deadline_ms),
        secret: key,
    })
    .map_err(anyhow::Error::msg)?;
    Ok(Some(SharedStore { store, key }))
}

/// The secret that keys are hashed under; none for no file.
fn key_secret(path: &str) -> anyhow::Result<String> {
    match first_line(path)? {
        None => Ok(String::new()),
        Some(secret) if secret.len() >= KEY_SECRET_BYTES => Ok(secret),
        Some(secret) => bail!(
            "the secret in `{path}` (redis.key_secret_file) has {} bytes; it must have {KEY_SECRET_BYTES} or more",
            secret.len()
        ),
    }
}

/// A secret of any length as a key.
fn key(secret: &str) -> [u8; 16] {
    let mut hash = SipHasher24::new_with_keys(0x7261_7465, 0x6c69_6d69);
    hash.write(secret.as_bytes());
    hash.finish128().as_bytes()
}

/// This host's number in the registry: drawn once, and kept.
pub(super) fn host_number(store: &dyn Store) -> anyhow::Result<u64> {
    if let Some(bytes) = store
        .load_usage(HOST)
        .context("reading this host's number")?
        && let Ok(bytes) = <[u8; 8]>::try_from(bytes.as_slice())
    {
        return Ok(u64::from_le_bytes(bytes));
    }
    // 53 bits, so that scripts can count with it.
    let random = std::collections::hash_map::RandomState::new();
    let number = (random.build_hasher().finish() >> 11).max(1);
    store
        .save_usage(HOST, &number.to_le_bytes())
        .context("keeping this host's number")?;
    Ok(number)
}

/// How many hosts the fleet had when this one knew last; 1 if it never did.
pub(super) fn known_hosts(store: &dyn Store) -> u32 {
    let kept = store.load_usage(HOSTS).ok().flatten();
    let bytes = kept.and_then(|bytes| <[u8; 4]>::try_from(bytes.as_slice()).ok());
    bytes.map_or(1, u32::from_le_bytes).max(1)
}

/// Keeps how many hosts there are.
pub(super) fn keep_known_hosts(
    store: &dyn Store,
    known: u32,
) -> Result<(), crate::store::StoreError> {
    store.save_usage(HOSTS, &known.to_le_bytes())
}

fn bytes(path: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading `{path}`"))
}

fn optional_bytes(path: &str) -> anyhow::Result<Option<Vec<u8>>> {
    if path.is_empty() {
        return Ok(None);
    }
    bytes(path).map(Some)
}

/// The first line of a file that holds a secret; `None` for no file.
fn first_line(path: &str) -> anyhow::Result<Option<String>> {
    if path.is_empty() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading `{path}`"))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Some(line.to_owned())),
        _ => bail!("the first line of `{path}` is empty"),
    }
}

#[cfg(test)]
mod tests {
    use ratelimiter_common::quota::Unit;

    use super::*;
    use crate::store::MemoryStore;
    use crate::sync::{KeyHasher, Plane};

    #[test]
    fn a_host_keeps_its_number_and_others_have_another() {
        let (here, there) = (MemoryStore::default(), MemoryStore::default());
        let number = host_number(&here).unwrap();
        assert_eq!(host_number(&here).unwrap(), number);
        assert_ne!(host_number(&there).unwrap(), number);
        assert!(number > 0 && number < 1 << 53);
    }

    #[test]
    fn a_host_remembers_how_many_there_were() {
        let store = MemoryStore::default();
        assert_eq!(known_hosts(&store), 1);
        keep_known_hosts(&store, 7).unwrap();
        assert_eq!(known_hosts(&store), 7);
    }

    #[test]
    fn a_short_secret_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        std::fs::write(path, "fifteen bytes..\n").unwrap();
        let error = key_secret(path).unwrap_err().to_string();
        assert!(
            error.contains("has 15 bytes; it must have 16 or more"),
            "{error}"
        );
        std::fs::write(path, "sixteen bytes...\n").unwrap();
        assert_eq!(key_secret(path).unwrap(), "sixteen bytes...");
        assert_eq!(key_secret("").unwrap(), "");
    }

    #[test]
    fn keys_depend_on_the_secret() {
        let named =
            |secret| KeyHasher::new(&key(secret)).key(Plane::Packets, "a", Unit::Packets, b"b");
        assert_eq!(named("one"), named("one"));
        assert_ne!(named("one"), named("two"));
    }
}
