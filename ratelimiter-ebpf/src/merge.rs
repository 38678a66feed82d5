//! Bucket changes the agent asks for, in place and by compare-and-swap: what `map_update` from
//! userspace cannot do without losing the kernel's own writes.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::XdpContext;
use ratelimiter_common::abi::config::{PROMOTED_WORDS, ZONES as ZONE_COUNT};
use ratelimiter_common::abi::counters::{CpuState, UnitCache};
use ratelimiter_common::abi::merge::{MAGIC, MAX_OPS, MergeHeader, MergeOp, op, result};
use ratelimiter_common::abi::policy::PolicyEntry;
use ratelimiter_common::abi::tracked::{CROWD, LIMITED, SLOT_MASK, TAT_BITS, Tracked, binding};
use ratelimiter_common::crowd::debt;
use ratelimiter_common::perm::{perm32, perm64};
use ratelimiter_common::quota::KERNEL_UNITS;
use ratelimiter_common::source;

use crate::arrival::Arrival;
use crate::atomic::{self, every_unit};
use crate::bucket::{Look, TRIES, state};
use crate::maps::{CONFIG, CPU, PROMOTED, TRACKED};
use crate::policy::{self, entry};
use crate::tracked::{ONE_TO_ONE, STATE_MASK, TAT_MASK, pack, read_clocks, read_entry, scaled};
use crate::{crowd4, crowd6};

/// Runs a batch; false if the frame is none.
#[inline(always)]
pub(crate) fn merge(ctx: &XdpContext) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return false;
    };
    if start + size_of::<MergeHeader>() > end {
        return false;
    }
    let header = start as *const MergeHeader;
    // SAFETY: compared with the end above; `cpu` is this CPU's map value.
    let count = unsafe {
        if (&raw const (*header).magic).read_unaligned() != MAGIC {
            return false;
        }
        (*cpu).now_ns = bpf_ktime_get_ns();
        (&raw const (*header).count).read_unaligned()
    };
    let mut at = start + size_of::<MergeHeader>();
    let mut n = 0;
    while n < MAX_OPS as u32 {
        if n >= count || at + size_of::<MergeOp>() > end {
            break;
        }
        let place = at as *mut MergeOp;
        // SAFETY: compared with the end above.
        unsafe {
            let mut copy = place.read_unaligned();
            let done = match copy.op {
                op::PROMOTE => promote(&raw mut copy),
                op::DEMOTE => demote(&raw mut copy),
                op::SCALE => scale(&raw mut copy),
                op::RESET | op::READ => match change(&raw mut copy) {
                    result::ABSENT => change_crowd(&raw mut copy),
                    done => done,
                },
                op::RAISE | op::CLAMP => change(&raw mut copy),
                _ => result::REFUSED,
            };
            (&raw mut (*place).result).write_unaligned(done);
            (&raw mut (*place).level).write_unaligned(copy.level);
        }
        at += size_of::<MergeOp>();
        n += 1;
    }
    true
}

/// A tracked source's policy and where its clocks were worked out.
#[inline(always)]
unsafe fn bound(
    cpu: *mut CpuState,
    tracked: *mut Tracked,
) -> Option<(*const PolicyEntry, u32, *mut UnitCache)> {
    // SAFETY: live map values.
    unsafe {
        let bound = atomic::load(&raw const (*tracked).binding);
        let policy = entry(bound as u32 & SLOT_MASK)?;
        let clocks: *mut UnitCache = (&raw mut (*cpu).scratch[0]).cast();
        let (limited, _) = read_entry(cpu, tracked, policy, clocks);
        Some((policy, limited, clocks))
    }
}

/// What a tracked word owes; `None` if it was written on another policy's clock.
#[inline(always)]
unsafe fn owed(word: u64, tag: u32, clock: *const UnitCache) -> Option<u64> {
    if word == 0 {
        return Some(0);
    }
    if word >> TAT_BITS != tag as u64 {
        return None;
    }
    // SAFETY: `clock` is a live map value.
    Some(unsafe { debt(word, (*clock).now, (*clock).cap, TAT_MASK) })
}

