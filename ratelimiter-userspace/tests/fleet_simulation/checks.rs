//! The promises, checked while a run goes on and after it.

use std::fmt;

use ratelimiter_userspace::sync::OnStoreLoss;

use crate::member::rule;
use crate::scenario::{DEEP, Fault, GREEDY, POLITE, SECOND, Scenario};
use crate::world::{SLOT_US, World};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A host admitted more of a key than its own bucket allows, at a time.
    OwnBucket(usize, usize, u64),
    /// The fleet admitted more than this of the greedy key, between two times.
    TooMuch(u64, u64, [u64; 2]),
    /// The fleet admitted less than this of the greedy key, between two times.
    TooLittle(u64, u64, [u64; 2]),
    /// A client at half of its limit was denied so many times.
    Innocent(u64),
    /// What the store knows of a key after it was emptied, and what was owed.
    NotRefilled(usize, u64, u64),
    /// So many keys outlive what they stand for.
    Immortal(usize),
    /// A host believes to be alone, or runs a clock slowed, after the heal.
    NotHealed,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |us: &u64| *us as f64 / 1e6;
        match self {
            Self::OwnBucket(host, key, at_us) => write!(
                f,
                "host {host} admitted more of key {key} than one bucket holds at {:.3} s",
                seconds(at_us)
            ),
            Self::TooMuch(admitted, bound, [from, to]) => write!(
                f,
                "{admitted} admitted between {:.1} s and {:.1} s, at most {bound} may be",
                seconds(from),
                seconds(to)
            ),
            Self::TooLittle(admitted, bound, [from, to]) => write!(
                f,
                "{admitted} admitted between {:.1} s and {:.1} s, at least {bound} must be",
                seconds(from),
                seconds(to)
            ),
            Self::Innocent(denied) => write!(f, "{denied} denials of a client at half its limit"),
            Self::NotRefilled(key, level, owed) => write!(
                f,
                "two intervals after it was emptied the store knows {level} of key {key}, {owed} \
                 was owed"
            ),
            Self::Immortal(keys) => write!(f, "{keys} keys never expire"),
            Self::NotHealed => write!(f, "not healed two seconds after the fault"),
        }
    }
}

/// Sum of the slots between two times.
pub(crate) fn between(slots: &[u64], from_us: u64, to_us: u64) -> u64 {
    let (from, to) = ((from_us / SLOT_US) as usize, (to_us / SLOT_US) as usize);
    slots[from..to].iter().sum()
}

/// What must hold when a run is over.
pub(crate) fn after(scenario: &Scenario, world: &World) -> Result<(), Broken> {
    let denied: u64 = world.denied[POLITE].iter().sum();
    if denied > 0 {
        return Err(Broken::Innocent(denied));
    }
    settled(scenario, world)?;
    apart(scenario, world)?;
    if world.any_apart() && scenario.fault != Fault::Lossy {
        return Err(Broken::NotHealed);
    }
    if !world.all_whole() && scenario.fault != Fault::Lossy {
        return Err(Broken::NotHealed);
    }
    // A key lives until it reads as idle: what it may owe at most, drained at its rate.
    let mut ledger = world.ledger.clone();
    let longest = [GREEDY, POLITE, DEEP]
        .into_iter()
        .map(|key| {
            let quota = rule(scenario, key).quota;
            quota.debt_cap() * SECOND / quota.limit
        })
        .max()
        .unwrap_or(0);
    ledger.expire(world.store_us() + longest * 2);
    if ledger.is_empty() {
        Ok(())
    } else {
        Err(Broken::Immortal(ledger.len()))
    }
}

/// Once everything is as it should be, the greedy key has its limit: no more, and hardly less.
fn settled(scenario: &Scenario, world: &World) -> Result<(), Broken> {
    let span = [scenario.settled_us(), scenario.until_us];
    let seconds_us = span[1] - span[0];
    let spec = scenario.keys[GREEDY];
    let hosts = scenario.hosts as u64;
    let brought = spec.limit * seconds_us / SECOND;
    let lag_us = scenario.interval_us + 2 * scenario.delay_us[1];
    // What hosts admit before they hear of each other; more where exchanges are lost in a row.
    let rows = if scenario.fault == Fault::Lossy { 4 } else { 1 };
    let lag = hosts * (1 + spec.limit * lag_us * rows / SECOND);
    let admitted = between(&world.admitted[GREEDY], span[0], span[1]);
    // The spend of a request that is lost is charged nowhere; where three are lost in a row, what is
    // spent meanwhile is old.
    let lost = if scenario.fault == Fault::Lossy {
        95 - scenario.loss
    } else {
        100
    };
    let most = brought * 100 / lost * 1_005 / 1_000 + spec.burst + lag;
    if admitted > most {
        return Err(Broken::TooMuch(admitted, most, span));
    }
    // Where hosts were apart, each bucket may have owed a burst of its own on return.
    let owed = match scenario.fault {
        Fault::StoreGone | Fault::SomeCut | Fault::Restart | Fault::JoinAndLeave => {
            hosts * spec.burst
        }
        _ => spec.burst,
    };
    let due = between(&world.due[GREEDY], span[0], span[1]);
    let least = (due * 95 / 100).saturating_sub(owed + lag);
    if admitted < least {
        return Err(Broken::TooLittle(admitted, least, span));
    }
    Ok(())
}

/// While the store is away, from the fault's first moment to the heal.
fn apart(scenario: &Scenario, world: &World) -> Result<(), Broken> {
    if !matches!(scenario.fault, Fault::StoreGone | Fault::SomeCut) {
        return Ok(());
    }
    let span = scenario.fault_us.map(|us| us / SLOT_US * SLOT_US);
    let spec = scenario.keys[GREEDY];
    let hosts = scenario.hosts as u64;
    let all_gone = scenario.fault == Fault::StoreGone;
    let of = |us: u64| spec.limit * us / SECOND;
    let whole = span[1] - span[0];
    // Until it is noticed, every host gives what its bucket does.
    let noticed = 5 * scenario.interval_us + scenario.delay_us[1];
    let before = hosts * (spec.burst + of(noticed) + 1);
    let absent = hosts * of(2 * SECOND + noticed) / hosts;
    let most = match spec.on_loss {
        OnStoreLoss::Hold if all_gone => of(whole) * 125 / 100 + before,
        OnStoreLoss::Hold => 2 * of(whole) + before,
        OnStoreLoss::Strict => of(whole) * 105 / 100 + before + absent,
        OnStoreLoss::Local => hosts * of(whole) + before,
        OnStoreLoss::Deny if all_gone => before,
        OnStoreLoss::Deny => of(whole) + before,
    };
    let admitted = between(&world.admitted[GREEDY], span[0], span[1]);
    if admitted > most {
        return Err(Broken::TooMuch(admitted, most, span));
    }
    // Never nothing, unless that is asked for.
    let least = match spec.on_loss {
        OnStoreLoss::Deny => 0,
        OnStoreLoss::Strict => of(whole) / hosts / 2,
        _ => of(whole) / 2,
    };
    let least = least.saturating_sub(spec.burst + 2);
    if admitted < least {
        return Err(Broken::TooLittle(admitted, least, span));
    }
    Ok(())
}
