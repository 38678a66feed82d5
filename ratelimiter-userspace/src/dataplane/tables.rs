//! How large the kernel's tables are made, and the crowd geometry that follows.
//!
//! Geometry is fixed when the tables are created. Pure arithmetic; no I/O.

use ratelimiter_common::abi::config::{Config, REGIONS, Region};
use ratelimiter_common::abi::crowd::WAYS;

use super::Error;
use crate::policy::plan::Budgets;

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

/// Sources never seen before that a region admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstSeen {
    /// As many as come.
    Off,
    /// A tenth of its words per second: N / 10 s.
    Tenth,
    /// So many per second, at most that tenth.
    PerSecond(u64),
}

impl FirstSeen {
    /// The budget of the settings: whether it is applied, and newcomers per second; 0 for the tenth.
    #[must_use]
    pub fn of(applied: bool, per_s: u64) -> Self {
        match (applied, per_s) {
            (false, _) => Self::Off,
            (true, 0) => Self::Tenth,
            (true, per_s) => Self::PerSecond(per_s),
        }
    }
}

/// Depth of the malformed budget: one second.
const MALFORMED_DEPTH_NS: u64 = 1_000_000_000;

impl Tables {
    /// The budgets of these tables: `malformed_per_s` frames that cannot be parsed, and newcomers.
    #[must_use]
    pub fn budgets(&self, malformed_per_s: u64, first_seen: FirstSeen) -> Budgets {
        let of = |regions: [Region; REGIONS]| {
            regions.map(|region| {
                let words = (u64::from(region.set_mask) + 1) * WAYS as u64;
                let tenth = words / FIRST_SEEN_FILL_S;
                match first_seen {
                    FirstSeen::Off => (region.draw, 0),
                    FirstSeen::Tenth => newcomers(tenth),
                    FirstSeen::PerSecond(per_s) => newcomers(per_s.min(tenth)),
                }
            })
        };
        Budgets {
            malformed_ns: MALFORMED_DEPTH_NS.checked_div(malformed_per_s).unwrap_or(0),
            malformed_burst_ns: MALFORMED_DEPTH_NS,
            first_seen: [of(self.regions4()), of(self.regions6())],
        }
    }
}

/// Newcomers drawn at a time and nanoseconds one costs, for a budget of `per_s`.
fn newcomers(per_s: u64) -> (u32, u64) {
    // A draw must never exceed what 1/8 of the 0.1 s deep budget holds, or a small region would be
    // handed out to the first CPU that asks.
    let draw = u32::try_from(per_s / 80).unwrap_or(MAX_DRAW);
    (draw.clamp(1, MAX_DRAW), 1_000_000_000 / per_s.max(1))
}

/// Writes budgets into the scalars; geometry stays.
pub(super) fn set_budgets(config: &mut Config, budgets: &Budgets) {
    config.malformed_ns = budgets.malformed_ns;
    config.malformed_burst_ns = budgets.malformed_burst_ns;
    let [four, six] = budgets.first_seen;
    let regions = config.regions4.iter_mut().chain(&mut config.regions6);
    for (region, (draw, first_seen_ns)) in regions.zip(four.into_iter().chain(six)) {
        region.draw = draw;
        region.first_seen_ns = first_seen_ns;
    }
}

/// Reads the budgets from the scalars.
#[must_use]
pub fn budgets_of(config: &Config) -> Budgets {
    let of =
        |regions: &[Region; REGIONS]| regions.map(|region| (region.draw, region.first_seen_ns));
    Budgets {
        malformed_ns: config.malformed_ns,
        malformed_burst_ns: config.malformed_burst_ns,
        first_seen: [of(&config.regions4), of(&config.regions6)],
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
    let (draw, first_seen_ns) = newcomers(u64::from(words) / FIRST_SEEN_FILL_S);
    Region {
        base_set,
        set_mask: sets - 1,
        set_bits: sets.trailing_zeros(),
        draw,
        first_seen_ns,
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
    fn budgets_are_bounded_by_a_tenth_of_each_region_and_can_be_switched_off() {
        let tables = Tables::default();
        let as_made = tables.budgets(100, FirstSeen::Tenth);
        assert_eq!(as_made.malformed_ns, 10_000_000);
        for (regions, made) in [
            (tables.regions4(), as_made.first_seen[0]),
            (tables.regions6(), as_made.first_seen[1]),
        ] {
            assert_eq!(
                made,
                regions.map(|region| (region.draw, region.first_seen_ns))
            );
        }
        let slower = tables.budgets(0, FirstSeen::PerSecond(1_000));
        assert_eq!(slower.malformed_ns, 0, "none is admitted");
        assert_eq!(slower.first_seen[0][0], (12, 1_000_000));
        let faster = tables.budgets(1, FirstSeen::PerSecond(u64::MAX));
        assert_eq!(faster.first_seen, as_made.first_seen);
        let off = tables.budgets(1, FirstSeen::Off);
        assert!(off.first_seen.as_flattened().iter().all(|(_, ns)| *ns == 0));
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
