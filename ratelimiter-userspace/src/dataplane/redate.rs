//! Moves pieces of a clock that would begin too soon: a swap made after its piece has begun would
//! let CPUs disagree about the clock. Pure.

use ratelimiter_common::vclock::{
    LEAD_NS, NEVER, PIECES, Piece, SegmentClock, SegmentPiece, UnitClock,
};

/// Time a swap is given to become visible, in nanoseconds: 2 ms.
pub(super) const MARGIN_NS: u64 = 2_000_000;

/// Returns whether a piece of `new` that is not in `old` has begun at `now_ns`. The first piece
/// never counts: it holds from the beginning of time. Nor does any piece of a slot's first entry
/// (`old` is `None`): nobody has read another clock there.
pub(super) fn is_late(old: Option<&UnitClock>, new: &UnitClock, now_ns: u64) -> bool {
    first_late(old, new, now_ns).is_some()
}

fn first_late(old: Option<&UnitClock>, new: &UnitClock, now_ns: u64) -> Option<usize> {
    let old = old?;
    (1..PIECES).find(|&at| {
        new.pieces.get(at).is_some_and(|piece| {
            piece.from_ns != NEVER && piece.from_ns <= now_ns && !old.pieces.contains(piece)
        })
    })
}

/// Moves the pieces of `new` that begin within [`MARGIN_NS`] to `now_ns` plus [`LEAD_NS`] and continues the clock of the
/// piece before them, so that the clock neither jumps nor runs backwards. Later pieces keep their
/// dates (pushed back where they would fall before) and continue likewise.
pub(super) fn redate(
    old: Option<&UnitClock>,
    new: &UnitClock,
    segment: &SegmentClock,
    now_ns: u64,
) -> UnitClock {
    let mut clock = *new;
    let Some(first) = first_late(old, new, now_ns.saturating_add(MARGIN_NS)) else {
        return clock;
    };
    let mut earliest = now_ns.saturating_add(LEAD_NS);
    for at in first..PIECES {
        let Some(&before) = at.checked_sub(1).and_then(|at| clock.pieces.get(at)) else {
            break;
        };
        let Some(piece) = clock.pieces.get_mut(at) else {
            break;
        };
        if piece.from_ns == NEVER {
            break;
        }
        piece.from_ns = piece.from_ns.max(earliest);
        continue_from(piece, &before, segment);
        earliest = piece.from_ns.saturating_add(1);
    }
    clock
}

fn continue_from(piece: &mut Piece, before: &Piece, segment: &SegmentClock) {
    piece.base_ns = segment.at(piece.from_ns);
    piece.base = before.at(piece.base_ns);
}

/// The same for a segment's clock: returns `new` with its late pieces moved, or `None` if none is
/// late.
pub(super) fn redate_segment(
    old: &SegmentClock,
    new: &SegmentClock,
    now_ns: u64,
) -> Option<SegmentClock> {
    let soon = now_ns.saturating_add(MARGIN_NS);
    let first = (1..PIECES).find(|&at| {
        new.pieces.get(at).is_some_and(|piece| {
            piece.from_ns != NEVER && piece.from_ns <= soon && !old.pieces.contains(piece)
        })
    })?;
    let mut clock = *new;
    let mut earliest = now_ns.saturating_add(LEAD_NS);
    for at in first..PIECES {
        let Some(&before) = at.checked_sub(1).and_then(|at| clock.pieces.get(at)) else {
            break;
        };
        let Some(piece) = clock.pieces.get_mut(at) else {
            break;
        };
        if piece.from_ns == NEVER {
            break;
        }
        piece.from_ns = piece.from_ns.max(earliest);
        piece.base_ns = at_segment_piece(&before, piece.from_ns);
        earliest = piece.from_ns.saturating_add(1);
    }
    Some(clock)
}

fn at_segment_piece(piece: &SegmentPiece, now_ns: u64) -> u64 {
    piece
        .base_ns
        .wrapping_add(piece.speed.advance(now_ns.saturating_sub(piece.from_ns)))
}

#[cfg(test)]
mod tests {
    use ratelimiter_common::vclock::Speed;

    use super::*;

    fn piece(from_ns: u64, base: u64, per_s: u128) -> Piece {
        Piece {
            from_ns,
            base_ns: from_ns,
            base,
            speed: Speed::from_ratio(per_s, 1_000_000_000).unwrap(),
            burst: 10,
            mode: 2,
            debt_bits: 0,
        }
    }

    fn clock(pieces: &[Piece]) -> UnitClock {
        let mut all = [Piece::UNUSED; PIECES];
        all[..pieces.len()].copy_from_slice(pieces);
        UnitClock { pieces: all }
    }

    const S: u64 = 1_000_000_000;

    #[test]
    fn leaves_timely_changes_alone() {
        let old = clock(&[piece(0, 0, 256)]);
        let new = clock(&[piece(0, 0, 256), piece(10 * S, 2_560, 512)]);
        assert!(!is_late(Some(&old), &new, 9 * S));
        assert_eq!(redate(Some(&old), &new, &SegmentClock::REAL, 9 * S), new);
    }

    #[test]
    fn moves_a_late_piece_and_keeps_the_clock_continuous() {
        let old = clock(&[piece(0, 0, 256)]);
        let new = clock(&[
            piece(0, 0, 256),
            piece(10 * S, 2_560, 512),
            piece(20 * S, 2_560 + 5_120, 256),
        ]);
        let now = 11 * S;
        assert!(is_late(Some(&old), &new, now));
        let moved = redate(Some(&old), &new, &SegmentClock::REAL, now);
        let [first, second, third] = &moved.pieces;
        assert_eq!(second.from_ns, now + LEAD_NS);
        assert_eq!(second.base, first.at(now + LEAD_NS));
        assert_eq!(third.from_ns, 20 * S);
        assert_eq!(third.base, second.at(20 * S));
        assert!(!is_late(Some(&old), &moved, now));
    }

    #[test]
    fn pieces_already_in_force_are_never_late() {
        let old = clock(&[piece(0, 0, 256), piece(S, 256, 512)]);
        let new = clock(&[piece(0, 0, 256), piece(S, 256, 512), piece(9 * S, 4_352, 1)]);
        assert!(!is_late(Some(&old), &new, 5 * S));
    }

    #[test]
    fn a_first_entry_is_never_late() {
        let new = clock(&[piece(5, 0, 256), piece(6, 0, 512)]);
        assert!(!is_late(None, &new, 100 * S));
    }

    #[test]
    fn moves_a_late_segment_piece() {
        let mut new = SegmentClock::REAL;
        new.pieces[1] = SegmentPiece {
            from_ns: 10 * S,
            base_ns: 10 * S,
            speed: Speed::from_ratio(1, 2).unwrap(),
        };
        assert_eq!(redate_segment(&SegmentClock::REAL, &new, 9 * S), None);
        let moved = redate_segment(&SegmentClock::REAL, &new, 12 * S).unwrap();
        assert_eq!(moved.pieces[1].from_ns, 12 * S + LEAD_NS);
        assert_eq!(moved.pieces[1].base_ns, 12 * S + LEAD_NS);
        assert_eq!(moved.at(14 * S + LEAD_NS), 13 * S + LEAD_NS);
    }
}
