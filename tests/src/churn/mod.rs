//! The IPv4 crowd on simulated time: the kernel program's own arithmetic (the functions of
//! `ratelimiter_common` it is compiled from), with loads and compare-and-swaps replaced by plain
//! memory and the clock by an argument.
//!
//! What is written here and not shared is the order of the steps in the program's `crowd4`,
//! `first_seen` and `clock`. The test `simulation_and_kernel_agree_packet_by_packet` compares both,
//! verdict by verdict and word by word.
pub mod scene;

use ratelimiter_common::abi::config::PermKey;
use ratelimiter_common::abi::crowd::{CAP_SLACK_NS, FIRST_SEEN_DEPTH_NS, MAX_COST, WAYS};
use ratelimiter_common::crowd::{
    Place, Plain, debt, home4, pack4, search4, tag4, tat_bits4, tat_mask,
};
use ratelimiter_common::gcra::{Decision, decide};
use ratelimiter_common::perm::perm32;
use ratelimiter_common::vclock::Piece;

/// Nanoseconds of a jiffy at 250 Hz.
const JIFFY_NS: u64 = 4_000_000;
/// As in the program's `clock`.
const PACKETS_PER_READING: u32 = 64;
/// As in the program's `clock`.
const REREADS_PER_JIFFY: u32 = 64;
/// One packet, in fractions of a unit.
pub const ONE: u64 = 256;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Charged and passed.
    Conforming,
    /// Over the packet quota.
    Over,
    /// A newcomer beyond the first-seen budget.
    FirstSeen,
}

/// What a table is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The bijection's key.
    pub key: PermKey,
    /// log2 of the sets; eight words each.
    pub bits: u32,
    /// The packet quota, as a clock in one piece.
    pub piece: Piece,
    /// Nanoseconds a newcomer costs; 0 switches the first-seen budget off.
    pub first_seen_ns: u64,
    /// Newcomers drawn from the budget at a time.
    pub draw: u32,
    /// CPUs.
    pub cpus: usize,
    /// Whether a newcomer inherits what its victim owed. The program always does so; without it the
    /// scenes must show a gain, else they prove nothing.
    pub inherits: bool,
}

/// What one CPU knows.
#[derive(Clone, Debug, Default)]
struct Cpu {
    now_ns: u64,
    jiffies: u64,
    readings_left: u32,
    rereads_left: u32,
    newcomers: u32,
    now: u64,
}

/// One region of the crowd.
#[derive(Clone, Debug)]
pub struct Crowd {
    shape: Shape,
    cap: u64,
    sets: Vec<[u64; WAYS]>,
    budget_tat_ns: u64,
    cpus: Vec<Cpu>,
}

impl Crowd {
    /// An empty table.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            cap: shape.piece.debt_cap(CAP_SLACK_NS) + MAX_COST,
            sets: vec![[0; WAYS]; 1 << shape.bits],
            budget_tat_ns: 0,
            cpus: vec![Cpu::default(); shape.cpus],
        }
    }

    /// The table's words, set by set.
    #[must_use]
    pub fn sets(&self) -> &[[u64; WAYS]] {
        &self.sets
    }

    /// Judges one packet of `source` on a CPU at `real_ns`, which never runs backwards.
    pub fn packet(&mut self, cpu: usize, source: u32, real_ns: u64) -> Judged {
        self.tick(cpu, real_ns);
        let hash = perm32(&self.shape.key, source);
        let judged = self.charge(cpu, hash);
        if judged != Judged::Conforming && self.reread(cpu, real_ns) {
            return self.charge(cpu, hash);
        }
        judged
    }

    /// The program's `clock::tick`.
    fn tick(&mut self, cpu: usize, real_ns: u64) {
        let jiffies = real_ns / JIFFY_NS;
        let cpu = &mut self.cpus[cpu];
        if cpu.jiffies != jiffies || cpu.readings_left == 0 {
            if cpu.jiffies != jiffies {
                cpu.rereads_left = REREADS_PER_JIFFY;
            }
            cpu.jiffies = jiffies;
            cpu.readings_left = PACKETS_PER_READING - 1;
            cpu.now_ns = real_ns;
            cpu.now = self.shape.piece.at(real_ns);
        } else {
            cpu.readings_left -= 1;
        }
    }

    /// The program's `clock::reread`.
    fn reread(&mut self, cpu: usize, real_ns: u64) -> bool {
        let cpu = &mut self.cpus[cpu];
        if cpu.rereads_left == 0 || cpu.readings_left == PACKETS_PER_READING - 1 {
            return false;
        }
        cpu.rereads_left -= 1;
        cpu.readings_left = PACKETS_PER_READING - 1;
        cpu.now_ns = real_ns;
        cpu.now = self.shape.piece.at(real_ns);
        true
    }

    /// The program's `crowd4::find` and `commit`, with nobody in between.
    fn charge(&mut self, cpu: usize, hash: u32) -> Judged {
        let Shape { bits, piece, .. } = self.shape;
        let now = self.cpus[cpu].now;
        let index = (hash & ((1 << bits) - 1)) as usize;
        let tag = tag4(hash, bits);
        let home = home4(hash);
        let words = &self.sets[index];
        let place = if words[home] >> tat_bits4(bits) == tag {
            Place {
                way: home,
                matched: true,
            }
        } else {
            search4::<Plain>(words, hash, now, self.cap, bits)
        };
        let owed = if place.matched || self.shape.inherits {
            debt(words[place.way], now, self.cap, tat_mask(bits))
        } else {
            0
        };
        let after = owed + ONE;
        if after > piece.burst {
            if place.matched && owed > piece.burst {
                self.sets[index][place.way] = pack4(tag, now.wrapping_add(piece.burst), bits);
            }
            return Judged::Over;
        }
        if !place.matched && !self.admit(cpu) {
            return Judged::FirstSeen;
        }
        self.sets[index][place.way] = pack4(tag, now.wrapping_add(after), bits);
        Judged::Conforming
    }

    /// The program's `first_seen::admit_newcomer`.
    fn admit(&mut self, cpu: usize) -> bool {
        let cpu = &mut self.cpus[cpu];
        if cpu.newcomers != 0 {
            cpu.newcomers -= 1;
            return true;
        }
        let draw = self.shape.draw.max(1);
        if self.shape.first_seen_ns != 0 {
            let cost_ns = self.shape.first_seen_ns * u64::from(draw);
            let depth_ns = cost_ns.max(FIRST_SEEN_DEPTH_NS);
            let Decision::Conforming { tat } =
                decide(self.budget_tat_ns, cpu.now_ns, cost_ns, depth_ns)
            else {
                return false;
            };
            self.budget_tat_ns = tat;
        }
        cpu.newcomers = draw - 1;
        true
    }
}
