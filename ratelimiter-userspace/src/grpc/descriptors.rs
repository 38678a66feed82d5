//! envoyproxy/ratelimit's descriptor files: YAML to a tree of rules, pure.
//!
//! A file names a domain and what is limited in it: keys with or without a value (`*` in a value
//! stands for any text), nested, each with or without a limit. A descriptor of a request walks the
//! tree entry by entry, and the rule at the end of its walk counts; a rule on the way does not.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::{Location, Spanned};

use super::message::Entry;

/// Most rules in all files together. Each takes a policy for good.
pub const MAX_RULES: usize = 10_000;
/// Largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Deepest nesting of descriptors.
const MAX_DEPTH: usize = 32;

/// The unit of time of a limit; the number is that of Envoy's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Unit {
    /// 1 s.
    Second = 1,
    /// 60 s.
    Minute = 2,
    /// 3 600 s.
    Hour = 3,
    /// 24 hours.
    Day = 4,
    /// 30 days.
    Month = 5,
    /// 365 days.
    Year = 6,
    /// 7 days.
    Week = 7,
}

impl Unit {
    const NAMES: [(&str, Self); 7] = [
        ("second", Self::Second),
        ("minute", Self::Minute),
        ("hour", Self::Hour),
        ("day", Self::Day),
        ("week", Self::Week),
        ("month", Self::Month),
        ("year", Self::Year),
    ];

    /// Returns the unit of a number in Envoy's messages.
    #[must_use]
    pub fn of_number(number: i32) -> Option<Self> {
        Self::NAMES
            .into_iter()
            .map(|(_, unit)| unit)
            .find(|unit| *unit as i32 == number)
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::NAMES
            .into_iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, unit)| unit)
    }

    /// Its length, in nanoseconds.
    #[must_use]
    pub fn as_ns(self) -> u64 {
        let seconds = match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
            Self::Week => 7 * 86_400,
            Self::Month => 30 * 86_400,
            Self::Year => 365 * 86_400,
        };
        seconds * 1_000_000_000
    }
}

/// What applies at a place of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Domain and keys, unambiguous: the same place in a later version of the files.
    pub place: String,
    /// The configured name; empty if there is none.
    pub name: String,
    /// Requests per unit; 0 lets nothing pass. `None`: unlimited.
    pub rate: Option<(u32, Unit)>,
    /// Names of limits that do not count in a request where this one does.
    pub replaces: Vec<String>,
    /// Decided and counted, never refused.
    pub shadow: bool,
    /// Refuses only where every quota of the request refuses.
    pub quota_mode: bool,
}

/// What is wrong with a file, or has no effect here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct Problem {
    /// The file, as configured.
    pub file: String,
    /// Line, from 1; 0 for the file as a whole.
    pub line: u64,
    /// Column in characters, from 1; 0 for the file as a whole.
    pub column: u64,
    /// What is wrong: the thing, the value, the bound.
    pub message: String,
}

/// All rules of all files.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    domains: HashMap<String, Node>,
    /// Every rule; the tree holds numbers.
    pub rules: Vec<Rule>,
    /// Keys that are accepted and change nothing here.
    pub notes: Vec<Problem>,
}

#[derive(Clone, Debug, Default)]
struct Node(HashMap<String, Key>);

/// What is configured for one key.
#[derive(Clone, Debug, Default)]
struct Key {
    values: HashMap<String, Place>,
    /// Values with `*`, split there, in the order of the file.
    patterns: Vec<(Vec<String>, Place)>,
    any: Option<Place>,
}

#[derive(Clone, Debug, Default)]
struct Place {
    rule: Option<usize>,
    /// All values that match the pattern share one bucket: the pattern.
    shared: Option<String>,
    below: Node,
}

