//! A real Redis server on a free port, with nothing kept on disk.
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::OrFail as _;
use crate::process::{Child, Spawn, wait_until};
use crate::residue::TEMP_PREFIX;

/// How long a server may take until it answers.
const READY_BOUND: Duration = Duration::from_secs(10);

/// A running server; killed, and its directory removed, when dropped.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl Redis {
    /// Starts one on loopback and waits until it answers.
    #[must_use]
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with further arguments, e.g. `["--maxmemory", "4mb"]`.
    #[must_use]
    #[track_caller]
    pub fn start_with(arguments: &[&str]) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let directory = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir()
            .or_fail("make a temporary directory");
        let redis = Self {
            child: spawn(address, &directory, arguments),
            address,
            directory,
        };
        redis.wait_until_ready();
        redis
    }

    /// Starts again on the same port after [`Redis::kill`], empty.
    #[track_caller]
    pub fn restart(&mut self) {
        self.child = spawn(self.address, &self.directory, &[]);
        self.wait_until_ready();
    }

    /// `kill -9`.
    #[track_caller]
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Stops the process without closing its sockets: the worst kind of silence.
    #[track_caller]
    pub fn freeze(&mut self) {
        self.child.signal(libc::SIGSTOP);
    }

    /// Lets it go on after [`Redis::freeze`].
    #[track_caller]
    pub fn thaw(&mut self) {
        self.child.signal(libc::SIGCONT);
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    /// Sends an inline command and returns the first line of the answer, e.g. `+PONG` or `:3`.
    pub fn command(&self, line: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(format!("{line}\r\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }

    #[track_caller]
    fn wait_until_ready(&self) {
        wait_until("redis-server answers", READY_BOUND, || {
            self.command("PING").is_ok_and(|answer| answer == "+PONG")
        });
    }
}

#[track_caller]
fn spawn(address: SocketAddr, directory: &TempDir, arguments: &[&str]) -> Child {
    let mut command = Command::new(crate::requires::program("redis-server", "redis-server"));
    command
        .args(["--bind", &address.ip().to_string()])
        .args(["--port", &address.port().to_string()])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(directory.path())
        .args(arguments);
    Spawn::new(command).start()
}

/// A TCP port on loopback that was free a moment ago.
#[must_use]
#[track_caller]
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .or_fail("find a free port")
        .port()
}
