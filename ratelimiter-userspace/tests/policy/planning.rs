//! From installed to desired: idempotent, stable, in a safe order.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ratelimiter_common::abi::config::{LOOK_FURTHER, flags};
use ratelimiter_common::abi::policy::{PrefixValue, action};
use ratelimiter_common::vclock::{NEVER, SegmentClock};
use ratelimiter_userspace::policy::lookup::Lookup;
use ratelimiter_userspace::policy::model::{
    Client, Document, LimitSpec, ListEntry, Mode, Segment, Unit,
};
use ratelimiter_userspace::policy::plan::{Installed, Prefix, Update, plan};
use ratelimiter_userspace::policy::resolve::normalise;
use ratelimiter_userspace::policy::set::compile;
use ratelimiter_userspace::policy::units::Window;

use crate::{SAMPLE, compiled, document, inputs, install};

/// What a packet from `address` meets: the kernel's walk, done on the installed state.
fn verdict(installed: &Installed, address: std::net::IpAddr, now_ns: u64) -> (u32, u32) {
    if let Some(zone) = installed.lookup.zone(address) {
        return (action::ZONE, u32::from(zone));
    }
    let host = Prefix::from(address);
    for prefix in std::iter::successors(Some(host), Prefix::supernet) {
        if let Ok(at) = installed
            .prefixes
            .binary_search_by_key(&prefix, |(p, _)| *p)
        {
            let value: PrefixValue = installed.prefixes[at].1;
            let said = if now_ns < value.until_ns {
                (value.action, value.slot)
            } else {
                (value.after_action, value.after_slot)
            };
            if said.0 != action::PARENT {
                return said;
            }
        }
    }
    (action::ZONE, 0)
}

/// What the document says about an address, worked out naively.
fn meant(document: &Document, address: std::net::IpAddr) -> &'static str {
    let covers = |prefix: &Prefix| prefix.contains(&address);
    if document.allow.keys().any(covers) {
        return "allow";
    }
    if document.block.keys().any(covers) {
        return "block";
    }
    let clients = document.clients.values().flat_map(|c| {
        let wide = |p: &Prefix| p.prefix_len() < 28;
        c.sources
            .iter()
            .map(move |p| (*p, if wide(p) { "shared" } else { "tracked" }))
    });
    let segments = document
        .segments
        .values()
        .flat_map(|s| s.sources.iter().map(|p| (*p, "zone")));
    segments
        .chain(clients)
        .filter(|(p, _)| covers(p))
        // Of equals the later: the client.
        .max_by_key(|(p, _)| p.prefix_len())
        .map_or("crowd", |(_, what)| what)
}

fn prefix() -> impl Strategy<Value = Prefix> {
    // Few addresses, so that prefixes lie inside each other.
    (0_u32..64, 8_u8..=32).prop_map(|(seed, len)| {
        let address = 0x0a00_0000 | (seed & 3) << 16 | (seed >> 2 & 3) << 8 | (seed >> 4);
        let net = ipnet::Ipv4Net::new(address.into(), len).unwrap();
        Prefix::V4(net.trunc())
    })
}

fn limit(rate: u64, unit: Unit) -> LimitSpec {
    LimitSpec {
        rate_limit: rate,
        time_window: Window::SECOND,
        burst: Some(rate * 2),
        unit,
        algorithm: None,
        mode: None,
        consistency: None,
        on_store_loss: None,
    }
}