/// `value * 65536 / scale`, rounded down.
#[inline(always)]
const fn unscaled(value: u64, scale: u64) -> u64 {
    match (value << 8).checked_div(scale >> 8) {
        Some(value) => value,
        None => 0,
    }
}

/// Raise, clamp, reset, read: one unit of a tracked source.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn change(op: *mut MergeOp) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack; units are bounded.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let Some(tracked) = TRACKED.get_ptr_mut(op.key) else {
            return result::ABSENT;
        };
        let Some((policy, limited, clocks)) = bound(cpu, tracked) else {
            return result::REFUSED;
        };
        let unit = op.unit as usize;
        if unit >= KERNEL_UNITS || limited >> unit & 1 == 0 {
            return result::REFUSED;
        }
        let clock = clocks.add(unit);
        let cell = (&raw mut (*tracked).tats).cast::<u64>().add(unit);
        let tag = (*policy).tag;
        let configured = (*tracked).cost_scale as u64;
        let part = if configured < ONE_TO_ONE {
            ONE_TO_ONE
        } else {
            configured
        };
        let level = scaled(op.level, part);
        // A level beyond the cap would read as idle.
        let level = if level < (*clock).cap {
            level
        } else {
            (*clock).cap
        };
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let word = atomic::load(cell);
            let Some(owed) = owed(word, tag, clock) else {
                return result::CONTENDED;
            };
            let next = match op.op {
                op::RAISE if level > owed => level,
                op::CLAMP if level < owed => level,
                op::RESET => 0,
                _ => {
                    op.level = unscaled(owed, part);
                    return result::DONE;
                }
            };
            if atomic::swap_if(cell, word, pack(tag, (*clock).now.wrapping_add(next))) {
                op.level = unscaled(next, part);
                return result::DONE;
            }
        }
        result::CONTENDED
    }
}

/// The arrival a crowd operation stands for: the source of `key`, in `zone`.
#[inline(always)]
unsafe fn arrival_of(op: &MergeOp, zone: u32) -> Option<Arrival> {
    let config = CONFIG.get_ptr(0)?;
    // SAFETY: a live map value.
    let hash = unsafe {
        if op.family == 4 {
            perm32(&(*config).perm, op.key as u32) as u64
        } else {
            perm64(&(*config).perm, op.key)
        }
    };
    Some(Arrival {
        key: op.key,
        high: 0,
        low: 0,
        hash,
        family: op.family as u64,
        zone: zone as u64 & (ZONE_COUNT as u64 - 1),
        costs: [0; KERNEL_UNITS],
    })
}

/// What a source owes in a unit of its zone; `None` if it has no word there.
#[inline(always)]
unsafe fn crowd_debt(cache: *const UnitCache, arrival: &Arrival) -> Option<u64> {
    // SAFETY: `cache` is a live map value.
    unsafe {
        if arrival.family == 4 {
            let (_, word) = crowd4::find_own(cache, arrival.hash as u32)?;
            Some(crowd4::owed(cache, word))
        } else {
            let (_, word) = crowd6::find_own(cache, arrival.key, arrival.hash)?;
            Some(crowd6::owed(cache, word))
        }
    }
}

/// Reset, read: one unit of a source of the crowd, whose zone is in `slot`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn change_crowd(op: *mut MergeOp) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack; units are bounded.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let Some(arrival) = arrival_of(op, op.slot) else {
            return result::REFUSED;
        };
        let zone = policy::zone_cache(cpu, arrival.zone);
        let unit = op.unit as usize;
        if unit >= KERNEL_UNITS || (*zone).units >> unit & 1 == 0 {
            return result::REFUSED;
        }
        let cache: *const UnitCache = (&raw const (*zone).unit).cast::<UnitCache>().add(unit);
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let done = if arrival.family == 4 {
                let Some((cell, word)) = crowd4::find_own(cache, arrival.hash as u32) else {
                    return result::ABSENT;
                };
                op.level = crowd4::owed(cache, word);
                op.op == op::READ || crowd4::set_debt(cache, arrival.hash as u32, cell, word, 0)
            } else {
                let Some((cell, word)) = crowd6::find_own(cache, arrival.key, arrival.hash) else {
                    return result::ABSENT;
                };
                op.level = crowd6::owed(cache, word);
                op.op == op::READ || crowd6::lower_debt(cache, cell, word, 0)
            };
            if done {
                return result::DONE;
            }
        }
        result::CONTENDED
    }
}

