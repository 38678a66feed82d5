//! A real `redis-server` behind a Unix socket, with nothing kept on disk.
use std::process::{Child, Command, Stdio};
use std::thread::park_timeout;
use std::time::Duration;

use ratelimiter_userspace::clock;
use ratelimiter_userspace::config::Secret;
use ratelimiter_userspace::redis::{Access, Options, RedisStore};
use tempfile::TempDir;

/// How long anything may take that is not measured.
const BOUND: Duration = Duration::from_secs(10);

/// A running server; killed, and its directory removed, when dropped.
pub(crate) struct Server {
    child: Child,
    directory: TempDir,
    arguments: Vec<String>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let server = Self {
            child: spawn(&directory, &arguments),
            directory,
            arguments,
        };
        server.wait();
        server
    }

    fn wait(&self) {
        wait_until("redis-server answers", || {
            self.connection()
                .is_some_and(|mut at| redis::cmd("PING").exec(&mut at).is_ok())
        });
    }

    pub(crate) fn socket(&self) -> String {
        self.directory.path().join("s").display().to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket())
    }

    pub(crate) fn connection(&self) -> Option<redis::Connection> {
        redis::Client::open(self.url()).ok()?.get_connection().ok()
    }

    pub(crate) fn query<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut connection = self.connection().unwrap();
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query(&mut connection)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts again after [`Server::kill`], empty.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.directory, &self.arguments);
        self.wait();
    }

    /// Stops the process without closing its sockets: the worst kind of silence.
    pub(crate) fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: a signal to a process that this test started and has not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        // SIGKILL ends a stopped process too.
        let _reaped = self.child.wait();
    }
}

fn spawn(directory: &TempDir, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--unixsocket",
            "s",
            "--dir",
        ])
        .arg(directory.path())
        .args(arguments)
        .current_dir(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server must be installed: `apt-get install redis-server`")
}

/// Waits for a condition, with a bound.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = clock::instant();
    while !holds() {
        assert!(begin.elapsed() < BOUND, "{what}: not within {BOUND:?}");
        park_timeout(Duration::from_millis(2));
    }
}

pub(crate) fn options(url: &str, password: Option<&str>) -> Options {
    let url: ratelimiter_userspace::config::store_url::StoreUrl = url.parse().unwrap();
    Options {
        access: Access {
            target: url.target().unwrap().clone(),
            username: String::new(),
            password: password.map(|text| Secret::new(text.to_owned())),
            authorities: None,
            certificate: None,
        },
        prefix: "rl".to_owned(),
        deadline: Duration::from_millis(50),
        secret: [0; 16],
    }
}

/// A store that is not waited for.
pub(crate) fn store_at(url: &str) -> RedisStore {
    RedisStore::open(options(url, None)).unwrap()
}

/// A connected store.
pub(crate) fn store(server: &Server) -> RedisStore {
    let store = store_at(&server.url());
    let begin = clock::instant();
    while !store.is_connected() {
        assert!(begin.elapsed() < BOUND, "{:?}", store.figures());
        park_timeout(Duration::from_millis(2));
    }
    store
}
