//! Building unit clocks: first pieces, edits, ways back.
//!
//! A clock changes by one immutable entry that holds the piece in force and the pieces to come, so
//! debt in units stays what it is across every edit: no second burst, no lock-out (R24, R25). A
//! change takes effect at a moment that lies ahead, so that all CPUs agree on it.

use ratelimiter_common::quota::Limit;
use ratelimiter_common::vclock::{
    NEVER, PIECES, Piece, SegmentClock, SegmentPiece, Speed, UnitClock,
};
use ratelimiter_common::verdict::Mode;

/// A limit with its mode: what one piece of a clock holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitTarget {
    /// Speed at full factor, and depth.
    pub limit: Limit,
    /// How strictly it is applied.
    pub mode: Mode,
}

/// What a unit's clock shall be from the next possible moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockTarget {
    /// The limit, or `None` for "not limited".
    pub target: Option<UnitTarget>,
    /// When a pending (`--try`) change ends (CLOCK_MONOTONIC), and what holds from then on.
    pub way_back: Option<(u64, Option<UnitTarget>)>,
}

/// A pending piece this close behind the next possible moment is the change that was asked for:
/// changes of many policies at once are dated one after the other.
const SOON_NS: u64 = 1_000_000_000;

/// What became of an edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The clock already does what is wanted.
    Unchanged,
    /// The new clock.
    Changed(UnitClock),
    /// Three pieces do not suffice before this moment, when a change made less than
    /// [`ratelimiter_common::vclock::LEAD_NS`] ago comes into force. Plan again then.
    Busy {
        /// CLOCK_MONOTONIC.
        until_ns: u64,
    },
}

/// What a stretch of a clock amounts to: speed, depth and mode; all that is off is alike.
type Essence = Option<(Speed, u64, u32)>;

fn essence(piece: &Piece) -> Essence {
    (piece.mode != Mode::Off as u32).then_some((piece.speed, piece.burst, piece.mode))
}

fn wanted(target: Option<UnitTarget>) -> Essence {
    target
        .filter(|target| target.mode != Mode::Off)
        .map(|target| (target.limit.speed, target.limit.burst, target.mode as u32))
}

/// Most [`Piece::debt_bits`]: the cap of a debt stays far below what a tracked word holds.
const MAX_DEBT_BITS: u32 = 48;

/// [`Piece::debt_bits`] of a piece of depth `burst` that follows `before`: log2, rounded up, of the
/// largest burst up to and with `before`; 0 if `burst` is no smaller.
fn debt_bits(before: &Piece, burst: u64) -> u32 {
    let earlier = match before.debt_bits {
        0 => 0,
        bits => 1_u64 << bits.min(MAX_DEBT_BITS),
    };
    let largest = before.burst.max(earlier);
    if largest <= burst {
        return 0;
    }
    // At least 1: `largest` exceeds `burst`, so a smaller number of bits never means "none".
    let ceil_log2 = u64::BITS - (largest - 1).leading_zeros();
    ceil_log2.clamp(1, MAX_DEBT_BITS)
}

/// A piece that continues `before` from `from_ns` on.
fn continued(
    before: &Piece,
    target: Option<UnitTarget>,
    segment: &SegmentClock,
    from_ns: u64,
) -> Piece {
    let base_ns = segment.at(from_ns);
    let (speed, burst, mode) = match target {
        Some(target) => (target.limit.speed, target.limit.burst, target.mode),
        // Switched off: the clock runs on, so that switching on again finds every bucket older.
        None => (before.speed, before.burst, Mode::Off),
    };
    Piece {
        from_ns,
        base_ns,
        base: before.at(base_ns),
        speed,
        burst,
        mode: mode as u32,
        debt_bits: debt_bits(before, burst),
    }
}

