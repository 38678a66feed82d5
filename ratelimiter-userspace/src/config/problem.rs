//! What people read when a configuration is refused.

use std::fmt;

use super::locate::Place;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In the file, by its name as given.
    File(String),
    /// By an environment variable.
    Environment(String),
    /// By a flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(name) => f.write_str(name),
            Self::Environment(name) => write!(f, "environment variable `{name}`"),
            Self::Flag(name) => write!(f, "flag `{name}`"),
        }
    }
}

/// One thing that is wrong with a configuration, or probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the value was given.
    pub origin: Origin,
    /// Line, column and excerpt, where it stands in a file.
    pub place: Option<Place>,
    /// The field's path, as written in TOML; empty for the file as a whole.
    pub path: String,
    /// What is wrong: the thing, the value, the bound.
    pub message: String,
    /// What was probably meant.
    pub help: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        if let Some(place) = &self.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        if self.path.is_empty() || self.message.starts_with(&format!("`{}`", self.path)) {
            write!(f, ": {}", self.message)?;
        } else {
            write!(f, ": `{}`: {}", self.path, self.message)?;
        }
        if let Some(place) = &self.place {
            write!(f, "\n{}", place.excerpt)?;
        }
        if let Some(help) = &self.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

/// Why a configuration is refused: at least one problem, the policy in force unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The problems, at least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}
