//! The policy model: what people configure, and what follows from it for the kernel.
//!
//! Pure: no I/O, no clock, no tokio, aya, redis or axum (`cargo xtask tidy` checks). Time is an
//! argument.
//!
//! - [`model`]: segments, clients, limits, lists - one [`model::Document`]
//! - [`units`]: `10k/min`, `5m`, `1GiB` as people write them
//! - [`validate`]: what is wrong with a document; [`names`]: what single names and prefixes must be
//! - [`mod@rate`]: `500/s`, `50/5m`, exactly
//! - [`resolve`]: which limits apply to whom
//! - [`set`]: a document compiled to the state the kernel shall have; made of [`slots`] (numbers),
//!   [`prefixes`] (what the tries hold), [`lookup`] (who asks them) and [`keys`] (buckets)
//! - [`clock`]: unit clocks: first pieces, edits, ways back
//! - [`plan`]: installed against desired, as a list of updates
//! - [`trial`]: a pending change with its way back
//! - [`explain`]: why a source or client is treated as it is
//! - [`mod@diff`]: what differs between two documents
pub mod clock;
pub mod diff;
pub mod explain;
mod installed;
mod issue;
pub mod keys;
pub mod lookup;
pub mod model;
pub mod names;
mod overlaps;
pub mod plan;
pub mod prefixes;
pub mod rate;
pub mod resolve;
pub mod set;
pub mod slots;
pub mod trial;
pub mod units;
pub mod validate;
