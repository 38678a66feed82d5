//! `ratelimiter doctor`: what keeps this machine from being protected, and what to do.
pub mod checks;
pub mod facts;
pub mod features;
pub mod render;
#[cfg(test)]
mod tests;
