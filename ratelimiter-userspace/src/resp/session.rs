//! From commands to replies: one connection's state, without the connection.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::reader::{self, Arguments, MAX_COMMAND_BYTES, Read};
use super::{Admit, Limit, LimitError, Throttle};
use crate::limiter::{Answer, Call, Class, IdKind};

/// Checks hashed and fetched together.
const BATCH: usize = 32;
/// Bytes of an unknown name that are repeated to the caller.
const SHOWN: usize = 64;
/// Nanoseconds of a second, and of a millisecond.
const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;

/// Numbers connections, for `CLIENT ID` and `HELLO`.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// One connection's state.
pub struct Session {
    shared: Arc<Throttle>,
    admit: Option<Admit>,
    id: u64,
    /// 2 or 3.
    protocol: u8,
    admitted: bool,
    /// The limit of the last command, and whether in shadow mode: most connections use one or two.
    last: Option<(Limit, bool, Class)>,
}

/// What came of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Bytes of it that were commands; the rest is the beginning of one.
    pub taken: usize,
    /// Whether the connection ends after the replies.
    pub close: bool,
}

/// A check that was met and is not decided yet.
#[derive(Clone, Copy)]
struct Waiting {
    call: Call,
    limit: Limit,
}

/// The checks of one batch.
struct Batch {
    waiting: [Option<Waiting>; BATCH],
    len: usize,
}

impl Session {
    /// A fresh connection; with `admit`, whoever it does not let in without a token needs a good
    /// `AUTH`.
    #[must_use]
    pub fn new(shared: Arc<Throttle>, admit: Option<Admit>) -> Self {
        let admitted = admit.as_ref().is_none_or(|admit| admit(None));
        Self {
            shared,
            admit,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            protocol: 2,
            admitted,
            last: None,
        }
    }

    /// Answers every whole command of `input`, in order, behind `out`. Replies are at most a small
    /// multiple of the input.
    pub fn serve(&mut self, input: &[u8], out: &mut Vec<u8>) -> Served {
        let mut batch = Batch {
            waiting: [None; BATCH],
            len: 0,
        };
        let mut at = 0;
        let mut close = false;
        while !close {
            match reader::read(input.get(at..).unwrap_or(&[])) {
                Read::Partial => break,
                Read::Broken(broken) => {
                    self.decide(&mut batch, out);
                    error(out, format_args!("Protocol error: {broken}"));
                    close = true;
                }
                Read::Command { arguments, len } => {
                    at += len;
                    match self.throttle(&arguments) {
                        Some(Ok(waiting)) => {
                            if let Some(place) = batch.waiting.get_mut(batch.len) {
                                *place = Some(waiting);
                            }
                            batch.len += 1;
                            if batch.len == BATCH {
                                self.decide(&mut batch, out);
                            }
                        }
                        Some(Err(message)) => {
                            self.decide(&mut batch, out);
                            error(out, format_args!("{message}"));
                        }
                        None => {
                            self.decide(&mut batch, out);
                            close = self.other(&arguments, out);
                        }
                    }
                }
            }
        }
        self.decide(&mut batch, out);
        Served { taken: at, close }
    }

    /// Decides what was met, at one moment.
    fn decide(&self, batch: &mut Batch, out: &mut Vec<u8>) {
        if batch.len == 0 {
            return;
        }
        let limiter = &self.shared.limiter;
        let now_ns = limiter.now_ns();
        for place in batch.waiting.iter_mut().take(batch.len) {
            if let Some(waiting) = place.take() {
                let answer = limiter.call(&waiting.call, now_ns);
                reply(out, &answer, waiting.limit);
            }
        }
        limiter.observe_duration(limiter.now_ns().saturating_sub(now_ns), batch.len as u64);
        batch.len = 0;
    }

    /// Reads a `CL.THROTTLE`; `None` if it is another command.
    #[inline]
    fn throttle(&mut self, arguments: &Arguments<'_>) -> Option<Result<Waiting, String>> {
        let kept = arguments.kept();
        let name = kept.first()?;
        if !name.eq_ignore_ascii_case(b"CL.THROTTLE") || !self.admitted {
            return None;
        }
        let (key, numbers) = match (arguments.count(), kept) {
            (5 | 6, [_, key, numbers @ ..]) => (*key, numbers),
            _ => {
                return Some(Err(
                    "wrong number of arguments: CL.THROTTLE key max_burst count period [quantity]"
                        .to_owned(),
                ));
            }
        };
        Some(self.meet(key, numbers))
    }

