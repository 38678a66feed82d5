//! From a controller's decision to one scale per segment and plane. Pure.
//!
//! A segment's clients share one weight per unit of their own limit: whoever is configured twice
//! the limit of the segment has twice the level. So the level is one number for all of a segment's
//! policies, the speed of its clock, and changes for all of them at one moment.

use super::wants::Wants;
use crate::control::backend::InForce;
use crate::control::fairness::Group;

/// Smallest scale: a clock that stands still would never let anybody back in.
const LEAST: f64 = 0.000_1;

/// A segment of the backend, as far as scales depend on it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    /// Its name.
    pub(super) segment: String,
    /// Its share in a shortage.
    pub(super) weight: f64,
    /// Its scale never falls below this.
    pub(super) floor: f64,
    /// What its own limit allows each client, units per second; `None` if it has none.
    pub(super) limit_per_s: Option<f64>,
    /// What its clients want.
    pub(super) wants: Wants,
}

impl Member {
    /// As the controller sees it, where there are no other hosts.
    pub(super) fn group(&self) -> Group {
        Group {
            name: self.segment.clone(),
            weight: self.weight,
            demand: self.wants.all.clone(),
        }
    }

    /// Counts a client that wants `rate` and is allowed `limit_per_s`, both per second; `who` is
    /// said where its limit holds over the fleet.
    pub(super) fn add(
        &self,
        into: &mut Wants,
        rate: f64,
        limit_per_s: Option<f64>,
        who: Option<u64>,
    ) {
        let Some(limit) = limit_per_s else {
            // Nothing can hold it back, so its demand is none that a level could share out.
            return;
        };
        let weight = self.limit_per_s.map_or(1.0, |own| limit / own);
        into.add(rate.min(limit), weight, who);
    }
}

/// What a segment's limits are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    /// In the plane whose units the budget counts.
    pub(super) counted: f64,
    /// In the other one: the factor alone.
    pub(super) other: f64,
    /// What each client of the segment's own limit may use, units per second, if that is less.
    pub(super) level: Option<f64>,
}

/// Returns the scale of each member, in order.
pub(super) fn scales(in_force: &InForce, members: &[Member]) -> Vec<Scale> {
    members
        .iter()
        .map(|member| {
            let mut shares = in_force.shares.iter();
            let share = shares.find(|share| share.group == member.segment);
            let least = member.floor.max(LEAST);
            let level = share.and_then(|share| share.level);
            let by_level = level
                .zip(member.limit_per_s)
                .map_or(1.0, |(level, limit)| level / limit);
            let within = |scale: f64| scale.min(1.0).max(least);
            Scale {
                counted: within(in_force.factor.min(by_level)),
                other: within(in_force.factor),
                level,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fairness::share_out;

    fn member(segment: &str, wants: &[(f64, f64)]) -> Member {
        let mut member = Member {
            segment: segment.to_owned(),
            weight: 1.0,
            floor: 0.0,
            limit_per_s: Some(100.0),
            wants: Wants::default(),
        };
        let mut wanted = Wants::default();
        for (rate, limit) in wants {
            member.add(&mut wanted, *rate, Some(*limit), None);
        }
        member.wants = wanted;
        member
    }

    fn in_force(members: &[Member], factor: f64, budget: Option<f64>) -> InForce {
        let groups: Vec<Group> = members.iter().map(Member::group).collect();
        InForce {
            factor,
            budget,
            shares: share_out(&groups, budget),
        }
    }

    #[test]
    fn the_polite_are_served_and_the_greedy_share_what_is_left() {
        // 10 clients of 5/s, 2 that want all of their 100/s; 90/s to share out.
        let wants = [vec![(5.0, 100.0); 10], vec![(500.0, 100.0); 2]].concat();
        let members = [member("a", &wants)];
        let scale = scales(&in_force(&members, 1.0, Some(90.0)), &members)[0];
        // What is left is 40: 20/s for each of the greedy, 4 times what the polite want.
        assert!((scale.counted - 0.2).abs() < 0.005, "{scale:?}");
        assert!((scale.other - 1.0).abs() < 1e-9);
    }

    #[test]
    fn twice_the_limit_is_twice_the_level() {
        let members = [member("a", &[(500.0, 100.0), (500.0, 200.0)])];
        let scale = scales(&in_force(&members, 1.0, Some(60.0)), &members)[0];
        assert!(
            (scale.counted - 0.2).abs() < 0.005,
            "20/s and 40/s: {scale:?}"
        );
    }

    #[test]
    fn floors_hold_and_nothing_exceeds_what_is_configured() {
        let mut members = [member("a", &[(500.0, 100.0)]), member("b", &[])];
        members[0].floor = 0.5;
        let found = scales(&in_force(&members, 0.25, Some(1.0)), &members);
        assert!((found[0].counted - 0.5).abs() < 1e-9);
        assert!((found[1].counted - 0.25).abs() < 1e-9);
        let none = InForce {
            factor: 1.0,
            budget: None,
            shares: Vec::new(),
        };
        assert!(
            scales(&none, &members)
                .iter()
                .all(|scale| (scale.counted - 1.0).abs() < 1e-9)
        );
    }
}
