//! Controllers: pure functions of state, observation and time; no clock, no I/O.
//!
//! - [`backend`]: everything below as one step per backend, the entry point
//! - [`breaker`]: a backend's circuit breaker in the path of checks
//! - [`settings`]: what an operator may set
//! - [`report`]: what is believed of health reports, and how many reporters become one voice
//! - [`counters`]: what hosts and fleet have admitted, over time
//! - [`freshness`]: how old the health signal is
//! - [`factor`]: the literal rule, one number on all limits
//! - [`budget`]: what the backend has proven it completes
//! - [`fairness`]: a budget shared between groups and clients
//! - [`window`]: how much burst is forgiven
//! - [`hosts`]: what the hosts of a fleet tell each other, and how it becomes one observation
//! - [`news`]: what changed and why, in words
//! - [`trace`]: a recorded trace replayed through the controllers
//!
//! The agent calls [`backend::step`] with each report and every 100 ms, with what its planes have
//! admitted and what clients want, and gives the decision to the planes: the factor as the speed of
//! unit clocks, each group's level as the rate of its clients, its aggregate as a bucket behind
//! theirs.

pub mod backend;
pub mod breaker;
pub mod budget;
pub mod counters;
pub mod factor;
pub mod fairness;
pub mod freshness;
pub mod hosts;
pub mod news;
pub mod report;
pub mod settings;
pub mod trace;
pub mod window;
