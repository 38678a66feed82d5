//! The check API for proxies: Envoy's rate limit service, version 3, over gRPC.
//!
//! - [`descriptors`]: envoyproxy/ratelimit's files to rules, pure
//! - [`service`]: requests to answers, pure but for the limiter and its clock
//! - [`message`], [`reflection`]: the messages, for the wire and for people
//! - [`serve`]: connections; `grpc.health.v1` and reflection beside the service
//!
//! Buckets of descriptors are apart from those of clients.

pub mod descriptors;
pub mod message;
pub mod reflection;
pub mod serve;
pub mod service;
mod unary;

pub use descriptors::Rules;
pub use serve::{Limits, Server};
pub use service::Service;

/// Whether whoever shows this bearer token, or none, may check.
pub type Admit = std::sync::Arc<dyn Fn(Option<&str>) -> bool + Send + Sync>;
