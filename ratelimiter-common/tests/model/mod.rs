//! The algorithms behind one face, and a serial reference model for each window algorithm.

use ratelimiter_common::quota::{Quota, Unit};
use ratelimiter_common::vclock::Speed;
use ratelimiter_common::window::fixed_window::{self, Counter};
use ratelimiter_common::window::sliding_log::{self, Span};
use ratelimiter_common::window::sliding_window::{self, Counters};
use ratelimiter_common::window::word::Packing;
use ratelimiter_common::window::{Decision, WindowLimit, token_bucket};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass { remaining: u64, reset_after: u64 },
    Refused { retry_after: u64 },
    Never,
}

fn split<S>(decision: Decision<S>) -> (Option<S>, Verdict) {
    match decision {
        Decision::Conforming {
            state,
            remaining,
            reset_after,
        } => (
            Some(state),
            Verdict::Pass {
                remaining,
                reset_after,
            },
        ),
        Decision::NonConforming { retry_after } => (None, Verdict::Refused { retry_after }),
        Decision::ExceedsBurst => (None, Verdict::Never),
    }
}

/// One client under one algorithm; times in nanoseconds.
pub(crate) trait Subject {
    fn name(&self) -> &'static str;
    fn check(&mut self, now_ns: u64, cost: u64) -> Verdict;
    fn change_limit(&mut self, now_ns: u64, limit: u64);
    /// Most units in a closed window `[t, t + w_ns]`.
    fn bound(&self, w_ns: u64) -> u64;
    fn boxed(&self) -> Box<dyn Subject>;
    /// How much earlier than its first request a window may begin.
    fn tick_ns(&self) -> u64 {
        0
    }
}

macro_rules! boxed {
    () => {
        fn boxed(&self) -> Box<dyn Subject> {
            Box::new(self.clone())
        }
    };
}

#[derive(Clone)]
struct Log {
    limit: WindowLimit,
    times: Vec<u64>,
    span: Span,
}

impl Subject for Log {
    fn name(&self) -> &'static str {
        "sliding_log"
    }
    fn check(&mut self, now_ns: u64, cost: u64) -> Verdict {
        let mut ring = &mut self.times[..];
        let (state, verdict) = split(sliding_log::decide(
            &mut ring,
            self.span,
            now_ns,
            cost,
            &self.limit,
        ));
        self.span = state.unwrap_or(self.span);
        verdict
    }
    fn change_limit(&mut self, _now_ns: u64, limit: u64) {
        let mut times = vec![0; limit as usize];
        let mut span = Span::default();
        let old = &mut self.times[..];
        for index in 0..self.span.len {
            span = span.push(&mut &mut times[..], self.span.entry(&old, index));
        }
        self.times = times;
        self.span = span;
        self.limit = WindowLimit::new(limit, self.limit.window_ns);
    }
    fn bound(&self, w_ns: u64) -> u64 {
        // [t, t + w] is covered by floor(w / W) + 1 half-open windows.
        self.limit.limit * (w_ns / self.limit.window_ns + 1)
    }
    boxed!();
}

#[derive(Clone)]
struct Sliding {
    limit: WindowLimit,
    counters: Counters,
    packing: Option<Packing>,
    word: u64,
}

impl Subject for Sliding {
    fn name(&self) -> &'static str {
        if self.packing.is_some() {
            "sliding_window packed"
        } else {
            "sliding_window"
        }
    }
    fn check(&mut self, now_ns: u64, cost: u64) -> Verdict {
        let counters = self.packing.map_or(self.counters, |packing| {
            packing.unpack_sliding(self.word, now_ns)
        });
        let (state, verdict) = split(sliding_window::decide(counters, now_ns, cost, &self.limit));
        if let Some(state) = state {
            self.counters = state;
            self.word = self
                .packing
                .map_or(0, |packing| packing.pack_sliding(state));
        }
        verdict
    }
    fn change_limit(&mut self, _now_ns: u64, limit: u64) {
        self.limit = WindowLimit::new(limit, self.limit.window_ns);
    }
    fn bound(&self, w_ns: u64) -> u64 {
        let w_ns = w_ns + 3 * self.tick_ns() * (w_ns / self.limit.window_ns + 1);
        let refill =
            u128::from(self.limit.limit) * u128::from(w_ns) / u128::from(self.limit.window_ns);
        self.limit.limit + refill as u64
    }
    fn tick_ns(&self) -> u64 {
        self.packing.map_or(0, |packing| 1 << packing.tick_shift)
    }
    boxed!();
}

