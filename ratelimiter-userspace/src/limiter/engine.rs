//! The fast path: from an identity to an answer, without a lock shared by clients and without
//! allocation.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::answer::{Answer, Reason};
use super::assign::{Assigned, Assignments};
use super::block::{Blocks, HEADER};
use super::breakers::Breakers;
use super::counters::Counters;
use super::fleet::Fleet;
use super::identity::ClientKey;
use super::registry::{Common, Compiled, Registry};
use super::rule::{Kind, PolicyWord, Rule};
use super::table::{GROUP, Line, Table, Way};
use super::word::{self, Outcome};

/// Tries of a compare-and-swap before a check gives up; each failure means that another succeeded.
const SWAP_TRIES: u32 = 10_000;
/// Rounds through the slow path before a check gives up.
const ROUNDS: u32 = 64;

/// In which time newcomers look once at every group for idle clients: 60 s.
const PASS_NS: u64 = 60_000_000_000;

/// Everything a limiter decides with.
pub(super) struct Engine {
    pub(super) table: Table,
    pub(super) registry: Registry,
    pub(super) blocks: Blocks,
    pub(super) assignments: RwLock<Assignments>,
    pub(super) counters: Counters,
    pub(super) breakers: Breakers,
    pub(super) common: Common,
    pub(super) tally: super::place::Tally,
    /// The next group to sweep.
    pub(super) hand: AtomicUsize,
    /// When the first newcomer came; 0 before.
    first_ns: AtomicU64,
    /// The fleet, for a limiter that is part of one.
    pub(super) fleet: Option<Arc<Fleet>>,
}

/// One question.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) key: ClientKey,
    pub(super) now_ns: u64,
    pub(super) cost: u64,
    /// Whether what passes is charged; a peek is not.
    pub(super) charge: bool,
    /// Only this quota is asked, by name.
    pub(super) only: Option<&'a str>,
    /// The policy the caller names; 0 where the client's assignment counts.
    pub(super) under: u32,
    /// The client's id, where it is at hand.
    pub(super) id: &'a [u8],
    /// Decide as while the store is away.
    pub(super) alone: bool,
}

/// What came of looking at a policy that may be more than a word.
enum Special {
    Is(Step),
    IsPlain,
}

/// What came of looking at a way.
pub(super) enum Step {
    Done(Answer),
    /// The way is somebody else's now, or its policy has changed: the slow path sorts it out.
    Again,
}

impl Engine {
    pub(super) fn new(
        table: Table,
        blocks: Blocks,
        policies: usize,
        common: Common,
    ) -> std::io::Result<Self> {
        Ok(Self {
            table,
            registry: Registry::new(policies, common)?,
            blocks,
            assignments: RwLock::new(Assignments::default()),
            counters: Counters::new(),
            breakers: Breakers::new(),
            common,
            tally: super::place::Tally::default(),
            hand: AtomicUsize::new(0),
            first_ns: AtomicU64::new(0),
            fleet: None,
        })
    }

    /// Answers and counts. `unknown` is called when the client has to be placed and nobody has
    /// configured it.
    #[inline(always)]
    pub(super) fn check(&self, ask: Ask<'_>, unknown: impl Fn()) -> Answer {
        let answer = self.answer(ask, unknown);
        if ask.charge {
            self.counters.count(answer.reason);
        }
        answer
    }

    /// Answers; whoever asks counts.
    #[inline(always)]
    pub(super) fn answer(&self, ask: Ask<'_>, unknown: impl Fn()) -> Answer {
        let home = self.table.home(ask.key);
        let line = self.table.line(home);
        if let Some(way) = line.find(ask.key.print)
            && let Step::Done(answer) = self.at(line, way, ask)
        {
            return answer;
        }
        self.elsewhere(home, ask, &unknown)
    }

