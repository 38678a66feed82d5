//! Durations, rates and sizes as people write them: `500/s`, `10k/min`, `50/5m`.

use std::fmt;

use ipnet::IpNet;
use ratelimiter_common::quota::{MAX_WINDOW_NS, MIN_WINDOW_NS};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

const NS: u64 = 1_000_000_000;

/// A period of 1 s to 366 days. Written as seconds (`60`, `1.5`) or as `"90s"`, `"5m"`, `"1h"`,
/// `"1d"`; serialised as a number of seconds when whole, else as a decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Window(u64);

impl Window {
    /// One second, the shortest window.
    pub const SECOND: Self = Self(MIN_WINDOW_NS);
    /// One minute.
    pub const MINUTE: Self = Self(60 * NS);

    /// Returns the window of `ns` nanoseconds, or a sentence with the bound.
    pub fn from_ns(ns: u64) -> Result<Self, String> {
        if (MIN_WINDOW_NS..=MAX_WINDOW_NS).contains(&ns) {
            Ok(Self(ns))
        } else {
            Err(format!(
                "`time_window` is {} s; it must be between 1 s and 366 days (31622400 s)",
                ns as f64 / NS as f64
            ))
        }
    }

    /// The window in nanoseconds.
    pub fn as_ns(self) -> u64 {
        self.0
    }
}

impl utoipa::PartialSchema for Window {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::schema::OneOfBuilder::new()
            .item(
                utoipa::openapi::schema::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::Number)
                    .minimum(Some(1.0))
                    .maximum(Some(31_622_400.0)),
            )
            .item(
                utoipa::openapi::schema::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some("^[1-9][0-9]{0,7}(s|m|h|d)$")),
            )
            .into()
    }
}
impl utoipa::ToSchema for Window {}

/// Parses `"90s"`, `"5m"`, `"1.5h"`, `"1d"` or bare seconds into nanoseconds.
pub fn parse_duration_ns(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let scale = match suffix {
        "ms" => 1e6,
        "" | "s" | "sec" => 1e9,
        "m" | "min" => 60e9,
        "h" => 3_600e9,
        "d" => 86_400e9,
        _ => {
            return Err(format!(
                "`{text}` is not a duration; write for example 90s, 5m, 1h or 1d"
            ));
        }
    };
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 && value * scale < 1.8e19 => {
            Ok((value * scale).round() as u64)
        }
        _ => Err(format!(
            "`{text}` is not a duration; write for example 90s, 5m, 1h or 1d"
        )),
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(NS) {
            serializer.serialize_u64(self.0 / NS)
        } else {
            serializer.serialize_f64(self.0 as f64 / NS as f64)
        }
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WindowVisitor;
        impl Visitor<'_> for WindowVisitor {
            type Value = Window;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds (1 to 31622400) or a duration such as \"5m\"")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Window, E> {
                parse_duration_ns(v)
                    .and_then(Window::from_ns)
                    .map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Window, E> {
                Window::from_ns(v.saturating_mul(NS)).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Window, E> {
                u64::try_from(v).map_or_else(
                    |_| Err(E::custom(format!(
                        "`time_window` is {v} s; it must be between 1 s and 366 days (31622400 s)"
                    ))),
                    |v| self.visit_u64(v),
                )
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Window, E> {
                if v.is_finite() && (0.0..1e9).contains(&v) {
                    Window::from_ns((v * 1e9).round() as u64).map_err(E::custom)
                } else {
                    Err(E::custom(format!(
                        "`time_window` is {v} s; it must be between 1 s and 366 days (31622400 s)"
                    )))
                }
            }
        }
        deserializer.deserialize_any(WindowVisitor)
    }
}

/// Accepts a whole number written as an integer or as an integral float (`10.0`), as JSON Schema
/// does; refuses everything else with the value.
pub fn integral<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Integral;
    impl Visitor<'_> for Integral {
        type Value = u64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number, 0 or more")
        }
        fn visit_u64<E: de::Error>(self, v: u64) -> Result<u64, E> {
            Ok(v)
        }
        fn visit_i64<E: de::Error>(self, v: i64) -> Result<u64, E> {
            u64::try_from(v)
                .map_err(|_| E::custom(format!("{v} is negative; it must be 0 or more")))
        }
        fn visit_f64<E: de::Error>(self, v: f64) -> Result<u64, E> {
            if v.fract() == 0.0 && (0.0..9.007_199_254_740_992e15).contains(&v) {
                Ok(v as u64)
            } else {
                Err(E::custom(format!("{v} is not a whole number, 0 or more")))
            }
        }
    }
    deserializer.deserialize_any(Integral)
}

/// As [`integral`], for a field that may be absent or `null`.
pub fn integral_option<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    struct Wrapper(#[serde(deserialize_with = "integral")] u64);
    Ok(Option::<Wrapper>::deserialize(d)?.map(|w| w.0))
}
/// A prefix whose text is named when it is none.
struct NamedPrefix(IpNet);

impl<'de> Deserialize<'de> for NamedPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| {
            de::Error::custom(format!(
                "`{}` is not a prefix such as `192.0.2.0/24` or `2001:db8::/64`",
                text.chars().take(64).collect::<String>().escape_debug()
            ))
        })
    }
}

/// Reads a list of prefixes.
///
/// # Errors
///
/// The first text that is no prefix, by name.
pub fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let named = Vec::<NamedPrefix>::deserialize(deserializer)?;
    Ok(named
        .into_iter()
        .map(|NamedPrefix(prefix)| prefix)
        .collect())
}