#[derive(Clone)]
struct Fixed {
    limit: WindowLimit,
    counter: Counter,
    packing: Option<Packing>,
    word: u64,
}

impl Subject for Fixed {
    fn name(&self) -> &'static str {
        if self.packing.is_some() {
            "fixed_window packed"
        } else {
            "fixed_window"
        }
    }
    fn check(&mut self, now_ns: u64, cost: u64) -> Verdict {
        let counter = self.packing.map_or(self.counter, |packing| {
            packing.unpack_fixed(self.word, now_ns)
        });
        let (state, verdict) = split(fixed_window::decide(counter, now_ns, cost, &self.limit));
        if let Some(state) = state {
            self.counter = state;
            self.word = self.packing.map_or(0, |packing| packing.pack_fixed(state));
        }
        verdict
    }
    fn change_limit(&mut self, _now_ns: u64, limit: u64) {
        self.limit = WindowLimit::new(limit, self.limit.window_ns);
    }
    fn bound(&self, w_ns: u64) -> u64 {
        let window_ns = self.limit.window_ns - self.tick_ns();
        self.limit.limit * (w_ns / window_ns + 2)
    }
    fn tick_ns(&self) -> u64 {
        self.packing.map_or(0, |packing| 1 << packing.tick_shift)
    }
    boxed!();
}

/// A token bucket on a unit clock, in nanoseconds.
#[derive(Clone)]
pub(crate) struct Bucket {
    window_ns: u64,
    speed: Speed,
    from_ns: u64,
    base: u64,
    burst: u64,
    tat: u64,
}

impl Bucket {
    #[expect(
        clippy::unwrap_used,
        reason = "a test that asks for an illegal rate must fail"
    )]
    pub(crate) fn new(rate_limit: u64, window_ns: u64, burst: u64) -> Self {
        let quota = Quota {
            rate_limit,
            window_ns,
            burst,
            unit: Unit::Requests,
        };
        let limit = quota.compile().unwrap();
        Self {
            window_ns,
            speed: limit.speed,
            from_ns: 0,
            base: 1 << 40,
            burst: limit.burst,
            tat: 0,
        }
    }
    fn at(&self, now_ns: u64) -> u64 {
        self.base
            .saturating_add(self.speed.advance(now_ns.saturating_sub(self.from_ns)))
    }
}

impl Subject for Bucket {
    fn name(&self) -> &'static str {
        "token_bucket"
    }
    fn check(&mut self, now_ns: u64, cost: u64) -> Verdict {
        let v = self.at(now_ns);
        // The suite's stamps run backwards by two minutes at most.
        let slack = self.speed.advance(120_000_000_000);
        let tat = token_bucket::clamp(self.tat, v, slack, self.base, self.burst);
        let (state, verdict) = split(token_bucket::decide(
            tat,
            v,
            cost.saturating_mul(1 << 16),
            self.burst,
        ));
        self.tat = state.unwrap_or(self.tat);
        let elapsed = now_ns.saturating_sub(self.from_ns);
        let wait = |ticks: u64| {
            let target = (v - self.base).saturating_add(ticks);
            self.speed.time_for(target).saturating_sub(elapsed)
        };
        match verdict {
            Verdict::Pass {
                remaining,
                reset_after,
            } => Verdict::Pass {
                remaining: remaining >> 16,
                reset_after: wait(reset_after),
            },
            Verdict::Refused { retry_after } => Verdict::Refused {
                retry_after: wait(retry_after),
            },
            Verdict::Never => Verdict::Never,
        }
    }
    fn change_limit(&mut self, now_ns: u64, limit: u64) {
        let v = self.at(now_ns);
        let tat = self.tat;
        *self = Self {
            from_ns: now_ns,
            base: v,
            tat,
            ..Self::new(limit, self.window_ns, limit)
        };
    }
    fn bound(&self, w_ns: u64) -> u64 {
        // One tick of the clock is 2^-16 request.
        let ticks = self.burst + self.speed.advance(w_ns) + 1;
        ticks >> 16
    }
    boxed!();
}

