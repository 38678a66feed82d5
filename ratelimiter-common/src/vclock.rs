//! The unit clock: a policy's clock, which counts units at the rate in force.
//!
//! A bucket's one word is a TAT on this clock, so debt is held in units and a change of rate
//! re-prices every bucket at once, exactly, without touching one. The clock is piecewise linear:
//! at most [`PIECES`] pieces in one immutable map entry. A change takes effect at a moment that
//! lies [`LEAD_NS`] ahead, so that all CPUs agree on it.
//!
//! Two stages: a [`SegmentClock`] turns real time into segment time (nanoseconds times the
//! adaptive factor); a [`UnitClock`] turns segment time into units.

/// Largest number of pieces a clock holds: the one in force, one to come, and the way back.
pub const PIECES: usize = 3;

/// How far ahead of "now" a change of clock is dated, in nanoseconds: 20 ms.
pub const LEAD_NS: u64 = 20_000_000;

/// `from_ns` of a piece that is not used.
pub const NEVER: u64 = u64::MAX;

/// How fast a clock ticks: `mult / 2^shift` ticks per nanosecond, `mult` normalised to 32 bits.
///
/// The relative error is below 2^-31 for every speed from 2^-47 (one packet per 366 days) to 2^9
/// ticks per nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Speed {
    /// Multiplier; the top bit is set unless the speed is zero.
    pub mult: u32,
    /// Right shift of the 96-bit product, 23..=95.
    pub shift: u32,
}

impl Speed {
    /// A clock that stands still.
    pub const ZERO: Self = Self { mult: 0, shift: 32 };
    /// One tick per nanosecond, exactly.
    pub const ONE: Self = Self {
        mult: 1 << 31,
        shift: 31,
    };

    /// Returns the speed of `ticks` per `ns` nanoseconds, rounded to the nearest multiplier, or
    /// `None` when it is outside 2^-63..2^9 ticks per nanosecond.
    #[must_use]
    pub const fn from_ratio(ticks: u128, ns: u64) -> Option<Self> {
        if ticks == 0 || ns == 0 || ticks >= 1 << 120 {
            return None;
        }
        // Find the shift for which ticks * 2^shift / ns has exactly 32 bits.
        let mut shift = 0_u32;
        while shift < 96 {
            // Fits: the loop ends as soon as this product reaches 2^32 * ns, below 2^97.
            let quotient = ((ticks << shift) + (ns as u128 >> 1)) / ns as u128;
            if quotient >= 1 << 31 {
                if quotient >= 1 << 32 {
                    // Rounding carried into a 33rd bit: halve.
                    if shift == 0 {
                        return None;
                    }
                    let halved = Self {
                        mult: (quotient >> 1) as u32,
                        shift: shift - 1,
                    };
                    return if halved.shift < 23 {
                        None
                    } else {
                        Some(halved)
                    };
                }
                return if shift < 23 {
                    None
                } else {
                    Some(Self {
                        mult: quotient as u32,
                        shift,
                    })
                };
            }
            shift += 1;
        }
        None
    }

    /// Returns how far the clock moves in `ns` nanoseconds, rounded down.
    ///
    /// Two 32 x 32 bit multiplications and shifts: the product has 96 bits. Saturates instead of
    /// wrapping, which takes more than 100 years at any legal speed.
    #[inline(always)]
    #[must_use]
    pub const fn advance(self, ns: u64) -> u64 {
        let low = (ns & 0xffff_ffff) * self.mult as u64;
        let high = (ns >> 32) * self.mult as u64 + (low >> 32);
        if self.shift >= 32 {
            high >> ((self.shift - 32) & 63)
        } else {
            let up = (32 - self.shift) & 31;
            if high >> (63 - up) != 0 {
                return u64::MAX >> 1;
            }
            (high << up) | ((low & 0xffff_ffff) >> (self.shift & 31))
        }
    }

    /// Returns the least number of nanoseconds in which the clock moves by at least `ticks`;
    /// `u64::MAX` if it never does. Host only: the kernel never needs it.
    #[must_use]
    pub const fn time_for(self, ticks: u64) -> u64 {
        if ticks == 0 {
            return 0;
        }
        if self.mult == 0 {
            return u64::MAX;
        }
        // ticks << shift may exceed 128 bits only for waits beyond any clock.
        if self.shift as u64 + (64 - ticks.leading_zeros() as u64) > 127 {
            return u64::MAX;
        }
        let need = ((ticks as u128) << self.shift).div_ceil(self.mult as u128);
        if need > u64::MAX as u128 {
            u64::MAX
        } else {
            need as u64
        }
    }

