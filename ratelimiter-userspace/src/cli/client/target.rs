//! Where the agent is looked for, and what to say when nobody is there.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Client, Tls, read_token};
use crate::cli::exit::{Exit, Failure};
use crate::cli::ssh;
use crate::policy::units::parse_duration_ns;

/// The socket the agent listens on unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/ratelimiter/admin.sock";

/// Flags of every command that speaks to an agent.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Which agent")]
pub struct ConnectionArgs {
    /// Unix socket of the agent
    #[arg(
        long,
        value_name = "PATH",
        env = "RATELIMITER_ADMIN_SOCKET",
        default_value = DEFAULT_SOCKET,
        hide_env_values = true
    )]
    pub socket: PathBuf,
    /// Speak TCP instead, for example to `http://127.0.0.1:9740`, or `https://` where a proxy
    /// before the agent speaks TLS
    #[arg(
        long,
        value_name = "URL",
        env = "RATELIMITER_ADDRESS",
        hide_env_values = true
    )]
    pub url: Option<String>,
    /// Certificates (PEM) that may sign the one of an `https://` URL, instead of the system's
    #[arg(
        long,
        value_name = "PATH",
        env = "RATELIMITER_CA_FILE",
        hide_env_values = true
    )]
    pub ca_file: Option<PathBuf>,
    /// File with the bearer token, if the agent asks for one (or set RATELIMITER_TOKEN)
    #[arg(
        long,
        value_name = "PATH",
        env = "RATELIMITER_TOKEN_FILE",
        hide_env_values = true
    )]
    pub token_file: Option<PathBuf>,
    /// Give up on an agent that does not answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_timeout)]
    pub timeout: Duration,
}

/// Flags of the command that speaks to the check API.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Which agent")]
pub struct CheckConnectionArgs {
    /// Address of the check API
    #[arg(
        long,
        value_name = "URL",
        env = "RATELIMITER_CHECK_ADDRESS",
        default_value = "http://127.0.0.1:9741",
        hide_env_values = true
    )]
    pub url: String,
    /// Certificates (PEM) that may sign the one of an `https://` URL, instead of the system's
    #[arg(
        long,
        value_name = "PATH",
        env = "RATELIMITER_CA_FILE",
        hide_env_values = true
    )]
    pub ca_file: Option<PathBuf>,
    /// File with the bearer token, if the agent asks for one (or set RATELIMITER_TOKEN)
    #[arg(
        long,
        value_name = "PATH",
        env = "RATELIMITER_TOKEN_FILE",
        hide_env_values = true
    )]
    pub token_file: Option<PathBuf>,
    /// Give up on an agent that does not answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_timeout)]
    pub timeout: Duration,
}

impl CheckConnectionArgs {
    /// The client these flags ask for.
    pub fn client(&self) -> Result<Client, Failure> {
        let target = Target::from_url(&self.url)?;
        let tls = target.tls(self.ca_file.as_deref())?;
        let token = token(self.token_file.as_deref())?;
        Ok(Client::new(target, token, self.timeout).with_tls(tls))
    }
}

/// The bearer token: from the file, else from the environment.
fn token(file: Option<&Path>) -> Result<Option<String>, Failure> {
    Ok(match file {
        Some(path) => Some(read_token(path)?),
        None => std::env::var_os("RATELIMITER_TOKEN")
            .and_then(|token| token.into_string().ok())
            .filter(|token| !token.is_empty()),
    })
}

impl ConnectionArgs {
    /// The client these flags ask for.
    pub fn client(&self) -> Result<Client, Failure> {
        let target = match &self.url {
            Some(url) => Target::from_url(url)?,
            None => Target::Socket(self.socket.clone()),
        };
        let token = token(self.token_file.as_deref())?;
        // The session matters to the machine it ends on.
        let ssh_peer = target.is_local().then(ssh::peer).flatten();
        let tls = target.tls(self.ca_file.as_deref())?;
        let client = Client::new(target, token, self.timeout);
        Ok(client.with_ssh_peer(ssh_peer).with_tls(tls))
    }
}

/// Parses `5s`, `500ms`; 10 ms to 10 min.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    let ns = parse_duration_ns(text)?;
    if (10_000_000..=600_000_000_000).contains(&ns) {
        Ok(Duration::from_nanos(ns))
    } else {
        Err(format!(
            "`{text}` is out of range; it must be between 10ms and 10m"
        ))
    }
}

/// An agent's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Socket(PathBuf),
    /// A TCP address.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
        /// Whether TLS is spoken there.
        tls: bool,
    },
}

