//! Who has the newest configuration: this host or the store that the fleet shares.
//!
//! The store keeps one configuration, told apart by its [`Head`]. A host keeps its own copy, and
//! beside it where it stands ([`Standing`]): the newest head it has had, and how many changes it has
//! made since that the store does not have. [`decide`] says which of the two gives way: the lower
//! revision, and the host's where both are equal. A store without a configuration never takes one
//! from a host.
//!
//! A *lineage* is drawn by the host that gives an empty store its first configuration; revisions of
//! two lineages are not compared. A host that comes from elsewhere takes the fleet's.

use std::hash::Hasher as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use super::settle::MAX_AMOUNT;
use crate::policy::model::Document;

/// How often a host looks at the store's configuration: 250 ms.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a store must have been empty, or its configuration damaged, before a host that never
/// was in this fleet gives it its own: 2 s, so that those that were come first.
pub const GRACE: Duration = Duration::from_secs(2);
/// Largest configuration that a fleet shares, in bytes of JSON: 32 MiB.
pub const MAX_BYTES: usize = 32 << 20;

/// Heads that a configuration remembers to be built upon.
pub const PARENTS: usize = 64;

/// Name of a configuration in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Which fleet's, 1 or more.
    pub lineage: u64,
    /// Rises by one with every change, 1 or more.
    pub revision: u64,
    /// Keyed hash of the above and of the bytes it names.
    pub digest: u64,
}

/// First word of a head.
const LAYOUT: &str = "1";

impl Head {
    /// The head of `body` as revision `revision` of `lineage`; `secret` is the fleet's.
    #[must_use]
    pub fn of(secret: &[u8; 16], lineage: u64, revision: u64, body: &[u8]) -> Self {
        let mut hasher = SipHasher24::new_with_key(secret);
        hasher.write(b"configuration");
        hasher.write(&lineage.to_le_bytes());
        hasher.write(&revision.to_le_bytes());
        hasher.write(body);
        Self {
            lineage,
            revision,
            digest: hasher.finish(),
        }
    }

    /// Whether `body` is what was written under this head by a host that knows the secret.
    #[must_use]
    pub fn names(&self, secret: &[u8; 16], body: &[u8]) -> bool {
        *self == Self::of(secret, self.lineage, self.revision, body)
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            lineage,
            revision,
            digest,
        } = self;
        write!(f, "{LAYOUT} {lineage:016x} {revision} {digest:016x}")
    }
}

impl std::str::FromStr for Head {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let hexadecimal = |word: &str| u64::from_str_radix(word, 16).ok();
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or(());
        let layout = next()?;
        let (lineage, revision, digest) = (next()?, next()?, next()?);
        let head = Self {
            lineage: hexadecimal(lineage).ok_or(())?,
            revision: revision.parse().map_err(|_| ())?,
            digest: hexadecimal(digest).ok_or(())?,
        };
        // Only what this would have written: no signs, no other spelling.
        let legal = head.lineage != 0 && (1..=MAX_AMOUNT).contains(&head.revision);
        if legal && layout == LAYOUT && head.to_string() == text {
            Ok(head)
        } else {
            Err(())
        }
    }
}

/// What is kept under a head, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// Who made the change: a credential's name.
    pub by: String,
    /// What was done, for people.
    pub what: String,
    /// Digests of the heads it is built upon, newest first, at most [`PARENTS`].
    pub parents: Vec<u64>,
    /// Everything configured at run time. Its own `revision` is 0.
    pub document: Document,
}

/// Where a host stands: kept beside its own copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// The newest head of the store's that this host has had; `None` if it never was in a fleet.
    pub head: Option<Head>,
    /// Changes made here since that the store does not have.
    pub ahead: u64,
    /// Of `head`: [`Body::by`], [`Body::what`] and [`Body::parents`], so that what a store lost can be
    /// given back as it was.
    pub by: String,
    /// See `by`.
    pub what: String,
    /// See `by`.
    pub parents: Vec<u64>,
}

