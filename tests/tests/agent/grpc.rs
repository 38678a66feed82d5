//! Envoy and Redis clients, the real ones, ask the real agent.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::OrFail as _;
use tests::agent::Setup;
use tests::http::Answer;
use tests::netns::Netns;
use tests::process::wait_until;
use tests::proxy::{App, Proxy};
use tests::residue::Residue;

use crate::limits::SMALL;

const GRPC: &str = "127.0.0.1:9742";

/// In the format of envoyproxy/ratelimit.
const DESCRIPTORS: &str = "
domain: shop
descriptors:
  - key: path
    value: /login
    rate_limit: { unit: minute, requests_per_unit: 3 }
  - key: tenant
    rate_limit: { unit: hour, requests_per_unit: 2 }
    descriptors:
      - key: method
        value: POST
        rate_limit: { unit: day, requests_per_unit: 1 }
      - key: method
        rate_limit: { unlimited: true }
  - key: shady
    shadow_mode: true
    rate_limit: { unit: month, requests_per_unit: 1 }
";

/// The descriptors of the recipe.
const RECIPE_CLIENT: &str =
    "- actions: [{ request_headers: { header_name: x-api-key, descriptor_key: client } }]";
const RECIPE_PATH: &str =
    "- actions: [{ request_headers: { header_name: \":path\", descriptor_key: path } }]";

fn header(name: &str, key: &str) -> Value {
    json!({ "request_headers": { "header_name": name, "descriptor_key": key } })
}

fn statuses(envoy: &Proxy<'_>, times: usize, path: &str, headers: &[(&str, &str)]) -> Vec<u16> {
    (0..times)
        .map(|_| envoy.ask("GET", path, headers).status)
        .collect()
}

#[test]
fn envoy_limits_by_descriptors_and_follows_their_file() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let directory = tempfile::tempdir().or_fail("make a directory");
    let file = directory.path().join("descriptors.yaml");
    fs::write(&file, DESCRIPTORS).or_fail("write the descriptors");
    let mut agent = Setup::new()
        .enforce()
        .settings(SMALL)
        .grpc(GRPC)
        .check_settings(&format!("descriptors = [\"{}\"]", file.display()))
        .start(&edge);
    let limits = [
        json!([header(":path", "path")]),
        json!([header("x-tenant", "tenant")]),
        json!([header("x-tenant-of", "tenant"), header(":method", "method")]),
        json!([header("x-shady", "shady")]),
    ];
    // The recipe, with descriptors of its own.
    let limits: Vec<Value> = limits
        .iter()
        .map(|actions| json!({ "actions": actions }))
        .collect();
    let limits = format!("rate_limits: {}", json!(limits));
    let _app = App::start(&edge);
    let envoy = Proxy::start_changed(
        &edge,
        "envoy-rls",
        0,
        &[
            ("rate_limits:", &limits),
            (RECIPE_CLIENT, ""),
            (RECIPE_PATH, ""),
        ],
    );
    let get = |path: &str, headers: &[(&str, &str)]| -> Answer { envoy.ask("GET", path, headers) };

    // What nobody limits passes, and says so by saying nothing.
    wait_until("Envoy asks the agent", Duration::from_secs(10), || {
        let answer = get("/login?warm", &[("x-shady", "x")]);
        answer.header("x-ratelimit-limit").is_some()
    });
    let free = get("/", &[]);
    assert_eq!((free.status, free.body.as_str()), (200, "upstream"));
    assert_eq!(free.header("x-ratelimit-limit"), None, "{}", envoy.output());

    // Three a minute, then refusals with the headers of both drafts.
    for left in ["2", "1", "0"] {
        let passed = get("/login", &[]).expect(200);
        assert_eq!(passed.header("x-ratelimit-limit"), Some("3, 3;w=60"));
        assert_eq!(passed.header("x-ratelimit-remaining"), Some(left));
    }
    let refused = get("/login", &[]).expect(429);
    assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    assert_eq!(
        refused.header("ratelimit-policy"),
        Some("\"default\";q=3;w=60")
    );
    let wait: u64 = refused
        .header("retry-after")
        .and_then(|text| text.parse().ok())
        .or_fail("retry-after");
    assert!((50..=60).contains(&wait), "{wait}");

    // Each tenant has a bucket; nested descriptors have their own; shadow never refuses.
    for tenant in ["a", "b"] {
        assert_eq!(
            statuses(&envoy, 3, "/", &[("x-tenant", tenant)]),
            [200, 200, 429]
        );
    }
    assert_eq!(statuses(&envoy, 3, "/", &[("x-tenant-of", "a")]), [200; 3]);
    assert_eq!(statuses(&envoy, 3, "/", &[("x-shady", "y")]), [200; 3]);
    // All or nothing: the refusal by the path charged the tenant nothing.
    assert_eq!(
        statuses(&envoy, 2, "/login", &[("x-tenant", "c")]),
        [429; 2]
    );
    assert_eq!(
        statuses(&envoy, 3, "/", &[("x-tenant", "c")]),
        [200, 200, 429]
    );

    // A broken file changes nothing; a good one applies, without a second burst.
    fs::write(&file, "domain: shop\nrates: 3\n").or_fail("write the descriptors");
    wait_until("the file is refused", Duration::from_secs(10), || {
        agent
            .get("/metrics")
            .body
            .contains("ratelimiter_reloads_total{outcome=\"failed\"} 1")
            || agent.child().output().contains("configuration refused")
    });
    assert_eq!(get("/login", &[]).status, 429);
    let raised = DESCRIPTORS.replace("requests_per_unit: 3", "requests_per_unit: 5");
    fs::write(&file, raised).or_fail("write the descriptors");
    wait_until("the new limit applies", Duration::from_secs(10), || {
        get("/login", &[]).status == 200
    });
    assert_eq!(statuses(&envoy, 3, "/login", &[]), [200, 429, 429]);

    // Without a limiter Envoy lets everything pass within moments; with it, usage is what it was.
    agent.kill();
    wait_until("Envoy fails open", Duration::from_secs(10), || {
        get("/login", &[]).status == 200
    });
    agent.restart();
    wait_until("Envoy asks again", Duration::from_secs(10), || {
        get("/login", &[]).status == 429
    });
}

