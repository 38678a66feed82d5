//! Many frames out of one interface: AF_PACKET and `sendmmsg`, bounded in number and in time.
//!
//! ```no_run
//! # use std::{sync::atomic::AtomicBool, time::Duration};
//! # use tests::{flood::Flood, netns::Netns, packet::Packet};
//! # let client = Netns::new();
//! let frame = Packet::eth().ipv4("192.0.2.2", "192.0.2.1").udp(1, 9).build();
//! let flood = Flood::new(vec![frame]).packets(1_000_000).lasting(Duration::from_secs(5));
//! let sent = client.run(|| flood.send("client0", &AtomicBool::new(false)));
//! ```
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratelimiter_userspace::clock;

use crate::OrFail as _;
use crate::process::rest;

/// Frames per system call.
const BATCH: usize = 64;
/// Longest time any flood may last.
const LONGEST: Duration = Duration::from_mins(2);
/// `PACKET_QDISC_BYPASS`.
const QDISC_BYPASS: libc::c_int = 20;

/// IPv4 sources of a flood that pretends to be many: each is used once before any is used again,
/// in an order without neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoofed {
    /// The lowest address.
    pub first: u32,
    /// How many follow it, it included.
    pub count: u32,
}

impl Spoofed {
    /// The source of the flood's frame number `n`.
    fn source(self, n: u64) -> u32 {
        // A prime: multiplying by it modulo a smaller count changes only the order.
        const SCATTER: u64 = 11_400_714_785_074_694_791;
        let count = u64::from(self.count.max(1));
        let scattered = u128::from(n % count) * u128::from(SCATTER) % u128::from(count);
        self.first.wrapping_add(scattered as u32)
    }
}

/// Offset of the UDP checksum in an Ethernet frame that holds IPv4 without options.
const UDP_CHECKSUM: usize = 14 + 20 + 6;

/// A frame (Ethernet, IPv4 without options, UDP) from another source.
#[must_use]
pub fn respoofed(frame: &[u8], source: u32) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(checksum) = frame.get_mut(UDP_CHECKSUM..UDP_CHECKSUM + 2) {
        // Zero is "no checksum": it covers the source.
        checksum.fill(0);
    }
    respoof(&mut frame, source);
    frame
}

