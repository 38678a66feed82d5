//! The Redis that the hosts of a fleet share.
//!
//! [`RedisStore`] is the fleet's store over a network: one Redis or Valkey server, the master that
//! Sentinels name, or a cluster, chosen by URL. Nothing on the path of a packet or a check waits
//! for it; whoever asks has a deadline, and a store that does not answer is left alone for a while
//! and found again by itself.
//!
//! - `config`: the configuration that the fleet shares
//! - `connect`: from settings to a connection; `pace`: when to try again
//! - `link`: the task that owns the connection; `figures`: what is counted
//! - `registry`: who lives, and which sources are hot
//! - `script`: scripts as commands, and what errors mean
//! - `adaptive`: one state of a backend's controllers for all hosts
//! - `wire`, `lua/*.lua`: what is said. What `settle.lua` does is written down in
//!   [`crate::sync::ledger`], and a test holds the two together
//!
//! What is kept under which key is in `docs/redis-keys.md`.

pub mod adaptive;
mod config;
mod connect;
mod figures;
mod link;
mod pace;
mod registry;
mod script;
mod wire;

pub use config::{Found, Put, What};
pub use connect::Access;
pub use figures::Figures;
pub use link::{Options, RedisStore};
