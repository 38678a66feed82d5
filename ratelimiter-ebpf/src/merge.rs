//! Bucket changes the agent asks for, in place and by compare-and-swap: what `map_update` from
//! userspace cannot do without losing the kernel's own writes.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::XdpContext;
use ratelimiter_common::abi::config::{PROMOTED_WORDS, ZONES as ZONE_COUNT};
use ratelimiter_common::abi::counters::{CpuState, UnitCache, ZoneCache};
use ratelimiter_common::abi::merge::{BY_PREFIX, MAGIC, MAX_OPS, MergeHeader, MergeOp, op, result};
use ratelimiter_common::abi::tracked::{CROWD, LIMITED, SLOT_MASK, TAT_BITS, Tracked, binding};
use ratelimiter_common::crowd::debt;
use ratelimiter_common::parse::Packet;
use ratelimiter_common::perm::{perm32, perm64};
use ratelimiter_common::quota::KERNEL_UNITS;
use ratelimiter_common::source;

use crate::atomic::{self, each_unit, fence};
use crate::bucket::{TRIES, cost, state};
use crate::maps::PROMOTED;
use crate::policy::{self, entry_at, place_of};
use crate::scratch::{self, Arrival, UNIT_SLOTS, put};
use crate::tracked::{
    ONE_TO_ONE, STATE_MASK, TAT_MASK, cell, clock_of, pack, read_clocks, read_entry, scaled,
};
use crate::{crowd4, crowd6, inherit, lookup};

/// Runs a batch; false if the frame is none.
#[inline(always)]
pub(crate) fn merge(ctx: &XdpContext) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    let Some(cpu) = lookup::cpu() else {
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
                op::INHERIT => inherit::inherit(&raw mut copy),
                op::RAISE | op::CLAMP => change(&raw mut copy),
                _ => result::REFUSED,
            };
            (&raw mut (*place).result).write_unaligned(done);
            (&raw mut (*place).level).write_unaligned(copy.level);
        }
        at += size_of::<MergeOp>();
        n += 1;
        fence();
    }
    true
}

/// A tracked source's policy: its tag and the limited units, whose clocks are now in the scratch.
#[inline(always)]
pub(crate) unsafe fn bound(cpu: *mut CpuState, tracked: *mut Tracked) -> Option<(u32, u32)> {
    // SAFETY: live map values.
    unsafe {
        let slot = atomic::load(&raw const (*tracked).binding) as u32 & SLOT_MASK;
        let place = place_of(cpu, slot);
        let tag = (*entry_at(cpu, place)?).tag;
        Some((tag, read_entry(cpu, tracked, place) & 0xff))
    }
}

/// What a tracked word owes; `None` if it was written on another policy's clock.
#[inline(always)]
pub(crate) unsafe fn owed(word: u64, tag: u32, clock: *const UnitCache) -> Option<u64> {
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
    let Some(cpu) = lookup::cpu() else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack; units are bounded.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let Some(tracked) = lookup::tracked(scratch::of(cpu), op.key) else {
            return result::ABSENT;
        };
        let Some((tag, limited)) = bound(cpu, tracked) else {
            return result::REFUSED;
        };
        let unit = op.unit as usize;
        if unit >= KERNEL_UNITS || limited >> unit & 1 == 0 {
            return result::REFUSED;
        }
        let clock = clock_of(cpu, unit);
        let cell = cell(tracked, unit);
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
            fence();
        }
        result::CONTENDED
    }
}

/// Puts the packet a crowd operation stands for into the scratch: from the source of `key`, in
/// `zone`, costing nothing.
#[inline(always)]
pub(crate) unsafe fn arrive(cpu: *mut CpuState, op: &MergeOp, zone: u32) -> Option<*mut Arrival> {
    let config = lookup::config()?;
    // SAFETY: live map values.
    unsafe {
        let hash = if op.family == 4 {
            perm32(&(*config).perm, op.key as u32) as u64
        } else {
            perm64(&(*config).perm, op.key)
        };
        let arrival = scratch::arrival(cpu);
        put(&raw mut (*arrival).key, op.key);
        put(&raw mut (*arrival).hash, hash);
        put(
            &raw mut (*arrival).packet,
            Packet::from_parts(0, 0, op.family as u64),
        );
        put(
            &raw mut (*arrival).zone,
            zone as u64 & (ZONE_COUNT as u64 - 1),
        );
        for cost in &mut (*arrival).costs {
            put(cost, 0);
        }
        Some(arrival)
    }
}

