//! What the load says and understands: just enough of HTTP/1.1, gRPC and the Redis protocol that
//! asking costs less than answering.
//!
//! Every answer is looked at: one that does not say "allowed" ends the run.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};

/// Whole answers found in what was read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Read {
    /// Bytes they took.
    pub(crate) taken: usize,
    pub(crate) answers: usize,
}

/// One connection's end of a protocol.
pub(crate) trait Wire {
    /// What is sent first.
    fn hello(&self, _out: &mut Vec<u8>) {}
    /// Appends the next questions; returns how many.
    fn ask(&mut self, out: &mut Vec<u8>) -> usize;
    /// Reads answers; `out` takes what the protocol itself wants said.
    fn read(&mut self, input: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Read>;
}

/// Questions that every connection of a run asks, each beginning somewhere else.
pub(crate) type Questions = Arc<Vec<Vec<u8>>>;

fn next<'a>(questions: &'a Questions, at: &mut usize) -> &'a [u8] {
    *at = (*at + 1) % questions.len();
    questions.get(*at).map_or(&[], Vec::as_slice)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// HTTP/1.1: one request at a time.
pub(crate) struct Http {
    pub(crate) questions: Questions,
    pub(crate) at: usize,
    /// What the body of every answer contains.
    pub(crate) expect: &'static [u8],
}

/// A request with a JSON body.
pub(crate) fn http_question(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

impl Wire for Http {
    fn ask(&mut self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(next(&self.questions, &mut self.at));
        1
    }

    fn read(&mut self, input: &[u8], _out: &mut Vec<u8>) -> anyhow::Result<Read> {
        let Some(head) = find(input, b"\r\n\r\n") else {
            return Ok(Read::default());
        };
        let said = || String::from_utf8_lossy(input).into_owned();
        let (head, rest) = input.split_at(head + 4);
        ensure!(head.starts_with(b"HTTP/1.1 200"), "answer: {}", said());
        let length = find(head, b"content-length: ").map(|at| at + 16);
        let length = length
            .and_then(|at| head.get(at..))
            .and_then(|text| text.split(|byte| *byte == b'\r').next())
            .and_then(|text| std::str::from_utf8(text).ok()?.parse::<usize>().ok())
            .with_context(|| format!("an answer without a length: {}", said()))?;
        let Some(body) = rest.get(..length) else {
            return Ok(Read::default());
        };
        ensure!(find(body, self.expect).is_some(), "answer: {}", said());
        Ok(Read {
            taken: head.len() + length,
            answers: 1,
        })
    }
}

/// gRPC over HTTP/2: one call at a time, on a new stream each.
pub(crate) struct Grpc {
    pub(crate) questions: Questions,
    pub(crate) at: usize,
    pub(crate) path: &'static str,
    /// The next stream; 1 at first.
    pub(crate) stream: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// Of SETTINGS and PING; of DATA and HEADERS the end of the stream.
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A message with the five bytes that gRPC puts before it.
pub(crate) fn grpc_question(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

impl Grpc {
    /// The head of a call. The first one puts its fields into the peer's table; all others name
    /// them by number, as every client of gRPC does (RFC 7541: `:method` POST is 3, `:scheme` http
    /// 6, `:path` 4, `:authority` 1, `content-type` 31; what was put last is 62; the bit 0x80 says
    /// that nothing but a number follows).
    fn head(&self) -> Vec<u8> {
        const BY_NUMBER: [u8; 6] = [0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe];
        if self.stream > 1 {
            return BY_NUMBER.to_vec();
        }
        let mut head = vec![0x83, 0x86];
        let text = |out: &mut Vec<u8>, text: &str| {
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        };
        for (name, value) in [(4, self.path), (1, "127.0.0.1"), (31, "application/grpc")] {
            head.push(0x40 | name);
            text(&mut head, value);
        }
        head.push(0x40);
        text(&mut head, "te");
        text(&mut head, "trailers");
        head
    }
}

impl Wire for Grpc {
    fn hello(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        frame(out, SETTINGS, 0, 0, &[]);
        // More than a run's answers together.
        frame(out, WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    }

    fn ask(&mut self, out: &mut Vec<u8>) -> usize {
        frame(out, HEADERS, END_HEADERS, self.stream, &self.head());
        let (stream, message) = (self.stream, next(&self.questions, &mut self.at));
        frame(out, DATA, ACK, stream, message);
        self.stream += 2;
        1
    }

    fn read(&mut self, input: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Read> {
        let mut read = Read::default();
        while let Some((head, rest)) = input
            .get(read.taken..)
            .and_then(<[u8]>::split_first_chunk::<9>)
        {
            let [a, b, c, kind, flags, ..] = *head;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some(payload) = rest.get(..length) else {
                break;
            };
            match kind {
                // Field 1 of either answer: OK, or allowed.
                DATA => ensure!(
                    payload.get(5..7) == Some(&[0x08, 0x01]),
                    "answer: {payload:?}"
                ),
                HEADERS if flags & ACK != 0 => read.answers += 1,
                SETTINGS | PING if flags & ACK == 0 => {
                    let back = if kind == PING { payload } else { &[] };
                    frame(out, kind, ACK, 0, back);
                }
                RST_STREAM | GOAWAY => bail!("the server ended the call: {kind} {payload:?}"),
                _ => {}
            }
            read.taken += head.len() + length;
        }
        Ok(read)
    }
}

/// The Redis protocol: many commands at a time.
pub(crate) struct Resp {
    /// Each a whole pipeline.
    pub(crate) questions: Questions,
    pub(crate) at: usize,
    /// Commands of a pipeline.
    pub(crate) depth: usize,
    /// How every answer begins.
    pub(crate) expect: &'static [u8],
}

/// A command.
pub(crate) fn resp_question(words: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    out
}

/// Lines of an answer: an array of five numbers.
const LINES: usize = 6;

impl Wire for Resp {
    fn ask(&mut self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(next(&self.questions, &mut self.at));
        self.depth
    }

    fn read(&mut self, input: &[u8], _out: &mut Vec<u8>) -> anyhow::Result<Read> {
        let mut read = Read::default();
        let mut lines = 0;
        for (at, _) in input.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            lines += 1;
            if lines == LINES {
                let answer = input.get(read.taken..=at).unwrap_or(&[]);
                ensure!(
                    answer.starts_with(self.expect),
                    "answer: {}",
                    String::from_utf8_lossy(answer)
                );
                read.answers += 1;
                read.taken = at + 1;
                lines = 0;
            }
        }
        Ok(read)
    }
}
