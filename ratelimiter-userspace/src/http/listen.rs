//! Where the service listens: TCP, or a Unix socket that only its owner may use.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::gate::Peer;

/// Connections that wait to be accepted; the kernel's own bound is 4096 too by default.
const BACKLOG: u32 = 4_096;

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket; its file is removed when the listener is dropped.
    Unix(UnixListener, SocketFile),
}

/// Why nothing listens there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address others can reach, and no credential.
    #[error(
        "`{0}` is `{1}`, which is not loopback, and no credential for it is configured; add one \
         under `[credentials]`, or listen on 127.0.0.1"
    )]
    Unlocked(&'static str, SocketAddr),
    /// The kernel refused.
    #[error("cannot listen on `{at}`: {source}")]
    Bind {
        /// Address or path.
        at: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is something at the path that is no socket of ours.
    #[error("cannot listen on `{0}`: there is a file that is no socket")]
    NotASocket(PathBuf),
    /// An agent answers there.
    #[error("cannot listen on `{0}`: another process answers there")]
    InUse(PathBuf),
}

/// The file of a Unix socket.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another agent may have taken the path in the meantime: remove our own file only.
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays");
        }
    }
}

impl Listener {
    /// Listens on a TCP address. An address that is not loopback is refused unless `locked`: a
    /// credential is configured.
    pub async fn tcp(address: SocketAddr, locked: bool) -> Result<Self, ListenError> {
        Self::tcp_for("admin.listen", address, locked).await
    }

    /// As [`Listener::tcp`], for the listener of another `setting`.
    #[expect(
        clippy::unused_async,
        reason = "it needs a runtime to register with, which an async function always has"
    )]
    pub async fn tcp_for(
        setting: &'static str,
        address: SocketAddr,
        locked: bool,
    ) -> Result<Self, ListenError> {
        if !locked && !address.ip().to_canonical().is_loopback() {
            return Err(ListenError::Unlocked(setting, address));
        }
        listen_tcp(address)
            .map(Self::Tcp)
            .map_err(|source| ListenError::Bind {
                at: address.to_string(),
                source,
            })
    }

    /// Listens on a Unix socket of mode 0600. A socket left behind by a dead process is replaced.
    pub async fn unix(path: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Bind {
            at: path.display().to_string(),
            source,
        };
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ListenError::NotASocket(path.to_owned()));
            }
            Ok(_) if tokio::net::UnixStream::connect(path).await.is_ok() => {
                return Err(ListenError::InUse(path.to_owned()));
            }
            Ok(_) => std::fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        // Bound under a name nobody looks for, so that it has its mode before it can be found.
        let hidden = path.with_extension(format!("{}.new", std::process::id()));
        let bound = UnixListener::bind(&hidden).and_then(|listener| {
            std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&hidden, path)?;
            Ok(listener)
        });
        let listener = bound.map_err(|error| {
            drop(std::fs::remove_file(&hidden));
            failed(error)
        })?;
        let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self::Unix(
            listener,
            SocketFile {
                path: path.to_owned(),
                inode,
            },
        ))
    }

    /// Whether others than this machine can reach it.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        self.address()
            .is_some_and(|address| !address.ip().to_canonical().is_loopback())
    }

    /// The TCP address, if it is one; with port 0 asked for, the port that was given.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }
}

/// As `TcpListener::bind`, with a longer queue: it makes 128 places, and whoever finds them taken
/// tries again after a second.
fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Looks a TCP peer up: a loopback peer is trusted if its socket belongs to root or to the agent's
/// own user.
pub(super) fn peer(address: SocketAddr) -> Peer {
    let trusted = address.ip().to_canonical().is_loopback()
        && socket_uid(address).is_some_and(|uid| {
            // SAFETY: geteuid has no preconditions and cannot fail.
            uid == 0 || uid == unsafe { libc::geteuid() }
        });
    Peer::Tcp { address, trusted }
}

/// The user that owns the local TCP socket bound to `address`, from `/proc/net/tcp{,6}`.
fn socket_uid(address: SocketAddr) -> Option<u32> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .find_map(|table| uid_in(&table, address))
}

/// Finds the row whose local address is `address`. Columns: number, local, remote, state, queues,
/// timer, retransmissions, uid. Addresses are words in host order, in hexadecimal.
fn uid_in(table: &str, address: SocketAddr) -> Option<u32> {
    let wanted = [proc_form(address, false), proc_form(address, true)];
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let local = columns.nth(1)?;
        if !wanted.iter().any(|form| form == local) {
            return None;
        }
        columns.nth(5)?.parse().ok()
    })
}

fn proc_form(address: SocketAddr, mapped: bool) -> String {
    let words = |octets: &[u8]| -> String {
        octets
            .chunks_exact(4)
            .filter_map(|word| word.try_into().ok())
            .map(|word| format!("{:08X}", u32::from_ne_bytes(word)))
            .collect()
    };
    let ip = match address.ip().to_canonical() {
        std::net::IpAddr::V4(four) if mapped => words(&four.to_ipv6_mapped().octets()),
        std::net::IpAddr::V4(four) => words(&four.octets()),
        std::net::IpAddr::V6(six) => words(&six.octets()),
    };
    format!("{ip}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0\n";

    #[test]
    fn finds_the_owner_of_a_socket() {
        let address = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(uid_in(TABLE, address), Some(1000));
        let other = "127.0.0.1:8081".parse().unwrap();
        assert_eq!(uid_in(TABLE, other), None);
    }

    #[tokio::test]
    async fn own_sockets_are_trusted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        let (_, from) = accepted.unwrap();
        assert_eq!(
            peer(from),
            Peer::Tcp {
                address: from,
                trusted: true
            }
        );
        drop(client);
    }

    #[tokio::test]
    async fn refuses_to_listen_for_strangers_without_a_credential() {
        let error = Listener::tcp("0.0.0.0:0".parse().unwrap(), false)
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("no credential for it is configured"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn socket_is_private_replaces_a_dead_one_and_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/admin.sock");
        let listener = Listener::unix(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            Listener::unix(&path).await.unwrap_err(),
            ListenError::InUse(_)
        ));
        drop(listener);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::unix(&path).await.unwrap());

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::unix(&path).await.unwrap_err(),
            ListenError::NotASocket(_)
        ));
    }
}
