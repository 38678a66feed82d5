//! Unit clocks under edits: debt in units stays, no second burst, no lock-out (R24, R25).

use proptest::prelude::*;
use ratelimiter_common::abi::crowd::CAP_SLACK_NS;
use ratelimiter_common::crowd::{debt, tat_mask};
use ratelimiter_common::gcra::{Decision, decide};
use ratelimiter_common::quota::{Quota, Unit};
use ratelimiter_common::vclock::{LEAD_NS, NEVER, SegmentClock, Speed, UnitClock};
use ratelimiter_common::verdict::Mode;
use ratelimiter_userspace::policy::clock::{
    ClockTarget, Edit, UnitTarget, edit, first, rebase, retime, turn_segment,
};

const S: u64 = 1_000_000_000;
const REAL: SegmentClock = SegmentClock::REAL;

fn target(rate: u64, burst: u64) -> Option<UnitTarget> {
    let quota = Quota {
        rate_limit: rate,
        window_ns: S,
        burst,
        unit: Unit::Packets,
    };
    Some(UnitTarget {
        limit: quota.compile().unwrap(),
        mode: Mode::Enforce,
    })
}

fn wish(target: Option<UnitTarget>) -> ClockTarget {
    ClockTarget {
        target,
        way_back: None,
    }
}

fn changed(clock: &UnitClock, wish: &ClockTarget, now_ns: u64) -> UnitClock {
    match edit(clock, wish, &REAL, now_ns, now_ns + LEAD_NS) {
        Edit::Changed(clock) => clock,
        other => panic!("{other:?}"),
    }
}

fn reading(clock: &UnitClock, segment: &SegmentClock, now_ns: u64) -> u64 {
    clock.piece(now_ns).at(segment.at(now_ns))
}

/// Bits of the sets of the smallest region: its words hold the shortest TAT.
const SETS: u32 = 13;

/// As [`admitted`], of a source of the crowd: what owes more than the cap reads as idle. One packet
/// is the largest cost here, so that the cap lies as near to the burst as it can.
fn admitted_in_crowd(
    clock: &UnitClock,
    word: &mut u64,
    from_ns: u64,
    until_ns: u64,
    step_ns: u64,
) -> u64 {
    let mut count = 0;
    let mut now_ns = from_ns;
    while now_ns < until_ns {
        let piece = clock.piece(now_ns);
        let now = piece.at(REAL.at(now_ns));
        let cap = piece.debt_cap(CAP_SLACK_NS) + 256;
        let owed = debt(*word, now, cap, tat_mask(SETS));
        if owed + 256 <= piece.burst {
            *word = now.wrapping_add(owed + 256) & tat_mask(SETS);
            count += 1;
        }
        now_ns += step_ns;
    }
    count
}

/// Offers one packet each `step_ns` and counts those admitted; `tat` is the bucket.
fn admitted(clock: &UnitClock, tat: &mut u64, from_ns: u64, until_ns: u64, step_ns: u64) -> u64 {
    let mut count = 0;
    let mut now_ns = from_ns;
    while now_ns < until_ns {
        let piece = clock.piece(now_ns);
        if let Decision::Conforming { tat: next } =
            decide(*tat, piece.at(REAL.at(now_ns)), 256, piece.burst)
        {
            *tat = next;
            count += 1;
        }
        now_ns += step_ns;
    }
    count
}

#[test]
fn raise_means_raise_within_a_second() {
    let clock = first(&wish(target(10, 20)), &REAL, 0, 7 << 20);
    let mut tat = 0;
    assert_eq!(admitted(&clock, &mut tat, S, 2 * S, 1_000_000), 20 + 9);
    let raised = changed(&clock, &wish(target(1_000, 20)), 2 * S);
    // Naive GCRA locks the drained client out for 9.9 s; here it is the lead of 20 ms.
    let got = admitted(&raised, &mut tat, 2 * S, 3 * S, 100_000);
    assert!((950..=1_000).contains(&got), "{got}");
}

#[test]
fn lower_means_lower_and_hands_out_no_second_burst() {
    let clock = first(&wish(target(1_000, 100)), &REAL, 0, 7 << 20);
    let mut tat = 0;
    admitted(&clock, &mut tat, S, 2 * S, 100_000);
    let lowered = changed(&clock, &wish(target(500, 100)), 2 * S);
    let got = admitted(&lowered, &mut tat, 2 * S, 4 * S, 100_000);
    assert!((995..=1_011).contains(&got), "{got}");
}

