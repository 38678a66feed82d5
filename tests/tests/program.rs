//! Tests that load the real kernel program and feed it frames by `BPF_PROG_TEST_RUN`. They need
//! root and a BPF toolchain, and fail without.

#[path = "program/churn.rs"]
mod churn;
#[path = "program/exact.rs"]
mod exact;
#[path = "program/flooded.rs"]
mod flooded;
#[path = "program/frames.rs"]
mod frames;
#[path = "program/generic.rs"]
mod generic;
#[path = "program/keys.rs"]
mod keys;
#[path = "program/limiting.rs"]
mod limiting;
#[path = "program/loading.rs"]
mod loading;
#[path = "program/merge.rs"]
mod merge;
#[path = "program/moves.rs"]
mod moves;
#[path = "program/prefixes.rs"]
mod prefixes;
#[path = "program/races.rs"]
mod races;
#[path = "program/twin.rs"]
mod twin;
