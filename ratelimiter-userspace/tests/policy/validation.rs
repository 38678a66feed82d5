//! What is refused beyond what the broken configuration files show, and what is only warned about.

use std::collections::BTreeMap;

use ratelimiter_common::abi::config::ZONES;
use ratelimiter_userspace::policy::model::{Client, Document, ListEntry, Mode};
use ratelimiter_userspace::policy::resolve::{kernel_limits, normalise, request_limits};
use ratelimiter_userspace::policy::set::{Geometry, compile};
use ratelimiter_userspace::policy::slots::UNUSED_ZONE;
use ratelimiter_userspace::policy::validate::{Report, validate};

use crate::{document, inputs};

fn report(text: &str) -> Report {
    validate(&document(text), &Geometry::default())
}

#[test]
fn a_sixteenth_wide_region_is_refused_with_its_owner() {
    let mut text = String::new();
    for n in 0..16 {
        text += &format!("[segments.s{n:02}]\nsources = [\"{}.0.0.0/8\"]\n", 20 + n);
    }
    let refuse = |text: &str| {
        let mut doc: Document = toml::from_str(text).unwrap();
        normalise(&mut doc);
        compile(&doc, &inputs(), &BTreeMap::new(), &[UNUSED_ZONE; ZONES]).unwrap_err()
    };
    let issues = refuse(&text);
    assert!(
        issues[0]
            .message
            .contains("segment `s15` needs a 16th wide region"),
        "{issues:?}"
    );
    assert_eq!(issues[0].dotted(), "segments.s15.sources");
    // Further units take regions too.
    let mut text = String::new();
    for n in 0..8 {
        text += &format!(
            "[segments.s{n}]\nsources = [\"{}.0.0.0/8\"]\n\
             limits.a = {{ rate_limit = 1, time_window = 1, unit = \"packets\" }}\n\
             limits.b = {{ rate_limit = 1, time_window = 1, unit = \"bytes\" }}\n",
            20 + n
        );
    }
    assert!(
        refuse(&text)[0]
            .message
            .contains("segment `s7` needs a 16th wide region")
    );
}

#[test]
fn packets_are_not_denied_for_want_of_a_store_and_requests_may_be() {
    let limit = |unit: &str, word: &str| {
        report(&format!(
            "[segments.free.limits.one]\nrate_limit = 5\ntime_window = 1\nunit = \"{unit}\"\n\
             on_store_loss = \"{word}\"\n"
        ))
        .errors
    };
    for unit in ["packets", "bytes", "connections"] {
        let errors = limit(unit, "deny");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].dotted(), "segments.free.limits.one.on_store_loss");
        let said = format!("`on_store_loss` is `deny`; for {unit} it is");
        assert!(errors[0].message.contains(&said), "{errors:?}");
        for word in ["hold", "strict", "local"] {
            assert_eq!(limit(unit, word), []);
        }
    }
    assert_eq!(limit("requests", "deny"), []);
}

#[test]
fn more_policies_than_slots_are_refused() {
    let mut doc = Document::default();
    normalise(&mut doc);
    for n in 0..20_u32 {
        let client = Client {
            sources: vec![format!("10.0.{n}.0/24").parse().unwrap()],
            ..Client::default()
        };
        doc.clients.insert(format!("c{n}"), client);
    }
    let mut small = inputs();
    small.geometry.policies = 16;
    let issues = compile(&doc, &small, &BTreeMap::new(), &[UNUSED_ZONE; ZONES]).unwrap_err();
    assert!(
        issues[0].message.contains("`21` policies are configured"),
        "{issues:?}"
    );
    assert!(
        issues[0].message.contains("the table holds 16"),
        "{issues:?}"
    );
}

