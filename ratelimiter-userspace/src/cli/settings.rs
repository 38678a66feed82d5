//! Settings for commands that work without an agent, or start one: flags over environment over
//! file over defaults. Reading is here; what is right and wrong is said by [`crate::config`].

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::exit::{Exit, Failure};
use super::output::remark;
use crate::config::check::{exposure, mode_problem};
use crate::config::layers::PREFIX;
use crate::config::{DEFAULT_PATH, File, Loaded, MAX_FILE_BYTES, Override, Strings, load};

/// The environment of this process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessEnvironment;

impl Strings for ProcessEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var_os(name)?.into_string().ok()
    }

    fn names(&self) -> Vec<String> {
        std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .filter(|name| name.starts_with(PREFIX))
            .collect()
    }
}

/// The file to read: the one named, which must exist, or the usual one if it exists.
pub fn config_path(named: Option<&Path>) -> Option<PathBuf> {
    match named {
        Some(path) => Some(path.to_owned()),
        None => Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists()),
    }
}

/// Reads a configuration file within its bound, `-` for standard input.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    let unreadable = |e: std::io::Error| {
        let exit = if e.kind() == std::io::ErrorKind::PermissionDenied {
            Exit::Permission
        } else {
            Exit::Usage
        };
        Failure::new(format!("`{shown}` cannot be read: {e}")).with_exit(exit)
    };
    // One byte more than allowed, so that whoever judges the size sees that it is too large.
    let bound = MAX_FILE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(bound)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
    } else {
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(bound)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
    }
    Ok(bytes)
}

/// Loads settings from `path`, the environment and `flags`, and says warnings aloud.
pub fn settings(path: Option<&Path>, flags: &[Override]) -> Result<Loaded, Failure> {
    let name = path
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    if let Some(problem) = path.and_then(owner_problem) {
        return Err(Failure::usage(problem));
    }
    let bytes = path.map(read_file).transpose()?;
    let file = bytes.as_deref().map(|bytes| File { name: &name, bytes });
    let loaded = load(file, &ProcessEnvironment, flags)
        .map_err(|refused| Failure::usage(refused.to_string()))?;
    for warning in &loaded.warnings {
        remark(&format!("warning: {warning}"));
    }
    let mode = path
        .and_then(|path| std::fs::metadata(path).ok())
        .map(|meta| meta.mode());
    if let Some(warning) = mode.and_then(|mode| exposure(&name, mode, &loaded.settings)) {
        remark(&format!("warning: {warning}"));
    }
    Ok(loaded)
}

/// Why the file must not be trusted, if it must not: whoever may write it may set every limit.
pub fn owner_problem(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    // SAFETY: plain system call without arguments; it cannot fail.
    let own_uid = unsafe { libc::geteuid() };
    mode_problem(
        &path.display().to_string(),
        meta.mode(),
        meta.uid(),
        own_uid,
    )
}
