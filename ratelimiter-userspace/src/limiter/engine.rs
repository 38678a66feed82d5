//! The fast path: from an identity to an answer, without a lock shared by clients and without
//! allocation.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use super::answer::{Answer, Reason};
use super::assign::{Assigned, Assignments};
use super::block::{BlockId, Blocks, HEADER, Held};
use super::breakers::Breakers;
use super::counters::Counters;
use super::identity::ClientKey;
use super::meter::Says;
use super::registry::{Common, Compiled, Registry};
use super::rule::{Kind, PolicyWord, Rule};
use super::table::{Line, Table};
use super::word::{self, Outcome};

/// Tries of a compare-and-swap before a check gives up; each failure means that another succeeded.
const SWAP_TRIES: u32 = 10_000;
/// Rounds through the slow path before a check gives up.
const ROUNDS: u32 = 64;

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
        })
    }

    /// Answers and counts. `unknown` is called when the client has to be placed and nobody has
    /// configured it.
    #[inline]
    pub(super) fn check(&self, ask: &Ask<'_>, unknown: &dyn Fn()) -> Answer {
        let answer = self.answer(ask, unknown);
        if ask.charge {
            self.counters.count(answer.reason);
        }
        answer
    }

    #[inline(always)]
    fn answer(&self, ask: &Ask<'_>, unknown: &dyn Fn()) -> Answer {
        let home = self.table.home(ask.key);
        let line = self.table.line(home);
        if let Some(way) = line.find(ask.key.print)
            && let Step::Done(answer) = self.at(line, way, ask)
        {
            return answer;
        }
        self.elsewhere(home, ask, unknown)
    }

    /// The client is not in its home line, or its way was changing.
    #[cold]
    #[inline(never)]
    fn elsewhere(&self, home: usize, ask: &Ask<'_>, unknown: &dyn Fn()) -> Answer {
        for round in 0..ROUNDS {
            for line in self.table.neighbours(home) {
                if let Some(way) = line.find(ask.key.print)
                    && let Step::Done(answer) = self.at(line, way, ask)
                {
                    return answer;
                }
            }
            let index = match self.applies(ask) {
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
                return self.fresh(index, ask);
            }
            self.place(home, ask);
            // Every newcomer pays for a look at one group, so that nobody has to tidy up.
            self.sweep_some(1, ask.now_ns);
        }
        Answer {
            retry_after_ns: 1_000_000,
            ..Answer::bare(Reason::Contended, 0)
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
    #[inline(always)]
    pub(super) fn at(&self, line: &Line, way: usize, ask: &Ask<'_>) -> Step {
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
            if let Some(backend) = rule.watched
                && let Some(refused) = self.admit(backend, policy, ask)
            {
                return Step::Done(refused);
            }
            if rule.kind == Kind::Block {
                return self.at_block(policy, word, ask, &rule);
            }
            if rule.kind == Kind::Unlimited {
                return Step::Done(self.done(
                    &rule,
                    Answer::bare(Reason::Unlimited, policy.index()),
                    ask,
                ));
            }
            if ask.only.is_some() && !self.names(policy, ask) {
                return Step::Done(Answer::bare(Reason::UnknownLimit, policy.index()));
            }
            let mut answer = Answer {
                limit: rule.shown_limit,
                ..Answer::bare(Reason::Conforming, policy.index())
            };
            match word::judge(&rule.kind, word, ask.now_ns, ask.cost) {
                Outcome::Passes {
                    word: charged,
                    remaining,
                    reset_ns,
                } => {
                    answer.remaining = remaining;
                    answer.reset_after_ns = reset_ns;
                    if !ask.charge {
                        return Step::Done(answer);
                    }
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
                Outcome::Refuses { retry_ns, reset_ns } => {
                    if way.print.load(Ordering::Acquire) != ask.key.print {
                        return Step::Again;
                    }
                    answer.reason = Reason::OverLimit;
                    answer.retry_after_ns = retry_ns;
                    answer.reset_after_ns = reset_ns;
                    if ask.cost > 1 {
                        less_would_pass(&rule.kind, word, ask.now_ns, &mut answer);
                    }
                }
                Outcome::Never => {
                    answer.reason = Reason::ExceedsBurst;
                    answer.retry_after_ns = u64::MAX;
                    less_would_pass(&rule.kind, word, ask.now_ns, &mut answer);
                }
            }
            return Step::Done(self.done(&rule, answer, ask));
        }
        Step::Done(Answer {
            retry_after_ns: 1_000_000,
            ..Answer::bare(Reason::Contended, 0)
        })
    }

    /// Applies the shadow mode and counts for the breaker.
    #[inline(always)]
    fn done(&self, rule: &Rule, mut answer: Answer, ask: &Ask<'_>) -> Answer {
        answer.allowed = answer.reason.allows();
        if let Some(backend) = rule.watched
            && ask.charge
        {
            self.counters.count_backend(backend, answer.allowed);
        }
        if rule.shadow && !answer.allowed {
            answer.allowed = true;
            answer.reason = Reason::Shadow;
            answer.retry_after_ns = 0;
        }
        answer
    }

    /// Asks the breaker of a watched backend.
    #[cold]
    #[inline(never)]
    fn admit(&self, backend: u8, policy: PolicyWord, ask: &Ask<'_>) -> Option<Answer> {
        let wait_ns = self
            .breakers
            .refuses(backend, ask.now_ns, ask.charge, &self.counters)?;
        Some(Answer {
            retry_after_ns: wait_ns.max(1),
            ..Answer::bare(Reason::BackendOpen, policy.index())
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

    /// Decides where the state is in a block.
    fn at_block(&self, policy: PolicyWord, word: u64, ask: &Ask<'_>, rule: &Rule) -> Step {
        let table = self.registry.table();
        let Some(Some(compiled)) = table.get(policy.index() as usize) else {
            return Step::Again;
        };
        if compiled.word != policy {
            return Step::Again;
        }
        let Some(block) = self.blocks.get(BlockId(word)) else {
            return Step::Again;
        };
        let Some(mut held) = block.lock() else {
            return Step::Done(Answer {
                retry_after_ns: 1_000_000,
                ..Answer::bare(Reason::Contended, policy.index())
            });
        };
        if held.owner() != ask.key.print || held.policy() != policy {
            return Step::Again;
        }
        let now_ns = if self.common.caller_clock {
            let newest = held.newest().max(ask.now_ns);
            if ask.charge {
                held.set_newest(newest);
            }
            newest
        } else {
            ask.now_ns
        };
        let answer = judge_all(compiled, &held, now_ns, ask);
        drop(held);
        Step::Done(self.done(rule, answer, ask))
    }
}

/// What is left for a cheaper arrival than the one that was refused.
#[cold]
#[inline(never)]
fn less_would_pass(kind: &Kind, word: u64, now_ns: u64, answer: &mut Answer) {
    if let Outcome::Passes {
        remaining,
        reset_ns,
        ..
    } = word::judge(kind, word, now_ns, 0)
    {
        answer.remaining = remaining;
        answer.reset_after_ns = reset_ns;
    }
}

/// Judges every quota in a held block: all or nothing is charged, the tightest answers.
fn judge_all(compiled: &Compiled, held: &Held<'_>, now_ns: u64, ask: &Ask<'_>) -> Answer {
    let asked = || {
        compiled
            .spec
            .quotas
            .iter()
            .zip(&compiled.meters)
            .enumerate()
            .filter(|(_, (spec, _))| ask.only.is_none_or(|only| *spec.name == *only))
    };
    let single = compiled.meters.len() == 1;
    let policy = compiled.word.index();
    let mut tightest: Option<Answer> = None;
    let mut shadowed = false;
    for (number, (spec, meter)) in asked() {
        let states = held.states(meter.offset, meter.words());
        // One quota is charged while it is looked at; of several, only if all pass.
        let says = meter.judge(states, now_ns, ask.cost, ask.charge && single);
        let mut answer = Answer {
            quota: number as u8,
            limit: spec.rate_limit,
            ..Answer::bare(Reason::Conforming, policy)
        };
        match says {
            Says::Passes {
                remaining,
                reset_ns,
            } => {
                answer.remaining = remaining;
                answer.reset_after_ns = reset_ns;
            }
            Says::Refuses { retry_ns } => {
                answer.reason = Reason::OverLimit;
                answer.retry_after_ns = retry_ns;
                answer.reset_after_ns = retry_ns;
            }
            Says::Never => {
                answer.reason = Reason::ExceedsBurst;
                answer.retry_after_ns = u64::MAX;
            }
        }
        if !answer.reason.allows()
            && ask.cost > 1
            && let Says::Passes {
                remaining,
                reset_ns,
            } = meter.judge(states, now_ns, 0, false)
        {
            answer.remaining = remaining;
            answer.reset_after_ns = reset_ns;
        }
        if meter.shadow && !single && !answer.reason.allows() {
            shadowed = true;
            continue;
        }
        if tightest.is_none_or(|so_far| is_tighter(&answer, &so_far)) {
            tightest = Some(answer);
        }
    }
    let Some(mut answer) = tightest else {
        let reason = if shadowed {
            Reason::Shadow
        } else {
            Reason::UnknownLimit
        };
        return Answer::bare(reason, policy);
    };
    if !single && ask.charge && answer.reason.allows() {
        for (_, (_, meter)) in asked() {
            let states = held.states(meter.offset, meter.words());
            // A shadowed quota that refuses stays as it is.
            let _charged = meter.judge(states, now_ns, ask.cost, true);
        }
    }
    if shadowed && answer.reason == Reason::Conforming {
        answer.reason = Reason::Shadow;
    }
    answer.allowed = answer.reason.allows();
    answer
}

/// Whether `a` binds more than `b`: a refusal before a pass, the longer wait, the less that is left.
fn is_tighter(a: &Answer, b: &Answer) -> bool {
    let rank = |answer: &Answer| {
        (
            answer.retry_after_ns,
            u64::MAX - answer.remaining,
            answer.reset_after_ns,
        )
    };
    rank(a) > rank(b)
}

/// Words of a block for `compiled`.
pub(super) fn block_size(compiled: &Compiled) -> usize {
    HEADER + compiled.block_words
}
