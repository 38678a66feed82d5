//! Why a source is judged as it is: the rule, the buckets, the next allowed time. And forgiving.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ratelimiter_common::abi::merge::{MergeOp, op, result};
use ratelimiter_common::abi::policy::{PrefixValue, action};
use ratelimiter_common::abi::tracked::{SourceKey, shared_key};
use ratelimiter_common::quota::Unit as CommonUnit;
use ratelimiter_common::verdict::Reason;

use super::core::plane_error;
use super::standing::{Now, unit_state};
use super::state::{View, shown};
use super::talkers::Talker;
use crate::admin::views::{DefinedIn, Explanation, ResetAnswer, Rule, RuleKind};
use crate::admin::{AdminError, ListName, Result};
use crate::clock;
use crate::dataplane::DataPlane;
use crate::policy::keys::{is_narrow, source_key};
use crate::policy::model::{DEFAULT_SEGMENT, Document, Mode};
use crate::policy::plan::Prefix;
use crate::policy::prefixes::unmapped;
use crate::policy::resolve::{Effective, KERNEL, bounded, kernel_limits, segment_of};
use crate::policy::slots::PolicyName;

/// Where a source's buckets are.
struct Place {
    key: SourceKey,
    family: u32,
    /// Zone, for the crowd.
    slot: u32,
    policy: u32,
    tracked: bool,
}

/// The address a talker's key stands for; none for shared buckets.
pub(super) fn address_of(talker: &Talker) -> Option<IpAddr> {
    match (talker.family, talker.key >> 48) {
        (4, _) => Some(Ipv4Addr::from(talker.key as u32).into()),
        (6, 0x0001) | (0, _) => None,
        _ => Some(Ipv6Addr::from(u128::from(talker.key) << 64).into()),
    }
}

/// Explains a source.
pub(super) fn source(
    view: &View,
    plane: &dyn DataPlane,
    v6_prefix_len: u8,
    address: IpAddr,
) -> Result<Explanation> {
    let address = unmapped(address);
    let mut explanation = Explanation {
        subject: address.to_string(),
        agent_mode: Some(view.mode),
        ..Explanation::default()
    };
    let Some(key) = source_key(address, v6_prefix_len) else {
        explanation.rule.kind = RuleKind::Malformed;
        "malformed".clone_into(&mut explanation.rule.name);
        judge(&mut explanation, Reason::Malformed, view.mode);
        return Ok(explanation);
    };
    let family = if address.is_ipv4() { 4 } else { 6 };
    explanation.source = Some(shown(key, family, v6_prefix_len));
    let found = view
        .covering(address)
        .filter(|(_, value)| in_force(value, clock::monotonic_ns()).0 != action::PARENT);
    explanation.path.push(match &found {
        Some((prefix, _)) => format!("the most specific prefix with a rule is `{prefix}`"),
        None => "no prefix has a rule for it: the default segment applies".to_owned(),
    });
    let (does, slot) = found.map_or((action::ZONE, 0), |(_, value)| {
        in_force(&value, clock::monotonic_ns())
    });
    match does {
        action::ALLOW | action::BLOCK => {
            listed(view, &mut explanation, address, does == action::ALLOW);
            let (reason, mode) = if does == action::ALLOW {
                (Reason::AllowListed, Mode::Enforce)
            } else {
                (Reason::Blocked, view.mode)
            };
            judge(&mut explanation, reason, mode);
            return Ok(explanation);
        }
        _ => {}
    }
    let place = place(view, does, slot, key, u32::from(family));
    owner(
        view,
        &mut explanation,
        &place,
        address,
        found.map(|(prefix, _)| prefix),
    );
    buckets(view, plane, &mut explanation, &place)?;
    Ok(explanation)
}

