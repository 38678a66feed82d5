//! The store that a fleet shares, against real Redis servers started here, and against servers that
//! are up to no good.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod adaptive;
mod differential;
mod faults;
mod forms;
mod hostile;
mod requests;
mod server;
