//! The rows of servers: ours beside an axum handler and throttlecrab-server, one CPU for whichever
//! is asked, one for the load, in turns.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prost::Message;
use ratelimiter_userspace::grpc::message::{Entry, RateLimitDescriptor, RateLimitRequest};
use tests::process::{Child, Spawn, wait_until};
use tests::program::pin_to_cpu;

use super::serve::{Kind, LIMIT, SERVER_CPU};
use super::wire::{self, Grpc, Http, Questions, Resp};
use super::{Figures, Random, Row, id, load};

const ROUNDS: usize = 5;
const LOAD_CPU: usize = 1;
/// How long each server is asked in a round.
const TURN: Duration = Duration::from_millis(1_500);
const CONNECTIONS: usize = 32;
const PIPELINE: usize = 64;
const PIPELINES: usize = 16;
/// Clients that ask, so many that none is ever refused.
const CLIENTS: usize = 10_000;
/// Distinct questions.
const QUESTIONS: usize = 8_192;
/// The first port; the rest follow.
const PORT: u16 = 19_740;
const CRAB: &str = "throttlecrab-server";

/// One server under measurement.
struct Server {
    address: SocketAddr,
    _process: Child,
}

impl Server {
    fn start(port: u16, command: Command) -> Self {
        let process = Spawn::new(command).start();
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        wait_until("a server listens", Duration::from_secs(10), || {
            std::net::TcpStream::connect(address).is_ok()
        });
        Self {
            address,
            _process: process,
        }
    }

    fn ours(kind: Kind, port: u16) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--serve", kind.name(), &port.to_string()]);
        Ok(Self::start(port, command))
    }

    fn crab(kind: &str, port: u16) -> anyhow::Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", &SERVER_CPU.to_string()]).arg(crab()?);
        command.args([format!("--{kind}"), format!("--{kind}-port")]);
        command.arg(port.to_string());
        command.args([&format!("--{kind}-host"), "127.0.0.1"]);
        command.args(["--log-level", "error"]);
        Ok(Self::start(port, command))
    }
}

/// Where `cargo xtask setup --rivals` puts it, or in the `PATH`.
fn crab() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let installed = this
        .ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "target"))
        .map(|target| target.join("tools/throttlecrab/bin").join(CRAB))
        .filter(|path| path.is_file());
    let in_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join(CRAB))
            .find(|path| path.is_file())
    };
    installed.or_else(in_path).with_context(|| {
        format!("`{CRAB}` 0.4.40 is missing: `cargo xtask bench check` installs it")
    })
}

/// Questions about clients in random order.
fn questions(count: usize, question: impl Fn(&mut dyn FnMut() -> String) -> Vec<u8>) -> Questions {
    let mut random = Random(11);
    let mut client = || id(random.below(CLIENTS));
    Arc::new((0..count).map(|_| question(&mut client)).collect())
}

/// A connection for each beginning.
fn wires<W>(count: usize, make: impl Fn(usize) -> W) -> Vec<W> {
    (0..count)
        .map(|number| make(number * QUESTIONS / count))
        .collect()
}

const ALLOWED: &[u8] = b"\"allowed\":true";

fn ours_http() -> Questions {
    questions(QUESTIONS, |client| {
        wire::http_question("/v1/check", &format!("{{\"client_id\":\"{}\"}}", client()))
    })
}

fn http_wires(questions: &Questions, expect: &'static [u8]) -> Vec<Http> {
    wires(CONNECTIONS, |at| Http {
        questions: Arc::clone(questions),
        at,
        expect,
    })
}

/// HTTP: echo, ours, theirs; then the 99th percentiles at half of what ours can.
fn http(figures: &mut Figures) -> anyhow::Result<()> {
    let echo = Server::ours(Kind::Echo, PORT)?;
    let ours = Server::ours(Kind::Http, PORT + 1)?;
    let crab = Server::crab("http", PORT + 2)?;
    let asked = ours_http();
    let asked_crab = questions(QUESTIONS, |client| {
        let body = format!(
            "{{\"key\":\"{}\",\"max_burst\":{LIMIT},\"count_per_period\":{LIMIT},\"period\":60}}",
            client()
        );
        wire::http_question("/throttle", &body)
    });
    for _ in 0..ROUNDS {
        for (name, server, questions, expect) in [
            ("http_echo", &echo, &asked, &b"client_id"[..]),
            ("http_ours", &ours, &asked, ALLOWED),
            ("http_crab", &crab, &asked_crab, ALLOWED),
        ] {
            let per_second = load::flat_out(server.address, http_wires(questions, expect), TURN)?;
            figures.push(name, per_second / 1_000.0);
        }
    }
    let rate = figures.median("http_ours") * 500.0;
    for _ in 0..ROUNDS {
        for (name, server, expect) in [
            ("p99_echo", &echo, &b"client_id"[..]),
            ("p99_ours", &ours, ALLOWED),
        ] {
            let wires = http_wires(&asked, expect);
            figures.push(name, load::paced(server.address, wires, rate, TURN)?);
        }
    }
    Ok(())
}

