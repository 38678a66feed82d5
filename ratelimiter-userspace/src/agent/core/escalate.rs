//! Escalation, the agent's half: addresses that the check API reported are blocked for a while, by
//! entries of the block list that end by themselves, in the kernel too.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Core;
use crate::admin::Result;
use crate::check::escalation::Report;
use crate::check::forwarded::Proxies;
use crate::clock;
use crate::policy::model::{Document, ListEntry};
use crate::store::NewChange;

/// Who such entries are by.
pub(super) const BY: &str = "escalation";
/// How long the first block of an address lasts, in milliseconds; each further one twice as long.
const FIRST_MS: u64 = 60_000;
/// How long a block lasts at most, in milliseconds.
const LONGEST_MS: u64 = 600_000;
/// How long it is remembered that an address was blocked, in milliseconds.
const REMEMBERED_MS: u64 = 3_600_000;
/// Most blocks at once, and most addresses remembered.
const MOST: usize = 10_000;
/// Characters of a client's id in the reason.
const SHOWN: usize = 100;

/// How often addresses were blocked, and when last.
pub(super) type Offences = HashMap<IpNet, (u32, u64)>;

/// How a reason begins that names `client_id`.
fn about(client_id: &str) -> String {
    let shown: String = client_id.escape_debug().take(SHOWN).collect();
    format!("client `{shown}` was refused ")
}

/// What is blocked where a request came from `address`, if it may be: never an allowed address, a
/// listed proxy, or this machine.
fn blockable(
    address: IpAddr,
    v6_prefix_len: u8,
    document: &Document,
    proxies: &Proxies,
) -> Option<IpNet> {
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return None;
    }
    let len = if address.is_ipv4() { 32 } else { v6_prefix_len };
    let prefix = IpNet::new(address, len).ok()?.trunc();
    let touches = |other: &IpNet| other.contains(&prefix) || prefix.contains(other);
    if document.allow.keys().any(touches) || proxies.prefixes().iter().any(touches) {
        return None;
    }
    Some(prefix)
}

impl Core {
    /// Blocks what was reported since the last look.
    pub(super) fn escalate(&mut self) {
        let reports = self.checks.escalation().take();
        if reports.is_empty() {
            return;
        }
        if let Err(error) = self.block(&reports) {
            tracing::error!(%error, "reported addresses could not be blocked");
        }
    }

    fn block(&mut self, reports: &[Report]) -> Result<()> {
        let now_unix_ms = clock::unix_ms();
        let proxies = self.checks.proxies();
        let v6_prefix_len = self.inputs.geometry.v6_prefix_len;
        let mut next = (*self.stored).clone();
        let ours = |entry: &&ListEntry| entry.by.as_deref() == Some(BY);
        let mut blocks = next.block.values().filter(ours).count();
        self.offences
            .retain(|_, (_, last)| now_unix_ms.saturating_sub(*last) < REMEMBERED_MS);
        let mut added = Vec::new();
        for report in reports {
            let Some(prefix) = blockable(report.address, v6_prefix_len, &self.document, &proxies)
            else {
                tracing::info!(address = %report.address, "reported, and never blocked");
                continue;
            };
            let is_blocked = |(known, entry): (&IpNet, &ListEntry)| {
                known.contains(&prefix) && entry.expires_unix_ms.is_none_or(|end| end > now_unix_ms)
            };
            let blocked = next
                .block
                .iter()
                .chain(&self.document.block)
                .any(is_blocked);
            if blocked || blocks >= MOST {
                continue;
            }
            if self.offences.len() >= MOST && !self.offences.contains_key(&prefix) {
                self.offences.clear();
            }
            let (times, last) = self.offences.entry(prefix).or_default();
            let lasts_ms = FIRST_MS
                .saturating_mul(1 << (*times).min(10))
                .min(LONGEST_MS);
            (*times, *last) = (times.saturating_add(1), now_unix_ms);
            let reason = format!(
                "{}{} times in a row",
                about(&report.client_id),
                report.refusals
            );
            let entry = ListEntry {
                reason: Some(reason),
                by: Some(BY.to_owned()),
                expires_unix_ms: Some(now_unix_ms.saturating_add(lasts_ms)),
            };
            next.block.insert(prefix, entry);
            blocks += 1;
            added.push(format!("{prefix} for {} s", lasts_ms / 1_000));
        }
        if added.is_empty() {
            return Ok(());
        }
        let what = match added.as_slice() {
            [one] => format!("block {one}"),
            many => format!("block {} addresses", many.len()),
        };
        self.commit_block(next, what)
    }

    /// Lifts the blocks of an address, or of all addresses that were blocked for a client. Returns
    /// how many there were.
    pub(in crate::agent) fn lift(
        &mut self,
        address: Option<IpAddr>,
        client_id: Option<&str>,
    ) -> Result<u64> {
        let begins = client_id.map(about);
        let is_meant = |prefix: &IpNet, entry: &ListEntry| {
            let reason = entry.reason.as_deref().unwrap_or_default();
            entry.by.as_deref() == Some(BY)
                && (address.is_some_and(|address| prefix.contains(&address.to_canonical()))
                    || begins
                        .as_deref()
                        .is_some_and(|begins| reason.starts_with(begins)))
        };
        let meant: Vec<IpNet> = self
            .stored
            .block
            .iter()
            .filter(|(prefix, entry)| is_meant(prefix, entry))
            .map(|(prefix, _)| *prefix)
            .collect();
        if meant.is_empty() {
            return Ok(0);
        }
        let mut next = (*self.stored).clone();
        for prefix in &meant {
            next.block.remove(prefix);
            self.offences.remove(prefix);
        }
        self.commit_block(next, format!("lift {} blocks", meant.len()))?;
        Ok(meant.len() as u64)
    }

    fn commit_block(&mut self, next: Document, what: String) -> Result<()> {
        let compiled = self.compile(&next, &self.fixed, self.inputs.mode)?;
        let change = NewChange {
            at_unix_ms: clock::unix_ms(),
            by: BY.to_owned(),
            what,
            path: "blocklist".to_owned(),
            ..NewChange::default()
        };
        self.commit(next, compiled, change, None)
    }
}