impl Standing {
    /// In step with `head`, which names `body`.
    #[must_use]
    pub fn at(head: Head, body: &Body) -> Self {
        Self {
            head: Some(head),
            ahead: 0,
            by: body.by.clone(),
            what: body.what.clone(),
            parents: body.parents.clone(),
        }
    }

    /// What the store had, with `document` in it; `None` where that is not what is in force here.
    #[must_use]
    pub fn again(&self, document: &Document) -> Option<Body> {
        (self.head.is_some() && self.ahead == 0).then(|| Body {
            by: self.by.clone(),
            what: self.what.clone(),
            parents: self.parents.clone(),
            document: document.clone(),
        })
    }

    /// What a configuration is built upon that is made from what is in force here.
    #[must_use]
    pub fn next_parents(&self) -> Vec<u64> {
        let newest = self.head.map(|head| head.digest);
        newest
            .into_iter()
            .chain(self.parents.iter().copied())
            .take(PARENTS)
            .collect()
    }

    /// Whether a configuration called `head` and built upon `parents` has what the store last gave
    /// this host, as far as is remembered.
    #[must_use]
    pub fn is_within(&self, head: &Head, parents: &[u64]) -> bool {
        self.head.is_none_or(|known| {
            parents.contains(&known.digest)
                || head.revision.saturating_sub(known.revision) > PARENTS as u64
        })
    }

    /// The revision in force on this host: 0 if it never was in a fleet.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.head
            .map_or(0, |head| head.revision)
            .saturating_add(self.ahead)
    }
}

/// What the store has, as far as [`decide`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// Nothing, or what no host of this fleet has written: it has lost its configuration.
    Nothing,
    /// A configuration; `same` says whether it is the one in force here, whatever it is called.
    One {
        /// Its name.
        head: Head,
        /// Whether it is what is in force here.
        same: bool,
        /// Whether it is built upon what the store last gave this host ([`Standing::is_within`]).
        follows: bool,
    },
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Nothing yet: somebody who was in this fleet before may know better.
    Wait,
    /// Both have the same: take the store's name for it.
    Agree,
    /// Take what the store has.
    Follow {
        /// What is in force here is lost by that: nobody else has it.
        lost: bool,
    },
    /// Give the store what is in force here, if it still has what it had.
    Write {
        /// Under this revision.
        revision: u64,
        /// A new lineage begins.
        founds: bool,
        /// The store's revision whose changes are lost by that.
        over: Option<u64>,
    },
}

/// Decides between what is in force here and what the store has. `empty` says that nothing is
/// configured here; `waited` is how long the store has had nothing.
#[must_use]
pub fn decide(mine: &Standing, empty: bool, has: Has, waited: Duration) -> Step {
    let revision = mine.revision();
    let (known, head) = match (mine.head, has) {
        (_, Has::One { same: true, .. }) => return Step::Agree,
        (None, Has::Nothing) => {
            return match (empty, waited < GRACE) {
                (true, _) => Step::Rest,
                (false, true) => Step::Wait,
                (false, false) => Step::Write {
                    revision: 1,
                    founds: true,
                    over: None,
                },
            };
        }
        (Some(_), Has::Nothing) => {
            return Step::Write {
                revision,
                founds: false,
                over: None,
            };
        }
        (Some(known), Has::One { head, follows, .. }) if known.lineage == head.lineage => {
            (known, (head, follows))
        }
        (_, Has::One { .. }) => return Step::Follow { lost: !empty },
    };
    let (head, follows) = head;
    if head.revision >= revision {
        // Not built upon what this host has: two hosts made the same revision while they were
        // apart, or a store that was behind was written to.
        let lost = mine.ahead > 0 || !follows;
        return Step::Follow { lost };
    }
    // The second: what the store had lost, given back without what has ended since.
    let is_mine = head == known
        || (follows && head.revision == known.revision)
        || mine.parents.contains(&head.digest);
    Step::Write {
        revision,
        founds: false,
        over: (!is_mine).then_some(head.revision),
    }
}

#[cfg(test)]
mod tests;