/// Inserts a tracked source that owes nothing, unless there is one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert(key: u64, slot: u32, generation: u32) -> u32 {
    let fresh = Tracked {
        binding: binding(slot, LIMITED, generation),
        ..Tracked::default()
    };
    match TRACKED.insert(key, fresh, BPF_NOEXIST as u64) {
        Ok(()) => result::DONE,
        Err(_) => result::REFUSED,
    }
}

/// Makes a source of the crowd tracked, its debt with it. The policy slot is in `slot`, the zone it
/// comes from in `unit`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn promote(op: *mut MergeOp) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let Some(policy) = entry(op.slot) else {
            return result::REFUSED;
        };
        let Some(arrival) = arrival_of(op, op.unit) else {
            return result::REFUSED;
        };
        let zone = policy::zone_cache(cpu, arrival.zone);
        let clocks: *mut UnitCache = (&raw mut (*cpu).scratch[0]).cast();
        let (limited, _) = read_clocks(cpu, policy, 8, clocks);
        if insert(op.key, op.slot, op.generation) != result::DONE {
            return result::REFUSED;
        }
        let Some(tracked) = TRACKED.get_ptr_mut(op.key) else {
            return result::REFUSED;
        };
        // Twice: what is charged in the crowd until the bit is seen must not be forgiven.
        let mut round = 0;
        while round < 2 {
            let mut next = 0;
            while next < every_unit() {
                let unit = next;
                next += 1;
                if limited >> unit & 1 == 0 || (*zone).units >> unit & 1 == 0 {
                    continue;
                }
                let cache: *const UnitCache =
                    (&raw const (*zone).unit).cast::<UnitCache>().add(unit);
                let Some(was) = crowd_debt(cache, &arrival) else {
                    continue;
                };
                let clock = clocks.add(unit);
                let cell = (&raw mut (*tracked).tats).cast::<u64>().add(unit);
                let mut tries = 0;
                while tries < TRIES {
                    tries += 1;
                    let word = atomic::load(cell);
                    let tat = pack((*policy).tag, (*clock).now.wrapping_add(was));
                    let more = match owed(word, (*policy).tag, clock) {
                        Some(owed) => was > owed,
                        None => true,
                    };
                    if !more || atomic::swap_if(cell, word, tat) {
                        break;
                    }
                }
            }
            if round == 0 {
                let bit = source::promoted_bit(op.key);
                if let Some(word) = PROMOTED.get_ptr_mut((bit >> 6) & (PROMOTED_WORDS - 1)) {
                    atomic::or(word, 1 << (bit & 63));
                }
            }
            round += 1;
        }
        result::DONE
    }
}

