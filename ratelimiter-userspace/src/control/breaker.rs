//! The circuit breaker of one backend: closed, open, half-open. Pure; time is an argument.
//!
//! It opens when the backend fails (the share of errors among the outcomes reported in a window),
//! or when its clients are consistently limited (the share of refusals stays above a bound for a
//! while). Open, nothing passes for `open_ns`; then a bounded number of probes does, and what
//! becomes of them decides.

/// How many slices the error window has.
const SLICES: usize = 10;
/// The refusal ratio is looked at over at least this long.
const DENY_INTERVAL_NS: u64 = 1_000_000_000;

/// When a breaker opens and closes. Off unless somebody configures one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerConfig {
    /// Opens when more than this share of outcomes are errors, (0, 1]; `None`: not for errors.
    pub error_ratio: Option<f64>,
    /// Outcomes of the last so many nanoseconds count.
    pub error_window_ns: u64,
    /// Fewer outcomes than this in the window say nothing.
    pub min_outcomes: u64,
    /// Opens when more than this share of checks are refused, (0, 1]; `None`: not for refusals.
    pub deny_ratio: Option<f64>,
    /// How long the refusal ratio must stay above the bound, in nanoseconds.
    pub deny_for_ns: u64,
    /// Fewer checks than this in a second say nothing.
    pub min_checks: u64,
    /// How long it stays open before it probes, in nanoseconds.
    pub open_ns: u64,
    /// Requests let through half-open.
    pub probes: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            error_ratio: Some(0.5),
            error_window_ns: 10_000_000_000,
            min_outcomes: 20,
            deny_ratio: Some(0.5),
            deny_for_ns: 30_000_000_000,
            min_checks: 20,
            open_ns: 10_000_000_000,
            probes: 10,
        }
    }
}

/// What the breaker does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything passes on to the limits.
    Closed,
    /// Nothing passes until the time given, in nanoseconds.
    Open {
        /// When probing begins.
        until_ns: u64,
    },
    /// A bounded number of probes passes.
    HalfOpen,
}

impl Phase {
    /// Returns the word used in metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why the phase changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Too many outcomes were errors.
    Errors,
    /// Too many checks were refused for too long.
    Refusals,
    /// It was open long enough.
    TimeToProbe,
    /// A probe failed.
    ProbeFailed,
    /// The probes went well.
    ProbesPassed,
}

/// What happened since the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Checks that passed the limits.
    pub allowed: u64,
    /// Checks the limits refused. Refusals by the breaker itself do not belong here.
    pub denied: u64,
    /// Reported outcomes that were fine.
    pub good: u64,
    /// Reported outcomes that were errors.
    pub errors: u64,
}

