//! Where one word is not enough: several quotas at once, a log, the caller's clock. The states are
//! in a block, judged under its lock; all or nothing is charged.

use super::answer::{Answer, Reason};
use super::block::{BlockId, Held};
use super::engine::{Ask, Engine, Step};
use super::fleet::{self, Fleet, Who};
use super::meter::{Meter, Says};
use super::registry::Compiled;
use super::rule::{PolicyWord, Rule};
use super::spec::QuotaSpec;

impl Engine {
    /// Decides where the state is in a block.
    pub(super) fn at_block(
        &self,
        policy: PolicyWord,
        word: u64,
        ask: &Ask<'_>,
        rule: &Rule,
    ) -> Step {
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
        let mut due = false;
        let fleet = self.fleet.as_deref();
        let answer = judge_all(compiled, &held, now_ns, ask, (fleet, &mut due));
        drop(held);
        if due && let Some(fleet) = fleet {
            fleet.is_due(Who {
                key: ask.key,
                policy,
            });
        }
        Step::Done(self.done(rule, answer, ask))
    }
}

/// Judges every quota in a held block: all or nothing is charged, the tightest answers.
fn judge_all(
    compiled: &Compiled,
    held: &Held<'_>,
    now_ns: u64,
    ask: &Ask<'_>,
    (fleet, due): (Option<&Fleet>, &mut bool),
) -> Answer {
    let mut judge = |spec: &QuotaSpec, meter: &Meter, charge: bool| {
        let states = held.states(meter.offset, meter.words());
        match meter.fleet.as_ref().zip(fleet) {
            None => meter.judge(states, now_ns, ask.cost, charge),
            Some((terms, fleet)) => {
                let quota = (terms, &*spec.name);
                let (says, is_due) =
                    fleet::judge(fleet, quota, states, (now_ns, ask), ask.charge && !charge);
                *due |= is_due;
                says
            }
        }
    };
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
    let mut pending = false;
    for (number, (spec, meter)) in asked() {
        // One quota is charged while it is looked at; of several, only if all pass.
        let says = judge(spec, meter, ask.charge && single);
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
                answer.reason = compiled.rule.over();
                answer.retry_after_ns = retry_ns;
                answer.reset_after_ns = retry_ns;
            }
            Says::Never => {
                answer.reason = Reason::ExceedsBurst;
                answer.retry_after_ns = u64::MAX;
            }
            Says::Asks => {
                pending = true;
                continue;
            }
            Says::IsAway { retry_ns } => {
                answer.reason = Reason::StoreAway;
                answer.retry_after_ns = retry_ns;
                answer.reset_after_ns = retry_ns;
            }
        }
        if !answer.reason.allows()
            && ask.cost > 1
            && !meter.is_of_fleet()
            && let Says::Passes {
                remaining,
                reset_ns,
            } = meter.judge(held.states(meter.offset, meter.words()), now_ns, 0, false)
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
    if pending && tightest.is_none_or(|answer| answer.reason.allows()) {
        return Answer::bare(Reason::Pending, policy);
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
        for (_, (spec, meter)) in asked() {
            // A shadowed quota that refuses stays as it is.
            let _charged = judge(spec, meter, true);
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
