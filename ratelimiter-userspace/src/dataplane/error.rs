//! What can go wrong between the agent and the kernel, each as one sentence for people.

use std::io;
use std::path::PathBuf;

/// What a caller may do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong: unknown interface, sizes out of range, tables too small.
    Invalid,
    /// Something is in the way that only `--replace` may remove: a foreign program, other pins.
    Conflict,
    /// A capability or the right to a path is missing.
    Permission,
    /// This machine cannot do it: no native XDP, no bpffs, no BPF object.
    Unsupported,
    /// The kernel refused for another reason.
    Kernel,
}

/// An error of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A size of the tables is out of range.
    #[error("{0}")]
    Tables(String),
    /// There is no such interface.
    #[error("there is no interface `{0}`")]
    UnknownInterface(String),
    /// An interface name the kernel would never accept.
    #[error("`{0}` is not an interface name; it must have 1 to 15 bytes and no slash")]
    BadInterfaceName(String),
    /// The interface has no native XDP.
    #[error(
        "interface `{interface}` cannot run XDP in native mode ({reason}); generic mode is slower and sees coalesced packets: allow it explicitly with `--mode generic`"
    )]
    NoNative {
        /// The interface.
        interface: String,
        /// What the kernel said.
        reason: String,
    },
    /// The MTU is too large for native XDP without multi-buffer support.
    #[error(
        "interface `{interface}` has an MTU of {mtu}, too large for native XDP on its driver; lower the MTU (3498 fits every driver) or allow generic mode with `--mode generic`"
    )]
    MtuTooLarge {
        /// The interface.
        interface: String,
        /// Its MTU in bytes.
        mtu: u32,
    },
    /// Another XDP program is attached.
    #[error(
        "interface `{interface}` already runs the XDP program `{name}` (id {id}, attached by {by}); remove it, or take its place with `--replace`"
    )]
    ForeignProgram {
        /// The interface.
        interface: String,
        /// Program id.
        id: u32,
        /// Program name.
        name: String,
        /// `netlink` or `link <id>`.
        by: String,
    },
    /// A foreign program could not be removed although `--replace` was given.
    #[error(
        "interface `{interface}` runs the XDP program of link {link}, which belongs to another process; end that process or unpin its link"
    )]
    ForeignLink {
        /// The interface.
        interface: String,
        /// Link id.
        link: u32,
    },
    /// The interface is attached in the other mode.
    #[error(
        "interface `{interface}` is attached in {is} mode and was asked for in {asked} mode; detach it first"
    )]
    OtherMode {
        /// The interface.
        interface: String,
        /// Mode in force.
        is: &'static str,
        /// Mode asked for.
        asked: &'static str,
    },
    /// Capabilities are missing.
    #[error(
        "missing {missing}: run with CAP_BPF and CAP_NET_ADMIN (as root, or `setcap cap_bpf,cap_net_admin+ep`); {doing}: {source}"
    )]
    Permission {
        /// The missing capabilities by name.
        missing: String,
        /// What was tried.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pin directory is not on a bpffs.
    #[error("`{path}` is not on a BPF file system; mount one with `mount -t bpf bpf {mount}`")]
    NoBpffs {
        /// Directory of the pins.
        path: PathBuf,
        /// Where to mount.
        mount: PathBuf,
    },
    /// Pins that do not fit this agent.
    #[error(
        "{0}; the program that is attached keeps enforcing. Start with `--replace` to make new tables (every bucket starts full)"
    )]
    Pins(String),
    /// Another agent holds the pins.
    #[error("another agent holds `{0}`; stop it first")]
    Busy(PathBuf),
    /// Updates that do not fit into the tables.
    #[error("{0}")]
    Capacity(String),
    /// The build has no BPF object.
    #[error("{0}")]
    Object(String),
    /// The kernel refused the program.
    #[error("the kernel refused the program: {0}")]
    Program(String),
    /// A system call failed.
    #[error("{doing}: {source}")]
    Kernel {
        /// What was tried, with the thing's name.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's maps say something this agent does not understand.
    #[error("{0}")]
    Corrupt(String),
}

impl Error {
    /// Returns what a caller may do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Tables(_)
            | Self::UnknownInterface(_)
            | Self::BadInterfaceName(_)
            | Self::Capacity(_) => ErrorKind::Invalid,
            Self::ForeignProgram { .. }
            | Self::ForeignLink { .. }
            | Self::OtherMode { .. }
            | Self::Pins(_)
            | Self::Busy(_) => ErrorKind::Conflict,
            Self::Permission { .. } => ErrorKind::Permission,
            Self::NoNative { .. }
            | Self::MtuTooLarge { .. }
            | Self::NoBpffs { .. }
            | Self::Object(_) => ErrorKind::Unsupported,
            Self::Program(_) | Self::Kernel { .. } | Self::Corrupt(_) => ErrorKind::Kernel,
        }
    }

    /// A failed system call, with what it was for.
    pub fn kernel(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel {
            doing: doing.into(),
            source,
        }
    }
}
