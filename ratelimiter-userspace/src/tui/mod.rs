//! `ratelimiter top`: what passes, what is dropped and whose, on a terminal.
//!
//! - [`model`]: the state and [`model::State::update`], a pure function of key presses and answers
//! - [`sources`]: the table's order and filter, pure
//! - [`view`]: draws a state into a frame; knows no terminal
//! - [`terminal`]: takes a terminal and gives it back; the only file here that does I/O
//!
//! Who asks the agent is `cli/top.rs`.
pub mod model;
pub mod sources;
pub mod terminal;
#[cfg(test)]
mod tests;
pub mod view;