/// Explains a client: its first source's bucket, or its requests' limits where it has no source.
pub(super) fn client(
    view: &View,
    plane: &dyn DataPlane,
    v6_prefix_len: u8,
    id: &str,
) -> Result<Explanation> {
    let client = view
        .document
        .clients
        .get(id)
        .ok_or_else(|| AdminError::NotFound {
            what: "client",
            name: id.to_owned(),
        })?;
    let mut explanation = match client.sources.first() {
        Some(prefix) => source(view, plane, v6_prefix_len, prefix.network())?,
        None => Explanation {
            verdict: "pass".to_owned(),
            reason: "conforming".to_owned(),
            summary: format!(
                "client `{id}` has no source prefixes: no packet is limited under its name"
            ),
            agent_mode: Some(view.mode),
            ..Explanation::default()
        },
    };
    if client.sources.len() > 1 {
        explanation.path.push(format!(
            "the client has {} source prefixes; the first one is shown",
            client.sources.len()
        ));
    }
    id.clone_into(&mut explanation.subject);
    explanation.client = Some(id.to_owned());
    explanation.segment = Some(segment_of(client).to_owned());
    if explanation.rule.name.is_empty() {
        explanation.rule = rule_of(view, &PolicyName::Client(id.to_owned()));
    }
    Ok(explanation)
}

/// Forgives what a source owes.
pub(super) fn reset(
    view: &View,
    plane: &dyn DataPlane,
    v6_prefix_len: u8,
    address: IpAddr,
) -> Result<ResetAnswer> {
    let address = unmapped(address);
    let key = source_key(address, v6_prefix_len).ok_or_else(|| {
        AdminError::invalid(
            "/ip",
            format!("no packet may come from `{address}`: it has no bucket"),
        )
    })?;
    let (does, slot) = view
        .covering(address)
        .map_or((action::ZONE, 0), |(_, value)| {
            in_force(&value, clock::monotonic_ns())
        });
    if does == action::ALLOW || does == action::BLOCK {
        return Ok(ResetAnswer {
            subject: address.to_string(),
            buckets: 0,
            summary: format!(
                "`{address}` is on the {} list: there is no bucket to empty",
                if does == action::ALLOW {
                    "allow"
                } else {
                    "block"
                }
            ),
        });
    }
    let family = if address.is_ipv4() { 4 } else { 6 };
    let place = place(view, does, slot, key, family);
    let mut ops = ops(view, &place, op::RESET);
    plane.merge(&mut ops).map_err(plane_error)?;
    let contended = ops.iter().any(|o| o.result == result::CONTENDED);
    if contended {
        return Err(AdminError::Unavailable(format!(
            "the bucket of `{address}` changed too fast to be emptied; try again"
        )));
    }
    let buckets = ops.iter().filter(|o| o.result == result::DONE).count() as u64;
    Ok(ResetAnswer {
        subject: address.to_string(),
        buckets,
        summary: if buckets == 0 {
            format!("`{address}` owed nothing")
        } else {
            format!("`{address}` owes nothing any more")
        },
    })
}

/// What a prefix says now.
fn in_force(value: &PrefixValue, now_ns: u64) -> (u32, u32) {
    if now_ns < value.until_ns {
        (value.action, value.slot)
    } else {
        (value.after_action, value.after_slot)
    }
}

fn place(view: &View, does: u32, slot: u32, key: SourceKey, family: u32) -> Place {
    let in_crowd = !matches!(does, action::TRACKED | action::SHARED);
    let policy = if in_crowd {
        let zone = view.compiled.zones.get(slot as usize);
        zone.map_or(0, |zone| zone.slot)
    } else {
        slot
    };
    Place {
        key: if does == action::SHARED {
            shared_key(slot)
        } else {
            key
        },
        family,
        slot: if in_crowd { slot } else { policy },
        policy,
        tracked: !in_crowd,
    }
}

fn listed(view: &View, explanation: &mut Explanation, address: IpAddr, allowed: bool) {
    let list = if allowed {
        ListName::Allow
    } else {
        ListName::Block
    };
    let entry = list
        .of(&view.document)
        .iter()
        .filter(|(prefix, _)| prefix.contains(&address))
        .max_by_key(|(prefix, _)| prefix.prefix_len());
    if let Some((prefix, entry)) = entry {
        explanation.rule = Rule {
            kind: if allowed {
                RuleKind::Allow
            } else {
                RuleKind::Block
            },
            name: prefix.to_string(),
            prefix: Some(prefix.to_string()),
            defined_in: view.list_defined_in(list, prefix),
            set_by: entry.by.clone(),
            reason: entry.reason.clone(),
            expires_unix_ms: entry.expires_unix_ms,
            ..Rule::default()
        };
        explanation
            .path
            .push(format!("`{prefix}` is on the {} list", list.as_str()));
    }
}

