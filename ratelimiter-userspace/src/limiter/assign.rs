//! Which policy is whose: configured clients by identity, everybody else by default.

use std::collections::HashMap;

use super::identity::ClientKey;

/// What applies to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Assigned {
    /// Somebody configured it: the policy's number.
    Configured(u32),
    /// Nobody did, and unknown clients have this policy.
    Default(u32),
    /// Nobody did, and unknown clients are refused.
    Refused,
}

/// The assignment in force. Keyed by fingerprint, because that is what a way holds; the place is
/// compared too.
#[derive(Clone, Debug, Default)]
pub(super) struct Assignments {
    clients: HashMap<u64, (u64, u32)>,
    /// Policy of unknown clients; `None` refuses them.
    pub(super) default: Option<u32>,
}

impl Assignments {
    pub(super) fn of(&self, key: ClientKey) -> Assigned {
        match self.clients.get(&key.print) {
            Some(&(place, index)) if place == key.place => Assigned::Configured(index),
            _ => self.default.map_or(Assigned::Refused, Assigned::Default),
        }
    }

    /// Returns what applies to the client with fingerprint `print` for whose place `is_home` holds.
    pub(super) fn of_print(&self, print: u64, is_home: impl Fn(u64) -> bool) -> Assigned {
        match self.clients.get(&print) {
            Some(&(place, index)) if is_home(place) => Assigned::Configured(index),
            _ => self.default.map_or(Assigned::Refused, Assigned::Default),
        }
    }

    /// Assigns a policy; returns the one before.
    pub(super) fn set(&mut self, key: ClientKey, index: u32) -> Option<u32> {
        self.clients
            .insert(key.print, (key.place, index))
            .map(|(_, index)| index)
    }

    /// Removes a client's assignment.
    pub(super) fn remove(&mut self, key: ClientKey) -> Option<u32> {
        self.clients.remove(&key.print).map(|(_, index)| index)
    }
}
