//! What hosts and store say to each other about one key: spend, debt and wants go out, the fleet's
//! level and what was granted come back.
//!
//! **Amounts** are whole numbers of fractions of a unit, [`Unit::fraction_bits`] of them: 1/256
//! packet or connection, one byte, 1/65536 request. All are 0..=[`MAX_AMOUNT`], so that they are
//! exact in the store's scripts, whose numbers are doubles. **Times** are microseconds; only
//! differences cross the wire, and the store's clock is the only one that counts.

use std::hash::Hasher as _;

use ratelimiter_common::quota::Unit;
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::policy::model::Algorithm;

/// Largest amount, counter or revision: 2^53 - 1.
pub const MAX_AMOUNT: u64 = (1 << 53) - 1;
/// Most entries of one batch.
pub const MAX_BATCH: usize = 500;
/// How much time at the rate may be spent or owed beyond the burst in one entry: 10 s. More is
/// clamped.
pub const SPEND_SLACK_US: u64 = 10_000_000;
/// How many bursts a key may owe in all. More is clamped; it bounds how long a host that lies can
/// lock a client out, and how many hosts may spend a whole burst each before one is forgotten.
pub const DEBT_BURSTS: u64 = 64;
/// A key lives at least this long after it was last settled, in microseconds: 2 s, so that what
/// hosts spend of a fast limit is added up. A key that owes longer lives as long as it owes.
pub const MIN_TTL_US: u64 = 2_000_000;
/// Most entries of a sliding log's state. The two oldest become one where there are more.
pub const MAX_LOG: usize = 4_096;

/// Which of the two planes a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Plane {
    /// Packets of a source, judged in the kernel.
    Packets = 0,
    /// Requests of a client, judged by the check API.
    Requests = 1,
}

/// Name of a fleet bucket: a keyed hash of plane, policy, unit and of who is limited. Nothing of
/// those can be read from it, and nobody who does not know the secret can aim at a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FleetKey(pub u128);

impl std::fmt::Display for FleetKey {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Makes [`FleetKey`]s. All hosts of a fleet use the same secret.
#[derive(Clone, Copy)]
pub struct KeyHasher(SipHasher24);

impl std::fmt::Debug for KeyHasher {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHasher")
    }
}

impl KeyHasher {
    /// Keys under `secret`.
    #[must_use]
    pub fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher24::new_with_key(secret))
    }

    /// The key of what `who` (a client's id, or a source key's eight bytes) is limited to by
    /// `policy` (segment or client, and the name of the limit) in `unit`.
    #[must_use]
    pub fn key(&self, plane: Plane, policy: &str, unit: Unit, who: &[u8]) -> FleetKey {
        let mut hasher = self.0;
        // Lengths first: no two names may run together into the bytes of another pair.
        hasher.write(&[plane as u8, unit as u8]);
        hasher.write(&(policy.len() as u64).to_le_bytes());
        hasher.write(policy.as_bytes());
        hasher.write(who);
        FleetKey(hasher.finish128().as_u128())
    }
}

/// A quota as the store judges by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetQuota {
    /// How arrivals are judged.
    pub algorithm: Algorithm,
    /// Amount per [`Self::window_us`], 1 or more: what a token bucket drains, what a window holds.
    /// Scaled already, where an adaptive factor or a lost host lowers it.
    pub limit: u64,
    /// Depth of a token bucket, 1 or more. The other algorithms do not look at it.
    pub burst: u64,
    /// The window, 1 s to 366 days.
    pub window_us: u64,
    /// What is granted comes in multiples of this: one whole unit, or 1.
    pub grain: u64,
    /// Rises with every change of the quota. A newer one that lowers the burst clamps what is owed,
    /// once; an older one does not change what a newer one has set.
    pub revision: u64,
}

impl FleetQuota {
    /// The most that may be in use at once: the burst, or what the window holds.
    #[must_use]
    pub const fn depth(&self) -> u64 {
        match self.algorithm {
            Algorithm::TokenBucket => self.burst,
            _ => self.limit,
        }
    }

    /// What `us` microseconds bring, rounded down and saturating.
    #[must_use]
    pub const fn in_time(&self, us: u64) -> u64 {
        let amount = self.limit as u128 * us as u128;
        match amount.checked_div(self.window_us as u128) {
            Some(amount) if amount <= MAX_AMOUNT as u128 => amount as u64,
            _ => MAX_AMOUNT,
        }
    }

    /// Most that one entry may spend, owe or return: the burst and [`SPEND_SLACK_US`] of rate, or
    /// what a window holds.
    #[must_use]
    pub const fn entry_cap(&self) -> u64 {
        match self.algorithm {
            Algorithm::TokenBucket => {
                capped(self.burst.saturating_add(self.in_time(SPEND_SLACK_US)))
            }
            _ => self.limit,
        }
    }

    /// Most that a key may owe: [`DEBT_BURSTS`] bursts and as many times [`SPEND_SLACK_US`] of
    /// rate, or two windows' worth.
    #[must_use]
    pub const fn debt_cap(&self) -> u64 {
        match self.algorithm {
            Algorithm::TokenBucket => capped(self.entry_cap().saturating_mul(DEBT_BURSTS)),
            _ => capped(self.limit.saturating_mul(2)),
        }
    }
}