/// Returns the clock of a policy that did not exist: its first piece holds from `now_ns` on and
/// starts at `base`.
///
/// `base` should differ between policies that may follow each other in one region of the crowd,
/// so that words of the former are not read as debt of the latter.
#[must_use]
pub fn first(wish: &ClockTarget, segment: &SegmentClock, now_ns: u64, base: u64) -> UnitClock {
    // A unit that is limited on the way back only starts with the numbers it will have then.
    let numbers = wish.target.or(wish.way_back.and_then(|(_, back)| back));
    let start = Piece {
        from_ns: now_ns,
        base_ns: segment.at(now_ns),
        base,
        speed: numbers.map_or(Speed::ZERO, |target| target.limit.speed),
        burst: numbers.map_or(0, |target| target.limit.burst),
        mode: wish.target.map_or(Mode::Off, |target| target.mode) as u32,
        debt_bits: 0,
    };
    let mut clock = UnitClock::single(start);
    if let Some((at_ns, back)) = wish.way_back
        && wanted(back) != essence(&start)
    {
        let [_, second, _] = &mut clock.pieces;
        *second = continued(&start, back, segment, at_ns.max(now_ns));
    }
    clock
}

/// The pieces of `clock` that are used, earliest first; never empty.
fn used(clock: &UnitClock) -> impl Iterator<Item = &Piece> {
    let [first, rest @ ..] = &clock.pieces;
    std::iter::once(first).chain(rest.iter().filter(|piece| piece.from_ns != NEVER))
}

/// Stretches of the clock from `at_ns` on: what is in force then, and what follows when; stretches
/// equal to their predecessor are left out.
fn stretches(clock: &UnitClock, at_ns: u64) -> Vec<(u64, Essence)> {
    let mut list = vec![(0, essence(clock.piece(at_ns)))];
    for piece in used(clock).filter(|piece| piece.from_ns > at_ns) {
        if list
            .last()
            .is_some_and(|(_, before)| *before != essence(piece))
        {
            list.push((piece.from_ns, essence(piece)));
        }
    }
    list
}

/// Returns the clock that does what `clock` does until `at_ns`, and `wish` from then on.
///
/// `at_ns` must lie ahead of `now_ns` far enough for every CPU to see the new entry before it.
/// Debt in units is continuous: the new piece starts where the old one ends.
#[must_use]
pub fn edit(
    clock: &UnitClock,
    wish: &ClockTarget,
    segment: &SegmentClock,
    now_ns: u64,
    at_ns: u64,
) -> Edit {
    // A way back that is already due is the wish itself.
    let (target, way_back) = match wish.way_back {
        Some((back_ns, back)) if back_ns <= at_ns => (back, None),
        way_back => (wish.target, way_back),
    };
    let mut want = vec![(0, wanted(target))];
    if let Some((back_ns, back)) = way_back
        && wanted(back) != wanted(target)
    {
        want.push((back_ns, wanted(back)));
    }
    // A change that is on its way already counts as made, though others made with it may have
    // pushed its date a little behind the next possible one.
    let on_its_way = used(clock)
        .map(|piece| piece.from_ns)
        .filter(|from_ns| *from_ns > at_ns && *from_ns - at_ns <= SOON_NS);
    if std::iter::once(at_ns)
        .chain(on_its_way)
        .any(|from_ns| stretches(clock, from_ns) == want)
    {
        return Edit::Unchanged;
    }

    // Everything in force between now and then stays as it is.
    let mut pieces = vec![*clock.piece(now_ns)];
    pieces.extend(
        used(clock)
            .filter(|piece| piece.from_ns > now_ns && piece.from_ns < at_ns)
            .copied(),
    );
    let pending_ns = pieces.get(1).map(|piece| piece.from_ns);
    if pieces.last().map(essence) != Some(wanted(target))
        && let Some(last) = pieces.last().copied()
    {
        pieces.push(continued(&last, target, segment, at_ns));
    }
    if let Some((back_ns, back)) = way_back
        && wanted(back) != wanted(target)
        && let Some(last) = pieces.last().copied()
    {
        pieces.push(continued(&last, back, segment, back_ns));
    }
    let mut edited = UnitClock {
        pieces: [Piece::UNUSED; PIECES],
    };
    if pieces.len() > PIECES {
        return Edit::Busy {
            until_ns: pending_ns.unwrap_or(at_ns),
        };
    }
    for (place, piece) in edited.pieces.iter_mut().zip(pieces) {
        *place = piece;
    }
    Edit::Changed(edited)
}

