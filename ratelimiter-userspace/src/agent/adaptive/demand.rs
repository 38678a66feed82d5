//! What a backend's clients ask for here, read twice a second: the demand that fair shares are of.

use std::collections::BTreeMap;

use super::backend::{Around, Backend};
use super::scales::Member;
use super::wants::Wants;
use crate::config::adaptive::Counts;
use crate::policy::model::{DEFAULT_SEGMENT, Unit};
use crate::policy::resolve::{Effective, kernel_limits, segment_of};
use crate::policy::slots::PolicyName;

/// How much of a new reading of demand is believed.
const DEMAND_SMOOTHING: f64 = 0.5;
/// What callers name with their questions stays a segment for so long after the last one, in
/// seconds, and so many do.
const FAMILY_S: f64 = 600.0;
const FAMILIES_MAX: usize = 256;
/// Packets that these verdicts concern are not asked for by clients: reasons of lists.
const LISTED: [&str; 2] = ["allow_listed", "blocked"];

impl Backend {
    pub(super) fn read_demand(&mut self, around: &Around<'_>) {
        let elapsed_s = self.demand_s.map(|at_s| around.now_s - at_s);
        self.demand_s = Some(around.now_s);
        let mut members = self.segments(around);
        let mut fresh: Vec<Wants> = members.iter().map(|_| Wants::default()).collect();
        match (self.settings.counts, elapsed_s) {
            (_, None) => {
                // Counted since nobody knows when.
                let _old = around.checks.limiter().take_demand(&self.name);
            }
            (Counts::Requests, Some(elapsed_s)) => {
                for client in around.checks.limiter().take_demand(&self.name) {
                    let at = members.iter().position(|m| *m.segment == *client.segment);
                    let at = at.unwrap_or_else(|| {
                        // A family of policies that callers name with each question.
                        members.push(self.member(&client.segment, 1.0, client.limit_per_s));
                        fresh.push(Wants::default());
                        members.len() - 1
                    });
                    if let (Some(member), Some(into)) = (members.get(at), fresh.get_mut(at)) {
                        let rate = client.checks as f64 / elapsed_s.max(1e-3);
                        member.add(into, rate, client.limit_per_s, client.who);
                    }
                }
            }
            (Counts::Packets, Some(_)) => talkers(around, &members, &mut fresh),
        }
        for (member, fresh) in members.iter_mut().zip(&fresh) {
            let before = self
                .members
                .iter()
                .find(|before| before.segment == member.segment);
            if let Some(before) = before {
                member.wants = before.wants.clone();
            }
            member.wants.blend(fresh, DEMAND_SMOOTHING);
        }
        self.keep_families(around, &mut members);
        self.members = members;
    }

    /// What callers named lately stays: its limits must not jump back between two questions.
    fn keep_families(&mut self, around: &Around<'_>, members: &mut Vec<Member>) {
        let configured = &around.view.document.segments;
        let named = members
            .iter()
            .filter(|member| !configured.contains_key(&member.segment) && !member.wants.is_empty());
        for member in named {
            self.families.insert(member.segment.clone(), around.now_s);
        }
        self.families
            .retain(|_, at_s| around.now_s - *at_s < FAMILY_S);
        while self.families.len() > FAMILIES_MAX {
            let oldest = self.families.iter().min_by(|a, b| a.1.total_cmp(b.1));
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else {
                break;
            };
            self.families.remove(&oldest);
        }
        for before in &self.members {
            let known = members.iter().any(|m| m.segment == before.segment);
            if !known && self.families.contains_key(&before.segment) {
                let mut member = before.clone();
                member.wants.blend(&Wants::default(), DEMAND_SMOOTHING);
                members.push(member);
            }
        }
        members.retain(|member| {
            configured.contains_key(&member.segment) || self.families.contains_key(&member.segment)
        });
    }

    fn member(&self, segment: &str, weight: f64, limit_per_s: Option<f64>) -> Member {
        Member {
            segment: segment.to_owned(),
            weight,
            floor: self.settings.floors.get(segment).copied().unwrap_or(0.0),
            limit_per_s,
            wants: Wants::default(),
        }
    }