/// Sends a tracked source back to the crowd, its debt with it, and deletes its entry. The zone it
/// goes to is in `slot`. Refused while it owes more than the burst.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn demote(op: *mut MergeOp) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let Some(tracked) = TRACKED.get_ptr_mut(op.key) else {
            return result::ABSENT;
        };
        let Some((policy, limited, clocks)) = bound(cpu, tracked) else {
            return result::REFUSED;
        };
        let Some(mut arrival) = arrival_of(op, op.slot) else {
            return result::REFUSED;
        };
        let mut next = 0;
        while next < every_unit() {
            let unit = next;
            next += 1;
            let cell = (&raw const (*tracked).tats).cast::<u64>().add(unit);
            let clock = clocks.add(unit);
            if limited >> unit & 1 == 0 {
                continue;
            }
            let Some(owed) = owed(atomic::load(cell), (*policy).tag, clock) else {
                return result::CONTENDED;
            };
            if owed > (*clock).burst {
                return result::REFUSED;
            }
            arrival.costs.as_mut_ptr().add(unit).write(owed);
        }
        let old = atomic::load(&raw const (*tracked).binding);
        if old as u32 & STATE_MASK != LIMITED {
            return result::REFUSED;
        }
        let gone = (old & !(STATE_MASK as u64)) | CROWD as u64;
        if !atomic::swap_if(&raw mut (*tracked).binding, old, gone) {
            return result::CONTENDED;
        }
        if settle(&raw mut arrival) != result::DONE {
            // Nowhere to put the debt: stay.
            atomic::store(&raw mut (*tracked).binding, old);
            return result::REFUSED;
        }
        let _ = TRACKED.remove(op.key);
        result::DONE
    }
}

/// Writes the debts in `costs` to the crowd: onto the source's own words, or in a victim's place.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settle(arrival: *mut Arrival) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack.
    unsafe {
        let Some(arrival) = arrival.as_mut() else {
            return result::REFUSED;
        };
        let zone = policy::zone_cache(cpu, arrival.zone);
        let mut look = Look::default();
        let mut next = 0;
        while next < every_unit() {
            let unit = next;
            next += 1;
            let owed = *arrival.costs.as_ptr().add(unit);
            if owed == 0 || (*zone).units >> unit & 1 == 0 {
                continue;
            }
            let cache: *const UnitCache = (&raw const (*zone).unit).cast::<UnitCache>().add(unit);
            let have = crowd_debt(cache, arrival).unwrap_or(0);
            if have >= owed {
                continue;
            }
            arrival.costs.as_mut_ptr().add(unit).write(owed - have);
            let v4 = arrival.family == 4;
            let found = if v4 {
                crowd4::look4(arrival, unit as u32, &raw mut look)
            } else {
                crowd6::look6(arrival, unit as u32, &raw mut look)
            };
            let placed = found == state::FITS
                && if v4 {
                    crowd4::commit(&raw const look)
                } else {
                    crowd6::commit6(&raw const look, arrival.key) != 0
                };
            if !placed {
                return result::REFUSED;
            }
        }
        result::DONE
    }
}

/// Sets a tracked source's cost scale, so that it spends at a part of its rate, and carries its
/// debts over.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scale(op: *mut MergeOp) -> u32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let Some(tracked) = TRACKED.get_ptr_mut(op.key) else {
            return result::ABSENT;
        };
        if op.level < ONE_TO_ONE || op.level > u32::MAX as u64 {
            return result::REFUSED;
        }
        let Some((policy, limited, clocks)) = bound(cpu, tracked) else {
            return result::REFUSED;
        };
        let had = (*tracked).cost_scale as u64;
        let old = if had < ONE_TO_ONE { ONE_TO_ONE } else { had };
        (&raw mut (*tracked).cost_scale).write_volatile(op.level as u32);
        let mut next = 0;
        while next < every_unit() {
            let unit = next;
            next += 1;
            let cell = (&raw mut (*tracked).tats).cast::<u64>().add(unit);
            let clock = clocks.add(unit);
            if limited >> unit & 1 == 0 {
                continue;
            }
            let word = atomic::load(cell);
            let Some(owed) = owed(word, (*policy).tag, clock) else {
                continue;
            };
            if owed == 0 {
                continue;
            }
            let whole = (owed / old).wrapping_mul(op.level);
            let part = (owed % old).wrapping_mul(op.level) / old;
            let tat = (*clock).now.wrapping_add(whole.wrapping_add(part));
            // A charge in between is repriced with the next one: at most one packet per CPU.
            atomic::swap_if(cell, word, pack((*policy).tag, tat));
        }
        result::DONE
    }
}
