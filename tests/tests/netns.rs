//! Tests of the data plane on real interfaces: every test has network namespaces and a bpffs of
//! its own. They need root and a BPF toolchain, and fail without.

#[path = "netns/edge.rs"]
mod edge;

#[path = "netns/atomic.rs"]
mod atomic;
#[path = "netns/attaching.rs"]
mod attaching;
#[path = "netns/clocks.rs"]
mod clocks;
#[path = "netns/generic.rs"]
mod generic;
#[path = "netns/gone.rs"]
mod gone;
#[path = "netns/limiting.rs"]
mod limiting;
#[path = "netns/meddling.rs"]
mod meddling;
#[path = "netns/privilege.rs"]
mod privilege;
#[path = "netns/shapes.rs"]
mod shapes;
#[path = "netns/tables.rs"]
mod tables;
#[path = "netns/volume.rs"]
mod volume;
#[path = "netns/wire.rs"]
mod wire;
