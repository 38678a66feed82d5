//! Tests of the real agent: the binary, a veth, real packets, real HTTP. They need root and a BPF
//! toolchain, and fail without.

#[path = "netns/edge.rs"]
#[expect(dead_code, reason = "the tests of the data plane use the rest")]
mod edge;

#[path = "agent/adaptive.rs"]
mod adaptive;
#[path = "agent/checks.rs"]
mod checks;
#[path = "agent/dashboard.rs"]
mod dashboard;
#[path = "agent/described.rs"]
mod described;
#[path = "agent/doors.rs"]
mod doors;
#[path = "agent/explained.rs"]
mod explained;
#[path = "agent/fleet.rs"]
mod fleet;
#[cfg(feature = "grpc")]
#[path = "agent/grpc.rs"]
mod grpc;
#[path = "agent/life.rs"]
mod life;
#[path = "agent/limits.rs"]
mod limits;
#[path = "agent/lockout.rs"]
mod lockout;
#[path = "agent/package.rs"]
mod package;
#[path = "agent/prometheus.rs"]
mod prometheus;
#[path = "agent/proxies.rs"]
mod proxies;
#[path = "agent/readme.rs"]
mod readme;
#[path = "agent/spoofed.rs"]
mod spoofed;
#[path = "agent/starved.rs"]
mod starved;
#[path = "agent/survival.rs"]
mod survival;
#[path = "agent/top.rs"]
mod top;
