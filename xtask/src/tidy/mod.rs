//! `cargo xtask tidy`: the house style that no compiler checks. Every complaint is one line that
//! names file, line and rule.
mod files;
mod layers;
mod promises;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{Said, shell};

/// A file under version control.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Relative to the workspace, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        has_extension(&self.path, "rs")
    }
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|found| found == extension)
}

/// What tidy found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    /// Something that must be mended.
    pub(crate) fn error(&mut self, text: String) {
        self.errors.push(text);
    }

    /// Something that should be.
    pub(crate) fn warning(&mut self, text: String) {
        self.warnings.push(text);
    }
}

/// Entry point.
pub(crate) fn main() -> Result<()> {
    let sources = sources()?;
    let mut findings = Findings::default();
    for source in &sources {
        files::check(source, &mut findings);
        if source.is_rust() {
            source::check(source, &mut findings);
            layers::check(source, &mut findings);
        }
    }
    layers::check_common_manifest(&sources, &mut findings);
    promises::check(&sources, &mut findings);
    for warning in &findings.warnings {
        println!("warning: {warning}");
    }
    for error in &findings.errors {
        println!("error: {error}");
    }
    if findings.errors.is_empty() {
        println!("tidy: {} files, nothing to mend", sources.len());
        Ok(())
    } else {
        println!("tidy: {} to mend", findings.errors.len());
        Err(Said.into())
    }
}

/// Every text file that git knows, changed or new ones included.
fn sources() -> Result<Vec<Source>> {
    let workspace = shell::workspace();
    let output = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(&workspace)
        .output()
        .context("cannot start git")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths: Vec<String> = if output.status.success() && !listed.is_empty() {
        listed.lines().map(str::to_owned).collect()
    } else {
        // An unpacked archive has no history; then every file counts.
        walk(&workspace, &workspace)
    };
    Ok(paths
        .into_iter()
        .filter_map(|path| {
            // Deleted but not committed, or not text: nothing to check.
            let text = std::fs::read_to_string(workspace.join(&path)).ok()?;
            Some(Source { path, text })
        })
        .collect())
}

fn walk(directory: &Path, workspace: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.ends_with("target") || path.ends_with(".git") {
            continue;
        }
        if path.is_dir() {
            found.extend(walk(&path, workspace));
        } else if let Ok(relative) = path.strip_prefix(workspace) {
            found.push(PathBuf::from(relative).to_string_lossy().into_owned());
        }
    }
    found
}