prop_compose! {
    fn documents()(
        allow in prop::collection::vec(prefix(), 0..3),
        block in prop::collection::vec(prefix(), 0..4),
        clients in prop::collection::vec((prefix(), 1_u64..100, any::<bool>()), 0..6),
        segments in prop::collection::vec((prefix(), 1_u64..100), 0..3),
    ) -> Document {
        let mut document = Document::default();
        document.allow = allow.into_iter().map(|p| (p, ListEntry::default())).collect();
        document.block = block.into_iter().map(|p| (p, ListEntry::default())).collect();
        let mut seen = std::collections::BTreeSet::new();
        for (n, (prefix, rate)) in segments.into_iter().enumerate() {
            // Wide sources only: narrow ones are tracked under the segment's own policy.
            if prefix.prefix_len() >= 28 || !seen.insert(prefix) {
                continue;
            }
            let mut segment = Segment { sources: vec![prefix], ..Segment::default() };
            segment.limits.insert("p".to_owned(), limit(rate, Unit::Packets));
            document.segments.insert(format!("s{n}"), segment);
        }
        let mut seen = std::collections::BTreeSet::new();
        for (n, (prefix, rate, own)) in clients.into_iter().enumerate() {
            if !seen.insert(prefix) {
                continue;
            }
            let mut client = Client { sources: vec![prefix], ..Client::default() };
            if own {
                client.limits.insert("p".to_owned(), limit(rate, Unit::Packets));
            }
            document.clients.insert(format!("c{n}"), client);
        }
        normalise(&mut document);
        document
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_document_is_installed_once_and_for_all(
        first in documents(), second in documents(), seeds in prop::collection::vec(0_u32..65_536, 32)
    ) {
        let mut installed = Installed::default();
        let mut now_ns = 1_000_000_000;
        for document in [&first, &second, &first] {
            let desired = compiled(document, &installed);
            now_ns = install(&mut installed, &desired, now_ns);
            prop_assert!(plan(&installed, &desired, now_ns).is_empty());
            // A restart compiles against what is installed and finds nothing to do.
            let again = compiled(document, &installed);
            prop_assert!(plan(&installed, &again, now_ns + 5_000_000_000).is_empty());
            for seed in &seeds {
                let address = 0x0a00_0000 | (seed & 3) << 16 | (seed >> 2 & 3) << 8 | (seed >> 4 & 15);
                let address = std::net::IpAddr::V4(address.into());
                let (action, number) = verdict(&installed, address, now_ns);
                let word = match action {
                    action::ALLOW => "allow",
                    action::BLOCK => "block",
                    action::TRACKED => "tracked",
                    action::SHARED => "shared",
                    action::ZONE if number == 0 => "crowd",
                    _ => "zone",
                };
                prop_assert_eq!(word, meant(document, address), "{}", address);
            }
            now_ns += 1_000_000_000;
        }
    }
}

#[test]
fn an_edit_elsewhere_moves_no_slot_tag_zone_or_clock() {
    let mut installed = Installed::default();
    let before = document(SAMPLE);
    let desired = compiled(&before, &installed);
    install(&mut installed, &desired, 1_000);
    let policies = installed.policies.clone();
    let zones = installed.zones;
    let mut after = before.clone();
    after.clients.remove("alice");
    after.segments.insert(
        "aaa".to_owned(),
        Segment {
            sources: vec!["172.16.0.0/12".parse().unwrap()],
            ..Segment::default()
        },
    );
    let desired = compiled(&after, &installed);
    install(&mut installed, &desired, 9_000_000_000);
    for slot in [0, 1, 3] {
        assert_eq!(installed.policies[&slot], policies[&slot], "slot {slot}");
    }
    assert_eq!(installed.zones[..2], zones[..2]);
    assert_eq!(
        installed.zones[2].slot,
        desired_slot(&desired, "segment:aaa")
    );
}

fn desired_slot(desired: &ratelimiter_userspace::policy::set::Compiled, name: &str) -> u32 {
    let found = desired
        .policies
        .iter()
        .find(|(_, p)| p.name.to_string() == name);
    *found.unwrap().0
}

#[test]
fn updates_come_in_a_safe_order() {
    let mut installed = Installed::default();
    let first = compiled(&document(SAMPLE), &installed);
    install(&mut installed, &first, 1_000);
    let other = document("[clients.new]\nsources = [\"192.0.2.0/30\", \"10.9.0.0/24\"]");
    let desired = compiled(&other, &installed);
    let updates = plan(&installed, &desired, 2_000_000_000).updates;
    let at = |wanted: &dyn Fn(&Update) -> bool| -> usize {
        updates
            .iter()
            .position(wanted)
            .unwrap_or_else(|| panic!("missing: {updates:?}"))
    };
    let policy = at(&|u| matches!(u, Update::Policy(_)));
    let track = at(&|u| matches!(u, Update::Track(_)));
    let prefixes = at(&|u| matches!(u, Update::Prefixes(_)));
    let coarse = at(&|u| matches!(u, Update::Coarse { .. }));
    let gone = at(&|u| matches!(u, Update::RemovePrefixes(_)));
    let bump = at(&|u| matches!(u, Update::BumpGeneration));
    let untrack = at(&|u| matches!(u, Update::Untrack(_)));
    let zone = at(&|u| matches!(u, Update::Zone { zone: 1, value } if value.used == 0));
    let removed = at(&|u| matches!(u, Update::RemovePolicy(_)));
    let order = [
        policy, track, prefixes, coarse, gone, bump, untrack, zone, removed,
    ];
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn a_cell_that_loses_its_zone_never_reads_as_crowd_in_between() {
    // 10/8 is zone 1; a client inside makes one /16 look further, with all its bits set.
    let zone = |slot| PrefixValue {
        action: action::ZONE,
        slot,
        until_ns: NEVER,
        ..PrefixValue::default()
    };
    let tracked = PrefixValue {
        action: action::TRACKED,
        slot: 5,
        until_ns: NEVER,
        ..PrefixValue::default()
    };
    let wide: Prefix = "10.0.0.0/8".parse().unwrap();
    let inner: Prefix = "10.7.7.7/32".parse().unwrap();
    let plain = Lookup::of(&[(wide, zone(1))]);
    let split = Lookup::of(&[(wide, zone(1)), (inner, tracked)]);
    let address: std::net::IpAddr = "10.7.200.1".parse().unwrap();
    for (from, to) in [(&plain, &split), (&split, &plain)] {
        let mut installed = Installed {
            lookup: std::sync::Arc::new(from.clone()),
            ..Installed::default()
        };
        let desired = ratelimiter_userspace::policy::set::Compiled {
            lookup: std::sync::Arc::new(to.clone()),
            zones: installed.zones.to_vec(),
            ..Default::default()
        };
        for update in plan(&installed, &desired, 1).updates {
            installed.apply(&[update]);
            // Either zone 1 at once, or the trie is asked (which says zone 1): never zone 0.
            assert_ne!(installed.lookup.zone(address), Some(0));
        }
        assert_eq!(*installed.lookup, *to);
    }
}

#[test]
fn a_million_addresses_of_v6_cost_nothing_to_block() {
    let block = PrefixValue {
        action: action::BLOCK,
        until_ns: NEVER,
        ..PrefixValue::default()
    };
    let lookup = Lookup::of(&[("::/0".parse().unwrap(), block)]);
    assert!(lookup.coarse[1].iter().all(|byte| *byte == LOOK_FURTHER));
    assert_eq!(lookup.zone("2001:db8::1".parse().unwrap()), None);
    assert_eq!(lookup.zone("10.0.0.1".parse().unwrap()), Some(0));
}

#[test]
fn a_list_entry_ends_by_itself_and_dates_are_stable() {
    let mut doc = document("[clients.a]\nsources = [\"10.0.0.1/32\"]");
    let entry = ListEntry {
        expires_unix_ms: Some(5_000),
        ..ListEntry::default()
    };
    doc.block.insert("10.0.0.0/24".parse().unwrap(), entry);
    let mut installed = Installed::default();
    let desired = compiled(&doc, &installed);
    assert_eq!(desired.next_expiry_unix_ms, Some(5_000));
    install(&mut installed, &desired, 1_000_000_000);
    let address = "10.0.0.1".parse().unwrap();
    assert_eq!(verdict(&installed, address, 4_999_999_999).0, action::BLOCK);
    assert_eq!(
        verdict(&installed, address, 5_000_000_000).0,
        action::TRACKED
    );
    assert_eq!(
        verdict(&installed, "10.0.0.9".parse().unwrap(), 5_000_000_000),
        (action::ZONE, 0)
    );
    // The same date read from clocks that differ by a little is the same date.
    let mut jitter = inputs();
    jitter.time.offset_ns += 3_000_000;
    let again = compile(&doc, &jitter, &installed.policies, &installed.zones).unwrap();
    assert!(plan(&installed, &again, 2_000_000_000).is_empty());
}

#[test]
fn enforcing_changes_one_flag_and_no_policy() {
    let doc = document(SAMPLE);
    let mut installed = Installed::default();
    let mut shadow = inputs();
    shadow.mode = Mode::Shadow;
    let desired = compile(&doc, &shadow, &installed.policies, &installed.zones).unwrap();
    install(&mut installed, &desired, 1_000);
    assert_eq!(installed.flags & flags::ENFORCE, 0);
    // However many policies there are: entries to spare are few.
    let desired = compiled(&doc, &installed);
    let next = plan(&installed, &desired, 10_000_000_000);
    assert_eq!(next.updates, [Update::Flags(desired.flags)]);
    assert_eq!(desired.flags & flags::ENFORCE, flags::ENFORCE);
}

#[test]
fn a_segment_that_takes_a_slowed_number_starts_at_full_speed() {
    let mut installed = Installed::default();
    let slowed = ratelimiter_userspace::policy::clock::turn_segment(
        &SegmentClock::REAL,
        ratelimiter_common::vclock::Speed::ONE.scaled(1 << 30),
        0,
        0,
    );
    installed.segments = BTreeMap::from([(1, slowed)]);
    let desired = compiled(&document("[segments.free]\nweight = 1"), &installed);
    install(&mut installed, &desired, 1_000_000_000);
    let clock = installed.segments[&1];
    let (from, to) = (clock.at(2_000_000_000), clock.at(3_000_000_000));
    assert_eq!(to - from, 1_000_000_000);
}

#[test]
fn a_source_that_moves_between_policies_of_one_tag_starts_anew() {
    let limits = "limits.p = { rate_limit = 5, time_window = 1, unit = \"packets\" }";
    let of = |owner: &str, id: &str| {
        document(&format!(
            "[clients.{id}]\nsources = [\"192.0.2.9/32\"]\n{limits}\n\
             [clients.{owner}]\nsources = [\"192.0.2.1/32\"]\n{limits}"
        ))
    };
    // Among 400 names two share a tag.
    let mut first = Installed::default();
    let mut tags = BTreeMap::new();
    let mut pair = None;
    for n in 0..400 {
        let name = format!("c{n}");
        let desired = compiled(&of(&name, "other"), &first);
        let tag = desired.policies[&desired.clients[&name]].tag;
        if let Some(before) = tags.insert(tag, name.clone()) {
            pair = Some((before, name));
            break;
        }
    }
    let (a, b) = pair.unwrap();
    let desired = compiled(&of(&a, &b), &first);
    install(&mut first, &desired, 1_000);
    let swapped = compiled(&of(&b, &a), &first);
    let updates = plan(&first, &swapped, 2_000_000_000).updates;
    let count = |list: &dyn Fn(&Update) -> usize| updates.iter().map(list).sum::<usize>();
    let untracked = count(&|u| {
        if let Update::Untrack(keys) = u {
            keys.len()
        } else {
            0
        }
    });
    let tracked = count(&|u| {
        if let Update::Track(keys) = u {
            keys.len()
        } else {
            0
        }
    });
    assert_eq!((untracked, tracked), (2, 2));
    let first_untrack = updates.iter().position(|u| matches!(u, Update::Untrack(_)));
    let first_track = updates.iter().position(|u| matches!(u, Update::Track(_)));
    assert!(first_untrack < first_track);
}