fn rule_of(view: &View, name: &PolicyName) -> Rule {
    match name {
        PolicyName::Client(id) => Rule {
            kind: RuleKind::Client,
            name: id.clone(),
            defined_in: if view.fixed.clients.contains_key(id) {
                DefinedIn::File
            } else {
                DefinedIn::Store
            },
            ..Rule::default()
        },
        PolicyName::Segment(segment) => Rule {
            kind: if segment == DEFAULT_SEGMENT {
                RuleKind::Default
            } else {
                RuleKind::Segment
            },
            name: segment.clone(),
            defined_in: segment_defined_in(view, segment),
            ..Rule::default()
        },
    }
}

pub(super) fn segment_defined_in(view: &View, segment: &str) -> DefinedIn {
    if view.fixed.segments.contains_key(segment) {
        DefinedIn::File
    } else if view.stored.segments.contains_key(segment) {
        DefinedIn::Store
    } else {
        DefinedIn::Default
    }
}

fn client_of(document: &Document, address: IpAddr) -> Option<&str> {
    document
        .clients
        .iter()
        .filter_map(|(id, client)| {
            let longest = client
                .sources
                .iter()
                .filter(|prefix| prefix.contains(&address))
                .map(Prefix::prefix_len)
                .max()?;
            Some((longest, id.as_str()))
        })
        .max()
        .map(|(_, id)| id)
}

fn owner(
    view: &View,
    explanation: &mut Explanation,
    place: &Place,
    address: IpAddr,
    prefix: Option<Prefix>,
) {
    explanation.tracked = place.tracked;
    let name = view.compiled.policies.get(&place.policy).map(|p| &p.name);
    let mut rule = name.map(|name| rule_of(view, name)).unwrap_or_default();
    rule.prefix = prefix.map(|prefix| prefix.to_string());
    explanation.segment = Some(DEFAULT_SEGMENT.to_owned());
    if let Some(PolicyName::Segment(segment)) = name {
        explanation.segment = Some(segment.clone());
    }
    if place.tracked
        && let Some(id) = client_of(&view.document, address)
    {
        explanation.client = Some(id.to_owned());
        if let Some(client) = view.document.clients.get(id) {
            explanation.segment = Some(segment_of(client).to_owned());
        }
        explanation
            .path
            .push(format!("it belongs to client `{id}`"));
    }
    explanation.path.push(format!(
        "the policy of {} applies",
        name.map_or_else(|| "the default segment".to_owned(), |n| format!("`{n}`"))
    ));
    explanation.path.push(
        match (place.tracked, place.key == shared_key(place.policy)) {
            (true, true) => "all sources of the client share one bucket",
            (true, false) => "it has an entry of its own in the tracked table",
            (false, _) => "it is one of the crowd",
        }
        .to_owned(),
    );
    explanation.rule = rule;
}

fn ops(view: &View, place: &Place, what: u32) -> Vec<MergeOp> {
    let units = view.policies.get(&place.policy).map_or(0, |e| e.units);
    (0..KERNEL.len() as u32)
        .filter(|unit| units & 1 << unit != 0)
        .map(|unit| MergeOp {
            op: what,
            unit,
            key: place.key,
            slot: place.slot,
            family: place.family,
            ..MergeOp::default()
        })
        .collect()
}

