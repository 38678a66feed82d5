//! The policy model: what people configure, and what follows from it for the kernel.
//!
//! Pure: no I/O, no clock, no tokio, aya, redis or axum (`cargo xtask tidy` checks). Time is an
//! argument.
//!
//! - [`model`]: segments, clients, limits, lists - one [`model::Document`]
//! - [`plan`]: installed against desired, as a list of updates
//! - [`rate`]: `500/s`, `50/5m`, exactly
//! - [`units`]: `10k/min`, `5m`, `1GiB` as people write them
pub mod model;
pub mod plan;
pub mod rate;
pub mod units;
