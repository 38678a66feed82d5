//! What tests share. Nothing here is a test, and nothing here knows the product's logic.
//!
//! - [`netns`], [`bpffs`]: private namespaces, removed when their guard is dropped
//! - [`frames`], [`reference`]: the parser fixtures, and a second parser to compare with
//! - [`packet`]: frames, honest and lying; [`flood`]: many of them, fast; [`live`]: without a stack
//! - [`stranger`]: an XDP program that is not ours
//! - [`churn`]: the crowd's table on simulated time; [`random`] numbers that repeat
//! - [`program`]: the kernel program in maps of its own, [`runner`] to feed it from two CPUs; [`policy`]: a data plane without an agent
//! - [`process`]: children that never outlive their guard, waiting with a bound
//! - [`agent`], [`redis`]: the real binaries, started and made ready; [`http`] to ask them
//! - [`proxy`]: real proxies, run from `examples/`; [`envoy`]: where that one is
//! - [`residue`]: what a test must not leave behind
//! - [`bench`]: benchmarks on real interfaces
//! - [`requires`]: capability checks that fail, and never skip
//!
//! Functions here panic with a sentence instead of returning errors: a test wants the line that
//! failed, not a `Result` to pass on.
pub mod agent;
pub mod bench;
pub mod bpffs;
pub mod churn;
pub mod envoy;
pub mod flood;
pub mod frames;
pub mod http;
pub mod live;
pub mod netns;
pub mod packet;
pub mod policy;
pub mod process;
pub mod program;
pub mod proxy;
pub mod random;
pub mod redis;
pub mod reference;
pub mod requires;
pub mod residue;
pub mod runner;
pub mod stranger;
pub mod variant;

mod bpf;
mod space;

use std::fmt::Debug;

/// Unwraps with a sentence. For the harness, where an error is always the test's failure.
pub trait OrFail<T> {
    /// Returns the value, or panics with `what` and the error.
    #[track_caller]
    fn or_fail(self, what: &str) -> T;
}

impl<T, E: Debug> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: &str) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{what}: {error:?}"),
        }
    }
}

impl<T> OrFail<T> for Option<T> {
    fn or_fail(self, what: &str) -> T {
        match self {
            Some(value) => value,
            None => panic!("{what}"),
        }
    }
}
