//! Usage as bytes: what every client owes, to be saved and taken up again.
//!
//! A snapshot holds the identity key, the policies by content, and per client its fingerprint, its
//! line and its states as of the moment of saving. Words and clocks are not in it, so it outlives
//! changes of the layout, of the capacity and of the configuration: a client whose limits changed
//! meanwhile is converted as by an edit. Time that passed between saving and restoring has passed.
//!
//! Format, version 1, all integers little-endian or LEB128: `rlusage1`, key (16), saved at (Unix
//! ns, 8), caller's clock (1), lines (LEB), policies (LEB count, each its quotas), clients (LEB
//! count, each line, fingerprint (8), policy, newest stamp, states), SipHash-2-4 of all before (8).
//! Keep it as secret as the key in it.

use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ratelimiter_common::window::fixed_window::Counter;
use ratelimiter_common::window::sliding_window::Counters;
use siphasher::sip::SipHasher24;

use super::assign::Assigned;
use super::engine::Engine;
use super::identity::{EMPTY, IdentityKey, TOMBSTONE};
use super::meter::State;
use super::place::Known;
use super::rate_limiter::RateLimiter;
use super::registry::Compiled;
use super::spec::{MAX_LOG_LIMIT, MAX_QUOTAS, PolicySpec, QuotaSpec};
use super::table::{GROUP, WAYS};
use crate::clock;
use crate::policy::model::Algorithm;

const MAGIC: &[u8; 8] = b"rlusage1";
const TRAILER: usize = 8;

/// Why bytes are not a usable snapshot. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It does not begin like one.
    #[error("not a usage snapshot of a version this program knows")]
    Magic,
    /// The checksum is wrong.
    #[error("the usage snapshot is torn or damaged: its checksum is wrong")]
    Checksum,
    /// The checksum is right and the content is not: written by another program.
    #[error("the usage snapshot is malformed at byte {0}")]
    Malformed(usize),
    /// The key is not the limiter's.
    #[error(
        "the usage snapshot was made under another identity key; build the limiter with its key"
    )]
    OtherKey,
    /// The limiter's time mode is not the snapshot's.
    #[error("the usage snapshot was made under another time mode")]
    OtherTimeMode,
}

/// What was taken up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Clients that still owe something.
    pub clients: u64,
    /// Clients that owe nothing any more, or that the limiter now refuses.
    pub forgotten: u64,
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(b"ratelimiter/use1");
    hasher.write(bytes);
    hasher.finish()
}

/// Checks a snapshot and returns the key to build the limiter with.
pub fn identity_key(bytes: &[u8]) -> Result<IdentityKey, SnapshotError> {
    open(bytes).map(|(key, _)| key)
}

