//! Real proxies, run from the files of `examples/`, in front of an application of their own.
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use crate::OrFail as _;
use crate::http::{Answer, request_tcp};
use crate::netns::Netns;
use crate::process::{Child, holds_within};
use crate::residue::TEMP_PREFIX;

/// How long a proxy may take until it listens.
const READY_BOUND: Duration = Duration::from_secs(20);

/// The directory of a recipe.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}

/// A file of a recipe.
#[must_use]
#[track_caller]
pub fn example_file(name: &str, file: &str) -> String {
    let path = example(name).join(file);
    std::fs::read_to_string(&path).or_fail(&path.to_string_lossy())
}

/// A running proxy; killed when dropped.
#[derive(Debug)]
pub struct Proxy<'a> {
    name: String,
    child: Child,
    edge: &'a Netns,
    address: SocketAddr,
    _directory: TempDir,
}

impl<'a> Proxy<'a> {
    /// Starts the proxy of the recipe `name` with its own ports, and waits until it listens.
    #[must_use]
    #[track_caller]
    pub fn start(edge: &'a Netns, name: &str) -> Self {
        Self::start_changed(edge, name, 0, &[])
    }

    /// Starts the proxy of the recipe `name`, the `number`th beside others: it listens on ports of
    /// its own. Each of `changes` is replaced in its files, and must be there.
    #[must_use]
    #[track_caller]
    pub fn start_changed(
        edge: &'a Netns,
        name: &str,
        number: u16,
        changes: &[(&str, &str)],
    ) -> Self {
        let directory = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir()
            .or_fail("make a directory");
        let front = 8080 + 10 * number;
        let ports = [
            ("8079".to_owned(), (front - 1).to_string()),
            ("8080".to_owned(), front.to_string()),
            ("10002".to_owned(), (10_002 + number).to_string()),
        ];
        let files = std::fs::read_dir(example(name)).or_fail("list a recipe");
        for file in files.map(|file| file.or_fail("list a recipe").path()) {
            let mut text = std::fs::read_to_string(&file).or_fail("read a recipe");
            if file.extension().is_none_or(|end| end != "md") {
                for (from, to) in &ports {
                    text = text.replace(from, to);
                }
            }
            for (from, to) in changes {
                text = text.replace(from, to);
            }
            let copy = directory.path().join(file.file_name().unwrap_or_default());
            std::fs::write(copy, text).or_fail("copy a recipe");
        }
        let mut child = edge.spawn(command(name, directory.path()));
        let address = SocketAddr::from(([127, 0, 0, 1], front));
        let listens = holds_within(READY_BOUND, || {
            let connect = || TcpStream::connect(address).is_ok();
            edge.run(connect) || child.exited().is_some()
        });
        assert!(listens && child.exited().is_none(), "{}", child.output());
        Self {
            name: name.to_owned(),
            child,
            edge,
            address,
            _directory: directory,
        }
    }

    /// Asks it as a client does.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let ask = || request_tcp(self.address, method, path, headers, None);
        let answer = self.edge.run(ask);
        answer.or_fail(&format!("no answer from the proxy: {}", self.output()))
    }

    /// Whether it is of this kind, e.g. `nginx`.
    #[must_use]
    pub fn is(&self, kind: &str) -> bool {
        self.name.starts_with(kind)
    }

    /// What it said.
    #[must_use]
    pub fn output(&self) -> String {
        self.child.output()
    }
}

fn command(name: &str, directory: &Path) -> Command {
    let place = directory.to_string_lossy().into_owned();
    let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let (kind, _) = name.split_once('-').unwrap_or((name, ""));
    let (program, arguments) = match kind {
        "nginx" => (
            crate::requires::program("nginx", "nginx-light"),
            // One process, so that it ends with its guard.
            vec![
                "-p".into(),
                place.clone(),
                "-c".into(),
                file("nginx.conf"),
                "-e".into(),
                "stderr".into(),
                "-g".into(),
                "master_process off;".into(),
            ],
        ),
        "haproxy" => (
            crate::requires::program("haproxy", "haproxy"),
            vec![
                "-db".into(),
                "-C".into(),
                place.clone(),
                "-f".into(),
                "haproxy.cfg".into(),
            ],
        ),
        "caddy" => (
            crate::requires::program("caddy", "caddy"),
            vec![
                "run".into(),
                "--config".into(),
                file("Caddyfile"),
                "--adapter".into(),
                "caddyfile".into(),
            ],
        ),
        "envoy" => (
            crate::envoy::program(),
            vec![
                "-c".into(),
                file("envoy.yaml"),
                "--concurrency".into(),
                "1".into(),
                "-l".into(),
                "warn".into(),
                "--use-dynamic-base-id".into(),
            ],
        ),
        kind => panic!("there is no proxy `{kind}`"),
    };
    let arguments: Vec<String> = arguments;
    let mut command = Command::new(program);
    command.args(arguments);
    for home in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env(home, &place);
    }
    command
}

/// The application behind the proxies: answers everything with 200 and `upstream`.
#[derive(Debug)]
pub struct App {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl App {
    /// Starts it where the recipes look for it.
    #[must_use]
    #[track_caller]
    pub fn start(edge: &Netns) -> Self {
        let listener = edge.run(|| TcpListener::bind("127.0.0.1:8000"));
        let listener = Arc::new(listener.or_fail("listen"));
        let accepting = Arc::clone(&listener);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                // A proxy that goes away in the middle is no concern of ours.
                drop(answer(stream));
            }
        });
        Self {
            listener,
            thread: Some(thread),
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut head = Vec::new();
    let mut part = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut part)?;
        if length == 0 {
            return Ok(());
        }
        head.extend_from_slice(&part[..length]);
    }
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 8\r\n\
          connection: close\r\n\r\nupstream",
    )
}

impl Drop for App {
    fn drop(&mut self) {
        // SAFETY: the listener's descriptor is open; the thread's `accept` fails from now on.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
