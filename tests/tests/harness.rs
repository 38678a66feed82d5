//! The harness proves itself: a guard that never fires protects nothing.
use std::process::Command;
use std::time::Duration;

use tests::bpffs::{self, Bpffs};
use tests::netns::{Netns, veth};
use tests::packet::Packet;
use tests::process::{Spawn, holds_within, wait_until};
use tests::redis::Redis;
use tests::residue::{Residue, TEMP_PREFIX};

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("60");
    command
}

#[test]
fn namespaces_reach_each_other_only_through_their_veth() {
    let _residue = Residue::watch();
    let left = Netns::new();
    let right = Netns::new();
    veth((&left, "left0"), (&right, "right0"));
    left.address("left0", "192.0.2.1/24");
    right.address("right0", "192.0.2.2/24");
    right.address("right0", "2001:db8::2/64");
    left.address("left0", "2001:db8::1/64");
    let before = right.ipv4_received();
    left.sh("ping -c 3 -i 0.01 -W 1 192.0.2.2");
    left.sh("ping -c 1 -W 1 2001:db8::2");
    // Three requests arrived at `right`, nothing else did.
    assert_eq!(right.ipv4_received() - before, 3);
    left.ip("link set left0 down");
    assert_ne!(left.try_sh("ping -c 1 -W 1 192.0.2.2").0, 0);
}

#[test]
fn interfaces_of_a_namespace_are_not_seen_outside() {
    let _residue = Residue::watch();
    let left = Netns::new();
    let right = Netns::new();
    veth((&left, "rl-inside"), (&right, "rl-outside"));
    assert!(!std::path::Path::new("/sys/class/net/rl-inside").exists());
    assert!(left.ifindex("rl-inside") > 0);
    assert_eq!(left.mac("rl-inside").len(), 6);
}

#[test]
fn built_frames_are_understood_by_the_real_stack() {
    let _residue = Residue::watch();
    let left = Netns::new();
    let right = Netns::new();
    veth((&left, "left0"), (&right, "right0"));
    right.address("right0", "192.0.2.2/24");
    left.address("left0", "192.0.2.1/24");
    let frame = Packet::eth_between(left.mac("left0"), right.mac("right0"))
        .ipv4("192.0.2.1", "192.0.2.2")
        .ping(1)
        .payload(b"does the stack accept our checksums?")
        .build();
    let index = left.ifindex("left0");
    let replies = || {
        left.read("/proc/thread-self/net/snmp")
            .lines()
            .filter(|line| line.starts_with("Icmp:"))
            .nth(1)
            .map(str::to_owned)
    };
    let before = replies();
    left.run(|| send_frame(index, &frame));
    wait_until("an echo reply comes back", Duration::from_secs(5), || {
        replies() != before
    });
}

/// Sends one frame through a packet socket.
fn send_frame(index: u32, frame: &[u8]) {
    // SAFETY: an all-zero `sockaddr_ll` is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index.cast_signed();
    // SAFETY: plain socket calls on buffers that live until they return.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        let sent = libc::sendto(
            socket,
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        );
        assert_eq!(
            sent,
            frame.len() as isize,
            "{}",
            std::io::Error::last_os_error()
        );
        libc::close(socket);
    }
}

#[test]
fn every_bpffs_is_empty_and_its_own() {
    let _residue = Residue::watch();
    let one = Bpffs::new();
    let other = Bpffs::new();
    one.run(|| std::fs::create_dir("/sys/fs/bpf/ratelimiter").unwrap());
    assert!(one.run(|| std::path::Path::new("/sys/fs/bpf/ratelimiter").exists()));
    assert!(!other.run(|| std::path::Path::new("/sys/fs/bpf/ratelimiter").exists()));
    assert!(other.pins(bpffs::MOUNT).is_empty());
}

#[test]
fn a_child_dies_with_its_guard() {
    let _residue = Residue::watch();
    let netns = Netns::new();
    let child = netns.spawn(sleeper());
    let entry = format!("/proc/{}", child.pid());
    assert!(std::path::Path::new(&entry).exists());
    drop(child);
    assert!(!std::path::Path::new(&entry).exists());
}

#[test]
fn a_stopped_child_is_killed_all_the_same() {
    let _residue = Residue::watch();
    let mut child = Spawn::new(sleeper()).start();
    child.signal(libc::SIGSTOP);
    child.kill();
    assert_eq!(child.exited(), Some(128 + 9));
}

#[test]
fn the_output_of_a_child_is_kept() {
    let _residue = Residue::watch();
    let mut command = Command::new("sh");
    command.args(["-c", "echo out; echo err >&2; exit 3"]);
    let mut child = Spawn::new(command).start();
    assert_eq!(child.wait(Duration::from_secs(5)), 3);
    assert_eq!(child.output(), "out\nerr\n");
}

#[test]
fn a_condition_that_never_holds_is_given_up() {
    assert!(!holds_within(Duration::from_millis(30), || false));
}

#[test]
fn residue_of_every_kind_is_seen() {
    let residue = Residue::watch();
    let child = Spawn::new(sleeper()).start();
    let file = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempfile()
        .unwrap();
    let map = leak_a_map();
    let left = residue.left().join("\n");
    assert!(
        left.contains(&format!("process {} `sleep`", child.pid())),
        "{left}"
    );
    assert!(left.contains(&file.path().display().to_string()), "{left}");
    assert!(left.contains("Map `CONFIG`"), "{left}");
    drop((child, file));
    // SAFETY: the descriptor was made above and is closed once.
    unsafe { libc::close(map) };
}

/// Makes a map with one of our names, as a crashed loader might leave it.
fn leak_a_map() -> i32 {
    let mut attributes = [0_u32; 32];
    attributes[..5].copy_from_slice(&[2, 4, 8, 1, 0]);
    attributes[7] = u32::from_ne_bytes(*b"CONF");
    attributes[8] = u32::from_ne_bytes(*b"IG\0\0");
    // SAFETY: BPF_MAP_CREATE (0) with a zero-padded attribute block that lives until it returns.
    let map = unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_mut_ptr(), 128) };
    assert!(map >= 0, "{}", std::io::Error::last_os_error());
    map as i32
}

#[test]
#[should_panic(
    expected = "needs the program `no-such-program`: install the Debian package `nothing`"
)]
fn a_missing_program_fails_by_name() {
    drop(tests::requires::program("no-such-program", "nothing"));
}

#[test]
fn redis_answers_freezes_and_comes_back() {
    let _residue = Residue::watch();
    let mut redis = Redis::start();
    assert_eq!(redis.command("SET key value").unwrap(), "+OK");
    redis.freeze();
    assert!(redis.command("PING").is_err());
    redis.thaw();
    wait_until("redis answers again", Duration::from_secs(5), || {
        redis.command("PING").is_ok_and(|answer| answer == "+PONG")
    });
    redis.kill();
    assert!(redis.command("PING").is_err());
    redis.restart();
    assert_eq!(redis.command("GET key").unwrap(), "$-1");
}
