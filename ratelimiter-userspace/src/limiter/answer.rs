//! What a check answers.

/// Why a check was answered as it was. Counted, shown in metrics and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Every quota conformed and was charged.
    Conforming = 0,
    /// The policy is switched off, or the client has no quota: not limited.
    Unlimited = 1,
    /// A quota in shadow mode would have refused; passed.
    Shadow = 2,
    /// More than a quota allows now.
    OverLimit = 3,
    /// The cost is more than a quota ever allows at once.
    ExceedsBurst = 4,
    /// Nobody configured this client, and unknown clients are refused.
    UnknownClient = 5,
    /// The circuit breaker of the client's backend is open.
    BackendOpen = 6,
    /// Other threads changed the same bucket faster than this one could, for thousands of tries.
    Contended = 7,
    /// The named limit does not exist for this client.
    UnknownLimit = 8,
    /// The client id is empty or too long.
    InvalidClientId = 9,
    /// More than a quota allows now that it is reduced for the sake of the backend.
    ReducedCapacity = 10,
    /// The store that the fleet shares is away, and the limit lets nothing pass without it.
    StoreAway = 11,
    /// Not decided yet: only the store knows. Never answered, never counted.
    Pending = 12,
}

/// Number of reasons.
pub const REASONS: usize = 12;

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; REASONS] = [
        Self::Conforming,
        Self::Unlimited,
        Self::Shadow,
        Self::OverLimit,
        Self::ExceedsBurst,
        Self::UnknownClient,
        Self::BackendOpen,
        Self::Contended,
        Self::UnknownLimit,
        Self::InvalidClientId,
        Self::ReducedCapacity,
        Self::StoreAway,
    ];

    /// Returns the word used in metrics, JSON and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conforming => "conforming",
            Self::Unlimited => "unlimited",
            Self::Shadow => "shadow",
            Self::OverLimit => "over_limit",
            Self::ExceedsBurst => "exceeds_burst",
            Self::UnknownClient => "unknown_client",
            Self::BackendOpen => "backend_open",
            Self::Contended => "contended",
            Self::UnknownLimit => "unknown_limit",
            Self::InvalidClientId => "invalid_client_id",
            Self::ReducedCapacity => "reduced_capacity",
            Self::StoreAway => "store_away",
            Self::Pending => "pending",
        }
    }

    /// Whether a check answered for this reason was allowed.
    #[must_use]
    pub const fn allows(self) -> bool {
        matches!(self, Self::Conforming | Self::Unlimited | Self::Shadow)
    }
}

/// The answer to one check. Times in nanoseconds from the check on; round them up for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
    /// The caller's stamp was further from this host's clock than the skew bound, which was used
    /// instead.
    pub clamped: bool,
    /// Which of the client's quotas is the tightest: index into the policy's quotas, by name.
    pub quota: u8,
    /// The policy that applied; [`crate::limiter::RateLimiter::policy`] describes it.
    pub policy: u32,
    /// Configured units per window of that quota; 0 where there is none.
    pub limit: u64,
    /// Units that may still be spent now.
    pub remaining: u64,
    /// 0 when allowed; else the least wait before the same check passes if nothing else arrives;
    /// `u64::MAX` when it never will.
    pub retry_after_ns: u64,
    /// Time until the whole quota is available again.
    pub reset_after_ns: u64,
}

impl Answer {
    /// An answer that names no quota.
    pub(super) const fn bare(reason: Reason, policy: u32) -> Self {
        Self {
            allowed: reason.allows(),
            reason,
            clamped: false,
            quota: 0,
            policy,
            limit: 0,
            remaining: 0,
            retry_after_ns: if reason.allows() { 0 } else { u64::MAX },
            reset_after_ns: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_keep_their_numbers() {
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
        }
    }
}