    #[inline]
    fn meet(&mut self, key: &[u8], numbers: &[&[u8]]) -> Result<Waiting, String> {
        const NAMES: [&str; 4] = ["max_burst", "count", "period", "quantity"];
        let mut values = [0, 0, 0, 1];
        for ((value, text), name) in values.iter_mut().zip(numbers).zip(NAMES) {
            *value = integer(text).ok_or_else(|| {
                format!(
                    "`{name}` is `{}`; it must be an integer between 0 and {}",
                    shown(text),
                    i64::MAX
                )
            })?;
        }
        let [max_burst, count, period_s, cost] = values;
        let limit = Limit {
            max_burst,
            count,
            period_s,
        };
        let shadow = self.shared.is_shadow();
        let class = match self.last {
            Some((last, then, class)) if last == limit && then == shadow => class,
            _ => {
                let class = self
                    .shared
                    .class(limit, shadow)
                    .map_err(|error: LimitError| error.to_string())?;
                self.last = Some((limit, shadow, class));
                class
            }
        };
        let call = Call {
            key: self.shared.limiter.meet(IdKind::Key, key),
            class,
            cost,
            charge: cost > 0,
        };
        Ok(Waiting { call, limit })
    }

    /// Answers everything else; whether the connection ends.
    #[cold]
    fn other(&mut self, arguments: &Arguments<'_>, out: &mut Vec<u8>) -> bool {
        let kept = arguments.kept();
        let [name, rest @ ..] = kept else {
            return false;
        };
        let name = name.to_ascii_uppercase();
        match name.as_slice() {
            b"QUIT" => {
                out.extend_from_slice(b"+OK\r\n");
                return true;
            }
            b"HELLO" => self.hello(rest, out),
            b"AUTH" => match rest {
                [token] | [_, token] => self.auth(token, out),
                _ => error(
                    out,
                    format_args!("wrong number of arguments: AUTH [name] token"),
                ),
            },
            _ if !self.admitted => {
                out.extend_from_slice(b"-NOAUTH Authentication required.\r\n");
            }
            b"PING" => match rest {
                [] => out.extend_from_slice(b"+PONG\r\n"),
                [text, ..] => bulk(out, text),
            },
            b"ECHO" => bulk(out, rest.first().unwrap_or(&&b""[..])),
            b"COMMAND" => command(rest, self.protocol, out),
            b"CLIENT" => client(rest, self.id, out),
            b"SELECT" if rest == [b"0"] => out.extend_from_slice(b"+OK\r\n"),
            b"SELECT" => error(
                out,
                format_args!("DB index is out of range; there is 0 only"),
            ),
            b"RESET" => {
                self.protocol = 2;
                self.admitted = self.is_open();
                out.extend_from_slice(b"+RESET\r\n");
            }
            _ => error(
                out,
                format_args!(
                    "unknown command `{}`; there are CL.THROTTLE, PING, ECHO, HELLO, AUTH, CLIENT, \
                     COMMAND, SELECT, RESET, QUIT",
                    shown(&name)
                ),
            ),
        }
        false
    }

    /// Whether callers are let in without a token.
    fn is_open(&self) -> bool {
        self.admit.as_ref().is_none_or(|admit| admit(None))
    }

    fn admits(&self, token: &[u8]) -> bool {
        let admit = self.admit.as_ref();
        admit.is_none_or(|admit| std::str::from_utf8(token).is_ok_and(|token| admit(Some(token))))
    }

    fn auth(&mut self, token: &[u8], out: &mut Vec<u8>) {
        if self.is_open() {
            error(
                out,
                format_args!("AUTH: no credential is needed on this listener"),
            );
            return;
        }
        self.admitted = self.admits(token);
        if self.admitted {
            out.extend_from_slice(b"+OK\r\n");
        } else {
            out.extend_from_slice(b"-WRONGPASS the credential is not known or may not check\r\n");
        }
    }

