//! From texts to [`Loaded`], or to problems with line, column and excerpt.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::DeTable;

use super::MAX_FILE_BYTES;
use super::check::check;
use super::layers::{Override, Strings, from_environment, parsed};
use super::locate::{Place, path_at, range_of};
use super::problem::{Origin, Problem, Refused};
use super::settings::Settings;
use super::statics::static_document;
use super::words::{did_you_mean, rephrase};
use crate::policy::model::Document;
use crate::policy::set::Geometry;
use crate::policy::validate::{Issue, dotted, validate};

/// A configuration file, as read.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// Its contents.
    pub bytes: &'a [u8],
}

/// A configuration that holds together.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Every setting.
    pub settings: Settings,
    /// Segments, clients and lists of the file; entries say `by = "config"`.
    pub document: Document,
    /// Where each setting that is not a default was given, by dotted path.
    pub origins: BTreeMap<String, Origin>,
    /// Legal, and probably not meant.
    pub warnings: Vec<Problem>,
}

/// Loads a configuration: flags over environment over file over defaults.
///
/// # Errors
///
/// Everything that is wrong, each with its place; nothing may be changed then.
pub fn load(
    file: Option<File<'_>>,
    environment: &dyn Strings,
    flags: &[Override],
) -> Result<Loaded, Refused> {
    let text = file.map(read).transpose().map_err(one)?;
    let source = match (&file, &text) {
        (Some(file), Some(text)) => Some(Source::parse(file.name, text).map_err(one)?),
        _ => None,
    };
    let mut table = match &source {
        Some(source) => source.typed().map_err(one)?,
        None => toml::Table::new(),
    };
    let mut origins = BTreeMap::new();
    if let Some(source) = &source {
        leaves(&table, &mut Vec::new(), &mut |path| {
            origins.insert(dotted(path), Origin::File(source.name.to_owned()));
        });
    }
    let (from_env, mut warnings) = from_environment(environment);
    let mut problems = Vec::new();
    for over in from_env.iter().chain(flags) {
        match parsed(over) {
            Ok(value) => {
                origins.insert(over.path.join("."), over.origin.clone());
                insert(&mut table, &over.path, value);
            }
            Err(problem) => problems.push(*problem),
        }
    }
    if !problems.is_empty() {
        return Err(Refused { problems });
    }
    let settings: Settings = table.try_into().map_err(|error: toml::de::Error| {
        one(Box::new(Problem {
            origin: Origin::Default,
            place: None,
            path: String::new(),
            message: error.message().to_owned(),
            help: None,
        }))
    })?;

    let (document, mut issues) = static_document(&settings);
    issues.extend(check(&settings));
    let geometry = Geometry {
        tracked: settings.tables.tracked,
        policies: settings.tables.policies,
        prefixes: settings.tables.prefixes,
        v6_prefix_len: settings.kernel.v6_prefix_len.clamp(32, 64),
    };
    let report = validate(&document, &geometry);
    let place = |issue: Issue| locate(issue, &settings, source.as_ref(), &origins);
    issues.extend(report.errors);
    if !issues.is_empty() {
        return Err(Refused {
            problems: issues.into_iter().map(place).collect(),
        });
    }
    warnings.extend(report.warnings.into_iter().map(place));
    Ok(Loaded {
        settings,
        document,
        origins,
        warnings,
    })
}

#[expect(clippy::boxed_local, reason = "what fails early is boxed")]
fn one(problem: Box<Problem>) -> Refused {
    Refused {
        problems: vec![*problem],
    }
}

fn whole(name: &str, message: String) -> Problem {
    Problem {
        origin: Origin::File(name.to_owned()),
        place: None,
        path: String::new(),
        message,
        help: None,
    }
}

/// The text of a file, within its bounds.
fn read(file: File<'_>) -> Result<&str, Box<Problem>> {
    if file.bytes.len() > MAX_FILE_BYTES {
        return Err(Box::new(whole(
            file.name,
            format!(
                "the file has {} bytes; it may have at most {MAX_FILE_BYTES}",
                file.bytes.len()
            ),
        )));
    }
    std::str::from_utf8(file.bytes).map_err(|error| {
        let head = file.bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = head.split(|byte| *byte == b'\n').count();
        let column = head.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        let byte = file.bytes.get(error.valid_up_to()).copied().unwrap_or(0);
        Box::new(Problem {
            place: Some(Place {
                line,
                column,
                excerpt: format!("  (byte {} of the file)", error.valid_up_to()),
            }),
            ..whole(
                file.name,
                format!("the file is not UTF-8: byte `0x{byte:02x}`"),
            )
        })
    })
}

