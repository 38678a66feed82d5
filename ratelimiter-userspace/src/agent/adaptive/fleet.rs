//! The seam to other hosts: what a step sees of them, and where its state is shared.
//!
//! Without a shared store a host is [`Alone`]. An implementation must not wait for anything: it
//! answers from what it has read last, and sends in the background.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::backend::State;
use crate::control::counters::History;
use crate::control::fairness::Histogram;

/// What one host contributes to the steps of a backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::agent) struct Record {
    /// What it has admitted.
    pub(in crate::agent) history: History,
    /// What its clients ask for, by segment.
    pub(in crate::agent) demand: BTreeMap<String, Histogram>,
}

/// The other hosts.
pub(in crate::agent) trait Fleet: Send {
    /// Publishes this host's record of a backend; returns those of the other live hosts, by id.
    fn exchange(&mut self, backend: &str, own: &Record) -> Vec<(String, Record)>;

    /// Offers the state after a step. Returns the state of whoever was first, if another was
    /// (compare-and-set on [`State::epoch`]).
    fn offer(&mut self, backend: &str, state: &State) -> Option<State>;
}

/// There are no others.
pub(in crate::agent) struct Alone;

impl Fleet for Alone {
    fn exchange(&mut self, _backend: &str, _own: &Record) -> Vec<(String, Record)> {
        Vec::new()
    }

    fn offer(&mut self, _backend: &str, _state: &State) -> Option<State> {
        None
    }
}
