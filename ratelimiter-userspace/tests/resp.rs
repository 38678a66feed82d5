//! The Redis protocol: answers as redis-cell gives them, to a session and to a real client.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use ratelimiter_userspace::limiter::RateLimiter;
use ratelimiter_userspace::resp::{Admit, Limits, MAX_LIMITS, Session, Throttle, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

fn throttle() -> Arc<Throttle> {
    let limiter = RateLimiter::builder().capacity(1_000).build().unwrap();
    Arc::new(Throttle::new(limiter))
}

fn command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        text.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        text.extend_from_slice(argument);
        text.extend_from_slice(b"\r\n");
    }
    text
}

fn ask(session: &mut Session, line: &str) -> String {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let text = command(&words);
    let mut out = Vec::new();
    let served = session.serve(&text, &mut out);
    assert_eq!(served.taken, text.len());
    String::from_utf8(out).unwrap()
}

/// The five integers of an answer.
fn five(session: &mut Session, line: &str) -> Vec<i64> {
    let reply = ask(session, line);
    let mut lines = reply.lines();
    assert_eq!(lines.next(), Some("*5"), "{reply}");
    lines
        .map(|line| line.strip_prefix(':').unwrap().parse().unwrap())
        .collect()
}

#[test]
fn answers_as_redis_cell_documents_it() {
    let mut session = Session::new(throttle(), None);
    // The example of redis-cell's README: 15 beyond the first, 30 per 60 s.
    assert_eq!(
        five(&mut session, "CL.THROTTLE user123 15 30 60"),
        [0, 16, 15, -1, 2]
    );
    assert_eq!(
        five(&mut session, "cl.throttle user123 15 30 60 1"),
        [0, 16, 14, -1, 4]
    );
    // Seven at once; nothing at all; more than there is; more than there ever is.
    assert_eq!(
        five(&mut session, "CL.THROTTLE user123 15 30 60 7"),
        [0, 16, 7, -1, 18]
    );
    assert_eq!(
        five(&mut session, "CL.THROTTLE user123 15 30 60 0"),
        [0, 16, 7, -1, 18]
    );
    assert_eq!(
        five(&mut session, "CL.THROTTLE user123 15 30 60 9"),
        [1, 16, 7, 4, 18]
    );
    assert_eq!(
        five(&mut session, "CL.THROTTLE user123 15 30 60 17"),
        [1, 16, 7, -1, 18]
    );
    // Another key, and a limit of one: the second waits for the whole period.
    assert_eq!(
        five(&mut session, "CL.THROTTLE k 0 1 10"),
        [0, 1, 0, -1, 10]
    );
    assert_eq!(
        five(&mut session, "CL.THROTTLE k 0 1 10"),
        [1, 1, 0, 10, 10]
    );
}

#[test]
fn same_key_under_another_limit_keeps_what_it_owes() {
    let mut session = Session::new(throttle(), None);
    for left in (0..10).rev() {
        assert_eq!(five(&mut session, "CL.THROTTLE a 9 10 60")[2], left);
    }
    assert_eq!(five(&mut session, "CL.THROTTLE a 9 10 60")[0], 1);
    // Ten are owed, and a tick where a conversion rounds up: of twenty, nine are left.
    let converted = five(&mut session, "CL.THROTTLE a 19 20 60");
    assert_eq!(converted[..2], [0, 20]);
    assert!((8..=9).contains(&converted[2]), "{converted:?}");
}

#[test]
fn says_what_is_wrong() {
    let mut session = Session::new(throttle(), None);
    for (line, message) in [
        (
            "CL.THROTTLE a 1 2",
            "-ERR wrong number of arguments: CL.THROTTLE key max_burst",
        ),
        ("CL.THROTTLE a 1 2 3 4 5", "-ERR wrong number of arguments"),
        (
            "CL.THROTTLE a -1 2 3",
            "-ERR `max_burst` is `-1`; it must be an integer between 0",
        ),
        ("CL.THROTTLE a x 2 3", "-ERR `max_burst` is `x`"),
        ("CL.THROTTLE a 1 2 3 1.5", "-ERR `quantity` is `1.5`"),
        ("CL.THROTTLE a 1 0 60", "-ERR limit `throttle`"),
        ("CL.THROTTLE a 1 1 0", "-ERR limit `throttle`"),
        ("CL.THROTTLE a 1 1 40000000", "-ERR limit `throttle`"),
        ("GET a", "-ERR unknown command `GET`; there are CL.THROTTLE"),
        ("SELECT 1", "-ERR DB index is out of range"),
        ("HELLO 4", "-NOPROTO"),
        ("HELLO 3 NONSENSE", "-ERR HELLO: syntax error at `NONSENSE`"),
        ("CLIENT KILL", "-ERR CLIENT: unknown subcommand `KILL`"),
        ("AUTH x", "-ERR AUTH: no credential is needed"),
    ] {
        let reply = ask(&mut session, line);
        assert!(reply.starts_with(message), "{line}: {reply}");
        assert_eq!(reply.matches("\r\n").count(), 1, "{reply}");
    }
    // Whatever stands in a name, the reply stays one line.
    let mut out = Vec::new();
    session.serve(&command(&[b"NO\r\n+OK\r\n:1"]), &mut out);
    assert_eq!(String::from_utf8_lossy(&out).lines().count(), 1);
}