pub(crate) fn log(limit: u64, window_ns: u64) -> Box<dyn Subject> {
    Box::new(Log {
        limit: WindowLimit::new(limit, window_ns),
        times: vec![0; limit as usize],
        span: Span::default(),
    })
}

fn sliding_with(limit: u64, window_ns: u64, packing: Option<Packing>) -> Box<dyn Subject> {
    let limit = WindowLimit::new(limit, window_ns);
    Box::new(Sliding {
        limit,
        counters: Counters::default(),
        packing,
        word: 0,
    })
}

fn fixed_with(limit: u64, window_ns: u64, packing: Option<Packing>) -> Box<dyn Subject> {
    let limit = WindowLimit::new(limit, window_ns);
    Box::new(Fixed {
        limit,
        counter: Counter::default(),
        packing,
        word: 0,
    })
}

pub(crate) fn sliding(limit: u64, window_ns: u64) -> Box<dyn Subject> {
    sliding_with(limit, window_ns, None)
}

pub(crate) fn fixed(limit: u64, window_ns: u64) -> Box<dyn Subject> {
    fixed_with(limit, window_ns, None)
}

pub(crate) fn packed_sliding(limit: u64, window_ns: u64) -> Box<dyn Subject> {
    sliding_with(limit, window_ns, Packing::sliding(limit, window_ns))
}

pub(crate) fn packed_fixed(limit: u64, window_ns: u64) -> Box<dyn Subject> {
    fixed_with(limit, window_ns, Packing::fixed(limit, window_ns))
}

/// Every window algorithm in every form of its state.
pub(crate) fn all_windows(limit: u64, window_ns: u64) -> Vec<Box<dyn Subject>> {
    let mut all = vec![sliding(limit, window_ns), fixed(limit, window_ns)];
    if limit <= 4_096 {
        all.push(log(limit, window_ns));
    }
    if Packing::sliding(limit, window_ns).is_some() {
        all.push(packed_sliding(limit, window_ns));
    }
    if Packing::fixed(limit, window_ns).is_some() {
        all.push(packed_fixed(limit, window_ns));
    }
    all
}

/// The windows and the token bucket, where its rate is legal.
pub(crate) fn subjects(limit: u64, window_ns: u64) -> Vec<Box<dyn Subject>> {
    let mut all = all_windows(limit, window_ns);
    let quota = Quota {
        rate_limit: limit,
        window_ns,
        burst: limit,
        unit: Unit::Requests,
    };
    if quota.compile().is_ok() {
        all.push(Box::new(Bucket::new(limit, window_ns, limit)));
    }
    all
}

/// Every admitted arrival, forever.
#[derive(Clone)]
pub(crate) struct LogModel {
    limit: u64,
    window_ns: u64,
    admitted: Vec<(u64, u64)>,
}

impl LogModel {
    pub(crate) fn new(limit: u64, window_ns: u64) -> Self {
        Self {
            limit,
            window_ns,
            admitted: Vec::new(),
        }
    }
}

