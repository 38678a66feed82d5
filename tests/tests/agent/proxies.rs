//! The proxies people already run, each from the very files of `examples/`: the same requests give
//! the same answers through each of them, and a limiter that hangs or is gone costs nobody more
//! than a moment.

use std::time::Duration;

use ratelimiter_userspace::clock;
use serde_json::{Value, json};
use tests::OrFail as _;
use tests::agent::{Agent, Setup};
use tests::netns::Netns;
use tests::process::{rest, wait_until};
use tests::proxy::{App, Proxy, example_file};
use tests::residue::{Residue, TEMP_PREFIX};

use crate::limits::SMALL;

/// Recipes by forward-auth.
const BY_HTTP: [&str; 6] = [
    "caddy",
    "envoy-ext-authz",
    "haproxy-lua",
    "nginx-403",
    "nginx-500",
    "nginx-lua",
];

/// How soon a limiter that hangs or is gone must cost nobody anything any more.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(3);

/// How long until a proxy asks again: nginx has no health checks, and leaves a server alone for 10 s.
const ASKS_AGAIN_WITHIN: Duration = Duration::from_secs(30);

/// Half of the time that the recipes give the limiter: what takes longer has waited for it.
const WAITED: Duration = Duration::from_millis(50);

/// Where only the answers count: a machine that is busy must not look like a limiter that hangs.
const PATIENT: [(&str, &str); 2] = [("100ms", "5s"), ("0.1s", "5s")];

fn setup() -> Setup {
    Setup::new()
        .enforce()
        .settings(SMALL)
        .check("127.0.0.1:9741")
        // As `examples/ratelimiter.toml` has it.
        .check_settings("identity_header = \"X-Api-Key\"\ntrusted_proxies = [\"127.0.0.0/8\"]")
}

fn five_a_day() -> Value {
    json!({"limits": {"default": {"rate_limit": 5, "time_window": "1d"}}})
}

/// What every proxy must do: five pass, two are refused, somebody else passes.
fn the_same_pattern(proxy: &Proxy<'_>, key: &str) {
    let ask = |key: &str| {
        let headers = [("x-api-key", key), ("x-forwarded-for", "203.0.113.9")];
        proxy.ask("GET", "/", &headers)
    };
    for n in 0..7 {
        let answer = ask(key);
        let said = format!("{key} {n}: {answer:?}\n{}", proxy.output());
        if n < 5 {
            assert_eq!(
                (answer.status, answer.body.trim()),
                (200, "upstream"),
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
    // Longer than an id may be: limited by its address, and no error of anybody's.
    if !proxy.is("envoy") && !proxy.is("caddy") {
        assert_eq!(ask(&"x".repeat(300)).status, 200, "{}", proxy.output());
    }
}

#[test]
fn nginx_caddy_and_haproxy_give_the_same_answers() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let _app = App::start(&edge);
    let agent = setup().start(&edge);
    for name in BY_HTTP {
        agent
            .put(&format!("/v1/clients/of-{name}"), &five_a_day())
            .expect(201);
        let proxy = Proxy::start_changed(&edge, name, 0, &PATIENT);
        the_same_pattern(&proxy, &format!("of-{name}"));
    }
}

#[test]
fn envoy_asks_forward_auth_and_fails_open_without_it() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let _app = App::start(&edge);
    let mut agent = setup().start(&edge);
    agent.put("/v1/clients/of-envoy", &five_a_day()).expect(201);
    let envoy = Proxy::start_changed(&edge, "envoy-ext-authz", 0, &PATIENT);
    let ask = |key: &str, method: &str, path: &str| envoy.ask(method, path, &[("x-api-key", key)]);
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

/// A proxy under watch.
struct Watched<'a> {
    name: &'static str,
    proxy: Proxy<'a>,
    /// The longest that a refusal took while the limiter was well.
    healthy: Duration,
}

impl Watched<'_> {
    /// Asks for who has nothing left; returns the status and how long it took. Never 5xx.
    fn ask(&self) -> (u16, Duration) {
        let start = clock::instant();
        let key = format!("of-{}", self.name);
        let answer = self.proxy.ask("GET", "/login", &[("x-api-key", &key)]);
        let took = start.elapsed();
        assert!(
            answer.status < 500,
            "{}: {answer:?}\n{}",
            self.name,
            self.proxy.output()
        );
        (answer.status, took)
    }
}