/// Returns `segment` turned to `speed` from `at_ns` on, segment time continuous.
#[must_use]
pub fn turn_segment(segment: &SegmentClock, speed: Speed, now_ns: u64, at_ns: u64) -> SegmentClock {
    let in_force = |time_ns: u64| {
        let [first, second, third] = &segment.pieces;
        if third.from_ns <= time_ns {
            third
        } else if second.from_ns <= time_ns {
            second
        } else {
            first
        }
    };
    let unused = SegmentPiece {
        from_ns: NEVER,
        base_ns: 0,
        speed: Speed::ZERO,
    };
    let mut pieces = vec![*in_force(now_ns)];
    if in_force(at_ns).from_ns > now_ns {
        pieces.push(*in_force(at_ns));
    }
    pieces.retain(|piece| piece.from_ns != at_ns);
    pieces.push(SegmentPiece {
        from_ns: at_ns,
        base_ns: segment.at(at_ns),
        speed,
    });
    let mut turned = SegmentClock {
        pieces: [unused; PIECES],
    };
    for (place, piece) in turned.pieces.iter_mut().zip(pieces) {
        *place = piece;
    }
    turned
}

/// As [`turn_segment`], and at full speed again from `until_ns` on, should nobody prolong it: the
/// last piece of an adaptive clock is its way back to the configured limits.
#[must_use]
pub fn turn_segment_until(
    segment: &SegmentClock,
    speed: Speed,
    now_ns: u64,
    at_ns: u64,
    until_ns: u64,
) -> SegmentClock {
    let mut turned = turn_segment(segment, speed, now_ns, at_ns);
    if speed == Speed::ONE {
        return turned;
    }
    let back = SegmentPiece {
        from_ns: until_ns,
        base_ns: turned.at(until_ns),
        speed: Speed::ONE,
    };
    // All three are in use only within 20 ms of the turn before: the next one adds it.
    if let Some(place) = turned.pieces.iter_mut().find(|p| p.from_ns == NEVER) {
        *place = back;
    }
    turned
}

/// Returns `clock` with the pieces that begin after `turn_ns` re-based on `segment`, a segment
/// clock that was turned at `turn_ns`; pieces in force by then need nothing, since segment time is
/// continuous. `None` if there is nothing to rewrite.
#[must_use]
pub fn retime(clock: &UnitClock, segment: &SegmentClock, turn_ns: u64) -> Option<UnitClock> {
    let mut turned = *clock;
    let mut before = *clock.piece(turn_ns);
    let mut changed = false;
    for piece in turned
        .pieces
        .iter_mut()
        .filter(|piece| piece.from_ns != NEVER && piece.from_ns > turn_ns)
    {
        let base_ns = segment.at(piece.from_ns);
        let base = before.at(base_ns);
        changed |= (piece.base_ns, piece.base) != (base_ns, base);
        piece.base_ns = base_ns;
        piece.base = base;
        before = *piece;
    }
    changed.then_some(turned)
}

/// Returns `clock` moved from one segment's time to another's at `now_ns`, its reading unchanged.
#[must_use]
pub fn rebase(
    clock: &UnitClock,
    from: &SegmentClock,
    onto: &SegmentClock,
    now_ns: u64,
) -> UnitClock {
    let in_force = clock.piece(now_ns);
    let moved = Piece {
        base_ns: onto.at(now_ns),
        base: in_force.at(from.at(now_ns)),
        ..*in_force
    };
    let mut rebased = UnitClock::single(moved);
    let pending = used(clock).filter(|piece| piece.from_ns > now_ns);
    for (place, piece) in rebased.pieces.iter_mut().skip(1).zip(pending) {
        *place = *piece;
    }
    retime(&rebased, onto, now_ns).unwrap_or(rebased)
}
