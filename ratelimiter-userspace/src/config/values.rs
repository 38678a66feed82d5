//! Types of single settings that are more than a number or a string.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

/// Where a service listens: an address with a port, or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// The service does not run.
    Off,
    /// Address and port.
    At(SocketAddr),
}

impl Listen {
    /// The address, if the service runs.
    #[must_use]
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => write!(f, "{address}"),
        }
    }
}

impl FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| {
            format!(
                "`{}` is not an address with a port; write for example 127.0.0.1:9740, [::1]:9740 \
                 or off",
                text.escape_debug()
            )
        })
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl utoipa::PartialSchema for Listen {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::schema::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("An address with a port, or `off`."))
            .into()
    }
}
impl ToSchema for Listen {}

/// How a program sits on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// In the driver, before the stack allocates anything.
    #[default]
    Native,
    /// In the stack, for drivers without XDP: slower, and it sees merged segments.
    Generic,
}

/// What happens when another XDP program is found on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attach {
    /// Leave it alone and refuse to attach, naming it.
    #[default]
    Refuse,
    /// Replace it.
    Replace,
}

/// An interface the agent attaches to. Written `"eth0"`, `"eth0:generic"` or
/// `{ name = "eth0", mode = "generic" }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(title = "Interface")]
pub struct Interface {
    /// Name of the interface, 1 to 15 characters.
    pub name: String,
    /// Native by default; generic only when asked for.
    #[schema(default = "native")]
    pub mode: AttachMode,
    /// What to do about a foreign XDP program.
    #[schema(default = "refuse")]
    pub foreign: Attach,
}

impl FromStr for Interface {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, mode) = text.rsplit_once(':').unwrap_or((text, "native"));
        let mode = match mode {
            "native" => AttachMode::Native,
            "generic" => AttachMode::Generic,
            other => {
                return Err(format!(
                    "mode `{}` of interface `{}` is neither `native` nor `generic`",
                    other.escape_debug(),
                    name.escape_debug()
                ));
            }
        };
        Ok(Self {
            name: name.to_owned(),
            mode,
            foreign: Attach::Refuse,
        })
    }
}

impl<'de> Deserialize<'de> for Interface {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            name: String,
            #[serde(default)]
            mode: AttachMode,
            #[serde(default)]
            foreign: Attach,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Interface;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an interface such as \"eth0\" or { name = \"eth0\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Interface, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Interface, A::Error> {
                let table = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Interface {
                    name: table.name,
                    mode: table.mode,
                    foreign: table.foreign,
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What becomes of frames that cannot be parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Malformed {
    /// Dropped.
    #[default]
    Drop,
    /// Charged to one budget that all of them share.
    Budget,
}

/// What applies to a client nobody configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownClients {
    /// The default segment's limits.
    #[default]
    DefaultSegment,
    /// Nothing passes.
    Deny,
    /// Everything passes.
    Allow,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What a credential may do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Read everything but secrets.
    Read,
    /// Ask the check API.
    Check,
    /// Have the address of a client that is refused many times in a row blocked.
    Escalate,
    /// Push health reports.
    Health,
    /// Change clients, limits, segments and lists.
    Write,
    /// Everything: attach, detach, resync, confirm for others.
    Admin,
}

impl Right {
    /// The word used in configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Check => "check",
            Self::Escalate => "escalate",
            Self::Health => "health",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// A text that is never shown: not in logs, not in `config show`, not in `{:?}`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for comparing; never for showing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

impl utoipa::PartialSchema for Secret {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::schema::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .min_length(Some(MIN_TOKEN_BYTES))
            .into()
    }
}
impl ToSchema for Secret {}

/// Shortest token, in bytes.
pub(super) const MIN_TOKEN_BYTES: usize = 16;