/// A breaker's memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Breaker {
    phase: Phase,
    /// Good and bad outcomes per slice of the window, and the slice's number.
    slices: [(u64, u64, u64); SLICES],
    /// Since when the refusal ratio has been above the bound.
    denied_since_ns: Option<u64>,
    /// Checks of the interval under way, and when it began.
    interval: (u64, u64, u64),
    /// Seen since half-open.
    probed: Observed,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub const fn new(now_ns: u64) -> Self {
        Self {
            phase: Phase::Closed,
            slices: [(0, 0, u64::MAX); SLICES],
            denied_since_ns: None,
            interval: (0, 0, now_ns),
            probed: Observed {
                allowed: 0,
                denied: 0,
                good: 0,
                errors: 0,
            },
        }
    }

    /// The phase in force.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes in what happened until `now_ns`. Returns the breaker after it, and why its phase
    /// changed if it did.
    #[must_use]
    pub fn step(
        mut self,
        seen: Observed,
        now_ns: u64,
        config: &BreakerConfig,
    ) -> (Self, Option<Cause>) {
        match self.phase {
            Phase::Closed => {
                let failing = self.take_outcomes(seen, now_ns, config);
                let limited = self.take_checks(seen, now_ns, config);
                if failing {
                    return Self::enter(Phase::open(now_ns, config), Cause::Errors, now_ns);
                }
                if limited {
                    return Self::enter(Phase::open(now_ns, config), Cause::Refusals, now_ns);
                }
                (self, None)
            }
            Phase::Open { until_ns } if now_ns >= until_ns => {
                Self::enter(Phase::HalfOpen, Cause::TimeToProbe, now_ns)
            }
            Phase::Open { .. } => (self, None),
            Phase::HalfOpen => {
                self.probed.allowed += seen.allowed;
                self.probed.denied += seen.denied;
                self.probed.good += seen.good;
                self.probed.errors += seen.errors;
                self.judge_probes(now_ns, config)
            }
        }
    }

    fn judge_probes(self, now_ns: u64, config: &BreakerConfig) -> (Self, Option<Cause>) {
        let Observed {
            allowed,
            denied,
            good,
            errors,
        } = self.probed;
        let probes = config.probes.max(1);
        let bad = |part: u64, whole: u64, ratio: Option<f64>| {
            ratio.is_some_and(|ratio| part as f64 > ratio * whole as f64)
        };
        // More errors than the bound would leave even if all other probes went well.
        if bad(errors, probes.max(good + errors), config.error_ratio) {
            return Self::enter(Phase::open(now_ns, config), Cause::ProbeFailed, now_ns);
        }
        if good + errors >= probes {
            return Self::enter(Phase::Closed, Cause::ProbesPassed, now_ns);
        }
        // Nobody reports outcomes: what the limits say to the probes is all there is.
        if good + errors == 0 && allowed + denied >= probes {
            return if bad(denied, allowed + denied, config.deny_ratio) {
                Self::enter(Phase::open(now_ns, config), Cause::ProbeFailed, now_ns)
            } else if config.error_ratio.is_none() {
                Self::enter(Phase::Closed, Cause::ProbesPassed, now_ns)
            } else {
                self.close_when_silent(now_ns, config)
            };
        }
        (self, None)
    }

    /// Outcomes may come late: waits for one error window, then takes silence for health.
    fn close_when_silent(self, now_ns: u64, config: &BreakerConfig) -> (Self, Option<Cause>) {
        let (_, _, since_ns) = self.interval;
        if now_ns.saturating_sub(since_ns) >= config.error_window_ns {
            return Self::enter(Phase::Closed, Cause::ProbesPassed, now_ns);
        }
        (self, None)
    }

    fn enter(phase: Phase, cause: Cause, now_ns: u64) -> (Self, Option<Cause>) {
        (
            Self {
                phase,
                ..Self::new(now_ns)
            },
            Some(cause),
        )
    }

    /// Adds outcomes to the window; whether too many were errors.
    fn take_outcomes(&mut self, seen: Observed, now_ns: u64, config: &BreakerConfig) -> bool {
        let Some(ratio) = config.error_ratio else {
            return false;
        };
        let number = now_ns / (config.error_window_ns / SLICES as u64).max(1);
        if let Some(slice) = self.slices.get_mut((number % SLICES as u64) as usize) {
            if slice.2 != number {
                *slice = (0, 0, number);
            }
            slice.0 += seen.good;
            slice.1 += seen.errors;
        }
        let (good, errors) = self
            .slices
            .iter()
            .filter(|(_, _, of)| *of <= number && number - *of < SLICES as u64)
            .fold((0, 0), |(g, e), (good, errors, _)| (g + good, e + errors));
        let all = good + errors;
        all >= config.min_outcomes.max(1) && errors as f64 > ratio * all as f64
    }

    /// Adds checks to the interval; whether refusals have been above the bound for long enough.
    fn take_checks(&mut self, seen: Observed, now_ns: u64, config: &BreakerConfig) -> bool {
        let Some(ratio) = config.deny_ratio else {
            return false;
        };
        let (allowed, denied, began_ns) = self.interval;
        let (allowed, denied) = (allowed + seen.allowed, denied + seen.denied);
        self.interval = (allowed, denied, began_ns);
        if now_ns.saturating_sub(began_ns) < DENY_INTERVAL_NS {
            return false;
        }
        self.interval = (0, 0, now_ns);
        let all = allowed + denied;
        let limited = all >= config.min_checks.max(1) && denied as f64 > ratio * all as f64;
        self.denied_since_ns = limited.then(|| self.denied_since_ns.unwrap_or(began_ns));
        self.denied_since_ns
            .is_some_and(|since| now_ns.saturating_sub(since) >= config.deny_for_ns)
    }
}

