//! Servers that are no Redis: they accept and are silent, dribble, talk nonsense, or promise two
//! gigabytes.
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ratelimiter_userspace::clock;
use ratelimiter_userspace::sync::{Entry, FleetKey, FleetQuota, Settle as _};

use crate::server::{store_at, wait_until};

/// What the server does with each connection.
#[derive(Clone)]
enum Manner {
    Silent,
    /// Sends this, one byte after the other, with a pause between.
    Dribble(Vec<u8>, Duration),
    /// Answers every read with this.
    Reply(Vec<u8>),
    Close,
}

struct Hostile {
    url: String,
    accepted: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(mut stream: TcpStream, manner: &Manner, stop: &AtomicBool) {
    let _set = stream.set_read_timeout(Some(Duration::from_millis(50)));
    let mut buffer = [0; 8_192];
    let mut replied = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        match manner {
            Manner::Close => return,
            Manner::Silent => {
                if matches!(stream.read(&mut buffer), Ok(0)) {
                    return;
                }
            }
            Manner::Dribble(bytes, pause) => {
                let byte = bytes[replied % bytes.len()];
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
                replied += 1;
                std::thread::park_timeout(*pause);
            }
            Manner::Reply(bytes) => match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) if stream.write_all(bytes).is_err() => return,
                _ => {}
            },
        }
    }
}

fn hostile(manner: Manner) -> Hostile {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let (accepted, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    listener.set_nonblocking(true).unwrap();
    let (count, ended) = (Arc::clone(&accepted), Arc::clone(&stop));
    std::thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                    let (manner, ended) = (manner.clone(), Arc::clone(&ended));
                    std::thread::spawn(move || serve(stream, &manner, &ended));
                }
                Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
            }
        }
    });
    Hostile {
        url,
        accepted,
        stop,
    }
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}

#[test]
fn no_server_however_hostile_holds_a_question_or_fills_the_memory() {
    let reply = |text: &str| Manner::Reply(text.as_bytes().to_vec());
    let deep = "*1\r\n".repeat(200_000);
    let manners = [
        ("silent", Manner::Silent),
        ("closes", Manner::Close),
        (
            "one byte a second",
            Manner::Dribble(b"+OK\r\n".to_vec(), Duration::from_millis(300)),
        ),
        ("garbage", Manner::Reply(vec![0xff; 4_096])),
        (
            "loading",
            reply("-LOADING Redis is loading the dataset in memory\r\n"),
        ),
        ("busy", reply("-BUSY Redis is busy running a script\r\n")),
        ("no auth", reply("-NOAUTH Authentication required.\r\n")),
        (
            "no script, always",
            reply("-NOSCRIPT No matching script\r\n"),
        ),
        ("moved in a circle", reply("-MOVED 1 127.0.0.1:1\r\n")),
        ("wrong type", reply(":7\r\n")),
        ("empty string", reply("$0\r\n\r\n")),
        ("two gigabytes", reply("$2147483647\r\nxxxx")),
        ("a huge list", reply("*2147483647\r\n:1\r\n")),
        ("negative", reply("$-17\r\n")),
        ("deep", reply(&deep)),
        (
            "endless",
            Manner::Dribble(vec![b'x'; 1_024], Duration::from_micros(10)),
        ),
    ];
    for (name, manner) in manners {
        let server = hostile(manner);
        let before = resident_bytes();
        let store = store_at(&server.url);
        let quota = FleetQuota {
            algorithm: ratelimiter_userspace::policy::model::Algorithm::FixedWindow,
            limit: 1,
            burst: 1,
            window_us: 1_000_000,
            grain: 1,
            revision: 1,
        };
        let begin = clock::instant();
        let mut longest = Duration::ZERO;
        while begin.elapsed() < Duration::from_millis(1_200) {
            let asked = clock::instant();
            let batch = [Entry::read(FleetKey(1), quota)];
            assert!(
                store.runtime().block_on(store.settle(&batch)).is_err(),
                "{name}"
            );
            longest = longest.max(asked.elapsed());
            std::thread::park_timeout(Duration::from_millis(5));
        }
        assert!(longest < Duration::from_millis(150), "{name}: {longest:?}");
        wait_until("it was tried", || store.figures().tries > 0);
        let tries = store.figures().tries;
        assert!(tries <= 4, "{name}: {tries} tries in 1.2 s");
        assert!(server.accepted.load(Ordering::Relaxed) <= 4, "{name}");
        assert!(!store.is_connected(), "{name}");
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 10 << 20, "{name}: {grown} bytes more");
    }
}
