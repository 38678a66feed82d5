//! The configuration file: parsed, validated, explained. Pure: it is handed texts, never paths.
//!
//! Precedence: flags, then `RATELIMITER_*`, then the file, then the defaults. Every default stands
//! in [`settings`]; the example, the schema and `config show` are made from there.
//!
//! - [`settings`]: what can be set, and every default
mod values;

pub mod settings;

pub use settings::Settings;
pub use values::{Attach, AttachMode, Interface, Listen, LogFormat, Malformed, Right, Secret};

/// Where the agent looks for its configuration unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/ratelimiter/ratelimiter.toml";
/// Largest configuration file, in bytes: 1 MiB.
pub const MAX_FILE_BYTES: usize = 1 << 20;
