//! Map look-ups whose keys lie in map memory.
//!
//! Without CAP_PERFMON the verifier puts a speculation barrier behind the first write to every
//! stack slot, and each costs as much as the whole parser. So the keys of look-ups, and whatever
//! else outlives one, lie in this CPU's [`Scratch`], and the first of all keys in read-only data.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::btf_maps::{Array, LpmTrie, LruHashMap};
use aya_ebpf::helpers::generated::{bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem};
use ratelimiter_common::abi::config::Config;
use ratelimiter_common::abi::counters::CpuState;
use ratelimiter_common::abi::tracked::{SourceKey, Tracked};

use crate::maps::{CONFIG, CPU, TRACKED};
use crate::scratch::Scratch;

/// The only key of maps with one element.
static ONLY: u32 = 0;

#[inline(always)]
unsafe fn raw<M, K, V>(map: &M, key: *const K) -> Option<*mut V> {
    let map: *const M = map;
    // SAFETY: the caller's key has the map's type and is alive.
    let found: *mut V = unsafe {
        let map: *mut c_void = map.cast_mut().cast();
        bpf_map_lookup_elem(map, key.cast()).cast()
    };
    if found.is_null() { None } else { Some(found) }
}

/// Returns `address`, worked out where it is needed: LLVM would work out once what many look-ups need,
/// and keep it on the stack.
#[inline(always)]
fn anew<T>(address: *const T) -> *const T {
    let mut address = address;
    // SAFETY: adds nothing to a register.
    unsafe { asm!("{address} += 0", address = inout(reg) address, options(nomem, nostack)) };
    address
}

/// What this CPU keeps.
#[inline(always)]
pub(crate) fn cpu() -> Option<*mut CpuState> {
    // SAFETY: the map's key is one word.
    unsafe { raw(&CPU, &raw const ONLY) }
}

/// The program's scalars.
#[inline(always)]
pub(crate) fn config() -> Option<*const Config> {
    // SAFETY: the map's key is one word.
    unsafe { raw::<_, _, Config>(&CONFIG, &raw const ONLY).map(|config| config.cast_const()) }
}

/// The only element of an array.
#[inline(always)]
pub(crate) fn only<T, const N: usize, const F: usize>(map: &Array<T, N, F>) -> Option<*mut T> {
    // SAFETY: the map's key is one word.
    unsafe { raw(map, &raw const ONLY) }
}

/// An element of an array.
///
/// # Safety
///
/// `scratch` is this CPU's.
#[inline(always)]
pub(crate) unsafe fn element<T, const N: usize, const F: usize>(
    map: &Array<T, N, F>,
    scratch: *mut Scratch,
    index: u32,
) -> Option<*mut T> {
    // SAFETY: the key lies in a map value.
    unsafe {
        (&raw mut (*scratch).index).write_volatile(index);
        raw(map, anew(&raw const (*scratch).index))
    }
}

/// A source with an entry of its own.
///
/// # Safety
///
/// `scratch` is this CPU's.
#[inline(always)]
pub(crate) unsafe fn tracked(scratch: *mut Scratch, source: SourceKey) -> Option<*mut Tracked> {
    let map: &LruHashMap<_, Tracked, _> = &TRACKED;
    // SAFETY: the key lies in a map value.
    unsafe {
        let key = &raw mut (*scratch).source;
        key.write_volatile(source);
        raw(map, key)
    }
}

/// The longest prefix of a trie that matches `key`: prefix length, then address.
///
/// # Safety
///
/// `key` lies in a map value and is as long as the trie's keys.
#[inline(always)]
pub(crate) unsafe fn longest<K, V, const N: usize, const F: usize>(
    map: &LpmTrie<K, V, N, F>,
    key: *const u32,
) -> Option<*mut V> {
    // SAFETY: as the caller promises.
    unsafe { raw(map, key) }
}

/// Inserts the fresh entry in the scratch as that of a source; whether it could.
///
/// # Safety
///
/// `scratch` is this CPU's.
#[inline(always)]
pub(crate) unsafe fn insert(scratch: *mut Scratch, source: SourceKey, flags: u64) -> bool {
    let map = &raw const TRACKED;
    // SAFETY: key and value lie in a map value.
    unsafe {
        let key = &raw mut (*scratch).source;
        key.write_volatile(source);
        let value = &raw const (*scratch).fresh;
        bpf_map_update_elem(map.cast_mut().cast(), key.cast(), value.cast(), flags) == 0
    }
}

/// Removes the entry of a source.
///
/// # Safety
///
/// `scratch` is this CPU's.
#[inline(always)]
pub(crate) unsafe fn remove(scratch: *mut Scratch, source: SourceKey) {
    let map = &raw const TRACKED;
    // SAFETY: the key lies in a map value.
    unsafe {
        let key = &raw mut (*scratch).source;
        key.write_volatile(source);
        bpf_map_delete_elem(map.cast_mut().cast(), key.cast());
    }
}
