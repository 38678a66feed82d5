//! The keyed bijection that scatters source keys over the sets of a crowd table.
//!
//! A bijection, not a hash: set and tag together *are* the address, so no two sources ever share a
//! word, and the agent can list addresses from words. The key is secret and lives as long as the
//! table ([`crate::abi::config::PermKey`]). Two multiply-xorshift rounds; not a cipher: it keeps
//! an outsider from aiming at a set, not somebody who can read the map.

use crate::abi::config::PermKey;

/// Permutes an IPv4 address. Inverse: [`unperm32`].
#[inline(always)]
#[must_use]
pub const fn perm32(key: &PermKey, address: u32) -> u32 {
    perm32_wide(key, address) as u32
}

/// [`perm32`] in the low half of a word; the high half is of no meaning. For a machine whose registers
/// have 64 bits only, and which would clear that half again and again.
#[inline(always)]
#[must_use]
pub const fn perm32_wide(key: &PermKey, address: u32) -> u64 {
    let mut x = (address as u64 ^ key.xor[0]).wrapping_mul(key.mul[0]);
    x ^= (x >> 15) & 0x1_ffff;
    x = (x ^ key.xor[1]).wrapping_mul(key.mul[1]);
    x ^ ((x >> 16) & 0xffff)
}

/// Undoes [`perm32`]. Host only: multiplicative inverses are computed on each call.
#[must_use]
pub const fn unperm32(key: &PermKey, permuted: u32) -> u32 {
    let mut x = permuted ^ (permuted >> 16);
    x = x.wrapping_mul(inverse(key.mul[1]) as u32) ^ key.xor[1] as u32;
    x ^= (x >> 15) ^ (x >> 30);
    x.wrapping_mul(inverse(key.mul[0]) as u32) ^ key.xor[0] as u32
}

/// Permutes a 64-bit source key. Inverse: [`unperm64`].
#[inline(always)]
#[must_use]
pub const fn perm64(key: &PermKey, source: u64) -> u64 {
    let mut x = (source ^ key.xor[0]).wrapping_mul(key.mul[0]);
    x ^= x >> 32;
    x = (x ^ key.xor[1]).wrapping_mul(key.mul[1]);
    x ^ (x >> 32)
}

/// Undoes [`perm64`]. Host only.
#[must_use]
pub const fn unperm64(key: &PermKey, permuted: u64) -> u64 {
    let mut x = permuted ^ (permuted >> 32);
    x = x.wrapping_mul(inverse(key.mul[1])) ^ key.xor[1];
    x ^= x >> 32;
    x.wrapping_mul(inverse(key.mul[0])) ^ key.xor[0]
}

impl PermKey {
    /// Builds a key from 32 random bytes' worth of words; multipliers are made odd, in both halves
    /// usable as 32-bit multipliers.
    #[must_use]
    pub const fn from_random(words: [u64; 4]) -> Self {
        let [first, second, third, fourth] = words;
        Self {
            xor: [first, second],
            mul: [third | 1, fourth | 1],
        }
    }
}

/// Multiplicative inverse of an odd number modulo 2^64 (Newton's iteration; its low 32 bits are
/// the inverse modulo 2^32).
const fn inverse(odd: u64) -> u64 {
    let mut x = odd; // correct to 3 bits
    let mut round = 0;
    while round < 5 {
        x = x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x)));
        round += 1;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PermKey = PermKey::from_random([
        0x243f_6a88_85a3_08d3,
        0x1319_8a2e_0370_7344,
        0xa409_3822_299f_31d0,
        0x082e_fa98_ec4e_6c89,
    ]);

    #[test]
    fn permutations_are_undone() {
        let mut x = 1_u64;
        for _ in 0..200_000 {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let address = (x >> 32) as u32;
            assert_eq!(unperm32(&KEY, perm32(&KEY, address)), address);
            assert_eq!(unperm64(&KEY, perm64(&KEY, x)), x);
        }
        for edge in [0, 1, u32::MAX, 1 << 31] {
            assert_eq!(unperm32(&KEY, perm32(&KEY, edge)), edge);
        }
    }

    /// Neighbouring addresses, the kind an attacker has, spread over sets as random ones would:
    /// chi-square over 1024 sets stays near its expectation.
    #[test]
    fn neighbours_spread_over_sets() {
        for stride in [1_u32, 256, 65_536] {
            let mut sets = [0_u32; 1_024];
            for n in 0..65_536_u32 {
                let set =
                    perm32(&KEY, 0x0a00_0000_u32.wrapping_add(n.wrapping_mul(stride))) & 1_023;
                sets[set as usize] += 1;
            }
            let chi: f64 = sets
                .iter()
                .map(|&n| (f64::from(n) - 64.0).powi(2) / 64.0)
                .sum();
            assert!(
                chi < 1_500.0,
                "stride {stride}: chi-square {chi} over 1023 degrees"
            );
        }
    }
}
