//! Forward-auth by the proxies people already run: the same requests give the same answers through
//! each of them. The configurations are what `docs/operations.md` shows.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tests::OrFail as _;
use tests::agent::Setup;
use tests::envoy::{Envoy, PROXY};
use tests::http::{Answer, request_tcp};
use tests::netns::Netns;
use tests::process::{Child, holds_within, wait_until};
use tests::residue::{Residue, TEMP_PREFIX};

use crate::limits::SMALL;

const NGINX: &str = r#"
daemon off;
master_process off;
pid DIR/nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path DIR/body;
    proxy_temp_path DIR/proxy;
    fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi;
    scgi_temp_path DIR/scgi;
    server {
        listen 127.0.0.1:8080;
        root DIR/www;
        location / {
            auth_request /authz;
            auth_request_set $retry_after $upstream_http_retry_after;
            auth_request_set $rate_limit $upstream_http_ratelimit;
            auth_request_set $rate_limit_policy $upstream_http_ratelimit_policy;
            add_header RateLimit $rate_limit;
            add_header RateLimit-Policy $rate_limit_policy;
            error_page 403 = @limited;
            # Not `index`: its redirect within nginx would ask a second time.
            try_files /index.html =404;
        }
        location = /authz {
            internal;
            proxy_pass http://127.0.0.1:9741/v1/authz?deny=403;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header X-Client-Id $http_x_user;
        }
        location @limited {
            add_header Retry-After $retry_after always;
            add_header RateLimit $rate_limit always;
            add_header RateLimit-Policy $rate_limit_policy always;
            types {}
            default_type application/problem+json;
            return 429 '{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","status":429}';
        }
    }
}
"#;

const CADDY: &str = r"
{
    admin off
    auto_https off
}
http://:8080 {
    bind 127.0.0.1
    forward_auth 127.0.0.1:9741 {
        uri /v1/authz
        header_up X-Client-Id {header.X-User}
        copy_headers RateLimit RateLimit-Policy
    }
    root * DIR/www
    file_server
}
";

const HAPROXY: &str = r"
global
    lua-load DIR/authz.lua
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend shop
    bind 127.0.0.1:8080
    http-request lua.authz
    http-request return status 200 content-type text/plain string hello
";

const HAPROXY_LUA: &str = r#"
core.register_action("authz", { "http-req" }, function(txn)
    local user = txn.sf:req_hdr("x-user")
    local answer = core.httpclient():get{
        url = "http://127.0.0.1:9741/v1/authz",
        headers = { ["x-client-id"] = { user } },
    }
    if answer.status ~= 429 and answer.status ~= 503 then return end
    local reply = txn:reply()
    reply:set_status(answer.status)
    for _, name in ipairs({ "content-type", "retry-after", "ratelimit", "ratelimit-policy" }) do
        for _, value in pairs(answer.headers[name] or {}) do reply:add_header(name, value) end
    end
    reply:set_body(answer.body)
    txn:done(reply)
end)
"#;

/// A proxy that is running, its files in a directory of its own.
struct Proxy {
    child: Child,
    _directory: TempDir,
}

fn write(directory: &Path, name: &str, text: &str) {
    let text = text.replace("DIR", &directory.to_string_lossy());
    std::fs::write(directory.join(name), text).or_fail("write a configuration");
}

impl Proxy {
    fn start(
        edge: &Netns,
        program: (&str, &str),
        files: &[(&str, &str)],
        arguments: &[&str],
    ) -> Self {
        let directory = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir()
            .or_fail("make a directory");
        let path = directory.path();
        std::fs::create_dir(path.join("www")).or_fail("make a directory");
        write(path, "www/index.html", "hello");
        for (name, text) in files {
            write(path, name, text);
        }
        let mut command = Command::new(tests::requires::program(program.0, program.1));
        let place = path.to_string_lossy();
        command
            .args(
                arguments
                    .iter()
                    .map(|argument| argument.replace("DIR", &place)),
            )
            .env("HOME", path)
            .env("XDG_DATA_HOME", path)
            .env("XDG_CONFIG_HOME", path);
        let mut child = edge.spawn(command);
        let listens = holds_within(Duration::from_secs(10), || {
            let connect = || std::net::TcpStream::connect(front()).is_ok();
            edge.run(connect) || child.exited().is_some()
        });
        assert!(listens && child.exited().is_none(), "{}", child.output());
        Self {
            child,
            _directory: directory,
        }
    }
}

fn front() -> SocketAddr {
    "127.0.0.1:8080".parse().or_fail("an address")
}

