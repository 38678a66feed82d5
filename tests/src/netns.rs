//! Network namespaces and veth pairs. Anonymous: no name in `/run/netns`, so nothing to collide
//! with and nothing left when the guard is dropped or the test is killed.
//!
//! ```no_run
//! # use tests::netns::{Netns, veth};
//! let edge = Netns::new();
//! let client = Netns::new();
//! veth((&edge, "edge0"), (&client, "client0"));
//! edge.address("edge0", "192.0.2.1/24");
//! client.address("client0", "192.0.2.2/24");
//! client.ip("route show");
//! ```
use std::process::{Command, Stdio};

use crate::OrFail as _;
use crate::process::{Child, Spawn};
use crate::space::{Own, Space};

/// A network namespace with `lo` up, a mount namespace with its own `/sys` and an empty bpffs on
/// `/sys/fs/bpf`. IPv6 addresses are usable at once (no duplicate address detection).
#[derive(Debug)]
pub struct Netns {
    space: Space,
}

impl Netns {
    /// Makes one. Fails without root.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        let netns = Self {
            space: Space::new(Own { network: true }),
        };
        for scope in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0");
            netns.sysctl(&format!("net/ipv6/conf/{scope}/router_solicitations"), "0");
        }
        netns.ip("link set lo up");
        netns
    }

    /// The machine's own network with private mounts and bpffs: for what must be reachable from
    /// outside, such as the demo's agent. Interfaces made in it are the machine's.
    #[must_use]
    #[track_caller]
    pub fn host() -> Self {
        Self {
            space: Space::new(Own { network: false }),
        }
    }

    /// Runs `work` on a thread inside, and returns what it returns. Panics pass through.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.space.run(work)
    }

    /// Makes `command` start inside. Its working directory becomes `/`.
    pub fn prepare(&self, command: &mut Command) {
        self.space.prepare(command);
    }

    /// Starts a child inside, killed when its guard is dropped.
    #[track_caller]
    pub fn spawn(&self, command: Command) -> Child {
        let mut command = command;
        self.prepare(&mut command);
        Spawn::new(command).start()
    }

    /// Runs a command line (split at blanks) inside to its end; returns its standard output.
    /// Fails with its standard error if it exits non-zero.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        let (status, out, err) = self.try_sh(line);
        assert!(status == 0, "`{line}` exited with `{status}`: {err}{out}");
        out
    }

    /// Runs a command line (split at blanks) inside to its end; returns exit status, standard
    /// output and standard error. A signal counts as status 128 + its number.
    #[track_caller]
    pub fn try_sh(&self, line: &str) -> (i32, String, String) {
        use std::os::unix::process::ExitStatusExt as _;
        let mut words = line.split_whitespace();
        let program = words.next().or_fail("an empty command line");
        let mut command = Command::new(crate::requires::program(program, program));
        command.args(words).stdin(Stdio::null());
        self.prepare(&mut command);
        let output = command.output().or_fail(line);
        let status = output.status;
        (
            status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Runs `ip` with these arguments (split at blanks) inside.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        self.sh(&format!("ip {arguments}"))
    }

    /// Gives an interface an address (`192.0.2.1/24`, `2001:db8::1/64`).
    #[track_caller]
    pub fn address(&self, interface: &str, address: &str) {
        let family = if address.contains(':') { "-6 " } else { "" };
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!(
            "{family}addr add {address} dev {interface}{nodad}"
        ));
    }

    /// Writes below `/proc/sys` inside, e.g. `net/ipv4/ip_forward`.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/{name}"), value))
            .or_fail(&format!("set sysctl `{name}` to `{value}`"));
    }

    /// Hardware address of an interface, as on the wire.
    #[track_caller]
    #[must_use]
    pub fn mac(&self, interface: &str) -> [u8; 6] {
        let text = self.read(&format!("/sys/class/net/{interface}/address"));
        let mut mac = [0; 6];
        for (byte, part) in mac.iter_mut().zip(text.trim().split(':')) {
            *byte = u8::from_str_radix(part, 16).or_fail("read a hardware address");
        }
        mac
    }

    /// Index of an interface.
    #[track_caller]
    #[must_use]
    pub fn ifindex(&self, interface: &str) -> u32 {
        self.number(&format!("/sys/class/net/{interface}/ifindex")) as u32
    }

    /// How often the carrier of an interface went up or down.
    #[track_caller]
    #[must_use]
    pub fn carrier_changes(&self, interface: &str) -> u64 {
        self.number(&format!("/sys/class/net/{interface}/carrier_changes"))
    }

    /// A counter of an interface, e.g. `rx_packets` or `rx_dropped`.
    #[track_caller]
    #[must_use]
    pub fn statistic(&self, interface: &str, counter: &str) -> u64 {
        self.number(&format!("/sys/class/net/{interface}/statistics/{counter}"))
    }

    /// `Ip: InReceives`: the IPv4 packets that reached the stack, exactly, `lo` included.
    #[track_caller]
    #[must_use]
    pub fn ipv4_received(&self) -> u64 {
        self.ipv4_counter("InReceives")
    }

    /// `Ip: InDelivers`: the IPv4 packets that no filter dropped and that were for this host.
    #[track_caller]
    #[must_use]
    pub fn ipv4_delivered(&self) -> u64 {
        self.ipv4_counter("InDelivers")
    }

    #[track_caller]
    fn ipv4_counter(&self, wanted: &str) -> u64 {
        let text = self.read("/proc/thread-self/net/snmp");
        let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
        let names = lines.next().or_fail("no `Ip:` line in snmp");
        let values = lines.next().or_fail("no second `Ip:` line in snmp");
        names
            .split_whitespace()
            .zip(values.split_whitespace())
            .find(|(name, _)| *name == wanted)
            .and_then(|(_, value)| value.parse().ok())
            .or_fail(&format!("no `{wanted}` in snmp"))
    }

    /// `Ip6InReceives`: the IPv6 packets that reached the stack.
    #[track_caller]
    #[must_use]
    pub fn ipv6_received(&self) -> u64 {
        self.read("/proc/thread-self/net/snmp6")
            .lines()
            .find_map(|line| line.strip_prefix("Ip6InReceives"))
            .and_then(|value| value.trim().parse().ok())
            .or_fail("no `Ip6InReceives` in snmp6")
    }

    /// Path by which other programs can name this network namespace while the guard lives:
    /// `ip link set x netns <path>`, `nsenter --net=<path>`.
    #[must_use]
    pub fn path(&self) -> String {
        self.space.network_path()
    }

    /// Reads a text file as seen inside.
    #[track_caller]
    #[must_use]
    pub fn read(&self, path: &str) -> String {
        self.run(|| std::fs::read_to_string(path)).or_fail(path)
    }

    #[track_caller]
    fn number(&self, path: &str) -> u64 {
        self.read(path).trim().parse().or_fail(path)
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

/// Connects two namespaces by a veth pair with these interface names; both ends are up.
#[track_caller]
pub fn veth((left, left_name): (&Netns, &str), (right, right_name): (&Netns, &str)) {
    left.ip(&format!(
        "link add {left_name} type veth peer name {right_name} netns {}",
        right.path()
    ));
    left.ip(&format!("link set {left_name} up"));
    right.ip(&format!("link set {right_name} up"));
}

/// Connects two namespaces as [`veth`] does, with `queues` receive and transmit queues per end:
/// native XDP runs on as many CPUs.
#[track_caller]
pub fn veth_queues(
    (left, left_name): (&Netns, &str),
    (right, right_name): (&Netns, &str),
    queues: u32,
) {
    left.ip(&format!(
        "link add {left_name} numrxqueues {queues} numtxqueues {queues} type veth \
         peer name {right_name} numrxqueues {queues} numtxqueues {queues} netns {}",
        right.path()
    ));
    left.ip(&format!("link set {left_name} up"));
    right.ip(&format!("link set {right_name} up"));
}