#[test]
fn redis_cli_asks_as_it_asks_redis_cell() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let _agent = Setup::new()
        .enforce()
        .settings(SMALL)
        .check_settings("resp = \"127.0.0.1:9743\"")
        .start(&edge);
    let ask = |arguments: &str| {
        let mut command = Command::new(tests::requires::program("redis-cli", "redis-tools"));
        command.args(["-p", "9743"]).args(arguments.split(' '));
        edge.prepare(&mut command);
        let output = command.output().or_fail("run redis-cli");
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .replace('\n', " ")
    };
    assert_eq!(ask("PING"), "PONG");
    assert_eq!(ask("CL.THROTTLE user123 15 30 60"), "0 16 15 -1 2");
    assert_eq!(ask("CL.THROTTLE once 0 1 3600"), "0 1 0 -1 3600");
    let refused = ask("CL.THROTTLE once 0 1 3600");
    let numbers: Vec<i64> = refused.split(' ').filter_map(|n| n.parse().ok()).collect();
    assert_eq!(numbers[..3], [1, 1, 0], "{refused}");
    assert!((3_590..=3_600).contains(&numbers[3]), "{refused}");
    assert!(ask("GET x").starts_with("ERR unknown command"));
}

#[test]
fn health_and_reflection_answer_tools() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";

    let _residue = Residue::watch();
    let edge = Netns::new();
    let _agent = Setup::new()
        .enforce()
        .settings(SMALL)
        .grpc(GRPC)
        .start(&edge);
    edge.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .or_fail("make a runtime");
        runtime.block_on(async {
            let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:9742")
                .connect()
                .await
                .or_fail("connect");
            let ask = tonic_health::pb::HealthCheckRequest {
                service: SERVICE.to_owned(),
            };
            let health = HealthClient::new(channel.clone()).check(ask).await;
            // 1 is SERVING.
            assert_eq!(health.or_fail("health").into_inner().status, 1);

            let requests = [
                MessageRequest::ListServices(String::new()),
                MessageRequest::FileContainingSymbol(SERVICE.to_owned()),
            ];
            let requests = requests.map(|request| ServerReflectionRequest {
                host: String::new(),
                message_request: Some(request),
            });
            let stream = futures_util::stream::iter(requests);
            let mut answers = ServerReflectionClient::new(channel)
                .server_reflection_info(stream)
                .await
                .or_fail("reflection")
                .into_inner();
            let mut next = async || {
                let message = answers.message().await.or_fail("an answer");
                message.and_then(|answer| answer.message_response)
            };
            let Some(MessageResponse::ListServicesResponse(list)) = next().await else {
                panic!("no list of services");
            };
            assert!(
                list.service.iter().any(|service| service.name == SERVICE),
                "{list:?}"
            );
            let Some(MessageResponse::FileDescriptorResponse(files)) = next().await else {
                panic!("the service is not described");
            };
            assert!(!files.file_descriptor_proto.is_empty());
        });
    });
}