/// The clock and geometry of a unit of a zone.
#[inline(always)]
pub(crate) unsafe fn zone_unit(zone: *const ZoneCache, unit: usize) -> *const UnitCache {
    // SAFETY: a live map value, and behind the units lies more of it.
    unsafe {
        let units: *const UnitCache = (&raw const (*zone).unit).cast();
        units.add(unit & (UNIT_SLOTS - 1))
    }
}

/// What the packet's source owes in a unit of its zone; `None` if it has no word there.
#[inline(always)]
pub(crate) unsafe fn crowd_debt(cpu: *mut CpuState, cache: *const UnitCache) -> Option<u64> {
    // SAFETY: live map values.
    unsafe {
        if Arrival::is_v4(scratch::arrival(cpu)) {
            let (_, word) = crowd4::find_own(cpu, cache)?;
            Some(crowd4::owed(cache, word))
        } else {
            let (_, word) = crowd6::find_own(cpu, cache)?;
            Some(crowd6::owed(cache, word))
        }
    }
}

/// Reset, read: one unit of a source of the crowd, whose zone is in `slot`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn change_crowd(op: *mut MergeOp) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack; units are bounded.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let Some(arrival) = arrive(cpu, op, op.slot) else {
            return result::REFUSED;
        };
        let zone = policy::zone_cache(cpu, (*arrival).zone);
        let unit = op.unit as usize;
        if unit >= KERNEL_UNITS || (*zone).units >> unit & 1 == 0 {
            return result::REFUSED;
        }
        let cache = zone_unit(zone, unit);
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let done = if Arrival::is_v4(arrival) {
                let Some((cell, word)) = crowd4::find_own(cpu, cache) else {
                    return result::ABSENT;
                };
                op.level = crowd4::owed(cache, word);
                op.op == op::READ || crowd4::set_debt(cpu, cache, cell, word, 0)
            } else {
                let Some((cell, word)) = crowd6::find_own(cpu, cache) else {
                    return result::ABSENT;
                };
                op.level = crowd6::owed(cache, word);
                op.op == op::READ || crowd6::lower_debt(cache, cell, word, 0)
            };
            if done {
                return result::DONE;
            }
            fence();
        }
        result::CONTENDED
    }
}

/// Inserts a tracked source that owes nothing, unless there is one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert(key: u64, slot: u32, generation: u32) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return result::REFUSED;
    };
    // SAFETY: this CPU's map value.
    unsafe {
        let fresh: *mut u64 = (&raw mut (*scratch::of(cpu)).fresh).cast();
        let mut word = 1;
        while word < size_of::<Tracked>() / 8 {
            put(fresh.add(word), 0);
            word += 1;
            fence();
        }
        put(fresh, binding(slot, LIMITED, generation));
        if lookup::insert(scratch::of(cpu), key, BPF_NOEXIST as u64) {
            result::DONE
        } else {
            result::REFUSED
        }
    }
}

/// Makes a source of the crowd tracked, its debt with it. The policy slot is in `slot`, the zone it
/// comes from in `unit`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn promote(op: *mut MergeOp) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let place = place_of(cpu, op.slot);
        let Some(policy) = entry_at(cpu, place) else {
            return result::REFUSED;
        };
        let tag = (*policy).tag;
        if arrive(cpu, op, op.unit).is_none() {
            return result::REFUSED;
        }
        let limited = read_clocks(place, 8) & 0xff;
        if insert(op.key, op.slot, op.generation) != result::DONE {
            return result::REFUSED;
        }
        // Twice: what is charged in the crowd until the bit is seen must not be forgiven.
        let mut round = 0;
        while round < 2 {
            if inherit::carry(op.key, limited, tag) != result::DONE {
                return result::REFUSED;
            }
            if round == 0 {
                let bit = source::promoted_bit(op.key);
                let word = (bit >> 6) & (PROMOTED_WORDS - 1);
                if let Some(word) = lookup::element(&PROMOTED, scratch::of(cpu), word) {
                    atomic::or(word, 1 << (bit & 63));
                }
            }
            round += 1;
            fence();
        }
        result::DONE
    }
}

