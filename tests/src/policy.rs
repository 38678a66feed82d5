//! From a document to a data plane without an agent: compile, plan, apply.
use std::collections::BTreeMap;

use ratelimiter_common::abi::policy::Zone;
use ratelimiter_userspace::clock;
use ratelimiter_userspace::dataplane::DataPlane;
use ratelimiter_userspace::policy::model::{Document, Mode};
use ratelimiter_userspace::policy::plan::{Installed, plan};
use ratelimiter_userspace::policy::prefixes::TimeBase;
use ratelimiter_userspace::policy::set::{Geometry, Inputs, compile};

use crate::OrFail as _;

/// Reads a document from JSON, as the admin API would.
#[must_use]
#[track_caller]
pub fn document(json: serde_json::Value) -> Document {
    serde_json::from_value(json).or_fail("a policy document")
}

/// Makes a data plane that holds no policy yet enforce `document`.
#[track_caller]
pub fn install(plane: &dyn DataPlane, document: &Document) {
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
    let installed = Installed::default();
    let zones: [Zone; ratelimiter_common::abi::config::ZONES] = installed.zones;
    let compiled =
        compile(document, &inputs, &BTreeMap::new(), &zones).or_fail("compile the document");
    let plan = plan(&installed, &compiled, clock::monotonic_ns());
    plane.apply(&plan.updates).or_fail("apply the plan");
}
