//! What a policy does while its host is apart from the store.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What happens to a policy's limits while the store is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnStoreLoss {
    /// Each host goes on with the part of the limit that the client used on it; the whole limit for
    /// clients it did not share. A client that stays where it is notices nothing.
    #[default]
    Hold,
    /// A host that is alone gives one part of as many as there are hosts; the others give up that
    /// host's part. Never much more than the limit, but a client may get less than it.
    Strict,
    /// Each host gives the whole limit.
    Local,
    /// Nothing passes on a host that is apart.
    Deny,
}

impl OnStoreLoss {
    /// Returns the word used in configuration and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Strict => "strict",
            Self::Local => "local",
            Self::Deny => "deny",
        }
    }
}

/// A share of the limit, `of` at least 1 and `parts` at most `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// So many parts,
    pub parts: u32,
    /// of so many.
    pub of: u32,
}

impl Share {
    /// The whole limit.
    pub const WHOLE: Self = Self { parts: 1, of: 1 };

    /// `parts` of `of`, brought into range.
    #[must_use]
    pub const fn new(parts: u32, of: u32) -> Self {
        let of = if of == 0 { 1 } else { of };
        let parts = if parts > of { of } else { parts };
        Self { parts, of }
    }

    /// This share of `amount`, rounded down, but at least 1 of something unless the share is none.
    #[must_use]
    pub const fn of_amount(self, amount: u64) -> u64 {
        let share = (amount as u128 * self.parts as u128 / self.of as u128) as u64;
        if share == 0 && self.parts != 0 && amount != 0 {
            1
        } else {
            share
        }
    }
}
