//! Clients that send at a pace, and a sink that counts what arrives from each.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ratelimiter_userspace::clock;
use tests::OrFail as _;
use tests::netns::Netns;
use tests::process::rest;

/// The discard port.
const PORT: u16 = 9;

/// How often a client looks at the clock.
const TICK: Duration = Duration::from_millis(2);

/// Most packets a client sends in one go when it was held up.
const CATCH_UP: u64 = 500;

/// Threads that end when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    arrived: Arc<Mutex<BTreeMap<IpAddr, u64>>>,
}

impl Traffic {
    /// Counts what arrives at `address` in the calling thread's network, by source.
    pub(crate) fn receive(&mut self, address: Ipv4Addr) {
        let socket = UdpSocket::bind(SocketAddrV4::new(address, PORT)).or_fail("bind the sink");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .or_fail("set a timeout");
        let (stop, arrived) = (Arc::clone(&self.stop), Arc::clone(&self.arrived));
        self.threads.push(thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
                    *arrived.entry(from.ip()).or_default() += 1;
                }
            }
        }));
    }

    /// Sends `rate` packets per second from `source`, an address of `netns`. Returns how many
    /// were sent so far.
    pub(crate) fn send(
        &mut self,
        netns: &Netns,
        source: Ipv4Addr,
        sink: Ipv4Addr,
        rate: u64,
    ) -> Arc<AtomicU64> {
        let socket = netns.run(|| {
            let socket = UdpSocket::bind(SocketAddrV4::new(source, 0)).or_fail("bind a client");
            socket
                .connect(SocketAddrV4::new(sink, PORT))
                .or_fail("connect a client");
            socket
        });
        let sent = Arc::new(AtomicU64::new(0));
        let (stop, counter) = (Arc::clone(&self.stop), Arc::clone(&sent));
        self.threads.push(thread::spawn(move || {
            let start = clock::instant();
            let mut due = 0;
            while !stop.load(Ordering::Relaxed) {
                let target = (start.elapsed().as_micros() as u64).saturating_mul(rate) / 1_000_000;
                due = due.max(target.saturating_sub(CATCH_UP));
                while due < target {
                    due += 1;
                    // A full queue is the network's business; only what was sent counts.
                    if socket.send(b"ratelimiter demo").is_ok() {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                }
                rest(TICK);
            }
        }));
        sent
    }

    /// What arrived from `source` so far.
    pub(crate) fn arrived_from(&self, source: Ipv4Addr) -> u64 {
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.get(&IpAddr::V4(source)).copied().unwrap_or(0)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            drop(thread.join());
        }
    }
}
