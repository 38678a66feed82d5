//! The agent of `ratelimiter`, as a library; the binary `ratelimiter` is a thin shell around it.
//!
//! - [`policy`], [`control`], [`config`]: pure. What is configured, and what follows from it
//! - [`dataplane`]: the kernel's maps, programs and links
//! - [`limiter`]: the check API's buckets
//! - `grpc`: the check API for proxies (feature `grpc`)
//! - [`resp`]: the check API in the Redis protocol
//! - [`check`]: the limiter as the agent runs it, for every transport of the check API
//! - [`client`]: the check API asked from elsewhere, with a deadline and a fallback
//! - [`store`]: what outlives the process
//! - [`sync`]: many hosts, one limit
//! - [`redis`]: the store that the hosts of a fleet share
//! - [`tui`]: what `ratelimiter top` shows
//! - [`admin`]: the operations people have, as one trait; [`http`] and [`cli`] speak it
//! - [`dashboard`]: the files of the page at `/`
//! - [`metrics`]: what Prometheus sees
//! - [`agent`]: the composition root, the only place that knows all of the above
mod accept;
pub mod admin;
pub mod agent;
pub mod check;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod dashboard;
pub mod dataplane;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod http;
pub mod limiter;
pub mod metrics;
pub mod policy;
pub mod redis;
pub mod resp;
pub mod store;
pub mod sync;
pub mod tui;
