//! From lists and claims to what the kernel's tries hold.
//!
//! Precedence: allow, then block, then the most specific client or segment. An allowed prefix wins
//! over every block and every limit inside it, a block over every limit inside it. Because a trie
//! answers with the most specific prefix only, each value says what follows from all the prefixes
//! around it: a packet never has to ask for the next less specific one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use ratelimiter_common::abi::policy::{PrefixValue, action};
use ratelimiter_common::vclock::NEVER;

use super::model::ListEntry;
use super::plan::Prefix;

/// Relates dates to the kernel's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeBase {
    /// CLOCK_MONOTONIC minus Unix time, in nanoseconds. Read once when the agent starts: dates
    /// then mean the same at every compilation.
    pub offset_ns: i128,
}

impl TimeBase {
    /// Relates the two readings of one moment.
    #[must_use]
    pub fn new(monotonic_ns: u64, unix_ms: u64) -> Self {
        Self {
            offset_ns: i128::from(monotonic_ns) - i128::from(unix_ms) * 1_000_000,
        }
    }

    /// CLOCK_MONOTONIC at a date; 0 for dates before boot, [`NEVER`] - 1 at most.
    #[must_use]
    pub fn monotonic_ns(self, unix_ms: u64) -> u64 {
        let ns = i128::from(unix_ms) * 1_000_000 + self.offset_ns;
        ns.clamp(0, i128::from(NEVER - 1)) as u64
    }

    /// Unix time in milliseconds at a reading of CLOCK_MONOTONIC.
    #[must_use]
    pub fn unix_ms(self, monotonic_ns: u64) -> u64 {
        let ms = (i128::from(monotonic_ns) - self.offset_ns) / 1_000_000;
        ms.clamp(0, i128::from(u64::MAX)) as u64
    }
}

/// What a client or segment says about a prefix: an action with its slot or zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// One of [`action`]: `TRACKED`, `SHARED` or `ZONE`.
    pub action: u32,
    /// Policy slot or zone.
    pub slot: u32,
}

const NOTHING: Claim = Claim {
    action: action::PARENT,
    slot: 0,
};

/// What one prefix means to those around it.
#[derive(Clone, Copy)]
struct Scope {
    prefix: Prefix,
    /// Until when it is allowed; 0 if it is not.
    allow_ns: u64,
    /// Until when it is blocked; 0 if it is not.
    block_ns: u64,
    claim: Claim,
}

/// First and last address of a prefix as numbers; IPv4 and IPv6 apart.
pub(super) fn bounds(prefix: &Prefix) -> (bool, u128, u128) {
    match prefix {
        IpNet::V4(net) => (
            false,
            u128::from(u32::from(net.network())),
            u128::from(u32::from(net.broadcast())),
        ),
        IpNet::V6(net) => (true, u128::from(net.network()), u128::from(net.broadcast())),
    }
}

fn covers(outer: &Prefix, inner: &Prefix) -> bool {
    outer.contains(inner)
}

/// The value of a prefix whose surroundings are known.
fn value(scope: &Scope) -> PrefixValue {
    let claim = (scope.claim.action, scope.claim.slot);
    // A block that ends before the allowance around it says nothing.
    let block_ns = if scope.block_ns <= scope.allow_ns {
        0
    } else {
        scope.block_ns
    };
    let (first, until_ns, after) = match (scope.allow_ns, block_ns) {
        (NEVER, _) => ((action::ALLOW, 0), NEVER, (action::PARENT, 0)),
        (0, 0) => (claim, NEVER, (action::PARENT, 0)),
        (0, NEVER) => ((action::BLOCK, 0), NEVER, (action::PARENT, 0)),
        (0, block_ns) => ((action::BLOCK, 0), block_ns, claim),
        (allow_ns, NEVER) => ((action::ALLOW, 0), allow_ns, (action::BLOCK, 0)),
        // Allowed for a while and perhaps blocked for longer: two stages hold two of the three.
        // The last is kept, so that nobody stays blocked should the agent be gone; the agent
        // compiles again when the first ends.
        (allow_ns, _) => ((action::ALLOW, 0), allow_ns, claim),
    };
    PrefixValue {
        action: first.0,
        slot: first.1,
        until_ns,
        after_action: after.0,
        after_slot: after.1,
        prefix_len: u32::from(scope.prefix.prefix_len()),
        reserved: 0,
    }
}

/// Merges claims (ascending, no duplicates) with the lists. Entries that have ended by `now_ns` are
/// left out. The result is ascending: less specific prefixes before those inside them.
#[must_use]
pub fn merge(
    claims: &[(Prefix, Claim)],
    allow: &BTreeMap<IpNet, ListEntry>,
    block: &BTreeMap<IpNet, ListEntry>,
    time: TimeBase,
    now_ns: u64,
) -> Vec<(Prefix, PrefixValue)> {
    let until = |entry: &ListEntry| {
        entry
            .expires_unix_ms
            .map_or(NEVER, |date| time.monotonic_ns(date))
    };
    let live = |list: &'_ BTreeMap<IpNet, ListEntry>| {
        list.iter()
            .map(|(prefix, entry)| (*prefix, until(entry)))
            .filter(|(_, until_ns)| *until_ns > now_ns)
            .collect::<Vec<_>>()
    };
    let (allow, block) = (live(allow), live(block));
    let mut claims = claims.iter().peekable();
    let mut allow = allow.into_iter().peekable();
    let mut block = block.into_iter().peekable();

    let mut merged = Vec::with_capacity(claims.len() + allow.len() + block.len());
    let mut around: Vec<Scope> = Vec::with_capacity(64);
    loop {
        let next = [
            claims.peek().map(|(prefix, _)| *prefix),
            allow.peek().map(|(prefix, _)| *prefix),
            block.peek().map(|(prefix, _)| *prefix),
        ];
        let Some(prefix) = next.into_iter().flatten().min() else {
            break;
        };
        while around
            .last()
            .is_some_and(|scope| !covers(&scope.prefix, &prefix))
        {
            around.pop();
        }
        let mut scope = around.last().copied().unwrap_or(Scope {
            prefix,
            allow_ns: 0,
            block_ns: 0,
            claim: NOTHING,
        });
        scope.prefix = prefix;
        if let Some((_, claim)) = claims.next_if(|(candidate, _)| *candidate == prefix) {
            scope.claim = *claim;
        }
        if let Some((_, until_ns)) = allow.next_if(|(candidate, _)| *candidate == prefix) {
            scope.allow_ns = scope.allow_ns.max(until_ns);
        }
        if let Some((_, until_ns)) = block.next_if(|(candidate, _)| *candidate == prefix) {
            scope.block_ns = scope.block_ns.max(until_ns);
        }
        merged.push((prefix, value(&scope)));
        around.push(scope);
    }
    merged
}

/// The next moment at which an entry of a list ends, if any: milliseconds since the Unix epoch.
#[must_use]
pub fn next_expiry_unix_ms(
    lists: [&BTreeMap<IpNet, ListEntry>; 2],
    now_unix_ms: u64,
) -> Option<u64> {
    lists
        .into_iter()
        .flat_map(|list| list.values())
        .filter_map(|entry| entry.expires_unix_ms)
        .filter(|date| *date > now_unix_ms)
        .min()
}

/// The prefix of one address.
#[must_use]
pub fn host(address: IpAddr) -> Prefix {
    IpNet::from(address)
}

/// Maps an IPv4-mapped address (`::ffff:192.0.2.1`) to the IPv4 address it stands for.
#[must_use]
pub fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}
