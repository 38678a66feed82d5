//! Pending changes: enforced until the deadline, taken back from then on with nobody's help.

use std::net::IpAddr;

use ratelimiter_common::abi::policy::action;
use ratelimiter_common::vclock::LEAD_NS;
use ratelimiter_userspace::policy::model::Document;
use ratelimiter_userspace::policy::plan::{Installed, Prefix, Update, clamps_in_force, plan};
use ratelimiter_userspace::policy::set::Compiled;
use ratelimiter_userspace::policy::trial::{Stage, overlay};

use crate::{compiled, document, install};

const S: u64 = 1_000_000_000;

const BEFORE: &str = r#"
    [segments.free]
    sources = ["10.0.0.0/8"]
    limits.packets = { rate_limit = 100, time_window = 1, burst = 200, unit = "packets" }
    [clients.alice]
    sources = ["192.0.2.0/30"]
    limits.packets = { rate_limit = 50, time_window = 1, burst = 60, unit = "packets" }
    [clients.gone]
    sources = ["198.51.100.0/24"]
    [block."203.0.113.0/24"]
"#;

const AFTER: &str = r#"
    [segments.free]
    sources = ["10.0.0.0/8"]
    limits.packets = { rate_limit = 100, time_window = 1, burst = 200, unit = "packets" }
    limits.bytes = { rate_limit = 1000, time_window = 1, unit = "bytes" }
    [clients.alice]
    sources = ["192.0.2.0/30"]
    limits.packets = { rate_limit = 5, time_window = 1, burst = 6, unit = "packets" }
    [clients.new]
    sources = ["10.5.0.0/24"]
    [block."10.6.0.0/16"]
"#;

fn until(set: &Compiled, until_ns: u64) -> Stage<'_> {
    Stage { set, until_ns }
}

struct Trial {
    installed: Installed,
    confirmed: Compiled,
    pending: Compiled,
}

fn tried() -> Trial {
    let mut installed = Installed::default();
    let confirmed = compiled(&document(BEFORE), &installed);
    install(&mut installed, &confirmed, S);
    let pending = compiled(&document(AFTER), &installed);
    let both = overlay(&[until(&pending, 70 * S)], &confirmed).unwrap();
    install(&mut installed, &both, 10 * S);
    assert!(plan(&installed, &both, 11 * S).is_empty());
    Trial {
        installed,
        confirmed,
        pending,
    }
}

/// What an address meets at a moment: rule, and burst of packets if it is limited.
fn meets(installed: &Installed, address: &str, now_ns: u64) -> (u32, Option<u64>) {
    let address: IpAddr = address.parse().unwrap();
    let mut said = (action::ZONE, 0);
    if let Some(zone) = installed.lookup.zone(address) {
        said.1 = u32::from(zone);
    } else {
        let host = Prefix::from(address);
        for prefix in std::iter::successors(Some(host), Prefix::supernet) {
            let Some((_, value)) = installed.prefixes.iter().find(|(p, _)| *p == prefix) else {
                continue;
            };
            let (what, slot) = if now_ns < value.until_ns {
                (value.action, value.slot)
            } else {
                (value.after_action, value.after_slot)
            };
            if what != action::PARENT {
                said = (what, slot);
                break;
            }
        }
    }
    let slot = match said.0 {
        action::ZONE => installed.zones[said.1 as usize].slot,
        action::TRACKED | action::SHARED => said.1,
        _ => return (said.0, None),
    };
    let piece = installed.policies[&slot].clocks[0].piece(now_ns);
    (said.0, Some(piece.burst >> 8))
}

#[test]
fn a_pending_change_is_in_force_until_its_deadline_and_the_old_one_afterwards() {
    let trial = tried();
    let early = 20 * S;
    let late = 70 * S;
    let of = |address, now_ns| meets(&trial.installed, address, now_ns);
    assert_eq!(of("192.0.2.1", early), (action::TRACKED, Some(6)));
    assert_eq!(of("192.0.2.1", late), (action::TRACKED, Some(60)));
    assert_eq!(of("10.5.0.9", early), (action::SHARED, Some(2_000)));
    assert_eq!(of("10.5.0.9", late), (action::ZONE, Some(200)));
    assert_eq!(of("10.6.1.1", early), (action::BLOCK, None));
    assert_eq!(of("10.6.1.1", late), (action::ZONE, Some(200)));
    assert_eq!(of("198.51.100.7", early), (action::ZONE, Some(2_000)));
    assert_eq!(of("198.51.100.7", late).0, action::SHARED);
    assert_eq!(of("203.0.113.7", early), (action::ZONE, Some(2_000)));
    assert_eq!(of("203.0.113.7", late), (action::BLOCK, None));
    // A unit that only the trial limits is off again afterwards.
    let free = trial.installed.zones[1].slot;
    let bytes = trial.installed.policies[&free].clocks[1];
    assert_eq!((bytes.piece(early).mode, bytes.piece(late).mode), (2, 0));
}