/// Gives a frame (Ethernet, IPv4 without options, UDP without checksum) another source.
fn respoof(frame: &mut [u8], source: u32) {
    let Some(header) = frame.get_mut(14..34) else {
        return;
    };
    header[10..12].fill(0);
    header[12..16].copy_from_slice(&source.to_be_bytes());
    let mut sum: u32 = header
        .chunks_exact(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// What to send, how fast and for how long.
#[derive(Clone, Debug)]
pub struct Flood {
    frames: Vec<Vec<u8>>,
    spoofed: Option<Spoofed>,
    packets: u64,
    time: Duration,
    per_second: Option<u64>,
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sent {
    /// Frames the interface took. What arrives may be less: a veth drops what its ring has no
    /// room for.
    pub packets: u64,
    /// Time it took.
    pub time: Duration,
}

impl Flood {
    /// Sends these frames in turn, as fast as it can, for one second.
    #[must_use]
    #[track_caller]
    pub fn new(frames: Vec<Vec<u8>>) -> Self {
        assert!(!frames.is_empty(), "a flood of no frames");
        Self {
            frames,
            spoofed: None,
            packets: u64::MAX,
            time: Duration::from_secs(1),
            per_second: None,
        }
    }

    /// Sends this frame (Ethernet, IPv4 without options, UDP) from many sources in turn.
    #[must_use]
    #[track_caller]
    pub fn spoofed(frame: &[u8], sources: Spoofed) -> Self {
        assert!(
            frame.get(12..15) == Some(&[8, 0, 0x45]) && frame.get(23) == Some(&17),
            "only IPv4 without options and UDP can be spoofed"
        );
        assert!(sources.count > 0, "a flood of no sources");
        Self {
            spoofed: Some(sources),
            ..Self::new(vec![respoofed(frame, sources.first); BATCH])
        }
    }

    /// Bounds the number of frames.
    #[must_use]
    pub fn packets(mut self, packets: u64) -> Self {
        self.packets = packets;
        self
    }

    /// Bounds the time.
    #[must_use]
    #[track_caller]
    pub fn lasting(mut self, time: Duration) -> Self {
        assert!(time <= LONGEST, "a flood of {time:?}");
        self.time = time;
        self
    }

    /// Bounds the rate, in frames per second. Paced in steps of a millisecond or more.
    #[must_use]
    pub fn rate(mut self, per_second: u64) -> Self {
        self.per_second = Some(per_second.max(1));
        self
    }

    /// Sends out of `interface` of the calling thread's network namespace, until number or time is
    /// reached or `stop` is set.
    #[track_caller]
    pub fn send(&self, interface: &str, stop: &AtomicBool) -> Sent {
        let socket = packet_socket(interface).or_fail("open a packet socket");
        let mut frames = self.frames.clone();
        let began = clock::instant();
        let mut sent = 0_u64;
        let mut next = 0;
        loop {
            let elapsed = began.elapsed();
            if sent >= self.packets || elapsed >= self.time || stop.load(Ordering::Relaxed) {
                break;
            }
            let mut room = (self.packets - sent).min(BATCH as u64);
            if let Some(per_second) = self.per_second {
                let due = (elapsed.as_secs_f64() * per_second as f64) as u64 + 1;
                if due <= sent {
                    rest(Duration::from_micros(500));
                    continue;
                }
                room = room.min(due - sent);
            }
            if let Some(sources) = self.spoofed {
                next = 0;
                for (n, frame) in (sent..sent + room).zip(&mut frames) {
                    respoof(frame, sources.source(n));
                }
            }
            let taken = send_batch(&socket, &frames, next, room as usize).or_fail("send");
            next = (next + taken) % frames.len();
            sent += taken as u64;
        }
        Sent {
            packets: sent,
            time: began.elapsed(),
        }
    }
}

/// Sends up to `count` of `frames` from number `first` on; returns how many were taken.
fn send_batch(
    socket: &OwnedFd,
    frames: &[Vec<u8>],
    first: usize,
    count: usize,
) -> io::Result<usize> {
    let mut parts: Vec<libc::iovec> = frames
        .iter()
        .cycle()
        .skip(first)
        .take(count)
        .map(|frame| libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all-zero is a valid `mmsghdr`.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    // SAFETY: `messages` and the frames they point to live until the call returns; the kernel
    // only reads the frames.
    let taken = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as u32,
            0,
        )
    };
    if taken >= 0 {
        return Ok(taken as usize);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // The receiver's ring is full, or the interface is down for a moment: not taken.
        Some(libc::ENOBUFS | libc::EAGAIN | libc::ENETDOWN | libc::EINTR | libc::ENXIO) => Ok(0),
        _ => Err(error),
    }
}

/// A packet socket that sends out of `interface` and receives nothing.
fn packet_socket(interface: &str) -> io::Result<OwnedFd> {
    let name = CString::new(interface)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // Protocol 0: no frame is ever queued for reading.
    // SAFETY: plain system call.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    crate::space::check(fd)?;
    // SAFETY: just created, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: a live `sockaddr_ll` of the size given.
    crate::space::check(unsafe {
        libc::bind(
            fd,
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    })?;
    let on: libc::c_int = 1;
    // SAFETY: a live integer of the size given.
    crate::space::check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_PACKET,
            QDISC_BYPASS,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as u32,
        )
    })?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_used_once_before_any_is_used_again() {
        let sources = Spoofed {
            first: 100,
            count: 1_000,
        };
        let mut used: Vec<u32> = (0..1_000).map(|n| sources.source(n)).collect();
        assert_eq!(sources.source(1_000), used[0]);
        used.sort_unstable();
        assert_eq!(used, (100..1_100).collect::<Vec<u32>>());
    }

    #[test]
    fn a_respoofed_header_has_a_right_checksum() {
        let packet = crate::packet::Packet::eth();
        let built = |source: &str| packet.clone().ipv4(source, "192.0.2.1").udp(1, 2).build();
        let mut frame = built("10.0.0.1");
        respoof(
            &mut frame,
            u32::from(std::net::Ipv4Addr::new(10, 200, 3, 4)),
        );
        assert_eq!(frame[14..34], built("10.200.3.4")[14..34]);
    }
}
