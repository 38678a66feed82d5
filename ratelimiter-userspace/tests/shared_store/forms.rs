//! One suite over every form of a store: a server over TCP, TLS with an ACL, Sentinels, a cluster.
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ratelimiter_userspace::clock;
use ratelimiter_userspace::config::Secret;
use ratelimiter_userspace::policy::model::Algorithm;
use ratelimiter_userspace::redis::{Options, Put, RedisStore, What};
use ratelimiter_userspace::sync::config::{Body, Head};
use ratelimiter_userspace::sync::{Answer, Beat, Entry, FleetKey, FleetQuota, Settle as _};
use tempfile::TempDir;

use crate::server::{options, wait_until};

/// Processes in one directory; all killed when dropped.
struct Processes {
    children: Vec<Child>,
    directory: TempDir,
}

impl Processes {
    fn new() -> Self {
        Self {
            children: Vec::new(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a `redis-server` in a directory of its own.
    fn start(&mut self, name: &str, arguments: &[&str]) {
        let directory = self.path().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let child = Command::new("redis-server")
            .args(arguments)
            .current_dir(&directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server must be installed: `apt-get install redis-server`");
        self.children.push(child);
    }

    fn server(&mut self, port: u16, more: &[&str]) {
        let port_text = port.to_string();
        let mut arguments = vec!["--bind", "127.0.0.1", "--save", "", "--port", &port_text];
        arguments.extend(more);
        self.start(&port_text, &arguments);
        wait_until("redis-server answers", || {
            asks(port, &["PING"]) == Some("PONG".to_owned())
        });
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

fn asks(port: u16, words: &[&str]) -> Option<String> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).ok()?;
    let mut connection = client
        .get_connection_with_timeout(Duration::from_secs(1))
        .ok()?;
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command.query(&mut connection).ok()
}

/// Ports that were free a moment ago, all different.
fn ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn run(program: &str, directory: &Path, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program} must be installed: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

fn settle(store: &RedisStore, batch: &[Entry]) -> Option<Vec<Answer>> {
    let settled = store.runtime().block_on(store.settle(batch)).ok()?;
    Some(settled.answers)
}

/// What every form must do, after it is connected: many keys in one batch, each algorithm, each key
/// charged once, and the registry.
fn functional(store: &RedisStore) {
    wait_until("the store is connected", || store.is_connected());
    let batch = batch();
    for (round, granted) in [4, 4, 2].into_iter().enumerate() {
        let answers = settle(store, &batch).unwrap_or_else(|| panic!("{:?}", store.figures()));
        for (answer, entry) in answers.iter().zip(&batch) {
            assert_eq!(
                answer.granted, granted,
                "round {round}: {entry:?} {answer:?}"
            );
            assert_eq!(answer.fleet_spend, [4, 8, 10][round]);
        }
    }
    let beat = Beat {
        host: 1,
        ..Beat::default()
    };
    let fleet = store.runtime().block_on(store.beat(&beat)).unwrap();
    assert_eq!((fleet.known, fleet.live), (1, 1));
    configuration(store);
}

/// Keys all over the slots of a cluster, each asking for 4 of 10.
fn batch() -> Vec<Entry> {
    let quota = |algorithm| FleetQuota {
        algorithm,
        limit: 10,
        burst: 10,
        window_us: 60_000_000,
        grain: 1,
        revision: 1,
    };
    let algorithms = [
        Algorithm::TokenBucket,
        Algorithm::SlidingLog,
        Algorithm::SlidingWindow,
        Algorithm::FixedWindow,
    ];
    (1..=200_u128)
        .map(|n| {
            let key = FleetKey(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            Entry::take(key, quota(algorithms[n as usize % 4]), 4, 1)
        })
        .collect()
}

/// One configuration: seen, changed by whoever knows it, and by nobody else.
fn configuration(store: &RedisStore) {
    let secret = [0; 16];
    let sealed = |revision, what: &str| {
        let body = Body {
            what: what.to_owned(),
            ..Body::default()
        };
        let bytes = serde_json::to_vec(&body).unwrap();
        (Head::of(&secret, 9, revision, &bytes), bytes, body)
    };
    let look = |known: &str| {
        store
            .runtime()
            .block_on(store.configuration(known.as_bytes()))
    };
    let put = |expected: &str, (head, bytes, _): &(Head, Vec<u8>, Body)| {
        let put = store.configure(expected.as_bytes(), head, bytes);
        store.runtime().block_on(put)
    };
    let absent = look("").unwrap().unwrap();
    assert_eq!((absent.what, absent.raw.len()), (What::Absent, 0));
    let (first, second) = (sealed(1, "first"), sealed(2, "second"));
    assert_eq!(put("", &first), Ok(Put::Written));
    let (one, two) = (first.0.to_string(), second.0.to_string());
    // Whoever knows it is sent nothing; whoever does not is sent it.
    assert_eq!(look(&one), Ok(None));
    let found = look("").unwrap().unwrap();
    assert_eq!(found.what, What::Whole(first.0, Box::new(first.2.clone())));
    // Two changes of the same: one is made, and the other sees it.
    assert_eq!(put(&one, &second), Ok(Put::Written));
    let Ok(Put::Moved(found)) = put(&one, &sealed(2, "another")) else {
        panic!("two writes under one condition");
    };
    assert_eq!(
        found.what,
        What::Whole(second.0, Box::new(second.2.clone()))
    );
    assert_eq!(found.raw, two.as_bytes());
    // What no host of the fleet wrote is told apart.
    let (head, _, _) = sealed(3, "third");
    let forged = (head, b"{}".to_vec(), Body::default());
    assert_eq!(put(&two, &forged), Ok(Put::Written));
    assert_eq!(look(&two).unwrap().unwrap().what, What::Damaged);
    let strange = br#"{"by":"a newer agent","colour":"red"}"#.to_vec();
    let strange = (Head::of(&secret, 9, 4, &strange), strange, Body::default());
    assert_eq!(put(&head.to_string(), &strange), Ok(Put::Written));
    let found = look(&two).unwrap().unwrap();
    assert!(
        matches!(found.what, What::Unknown(head, _) if head == strange.0),
        "{found:?}"
    );
}

/// Asks until the store grants something; how long that took.
fn until_granted(store: &RedisStore, key: u128) -> Duration {
    let quota = FleetQuota {
        algorithm: Algorithm::TokenBucket,
        limit: 1_000_000,
        burst: 1_000_000,
        window_us: 1_000_000,
        grain: 1,
        revision: 1,
    };
    let begin = clock::instant();
    loop {
        let batch = [Entry::take(FleetKey(key), quota, 1, 1)];
        if settle(store, &batch).is_some_and(|answers| answers[0].granted == 1) {
            return begin.elapsed();
        }
        let figures = store.figures();
        assert!(begin.elapsed() < Duration::from_secs(10), "{figures:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn a_server_over_tcp_with_a_database() {
    let [port] = ports();
    let mut processes = Processes::new();
    processes.server(port, &[]);
    let store = RedisStore::open(options(&format!("redis://127.0.0.1:{port}/3"), None)).unwrap();
    functional(&store);
    assert_eq!(asks(port, &["DBSIZE"]), Some("0".to_owned()));
}

#[test]
fn a_server_over_tls_with_an_acl() {
    let [port, plain] = ports();
    let mut processes = Processes::new();
    let directory = processes.path().to_owned();
    let subject = ["-subj", "/CN=ratelimiter test"];
    for (ca, name) in [("ca", "server"), ("other", "unused")] {
        let (key, certificate) = (format!("{ca}.key"), format!("{ca}.crt"));
        let mut arguments = vec![
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ];
        arguments.extend(["-keyout", &key, "-out", &certificate]);
        arguments.extend(subject);
        run("openssl", &directory, &arguments);
        let (key, request) = (format!("{name}.key"), format!("{name}.csr"));
        let mut arguments = vec![
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &request,
        ];
        arguments.extend(subject);
        run("openssl", &directory, &arguments);
    }
    std::fs::write(
        directory.join("names"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\n",
    )
    .unwrap();
    run(
        "openssl",
        &directory,
        &[
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-days",
            "2",
            "-CAcreateserial",
            "-extfile",
            "names",
            "-out",
            "server.crt",
        ],
    );
    let (tls_port, at) = (port.to_string(), |name: &str| {
        directory.join(name).display().to_string()
    });
    let (certificate, key, ca) = (at("server.crt"), at("server.key"), at("ca.crt"));
    processes.server(
        plain,
        &[
            "--tls-port",
            &tls_port,
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            "no",
        ],
    );
    // The rights that docs/redis-keys.md names, and no more.
    let words = "ACL SETUSER ratelimiter on >open-sesame-1234 ~rl:* ~{rl}:* +@scripting +@connection \
                 +time +get +set +del +type +hget +hset +hstrlen +persist +pexpire +zadd +zrem +zcard +zcount +zrangebyscore \
                 +zremrangebyscore";
    let words: Vec<&str> = words.split_whitespace().collect();
    assert_eq!(asks(plain, &words).as_deref(), Some("OK"));

    let open = |authorities: &str, password: &str| {
        let mut with: Options = options(&format!("rediss://localhost:{port}"), None);
        with.access.username = "ratelimiter".to_owned();
        with.access.password = Some(Secret::new(password.to_owned()));
        with.access.authorities = Some(std::fs::read(directory.join(authorities)).unwrap());
        with.deadline = Duration::from_millis(200);
        RedisStore::open(with).unwrap()
    };
    functional(&open("ca.crt", "open-sesame-1234"));
    for (authorities, password) in [("other.crt", "open-sesame-1234"), ("ca.crt", "wrong")] {
        let store = open(authorities, password);
        wait_until("it was refused", || {
            let figures = store.figures();
            figures.tries > 0 && !figures.error.contains("yet")
        });
        assert!(!store.is_connected());
        assert!(!store.figures().error.contains("sesame"));
    }
}

#[test]
fn sentinels_name_the_master_also_after_a_failover() {
    let [master, replica, sentinel] = ports();
    let mut processes = Processes::new();
    processes.server(master, &[]);
    let of = format!("127.0.0.1 {master}");
    processes.server(replica, &["--replicaof", &of]);
    let configuration = processes.path().join("sentinel.conf");
    std::fs::write(
        &configuration,
        format!(
            "port {sentinel}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 3000\n"
        ),
    )
    .unwrap();
    processes.start(
        "sentinel",
        &[&configuration.display().to_string(), "--sentinel"],
    );
    wait_until("the sentinel knows the replica", || {
        asks(sentinel, &["PING"]).is_some()
            && redis::Client::open(format!("redis://127.0.0.1:{sentinel}"))
                .and_then(|client| client.get_connection())
                .and_then(|mut connection| {
                    redis::cmd("SENTINEL")
                        .arg("replicas")
                        .arg("main")
                        .query::<Vec<redis::Value>>(&mut connection)
                })
                .is_ok_and(|replicas| replicas.len() == 1)
    });
    let url = format!("redis+sentinel://127.0.0.1:{sentinel}/main");
    let store = RedisStore::open(options(&url, None)).unwrap();
    functional(&store);
    // The master dies.
    let first = processes.children.first_mut().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    wait_until("the store notices", || {
        let _asked = settle(&store, &[]);
        until_failed(&store)
    });
    let took = until_granted(&store, 5);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Whether a question is not answered.
fn until_failed(store: &RedisStore) -> bool {
    let quota = FleetQuota {
        algorithm: Algorithm::FixedWindow,
        limit: 1,
        burst: 1,
        window_us: 1_000_000,
        grain: 1,
        revision: 1,
    };
    settle(store, &[Entry::read(FleetKey(3), quota)]).is_none()
}

#[test]
fn a_cluster_is_one_store_also_after_a_failover() {
    let twelve: [u16; 12] = ports();
    let (nodes, bus) = twelve.split_at(6);
    let mut processes = Processes::new();
    for (port, bus) in nodes.iter().zip(bus) {
        let bus = bus.to_string();
        processes.server(
            *port,
            &[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                "1000",
                "--repl-diskless-sync-delay",
                "0",
            ],
        );
    }
    let addresses: Vec<String> = nodes
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let mut arguments = vec!["--cluster", "create"];
    arguments.extend(addresses.iter().map(String::as_str));
    arguments.extend(["--cluster-replicas", "1", "--cluster-yes"]);
    run("redis-cli", processes.path(), &arguments);
    wait_until("the cluster is up", || {
        nodes.iter().all(|port| {
            asks(*port, &["CLUSTER", "INFO"]).is_some_and(|text| {
                text.contains("cluster_state:ok") && text.contains("cluster_known_nodes:6")
            })
        })
    });
    // A replica without its master's data is never promoted.
    wait_until("replicas are in sync", || {
        let replicas = nodes.iter().filter(|port| {
            asks(**port, &["INFO", "replication"])
                .is_some_and(|text| text.contains("master_link_status:up"))
        });
        replicas.count() == 3
    });
    let url = format!("redis+cluster://{},{}", addresses[0], addresses[1]);
    let mut with = options(&url, None);
    // Two hundred calls at once, on one machine.
    with.deadline = Duration::from_millis(500);
    let store = RedisStore::open(with).unwrap();
    functional(&store);
    let first = processes.children.first_mut().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    let begin = clock::instant();
    // Until somebody takes its place its keys are lost, and at first some that met the client's own
    // search for it; the others are answered.
    let batch = batch();
    let settled = store.runtime().block_on(store.settle(&batch)).unwrap();
    let lost = settled.lost.len();
    assert!((1..200).contains(&lost), "{lost} of 200 keys were lost");
    for (place, answer) in settled.answers.iter().enumerate() {
        let is_lost = settled.lost.contains(&place);
        assert_eq!(answer.fleet_spend == 0, is_lost, "{place}: {answer:?}");
        assert_eq!(settled.answer(place).is_none(), is_lost);
    }
    assert!(store.is_connected(), "the others are there");
    // Every third of the keys was on the node that died.
    for n in 1..=30_u128 {
        until_granted(&store, n << 116 | n);
    }
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}