fn grpc(figures: &mut Figures) -> anyhow::Result<()> {
    /// `throttlecrab.ThrottleRequest`.
    #[derive(Clone, PartialEq, Message)]
    struct ThrottleRequest {
        #[prost(string, tag = "1")]
        key: String,
        #[prost(int32, tag = "2")]
        max_burst: i32,
        #[prost(int32, tag = "3")]
        count_per_period: i32,
        #[prost(int32, tag = "4")]
        period: i32,
        #[prost(int32, tag = "5")]
        quantity: i32,
    }
    let ours = Server::ours(Kind::Grpc, PORT + 3)?;
    let crab = Server::crab("grpc", PORT + 4)?;
    let asked = questions(QUESTIONS, |client| {
        let request = RateLimitRequest {
            domain: "bench".to_owned(),
            descriptors: vec![RateLimitDescriptor {
                entries: vec![Entry {
                    key: "client".to_owned(),
                    value: client(),
                }],
                ..RateLimitDescriptor::default()
            }],
            hits_addend: 0,
        };
        wire::grpc_question(&request.encode_to_vec())
    });
    let asked_crab = questions(QUESTIONS, |client| {
        let limit = i32::try_from(LIMIT).unwrap_or(i32::MAX);
        let request = ThrottleRequest {
            key: client(),
            max_burst: limit,
            count_per_period: limit,
            period: 60,
            quantity: 1,
        };
        wire::grpc_question(&request.encode_to_vec())
    });
    for _ in 0..ROUNDS {
        for (name, server, questions, path) in [
            (
                "grpc_ours",
                &ours,
                &asked,
                "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
            ),
            (
                "grpc_crab",
                &crab,
                &asked_crab,
                "/throttlecrab.RateLimiter/Throttle",
            ),
        ] {
            let wires = wires(CONNECTIONS, |at| Grpc {
                questions: Arc::clone(questions),
                at,
                path,
                stream: 1,
            });
            let per_second = load::flat_out(server.address, wires, TURN)?;
            figures.push(name, per_second / 1_000.0);
        }
    }
    Ok(())
}

fn resp(figures: &mut Figures) -> anyhow::Result<()> {
    let ours = Server::ours(Kind::Resp, PORT + 5)?;
    let crab = Server::crab("redis", PORT + 6)?;
    let limit = LIMIT.to_string();
    let pipeline = |command: &'static str| {
        questions(QUESTIONS / PIPELINE, |client| {
            let words = |id: &str| wire::resp_question(&[command, id, &limit, &limit, "60"]);
            (0..PIPELINE).flat_map(|_| words(&client())).collect()
        })
    };
    let (asked, asked_crab) = (pipeline("CL.THROTTLE"), pipeline("THROTTLE"));
    for _ in 0..ROUNDS {
        for (name, server, questions, expect) in [
            ("resp64_ours", &ours, &asked, &b"*5\r\n:0"[..]),
            ("resp64_crab", &crab, &asked_crab, &b"*5\r\n:1"[..]),
        ] {
            let wires = (0..PIPELINES)
                .map(|at| Resp {
                    questions: Arc::clone(questions),
                    at,
                    depth: PIPELINE,
                    expect,
                })
                .collect();
            let per_second = load::flat_out(server.address, wires, TURN)?;
            figures.push(name, per_second / 1_000.0);
        }
    }
    Ok(())
}

/// A part, by name.
type Part = (&'static str, fn(&mut Figures) -> anyhow::Result<()>);

/// Measures what `only` names, or everything.
pub(crate) fn measure(figures: &mut Figures, only: &str) -> anyhow::Result<()> {
    pin_to_cpu(LOAD_CPU);
    let parts: [Part; 3] = [("http", http), ("grpc", grpc), ("resp", resp)];
    for (name, part) in parts {
        if only.is_empty() || only == "servers" || only == name {
            part(figures)?;
        }
    }
    Ok(())
}

/// The rows, with their goals.
pub(crate) fn rows(figures: &Figures) -> Vec<(Row, &'static str)> {
    [
        ("http_vs_axum", "http_ours", "http_echo", "ratio >= 0.9"),
        (
            "http_vs_throttlecrab",
            "http_ours",
            "http_crab",
            "ratio >= 1.25",
        ),
        (
            "grpc_vs_throttlecrab",
            "grpc_ours",
            "grpc_crab",
            "ratio >= 1",
        ),
        (
            "resp64_vs_throttlecrab",
            "resp64_ours",
            "resp64_crab",
            "ratio >= 6",
        ),
        ("p99_vs_echo", "p99_ours", "p99_echo", "ratio <= 1.5"),
    ]
    .into_iter()
    .map(|(name, ours, theirs, goal)| {
        let (ours, theirs) = (figures.median(ours), figures.median(theirs));
        let row = Row {
            name: name.to_owned(),
            value: ours,
            unit: if name == "p99_vs_echo" { "us" } else { "k/s" },
            baseline: Some(theirs),
            ratio: Some(ours / theirs),
        };
        (row, goal)
    })
    .collect()
}
