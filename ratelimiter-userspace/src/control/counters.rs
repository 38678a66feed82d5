//! Cumulative counts over time: what each host has admitted, and what the fleet has.
//!
//! A host publishes its [`History`]; whoever steps the controller sums the histories it reads into
//! [`Admissions`], anchored by the [`Fleet`] in the shared state so that a host that vanishes or
//! comes back never makes the sum jump.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

/// Points kept: at least six seconds at ten a second.
const POINTS_MAX: usize = 96;
/// Three points in less than this become two, in seconds.
const SPACING_S: f64 = 0.09;
/// Largest count that is believed of another host.
const COUNT_MAX: f64 = 1e15;
/// A count is continued with its last slope for this long after its newest point, in seconds.
const EXTRAPOLATE_S: f64 = 2.0;
/// The last slope is that of this many seconds.
const SLOPE_S: f64 = 1.0;

/// A cumulative count of one host, linear between points.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    points: VecDeque<(f64, f64)>,
    offset: f64,
}

impl History {
    /// Notes the count at a time. Times must not go back; one that does is ignored.
    ///
    /// A host that was away for more than two seconds is re-based: what it admitted meanwhile
    /// beyond the extrapolation everybody has worked with stays invisible.
    pub fn push(&mut self, at_s: f64, count: f64) {
        let Some(&(last_s, last)) = self.points.back() else {
            self.offset = count;
            self.points.push_back((at_s, 0.0));
            return;
        };
        if at_s < last_s {
            return;
        }
        if at_s - last_s > EXTRAPOLATE_S {
            let believed = self.at(last_s + EXTRAPOLATE_S);
            self.offset = count - believed;
            self.points.push_back((last_s + EXTRAPOLATE_S, believed));
        }
        // A counter that was reset continues from where it was.
        if count - self.offset < last {
            self.offset = count - last;
        }
        let before_last = self.points.len().checked_sub(2);
        if before_last.is_some_and(|i| at_s - self.points[i].0 < SPACING_S) {
            self.points.pop_back();
        }
        self.points.push_back((at_s, count - self.offset));
        while self.points.len() > POINTS_MAX {
            self.points.pop_front();
        }
    }

    /// The same on a clock that reads `by_s` more.
    pub fn shift(&mut self, by_s: f64) {
        for point in &mut self.points {
            point.0 += by_s;
        }
    }

    /// The newest points of it, at least `apart_s` apart, `most` of them: what others are told.
    #[must_use]
    pub fn thinned(&self, apart_s: f64, most: usize) -> Self {
        let mut points = VecDeque::new();
        for point in self.points.iter().rev() {
            let far = points
                .front()
                .is_none_or(|later: &(f64, f64)| later.0 - point.0 >= apart_s);
            if far && points.len() < most {
                points.push_front(*point);
            }
        }
        Self {
            points,
            offset: 0.0,
        }
    }

    /// Whether it can be worked with: times and counts that are numbers and never fall.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let number =
            |(at_s, count): &(f64, f64)| at_s.is_finite() && (0.0..=COUNT_MAX).contains(count);
        let mut pairs = self.points.iter().zip(self.points.iter().skip(1));
        self.points.len() <= POINTS_MAX
            && self.points.iter().all(number)
            && pairs.all(|(a, b)| a.0 <= b.0 && a.1 <= b.1)
    }

    /// Returns the count at a time: extended with the last slope for two seconds, constant beyond
    /// both ends.
    pub fn at(&self, at_s: f64) -> f64 {
        let after = self.points.partition_point(|point| point.0 <= at_s);
        let Some(before) = after.checked_sub(1).and_then(|i| self.points.get(i)) else {
            return self.points.front().map_or(0.0, |first| first.1);
        };
        if let Some(next) = self.points.get(after) {
            return between(*before, *next, at_s);
        }
        let since_s = before.0 - SLOPE_S;
        let start_s = self
            .points
            .front()
            .map_or(before.0, |first| first.0.max(since_s));
        if before.0 <= start_s {
            return before.1;
        }
        let slope = (before.1 - self.at(start_s)) / (before.0 - start_s);
        before.1 + slope * (at_s - before.0).min(EXTRAPOLATE_S)
    }

    fn oldest(&self) -> f64 {
        self.points.front().map_or(0.0, |first| first.1)
    }

    fn newest(&self) -> f64 {
        self.points.back().map_or(0.0, |last| last.1)
    }
}