fn open(bytes: &[u8]) -> Result<(IdentityKey, Reader<'_>), SnapshotError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(SnapshotError::Magic)?;
    let (content, sum) = body
        .split_last_chunk::<TRAILER>()
        .ok_or(SnapshotError::Checksum)?;
    let signed = bytes.len() - TRAILER;
    if checksum(bytes.get(..signed).unwrap_or_default()) != u64::from_le_bytes(*sum) {
        return Err(SnapshotError::Checksum);
    }
    let mut reader = Reader {
        bytes: content,
        at: 0,
    };
    let key = IdentityKey(*reader.array::<16>()?);
    Ok((key, reader))
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn leb(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
    fn text(&mut self, text: &str) {
        self.leb(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }
    fn policy(&mut self, spec: &PolicySpec) {
        self.text(&spec.segment);
        self.text(&spec.backend);
        self.leb(spec.quotas.len() as u64);
        for quota in &spec.quotas {
            self.text(&quota.name);
            self.0.push(match quota.algorithm {
                Algorithm::TokenBucket => 0,
                Algorithm::SlidingLog => 1,
                Algorithm::SlidingWindow => 2,
                Algorithm::FixedWindow => 3,
            });
            self.0.push(super::flags::of(quota));
            self.leb(quota.rate_limit);
            self.leb(quota.window_ns);
            self.leb(quota.burst);
        }
    }
    fn state(&mut self, state: &State, now_ns: u64) {
        let age = |start_ns: u64| now_ns.saturating_sub(start_ns);
        match state {
            State::Bucket(debt) => self.leb(*debt),
            State::Sliding(counters) => {
                self.leb(age(counters.start_ns));
                self.leb(counters.current);
                self.leb(counters.previous);
            }
            State::Fixed(counter) => {
                self.leb(age(counter.start_ns));
                self.leb(counter.current);
            }
            State::Log(times) => {
                self.leb(times.len() as u64);
                for &time in times {
                    self.leb(age(time));
                }
            }
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn malformed(&self) -> SnapshotError {
        SnapshotError::Malformed(MAGIC.len() + self.at)
    }
    fn slice(&mut self, len: usize) -> Result<&'a [u8], SnapshotError> {
        let end = self.at.checked_add(len).ok_or_else(|| self.malformed())?;
        let slice = self
            .bytes
            .get(self.at..end)
            .ok_or_else(|| self.malformed())?;
        self.at = end;
        Ok(slice)
    }
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], SnapshotError> {
        let slice = self.slice(N)?;
        slice.first_chunk::<N>().ok_or_else(|| self.malformed())
    }
    fn byte(&mut self) -> Result<u8, SnapshotError> {
        let [byte] = self.array::<1>()?;
        Ok(*byte)
    }
    fn u64(&mut self) -> Result<u64, SnapshotError> {
        Ok(u64::from_le_bytes(*self.array::<8>()?))
    }
    fn leb(&mut self) -> Result<u64, SnapshotError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }
    fn text(&mut self) -> Result<Arc<str>, SnapshotError> {
        let len = self.leb()?;
        let slice = self.slice(usize::try_from(len).map_err(|_| self.malformed())?)?;
        let text = std::str::from_utf8(slice).map_err(|_| self.malformed())?;
        Ok(Arc::from(text))
    }
    fn policy(&mut self) -> Result<PolicySpec, SnapshotError> {
        let segment = self.text()?;
        let backend = self.text()?;
        let count = self.leb()?;
        if count > MAX_QUOTAS as u64 {
            return Err(self.malformed());
        }
        let mut quotas = Vec::new();
        for _ in 0..count {
            let name = self.text()?;
            let algorithm = match self.byte()? {
                0 => Algorithm::TokenBucket,
                1 => Algorithm::SlidingLog,
                2 => Algorithm::SlidingWindow,
                3 => Algorithm::FixedWindow,
                _ => return Err(self.malformed()),
            };
            let flags = self.byte()?;
            quotas.push(QuotaSpec {
                name,
                algorithm,
                shadow: flags & 1 != 0,
                consistency: super::flags::consistency(flags),
                on_store_loss: super::flags::on_store_loss(flags),
                rate_limit: self.leb()?,
                window_ns: self.leb()?,
                burst: self.leb()?,
            });
        }
        Ok(PolicySpec {
            quotas,
            segment,
            backend,
        })
    }
    /// Reads a state as it was when it was saved, at `then_ns`.
    fn state(&mut self, algorithm: Algorithm, then_ns: u64) -> Result<State, SnapshotError> {
        Ok(match algorithm {
            Algorithm::TokenBucket => State::Bucket(self.leb()?),
            Algorithm::SlidingWindow => State::Sliding(Counters {
                start_ns: then_ns.saturating_sub(self.leb()?),
                current: self.leb()?,
                previous: self.leb()?,
            }),
            Algorithm::FixedWindow => State::Fixed(Counter {
                start_ns: then_ns.saturating_sub(self.leb()?),
                current: self.leb()?,
            }),
            Algorithm::SlidingLog => {
                let len = self.leb()?;
                if len > MAX_LOG_LIMIT {
                    return Err(self.malformed());
                }
                let ages: Result<Vec<u64>, _> = (0..len).map(|_| self.leb()).collect();
                let times = ages?.into_iter().map(|age| then_ns.saturating_sub(age));
                State::Log(times.collect())
            }
        })
    }
}

/// One client of a snapshot.
struct Record {
    line: u64,
    print: u64,
    policy: usize,
    newest_ns: u64,
    states: Vec<State>,
}

/// A snapshot, read and checked whole before anything is changed.
struct Content {
    lines: u64,
    policies: Vec<PolicySpec>,
    records: Vec<Record>,
}

fn read(
    mut reader: Reader<'_>,
    caller_clock: bool,
    unix_ns: u64,
    now_ns: u64,
) -> Result<Content, SnapshotError> {
    let saved_unix_ns = reader.u64()?;
    if (reader.byte()? != 0) != caller_clock {
        return Err(SnapshotError::OtherTimeMode);
    }
    // The moment of saving on this process's clock.
    let then_ns = now_ns.saturating_sub(unix_ns.saturating_sub(saved_unix_ns));
    let lines = reader.leb()?.max(1);
    let mut policies = Vec::new();
    for _ in 0..reader.leb()? {
        policies.push(reader.policy()?);
    }
    let mut records = Vec::new();
    for _ in 0..reader.leb()? {
        let line = reader.leb()?;
        let print = reader.u64()?;
        let policy = usize::try_from(reader.leb()?).map_err(|_| reader.malformed())?;
        let newest_ns = reader.leb()?;
        let of = policies.get(policy).ok_or_else(|| reader.malformed())?;
        if line >= lines || print <= TOMBSTONE {
            return Err(reader.malformed());
        }
        let as_of = if caller_clock { newest_ns } else { then_ns };
        let mut states = Vec::with_capacity(of.quotas.len());
        for quota in &of.quotas {
            states.push(reader.state(quota.algorithm, as_of)?);
        }
        records.push(Record {
            line,
            print,
            policy,
            newest_ns,
            states,
        });
    }
    if reader.at != reader.bytes.len() {
        return Err(reader.malformed());
    }
    Ok(Content {
        lines,
        policies,
        records,
    })
}

impl RateLimiter {
    /// Saves what every client owes. Checks may go on; each client is saved as of one moment.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.inner()
            .engine
            .save(self.identity_key(), self.now_ns(), clock::unix_ns())
    }

    /// Takes up a snapshot, whole or not at all. Meant for a limiter that has just been built with
    /// the snapshot's key ([`identity_key`]) and configured; clients it already knows are left
    /// alone.
    pub fn restore(&self, bytes: &[u8]) -> Result<Restored, SnapshotError> {
        self.restore_at(bytes, clock::unix_ns())
    }

    /// As [`RateLimiter::restore`], at the Unix time `unix_ns`.
    pub fn restore_at(&self, bytes: &[u8], unix_ns: u64) -> Result<Restored, SnapshotError> {
        let (key, reader) = open(bytes)?;
        if key != self.identity_key() {
            return Err(SnapshotError::OtherKey);
        }
        let engine = &self.inner().engine;
        let now_ns = self.now_ns();
        let content = read(reader, engine.common.caller_clock, unix_ns, now_ns)?;
        Ok(engine.take_up(content, now_ns, unix_ns, bytes))
    }
}

