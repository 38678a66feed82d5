//! A data plane without an agent: documents compiled, planned and applied as the agent does it.
use std::collections::BTreeMap;
use std::time::Duration;

use ratelimiter_common::vclock::{LEAD_NS, SegmentClock, Speed};
use ratelimiter_userspace::clock;
use ratelimiter_userspace::dataplane::DataPlane;
use ratelimiter_userspace::policy::clock::{retime, turn_segment};
use ratelimiter_userspace::policy::model::{Document, Mode};
use ratelimiter_userspace::policy::plan::{Installed, Update, plan};
use ratelimiter_userspace::policy::prefixes::TimeBase;
use ratelimiter_userspace::policy::set::{Geometry, Inputs, compile};

use crate::OrFail as _;
use crate::process::rest;

/// Reads a document from JSON, as the admin API would.
#[must_use]
#[track_caller]
pub fn document(json: serde_json::Value) -> Document {
    serde_json::from_value(json).or_fail("a policy document")
}

/// Makes a data plane that holds no policy yet enforce `document`.
#[track_caller]
pub fn install(plane: &dyn DataPlane, document: &Document) {
    Policies::default().set(plane, document);
}

/// What a data plane was told so far, so that the next document is a change and not a beginning.
#[derive(Debug, Default)]
pub struct Policies {
    installed: Installed,
    /// Time to waste between planning and applying.
    hold: Duration,
}

impl Policies {
    /// From now on every plan is applied this much later than it was made, as on a machine that is
    /// short of time.
    pub fn hold(&mut self, hold: Duration) {
        self.hold = hold;
    }

    /// Changes to `document`; returns the moment (CLOCK_MONOTONIC) by which it is in force.
    #[track_caller]
    pub fn set(&mut self, plane: &dyn DataPlane, document: &Document) -> u64 {
        let tables = plane.tables();
        let now_ns = clock::monotonic_ns();
        let config = plane.installed().or_fail("read back").config;
        let inputs = Inputs {
            mode: Mode::Enforce,
            flags: 0,
            geometry: Geometry {
                tracked: tables.tracked,
                policies: tables.policies,
                prefixes: tables.prefixes,
                v6_prefix_len: tables.v6_prefix_len,
            },
            identity_key: config.perm.xor,
            time: TimeBase::new(now_ns, clock::unix_ms()),
            now_ns,
        };
        let zones = self.installed.zones;
        let before = if self.installed == Installed::default() {
            BTreeMap::new()
        } else {
            self.installed.policies.clone()
        };
        let compiled = compile(document, &inputs, &before, &zones).or_fail("compile the document");
        loop {
            let plan = plan(&self.installed, &compiled, clock::monotonic_ns());
            self.apply(plane, &plan.updates);
            let Some(again_at_ns) = plan.again_at_ns else {
                return self.settled();
            };
            rest(Duration::from_nanos(
                again_at_ns.saturating_sub(clock::monotonic_ns()) + 1,
            ));
        }
    }

    /// Turns a segment's clock to `factor`; returns the moment by which it is in force.
    #[track_caller]
    pub fn turn(&mut self, plane: &dyn DataPlane, segment: u32, factor: f64) -> u64 {
        let speed = Speed::from_ratio((factor * 1e6) as u128, 1_000_000).or_fail("a factor");
        let now_ns = clock::monotonic_ns();
        let at_ns = now_ns + LEAD_NS;
        let before = self.installed.segments.get(&segment).copied();
        let clock = turn_segment(&before.unwrap_or(SegmentClock::REAL), speed, now_ns, at_ns);
        let mut updates = vec![Update::Segment { segment, clock }];
        for entry in self.installed.policies.values() {
            let mut entry = *entry;
            let mut changed = false;
            for unit in entry.clocks.iter_mut().filter(|_| entry.segment == segment) {
                if let Some(retimed) = retime(unit, &clock, at_ns) {
                    *unit = retimed;
                    changed = true;
                }
            }
            if changed {
                updates.push(Update::Policy(Box::new(entry)));
            }
        }
        self.apply(plane, &updates);
        at_ns
    }

    #[track_caller]
    fn apply(&mut self, plane: &dyn DataPlane, updates: &[Update]) {
        if !self.hold.is_zero() {
            rest(self.hold);
        }
        let applied = plane.apply(updates).or_fail("apply the plan");
        self.installed.apply(updates);
        self.installed.apply(&applied.moved);
    }

    /// When the last piece dated ahead, other than a way back, comes into force.
    fn settled(&self) -> u64 {
        let now_ns = clock::monotonic_ns();
        let soon = now_ns..now_ns + 10 * LEAD_NS;
        self.installed
            .policies
            .values()
            .flat_map(|entry| entry.clocks.iter().flat_map(|clock| &clock.pieces))
            .map(|piece| piece.from_ns)
            .filter(|from_ns| soon.contains(from_ns))
            .max()
            .unwrap_or(now_ns)
    }
}
