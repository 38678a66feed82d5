//! The command line: one file per command.
#![expect(
    clippy::format_push_string,
    reason = "texts for people: an allocation more does not matter, a fallible `write!` reads worse"
)]
pub mod client;
pub mod doctor;
pub mod exit;
pub mod output;
