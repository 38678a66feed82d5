//! The `ratelimiter` binary.
fn main() {}
