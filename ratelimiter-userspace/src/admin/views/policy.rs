//! Clients, segments, limits and list entries.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::change::Pending;
use crate::policy::model::{Algorithm, Client, Mode, Segment, Unit};
use crate::policy::units::Window;

/// Where an object is defined, and so where it can be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DefinedIn {
    /// Set through the API and kept in the store.
    #[default]
    Store,
    /// Set in the configuration file.
    File,
    /// Nobody set it: a default of the product.
    Default,
    /// Made by the agent itself, for a time, so that nobody is locked out.
    Agent,
}

/// A client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClientView {
    /// Its id.
    pub id: String,
    /// What was configured.
    #[serde(flatten)]
    pub client: Client,
    /// Where it is defined.
    pub defined_in: DefinedIn,
    /// Every limit that applies to it, its segment's included.
    pub effective: Vec<LimitRow>,
    /// The change on trial, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// A segment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SegmentView {
    /// Its name.
    pub name: String,
    /// What was configured.
    #[serde(flatten)]
    pub segment: Segment,
    /// Where it is defined.
    pub defined_in: DefinedIn,
    /// Clients that name it.
    pub clients: u64,
    /// The change on trial, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A client's own.
    Client,
    /// A segment's.
    #[default]
    Segment,
}

/// A limit as it applies, with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitRow {
    /// Whose it is.
    pub owner: Owner,
    /// The owner's id or name.
    pub owner_name: String,
    /// The limit's name.
    pub name: String,
    /// Units per `time_window`.
    pub rate_limit: u64,
    /// The window in seconds.
    pub time_window: Window,
    /// Units admitted at one instant.
    pub burst: u64,
    /// What is counted.
    pub unit: Unit,
    /// How arrivals are judged.
    pub algorithm: Algorithm,
    /// The mode in force: the limit's own, bounded by the agent's.
    pub mode: Mode,
    /// Where it is defined.
    pub defined_in: DefinedIn,
}

/// An entry of the allow or block list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListEntryView {
    /// The prefix.
    pub cidr: String,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who put it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it ends, milliseconds since the Unix epoch; never if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
    /// Where it is defined.
    pub defined_in: DefinedIn,
    /// The change on trial, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_read_back_what_they_write() {
        let text = r#"{"id":"a","segment":"free","sources":["192.0.2.0/28"],
            "limits":{"default":{"rate_limit":5,"time_window":"1m","unit":"packets"}},
            "defined_in":"file","effective":[],"from_a_newer_agent":1}"#;
        let view: ClientView = serde_json::from_str(text).unwrap();
        assert_eq!(view.client.limits["default"].rate_limit, 5);
        assert_eq!(view.client.segment.as_deref(), Some("free"));
        let again = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<ClientView>(&again).unwrap(), view);
    }
}