impl Target {
    /// Parses `http[s]://host[:port][/]`, `unix:///path` or `unix:/path`.
    pub fn from_url(url: &str) -> Result<Self, Failure> {
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.starts_with('/') {
                return Ok(Self::Socket(PathBuf::from(path)));
            }
            return Err(Failure::usage(format!(
                "`--url {url}` is not an absolute path; write unix:///run/ratelimiter/admin.sock"
            )));
        }
        let example = "write for example http://127.0.0.1:9740";
        let uri: http::Uri = url
            .parse()
            .map_err(|e| Failure::usage(format!("`--url {url}` is not a URL: {e}; {example}")))?;
        let (Some(scheme @ ("http" | "https")), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(Failure::usage(format!(
                "`--url {url}` has no scheme or host; {example}"
            )));
        };
        if uri
            .path_and_query()
            .is_some_and(|rest| rest.as_str() != "/")
        {
            return Err(Failure::usage(format!(
                "`--url {url}` has a path; only scheme, host and port are allowed; {example}"
            )));
        }
        Ok(Self::Tcp {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri
                .port_u16()
                .unwrap_or(if scheme == "https" { 443 } else { 9740 }),
            tls: scheme == "https",
        })
    }

    /// Whom to believe there; `None` where TLS is not spoken.
    fn tls(&self, ca_file: Option<&Path>) -> Result<Option<Tls>, Failure> {
        match self {
            Self::Tcp { tls: true, .. } => Tls::new(ca_file).map(Some),
            Self::Tcp { .. } if ca_file.is_some() => Err(Failure::usage(
                "`--ca-file` is for an `https://` URL, and this one is `http://`",
            )),
            _ => Ok(None),
        }
    }

    /// Whether the agent runs on this machine.
    fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost"
                    || host
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|at| at.is_loopback())
            }
        }
    }

    /// `host:port`, with brackets around IPv6 addresses; empty for a socket.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Socket(_) => String::new(),
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "`{}`", path.display()),
            Self::Tcp { tls, .. } => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "`{scheme}://{}`", self.authority())
            }
        }
    }
}

/// What a failed connect to a Unix socket means.
pub(super) fn socket_failure(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    let start = "start the agent (`systemctl start ratelimiter` or `ratelimiter agent`), or name its socket with --socket";
    let (exit, message, help) = match error.kind() {
        io::ErrorKind::NotFound => (
            Exit::Unreachable,
            format!("agent unreachable: there is no socket at `{shown}`"),
            start.to_owned(),
        ),
        io::ErrorKind::ConnectionRefused => (
            Exit::Unreachable,
            format!("agent unreachable: nobody listens at `{shown}`"),
            format!(
                "the agent has ended and the last policy stays in force in the kernel; {start}"
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            Exit::Permission,
            format!("no permission to open the agent's socket `{shown}`"),
            "use sudo, or become a member of the group that owns the socket".to_owned(),
        ),
        _ => (
            Exit::Unreachable,
            format!("agent unreachable: `{shown}` cannot be opened: {error}"),
            start.to_owned(),
        ),
    };
    Failure::new(message).with_exit(exit).with_help(help)
}

/// What a failed TCP connect means.
pub(super) fn tcp_failure(authority: &str, error: &io::Error) -> Failure {
    let message = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("agent unreachable: nobody listens at `{authority}`")
        }
        _ => format!("agent unreachable: `{authority}` cannot be reached: {error}"),
    };
    Failure::new(message)
        .with_exit(Exit::Unreachable)
        .with_help("is the agent running there, and is this its `--listen` address? without --url the Unix socket is used")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Target {
        Target::Tcp {
            host: host.to_owned(),
            port,
            tls: false,
        }
    }

    #[test]
    fn reads_urls() {
        for (url, target) in [
            ("http://127.0.0.1:9740", tcp("127.0.0.1", 9740)),
            ("http://edge1", tcp("edge1", 9740)),
            ("http://[::1]:80/", tcp("::1", 80)),
            ("unix:///run/x.sock", Target::Socket("/run/x.sock".into())),
            ("unix:/run/x.sock", Target::Socket("/run/x.sock".into())),
        ] {
            assert_eq!(Target::from_url(url), Ok(target), "{url}");
        }
        let secure = Target::from_url("https://edge1").unwrap();
        assert_eq!(secure.to_string(), "`https://edge1:443`");
        assert_eq!(tcp("::1", 80).to_string(), "`http://[::1]:80`");
    }

    #[test]
    fn refuses_urls_with_a_reason() {
        for (url, part) in [
            ("127.0.0.1:9740", "no scheme or host"),
            ("http://edge1/v1", "has a path"),
            ("ftp://edge1", "no scheme or host"),
            ("unix:run/x", "absolute path"),
            ("http://a b", "is not a URL"),
        ] {
            let failure = Target::from_url(url).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains(part), "{url}: {}", failure.message);
        }
    }

    #[test]
    fn timeouts_have_bounds() {
        assert_eq!(parse_timeout("5s"), Ok(Duration::from_secs(5)));
        assert!(parse_timeout("0s").unwrap_err().contains("10ms and 10m"));
        assert!(parse_timeout("11m").is_err());
    }
}