    fn hello(&mut self, rest: &[&[u8]], out: &mut Vec<u8>) {
        let (protocol, mut options) = match rest {
            [] => (self.protocol, rest),
            [b"2", options @ ..] => (2, options),
            [b"3", options @ ..] => (3, options),
            _ => {
                out.extend_from_slice(b"-NOPROTO unsupported protocol version\r\n");
                return;
            }
        };
        loop {
            match options {
                [] => break,
                [option, _, token, behind @ ..] if option.eq_ignore_ascii_case(b"AUTH") => {
                    self.admitted = self.is_open() || self.admits(token);
                    options = behind;
                }
                [option, _, behind @ ..] if option.eq_ignore_ascii_case(b"SETNAME") => {
                    options = behind;
                }
                [option, ..] => {
                    error(
                        out,
                        format_args!("HELLO: syntax error at `{}`", shown(option)),
                    );
                    return;
                }
            }
        }
        if !self.admitted {
            out.extend_from_slice(b"-NOAUTH HELLO must be called with a good AUTH here\r\n");
            return;
        }
        self.protocol = protocol;
        out.extend_from_slice(if protocol == 3 { b"%7\r\n" } else { b"*14\r\n" });
        let text = |out: &mut Vec<u8>, name: &str, value: &str| {
            bulk(out, name.as_bytes());
            bulk(out, value.as_bytes());
        };
        text(out, "server", "ratelimiter");
        text(out, "version", env!("CARGO_PKG_VERSION"));
        bulk(out, b"proto");
        number(out, u64::from(protocol));
        bulk(out, b"id");
        number(out, self.id);
        text(out, "mode", "standalone");
        text(out, "role", "master");
        bulk(out, b"modules");
        out.extend_from_slice(b"*0\r\n");
    }
}

/// Writes redis-cell's five integers: limited, limit, remaining, seconds until it may be tried
/// again (-1 where it was not limited, or never will pass), seconds until everything is free.
#[inline]
fn reply(out: &mut Vec<u8>, answer: &Answer, limit: Limit) {
    out.extend_from_slice(if answer.allowed {
        b"*5\r\n:0\r\n"
    } else {
        b"*5\r\n:1\r\n"
    });
    number(out, limit.max_burst.saturating_add(1));
    number(out, answer.remaining);
    if answer.allowed || answer.retry_after_ns == u64::MAX {
        out.extend_from_slice(b":-1\r\n");
    } else {
        // Never earlier than it passes.
        number(out, answer.retry_after_ns.div_ceil(SECOND));
    }
    // As redis-cell rounds: parts of a millisecond do not count.
    number(out, (answer.reset_after_ns / MILLISECOND).div_ceil(1_000));
}

#[inline]
fn number(out: &mut Vec<u8>, value: u64) {
    if value < 10 {
        out.extend_from_slice(&[b':', b'0' + value as u8, b'\r', b'\n']);
        return;
    }
    let mut digits = [0_u8; 20];
    let mut rest = value;
    let mut len = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        len += 1;
        if rest == 0 {
            break;
        }
    }
    out.push(b':');
    out.extend_from_slice(digits.get(20 - len..).unwrap_or(&[]));
    out.extend_from_slice(b"\r\n");
}

fn bulk(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// An error reply: one line, whatever is in it.
#[cold]
fn error(out: &mut Vec<u8>, message: std::fmt::Arguments<'_>) {
    out.extend_from_slice(b"-ERR ");
    let begin = out.len();
    // Writing into memory does not fail.
    let _written = out.write_fmt(message).is_ok();
    for byte in out.iter_mut().skip(begin) {
        if byte.is_ascii_control() {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn shown(text: &[u8]) -> String {
    let cut = text.get(..SHOWN).unwrap_or(text);
    String::from_utf8_lossy(cut).into_owned()
}

/// Reads a number of at most 18 digits.
#[inline]
fn integer(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 18 {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| {
        byte.is_ascii_digit()
            .then(|| value * 10 + u64::from(byte - b'0'))
    })
}

fn command(rest: &[&[u8]], protocol: u8, out: &mut Vec<u8>) {
    match rest {
        [sub, ..] if sub.eq_ignore_ascii_case(b"COUNT") => number(out, 10),
        // Clients that ask for documentation only use it for help texts.
        [sub, ..] if sub.eq_ignore_ascii_case(b"DOCS") && protocol == 3 => {
            out.extend_from_slice(b"%0\r\n");
        }
        _ => out.extend_from_slice(b"*0\r\n"),
    }
}

fn client(rest: &[&[u8]], id: u64, out: &mut Vec<u8>) {
    match rest {
        [sub] if sub.eq_ignore_ascii_case(b"ID") => number(out, id),
        [sub] if sub.eq_ignore_ascii_case(b"GETNAME") => bulk(out, b""),
        [sub, ..]
            if [&b"SETINFO"[..], b"SETNAME", b"NO-EVICT", b"NO-TOUCH"]
                .iter()
                .any(|known| sub.eq_ignore_ascii_case(known)) =>
        {
            out.extend_from_slice(b"+OK\r\n");
        }
        [sub, ..] => error(
            out,
            format_args!("CLIENT: unknown subcommand `{}`", shown(sub)),
        ),
        [] => error(
            out,
            format_args!("wrong number of arguments: CLIENT subcommand"),
        ),
    }
}

const _: () = assert!(MAX_COMMAND_BYTES >= 1 << 16);