    /// The client is not in its home line, or its way was changing.
    #[cold]
    #[inline(never)]
    fn elsewhere(&self, home: usize, ask: Ask<'_>, unknown: &dyn Fn()) -> Answer {
        self.table.prefetch_neighbours(home);
        for round in 0..ROUNDS {
            for line in self.table.neighbours(home) {
                if let Some(way) = line.find(ask.key.print)
                    && let Step::Done(answer) = self.at(line, way, ask)
                {
                    return answer;
                }
            }
            let index = match self.applies(&ask) {
                Assigned::Configured(index) => index,
                Assigned::Default(index) => {
                    if round == 0 {
                        unknown();
                    }
                    index
                }
                Assigned::Refused => return Answer::bare(Reason::UnknownClient, 0),
            };
            if !ask.charge && !self.is_placed(home, ask.key) {
                return self.fresh(index, &ask);
            }
            self.place(home, &ask);
            self.tidy_up(index, ask.now_ns);
        }
        Answer {
            retry_after_ns: 1_000_000,
            ..Answer::bare(Reason::Contended, 0)
        }
    }

    /// Newcomers pay for a look at one group, so that nobody has to tidy up: each that took a
    /// block, of the others so many that every group is looked at once in [`PASS_NS`]. More often
    /// would throw out clients that come back.
    fn tidy_up(&self, index: u32, now_ns: u64) {
        let groups = (self.table.lines() / GROUP).max(1) as u64;
        let first = self.first_ns.load(Ordering::Relaxed);
        if first == 0 {
            self.first_ns.store(now_ns.max(1), Ordering::Relaxed);
            return;
        }
        let takes_block = || {
            let current = self.registry.current(index);
            current.is_some_and(|compiled| compiled.block_words > 0)
        };
        let due = now_ns.saturating_sub(first) / (PASS_NS / groups).max(1);
        let done = self.hand.load(Ordering::Relaxed);
        if (done as u64) < due {
            // What was due while nobody came is not made up for, but for one pass.
            let behind = usize::try_from(due.saturating_sub(groups)).unwrap_or(usize::MAX);
            self.hand.fetch_max(behind, Ordering::Relaxed);
            self.sweep_some(1, now_ns);
        } else if takes_block() {
            self.sweep_some(1, now_ns);
        }
    }

    /// Returns what applies to a client.
    pub(super) fn assigned(&self, key: ClientKey) -> Assigned {
        self.assignments
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .of(key)
    }

    /// Returns what applies to a question: the policy it names, else the client's.
    pub(super) fn applies(&self, ask: &Ask<'_>) -> Assigned {
        if ask.under == 0 {
            self.assigned(ask.key)
        } else {
            Assigned::Configured(ask.under)
        }
    }

    /// Whether a way under `policy` answers a question that names another: as the stand-in for
    /// clients that found no block.
    #[cold]
    #[inline(never)]
    fn stands_in(&self, policy: PolicyWord, under: u32) -> bool {
        self.registry
            .current(under)
            .is_some_and(|of| of.companion == Some(policy.index()))
    }

    fn is_placed(&self, home: usize, key: ClientKey) -> bool {
        self.table
            .neighbours(home)
            .any(|line| line.find(key.print).is_some())
    }

    /// What a client that was never seen would be told.
    fn fresh(&self, index: u32, ask: &Ask<'_>) -> Answer {
        let Some(compiled) = self.registry.current(index) else {
            return Answer::bare(Reason::Unlimited, index);
        };
        let Some((quota, (spec, meter))) = compiled
            .spec
            .quotas
            .iter()
            .zip(&compiled.meters)
            .enumerate()
            .filter(|(_, (spec, _))| ask.only.is_none_or(|only| *spec.name == *only))
            .min_by_key(|(_, (_, meter))| meter.depth())
        else {
            let reason = if compiled.meters.is_empty() {
                Reason::Unlimited
            } else {
                Reason::UnknownLimit
            };
            return Answer::bare(reason, index);
        };
        let depth = meter.depth();
        let allowed = ask.cost <= depth || meter.shadow;
        Answer {
            allowed,
            reason: if allowed {
                Reason::Conforming
            } else {
                Reason::ExceedsBurst
            },
            clamped: false,
            quota: quota as u8,
            policy: index,
            limit: spec.rate_limit,
            remaining: depth.saturating_sub(ask.cost),
            retry_after_ns: if allowed { 0 } else { u64::MAX },
            reset_after_ns: 0,
        }
    }