impl Engine {
    fn save(&self, key: IdentityKey, now_ns: u64, unix_ns: u64) -> Vec<u8> {
        let mut policies: Vec<Arc<PolicySpec>> = Vec::new();
        let mut numbers: HashMap<Arc<PolicySpec>, u64> = HashMap::new();
        let mut clients = Writer::default();
        let mut count = 0_u64;
        for number in 0..self.table.lines() {
            let line = self.table.line(number);
            for way in (0..WAYS).map(|way| line.way(way)) {
                let print = way.print.load(Ordering::Acquire);
                if print == EMPTY || print == TOMBSTONE {
                    continue;
                }
                let Some((policy, word)) = way.read(print) else {
                    continue;
                };
                let as_of = self.time_of(
                    policy,
                    word,
                    if self.common.caller_clock { 0 } else { now_ns },
                );
                let Some(known) = self.states_of(policy, word, as_of) else {
                    continue;
                };
                if known.debt_ns(as_of) == 0 {
                    continue;
                }
                let spec = &known.of.spec;
                let of = *numbers.entry(Arc::clone(spec)).or_insert_with(|| {
                    policies.push(Arc::clone(spec));
                    policies.len() as u64 - 1
                });
                clients.leb((number / GROUP * GROUP + way.home()) as u64);
                clients.0.extend_from_slice(&print.to_le_bytes());
                clients.leb(of);
                clients.leb(if self.common.caller_clock { as_of } else { 0 });
                for state in &known.states {
                    clients.state(state, as_of);
                }
                count += 1;
            }
        }
        let mut out = Writer(MAGIC.to_vec());
        out.0.extend_from_slice(&key.0);
        out.0.extend_from_slice(&unix_ns.to_le_bytes());
        out.0.push(u8::from(self.common.caller_clock));
        out.leb(self.table.lines() as u64);
        out.leb(policies.len() as u64);
        for spec in &policies {
            out.policy(spec);
        }
        out.leb(count);
        out.0.append(&mut clients.0);
        let sum = checksum(&out.0);
        out.0.extend_from_slice(&sum.to_le_bytes());
        out.0
    }