fn ends_as(trial: &mut Trial, wanted: &Compiled, now_ns: u64) {
    let now_ns = install(&mut trial.installed, wanted, now_ns);
    assert!(plan(&trial.installed, wanted, now_ns + S).is_empty());
    assert_eq!(trial.installed.prefixes, wanted.prefixes);
    assert_eq!(trial.installed.lookup, wanted.lookup);
    assert_eq!(trial.installed.tracked, wanted.tracked);
    assert_eq!(trial.installed.zones.to_vec(), wanted.zones);
    let slots = |set: &Compiled| set.policies.keys().copied().collect::<Vec<_>>();
    let has: Vec<u32> = trial.installed.policies.keys().copied().collect();
    assert_eq!(has, slots(wanted));
    for (slot, target) in &wanted.policies {
        for (unit, wish) in target.units.iter().enumerate() {
            let entry = &trial.installed.policies[slot];
            let piece = entry.clocks[unit].piece(now_ns + 2 * LEAD_NS);
            let limited = entry.units >> unit & 1 == 1;
            assert_eq!(limited, wish.is_some());
            if let Some(wish) = wish {
                assert_eq!(
                    (piece.speed, piece.burst),
                    (wish.limit.speed, wish.limit.burst)
                );
            }
            for piece in entry.clocks[unit].pieces {
                assert_ne!(piece.from_ns, 70 * S + 1, "a way back is left");
            }
        }
    }
}

#[test]
fn confirmed_it_stays() {
    let mut trial = tried();
    let pending = trial.pending.clone();
    ends_as(&mut trial, &pending, 30 * S);
    assert_eq!(
        meets(&trial.installed, "192.0.2.1", 100 * S),
        (action::TRACKED, Some(6))
    );
}

#[test]
fn rolled_back_early_it_is_gone() {
    let mut trial = tried();
    let confirmed = trial.confirmed.clone();
    ends_as(&mut trial, &confirmed, 30 * S);
    assert_eq!(
        meets(&trial.installed, "192.0.2.1", 31 * S),
        (action::TRACKED, Some(60))
    );
}

#[test]
fn a_restart_after_the_deadline_cleans_up_and_touches_no_clock_in_force() {
    let mut trial = tried();
    let alice = trial.confirmed.clients["alice"];
    let before = trial.installed.policies[&alice];
    // The agent was dead; it compiles the confirmed document against what it finds.
    let found = compiled(&document(BEFORE), &trial.installed);
    ends_as(&mut trial, &found, 100 * S);
    assert_eq!(trial.installed.policies[&alice], before);
}

#[test]
fn a_smaller_burst_clamps_when_it_comes_into_force_and_not_before() {
    let mut installed = Installed::default();
    let large: Document = document(BEFORE);
    let first = compiled(&large, &installed);
    install(&mut installed, &first, S);
    let desired = compiled(&document(AFTER), &installed);
    let updates = plan(&installed, &desired, 10 * S).updates;
    let clamp = updates.iter().find_map(|update| match update {
        Update::Clamp {
            not_before_ns,
            level,
            unit,
            ..
        } => Some((*not_before_ns, *level, *unit)),
        _ => None,
    });
    let (not_before_ns, level, unit) = clamp.unwrap();
    assert!(not_before_ns >= 10 * S + LEAD_NS);
    assert_eq!((level, unit), (6 << 8, 0));
    assert!(matches!(updates.last(), Some(Update::Clamp { .. })));
}

#[test]
fn a_way_back_to_a_smaller_burst_leaves_a_clamp_to_be_done() {
    let mut installed = Installed::default();
    let small = compiled(&document(AFTER), &installed);
    install(&mut installed, &small, S);
    let large = compiled(&document(BEFORE), &installed);
    let both = overlay(&[until(&large, 70 * S)], &small).unwrap();
    install(&mut installed, &both, 10 * S);
    let of_alice = |now_ns| {
        clamps_in_force(&installed.policies, now_ns)
            .into_iter()
            .filter(|clamp| matches!(clamp, Update::Clamp { slot, .. } if *slot == small.clients["alice"]))
            .count()
    };
    assert_eq!((of_alice(69 * S), of_alice(70 * S)), (0, 1));
}