#[test]
fn more_prefixes_than_the_trie_holds_are_refused() {
    let mut doc = Document::default();
    for n in 0..100_u32 {
        let prefix = ipnet::IpNet::from(std::net::IpAddr::from(n.to_be_bytes()));
        doc.block.insert(prefix, ListEntry::default());
    }
    let geometry = Geometry {
        prefixes: 64,
        ..Geometry::default()
    };
    let errors = validate(&doc, &geometry).errors;
    assert!(
        errors[0].message.contains("there are 100 IPv4 prefixes"),
        "{errors:?}"
    );
    assert!(
        errors[0].message.contains("the table takes 64"),
        "{errors:?}"
    );
}

#[test]
fn nested_clients_are_legal_and_conflicts_are_warnings() {
    let report = report(
        "[clients.outer]\nsources = [\"10.0.0.0/8\"]\n[clients.inner]\nsources = [\"10.0.0.1/32\"]\n\
         [allow.\"10.0.0.0/16\"]\n[block.\"10.0.5.0/24\"]\n[block.\"0.0.0.0/0\"]\n\
         [clients.idle.limits.p]\nrate_limit = 1\ntime_window = 1\nunit = \"packets\"\n",
    );
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    let text: Vec<String> = report.warnings.iter().map(ToString::to_string).collect();
    for wanted in [
        "block `10.0.5.0/24` has no effect: allow `10.0.0.0/16` wins",
        "source `10.0.0.1/32` of client `inner` is never limited: allow `10.0.0.0/16`",
        "source `10.0.0.0/8` of client `outer` is dropped: block `0.0.0.0/0`",
        "block `0.0.0.0/0` drops every IPv4 packet",
        "limit `p` of client `idle` counts packets and has no effect",
    ] {
        assert!(
            text.iter().any(|line| line.contains(wanted)),
            "{wanted}: {text:#?}"
        );
    }
}

#[test]
fn issues_are_bounded() {
    let mut doc = Document::default();
    for n in 0..500 {
        doc.clients.insert(
            format!("c{n}"),
            Client {
                segment: Some("nope".to_owned()),
                ..Client::default()
            },
        );
    }
    let errors = validate(&doc, &Geometry::default()).errors;
    assert_eq!(errors.len(), 101);
    assert_eq!(errors[100].message, "and 400 more of this kind");
}

#[test]
fn nothing_is_unlimited_by_omission() {
    let doc = document(
        "[segments.bare]\n[segments.bytes.limits.b]\nrate_limit = 9\ntime_window = 1\nunit = \"bytes\"\n\
         [clients.own.limits.p]\nrate_limit = 3\ntime_window = 1\nunit = \"packets\"\n",
    );
    let of = |client: Option<&Client>, segment: &str| {
        kernel_limits(&doc, client, segment, Mode::Enforce)
            .map(|limit| limit.map(|limit| limit.spec.rate_limit))
    };
    assert_eq!(of(None, "bare"), [Some(1_000), None, None]);
    assert_eq!(of(None, "bytes"), [None, Some(9), None]);
    let own = &doc.clients["own"];
    assert_eq!(of(Some(own), "bytes"), [Some(3), Some(9), None]);
    assert_eq!(of(Some(own), "default"), [Some(3), None, None]);
    let requests = request_limits(&doc, Some(own), "bare", Mode::Enforce);
    assert_eq!(requests[0].spec.rate_limit, 100);
}

#[test]
fn the_agents_mode_bounds_every_mode_and_off_stays_off() {
    let doc = document(
        "[clients.a]\nmode = \"enforce\"\n[clients.b]\nmode = \"off\"\n[clients.c]\n\
         [segments.default]\nmode = \"shadow\"\n",
    );
    let mode = |id: &str, agent| {
        kernel_limits(&doc, Some(&doc.clients[id]), "default", agent)[0].map(|limit| limit.mode)
    };
    assert_eq!(mode("a", Mode::Shadow), Some(Mode::Shadow));
    assert_eq!(mode("a", Mode::Enforce), Some(Mode::Enforce));
    assert_eq!(mode("b", Mode::Enforce), Some(Mode::Off));
    assert_eq!(mode("c", Mode::Enforce), Some(Mode::Shadow));
}