const fn capped(amount: u64) -> u64 {
    if amount < MAX_AMOUNT {
        amount
    } else {
        MAX_AMOUNT
    }
}

/// One key's line in a batch. Amounts that are larger than they may be are clamped by the store and
/// counted in [`Settled::clamped`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which bucket.
    pub key: FleetKey,
    /// Its quota.
    pub quota: FleetQuota,
    /// Admitted here since the last exchange without having been granted: charged whatever there
    /// is room for.
    pub spend: u64,
    /// What the local bucket owes without `spend`, so that a store that was emptied learns of it:
    /// the level becomes at least this before anything is charged. For a window: what this host
    /// knows to be used of the window that began `age_us` ago.
    pub debt: u64,
    /// Granted earlier and not used: given back before anything is charged. For a window it counts
    /// only while the window that began `age_us` ago lasts.
    pub returned: u64,
    /// Windows only: how long ago the window began that `debt` and `returned` belong to.
    pub age_us: u64,
    /// How much is asked for.
    pub want: u64,
    /// Less than this is not taken: then nothing is granted, and [`Answer::wait_us`] says when it
    /// would be.
    pub least: u64,
}

impl Entry {
    /// An entry that only reads.
    #[must_use]
    pub const fn read(key: FleetKey, quota: FleetQuota) -> Self {
        Self {
            key,
            quota,
            spend: 0,
            debt: 0,
            returned: 0,
            age_us: 0,
            want: 0,
            least: 0,
        }
    }

    /// An entry that charges behind: `spend` was admitted, and `debt` was owed besides.
    #[must_use]
    pub const fn charge(key: FleetKey, quota: FleetQuota, spend: u64, debt: u64) -> Self {
        let mut entry = Self::read(key, quota);
        entry.spend = spend;
        entry.debt = debt;
        entry
    }

    /// An entry that takes ahead: up to `want`, or nothing if there is less than `least`.
    #[must_use]
    pub const fn take(key: FleetKey, quota: FleetQuota, want: u64, least: u64) -> Self {
        let mut entry = Self::read(key, quota);
        entry.want = want;
        entry.least = least;
        entry
    }
}

/// What the store says to an [`Entry`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// What the fleet owes on this key after this entry, rounded up.
    pub level: u64,
    /// What was granted of `want`, a multiple of the quota's grain.
    pub granted: u64,
    /// Everything spent and granted since the key was made, over all hosts. Starts at 0 again when
    /// the key had expired or the store was emptied.
    pub fleet_spend: u64,
    /// If `least` was not granted: microseconds until it could be, if nobody spends meanwhile;
    /// [`MAX_AMOUNT`] if it never can.
    pub wait_us: u64,
    /// Microseconds until nothing is owed (token bucket), the window ends (fixed and sliding
    /// window) or the newest entry leaves (sliding log). A block taken from a window ends with it.
    pub ends_us: u64,
    /// The store holds this key under another algorithm and a newer revision: nothing was done.
    pub outdated: bool,
}

/// What the store says to a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// One answer for each entry, in order.
    pub answers: Vec<Answer>,
    /// Amounts of the batch that were larger than they may be.
    pub clamped: u64,
    /// Keys whose stored state made no sense and was dropped.
    pub mended: u64,
    /// Places of the entries that were not answered, ascending; their answers are empty. One part of
    /// a cluster may be away; nobody knows whether it charged them. A store of one server answers
    /// all or none.
    pub lost: Vec<usize>,
}

impl Settled {
    /// The answer to entry number `place`, if it was answered.
    #[must_use]
    pub fn answer(&self, place: usize) -> Option<&Answer> {
        match self.lost.binary_search(&place) {
            Ok(_) => None,
            Err(_) => self.answers.get(place),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_names_differ_and_hide_them() {
        let hasher = KeyHasher::new(&[7; 16]);
        let key =
            |policy: &str, who: &[u8]| hasher.key(Plane::Requests, policy, Unit::Requests, who);
        assert_eq!(key("free", b"alice"), key("free", b"alice"));
        // The same bytes, divided otherwise.
        assert_ne!(key("free", b"alice"), key("freea", b"lice"));
        assert_ne!(
            key("free", b"alice"),
            hasher.key(Plane::Packets, "free", Unit::Requests, b"alice")
        );
        let other = KeyHasher::new(&[8; 16]);
        assert_ne!(
            key("free", b"alice"),
            other.key(Plane::Requests, "free", Unit::Requests, b"alice")
        );
        assert_eq!(FleetKey(0xab).to_string().len(), 32);
        assert_eq!(format!("{hasher:?}"), "KeyHasher");
    }

    #[test]
    fn every_amount_of_a_legal_quota_is_exact_in_a_double() {
        use ratelimiter_common::quota::{MAX_BURST, MAX_RATE_PER_S};
        let bits = Unit::Requests.fraction_bits();
        let quota = FleetQuota {
            algorithm: Algorithm::TokenBucket,
            limit: MAX_RATE_PER_S << bits,
            burst: MAX_BURST << bits,
            window_us: 1_000_000,
            grain: 1 << bits,
            revision: 1,
        };
        assert!(quota.entry_cap() > quota.burst && quota.entry_cap() < MAX_AMOUNT);
        assert_eq!(quota.debt_cap(), MAX_AMOUNT);
    }
}
