//! The load: one thread, many connections, as many answers as come, or questions at a given rate.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::Random;
use super::wire::Wire;

/// Bytes read at once.
const BUFFER: usize = 32 * 1024;
/// How long nothing may be heard.
const SILENCE: Duration = Duration::from_secs(5);

struct Connection<W> {
    stream: TcpStream,
    wire: W,
    input: Vec<u8>,
    out: Vec<u8>,
    /// Questions without an answer.
    open: usize,
    /// When the open question was due.
    due: Instant,
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

impl<W: Wire> Connection<W> {
    fn send(&mut self) -> anyhow::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        // What is open at once fits a socket's buffer.
        let sent = self.stream.write(&self.out).context("sending")?;
        ensure!(sent == self.out.len(), "the socket's buffer is full");
        self.out.clear();
        Ok(())
    }

    fn ask(&mut self, due: Instant) -> anyhow::Result<()> {
        self.open += self.wire.ask(&mut self.out);
        self.due = due;
        self.send()
    }

    /// Reads what is there; returns the answers it held.
    fn hear(&mut self, buffer: &mut [u8]) -> anyhow::Result<usize> {
        let mut answers = 0;
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => anyhow::bail!("the server closed a connection"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(answers),
                Err(error) => return Err(error).context("reading"),
            };
            self.input
                .extend_from_slice(buffer.get(..read).unwrap_or(&[]));
            let found = self.wire.read(&self.input, &mut self.out)?;
            self.input.drain(..found.taken);
            answers += found.answers;
            self.open = self.open.saturating_sub(found.answers);
            // Less than there was room for: there was no more (epoll(7), on short reads).
            if read < buffer.len() {
                return Ok(answers);
            }
        }
    }
}

fn connect<W: Wire>(
    address: SocketAddr,
    wires: Vec<W>,
    poll: &Poll,
) -> anyhow::Result<Vec<Connection<W>>> {
    let mut all = Vec::new();
    for (number, wire) in wires.into_iter().enumerate() {
        let stream = std::net::TcpStream::connect(address).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry()
            .register(&mut stream, Token(number), Interest::READABLE)?;
        let mut out = Vec::new();
        wire.hello(&mut out);
        all.push(Connection {
            stream,
            wire,
            input: Vec::new(),
            out,
            open: 0,
            due: now(),
        });
    }
    Ok(all)
}

/// Asks as fast as answers come; returns answers per second. What comes in the first tenth of the
/// time is not counted.
pub(crate) fn flat_out<W: Wire>(
    address: SocketAddr,
    wires: Vec<W>,
    duration: Duration,
) -> anyhow::Result<f64> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let mut connections = connect(address, wires, &poll)?;
    let mut buffer = vec![0; BUFFER];
    let mut begin = now();
    for connection in &mut connections {
        connection.ask(begin)?;
    }
    let mut warm = false;
    let mut answers = 0;
    loop {
        poll.poll(&mut events, Some(SILENCE))?;
        ensure!(!events.is_empty(), "no answer within {SILENCE:?}");
        for event in &events {
            let Some(connection) = connections.get_mut(event.token().0) else {
                continue;
            };
            answers += connection.hear(&mut buffer)?;
            if connection.open == 0 {
                connection.ask(begin)?;
            } else {
                connection.send()?;
            }
        }
        let elapsed = begin.elapsed();
        if !warm && elapsed > duration / 10 {
            (warm, answers, begin) = (true, 0, now());
        } else if warm && elapsed > duration {
            return Ok(answers as f64 / elapsed.as_secs_f64());
        }
    }
}

/// Asks `rate` times a second, at random times (as independent clients do), whatever the answers;
/// returns the 99th percentile of the time from when a question was due to its answer, in
/// microseconds.
pub(crate) fn paced<W: Wire>(
    address: SocketAddr,
    wires: Vec<W>,
    rate: f64,
    duration: Duration,
) -> anyhow::Result<f64> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let mut connections = connect(address, wires, &poll)?;
    let mut buffer = vec![0; BUFFER];
    let mut random = Random(7);
    let mut free: Vec<usize> = (0..connections.len()).collect();
    let mut took = Vec::with_capacity((rate * duration.as_secs_f64()) as usize + 1);
    let begin = now();
    let warm = begin + duration / 10;
    let mut due = begin;
    while begin.elapsed() < duration {
        while due <= now() {
            let Some(number) = free.pop() else {
                break;
            };
            if let Some(connection) = connections.get_mut(number) {
                connection.ask(due)?;
            }
            due += Duration::from_secs_f64(-(1.0 - random.unit()).ln() / rate);
        }
        poll.poll(&mut events, Some(Duration::ZERO))?;
        for event in &events {
            let number = event.token().0;
            let Some(connection) = connections.get_mut(number) else {
                continue;
            };
            if connection.hear(&mut buffer)? > 0 {
                if connection.due > warm {
                    took.push(connection.due.elapsed().as_nanos() as f64 / 1_000.0);
                }
                free.push(number);
            }
            connection.send()?;
        }
    }
    took.sort_by(f64::total_cmp);
    took.get(took.len() * 99 / 100)
        .copied()
        .context("nothing was answered")
}
