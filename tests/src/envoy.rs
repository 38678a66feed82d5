//! A real Envoy in front of an upstream of its own, asking the agent about every request.
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::OrFail as _;
use crate::http::request_tcp;
use crate::netns::Netns;
use crate::process::{Child, wait_until};
use crate::residue::TEMP_PREFIX;

/// Where it takes requests, in its namespace.
pub const PROXY: &str = "127.0.0.1:10000";

/// How long it may take until it answers.
const READY_BOUND: Duration = Duration::from_secs(20);

/// A running Envoy; killed when dropped.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    _directory: TempDir,
}

impl Envoy {
    /// Starts one that asks the rate limit service at port `port` of loopback about `domain`; each
    /// entry of `limits` are the actions of one descriptor. Waits until it is ready.
    #[must_use]
    #[track_caller]
    pub fn start(netns: &Netns, port: u16, domain: &str, limits: &[Value]) -> Self {
        Self::run(netns, &by_descriptors(port, domain, limits))
    }

    /// Starts one that asks forward-auth at port `port` of loopback, by its filter `ext_authz`, and
    /// passes the client's header `identity` on. Waits until it is ready.
    #[must_use]
    #[track_caller]
    pub fn start_authz(netns: &Netns, port: u16, identity: &str) -> Self {
        Self::run(netns, &by_authz(port, identity))
    }

    #[track_caller]
    fn run(netns: &Netns, config: &Value) -> Self {
        let directory = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir()
            .or_fail("make a temporary directory");
        let file = directory.path().join("envoy.json");
        std::fs::write(&file, config.to_string()).or_fail("write Envoy's configuration");
        let mut command = Command::new(program());
        command.arg("-c").arg(&file).args([
            "--concurrency",
            "1",
            "-l",
            "warn",
            "--use-dynamic-base-id",
        ]);
        let child = netns.spawn(command);
        let envoy = Self {
            child,
            _directory: directory,
        };
        let admin = "127.0.0.1:10002".parse().or_fail("an address");
        let is_ready =
            || request_tcp(admin, "GET", "/ready", &[], None).is_ok_and(|a| a.status == 200);
        wait_until("Envoy is ready", READY_BOUND, || netns.run(is_ready));
        envoy
    }

    /// What it said.
    #[must_use]
    pub fn output(&self) -> String {
        self.child.output()
    }
}

/// Full path of the program: in the `PATH`, or where `cargo xtask setup --tests` puts it.
#[track_caller]
fn program() -> PathBuf {
    let test = std::env::current_exe().or_fail("find the test binary");
    let installed = test
        .ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "target"))
        .map(|target| target.join("tools/envoy"))
        .filter(|path| path.is_file());
    let in_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join("envoy"))
            .find(|path| path.is_file())
    };
    installed
        .or_else(in_path)
        .unwrap_or_else(|| panic!("this test needs Envoy 1.40: run `cargo xtask setup --tests`"))
}

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";

/// A cluster of one server on loopback.
fn cluster(name: &str, port: u16) -> Value {
    let endpoint = json!({ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": {
        "address": "127.0.0.1", "port_value": port } } } }] });
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": { "cluster_name": name, "endpoints": [endpoint] },
    })
}

/// Asks by the filter `ratelimit`, over gRPC.
fn by_descriptors(port: u16, domain: &str, limits: &[Value]) -> Value {
    let mut service = cluster("ratelimiter", port);
    service["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        }
    });
    // A dead or stopped limiter must cost nobody its timeout: ask whether it lives.
    service["health_checks"] = json!([{
        "timeout": "0.5s", "interval": "0.5s", "no_traffic_interval": "0.5s",
        "unhealthy_interval": "0.5s", "unhealthy_threshold": 1, "healthy_threshold": 1,
        "grpc_health_check": { "service_name": "envoy.service.ratelimit.v3.RateLimitService" },
    }]);
    service["common_lb_config"] = json!({ "healthy_panic_threshold": { "value": 0 } });
    let filter = json!({
        "name": "envoy.filters.http.ratelimit",
        "typed_config": {
            "@type": format!("{FILTERS}.http.ratelimit.v3.RateLimit"),
            "domain": domain,
            "timeout": "1s",
            "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
            "rate_limit_service": {
                "grpc_service": { "envoy_grpc": { "cluster_name": "ratelimiter" } },
                "transport_api_version": "V3",
            },
        },
    });
    let limits: Vec<Value> = limits
        .iter()
        .map(|actions| json!({ "actions": actions }))
        .collect();
    config(&service, &filter, &json!(limits))
}

/// Asks by the filter `ext_authz`, over HTTP.
fn by_authz(port: u16, identity: &str) -> Value {
    let limit_headers = json!({ "patterns": [
        { "prefix": "ratelimit" }, { "exact": "retry-after" }, { "exact": "content-type" },
    ] });
    let filter = json!({
        "name": "envoy.filters.http.ext_authz",
        "typed_config": {
            "@type": format!("{FILTERS}.http.ext_authz.v3.ExtAuthz"),
            "transport_api_version": "V3",
            "failure_mode_allow": true,
            "allowed_headers": { "patterns": [{ "exact": identity }] },
            "http_service": {
                "server_uri": {
                    "uri": format!("http://127.0.0.1:{port}"),
                    "cluster": "ratelimiter", "timeout": "1s",
                },
                "path_prefix": "/v1/authz",
                "authorization_response": {
                    "allowed_client_headers": limit_headers,
                    "allowed_client_headers_on_success": { "patterns": [{ "prefix": "ratelimit" }] },
                },
            },
        },
    });
    config(&cluster("ratelimiter", port), &filter, &json!([]))
}

fn config(service: &Value, filter: &Value, limits: &Value) -> Value {
    let listener = |name: &str, port: u16, filters: Value, routes: Value| {
        json!({
            "name": name,
            "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
                    "stat_prefix": name,
                    "http_filters": filters,
                    "route_config": { "virtual_hosts": [{
                        "name": name, "domains": ["*"], "routes": routes,
                    }] },
                },
            }] }],
        })
    };
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": format!("{FILTERS}.http.router.v3.Router") },
    });
    let proxied = json!([{
        "match": { "prefix": "/" },
        "route": { "cluster": "upstream", "rate_limits": limits },
    }]);
    // Routes that answer by themselves are never limited: the upstream is a listener.
    let answered = json!([{
        "match": { "prefix": "/" },
        "direct_response": { "status": 200, "body": { "inline_string": "upstream" } },
    }]);
    json!({
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 10002 } } },
        "static_resources": {
            "listeners": [
                listener("proxy", 10_000, json!([filter, router]), proxied),
                listener("upstream", 10_001, json!([router]), answered),
            ],
            "clusters": [cluster("upstream", 10_001), service],
        },
    })
}