/// Three documents, each without the trial that ends first: each holds until its own deadline.
#[test]
fn two_trials_of_different_objects_each_end_at_their_own_deadline() {
    let mut installed = Installed::default();
    let confirmed = compiled(&document(BEFORE), &installed);
    install(&mut installed, &confirmed, S);
    // Until 40 s: alice is slow and 10.6.0.0/16 is blocked. Until 70 s: the block alone.
    let slow = BEFORE.replace(
        "rate_limit = 50, time_window = 1, burst = 60",
        "rate_limit = 5, time_window = 1, burst = 6",
    );
    let blocked = format!("{BEFORE}\n[block.\"10.6.0.0/16\"]");
    let both = format!("{slow}\n[block.\"10.6.0.0/16\"]");
    let both = compiled(&document(&both), &installed);
    let blocked = compiled(&document(&blocked), &installed);
    let stages = [until(&both, 40 * S), until(&blocked, 70 * S)];
    let merged = overlay(&stages, &confirmed).unwrap();
    install(&mut installed, &merged, 10 * S);
    assert!(plan(&installed, &merged, 11 * S).is_empty());
    for (now_s, burst, rule) in [
        (20, 6, action::BLOCK),
        (39, 6, action::BLOCK),
        (40, 60, action::BLOCK),
        (69, 60, action::BLOCK),
        (70, 60, action::ZONE),
    ] {
        let now_ns = now_s * S;
        let alice = meets(&installed, "192.0.2.1", now_ns);
        assert_eq!(alice, (action::TRACKED, Some(burst)), "at {now_s} s");
        assert_eq!(
            meets(&installed, "10.6.1.1", now_ns).0,
            rule,
            "at {now_s} s"
        );
    }
    // The first one over, the second is as it was: nothing that is in force moves.
    let left = overlay(&[until(&blocked, 70 * S)], &confirmed).unwrap();
    install(&mut installed, &left, 45 * S);
    assert_eq!(meets(&installed, "10.6.1.1", 69 * S).0, action::BLOCK);
    assert_eq!(meets(&installed, "10.6.1.1", 70 * S).0, action::ZONE);
}

/// A prefix on trial inside another one on trial: each falls back by itself.
#[test]
fn nested_prefixes_on_trial_fall_back_one_by_one() {
    let mut installed = Installed::default();
    let confirmed = compiled(&document(BEFORE), &installed);
    install(&mut installed, &confirmed, S);
    let with = |lists: &str| compiled(&document(&format!("{BEFORE}\n{lists}")), &installed);
    let (wide, inner) = ("[block.\"192.0.0.0/16\"]", "[allow.\"192.0.7.0/24\"]");
    let both = with(&format!("{wide}\n{inner}"));
    // The inner one ends first, then the outer one; and the other way round.
    for (middle, at_50) in [(with(wide), action::BLOCK), (with(inner), action::ALLOW)] {
        let mut installed = installed.clone();
        let stages = [until(&both, 40 * S), until(&middle, 70 * S)];
        install(
            &mut installed,
            &overlay(&stages, &confirmed).unwrap(),
            10 * S,
        );
        let meets = |now_s: u64| meets(&installed, "192.0.7.1", now_s * S).0;
        assert_eq!(
            (meets(20), meets(50), meets(70)),
            (action::ALLOW, at_50, action::ZONE)
        );
    }
}

#[test]
fn a_second_change_of_one_object_is_refused_by_name() {
    let mut installed = Installed::default();
    let confirmed = compiled(&document(BEFORE), &installed);
    install(&mut installed, &confirmed, S);
    let burst = |burst: u64| {
        let text = BEFORE.replace("burst = 60", &format!("burst = {burst}"));
        compiled(&document(&text), &installed)
    };
    let (first, second) = (burst(70), burst(80));
    let stages = [until(&second, 40 * S), until(&first, 70 * S)];
    let issue = overlay(&stages, &confirmed).unwrap_err();
    assert!(
        issue
            .message
            .starts_with("policy `client:alice` would change at two deadlines"),
        "{issue}"
    );

    let text = |list: &str| document(&BEFORE.replace("[block.\"203.0.113.0/24\"]", list));
    let (first, second) = (text(""), text("[allow.\"203.0.113.0/24\"]"));
    let (first, second) = (compiled(&first, &installed), compiled(&second, &installed));
    let stages = [until(&second, 40 * S), until(&first, 70 * S)];
    let issue = overlay(&stages, &confirmed).unwrap_err();
    assert!(
        issue
            .message
            .starts_with("prefix `203.0.113.0/24` would change"),
        "{issue}"
    );
}