/// A file whose syntax is right.
struct Source<'a> {
    name: &'a str,
    text: &'a str,
    table: Spanned<DeTable<'a>>,
}

impl<'a> Source<'a> {
    fn parse(name: &'a str, text: &'a str) -> Result<Self, Box<Problem>> {
        match DeTable::parse(text) {
            Ok(table) => Ok(Self { name, text, table }),
            Err(error) => Err(Box::new(Problem {
                place: error.span().map(|range| Place::of(text, &range)),
                ..whole(name, rephrase(error.message(), ""))
            })),
        }
    }

    /// The table without places, once every field has the right name and type.
    fn typed(&self) -> Result<toml::Table, Box<Problem>> {
        let refused = |error: toml::de::Error| {
            let range = error.span();
            let path = range
                .as_ref()
                .map(|range| path_at(&self.table, range))
                .unwrap_or_default();
            let raw = range
                .as_ref()
                .and_then(|range| self.text.get(range.clone()))
                .unwrap_or_default();
            Box::new(Problem {
                place: range.map(|range| Place::of(self.text, &range)),
                path: dotted(&path),
                help: did_you_mean(error.message()),
                ..whole(self.name, rephrase(error.message(), raw))
            })
        };
        toml::from_str::<Settings>(self.text).map_err(refused)?;
        toml::from_str::<toml::Table>(self.text).map_err(refused)
    }
}

/// Calls `visit` with the path of every value that is not a table.
fn leaves(table: &toml::Table, path: &mut Vec<String>, visit: &mut dyn FnMut(&[String])) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            toml::Value::Table(inner) => leaves(inner, path, visit),
            _ => visit(path),
        }
        path.pop();
    }
}

fn insert(table: &mut toml::Table, path: &[String], value: toml::Value) {
    match path {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let inner = table
                .entry(first.clone())
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// Finds the place of an issue: in the file if its value came from there.
fn locate(
    issue: Issue,
    settings: &Settings,
    source: Option<&Source<'_>>,
    origins: &BTreeMap<String, Origin>,
) -> Problem {
    let path = in_file(&issue.path, settings);
    let shown = dotted(&path);
    let origin = origins
        .get(&shown)
        .or_else(|| {
            origins.get(
                path.iter()
                    .take(2)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(".")
                    .as_str(),
            )
        })
        .or_else(|| path.first().and_then(|first| origins.get(first)))
        .cloned();
    let range = source.and_then(|source| range_of(&source.table, &path));
    let place = match (&origin, source, range) {
        (Some(Origin::Environment(_) | Origin::Flag(_)), ..) | (_, None, _) | (_, _, None) => None,
        (_, Some(source), Some(range)) => Some((source.name, Place::of(source.text, &range))),
    };
    Problem {
        origin: match (&place, origin) {
            (Some((name, _)), _) => Origin::File((*name).to_owned()),
            (None, origin) => origin.unwrap_or(Origin::Default),
        },
        place: place.map(|(_, place)| place),
        path: shown,
        message: issue.message,
        help: None,
    }
}

/// Lists are keyed by prefix in a document and positions in a file.
fn in_file(path: &[String], settings: &Settings) -> Vec<String> {
    let [list, prefix, rest @ ..] = path else {
        return path.to_vec();
    };
    let entries = match list.as_str() {
        "allow" => &settings.allow,
        "block" => &settings.block,
        _ => return path.to_vec(),
    };
    let Some(n) = entries
        .iter()
        .position(|entry| entry.prefix.to_string() == *prefix)
    else {
        return path.to_vec();
    };
    let field = match rest.first() {
        Some(field) => field.clone(),
        None => "prefix".to_owned(),
    };
    vec![list.clone(), n.to_string(), field]
}