fn buckets(
    view: &View,
    plane: &dyn DataPlane,
    explanation: &mut Explanation,
    place: &Place,
) -> Result<()> {
    let mut reads = ops(view, place, op::READ);
    plane.merge(&mut reads).map_err(plane_error)?;
    let (now_ns, now_unix_ms) = (clock::monotonic_ns(), clock::unix_ms());
    let limits = limits_of(view, place.policy);
    let mut worst = (Reason::Conforming, Mode::Enforce);
    let Some(entry) = view.policies.get(&place.policy) else {
        judge(explanation, Reason::NoPolicy, view.mode);
        return Ok(());
    };
    for read in &reads {
        let debt = if read.result == result::DONE {
            read.level
        } else {
            0
        };
        let effective = limits
            .iter()
            .flatten()
            .find(|e| e.spec.unit as u32 == read.unit);
        let now = Now {
            real_ns: now_ns,
            unix_ms: now_unix_ms,
            segment: view.segment_clock(entry),
        };
        let Some(mut unit) = unit_state(entry, read.unit, debt, effective, &now) else {
            continue;
        };
        unit.mode = bounded(unit.mode, view.mode);
        let reason = match unit.unit {
            crate::policy::model::Unit::Bytes => Reason::OverBytes,
            crate::policy::model::Unit::Connections => Reason::OverConnections,
            _ => Reason::OverPackets,
        };
        explanation.path.push(format!(
            "{}: {:.3} of {} free",
            CommonUnit::from(unit.unit).as_str(),
            unit.tokens,
            unit.burst
        ));
        if unit.retry_after_s > 0.0 && worst.0 == Reason::Conforming {
            worst = (reason, unit.mode);
        }
        explanation.units.push(unit);
    }
    judge(explanation, worst.0, worst.1);
    Ok(())
}

/// The limits of packets, bytes and connections of the policy in a slot.
pub(super) fn limits_of(view: &View, policy: u32) -> Vec<Option<Effective<'_>>> {
    let document = &view.document;
    let (client, segment) = match view.compiled.policies.get(&policy).map(|p| &p.name) {
        Some(PolicyName::Client(id)) => {
            let client = document.clients.get(id);
            (client, client.map_or(DEFAULT_SEGMENT, segment_of))
        }
        Some(PolicyName::Segment(name)) => (None, name.as_str()),
        None => (None, DEFAULT_SEGMENT),
    };
    kernel_limits(document, client, segment, view.mode).to_vec()
}

fn judge(explanation: &mut Explanation, reason: Reason, mode: Mode) {
    let refused = reason.refuses();
    let dropped = refused && mode == Mode::Enforce;
    if dropped { "drop" } else { "pass" }.clone_into(&mut explanation.verdict);
    reason.as_str().clone_into(&mut explanation.reason);
    let wait = explanation
        .units
        .iter()
        .map(|unit| unit.retry_after_s)
        .fold(0.0, f64::max);
    explanation.summary = match (refused, dropped) {
        (false, _) => format!("a packet from `{}` passes now", explanation.subject),
        (true, true) if wait > 0.0 => format!(
            "a packet from `{}` is dropped ({}); the next one passes in {wait:.3} s",
            explanation.subject, explanation.reason
        ),
        (true, true) => format!(
            "a packet from `{}` is dropped ({})",
            explanation.subject, explanation.reason
        ),
        (true, false) => format!(
            "a packet from `{}` passes only because of shadow mode ({})",
            explanation.subject, explanation.reason
        ),
    };
}

/// Forgives what a client owes: each of its sources' buckets, or its shared one.
pub(super) fn reset_client(
    view: &View,
    plane: &dyn DataPlane,
    v6_prefix_len: u8,
    id: &str,
) -> Result<ResetAnswer> {
    let client = view
        .document
        .clients
        .get(id)
        .ok_or_else(|| AdminError::NotFound {
            what: "client",
            name: id.to_owned(),
        })?;
    let mut buckets = 0;
    for prefix in &client.sources {
        let addresses: Vec<IpAddr> = match prefix {
            _ if !is_narrow(prefix, v6_prefix_len) => vec![prefix.network()],
            Prefix::V4(net) => net.hosts().map(IpAddr::V4).collect(),
            Prefix::V6(net) => net
                .subnets(v6_prefix_len.max(net.prefix_len()))
                .map(|subnets| subnets.map(|net| IpAddr::V6(net.network())).collect())
                .unwrap_or_default(),
        };
        for address in addresses {
            buckets += reset(view, plane, v6_prefix_len, address)?.buckets;
        }
    }
    Ok(ResetAnswer {
        subject: id.to_owned(),
        buckets,
        summary: format!("client `{id}`: {buckets} buckets emptied"),
    })
}