impl Phase {
    fn open(now_ns: u64, config: &BreakerConfig) -> Self {
        Self::Open {
            until_ns: now_ns.saturating_add(config.open_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const CONFIG: BreakerConfig = BreakerConfig {
        error_ratio: Some(0.5),
        error_window_ns: 10 * S,
        min_outcomes: 20,
        deny_ratio: Some(0.5),
        deny_for_ns: 30 * S,
        min_checks: 20,
        open_ns: 10 * S,
        probes: 10,
    };

    /// Steps once a second; returns the second and the cause of the first change.
    fn run(
        breaker: &mut Breaker,
        from_s: u64,
        seconds: u64,
        seen: impl Fn(u64) -> Observed,
    ) -> Option<(u64, Cause)> {
        for second in from_s..from_s + seconds {
            let (next, cause) = breaker.clone().step(seen(second), second * S, &CONFIG);
            *breaker = next;
            if let Some(cause) = cause {
                return Some((second, cause));
            }
        }
        None
    }

    fn outcomes(good: u64, errors: u64) -> Observed {
        Observed {
            good,
            errors,
            ..Observed::default()
        }
    }

    fn checks(allowed: u64, denied: u64) -> Observed {
        Observed {
            allowed,
            denied,
            ..Observed::default()
        }
    }

    #[test]
    fn errors_above_the_ratio_open_it_and_good_probes_close_it() {
        let mut breaker = Breaker::new(0);
        assert_eq!(
            run(&mut breaker, 1, 100, |_| outcomes(6, 5)),
            None,
            "below the ratio"
        );
        let opened = run(&mut breaker, 101, 20, |_| outcomes(1, 9));
        let Some((at, Cause::Errors)) = opened else {
            panic!("did not open: {opened:?}");
        };
        assert!(at <= 108, "took until {at}");
        let probing = run(&mut breaker, at + 1, 20, |_| Observed::default());
        assert_eq!(probing, Some((at + 10, Cause::TimeToProbe)));
        let closed = run(&mut breaker, at + 11, 5, |_| outcomes(5, 0));
        assert_eq!(closed, Some((at + 12, Cause::ProbesPassed)));
        assert_eq!(breaker.phase(), Phase::Closed);
    }

    #[test]
    fn failing_probes_open_it_again() {
        let mut breaker = Breaker::new(0);
        assert!(run(&mut breaker, 1, 20, |_| outcomes(0, 30)).is_some());
        assert!(run(&mut breaker, 2, 20, |_| Observed::default()).is_some());
        assert_eq!(breaker.phase(), Phase::HalfOpen);
        let (next, cause) = breaker.step(outcomes(0, 6), 100 * S, &CONFIG);
        assert_eq!(cause, Some(Cause::ProbeFailed));
        assert_eq!(next.phase(), Phase::Open { until_ns: 110 * S });
    }

    #[test]
    fn few_outcomes_say_nothing_and_old_ones_are_forgotten() {
        let mut breaker = Breaker::new(0);
        assert_eq!(
            run(&mut breaker, 1, 200, |second| outcomes(0, second % 2)),
            None
        );
    }

    #[test]
    fn refusals_open_it_only_when_they_last() {
        let mut breaker = Breaker::new(0);
        let flapping = |second: u64| {
            if second.is_multiple_of(25) {
                checks(100, 0)
            } else {
                checks(10, 90)
            }
        };
        assert_eq!(run(&mut breaker, 1, 300, flapping), None);
        let mut breaker = Breaker::new(0);
        let opened = run(&mut breaker, 1, 60, |_| checks(10, 90));
        assert_eq!(opened, Some((30, Cause::Refusals)));
        let mut breaker = Breaker::new(0);
        assert_eq!(
            run(&mut breaker, 1, 300, |_| checks(1, 9)),
            None,
            "too few to say"
        );
    }

    #[test]
    fn silence_of_outcomes_after_probing_closes_it() {
        let mut breaker = Breaker::new(0);
        assert!(run(&mut breaker, 1, 60, |_| checks(10, 90)).is_some());
        assert!(run(&mut breaker, 40, 60, |_| Observed::default()).is_some());
        assert_eq!(breaker.phase(), Phase::HalfOpen);
        let closed = run(&mut breaker, 41, 60, |_| checks(2, 0));
        assert!(
            matches!(closed, Some((_, Cause::ProbesPassed))),
            "{closed:?}"
        );
    }
}