/// Sends a tracked source back to the crowd, its debt with it, and deletes its entry. The zone it
/// goes to is in `slot`. Refused while it owes more than the burst, unless the prefixes say the zone.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn demote(op: *mut MergeOp) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let Some(tracked) = lookup::tracked(scratch::of(cpu), op.key) else {
            return result::ABSENT;
        };
        let Some((tag, limited)) = bound(cpu, tracked) else {
            return result::REFUSED;
        };
        let by_prefix = op.slot == BY_PREFIX;
        let zone = if by_prefix {
            inherit::zone_of(op.key, op.family)
        } else {
            op.slot
        };
        if zone >= ZONE_COUNT as u32 {
            return result::REFUSED;
        }
        let Some(arrival) = arrive(cpu, op, zone) else {
            return result::REFUSED;
        };
        each_unit!('unit, unit, {
            let clock = clock_of(cpu, unit);
            if limited >> unit & 1 == 0 {
                break 'unit;
            }
            let Some(owed) = owed(atomic::load(cell(tracked, unit)), tag, clock) else {
                return result::CONTENDED;
            };
            let burst = (*clock).burst;
            if owed > burst && !by_prefix {
                return result::REFUSED;
            }
            let owed = if owed > burst { burst } else { owed };
            put(&raw mut (*arrival).costs[unit & (UNIT_SLOTS - 1)], owed);
        });
        let old = atomic::load(&raw const (*tracked).binding);
        if old as u32 & STATE_MASK != LIMITED {
            return result::REFUSED;
        }
        let gone = (old & !(STATE_MASK as u64)) | CROWD as u64;
        if !atomic::swap_if(&raw mut (*tracked).binding, old, gone) {
            return result::CONTENDED;
        }
        if settle() != result::DONE {
            // Nowhere to put the debt: stay.
            atomic::store(&raw mut (*tracked).binding, old);
            return result::REFUSED;
        }
        lookup::remove(scratch::of(cpu), op.key);
        result::DONE
    }
}

/// Writes the debts in the packet's costs to the crowd: onto the source's own words, or in a victim's
/// place.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settle() -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return result::REFUSED;
    };
    // SAFETY: this CPU's map value.
    unsafe {
        let arrival = scratch::arrival(cpu);
        let v4 = Arrival::is_v4(arrival);
        let zone = policy::zone_cache(cpu, (*arrival).zone);
        each_unit!('unit, unit, {
            let mut owed = cost(cpu, unit as u32);
            let burst = (*zone_unit(zone, unit)).burst;
            if owed > burst {
                owed = burst;
            }
            if owed == 0 || (*zone).units >> unit & 1 == 0 {
                break 'unit;
            }
            let have = crowd_debt(cpu, zone_unit(zone, unit)).unwrap_or(0);
            if have >= owed {
                break 'unit;
            }
            put(&raw mut (*arrival).costs[unit & (UNIT_SLOTS - 1)], owed - have);
            let found = if v4 {
                crowd4::look4(unit as u32)
            } else {
                crowd6::look6(unit as u32)
            };
            let placed = found & state::FITS != 0
                && if v4 {
                    crowd4::commit4(unit as u32) != 0
                } else {
                    crowd6::commit6(unit as u32) != 0
                };
            if !placed {
                return result::REFUSED;
            }
        });
        result::DONE
    }
}

/// Sets a tracked source's cost scale, so that it spends at a part of its rate, and carries its
/// debts over.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scale(op: *mut MergeOp) -> u32 {
    let Some(cpu) = lookup::cpu() else {
        return result::REFUSED;
    };
    // SAFETY: what is not null is on the caller's stack.
    unsafe {
        let Some(op) = op.as_mut() else {
            return result::REFUSED;
        };
        let Some(tracked) = lookup::tracked(scratch::of(cpu), op.key) else {
            return result::ABSENT;
        };
        if op.level < ONE_TO_ONE || op.level > u32::MAX as u64 {
            return result::REFUSED;
        }
        let Some((tag, limited)) = bound(cpu, tracked) else {
            return result::REFUSED;
        };
        let had = (*tracked).cost_scale as u64;
        let old = if had < ONE_TO_ONE { ONE_TO_ONE } else { had };
        (&raw mut (*tracked).cost_scale).write_volatile(op.level as u32);
        each_unit!('unit, unit, {
            let cell = cell(tracked, unit);
            let clock = clock_of(cpu, unit);
            if limited >> unit & 1 == 0 {
                break 'unit;
            }
            let word = atomic::load(cell);
            let Some(owed) = owed(word, tag, clock) else {
                break 'unit;
            };
            if owed == 0 {
                break 'unit;
            }
            let whole = (owed / old).wrapping_mul(op.level);
            let part = (owed % old).wrapping_mul(op.level) / old;
            let tat = (*clock).now.wrapping_add(whole.wrapping_add(part));
            // A charge in between is repriced with the next one: at most one packet per CPU.
            atomic::swap_if(cell, word, pack(tag, tat));
        });
        result::DONE
    }
}