fn between(a: (f64, f64), b: (f64, f64), at_s: f64) -> f64 {
    if b.0 <= a.0 {
        return b.1;
    }
    a.1 + (b.1 - a.1) * (at_s - a.0) / (b.0 - a.0)
}

/// Which hosts the sum is made of, kept in the controller's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// Counts of hosts that are gone.
    retired: f64,
    hosts: BTreeMap<String, Member>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Member {
    /// What the host's count was when it was first seen.
    base: f64,
    /// Its newest count.
    last: f64,
}

impl Fleet {
    /// Brings the membership up to what is observed: every live host's history, by host id.
    pub fn observe(&mut self, hosts: &[(&str, &History)]) {
        let live: BTreeSet<&str> = hosts.iter().map(|(id, _)| *id).collect();
        let retired = &mut self.retired;
        self.hosts.retain(|id, member| {
            let live = live.contains(id.as_str());
            if !live {
                *retired += member.last - member.base;
            }
            live
        });
        for (id, history) in hosts {
            let last = history.newest();
            let joined = Member {
                base: history.oldest(),
                last,
            };
            let member = self.hosts.entry((*id).to_owned()).or_insert(joined.clone());
            if last < member.last {
                // The host's agent was started anew and counts from zero.
                self.retired += member.last - member.base;
                *member = joined;
            }
            member.last = last;
        }
    }
}

/// What the whole fleet has admitted, as a function of time.
#[derive(Clone, Debug)]
pub struct Admissions<'a> {
    fixed: f64,
    histories: Vec<&'a History>,
}

impl<'a> Admissions<'a> {
    /// Sums the histories of the hosts that [`Fleet::observe`] has just seen.
    pub fn new(fleet: &Fleet, hosts: &[(&'a str, &'a History)]) -> Self {
        let bases: f64 = fleet.hosts.values().map(|member| member.base).sum();
        Self {
            fixed: fleet.retired - bases,
            histories: hosts.iter().map(|(_, history)| *history).collect(),
        }
    }

    /// Returns the number admitted up to a time.
    pub fn at(&self, at_s: f64) -> f64 {
        let live: f64 = self.histories.iter().map(|history| history.at(at_s)).sum();
        self.fixed + live
    }

    /// Returns the number admitted between two times.
    pub fn between(&self, from_s: f64, to_s: f64) -> f64 {
        (self.at(to_s) - self.at(from_s)).max(0.0)
    }
}

/// Requests the backend refused, cumulative: they never took service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    points: VecDeque<(f64, f64)>,
}

/// Points kept of refused requests: one per report, at least six seconds of them.
const REFUSED_MAX: usize = 64;

impl Refused {
    /// Notes how many were refused in the period that ended at a time.
    pub fn push(&mut self, from_s: f64, to_s: f64, count: f64) {
        let (last_s, last) = *self.points.back().unwrap_or(&(from_s, 0.0));
        if self.points.is_empty() {
            self.points.push_back((from_s, 0.0));
        }
        self.points.push_back((to_s.max(last_s), last + count));
        while self.points.len() > REFUSED_MAX {
            self.points.pop_front();
        }
    }

    /// The same on a clock that reads `by_s` more.
    pub(super) fn shift(&mut self, by_s: f64) {
        for point in &mut self.points {
            point.0 += by_s;
        }
    }