/// Where a descriptor's walk ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Match<'a> {
    /// Number of the rule.
    pub rule: usize,
    /// Its entries whose buckets are shared, by number, and what stands for their value.
    pub shared: Vec<(usize, &'a str)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct YamlRoot {
    domain: Spanned<String>,
    #[serde(default)]
    descriptors: Option<Vec<Spanned<YamlDescriptor>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct YamlDescriptor {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    rate_limit: Option<Spanned<YamlLimit>>,
    #[serde(default)]
    descriptors: Option<Vec<Spanned<YamlDescriptor>>>,
    #[serde(default)]
    shadow_mode: bool,
    #[serde(default)]
    quota_mode: bool,
    #[serde(default)]
    detailed_metric: bool,
    #[serde(default)]
    value_to_metric: bool,
    #[serde(default)]
    share_threshold: bool,
    #[serde(default)]
    metadata: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct YamlLimit {
    #[serde(default)]
    requests_per_unit: u32,
    #[serde(default)]
    unit: Option<String>,
    #[serde(default)]
    unlimited: bool,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    replaces: Option<Vec<YamlReplaces>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct YamlReplaces {
    name: String,
}

impl Rules {
    /// Reads files, given as names and texts. All or none: the first problem refuses them.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Problem> {
        let mut rules = Self::default();
        for (file, text) in files {
            rules.add(file, text)?;
        }
        Ok(rules)
    }

    fn add(&mut self, file: &str, text: &str) -> Result<(), Problem> {
        let root: YamlRoot = serde_saphyr::from_str(text).map_err(|error| {
            let at = error.location();
            Problem {
                file: file.to_owned(),
                line: at.as_ref().map_or(0, Location::line),
                column: at.as_ref().map_or(0, Location::column),
                message: first_line(&error.without_snippet().to_string()),
            }
        })?;
        let domain = root.domain.value;
        if domain.is_empty() {
            let message = "`domain` is empty; it names who asks";
            return Err(problem(file, root.domain.referenced, message));
        }
        let node = match self.domains.entry(domain.clone()) {
            Slot::Occupied(_) => {
                let message = format!("domain `{}` is in two files", domain.escape_debug());
                return Err(problem(file, root.domain.referenced, message));
            }
            Slot::Vacant(slot) => slot.insert(Node::default()),
        };
        let mut load = Load {
            file,
            rules: &mut self.rules,
            notes: &mut self.notes,
        };
        let mut place = String::new();
        join(&mut place, &domain);
        load.all(node, &place, root.descriptors, 1)
    }

    /// Walks the tree by a descriptor's entries; `None` where no limit is configured.
    #[must_use]
    pub fn find(&self, domain: &str, entries: &[Entry]) -> Option<Match<'_>> {
        let mut node = self.domains.get(domain)?;
        let mut shared = Vec::new();
        let last = entries.len().checked_sub(1)?;
        for (number, entry) in entries.iter().enumerate() {
            let key = node.0.get(&entry.key)?;
            let place = key
                .values
                .get(&entry.value)
                .or_else(|| {
                    let mut patterns = key.patterns.iter();
                    let found = patterns.find(|(parts, _)| fits(parts, &entry.value));
                    found.map(|(_, place)| place)
                })
                .or(key.any.as_ref())?;
            if let Some(pattern) = &place.shared {
                shared.push((number, pattern.as_str()));
            }
            if number == last {
                return place.rule.map(|rule| Match { rule, shared });
            }
            node = &place.below;
        }
        None
    }

    /// Whether the domain is configured.
    #[must_use]
    pub fn knows(&self, domain: &str) -> bool {
        self.domains.contains_key(domain)
    }
}

/// Loads one file.
struct Load<'a> {
    file: &'a str,
    rules: &'a mut Vec<Rule>,
    notes: &'a mut Vec<Problem>,
}