impl Subject for LogModel {
    fn name(&self) -> &'static str {
        "model"
    }
    fn check(&mut self, now_ns: u64, cost: u64) -> Verdict {
        let inside = |&&(at, _): &&(u64, u64)| at + self.window_ns > now_ns;
        let used: u64 = self
            .admitted
            .iter()
            .filter(inside)
            .map(|(_, cost)| cost)
            .sum();
        if used + cost <= self.limit {
            self.admitted.push((now_ns, cost));
            return Verdict::Pass {
                remaining: 0,
                reset_after: 0,
            };
        }
        Verdict::Never
    }
    fn change_limit(&mut self, _now_ns: u64, limit: u64) {
        self.limit = limit;
    }
    fn bound(&self, _w_ns: u64) -> u64 {
        0
    }
    boxed!();
}

/// Windows are cut from the first arrival after idleness; the weighing is done in fractions.
#[derive(Clone)]
pub(crate) struct SlidingModel {
    limit: u64,
    window_ns: u64,
    first_ns: u64,
    counts: Vec<u64>,
}

impl SlidingModel {
    pub(crate) fn new(limit: u64, window_ns: u64) -> Self {
        Self {
            limit,
            window_ns,
            first_ns: 0,
            counts: Vec::new(),
        }
    }
}

impl Subject for SlidingModel {
    fn name(&self) -> &'static str {
        "model"
    }
    fn check(&mut self, now_ns: u64, cost: u64) -> Verdict {
        let number = ((now_ns - self.first_ns) / self.window_ns) as usize;
        let count = |n: usize| u128::from(self.counts.get(n).copied().unwrap_or(0));
        let before = if number == 0 { 0 } else { count(number - 1) };
        if before == 0 && count(number) == 0 {
            // Idle: nothing counts any more, and a new first window begins with this arrival.
            if cost <= self.limit {
                self.first_ns = now_ns;
                self.counts = vec![cost];
                return Verdict::Pass {
                    remaining: 0,
                    reset_after: 0,
                };
            }
            return Verdict::Never;
        }
        let window = u128::from(self.window_ns);
        let into = u128::from((now_ns - self.first_ns) % self.window_ns);
        let weighed = before * (window - into) + (count(number) + u128::from(cost)) * window;
        if weighed <= u128::from(self.limit) * window {
            self.counts.resize(self.counts.len().max(number + 1), 0);
            self.counts[number] += cost;
            return Verdict::Pass {
                remaining: 0,
                reset_after: 0,
            };
        }
        Verdict::Never
    }
    fn change_limit(&mut self, _now_ns: u64, limit: u64) {
        self.limit = limit;
    }
    fn bound(&self, _w_ns: u64) -> u64 {
        0
    }
    boxed!();
}

/// The times at which windows began, and what each admitted.
#[derive(Clone)]
pub(crate) struct FixedModel {
    limit: u64,
    window_ns: u64,
    windows: Vec<(u64, u64)>,
}

impl FixedModel {
    pub(crate) fn new(limit: u64, window_ns: u64) -> Self {
        Self {
            limit,
            window_ns,
            windows: Vec::new(),
        }
    }
}

impl Subject for FixedModel {
    fn name(&self) -> &'static str {
        "model"
    }
    fn check(&mut self, now_ns: u64, cost: u64) -> Verdict {
        if cost > self.limit {
            return Verdict::Never;
        }
        match self.windows.last_mut() {
            Some((from, used)) if *used > 0 && now_ns - *from < self.window_ns => {
                if *used + cost > self.limit {
                    return Verdict::Never;
                }
                *used += cost;
            }
            _ => self.windows.push((now_ns, cost)),
        }
        Verdict::Pass {
            remaining: 0,
            reset_after: 0,
        }
    }
    fn change_limit(&mut self, _now_ns: u64, limit: u64) {
        self.limit = limit;
    }
    fn bound(&self, _w_ns: u64) -> u64 {
        0
    }
    boxed!();
}