#[test]
fn speaks_to_clients_before_they_ask() {
    let mut session = Session::new(throttle(), None);
    assert_eq!(ask(&mut session, "PING"), "+PONG\r\n");
    assert_eq!(ask(&mut session, "ping hello"), "$5\r\nhello\r\n");
    assert_eq!(ask(&mut session, "CLIENT SETINFO LIB-NAME x"), "+OK\r\n");
    assert_eq!(ask(&mut session, "COMMAND DOCS"), "*0\r\n");
    assert!(ask(&mut session, "HELLO").starts_with("*14\r\n$6\r\nserver\r\n$11\r\nratelimiter"));
    assert!(ask(&mut session, "HELLO 3").starts_with("%7\r\n"));
    assert_eq!(ask(&mut session, "COMMAND DOCS"), "%0\r\n");
    let mut out = Vec::new();
    let served = session.serve(b"QUIT\r\nPING\r\n", &mut out);
    assert!(served.close);
    assert_eq!(out, b"+OK\r\n");
}

#[test]
fn a_locked_listener_answers_nobody_without_a_token() {
    let limiter = RateLimiter::builder().capacity(100).build().unwrap();
    let admit: Admit = Arc::new(|token: Option<&str>| token == Some("0123456789abcdef"));
    let shared = Arc::new(Throttle::new(limiter));
    let mut session = Session::new(Arc::clone(&shared), Some(Arc::clone(&admit)));
    for line in ["PING", "CL.THROTTLE a 1 1 1", "HELLO 3", "COMMAND"] {
        assert!(ask(&mut session, line).starts_with("-NOAUTH"), "{line}");
    }
    assert!(ask(&mut session, "AUTH wrong").starts_with("-WRONGPASS"));
    assert_eq!(
        ask(&mut session, "AUTH default 0123456789abcdef"),
        "+OK\r\n"
    );
    assert_eq!(five(&mut session, "CL.THROTTLE a 1 1 1")[0], 0);
    let mut other = Session::new(shared, Some(admit));
    assert!(ask(&mut other, "HELLO 3 AUTH default 0123456789abcdef").starts_with("%7"));
    assert_eq!(ask(&mut other, "RESET"), "+RESET\r\n");
    assert!(ask(&mut other, "PING").starts_with("-NOAUTH"));
}

#[test]
fn in_shadow_everything_passes_and_is_counted() {
    let shared = throttle();
    let mut session = Session::new(Arc::clone(&shared), None);
    assert_eq!(five(&mut session, "CL.THROTTLE a 0 1 60")[0], 0);
    assert_eq!(five(&mut session, "CL.THROTTLE a 0 1 60")[0], 1);
    shared.set_shadow(true);
    assert_eq!(
        five(&mut session, "CL.THROTTLE a 0 1 60")[..4],
        [0, 1, 0, -1]
    );
    shared.set_shadow(false);
    // What was owed before is owed still.
    assert_eq!(five(&mut session, "CL.THROTTLE a 0 1 60")[0], 1);
}

#[test]
fn distinct_limits_are_bounded() {
    let mut session = Session::new(throttle(), None);
    for n in 0..MAX_LIMITS {
        assert_eq!(
            five(&mut session, &format!("CL.THROTTLE a {n} 1 60"))[0],
            i64::from(n == 1)
        );
    }
    let reply = ask(&mut session, "CL.THROTTLE a 999999 1 60");
    assert!(
        reply.starts_with("-ERR 4096 distinct limits are in use"),
        "{reply}"
    );
    // Those that are known go on.
    assert!(ask(&mut session, "CL.THROTTLE b 5 1 60").starts_with("*5"));
}