/// Asks all proxies in turn until five requests to each, but for one that the machine held up, pass
/// without having waited for the limiter; that must begin soon. The first request may wait.
fn forgotten(watched: &[Watched<'_>], what: &str) {
    let gone = clock::instant();
    let mut rounds: Vec<(Duration, Vec<(u16, Duration)>)> = Vec::new();
    while gone.elapsed() < FORGOTTEN_WITHIN * 3 {
        let began = gone.elapsed();
        rounds.push((began, watched.iter().map(Watched::ask).collect()));
        let Some(first) = rounds.len().checked_sub(5).filter(|first| *first > 0) else {
            continue;
        };
        let last = &rounds[first..];
        let calm = watched.iter().enumerate().all(|(n, of)| {
            let mut times: Vec<Duration> = last.iter().map(|(_, asked)| asked[n].1).collect();
            times.sort_unstable();
            let passes = last.iter().all(|(_, asked)| asked[n].0 == 200);
            passes && times[3] < of.healthy + WAITED
        });
        if calm {
            let after = last[0].0;
            println!("{what}: nobody waits after {after:?}");
            assert!(after < FORGOTTEN_WITHIN, "{what}: {after:?}, {rounds:?}");
            return;
        }
        rest(Duration::from_millis(10));
    }
    panic!("{what}: requests still wait for the limiter, or are refused: {rounds:?}");
}

fn ask_again(watched: &[Watched<'_>]) {
    for of in watched {
        wait_until(of.name, ASKS_AGAIN_WITHIN, || of.ask().0 == 429);
    }
}

#[test]
fn no_proxy_waits_for_a_limiter_that_hangs_or_is_gone() {
    let _residue = Residue::watch();
    let edge = Netns::new();
    let _app = App::start(&edge);
    let directory = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempdir()
        .or_fail("make a directory");
    let descriptors = directory.path().join("descriptors.yaml");
    let mut setup = setup();
    if cfg!(feature = "grpc") {
        // So that nobody is given more while the test runs.
        let text = example_file("envoy-rls", "descriptors.yaml").replace("minute", "day");
        std::fs::write(&descriptors, text).or_fail("write the descriptors");
        setup = setup
            .grpc("127.0.0.1:9742")
            .check_settings(&format!("descriptors = [\"{}\"]", descriptors.display()));
    }
    let mut agent = setup.start(&edge);
    let mut names = BY_HTTP.to_vec();
    if cfg!(feature = "grpc") {
        names.push("envoy-rls");
    }
    let watched: Vec<Watched<'_>> = (1_u16..)
        .zip(names)
        .map(|(number, name)| exhausted(&edge, &agent, name, number))
        .collect();

    agent.child().signal(libc::SIGSTOP);
    forgotten(&watched, "a limiter that hangs");
    agent.child().signal(libc::SIGCONT);
    ask_again(&watched);
    agent.kill();
    forgotten(&watched, "a limiter that is gone");
    agent.restart();
    ask_again(&watched);
}

/// Starts a proxy and uses up the limit of a client behind it.
fn exhausted<'a>(
    edge: &'a Netns,
    agent: &Agent<'_>,
    name: &'static str,
    number: u16,
) -> Watched<'a> {
    agent
        .put(&format!("/v1/clients/of-{name}"), &five_a_day())
        .expect(201);
    let mut watched = Watched {
        name,
        proxy: Proxy::start_changed(edge, name, number, &[]),
        healthy: Duration::ZERO,
    };
    // Envoy lets requests through until its first health check of the limiter.
    wait_until(name, ASKS_AGAIN_WITHIN, || watched.ask().0 == 429);
    let mut refusals = 0;
    wait_until(name, ASKS_AGAIN_WITHIN, || {
        let (status, took) = watched.ask();
        // What passes had waited in vain, for the machine was busy.
        if status == 429 {
            refusals += 1;
            watched.healthy = watched.healthy.max(took);
        }
        refusals == 20
    });
    watched
}
