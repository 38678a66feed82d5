//! The part of the limiter that exists once: limiting arithmetic, packet parser and map layout.
//!
//! Compiled for BPF by `ratelimiter-ebpf` and for the host by everything else, and tested on both
//! with equal answers. Everything here is pure and total: no I/O, no clock, no allocation, no
//! panic; time is an argument.
//!
//! - [`quota`]: what a person configures, and its compiled form
//! - [`vclock`]: the unit clock a policy's buckets count on
//! - [`gcra`]: the token bucket decision
//! - [`parse`]: what a frame is, and who sent it
//! - [`source`]: the key of a source
//! - [`perm`], [`crowd`]: the flat table of everybody who is not tracked
//! - [`window`]: the request algorithms, token bucket and windows under one contract
//! - [`verdict`]: what becomes of a packet, and why
//! - [`parse`], [`source`]: from a frame to the key of its bucket
//! - [`crowd`], [`perm`]: the arithmetic of the flat tables
//! - [`abi`]: every byte the kernel program and the agent share
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![forbid(unsafe_code)]

pub mod abi;
pub mod crowd;
pub mod gcra;
pub mod parse;
pub mod perm;
pub mod quota;
pub mod source;
pub mod vclock;
pub mod verdict;
pub mod window;
