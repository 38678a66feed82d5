//! Whom the agent lets in for a while so that nobody locks themselves out: entries of the allow list
//! that are this host's own, beside the stored ones and under those of the file.
//!
//! They are kept in no document, so that a rollback, another host of the fleet or an export never
//! meets them; they end by themselves, in the kernel too.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::errors::store_error;
use super::{Core, PROTECTED};
use crate::admin::views::{Changed, Difference, EventKind};
use crate::admin::{AdminError, Edit, ListName, PROTECTOR, Result};
use crate::clock;
use crate::policy::model::{Document, ListEntry};
use crate::policy::prefixes::unmapped;
use crate::store::Store;

/// Most addresses let in at once.
const MOST: usize = 64;

/// Addresses let in for a while.
pub(super) type Protected = BTreeMap<IpNet, ListEntry>;

/// What an earlier agent let in and still has time.
pub(super) fn kept(store: &dyn Store) -> Result<Protected> {
    let mut kept: Protected = store
        .load_usage(PROTECTED)
        .map_err(store_error)?
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let now_unix_ms = clock::unix_ms();
    kept.retain(|_, entry| lasts(entry, now_unix_ms));
    Ok(kept)
}

/// Adds what is let in for a while; what people listed wins.
pub(super) fn shelter(document: &mut Document, protected: &Protected) {
    for (prefix, entry) in protected {
        document
            .allow
            .entry(*prefix)
            .or_insert_with(|| entry.clone());
    }
}

fn lasts(entry: &ListEntry, now_unix_ms: u64) -> bool {
    entry.expires_unix_ms.is_none_or(|end| end > now_unix_ms)
}

/// What makes one source of an address; none of addresses that no protected interface hears.
fn prefix_of(address: IpAddr, v6_prefix_len: u8) -> Option<IpNet> {
    let address = unmapped(address);
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return None;
    }
    let len = match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(six) if six.is_unicast_link_local() => 128,
        IpAddr::V6(_) => v6_prefix_len,
    };
    Some(IpNet::new(address, len).ok()?.trunc())
}

impl Core {
    /// Allow-lists each address for `safety.protect_for_s`, with the reason given; the time begins
    /// anew for those that are let in already. Returns the prefixes.
    pub(in crate::agent) fn protect(&mut self, whom: &[(IpAddr, String)]) -> Result<Vec<IpNet>> {
        if self.protect_for.is_zero() {
            return Ok(Vec::new());
        }
        let end = clock::unix_ms().saturating_add(self.protect_for.as_millis() as u64);
        let before = self.protected.clone();
        let mut prefixes = Vec::new();
        for (address, why) in whom {
            let Some(prefix) = prefix_of(*address, self.inputs.geometry.v6_prefix_len) else {
                continue;
            };
            if self.protected.len() >= MOST && !self.protected.contains_key(&prefix) {
                tracing::warn!(%address, "not let in: {MOST} addresses are already");
                continue;
            }
            let entry = ListEntry {
                reason: Some(why.clone()),
                by: Some(PROTECTOR.to_owned()),
                expires_unix_ms: Some(end),
            };
            self.protected.insert(prefix, entry);
            prefixes.push(prefix);
        }
        if prefixes.is_empty() {
            return Ok(prefixes);
        }
        self.protect_as(before)?;
        for prefix in &prefixes {
            let why = self.protected.get(prefix).and_then(|e| e.reason.as_deref());
            let text = format!(
                "{PROTECTOR}: allow `{prefix}` for {} s: {}",
                self.protect_for.as_secs(),
                why.unwrap_or_default()
            );
            tracing::info!("{text}");
            self.shared.events.push(EventKind::Change, text);
        }
        Ok(prefixes)
    }

    /// Puts in force whom to let in; after an error it is whom it was `before`.
    fn protect_as(&mut self, before: Protected) -> Result<()> {
        let (fixed, mode) = ((*self.fixed).clone(), self.inputs.mode);
        let done = self
            .save_protected()
            .and_then(|()| self.reload(fixed, mode).map(drop));
        if done.is_err() {
            self.protected = before;
            self.save_protected()?;
        }
        done
    }

    fn save_protected(&self) -> Result<()> {
        let bytes = serde_json::to_vec(&self.protected).map_err(|error| {
            AdminError::Unavailable(format!("whom to let in has no JSON form: {error}"))
        })?;
        self.store
            .save_usage(PROTECTED, &bytes)
            .map_err(store_error)
    }

    /// Forgets whom to let in no more.
    pub(super) fn end_protection(&mut self, now_unix_ms: u64) -> Result<()> {
        let before = self.protected.len();
        self.protected.retain(|_, entry| lasts(entry, now_unix_ms));
        if self.protected.len() == before {
            return Ok(());
        }
        self.save_protected()
    }

    /// Whether one of `addresses` is let in only for a while.
    pub(super) fn protects(&self, addresses: &[IpAddr]) -> bool {
        addresses.iter().any(|address| {
            let address = unmapped(*address);
            self.protected
                .keys()
                .any(|prefix| prefix.contains(&address))
        })
    }

    /// Removes an entry that is nobody's but the agent's; `None` if `edit` does not ask for that.
    pub(super) fn unprotect(
        &mut self,
        edit: &Edit,
        dry_run: bool,
        by: &str,
    ) -> Result<Option<Changed>> {
        let Edit::RemoveList(ListName::Allow, prefix) = edit else {
            return Ok(None);
        };
        if self.stored.allow.contains_key(prefix) {
            return Ok(None);
        }
        let Some(entry) = self.protected.get(prefix) else {
            return Ok(None);
        };
        let changed = Changed {
            revision: self.stored.revision,
            changed: true,
            dry_run,
            path: edit.path(),
            what: edit.what(),
            differences: vec![Difference {
                path: edit.path(),
                before: serde_json::to_value(entry).unwrap_or_default(),
                after: serde_json::Value::Null,
            }],
            differences_total: 1,
            ..Changed::default()
        };
        if !dry_run {
            let before = self.protected.clone();
            self.protected.remove(prefix);
            self.protect_as(before)?;
            let text = format!("{by}: {}", changed.what);
            tracing::info!("{text}");
            self.shared.events.push(EventKind::Change, text);
        }
        Ok(Some(changed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_let_in_as_the_source_it_is() {
        let prefix = |text: &str| prefix_of(text.parse().unwrap(), 64).map(|p| p.to_string());
        for (address, expected) in [
            ("192.0.2.7", Some("192.0.2.7/32")),
            ("::ffff:192.0.2.7", Some("192.0.2.7/32")),
            ("2001:db8::7", Some("2001:db8::/64")),
            ("fe80::1", Some("fe80::1/128")),
            ("127.0.0.1", None),
            ("::1", None),
            ("0.0.0.0", None),
        ] {
            assert_eq!(prefix(address).as_deref(), expected, "{address}");
        }
    }

    #[test]
    fn what_people_listed_wins() {
        let prefix: IpNet = "192.0.2.7/32".parse().unwrap();
        let by = |who: &str| ListEntry {
            by: Some(who.to_owned()),
            ..ListEntry::default()
        };
        let mut document = Document::default();
        document.allow.insert(prefix, by("local"));
        let other: IpNet = "192.0.2.8/32".parse().unwrap();
        let protected = [(prefix, by(PROTECTOR)), (other, by(PROTECTOR))].into();
        shelter(&mut document, &protected);
        assert_eq!(document.allow[&prefix].by.as_deref(), Some("local"));
        assert_eq!(document.allow[&other].by.as_deref(), Some(PROTECTOR));
    }
}