    /// Decides at one way.
    ///
    /// No reference to what is decided with may leave this function: it would be kept in memory
    /// instead of in registers. What is rare is read again where it is needed.
    #[inline(always)]
    pub(super) fn at(&self, line: &Line, way: usize, ask: Ask<'_>) -> Step {
        let way = line.way(way);
        for _ in 0..SWAP_TRIES {
            let Some((policy, word)) = way.read(ask.key.print) else {
                return Step::Again;
            };
            if ask.under != 0 && policy.index() != ask.under && !self.stands_in(policy, ask.under) {
                return Step::Again;
            }
            let Some(rule) = self.registry.rules.read(policy) else {
                return Step::Again;
            };
            if rule.is_special() || ask.only.is_some() {
                match self.special(way, policy, word, ask) {
                    Special::Is(step) => return step,
                    Special::IsPlain => {}
                }
            }
            let (reason, remaining, retry_ns, reset_ns) =
                match word::judge(rule.kind, word, ask.now_ns, ask.cost) {
                    Outcome::Passes {
                        word: charged,
                        remaining,
                        reset_ns,
                    } => {
                        if ask.charge {
                            let swapped = way.word.compare_exchange_weak(
                                word,
                                charged,
                                Ordering::SeqCst,
                                Ordering::Relaxed,
                            );
                            if swapped.is_err() {
                                std::hint::spin_loop();
                                continue;
                            }
                            // Charged: but was the way still ours? See the table's writing order.
                            if way.print.load(Ordering::SeqCst) != ask.key.print {
                                return Step::Again;
                            }
                        }
                        (Reason::Conforming, remaining, 0, reset_ns)
                    }
                    Outcome::Refuses { retry_ns, reset_ns } => {
                        if way.print.load(Ordering::Acquire) != ask.key.print {
                            return Step::Again;
                        }
                        if ask.cost > 1 {
                            let (remaining, reset_ns) =
                                cheaper(rule.kind, word, ask.now_ns, reset_ns);
                            (rule.over(), remaining, retry_ns, reset_ns)
                        } else {
                            (rule.over(), 0, retry_ns, reset_ns)
                        }
                    }
                    Outcome::Never => {
                        let (remaining, reset_ns) = cheaper(rule.kind, word, ask.now_ns, 0);
                        (Reason::ExceedsBurst, remaining, u64::MAX, reset_ns)
                    }
                };
            let allowed = retry_ns == 0;
            if rule.watched.is_some() && ask.charge {
                self.count_watched(rule.watched, policy, &ask, allowed);
            }
            let shadowed = rule.shadow && !allowed;
            return Step::Done(Answer {
                allowed: allowed || shadowed,
                reason: if shadowed { Reason::Shadow } else { reason },
                clamped: false,
                quota: 0,
                policy: policy.index(),
                limit: rule.shown_limit,
                remaining,
                retry_after_ns: if shadowed { 0 } else { retry_ns },
                reset_after_ns: reset_ns,
            });
        }
        Step::Done(Answer {
            retry_after_ns: 1_000_000,
            ..Answer::bare(Reason::Contended, 0)
        })
    }

    /// Decides where a word alone does not: an open breaker, a state in a block, no limit at all, a
    /// limit asked for by name.
    #[cold]
    #[inline(never)]
    fn special(&self, way: Way<'_>, policy: PolicyWord, word: u64, ask: Ask<'_>) -> Special {
        let Some(rule) = self.registry.rules.read(policy) else {
            return Special::Is(Step::Again);
        };
        if let Some(backend) = rule.watched
            && let Some(refused) = self.admit(backend, policy, &ask)
        {
            return Special::Is(Step::Done(refused));
        }
        match rule.kind {
            Kind::Block => Special::Is(self.at_block(policy, word, &ask, &rule)),
            Kind::Unlimited => {
                if way.print.load(Ordering::Acquire) != ask.key.print {
                    return Special::Is(Step::Again);
                }
                let answer = Answer::bare(Reason::Unlimited, policy.index());
                Special::Is(Step::Done(self.done(&rule, answer, &ask)))
            }
            _ if ask.only.is_some() && !self.names(policy, &ask) => Special::Is(Step::Done(
                Answer::bare(Reason::UnknownLimit, policy.index()),
            )),
            _ => Special::IsPlain,
        }
    }

