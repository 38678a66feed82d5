//! The configuration file: parsed, validated, explained. Pure: it is handed texts, never paths.
//!
//! Precedence: flags, then `RATELIMITER_*`, then the file, then the defaults. Every default stands
//! in [`settings`]; the example, the schema and `config show` are made from there.
//!
//! - [`settings`]: what can be set, and every default
//! - [`adaptive`]: limits that follow health: settings, defaults, bounds
//! - [`mod@load`]: from texts to a [`Loaded`], or to [`Refused`] with line, column and excerpt
//! - [`layers`]: environment variables and flags
//! - [`mod@check`]: bounds of settings; mode bits of the file
//! - [`statics`]: the file's segments, clients and lists, over what the store has
//! - [`store_url`]: where the store of a fleet is
//! - [`mod@show`]: `config example`, `default`, `show` and `schema`
mod locate;
mod problem;
mod values;
mod words;

pub mod adaptive;
pub mod check;
pub mod layers;
pub mod load;
pub mod settings;
pub mod show;
pub mod statics;
pub mod store_url;

pub use layers::{Override, Strings};
pub use load::{File, Loaded, load};
pub use locate::Place;
pub use problem::{Origin, Problem, Refused};
pub use settings::Settings;
pub use values::{
    Attach, AttachMode, Interface, Listen, LogFormat, Malformed, Right, Secret, UnknownClients,
};

/// Where the agent looks for its configuration unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/ratelimiter/ratelimiter.toml";
/// Largest configuration file, in bytes: 1 MiB.
pub const MAX_FILE_BYTES: usize = 1 << 20;