/// The depths that a debt can have outlived: log2 of the largest one, as long as the policy lives.
#[test]
fn a_smaller_burst_remembers_the_largest_before_it() {
    let bits = |clock: &UnitClock, now_ns: u64| clock.piece(now_ns).debt_bits;
    let mut clock = first(&wish(target(10, 1_000)), &REAL, 0, 7 << 20);
    assert_eq!(bits(&clock, S), 0, "its own burst is the largest");
    // 1000 packets are 256000 fractions: below 2^18 = 262144.
    for (now_s, rate, burst, expected) in [
        (1, 10, 10, 18),
        (2, 20, 10, 18),
        (3, 20, 500, 18),
        (4, 20, 2_000, 0),
        (5, 20, 1_999, 19),
        (6, 30, 1, 19),
        (7, 30, 1 << 36, 0),
        (8, 30, 1, 44),
        (9, 31, 1, 44),
    ] {
        clock = changed(&clock, &wish(target(rate, burst)), now_s * S);
        let now_ns = now_s * S + LEAD_NS;
        assert_eq!(bits(&clock, now_ns), expected, "burst {burst}");
        assert!(clock.piece(now_ns).debt_cap(0) >= burst << 8);
    }
    // Off and on again forgets nothing.
    clock = changed(&clock, &wish(None), 20 * S);
    clock = changed(&clock, &wish(target(30, 1)), 21 * S);
    assert_eq!(bits(&clock, 22 * S), 44);
}

/// The way back of a trial with a larger burst is a smaller burst too.
#[test]
fn the_way_back_remembers_the_burst_of_the_trial() {
    let old = target(10, 10);
    let trial = ClockTarget {
        target: target(10, 1_000),
        way_back: Some((60 * S, old)),
    };
    let tried = changed(&first(&wish(old), &REAL, 0, 1 << 30), &trial, 10 * S);
    assert_eq!(tried.piece(60 * S).debt_bits, 18);
    let fresh = first(&trial, &REAL, 0, 1 << 30);
    assert_eq!(fresh.piece(60 * S).debt_bits, 18);
}

#[test]
fn a_debt_above_a_lowered_burst_is_not_read_as_idle_when_its_piece_is_gone() {
    let mut word = 0;
    let mut clock = first(&wish(target(1, 1_000)), &REAL, 0, 7 << 20);
    let got = admitted_in_crowd(&clock, &mut word, S, 2 * S, 100_000);
    assert!((1_000..=1_001).contains(&got), "{got}");
    clock = changed(&clock, &wish(target(1, 10)), 2 * S);
    clock = changed(&clock, &wish(target(2, 10)), 3 * S);
    clock = changed(&clock, &wish(target(1, 10)), 4 * S);
    // The piece with the burst of 1000 is gone from the entry, the debt is not.
    assert!(clock.pieces.iter().all(|piece| piece.burst <= 10 << 8));
    assert_eq!(
        admitted_in_crowd(&clock, &mut word, 5 * S, 6 * S, 100_000),
        0
    );
}

#[test]
fn a_trial_takes_itself_back_at_its_deadline() {
    let (old, new) = (target(10, 10), target(1_000, 50));
    let clock = first(&wish(old), &REAL, 0, 1 << 30);
    let tried = changed(
        &clock,
        &ClockTarget {
            target: new,
            way_back: Some((60 * S, old)),
        },
        10 * S,
    );
    assert_eq!(tried.piece(10 * S).burst, 10 << 8);
    assert_eq!(tried.piece(11 * S).burst, 50 << 8);
    assert_eq!(tried.piece(60 * S - 1).burst, 50 << 8);
    assert_eq!(tried.piece(60 * S).burst, 10 << 8);
    // Nothing jumps at the boundaries.
    for boundary in [10 * S + LEAD_NS, 60 * S] {
        let gap = reading(&tried, &REAL, boundary) - reading(&tried, &REAL, boundary - 1);
        assert!(gap <= 1, "{gap} at {boundary}");
    }
    // Confirming drops the way back, rolling back drops the trial; both once.
    let confirmed = changed(&tried, &wish(new), 30 * S);
    assert_eq!(confirmed.piece(100 * S).burst, 50 << 8);
    assert_eq!(
        edit(&confirmed, &wish(new), &REAL, 31 * S, 31 * S + LEAD_NS),
        Edit::Unchanged
    );
    let rolled_back = changed(&tried, &wish(old), 30 * S);
    assert_eq!(rolled_back.piece(31 * S).burst, 10 << 8);
    // After the deadline there is nothing left to do.
    assert_eq!(
        edit(&tried, &wish(old), &REAL, 61 * S, 61 * S + LEAD_NS),
        Edit::Unchanged
    );
}

#[test]
fn a_fourth_piece_waits_for_the_second_to_begin() {
    let clock = first(&wish(target(10, 10)), &REAL, 0, 1 << 30);
    let once = changed(&clock, &wish(target(20, 10)), S);
    let trial = ClockTarget {
        target: target(30, 10),
        way_back: Some((60 * S, target(20, 10))),
    };
    let now_ns = S + LEAD_NS / 2;
    assert_eq!(
        edit(&once, &trial, &REAL, now_ns, now_ns + LEAD_NS),
        Edit::Busy {
            until_ns: S + LEAD_NS
        }
    );
    let Edit::Changed(tried) = edit(&once, &trial, &REAL, S + LEAD_NS, S + 2 * LEAD_NS) else {
        panic!("still busy");
    };
    assert_eq!(
        tried
            .pieces
            .iter()
            .filter(|piece| piece.from_ns != NEVER)
            .count(),
        3
    );
}