    /// Counts for the breaker and the controllers.
    #[cold]
    #[inline(never)]
    fn count_watched(&self, backend: Option<u8>, policy: PolicyWord, ask: &Ask<'_>, allowed: bool) {
        if let Some(backend) = backend {
            self.counters.count_backend(backend, allowed);
            let who = || {
                let key = self.fleet.as_ref().map(|fleet| fleet.key("", ask.id));
                key.map_or(0, |key| key.0 as u64)
            };
            self.breakers
                .note(backend, ask.key.print, policy.index(), who);
            if allowed {
                self.breakers.charge(backend, ask.now_ns);
            }
        }
    }

    /// Applies the shadow mode and counts for the breaker and the controllers.
    pub(super) fn done(&self, rule: &Rule, mut answer: Answer, ask: &Ask<'_>) -> Answer {
        if answer.reason == Reason::Pending {
            return answer;
        }
        answer.allowed = answer.reason.allows();
        if rule.watched.is_some() && ask.charge {
            let policy = PolicyWord::new(answer.policy, rule.generation);
            self.count_watched(rule.watched, policy, ask, answer.allowed);
        }
        if rule.shadow && !answer.allowed {
            answer.allowed = true;
            answer.reason = Reason::Shadow;
            answer.retry_after_ns = 0;
        }
        answer
    }

    /// Asks the breaker of a watched backend, and the guard of its budget.
    #[cold]
    #[inline(never)]
    fn admit(&self, backend: u8, policy: PolicyWord, ask: &Ask<'_>) -> Option<Answer> {
        let refused = |reason, wait_ns: u64| Answer {
            retry_after_ns: wait_ns.max(1),
            ..Answer::bare(reason, policy.index())
        };
        let open_ns = self
            .breakers
            .refuses(backend, ask.now_ns, ask.charge, &self.counters);
        if let Some(wait_ns) = open_ns {
            return Some(refused(Reason::BackendOpen, wait_ns));
        }
        let wait_ns = self.breakers.guarded(backend, ask.now_ns)?;
        let compiled = self.registry.current(policy.index())?;
        if compiled.spec.quotas.iter().all(|quota| quota.shadow) {
            return None;
        }
        if ask.charge {
            self.count_watched(Some(backend), policy, ask, false);
        }
        let limit = compiled.spec.quotas.first().map_or(0, |q| q.rate_limit);
        Some(Answer {
            limit,
            ..refused(Reason::ReducedCapacity, wait_ns)
        })
    }

    /// Whether the asked quota is the policy's only one.
    fn names(&self, policy: PolicyWord, ask: &Ask<'_>) -> bool {
        let table = self.registry.table();
        let compiled = table.get(policy.index() as usize).and_then(Option::as_ref);
        compiled.is_some_and(|compiled| {
            compiled
                .spec
                .quotas
                .iter()
                .any(|quota| ask.only == Some(&*quota.name))
        })
    }
}

/// What is left for a cheaper arrival than the one that was refused, and when all is free again.
#[cold]
#[inline(never)]
fn cheaper(kind: Kind, word: u64, now_ns: u64, reset_ns: u64) -> (u64, u64) {
    match word::judge(kind, word, now_ns, 0) {
        Outcome::Passes {
            remaining,
            reset_ns,
            ..
        } => (remaining, reset_ns),
        _ => (0, reset_ns),
    }
}

/// Words of a block for `compiled`.
pub(super) fn block_size(compiled: &Compiled) -> usize {
    HEADER + compiled.block_words
}
