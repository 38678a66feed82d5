//! How large the kernel's tables are made, and the crowd geometry that follows.
//!
//! Geometry is fixed when the tables are created. Pure arithmetic; no I/O.

use ratelimiter_common::abi::config::{REGIONS, Region};
use ratelimiter_common::abi::crowd::WAYS;

use super::Error;

/// Sizes of the kernel's tables, chosen at creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// IPv4 crowd words of region 0, a power of two, 512..=2^28. 8 bytes each.
    pub crowd4_words: u32,
    /// IPv6 crowd ways of region 0, a power of two, 512..=2^27. 16 bytes each.
    pub crowd6_ways: u32,
    /// Words (and ways) of each of the 15 further regions, a power of two, 512..=2^24.
    pub region_words: u32,
    /// Entries of the tracked table, 64..=2^24. At most 75 % of them are ever used.
    pub tracked: u32,
    /// Policy slots, 16..=2^20. 524 bytes each, spare entries included.
    pub policies: u32,
    /// Allow, block and client prefixes per IP version, 16..=2^24. Memory is taken as they come.
    pub prefixes: u32,
    /// Bytes of the event ring buffer, a power of two, a multiple of the page size.
    pub events_bytes: u32,
    /// Length of the prefix that is one IPv6 source, 32..=64.
    pub v6_prefix_len: u8,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            crowd4_words: 1 << 20,
            crowd6_ways: 1 << 19,
            region_words: 1 << 16,
            tracked: 262_144,
            policies: 32_768,
            prefixes: 1 << 21,
            events_bytes: 1 << 18,
            v6_prefix_len: 64,
        }
    }
}

/// Seconds in which the first-seen budget would fill a region once: B = N / 10 s.
pub const FIRST_SEEN_FILL_S: u64 = 10;
/// Most newcomers a CPU draws from a first-seen budget at a time.
pub const MAX_DRAW: u32 = 64;

impl Tables {
    /// Small tables for tests: they load in milliseconds.
    #[must_use]
    pub fn small() -> Self {
        Self {
            crowd4_words: 1 << 16,
            crowd6_ways: 1 << 14,
            region_words: 1 << 12,
            tracked: 4_096,
            policies: 256,
            prefixes: 1 << 16,
            events_bytes: 1 << 16,
            v6_prefix_len: 64,
        }
    }

    /// Checks every bound and names the field, its value and the bound.
    pub fn validate(&self) -> Result<(), Error> {
        let power = |name, value: u32, low: u32, high: u32| {
            if value.is_power_of_two() && (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::Tables(format!(
                    "`{name}` is {value}; it must be a power of two between {low} and {high}"
                )))
            }
        };
        let range = |name, value: u32, low: u32, high: u32| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::Tables(format!(
                    "`{name}` is {value}; it must be between {low} and {high}"
                )))
            }
        };
        power("crowd4_words", self.crowd4_words, 512, 1 << 28)?;
        power("crowd6_ways", self.crowd6_ways, 512, 1 << 27)?;
        power("region_words", self.region_words, 512, 1 << 24)?;
        range("tracked", self.tracked, 64, 1 << 24)?;
        range("policies", self.policies, 16, 1 << 20)?;
        range("prefixes", self.prefixes, 16, 1 << 24)?;
        range("v6_prefix_len", u32::from(self.v6_prefix_len), 32, 64)?;
        power("events_bytes", self.events_bytes, 4_096, 1 << 28)
    }

    /// Entries of `POLICIES`: one per slot, the empty entry 0, and one in eight more (at least 64)
    /// for entries that were left less than a second ago.
    #[must_use]
    pub fn policy_entries(&self) -> u32 {
        self.policies + 1 + (self.policies / 8).max(64)
    }

    /// Most tracked sources ever inserted: 75 % of the table, so that the kernel never evicts.
    #[must_use]
    pub fn tracked_limit(&self) -> u32 {
        self.tracked / 4 * 3
    }

    /// Sets of `CROWD4`: entries of the array.
    #[must_use]
    pub fn sets4(&self) -> u32 {
        (self.crowd4_words + (REGIONS as u32 - 1) * self.region_words) / WAYS as u32
    }

    /// Sets of `CROWD6`.
    #[must_use]
    pub fn sets6(&self) -> u32 {
        (self.crowd6_ways + (REGIONS as u32 - 1) * self.region_words) / WAYS as u32
    }

    /// Geometry and first-seen budgets of `CROWD4`.
    #[must_use]
    pub fn regions4(&self) -> [Region; REGIONS] {
        regions(self.crowd4_words, self.region_words)
    }

    /// Geometry and first-seen budgets of `CROWD6`.
    #[must_use]
    pub fn regions6(&self) -> [Region; REGIONS] {
        regions(self.crowd6_ways, self.region_words)
    }
}

fn regions(first: u32, further: u32) -> [Region; REGIONS] {
    let mut base_set = 0;
    std::array::from_fn(|number| {
        let words = if number == 0 { first } else { further };
        let region = region(base_set, words);
        base_set += region.set_mask + 1;
        region
    })
}

/// Returns the region of `words` words (a power of two) that begins at `base_set`.
fn region(base_set: u32, words: u32) -> Region {
    let sets = words / WAYS as u32;
    let budget_per_s = u64::from(words) / FIRST_SEEN_FILL_S;
    Region {
        base_set,
        set_mask: sets - 1,
        set_bits: sets.trailing_zeros(),
        // A draw must never exceed what 1/8 of the 0.1 s deep budget holds, or a small region
        // would be handed out to the first CPU that asks.
        draw: u32::try_from(budget_per_s / 80)
            .unwrap_or(MAX_DRAW)
            .clamp(1, MAX_DRAW),
        first_seen_ns: 1_000_000_000 / budget_per_s.max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_lie_end_to_end() {
        for tables in [Tables::default(), Tables::small()] {
            tables.validate().unwrap();
            for (regions, sets) in [
                (tables.regions4(), tables.sets4()),
                (tables.regions6(), tables.sets6()),
            ] {
                let mut next = 0;
                for region in regions {
                    assert_eq!(region.base_set, next);
                    assert_eq!(1 << region.set_bits, region.set_mask + 1);
                    assert!((1..=MAX_DRAW).contains(&region.draw));
                    next += region.set_mask + 1;
                }
                assert_eq!(next, sets);
            }
        }
    }

    #[test]
    fn budget_fills_a_region_in_ten_seconds() {
        let region = Tables::default().regions4()[0];
        // 104 857 per second: 9 536 ns each, rounded down.
        assert_eq!(region.first_seen_ns, 9_536);
        assert_eq!(region.draw, MAX_DRAW);
    }

    #[test]
    fn refuses_sizes_with_field_value_and_bound() {
        let tables = Tables {
            crowd4_words: 1_000_000,
            ..Tables::default()
        };
        assert_eq!(
            tables.validate().unwrap_err().to_string(),
            "`crowd4_words` is 1000000; it must be a power of two between 512 and 268435456"
        );
        let tables = Tables {
            policies: 1,
            ..Tables::default()
        };
        assert!(
            tables
                .validate()
                .unwrap_err()
                .to_string()
                .contains("between 16 and")
        );
    }
}