/// What every proxy must do: five pass, two are refused, somebody else passes.
fn the_same_pattern(edge: &Netns, proxy: &mut Proxy, user: &str) {
    let ask = |user: &str| -> Answer {
        let headers = [("x-user", user), ("x-forwarded-for", "203.0.113.9")];
        edge.run(|| request_tcp(front(), "GET", "/", &headers, None))
            .or_fail("no answer from the proxy")
    };
    for n in 0..7 {
        let answer = ask(user);
        let said = format!("{n}: {answer:?}\n{}", proxy.child.output());
        if n < 5 {
            assert_eq!(
                (answer.status, answer.body.trim()),
                (200, "hello"),
                "{said}"
            );
            continue;
        }
        assert_eq!(answer.status, 429, "{said}");
        let wait: u64 = answer
            .header("retry-after")
            .and_then(|wait| wait.parse().ok())
            .or_fail(&said);
        assert!((86_000..=86_400).contains(&wait), "{said}");
        assert_eq!(
            answer.header("ratelimit-policy"),
            Some("\"default\";q=5;w=86400"),
            "{said}"
        );
        let limit = answer.header("ratelimit").or_fail(&said);
        assert!(limit.starts_with("\"default\";r=0;t="), "{said}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{said}"
        );
        let problem = answer.json();
        let kind = problem["type"].as_str().or_fail(&said);
        assert!(kind.ends_with("#quota-exceeded"), "{said}");
        assert_eq!(problem["status"], 429, "{said}");
    }
    assert_eq!(ask("somebody-else").status, 200);
}

#[test]
fn nginx_caddy_and_haproxy_give_the_same_answers() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let agent = Setup::new()
        .enforce()
        .settings(SMALL)
        .check("127.0.0.1:9741")
        .check_settings("identity_header = \"X-Client-Id\"")
        .start(&edge);
    let five = json!({"limits": {"default": {"rate_limit": 5, "time_window": "1d"}}});
    for (user, program, files, arguments) in [
        (
            "of-nginx",
            ("nginx", "nginx-light"),
            &[("nginx.conf", NGINX)][..],
            &["-p", "DIR", "-e", "stderr", "-c", "DIR/nginx.conf"][..],
        ),
        (
            "of-caddy",
            ("caddy", "caddy"),
            &[("Caddyfile", CADDY)],
            &["run", "--config", "DIR/Caddyfile", "--adapter", "caddyfile"],
        ),
        (
            "of-haproxy",
            ("haproxy", "haproxy"),
            &[("haproxy.cfg", HAPROXY), ("authz.lua", HAPROXY_LUA)],
            &["-db", "-f", "DIR/haproxy.cfg"],
        ),
    ] {
        agent.put(&format!("/v1/clients/{user}"), &five).expect(201);
        let mut proxy = Proxy::start(&edge, program, files, arguments);
        the_same_pattern(&edge, &mut proxy, user);
        proxy.child.kill();
    }
}

#[test]
fn envoy_asks_forward_auth_and_fails_open_without_it() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let mut agent = Setup::new()
        .enforce()
        .settings(SMALL)
        .check("127.0.0.1:9741")
        .check_settings("identity_header = \"X-User\"")
        .start(&edge);
    let five = json!({"limits": {"default": {"rate_limit": 5, "time_window": "1d"}}});
    agent.put("/v1/clients/of-envoy", &five).expect(201);
    let envoy = Envoy::start_authz(&edge, 9741, "x-user");
    let proxy: SocketAddr = PROXY.parse().or_fail("an address");
    let ask = |user: &str, method: &str, path: &str| -> Answer {
        edge.run(|| request_tcp(proxy, method, path, &[("x-user", user)], None))
            .or_fail("no answer from Envoy")
    };
    // Whatever the method, path and query: they are the client's.
    for (method, path) in [
        ("GET", "/"),
        ("DELETE", "/a/b?peek=true"),
        ("POST", "/v1/authz?deny=403"),
        ("OPTIONS", "/%2e%2e/x"),
        ("GET", "/index.html"),
    ] {
        let answer = ask("of-envoy", method, path);
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "upstream"),
            "{method} {path}: {answer:?} {}",
            envoy.output()
        );
        assert_eq!(
            answer.header("ratelimit-policy"),
            Some("\"default\";q=5;w=86400")
        );
    }
    for _ in 0..2 {
        let refused = ask("of-envoy", "GET", "/").expect(429);
        let wait: u64 = refused
            .header("retry-after")
            .and_then(|wait| wait.parse().ok())
            .or_fail("retry-after");
        assert!((86_000..=86_400).contains(&wait), "{refused:?}");
        assert_eq!(
            refused.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(refused.json()["status"], 429);
    }
    assert_eq!(ask("somebody-else", "GET", "/").status, 200);

    agent.kill();
    assert_eq!(ask("of-envoy", "GET", "/").status, 200);
    agent.restart();
    wait_until("Envoy asks again", Duration::from_secs(10), || {
        ask("of-envoy", "GET", "/").status == 429
    });
}
