//! Controllers: pure functions of state, observation and time; no clock, no I/O.
//!
//! - [`settings`]: what an operator may set
//! - [`report`]: what is believed of health reports, and how many reporters become one voice
//! - [`counters`]: what hosts and fleet have admitted, over time
//! - [`freshness`]: how old the health signal is
//! - [`factor`]: the literal rule, one number on all limits
//! - [`fairness`]: a budget shared between groups and clients
//! - [`window`]: how much burst is forgiven

pub mod backend;
pub mod budget;
pub mod counters;
pub mod factor;
pub mod fairness;
pub mod freshness;
pub mod report;
pub mod settings;
pub mod window;
