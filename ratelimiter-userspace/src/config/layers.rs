//! What comes before the file: environment variables and flags.

use std::collections::BTreeMap;

use serde::Deserialize as _;

use super::problem::{Origin, Problem};
use super::settings::Settings;
use super::words::{did_you_mean, nearest, rephrase};

/// Start of every environment variable of ours.
pub const PREFIX: &str = "RATELIMITER_";
/// Variables of ours that are no settings: the path of the file, and where the CLI looks.
pub const OTHERS: [&str; 4] = [
    "RATELIMITER_CONFIG",
    "RATELIMITER_ADDRESS",
    "RATELIMITER_TOKEN",
    "RATELIMITER_TOKEN_FILE",
];

/// Named strings: the process environment, or a map in tests.
pub trait Strings {
    /// The value of `name`; `None` if it is not set or not UTF-8.
    fn get(&self, name: &str) -> Option<String>;

    /// Every name that begins with [`PREFIX`], to find those that mean nothing; empty if unknown.
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Strings for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        Self::get(self, name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.keys()
            .filter(|name| name.starts_with(PREFIX))
            .cloned()
            .collect()
    }
}

/// A setting given outside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Path of the setting.
    pub path: Vec<String>,
    /// Its value as text.
    pub value: String,
    /// Who gave it.
    pub origin: Origin,
}

impl Override {
    /// A flag: `--enforce` is the path `enforce`, `--admin-listen` the path `admin.listen`.
    #[must_use]
    pub fn flag(flag: &str, path: &str, value: &str) -> Self {
        Self {
            path: path.split('.').map(str::to_owned).collect(),
            value: value.to_owned(),
            origin: Origin::Flag(flag.to_owned()),
        }
    }
}

/// Every single setting with its default: what an environment variable may set.
#[must_use]
pub fn single_settings() -> Vec<(Vec<String>, toml::Value)> {
    let mut found = Vec::new();
    if let Ok(toml::Value::Table(table)) = toml::Value::try_from(Settings::default()) {
        collect(&table, &mut Vec::new(), &mut found);
    }
    found
}

fn collect(
    table: &toml::Table,
    path: &mut Vec<String>,
    found: &mut Vec<(Vec<String>, toml::Value)>,
) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            toml::Value::Table(inner) => collect(inner, path, found),
            // The static part is lists of tables: not for a variable.
            _ if path.as_slice() == ["allow"] || path.as_slice() == ["block"] => {}
            value => found.push((path.clone(), value.clone())),
        }
        path.pop();
    }
}

/// The environment variable of a setting.
#[must_use]
pub fn variable(path: &[String]) -> String {
    format!("{PREFIX}{}", path.join("_").to_uppercase())
}

/// Settings given by environment variables, and warnings for variables that mean nothing.
#[must_use]
pub fn from_environment(environment: &dyn Strings) -> (Vec<Override>, Vec<Problem>) {
    let settings = single_settings();
    let overrides = settings
        .iter()
        .filter_map(|(path, _)| {
            let name = variable(path);
            let value = environment.get(&name)?;
            Some(Override {
                path: path.clone(),
                value,
                origin: Origin::Environment(name),
            })
        })
        .collect();
    let known: Vec<String> = settings.iter().map(|(path, _)| variable(path)).collect();
    let warnings = environment
        .names()
        .into_iter()
        .filter(|name| !known.contains(name) && !OTHERS.contains(&name.as_str()))
        .map(|name| Problem {
            message: "there is no such setting; the variable is ignored".to_owned(),
            help: nearest(&name, known.iter().map(String::as_str))
                .map(|word| format!("did you mean `{word}`?")),
            origin: Origin::Environment(name),
            place: None,
            path: String::new(),
        })
        .collect();
    (overrides, warnings)
}

/// The value of an override, of the type its setting has.
///
/// # Errors
///
/// A problem that names the variable or flag, the setting, the value and the bound.
pub fn parsed(over: &Override) -> Result<toml::Value, Box<Problem>> {
    let problem = |message: String, help: Option<String>| {
        Box::new(Problem {
            origin: over.origin.clone(),
            place: None,
            path: over.path.join("."),
            message,
            help,
        })
    };
    let settings = single_settings();
    let Some((_, default)) = settings.iter().find(|(path, _)| *path == over.path) else {
        return Err(problem("there is no such setting".to_owned(), None));
    };
    let text = over.value.trim();
    let value = match default {
        toml::Value::Boolean(_) => match text {
            "true" | "1" | "yes" | "on" => Some(toml::Value::Boolean(true)),
            "false" | "0" | "no" | "off" => Some(toml::Value::Boolean(false)),
            _ => None,
        },
        toml::Value::Integer(_) => text.replace('_', "").parse().ok().map(toml::Value::Integer),
        toml::Value::Array(_) => Some(toml::Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| toml::Value::String(part.to_owned()))
                .collect(),
        )),
        _ => Some(toml::Value::String(text.to_owned())),
    };
    let expected = match default {
        toml::Value::Boolean(_) => "`true` or `false`",
        _ => "a whole number, 0 or more",
    };
    let value = value
        .ok_or_else(|| problem(format!("`{}` is not {expected}", text.escape_debug()), None))?;
    // The type must fit by itself, so that the message can name the variable.
    let alone = over.path.iter().rev().fold(value.clone(), |inner, key| {
        toml::Value::Table(toml::Table::from_iter([(key.clone(), inner)]))
    });
    Settings::deserialize(alone).map_err(|error: toml::de::Error| {
        problem(
            rephrase(error.message(), text),
            did_you_mean(error.message()),
        )
    })?;
    Ok(value)
}
