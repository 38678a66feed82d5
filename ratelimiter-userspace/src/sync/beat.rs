//! The registry of hosts and the list of hot sources, as one exchange.
//!
//! Each host beats once a second, and whenever it finds a new hot source. It learns how many hosts
//! there are, how many of them live, and which sources became hot elsewhere since it last asked.

use ratelimiter_common::abi::tracked::SourceKey;

/// How often a host beats at least, in microseconds: 1 s.
pub const BEAT_US: u64 = 1_000_000;
/// A host that has not beaten for so long is absent, in microseconds: 2 s.
pub const ABSENT_US: u64 = 2_000_000;
/// A host that has not beaten for so long is forgotten, in microseconds: 10 min.
pub const FORGOTTEN_US: u64 = 600_000_000;
/// A hot source that nobody announced for so long is off the list, in microseconds: 10 s.
pub const HOT_US: u64 = 10_000_000;
/// Most hot sources of one beat, and of one answer.
pub const MAX_HOT: usize = 4_096;

/// A source that is hot on some host.
pub type HotSource = SourceKey;

/// What a host says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Which host: a random number drawn when the agent starts for the first time, and kept.
    pub host: u64,
    /// The host shuts down cleanly: it is forgotten at once, and the rest of this is ignored.
    pub leaving: bool,
    /// Sources that are hot here, to be announced; at most [`MAX_HOT`].
    pub hot: Vec<HotSource>,
    /// [`Fleet::cursor_us`] of the last answer; 0 for everything.
    pub cursor_us: u64,
    /// Most hot sources of others to be told, at most [`MAX_HOT`]; 0 by who has no use for them.
    pub most: usize,
}

/// What a host learns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Hosts that are not forgotten, this one included.
    pub known: u32,
    /// Hosts that are not absent, this one included.
    pub live: u32,
    /// Sources announced since the cursor, earliest first, by whomever; at most [`MAX_HOT`].
    pub hot: Vec<HotSource>,
    /// Where to go on from: the time of the newest announcement handed out, by the store's clock.
    pub cursor_us: u64,
}
