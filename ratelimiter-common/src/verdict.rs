//! What becomes of a packet, and why. Stable small integers: never reorder, never reuse.

/// What XDP does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verdict {
    /// Handed to the network stack (`XDP_PASS`).
    Pass = 0,
    /// Discarded (`XDP_DROP`).
    Drop = 1,
}

/// How strictly a policy is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Neither decide nor count against a bucket; the packet passes.
    Off = 0,
    /// Decide and count, always pass.
    #[default]
    Shadow = 1,
    /// Decide and apply.
    Enforce = 2,
}

impl Mode {
    /// Returns the mode stored in a map as `value`; unknown values read as [`Mode::Shadow`].
    #[must_use]
    pub const fn from_abi(value: u32) -> Self {
        match value {
            0 => Self::Off,
            2 => Self::Enforce,
            _ => Self::Shadow,
        }
    }

    /// Returns the weaker of two modes: shadowing the agent shadows every policy.
    #[must_use]
    pub const fn min(self, other: Self) -> Self {
        if (self as u8) < (other as u8) {
            self
        } else {
            other
        }
    }
}

/// Number of reasons an array of counters has room for; a power of two.
pub const REASONS: usize = 16;

/// Why a packet was judged as it was. Counted per CPU, shown in metrics, events and `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Neither IPv4 nor IPv6 nor ARP: passed, not limited.
    NonIp = 0,
    /// ARP, neighbour discovery or DHCP: exempt, always passed.
    ControlTraffic = 1,
    /// The source is on the allow list.
    AllowListed = 2,
    /// Every limited unit conformed and was charged.
    Conforming = 3,
    /// The policy that applies is switched off.
    Off = 4,
    /// The source is on the block list.
    Blocked = 5,
    /// More packets than the quota.
    OverPackets = 6,
    /// More bytes than the quota.
    OverBytes = 7,
    /// More TCP SYNs than the quota.
    OverConnections = 8,
    /// A source not seen before, and the first-seen budget of its region is spent.
    FirstSeen = 9,
    /// The last compare-and-swap retry failed; dropped rather than passed uncharged.
    Contended = 10,
    /// Broken, truncated or too deeply encapsulated; dropped by policy.
    Malformed = 11,
    /// Malformed, charged to the shared malformed budget, and conforming there.
    MalformedConforming = 12,
    /// Malformed, and the shared malformed budget is spent.
    MalformedOver = 13,
    /// A map entry the program relies on is missing; passed in shadow, dropped in enforce.
    NoPolicy = 14,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 15] = [
        Self::NonIp,
        Self::ControlTraffic,
        Self::AllowListed,
        Self::Conforming,
        Self::Off,
        Self::Blocked,
        Self::OverPackets,
        Self::OverBytes,
        Self::OverConnections,
        Self::FirstSeen,
        Self::Contended,
        Self::Malformed,
        Self::MalformedConforming,
        Self::MalformedOver,
        Self::NoPolicy,
    ];

    /// Returns the reason numbered `value`, if there is one.
    #[must_use]
    pub const fn from_abi(value: u8) -> Option<Self> {
        if (value as usize) < Self::ALL.len() {
            #[expect(
                clippy::indexing_slicing,
                reason = "bounded on the line above, const context"
            )]
            Some(Self::ALL[value as usize])
        } else {
            None
        }
    }

    /// Returns the word used in metrics, JSON and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NonIp => "non_ip",
            Self::ControlTraffic => "control_traffic",
            Self::AllowListed => "allow_listed",
            Self::Conforming => "conforming",
            Self::Off => "off",
            Self::Blocked => "blocked",
            Self::OverPackets => "over_packets",
            Self::OverBytes => "over_bytes",
            Self::OverConnections => "over_connections",
            Self::FirstSeen => "first_seen",
            Self::Contended => "contended",
            Self::Malformed => "malformed",
            Self::MalformedConforming => "malformed_conforming",
            Self::MalformedOver => "malformed_over",
            Self::NoPolicy => "no_policy",
        }
    }

    /// Whether an enforcing policy drops a packet for this reason.
    #[must_use]
    pub const fn refuses(self) -> bool {
        !matches!(
            self,
            Self::NonIp
                | Self::ControlTraffic
                | Self::AllowListed
                | Self::Conforming
                | Self::Off
                | Self::MalformedConforming
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_keep_their_numbers() {
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            assert_eq!(Reason::from_abi(number as u8), Some(*reason));
        }
        assert_eq!(Reason::from_abi(15), None);
        assert_eq!(Reason::NoPolicy as u8, 14);
    }
}