    fn take_up(&self, content: Content, now_ns: u64, unix_ns: u64, bytes: &[u8]) -> Restored {
        let saved = bytes.get(24..32).and_then(|b| b.first_chunk::<8>());
        let saved_unix_ns = saved.map_or(unix_ns, |bytes| u64::from_le_bytes(*bytes));
        let away_ns = unix_ns.saturating_sub(saved_unix_ns);
        let mut restored = Restored::default();
        let old: Vec<Option<Arc<Compiled>>> = content
            .policies
            .iter()
            .map(|spec| self.registry.compile_apart(spec, now_ns))
            .collect();
        // Nobody is assigned to the policies that callers name: their clients come back under them.
        let classes: Vec<Option<u32>> = content
            .policies
            .iter()
            .map(|spec| {
                let class = spec.is_class().then_some(spec)?;
                let made = self.registry.edit(now_ns, |edit| edit.intern(class));
                made.ok()
            })
            .collect();
        for record in content.records {
            let class = classes.get(record.policy).copied().flatten();
            let Some(of) = old.get(record.policy).cloned().flatten() else {
                restored.forgotten += 1;
                continue;
            };
            let at_ns = if self.common.caller_clock {
                record.newest_ns
            } else {
                now_ns
            };
            let states = record.states.into_iter().zip(&of.meters);
            let states = states
                .map(|(state, meter)| match state {
                    // By the caller's clock no time passes but the caller's.
                    State::Bucket(debt) if !self.common.caller_clock => {
                        State::Bucket(debt.saturating_sub(meter.clock.speed.advance(away_ns)))
                    }
                    other => other,
                })
                .collect();
            let known = Known { of, states };
            // Where the table has another size, the home line stands for a range of lines, and each
            // group of the range gets a copy: those nobody asks for are forgotten in time.
            let lines = self.table.lines() as u128;
            let place = |line: u128| (line * lines / u128::from(content.lines)) as usize;
            let first = place(u128::from(record.line));
            let last = ((u128::from(record.line) + 1) * lines - 1) / u128::from(content.lines);
            let mut kept = false;
            let mut group = None;
            for line in first..=(last as usize).min(self.table.lines() - 1) {
                if group != Some(line / GROUP) {
                    group = Some(line / GROUP);
                    kept |= self.take_up_one(line, record.print, class, &known, at_ns);
                }
            }
            if kept {
                restored.clients += 1;
            } else {
                restored.forgotten += 1;
            }
        }
        restored
    }

    fn take_up_one(
        &self,
        home: usize,
        print: u64,
        class: Option<u32>,
        known: &Known,
        now_ns: u64,
    ) -> bool {
        let _group = self.table.lock(home);
        let assigned = class.map_or_else(|| self.assigned_print(print, home), Assigned::Configured);
        let (Assigned::Configured(index) | Assigned::Default(index)) = assigned else {
            return false;
        };
        let Some(target) = self.registry.current(index) else {
            return false;
        };
        if known.debt_ns(now_ns) == 0
            || self
                .table
                .neighbours(home)
                .any(|line| line.find(print).is_some())
        {
            return false;
        }
        // In a smaller table whoever owes least gives way.
        let Some(chosen) = self.choose(home, now_ns) else {
            return false;
        };
        let way = chosen.way;
        if chosen.print != EMPTY {
            if chosen.debt_ns >= known.debt_ns(now_ns) {
                return false;
            }
            let policy = way.policy();
            let Some(last) = way.seize(chosen.print) else {
                return false;
            };
            self.drop_block(policy, last);
            self.tally.clients.fetch_sub(1, Ordering::Relaxed);
        }
        let (word, policy) = self.build(&target, print, now_ns, &|spec, meter| {
            known.carried(spec, meter, now_ns)
        });
        way.set_home(home);
        way.settle(print, word, policy);
        self.tally.clients.fetch_add(1, Ordering::Relaxed);
        true
    }
}