impl Load<'_> {
    fn all(
        &mut self,
        node: &mut Node,
        parent: &str,
        descriptors: Option<Vec<Spanned<YamlDescriptor>>>,
        depth: usize,
    ) -> Result<(), Problem> {
        for descriptor in descriptors.unwrap_or_default() {
            if depth > MAX_DEPTH {
                let message = format!("descriptors are nested deeper than {MAX_DEPTH}");
                return Err(problem(self.file, descriptor.referenced, message));
            }
            self.one(node, parent, descriptor, depth)?;
        }
        Ok(())
    }

    fn one(
        &mut self,
        node: &mut Node,
        parent: &str,
        descriptor: Spanned<YamlDescriptor>,
        depth: usize,
    ) -> Result<(), Problem> {
        let (at, descriptor) = (descriptor.referenced, descriptor.value);
        if descriptor.key.is_empty() {
            return Err(problem(self.file, at, "a descriptor has no `key`"));
        }
        let value = descriptor.value.clone().unwrap_or_default();
        if descriptor.share_threshold && !value.contains('*') {
            let message = "`share_threshold` is for values with `*` only";
            return Err(problem(self.file, at, message));
        }
        self.note(at, &descriptor);
        let mut place_name = parent.to_owned();
        join(&mut place_name, &descriptor.key);
        join(&mut place_name, &value);
        let mut place = Place {
            shared: descriptor.share_threshold.then(|| value.clone()),
            ..Place::default()
        };
        if let Some(limit) = &descriptor.rate_limit {
            place.rule = Some(self.rules.len());
            let rule = self.rule(place_name.clone(), limit, &descriptor)?;
            self.rules.push(rule);
            if self.rules.len() > MAX_RULES {
                let message = format!("more than {MAX_RULES} limits");
                return Err(problem(self.file, at, message));
            }
        }
        self.all(
            &mut place.below,
            &place_name,
            descriptor.descriptors,
            depth + 1,
        )?;
        let key = node.0.entry(descriptor.key.clone()).or_default();
        let before = if value.is_empty() {
            key.any.replace(place).is_some()
        } else if value.contains('*') {
            let parts: Vec<String> = value.split('*').map(str::to_owned).collect();
            let twice = key.patterns.iter().any(|(known, _)| *known == parts);
            key.patterns.push((parts, place));
            twice
        } else {
            key.values.insert(value.clone(), place).is_some()
        };
        if before {
            let message = format!(
                "key `{}` with value `{}` is there twice",
                descriptor.key.escape_debug(),
                value.escape_debug()
            );
            return Err(problem(self.file, at, message));
        }
        Ok(())
    }

    fn rule(
        &self,
        place: String,
        limit: &Spanned<YamlLimit>,
        descriptor: &YamlDescriptor,
    ) -> Result<Rule, Problem> {
        let (at, limit) = (limit.referenced, &limit.value);
        let unit = limit.unit.as_deref().unwrap_or_default();
        let rate = match (limit.unlimited, Unit::of_name(unit)) {
            (true, None) => None,
            (true, Some(_)) => {
                let message = "`unlimited` and `unit` exclude each other";
                return Err(problem(self.file, at, message));
            }
            (false, Some(unit)) => Some((limit.requests_per_unit, unit)),
            (false, None) => {
                let message = format!(
                    "`unit` is `{}`; it must be second, minute, hour, day, week, month or year",
                    unit.escape_debug()
                );
                return Err(problem(self.file, at, message));
            }
        };
        let name = limit.name.clone().unwrap_or_default();
        let replaces: Vec<String> = limit
            .replaces
            .iter()
            .flatten()
            .map(|replaced| replaced.name.clone())
            .collect();
        if replaces.iter().any(String::is_empty) {
            return Err(problem(self.file, at, "`replaces` has an empty name"));
        }
        if replaces.contains(&name) {
            let message = format!("limit `{}` replaces itself", name.escape_debug());
            return Err(problem(self.file, at, message));
        }
        Ok(Rule {
            place,
            name,
            rate,
            replaces,
            shadow: descriptor.shadow_mode,
            quota_mode: descriptor.quota_mode,
        })
    }

    /// Says what has no effect here.
    fn note(&mut self, at: Location, descriptor: &YamlDescriptor) {
        let metric = "no effect: what clients send never becomes part of a metric";
        let ignored = [
            (descriptor.detailed_metric, "detailed_metric", metric),
            (descriptor.value_to_metric, "value_to_metric", metric),
            (
                descriptor.metadata.is_some(),
                "metadata",
                "no effect: answers carry no dynamic metadata",
            ),
        ];
        for (_, key, why) in ignored.into_iter().filter(|(there, ..)| *there) {
            self.notes
                .push(problem(self.file, at, format!("`{key}` has {why}")));
        }
    }
}

fn problem(file: &str, at: Location, message: impl Into<String>) -> Problem {
    Problem {
        file: file.to_owned(),
        line: at.line(),
        column: at.column(),
        message: message.into(),
    }
}

/// The sentence of a parser's error, without the excerpt and its place, which are told apart.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// Appends a part to a place: its length first, so that no two lists of parts join alike.
fn join(place: &mut String, part: &str) {
    use std::fmt::Write as _;
    // Writing into a string does not fail.
    let _written = write!(place, "{}:{part}", part.len()).is_ok();
}

/// Whether `value` is the parts with any text between them.
fn fits(parts: &[String], value: &str) -> bool {
    let [first, middle @ .., last] = parts else {
        return false;
    };
    let Some(rest) = value.strip_prefix(first.as_str()) else {
        return false;
    };
    let Some(mut rest) = rest.strip_suffix(last.as_str()) else {
        return false;
    };
    for part in middle {
        let Some(at) = rest.find(part.as_str()) else {
            return false;
        };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    true
}
