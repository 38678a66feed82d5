//! `ratelimiter doctor`: what keeps this machine from being protected, and what to do.
mod checks;
mod facts;
mod render;
#[cfg(test)]
mod tests;
