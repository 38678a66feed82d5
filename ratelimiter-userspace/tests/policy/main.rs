//! Policies compiled, planned, tried, explained; clocks under every edit.
#![allow(missing_docs, reason = "a test binary has no API")]
#![allow(
    clippy::unwrap_used,
    clippy::unnecessary_wraps,
    clippy::format_push_string,
    clippy::field_reassign_with_default,
    reason = "a test fails by panicking, and reads better plain"
)]

mod clocks;
mod explaining;
mod planning;
mod scale;
mod trials;
mod validation;

use std::collections::BTreeMap;

use ratelimiter_common::abi::config::ZONES;
use ratelimiter_common::abi::policy::action;
use ratelimiter_userspace::policy::model::{Document, Mode};
use ratelimiter_userspace::policy::plan::{Installed, Prefix, plan};
use ratelimiter_userspace::policy::prefixes::TimeBase;
use ratelimiter_userspace::policy::resolve::normalise;
use ratelimiter_userspace::policy::set::{Compiled, Geometry, Inputs, compile};
use ratelimiter_userspace::policy::slots::UNUSED_ZONE;

/// Compiles against what is installed.
pub(crate) fn compiled(document: &Document, installed: &Installed) -> Compiled {
    compile(document, &inputs(), &installed.policies, &installed.zones).unwrap()
}

/// Plans and applies, as often as the plan asks for; returns the time at the end.
pub(crate) fn install(installed: &mut Installed, desired: &Compiled, mut now_ns: u64) -> u64 {
    for _ in 0..3 {
        let step = plan(installed, desired, now_ns);
        installed.apply(&step.updates);
        match step.again_at_ns {
            Some(at_ns) => now_ns = at_ns,
            None => return now_ns,
        }
    }
    panic!("the plan never ends");
}

pub(crate) fn inputs() -> Inputs {
    Inputs {
        mode: Mode::Enforce,
        flags: 0,
        geometry: Geometry::default(),
        identity_key: [1, 2],
        time: TimeBase::default(),
        now_ns: 1_000_000_000,
    }
}

pub(crate) fn document(text: &str) -> Document {
    let mut document: Document = toml::from_str(text).unwrap();
    normalise(&mut document);
    document
}

pub(crate) const SAMPLE: &str = r#"
    [segments.free]
    sources = ["10.0.0.0/8"]
    limits.packets = { rate_limit = 100, time_window = 1, unit = "packets" }
    [segments.free.limits.bytes]
    rate_limit = 1000000
    time_window = 1
    unit = "bytes"
    [clients.alice]
    sources = ["192.0.2.0/30", "10.1.2.3/32"]
    limits.packets = { rate_limit = 10, time_window = 1, burst = 20, unit = "packets" }
    [clients.bob]
    segment = "free"
    sources = ["198.51.100.0/24"]
    [clients.carol]
    sources = ["203.0.113.7/32"]
    [allow."192.0.2.2/32"]
    [block."10.1.0.0/16"]
    [block."2001:db8::/32"]
"#;

#[test]
fn compiles_every_kind_of_thing() {
    let doc = document(SAMPLE);
    let compiled = compile(&doc, &inputs(), &BTreeMap::new(), &[UNUSED_ZONE; ZONES]).unwrap();
    let names: Vec<_> = compiled
        .policies
        .iter()
        .map(|(slot, target)| (*slot, target.name.to_string()))
        .collect();
    assert_eq!(
        names,
        [
            (0, "segment:default".to_owned()),
            (1, "segment:free".to_owned()),
            (2, "client:alice".to_owned()),
            (3, "client:bob".to_owned()),
        ]
    );
    let value = |text: &str| {
        let prefix: Prefix = text.parse().unwrap();
        let found = compiled.prefixes.iter().find(|(p, _)| *p == prefix);
        found.map(|(_, value)| (value.action, value.slot))
    };
    assert_eq!(value("10.0.0.0/8"), Some((action::ZONE, 1)));
    assert_eq!(value("10.1.0.0/16"), Some((action::BLOCK, 0)));
    assert_eq!(value("10.1.2.3/32"), Some((action::BLOCK, 0)));
    assert_eq!(value("192.0.2.0/30"), Some((action::TRACKED, 2)));
    assert_eq!(value("192.0.2.2/32"), Some((action::ALLOW, 0)));
    assert_eq!(value("198.51.100.0/24"), Some((action::SHARED, 3)));
    assert_eq!(value("203.0.113.7/32"), Some((action::TRACKED, 0)));
    assert_eq!(value("2001:db8::/32"), Some((action::BLOCK, 0)));
    // Zone 1: packets and bytes of `free`; region 0 stays the default segment's.
    assert_eq!(compiled.zones[0].regions, [0, 255, 255]);
    assert_eq!(compiled.zones[1].regions, [1, 2, 255]);
    assert_eq!(compiled.zones[1].slot, 1);
    // Four addresses of alice, one of carol, one shared bucket of bob; her blocked address
    // needs no bucket.
    assert_eq!(compiled.tracked.len(), 6);
    let zone = |text: &str| compiled.lookup.zone(text.parse().unwrap());
    assert_eq!(zone("10.2.3.4"), Some(1));
    assert_eq!(zone("10.1.2.3"), None);
    assert_eq!(zone("192.0.2.77"), None);
    assert_eq!(zone("192.0.3.77"), Some(0));
    assert_eq!(zone("2001:db8::1"), None);
}

#[test]
fn planning_twice_yields_nothing() {
    let doc = document(SAMPLE);
    let mut installed = Installed::default();
    let compiled = compile(&doc, &inputs(), &installed.policies, &installed.zones).unwrap();
    let first = plan(&installed, &compiled, 1_000);
    assert!(first.updates.len() > 8);
    installed.apply(&first.updates);
    assert!(plan(&installed, &compiled, 2_000).is_empty());
    // A restarted agent compiles against what it reads back.
    let again = compile(&doc, &inputs(), &installed.policies, &installed.zones).unwrap();
    assert_eq!(again, compiled);
    assert!(plan(&installed, &again, 5_000_000_000).is_empty());
}