    /// Returns the number refused up to a time; constant beyond both ends.
    pub fn at(&self, at_s: f64) -> f64 {
        let after = self.points.partition_point(|point| point.0 <= at_s);
        let before = after.checked_sub(1).and_then(|i| self.points.get(i));
        match (before, self.points.get(after)) {
            (Some(before), Some(next)) => between(*before, *next, at_s),
            (Some(only), None) | (None, Some(only)) => only.1,
            (None, None) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(from: u32, to: u32, rate: f64) -> History {
        let mut history = History::default();
        for tick in from..=to {
            let at_s = f64::from(tick) * 0.1;
            history.push(at_s, 1000.0 + rate * at_s);
        }
        history
    }

    #[test]
    fn is_linear_inside_and_extends_two_seconds() {
        let history = steady(0, 50, 100.0);
        assert!((history.at(2.55) - 255.0).abs() < 1e-6);
        assert!((history.at(6.0) - 600.0).abs() < 1e-6);
        assert!((history.at(60.0) - 700.0).abs() < 1e-6);
        assert!(history.at(-5.0).abs() < 1e-6);
    }

    #[test]
    fn keeps_eight_seconds_however_often_it_is_told() {
        let mut history = History::default();
        for tick in 0..=4000u32 {
            let at_s = f64::from(tick) * 0.005;
            history.push(at_s, at_s * at_s);
        }
        assert!(history.points.len() <= POINTS_MAX);
        for at_s in [12.0f64, 15.3, 19.9] {
            assert!((history.at(at_s) - at_s * at_s).abs() < 0.01);
        }
        let restored: History =
            serde_json::from_str(&serde_json::to_string(&history).unwrap()).unwrap();
        assert_eq!(restored, history);
    }

    #[test]
    fn a_host_whose_agent_is_new_joins_the_sum_again() {
        let (old, new) = (steady(0, 50, 100.0), steady(0, 10, 100.0));
        let mut fleet = Fleet::default();
        fleet.observe(&[("a", &old)]);
        fleet.observe(&[("a", &new)]);
        let sum = Admissions::new(&fleet, &[("a", &new)]);
        assert!((sum.at(1.0) - 600.0).abs() < 1e-6);
    }

    #[test]
    fn a_host_that_was_away_does_not_jump() {
        let mut history = steady(0, 50, 100.0);
        history.push(30.0, 1_000_000.0);
        assert!((history.at(30.0) - 700.0).abs() < 1e-6);
        history.push(30.1, 1_000_010.0);
        assert!((history.at(30.1) - 710.0).abs() < 1e-6);
    }

    #[test]
    fn a_counter_that_was_reset_never_counts_down() {
        let mut history = steady(0, 50, 100.0);
        history.push(5.1, 0.0);
        history.push(5.2, 20.0);
        assert!((history.at(5.2) - 520.0).abs() < 1e-6);
    }

    #[test]
    fn the_fleet_sum_stays_continuous_when_hosts_leave_and_return() {
        let (a, b) = (steady(0, 50, 100.0), steady(0, 50, 50.0));
        let mut fleet = Fleet::default();
        let both: [(&str, &History); 2] = [("a", &a), ("b", &b)];
        fleet.observe(&both);
        let before = Admissions::new(&fleet, &both).at(5.0);
        let one = [("a", &a)];
        fleet.observe(&one);
        let alone = Admissions::new(&fleet, &one).at(5.0);
        assert!((before - alone).abs() < 1e-6);
        fleet.observe(&both);
        let again = Admissions::new(&fleet, &both);
        assert!((again.at(0.0) - 250.0).abs() < 1e-6);
        assert!(again.between(4.0, 5.0) > 149.9);
    }

    #[test]
    fn refused_requests_accumulate() {
        let mut refused = Refused::default();
        assert!(refused.at(3.0).abs() < 1e-9);
        refused.push(1.0, 2.0, 10.0);
        refused.push(2.0, 3.0, 30.0);
        assert!((refused.at(1.5) - 5.0).abs() < 1e-9);
        assert!((refused.at(2.5) - 25.0).abs() < 1e-9);
        assert!((refused.at(9.0) - 40.0).abs() < 1e-9);
    }
}
