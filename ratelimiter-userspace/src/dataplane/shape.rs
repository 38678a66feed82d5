//! Whether pinned maps are the ones this agent would make. Pure: judged before anything is
//! touched, because a map of another shape reads as garbage or crashes its reader.

use std::collections::BTreeMap;
use std::fmt;

use super::sys::MapInfo;

/// What must agree before a pinned map is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) map_type: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

impl From<MapInfo> for Shape {
    fn from(info: MapInfo) -> Self {
        Self {
            map_type: info.map_type,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.flags,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match type_name(self.map_type) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "type {}", self.map_type)?,
        }
        write!(
            f,
            ", key {} B, value {} B, {} entries",
            self.key_size, self.value_size, self.max_entries
        )?;
        if self.flags != 0 {
            write!(f, ", flags {:#x}", self.flags)?;
        }
        Ok(())
    }
}

/// Names of `enum bpf_map_type`, as bpftool prints them.
fn type_name(map_type: u32) -> Option<&'static str> {
    Some(match map_type {
        1 => "hash",
        2 => "array",
        5 => "percpu_hash",
        6 => "percpu_array",
        9 => "lru_hash",
        10 => "lru_percpu_hash",
        11 => "lpm_trie",
        27 => "ringbuf",
        _ => return None,
    })
}

/// What lies at the place of a map's pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A map.
    Map(Shape),
    /// Something else, in words.
    Other(String),
}

/// What to do with the pins that were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// There are none: make new tables.
    Fresh,
    /// A start was interrupted before anything was attached: remove these and make new tables.
    Leftovers(Vec<&'static str>),
    /// All there, all of the right shape: use them.
    Adopt,
    /// Not ours to use; why, as a sentence without its end.
    Refuse(String),
}

/// Judges the pins. `last` is the map that a fresh start pins last: without it and without a link
/// the start never finished. `links` is the number of pinned links.
pub(super) fn judge(
    expected: &BTreeMap<&'static str, Shape>,
    found: &BTreeMap<&'static str, Found>,
    last: &'static str,
    links: usize,
) -> Judgement {
    let mut missing = Vec::new();
    let mut present = Vec::new();
    for (&name, shape) in expected {
        match found.get(name).unwrap_or(&Found::Nothing) {
            Found::Nothing => missing.push(name),
            Found::Other(what) => {
                return Judgement::Refuse(format!(
                    "the pin `{name}` is {what}, not a map of this agent"
                ));
            }
            Found::Map(is) if is != shape => {
                return Judgement::Refuse(format!(
                    "the pinned map `{name}` is ({is}); this agent needs ({shape})"
                ));
            }
            Found::Map(_) => present.push(name),
        }
    }
    if missing.is_empty() {
        Judgement::Adopt
    } else if links == 0 && present.is_empty() {
        Judgement::Fresh
    } else if links == 0 && missing.contains(&last) {
        Judgement::Leftovers(present)
    } else {
        Judgement::Refuse(format!(
            "the pins are incomplete: `{}` {} missing beside {} pinned map(s) and {links} pinned link(s)",
            missing.join("`, `"),
            if missing.len() == 1 { "is" } else { "are" },
            present.len()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        map_type: 2,
        key_size: 4,
        value_size: 64,
        max_entries: 16,
        flags: 0,
    };

    fn expected() -> BTreeMap<&'static str, Shape> {
        BTreeMap::from([("CONFIG", SHAPE), ("CROWD4", SHAPE), ("TRACKED", SHAPE)])
    }

    fn found(entries: &[(&'static str, Found)]) -> BTreeMap<&'static str, Found> {
        entries.iter().cloned().collect()
    }

    fn complete() -> BTreeMap<&'static str, Found> {
        expected()
            .into_iter()
            .map(|(name, shape)| (name, Found::Map(shape)))
            .collect()
    }

    #[test]
    fn adopts_a_complete_set() {
        assert_eq!(
            judge(&expected(), &complete(), "CONFIG", 1),
            Judgement::Adopt
        );
        assert_eq!(
            judge(&expected(), &complete(), "CONFIG", 0),
            Judgement::Adopt
        );
    }

    #[test]
    fn starts_fresh_without_pins() {
        assert_eq!(
            judge(&expected(), &BTreeMap::new(), "CONFIG", 0),
            Judgement::Fresh
        );
    }

    #[test]
    fn clears_an_interrupted_start() {
        let pins = found(&[("CROWD4", Found::Map(SHAPE))]);
        assert_eq!(
            judge(&expected(), &pins, "CONFIG", 0),
            Judgement::Leftovers(vec!["CROWD4"])
        );
    }

    #[test]
    fn refuses_an_incomplete_set_that_may_enforce() {
        let mut pins = complete();
        pins.remove("TRACKED");
        let Judgement::Refuse(why) = judge(&expected(), &pins, "CONFIG", 0) else {
            panic!("adopted an incomplete set");
        };
        assert_eq!(
            why,
            "the pins are incomplete: `TRACKED` is missing beside 2 pinned map(s) and 0 pinned link(s)"
        );
        assert!(matches!(
            judge(&expected(), &BTreeMap::new(), "CONFIG", 1),
            Judgement::Refuse(_)
        ));
    }

    #[test]
    fn names_the_map_and_both_shapes() {
        for (other, text) in [
            (
                Shape {
                    value_size: 32,
                    ..SHAPE
                },
                "value 32 B",
            ),
            (
                Shape {
                    key_size: 8,
                    ..SHAPE
                },
                "key 8 B",
            ),
            (
                Shape {
                    map_type: 9,
                    ..SHAPE
                },
                "lru_hash",
            ),
            (
                Shape {
                    max_entries: 32,
                    ..SHAPE
                },
                "32 entries",
            ),
            (
                Shape {
                    flags: 0x400,
                    ..SHAPE
                },
                "flags 0x400",
            ),
        ] {
            let mut pins = complete();
            pins.insert("CROWD4", Found::Map(other));
            let Judgement::Refuse(why) = judge(&expected(), &pins, "CONFIG", 1) else {
                panic!("adopted {other}");
            };
            assert!(why.contains("`CROWD4`") && why.contains(text), "{why}");
            assert!(
                why.contains("array, key 4 B, value 64 B, 16 entries"),
                "{why}"
            );
        }
    }

    #[test]
    fn names_a_foreign_object() {
        let mut pins = complete();
        pins.insert("CONFIG", Found::Other("a `bpf-prog`".to_owned()));
        assert_eq!(
            judge(&expected(), &pins, "CONFIG", 0),
            Judgement::Refuse(
                "the pin `CONFIG` is a `bpf-prog`, not a map of this agent".to_owned()
            )
        );
    }
}
