//! What people see of the policy and the figures, row by row.

use std::collections::BTreeMap;

use super::explain;
use super::state::{Figured, View};
use super::tag::shown_tag;
use crate::admin::views::{
    ClientView, CrowdView, DefinedIn, InterfaceView, LimitRow, Owner, SegmentView,
};
use crate::clock;
use crate::config;
use crate::dataplane::{AttachMode, Interface, InterfaceState};
use crate::policy::model::{Client, DEFAULT_SEGMENT, Document, Segment};
use crate::policy::resolve::{Effective, Source, kernel_limits, request_limits, segment_of};
use crate::policy::slots::PolicyName;

pub(super) fn tag(view: &View, path: &str) -> String {
    shown_tag(&view.stored, &view.document, path).unwrap_or_default()
}

pub(super) fn row(
    view: &View,
    owner: Owner,
    owner_name: &str,
    effective: &Effective<'_>,
) -> LimitRow {
    let quota = effective.spec.quota();
    LimitRow {
        owner,
        owner_name: owner_name.to_owned(),
        name: effective.name.to_owned(),
        rate_limit: effective.spec.rate_limit,
        time_window: effective.spec.time_window,
        burst: quota.burst,
        unit: effective.spec.unit,
        algorithm: effective.spec.algorithm(),
        mode: effective.mode,
        defined_in: match owner {
            Owner::Client if view.fixed.clients.contains_key(owner_name) => DefinedIn::File,
            Owner::Client => DefinedIn::Store,
            Owner::Segment => explain::segment_defined_in(view, owner_name),
        },
    }
}

pub(super) fn effective_rows(
    view: &View,
    id: Option<&str>,
    client: Option<&Client>,
    segment: &str,
) -> Vec<LimitRow> {
    let document = &view.document;
    kernel_limits(document, client, segment, view.mode)
        .into_iter()
        .flatten()
        .chain(request_limits(document, client, segment, view.mode))
        .map(|effective| match (effective.source, id) {
            (Source::Client, Some(id)) => row(view, Owner::Client, id, &effective),
            (Source::DefaultSegment, _) => row(view, Owner::Segment, DEFAULT_SEGMENT, &effective),
            _ => row(view, Owner::Segment, segment, &effective),
        })
        .collect()
}

pub(super) fn client_view(view: &View, id: &str, client: &Client) -> ClientView {
    ClientView {
        id: id.to_owned(),
        client: client.clone(),
        defined_in: if view.fixed.clients.contains_key(id) {
            DefinedIn::File
        } else {
            DefinedIn::Store
        },
        effective: effective_rows(view, Some(id), Some(client), segment_of(client)),
        pending: view.trial(&format!("clients/{id}")),
    }
}

pub(super) fn members(document: &Document) -> BTreeMap<&str, u64> {
    let mut members = BTreeMap::new();
    for client in document.clients.values() {
        *members.entry(segment_of(client)).or_default() += 1;
    }
    members
}

pub(super) fn segment_view(
    view: &View,
    name: &str,
    segment: &Segment,
    clients: u64,
) -> SegmentView {
    SegmentView {
        name: name.to_owned(),
        segment: segment.clone(),
        defined_in: explain::segment_defined_in(view, name),
        clients,
        pending: view.trial(&format!("segments/{name}")),
    }
}

/// Every limit as its owner wrote it, segments first.
pub(super) fn all_limits(view: &View) -> Vec<LimitRow> {
    let document = &view.document;
    let written = |owner, name: &str, limits: &crate::policy::model::Limits, mode| {
        limits
            .iter()
            .map(|(limit, spec)| {
                let effective = Effective {
                    name: limit,
                    spec,
                    source: Source::Client,
                    mode: spec.mode.or(mode).unwrap_or(view.mode),
                };
                row(view, owner, name, &effective)
            })
            .collect::<Vec<_>>()
    };
    let segments = document
        .segments
        .iter()
        .flat_map(|(name, s)| written(Owner::Segment, name, &s.limits, s.mode));
    let clients = document
        .clients
        .iter()
        .flat_map(|(id, c)| written(Owner::Client, id, &c.limits, c.mode));
    segments.chain(clients).collect()
}

pub(super) fn interface_view(interface: &Interface) -> InterfaceView {
    let (state, problem) = match &interface.state {
        InterfaceState::Attached => ("attached", None),
        InterfaceState::Absent => ("absent", Some("the interface does not exist".to_owned())),
        InterfaceState::Failed { reason } => ("failed", Some(reason.clone())),
    };
    InterfaceView {
        name: interface.name.clone(),
        index: interface.index,
        mode: match interface.mode {
            AttachMode::Native => config::AttachMode::Native,
            AttachMode::Generic => config::AttachMode::Generic,
        },
        attached: interface.is_attached(),
        state: state.to_owned(),
        problem,
        since_s: clock::monotonic_ns().saturating_sub(interface.since_ns) as f64 / 1e9,
    }
}

pub(super) fn plane_mode(mode: config::AttachMode) -> AttachMode {
    match mode {
        config::AttachMode::Native => AttachMode::Native,
        config::AttachMode::Generic => AttachMode::Generic,
    }
}

/// The crowd's regions with what the sizing law says about them.
pub(super) fn crowd_views(view: &View, figured: &Figured) -> Vec<CrowdView> {
    let slot_of = |zone: u8| view.compiled.zones.get(usize::from(zone)).map(|z| z.slot);
    figured
        .figures
        .crowd
        .iter()
        .map(|fill| {
            let policy = slot_of(fill.zone).and_then(|slot| view.compiled.policies.get(&slot));
            let segment = match policy.map(|policy| &policy.name) {
                Some(PolicyName::Segment(name) | PolicyName::Client(name)) => name.as_str(),
                None => DEFAULT_SEGMENT,
            };
            let number = view.compiled.segments.get(segment).copied().unwrap_or(0);
            let conforming_per_s = figured
                .conforming_per_s
                .get(number as usize)
                .copied()
                .unwrap_or(0.0);
            CrowdView {
                family: if fill.v6 { 6 } else { 4 },
                region: fill.region,
                segment: segment.to_owned(),
                unit: ["packets", "bytes", "connections"]
                    .get(usize::from(fill.unit))
                    .copied()
                    .unwrap_or("packets")
                    .to_owned(),
                capacity: fill.capacity,
                claimed: fill.claimed,
                indebted: fill.indebted,
                over_limit: fill.over_limit,
                phi: fill.phi(conforming_per_s),
                offender_share: fill.offender_share(),
            }
        })
        .collect()
}