#[test]
fn off_is_off_and_on_again_continues() {
    let clock = first(&wish(target(10, 10)), &REAL, 0, 1 << 30);
    let off = changed(&clock, &wish(None), S);
    assert_eq!(off.piece(2 * S).mode, Mode::Off as u32);
    let on = changed(&off, &wish(target(10, 10)), 3 * S);
    assert_eq!(on.piece(4 * S).mode, Mode::Enforce as u32);
    assert!(reading(&on, &REAL, 4 * S) > reading(&clock, &REAL, S));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of edits, each at any distance from the one before: the clock never jumps and
    /// never runs backwards, and a greedy source gets at most the largest burst plus the integral
    /// of the rates in force.
    #[test]
    fn no_edit_hands_out_a_second_burst(
        edits in prop::collection::vec((1_u64..2_000, 1_u64..50, 1_u64..400, any::<bool>()), 1..8)
    ) {
        let mut clock = first(&wish(target(100, 10)), &REAL, 0, 1 << 40);
        let (mut tat, mut word) = (0, 0);
        let mut now_ns = S;
        let (mut count, mut in_crowd) = (0, 0);
        let start = reading(&clock, &REAL, now_ns);
        let mut largest = 10;
        for (rate, burst, gap_ms, trial) in edits {
            let goal = ClockTarget {
                target: target(rate, burst),
                way_back: trial.then(|| (now_ns + 100_000_000, target(100, 10))),
            };
            let before = reading(&clock, &REAL, now_ns);
            match edit(&clock, &goal, &REAL, now_ns, now_ns + LEAD_NS) {
                Edit::Changed(next) => {
                    prop_assert_eq!(reading(&next, &REAL, now_ns), before);
                    clock = next;
                    largest = largest.max(burst);
                    let again = edit(&clock, &goal, &REAL, now_ns, now_ns + LEAD_NS);
                    prop_assert_eq!(again, Edit::Unchanged);
                }
                Edit::Unchanged => {}
                Edit::Busy { until_ns } => {
                    prop_assert!(until_ns > now_ns && until_ns < now_ns + LEAD_NS);
                }
            }
            let until_ns = now_ns + gap_ms * 1_000_000;
            let mut last = reading(&clock, &REAL, now_ns);
            for step in 0..=20 {
                let at_ns = now_ns + (until_ns - now_ns) / 20 * step;
                let next = reading(&clock, &REAL, at_ns);
                prop_assert!(next >= last, "the clock ran backwards");
                last = next;
            }
            count += admitted(&clock, &mut tat, now_ns, until_ns, 250_000);
            in_crowd += admitted_in_crowd(&clock, &mut word, now_ns, until_ns, 250_000);
            now_ns = until_ns;
        }
        let counted = (reading(&clock, &REAL, now_ns) - start) / 256;
        prop_assert!(count <= largest + counted + 1, "{count} of {largest} + {counted}");
        prop_assert!(in_crowd <= largest + counted + 1, "{in_crowd} of {largest} + {counted}");
    }

    /// A segment clock that turns leaves the reading of its policies continuous, pending pieces
    /// included.
    #[test]
    fn turning_a_segment_is_continuous(factor in 1_u64..=1 << 32, at_ms in 1_u64..5_000) {
        let old = target(100, 10);
        let tried = changed(
            &first(&wish(old), &REAL, 0, 1 << 40),
            &ClockTarget { target: target(900, 10), way_back: Some((4 * S, old)) },
            S,
        );
        let turn_ns = S + at_ms * 1_000_000;
        let segment = turn_segment(&REAL, Speed::ONE.scaled(factor), turn_ns - LEAD_NS, turn_ns);
        let clock = retime(&tried, &segment, turn_ns).unwrap_or(tried);
        for boundary in clock.pieces.iter().map(|piece| piece.from_ns).filter(|ns| *ns != NEVER && *ns > 0) {
            let (a, b) = (boundary - 1, boundary);
            let gap = reading(&clock, &segment, b).abs_diff(reading(&clock, &segment, a));
            prop_assert!(gap <= 1, "{} at {}", gap, boundary);
        }
        let (before, after) = (reading(&tried, &REAL, turn_ns), reading(&clock, &segment, turn_ns));
        prop_assert!(before.abs_diff(after) <= 1);
        let moved = rebase(&clock, &segment, &REAL, turn_ns + S);
        let (a, b) = (reading(&clock, &segment, turn_ns + S), reading(&moved, &REAL, turn_ns + S));
        prop_assert_eq!(a, b);
    }
}
