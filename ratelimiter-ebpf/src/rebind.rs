//! A tracked source that falls under another policy than it remembers: resolved anew, and its debt
//! converted, once, by the CPU that wins the binding.

use ratelimiter_common::abi::config::ZONES as ZONE_COUNT;
use ratelimiter_common::abi::counters::{CpuState, UnitCache};
use ratelimiter_common::abi::policy::action;
use ratelimiter_common::abi::tracked::{
    ALLOWED, BLOCKED, CROWD, LIMITED, MOVING, SLOT_MASK, TAT_BITS, Tracked, binding,
};
use ratelimiter_common::crowd::debt;

use crate::atomic::{self, each_unit, fence};
use crate::bucket::TRIES;
use crate::lookup;
use crate::maps::ZONES;
use crate::policy::{entry_at, place_of, resolve};
use crate::scratch::{self, UNIT_SLOTS, put};
use crate::tracked::{STATE_MASK, TAT_MASK, cell, clock_of, pack, read_clocks};

/// Resolves a tracked source anew and stores what was found; returns the binding in force.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rebind() -> u64 {
    let nothing = binding(0, CROWD, 0);
    let (Some(cpu), Some(config)) = (lookup::cpu(), lookup::config()) else {
        return nothing;
    };
    // SAFETY: live map values.
    unsafe {
        let key = (*scratch::arrival(cpu)).key;
        let Some(tracked) = lookup::tracked(scratch::of(cpu), key) else {
            return nothing;
        };
        let cell = &raw mut (*tracked).binding;
        let old = atomic::load(cell);
        let old_state = old as u32 & STATE_MASK;
        if old_state == MOVING || old_state == CROWD {
            return old;
        }
        let generation = (*config).prefix_generation;
        let meaning = resolve(1);
        // What ends by itself is looked up again by every packet until it has ended.
        let remembered = if meaning.ends() {
            generation.wrapping_sub(1)
        } else {
            generation
        };
        let old_slot = old as u32 & SLOT_MASK;
        let (slot, new_state) = match meaning.action() {
            action::ALLOW => (old_slot, ALLOWED),
            action::BLOCK => (old_slot, BLOCKED),
            // The client's one bucket judges, and this entry is not asked.
            action::SHARED => return binding(old_slot, CROWD, generation),
            action::TRACKED => (meaning.slot(), LIMITED),
            other => {
                let zone = if other == action::ZONE {
                    meaning.slot()
                } else {
                    0
                };
                let slot =
                    match lookup::element(&ZONES, scratch::of(cpu), zone & (ZONE_COUNT as u32 - 1))
                    {
                        Some(zone) => (*zone).slot,
                        None => old_slot,
                    };
                (slot, LIMITED)
            }
        };
        let new = binding(slot, new_state, remembered);
        if slot & SLOT_MASK == old_slot {
            return if old == new || atomic::swap_if(cell, old, new) {
                new
            } else {
                moving(old)
            };
        }
        let place = place_of(cpu, slot);
        let Some(policy) = entry_at(cpu, place) else {
            return binding(old_slot, CROWD, generation);
        };
        let tag = (*policy).tag;
        if !atomic::swap_if(cell, old, moving(old)) {
            return moving(old);
        }
        convert(cpu, tracked, place_of(cpu, old_slot), place, tag);
        atomic::store(cell, new);
        new
    }
}

const fn moving(old: u64) -> u64 {
    (old & !(STATE_MASK as u64)) | MOVING as u64
}

/// What the clock of a unit read in the policy a source comes from.
#[inline(always)]
unsafe fn before_of(cpu: *mut CpuState, unit: usize) -> *mut UnitCache {
    // SAFETY: as `clock_of`.
    unsafe { &raw mut (*scratch::of(cpu)).before[unit & (UNIT_SLOTS - 1)] }
}

/// Carries the debts of a source over from the policy at `from` to that at `to`, whose tag is
/// `tag`, in units.
#[inline(always)]
unsafe fn convert(cpu: *mut CpuState, tracked: *mut Tracked, from: u32, to: u32, tag: u32) {
    // SAFETY: as `charge_tracked`.
    unsafe {
        let had = read_clocks(from, 8);
        each_unit!('_unit, unit, {
            let (read, kept) = (clock_of(cpu, unit), before_of(cpu, unit));
            put(&raw mut (*kept).now, (*read).now);
            put(&raw mut (*kept).cap, (*read).cap);
            // The old clock's tag.
            put(&raw mut (*kept).base4, (*read).base4);
        });
        let has = read_clocks(to, 8);
        each_unit!('_unit, unit, {
            let cell = cell(tracked, unit);
            let (after, before) = (clock_of(cpu, unit), before_of(cpu, unit));
            let mut tries = 0;
            while tries < TRIES {
                tries += 1;
                let word = atomic::load(cell);
                let mut owed = (*after).burst;
                if had >> unit & 1 != 0 && word >> TAT_BITS == (*before).base4 as u64 {
                    let was = debt(word, (*before).now, (*before).cap, TAT_MASK);
                    if was < owed {
                        owed = was;
                    }
                }
                let next = if word == 0 || has >> unit & 1 == 0 {
                    0
                } else {
                    pack(tag, (*after).now.wrapping_add(owed))
                };
                if atomic::swap_if(cell, word, next) {
                    break;
                }
                fence();
            }
        });
    }
}
