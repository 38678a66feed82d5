//! From where the user is logged in over SSH, so that the agent does not cut that off.

use std::net::IpAddr;

/// Processes looked at on the way up: `sudo`, a shell, a multiplexer, `sshd`.
const MAX_ANCESTORS: usize = 16;

/// What one process knows of an SSH session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing: its variables may have been stripped.
    Nothing,
    /// There is none.
    NoSession,
    /// The address of the other end.
    Peer(IpAddr),
}

/// The address the user is logged in from: by this process's environment, else, since `sudo` and
/// `su` strip it, by that of the processes that started it, as far as they may be read. An empty
/// `SSH_CONNECTION` says that there is no session.
pub(super) fn peer() -> Option<IpAddr> {
    let own = known(|name| std::env::var_os(name)?.into_string().ok());
    let mut pid = std::os::unix::process::parent_id();
    let mut found = own;
    for _ in 0..MAX_ANCESTORS {
        match found {
            Known::Peer(address) => return Some(address),
            Known::NoSession => return None,
            Known::Nothing if pid <= 1 => return None,
            Known::Nothing => {}
        }
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        found = known(|name| variable(&environment, name));
        pid = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| parent(&stat))
            .unwrap_or(0);
    }
    None
}

/// What the variables of an SSH session say: `SSH_CONNECTION` is `client port server port`,
/// `SSH_CLIENT` `client port port`.
fn known(variable: impl Fn(&str) -> Option<String>) -> Known {
    let Some(text) = variable("SSH_CONNECTION").or_else(|| variable("SSH_CLIENT")) else {
        return Known::Nothing;
    };
    let client = text.split_ascii_whitespace().next().unwrap_or_default();
    // A link-local address names its interface: `fe80::1%eth0`.
    let address = client.split('%').next().unwrap_or_default();
    address
        .parse::<IpAddr>()
        .map_or(Known::NoSession, |at| Known::Peer(at.to_canonical()))
}

/// A variable of a process, from `/proc/PID/environ`.
fn variable(environment: &[u8], name: &str) -> Option<String> {
    environment.split(|byte| *byte == 0).find_map(|pair| {
        let text = std::str::from_utf8(pair).ok()?;
        let (found, value) = text.split_once('=')?;
        (found == name).then(|| value.to_owned())
    })
}

/// The parent's id, from `/proc/PID/stat`: the second field behind the name in parentheses.
fn parent(stat: &str) -> Option<u32> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_sshd_sets() {
        let of = |name: &'static str, value: &'static str| {
            known(move |asked| (asked == name).then(|| value.to_owned()))
        };
        let peer = |text: &str| Known::Peer(text.parse().unwrap());
        assert_eq!(
            of("SSH_CONNECTION", "192.0.2.9 50022 192.0.2.1 22"),
            peer("192.0.2.9")
        );
        assert_eq!(
            of("SSH_CLIENT", "2001:db8::9 50022 22"),
            peer("2001:db8::9")
        );
        assert_eq!(
            of("SSH_CONNECTION", "fe80::9%eth0 50022 fe80::1%eth0 22"),
            peer("fe80::9")
        );
        assert_eq!(of("SSH_CONNECTION", ""), Known::NoSession);
        assert_eq!(of("SSH_CONNECTION", "UNKNOWN 1 2 3"), Known::NoSession);
        assert_eq!(of("PATH", "/bin"), Known::Nothing);
    }

    #[test]
    fn reads_what_the_kernel_tells_of_a_process() {
        let environment = b"A=1\0SSH_CONNECTION=192.0.2.9 1 192.0.2.1 22\0B\0";
        assert_eq!(
            variable(environment, "SSH_CONNECTION").as_deref(),
            Some("192.0.2.9 1 192.0.2.1 22")
        );
        assert_eq!(variable(environment, "B"), None);
        assert_eq!(parent("812 (a) b (c)) S 17 812"), Some(17));
        assert_eq!(parent("garbage"), None);
    }
}