#[test]
fn hostile_keys_have_buckets_of_their_own() {
    let mut session = Session::new(throttle(), None);
    let long: Vec<Vec<u8>> = (0..4)
        .map(|n| {
            let mut key = vec![b'x'; 10_000];
            key[n * 3_333] = b'y';
            key
        })
        .collect();
    let mut keys: Vec<&[u8]> = vec![
        b"",
        b"\0",
        b"\0\0",
        b"a\r\nb",
        b"{a}",
        b"\"",
        b"\xff\xfe",
        b"a",
        b"a ",
        "\u{202e}a".as_bytes(),
    ];
    keys.extend(long.iter().map(Vec::as_slice));
    for key in keys {
        let text = command(&[b"CL.THROTTLE", key, b"0", b"1", b"60"]);
        let mut out = Vec::new();
        session.serve(&[text.clone(), text].concat(), &mut out);
        let expected =
            b"*5\r\n:0\r\n:1\r\n:0\r\n:-1\r\n:60\r\n*5\r\n:1\r\n:1\r\n:0\r\n:60\r\n:60\r\n";
        assert_eq!(out, expected, "{:?}", String::from_utf8_lossy(key));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a stream is cut into reads, the replies are the same.
    #[test]
    fn cuts_do_not_matter(
        chosen in prop::collection::vec(0..7_usize, 1..80),
        cuts in prop::collection::vec(1..200_usize, 1..40),
    ) {
        let commands: [Vec<u8>; 7] = [
            command(&[b"CL.THROTTLE", b"a", b"3", b"1", b"100000"]),
            command(&[b"CL.THROTTLE", b"b", b"30", b"1", b"100000", b"4"]),
            command(&[b"CL.THROTTLE", b"a", b"no", b"1", b"100000"]),
            command(&[b"PING"]),
            command(&[b"ECHO", b"\r\n*1\r\n"]),
            b"PING inline\r\n".to_vec(),
            b"\r\n".to_vec(),
        ];
        let stream: Vec<u8> = chosen.iter().flat_map(|n| commands[*n].clone()).collect();
        let mut whole = Vec::new();
        Session::new(throttle(), None).serve(&stream, &mut whole);

        let mut session = Session::new(throttle(), None);
        let (mut pieces, mut input, mut at) = (Vec::new(), Vec::new(), 0);
        for cut in cuts.iter().cycle() {
            if at == stream.len() {
                break;
            }
            let end = (at + cut).min(stream.len());
            input.extend_from_slice(&stream[at..end]);
            at = end;
            let served = session.serve(&input, &mut pieces);
            input.drain(..served.taken);
        }
        prop_assert!(input.is_empty());
        prop_assert_eq!(pieces, whole);
    }

    /// Whatever arrives, every reply is well formed and the session survives or closes.
    #[test]
    fn any_bytes_get_bounded_replies(
        bytes in prop::collection::vec(
            prop_oneof![
                any::<u8>().prop_map(|byte| vec![byte]),
                Just(b"*5\r\n$11\r\nCL.THROTTLE\r\n".to_vec()),
                Just(b"$1\r\n1\r\n".to_vec()),
                Just(b"HELLO 3\r\n".to_vec()),
                Just(b"*1\r\n$4\r\nPING\r\n".to_vec()),
            ],
            0..300,
        ).prop_map(|parts| parts.concat()),
    ) {
        let mut out = Vec::new();
        let served = Session::new(throttle(), None).serve(&bytes, &mut out);
        prop_assert!(served.taken <= bytes.len());
        prop_assert!(out.len() <= 32 * bytes.len() + 256);
        prop_assert!(out.is_empty() || out.ends_with(b"\r\n"));
    }
}

struct Running {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

async fn running(limits: Limits) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move {
        let _stopped = stopped.await.is_ok();
    };
    let task = tokio::spawn(serve(
        listener,
        throttle(),
        Arc::new(|_| true),
        limits,
        shutdown,
    ));
    Running {
        address,
        stop,
        task,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_crate_works_unchanged() {
    let server = running(Limits::default()).await;
    for protocol in ["", "?protocol=resp3"] {
        let client = redis::Client::open(format!("redis://{}/{protocol}", server.address)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let key = format!("pipelined{protocol}");
        let mut pipe = redis::pipe();
        for _ in 0..100 {
            pipe.cmd("CL.THROTTLE").arg(&key).arg(63).arg(1).arg(86_400);
        }
        let answers: Vec<Vec<i64>> = pipe.query_async(&mut connection).await.unwrap();
        let passed = answers.iter().filter(|answer| answer[0] == 0).count();
        assert_eq!((answers.len(), passed), (100, 64));
        assert_eq!(answers[63][..3], [0, 64, 0]);
        assert_eq!(answers[64][..4], [1, 64, 0, 86_400]);
    }
    server.stop.send(()).unwrap();
    server.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_surplus_connections_are_ended() {
    let limits = Limits {
        connections: 2,
        command_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = running(limits).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"PING\r\n").await.unwrap();
    let mut pong = [0; 7];
    idle.read_exact(&mut pong).await.unwrap();
    // Half a command: closed in time, without a reply.
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"*1\r\n$4\r\nPI").await.unwrap();
    // A third one is told that there is no room.
    let mut surplus = TcpStream::connect(server.address).await.unwrap();
    let mut told = String::new();
    surplus.read_to_string(&mut told).await.unwrap();
    assert_eq!(told, "-ERR max number of clients reached\r\n");
    let mut nothing = Vec::new();
    let closed = slow.read_to_end(&mut nothing).await;
    assert!(closed.is_err() || nothing.is_empty());
    // An idle one between commands is left alone.
    idle.write_all(b"PING\r\n").await.unwrap();
    idle.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"+PONG\r\n");
    // Nonsense is answered, then the connection ends.
    idle.write_all(b"*x\r\n").await.unwrap();
    let mut told = String::new();
    idle.read_to_string(&mut told).await.unwrap();
    assert!(
        told.starts_with("-ERR Protocol error: invalid multibulk"),
        "{told}"
    );
    server.stop.send(()).unwrap();
    server.task.await.unwrap();
}
