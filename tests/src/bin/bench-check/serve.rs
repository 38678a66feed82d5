//! The servers under measurement, each alone in a process of its own that is bound to one CPU.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::body::Bytes;
use axum::routing::post;
use ratelimiter_userspace::check::Checks;
use ratelimiter_userspace::config::Settings;
use ratelimiter_userspace::grpc::{self, Rules, Service};
use ratelimiter_userspace::http::check::CheckApi;
use ratelimiter_userspace::http::connections::ConnectionStats;
use ratelimiter_userspace::http::{self, Listener, Workers};
use ratelimiter_userspace::limiter::IdentityKey;
use ratelimiter_userspace::policy::model::{Document, Mode};
use ratelimiter_userspace::resp::{self, Throttle};
use tests::program::pin_to_cpu;
use tokio::net::TcpListener;

/// Where servers run; the load runs on the other.
pub(crate) const SERVER_CPU: usize = 0;

/// Requests per minute of one client: more than any row asks of one.
pub(crate) const LIMIT: u64 = 60_000;

/// A server of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An axum handler that returns the body it read.
    Echo,
    /// The check API over HTTP.
    Http,
    /// Envoy's rate limit service.
    Grpc,
    /// The Redis protocol.
    Resp,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Echo, Self::Http, Self::Grpc, Self::Resp];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Resp => "resp",
        }
    }
}

/// Serves until killed.
pub(crate) fn main(kind: &str, port: &str) -> anyhow::Result<()> {
    let kind = Kind::ALL
        .into_iter()
        .find(|known| known.name() == kind)
        .with_context(|| format!("no server is called `{kind}`"))?;
    let address = format!("127.0.0.1:{port}");
    // Before any thread is started: they inherit it, and count themselves by it.
    pin_to_cpu(SERVER_CPU);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match kind {
            Kind::Echo => {
                let echo =
                    axum::Router::new().route("/v1/check", post(|body: Bytes| async { body }));
                axum::serve(TcpListener::bind(&address).await?, echo).await?;
            }
            Kind::Http => {
                let listener = Listener::tcp(address.parse()?, false).await?;
                let api = CheckApi::new(checks()?, false, 64 * 1024, Duration::from_secs(5));
                let limits = http::Limits::default();
                let stats = Arc::<ConnectionStats>::default();
                let workers = Some(Arc::new(Workers::start()?));
                http::serve(listener, api, limits, stats, workers, pending()).await;
            }
            Kind::Grpc => {
                let service = Arc::new(Service::new(checks()?.limiter().clone()));
                let rules = format!(
                    "domain: bench\ndescriptors:\n  - key: client\n    \
                     rate_limit: {{ unit: minute, requests_per_unit: {LIMIT} }}\n"
                );
                service.replace(Rules::parse([("bench.yaml", rules.as_str())])?, false)?;
                let server =
                    grpc::Server::new(service, Arc::new(|_| true), grpc::Limits::default())?;
                server
                    .serve(TcpListener::bind(&address).await?, pending())
                    .await;
            }
            Kind::Resp => {
                let throttle = Arc::new(Throttle::new(checks()?.limiter().clone()));
                let listener = TcpListener::bind(&address).await?;
                let limits = resp::Limits::default();
                resp::serve(listener, throttle, Arc::new(|_| true), limits, pending()).await;
            }
        }
        Ok(())
    })
}

/// The check plane as an agent has it, enforcing one limit for everybody.
fn checks() -> anyhow::Result<Checks> {
    let settings = Settings {
        enforce: true,
        ..Settings::default()
    };
    let checks = Checks::new(&settings, IdentityKey::random(), Arc::default())?;
    let document: Document = serde_json::from_value(serde_json::json!({
        "segments": { "default": { "limits": { "default": {
            "rate_limit": LIMIT, "time_window": 60,
        } } } }
    }))?;
    checks.apply(&document, Mode::Enforce)?;
    Ok(checks)
}
