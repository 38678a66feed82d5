//! Every byte the kernel program and the agent share.
//!
//! `docs/abi.md` draws the same layout. Integers are host order; bytes as on the wire are `[u8; N]`
//! or end in `_be`. Every structure is `repr(C)`, has no padding, is valid for any bit pattern, and
//! its size is asserted here.

pub mod config;
pub mod counters;
pub mod crowd;
pub mod merge;
pub mod names;
pub mod policy;
pub mod tracked;

/// Raised whenever the meaning of any shared byte changes. An agent adopts pinned maps only when
/// this number, kept in [`config::Config::schema`], equals its own.
pub const SCHEMA: u32 = 1;