    /// Returns this speed times `factor / 2^32`; `factor` at most 2^32. Host only.
    #[must_use]
    pub const fn scaled(self, factor: u64) -> Self {
        if self.mult == 0 || factor == 0 {
            return Self::ZERO;
        }
        let mut mult = self.mult as u128 * factor as u128; // speed = mult / 2^(shift + 32)
        let mut shift = self.shift + 32;
        while mult >= 1 << 32 {
            // Round at the last step only.
            mult = if mult < 1 << 33 {
                (mult + 1) >> 1
            } else {
                mult >> 1
            };
            shift -= 1;
        }
        Self {
            mult: mult as u32,
            shift,
        }
    }
}

/// One linear piece of a [`UnitClock`]. Immutable once in a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Piece {
    /// Real time (`bpf_ktime_get_ns`, CLOCK_MONOTONIC) from which this piece holds; [`NEVER`] when
    /// it is not used.
    pub from_ns: u64,
    /// Segment time at `from_ns`, in nanoseconds.
    pub base_ns: u64,
    /// Unit clock at `from_ns`, in fractions of a unit.
    pub base: u64,
    /// Fractions of a unit per nanosecond of segment time.
    pub speed: Speed,
    /// Bucket depth in fractions of a unit.
    pub burst: u64,
    /// [`crate::verdict::Mode`] as a number.
    pub mode: u32,
    /// log2, rounded up, of the largest burst the slot's policy ever had, in fractions of a unit;
    /// 0 if that is this one. Debt up to there is real: it was run up before the burst was lowered.
    /// At most 48.
    pub debt_bits: u32,
}

/// A unit's clock, depth and mode over time: at most three pieces, earliest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UnitClock {
    /// The pieces, by rising `from_ns`; unused ones last, with `from_ns` = [`NEVER`].
    pub pieces: [Piece; PIECES],
}

/// One linear piece of a [`SegmentClock`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SegmentPiece {
    /// Real time from which this piece holds; [`NEVER`] when it is not used.
    pub from_ns: u64,
    /// Segment time at `from_ns`, in nanoseconds.
    pub base_ns: u64,
    /// Segment nanoseconds per real nanosecond: the adaptive factor in (0, 1].
    pub speed: Speed,
}

/// A segment's clock: real nanoseconds times the adaptive factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SegmentClock {
    /// The pieces, by rising `from_ns`; unused ones last, with `from_ns` = [`NEVER`].
    pub pieces: [SegmentPiece; PIECES],
}

impl Piece {
    /// A piece that never holds.
    pub const UNUSED: Self = Self {
        from_ns: NEVER,
        base_ns: 0,
        base: 0,
        speed: Speed::ZERO,
        burst: 0,
        mode: 0,
        debt_bits: 0,
    };

    /// Returns the unit clock at `segment_ns`, within this piece. Earlier times read as the start.
    #[inline(always)]
    #[must_use]
    pub const fn at(&self, segment_ns: u64) -> u64 {
        self.base
            .wrapping_add(self.speed.advance(segment_ns.saturating_sub(self.base_ns)))
    }
}

impl Piece {
    /// Returns the largest debt that is real in this piece, `slack_ns` of rate above the burst;
    /// more reads as idle.
    #[inline(always)]
    #[must_use]
    pub const fn debt_cap(&self, slack_ns: u64) -> u64 {
        let once = 1_u64 << (self.debt_bits & 63);
        let burst = if once > self.burst { once } else { self.burst };
        burst.saturating_add(self.speed.advance(slack_ns))
    }
}

impl UnitClock {
    /// A clock with a single piece that holds from `from_ns` on.
    #[must_use]
    pub const fn single(piece: Piece) -> Self {
        Self {
            pieces: [piece, Piece::UNUSED, Piece::UNUSED],
        }
    }

    /// Returns the piece in force at real time `now_ns`: the last one that has begun, else the
    /// first.
    #[inline(always)]
    #[must_use]
    pub const fn piece(&self, now_ns: u64) -> &Piece {
        let [first, second, third] = &self.pieces;
        if third.from_ns <= now_ns {
            third
        } else if second.from_ns <= now_ns {
            second
        } else {
            first
        }
    }
}

impl SegmentClock {
    /// A segment at full speed whose time is real time.
    pub const REAL: Self = Self {
        pieces: [
            SegmentPiece {
                from_ns: 0,
                base_ns: 0,
                speed: Speed::ONE,
            },
            SegmentPiece {
                from_ns: NEVER,
                base_ns: 0,
                speed: Speed::ZERO,
            },
            SegmentPiece {
                from_ns: NEVER,
                base_ns: 0,
                speed: Speed::ZERO,
            },
        ],
    };

    /// Returns segment time at real time `now_ns`, in nanoseconds.
    #[inline(always)]
    #[must_use]
    pub const fn at(&self, now_ns: u64) -> u64 {
        let [first, second, third] = &self.pieces;
        let piece = if third.from_ns <= now_ns {
            third
        } else if second.from_ns <= now_ns {
            second
        } else {
            first
        };
        piece
            .base_ns
            .wrapping_add(piece.speed.advance(now_ns.saturating_sub(piece.from_ns)))
    }
}