    /// The segments whose clients use this backend.
    fn segments(&self, around: &Around<'_>) -> Vec<Member> {
        let document = &around.view.document;
        document
            .segments
            .iter()
            .filter(|(_, segment)| {
                segment.backend.as_deref().unwrap_or(DEFAULT_SEGMENT) == self.name
            })
            .map(|(name, segment)| {
                let limit_per_s = match self.settings.counts {
                    Counts::Requests => around.checks.limiter().segment_limit_per_s(name),
                    Counts::Packets => {
                        packets_per_s(&kernel_limits(document, None, name, around.view.mode))
                    }
                };
                self.member(name, f64::from(segment.weight.unwrap_or(1)), limit_per_s)
            })
            .collect()
    }
}

/// Packets of the segments that use a backend. Segments come and go, their counters began long ago:
/// only what is counted while they are here counts.
#[derive(Debug, Default)]
pub(super) struct Packets {
    total: u64,
    /// The last count of each segment, by number.
    last: BTreeMap<u32, u64>,
}

impl Packets {
    /// Takes the counters of the segments there are now; everything counted so far.
    pub(super) fn after(&mut self, counts: impl Iterator<Item = (u32, u64)>) -> f64 {
        let mut last = BTreeMap::new();
        for (number, count) in counts {
            // A counter that fell is another one.
            let before = self.last.get(&number).copied().unwrap_or(count);
            self.total += count.saturating_sub(before);
            last.insert(number, count);
        }
        self.last = last;
        self.total as f64
    }
}

/// Packets per second that limits allow in the long run.
fn packets_per_s(limits: &[Option<Effective<'_>>]) -> Option<f64> {
    limits
        .iter()
        .flatten()
        .find(|limit| limit.spec.unit == Unit::Packets)
        .map(|limit| limit.spec.rate_limit as f64 * 1e9 / limit.spec.time_window.as_ns() as f64)
}

/// Demand of the sources that were sampled: what the others send is below any level.
fn talkers(around: &Around<'_>, members: &[Member], fresh: &mut [Wants]) {
    let (view, document) = (around.view, &around.view.document);
    for talker in around.figured.talkers.iter() {
        let reason = ratelimiter_common::verdict::Reason::ALL.get(usize::from(talker.reason));
        if reason.is_some_and(|reason| LISTED.contains(&reason.as_str())) {
            continue;
        }
        let policy = view.compiled.policies.get(&talker.slot);
        let (client, segment) = match policy.map(|policy| &policy.name) {
            Some(PolicyName::Client(id)) => {
                let client = document.clients.get(id);
                (client, client.map_or(DEFAULT_SEGMENT, segment_of))
            }
            Some(PolicyName::Segment(name)) => (None, name.as_str()),
            None => (None, DEFAULT_SEGMENT),
        };
        let at = members.iter().position(|m| m.segment == segment);
        if let Some((member, into)) = at.and_then(|at| Some((members.get(at)?, fresh.get_mut(at)?)))
        {
            let limit = packets_per_s(&kernel_limits(document, client, segment, view.mode));
            // Each host's clocks run slower by themselves.
            member.add(into, talker.packets_per_s, limit, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_comes_or_goes_is_no_surge() {
        let mut packets = Packets::default();
        let mut after = |counts: &[(u32, u64)]| packets.after(counts.iter().copied()) as u64;
        assert_eq!(after(&[(1, 1_000_000)]), 0);
        assert_eq!(after(&[(1, 1_000_050)]), 50);
        assert_eq!(after(&[(1, 1_000_060), (2, 9_000_000)]), 60, "2 joins");
        assert_eq!(after(&[(1, 1_000_070), (2, 9_000_005)]), 75);
        assert_eq!(after(&[(2, 9_000_006)]), 76, "1 leaves");
        assert_eq!(after(&[(1, 2_000_000), (2, 9_000_007)]), 77, "and returns");
        assert_eq!(after(&[(1, 3), (2, 9_000_007)]), 77, "another counter");
    }
}
