//! What is decided, case by case; and a fleet of hosts and one store in every order of events.

use proptest::prelude::*;

use super::*;

const SECRET: [u8; 16] = [7; 16];

fn head(revision: u64) -> Head {
    Head::of(&SECRET, 5, revision, b"body")
}

fn at(revision: u64, ahead: u64) -> Standing {
    Standing {
        head: Some(head(revision)),
        ahead,
        parents: vec![head(revision - 1).digest],
        ..Standing::default()
    }
}

fn other(revision: u64) -> Has {
    Has::One {
        head: Head::of(&SECRET, 5, revision, b"another body"),
        same: false,
        follows: false,
    }
}

/// One that is built upon what this host has.
fn newer(revision: u64) -> Has {
    Has::One {
        head: head(revision),
        same: false,
        follows: true,
    }
}

fn step(mine: &Standing, has: Has) -> Step {
    decide(mine, false, has, Duration::ZERO)
}

#[test]
fn a_head_reads_back_and_nothing_else_does() {
    let head = head(12);
    assert_eq!(head.to_string().parse(), Ok(head));
    assert!(head.names(&SECRET, b"body"));
    assert!(!head.names(&SECRET, b"bodY"));
    assert!(
        !head.names(&[8; 16], b"body"),
        "written under another secret"
    );
    let later = Head {
        revision: 13,
        ..head
    };
    assert!(!later.names(&SECRET, b"body"), "the revision is covered");
    let text = head.to_string();
    for bad in [
        "",
        "1",
        "garbage",
        &text.replacen('1', "2", 1),
        &text.replace(" 12 ", " +12 "),
        &text.replace(" 12 ", " 0 "),
        &text.replace(" 12 ", " 9007199254740992 "),
        &format!("{text} "),
        &format!("1 {:016x} 1 {:016x}", 0, 1),
    ] {
        assert_eq!(bad.parse::<Head>(), Err(()), "{bad}");
    }
}

#[test]
fn a_store_that_lost_its_configuration_gets_it_back_and_takes_none() {
    for (mine, revision) in [(at(12, 0), 12), (at(12, 2), 14)] {
        let back = Step::Write {
            revision,
            founds: false,
            over: None,
        };
        assert_eq!(step(&mine, Has::Nothing), back);
        // Also where nothing is configured any more: that is a configuration too.
        assert_eq!(decide(&mine, true, Has::Nothing, Duration::ZERO), back);
        // Restored from before, or written back by a host that was behind.
        let before = Has::One {
            head: head(11),
            same: false,
            follows: false,
        };
        assert_eq!(step(&mine, before), back);
    }
}

#[test]
fn a_newcomer_follows_and_founds_only_where_nobody_else_does() {
    let new = Standing::default();
    assert_eq!(step(&new, other(1)), Step::Follow { lost: true });
    let fresh = |has, waited| decide(&new, true, has, waited);
    assert_eq!(
        fresh(other(1), Duration::ZERO),
        Step::Follow { lost: false }
    );
    assert_eq!(fresh(Has::Nothing, GRACE), Step::Rest);
    let own = |waited| decide(&new, false, Has::Nothing, waited);
    assert_eq!(own(GRACE.mul_f64(0.999)), Step::Wait);
    let founds = Step::Write {
        revision: 1,
        founds: true,
        over: None,
    };
    assert_eq!(own(GRACE), founds);
    // Whatever its revision, another fleet's configuration is followed and not compared.
    let from_elsewhere = Standing {
        head: Some(Head::of(&SECRET, 6, 900, b"")),
        ahead: 3,
        ..Standing::default()
    };
    assert_eq!(step(&from_elsewhere, other(2)), Step::Follow { lost: true });
}

#[test]
fn the_higher_revision_wins_and_the_store_where_they_are_equal() {
    assert_eq!(step(&at(12, 0), newer(13)), Step::Follow { lost: false });
    assert_eq!(step(&at(12, 0), other(13)), Step::Follow { lost: true });
    assert_eq!(step(&at(12, 1), newer(14)), Step::Follow { lost: true });
    assert_eq!(step(&at(12, 1), newer(13)), Step::Follow { lost: true });
    assert_eq!(step(&at(12, 0), other(12)), Step::Follow { lost: true });
    let mine = Has::One {
        head: head(12),
        same: false,
        follows: false,
    };
    let write = |over| Step::Write {
        revision: 14,
        founds: false,
        over,
    };
    assert_eq!(
        step(&at(12, 2), mine),
        write(None),
        "nobody else changed it"
    );
    assert_eq!(step(&at(12, 2), other(13)), write(Some(13)));
    assert_eq!(step(&at(12, 2), other(12)), write(Some(12)));
    let same = Has::One {
        head: head(20),
        same: true,
        follows: false,
    };
    assert_eq!(step(&at(12, 2), same), Step::Agree);
}

fn built_upon(parents: Vec<u64>) -> Body {
    Body {
        parents,
        ..Body::default()
    }
}

#[test]
fn a_configuration_remembers_what_it_is_built_upon() {
    let mut mine = Standing::default();
    for revision in 1..=200 {
        mine = Standing::at(head(revision), &built_upon(mine.next_parents()));
    }
    assert_eq!(mine.parents.len(), PARENTS);
    assert_eq!(mine.parents[0], head(199).digest);
    assert!(at(199, 0).is_within(&head(200), &mine.parents));
    let forked = Standing::at(Head::of(&SECRET, 5, 199, b"x"), &Body::default());
    assert!(!forked.is_within(&head(200), &mine.parents));
    assert!(
        at(20, 0).is_within(&head(200), &mine.parents),
        "beyond memory"
    );
}

/// A host of the model: what it has is the number of the edit that made it.
#[derive(Clone, Debug, Default)]
struct Host {
    standing: Standing,
    has: u64,
    waited: Duration,
}

/// What the store of the model has.
#[derive(Clone, Debug)]
struct Kept {
    head: Head,
    parents: Vec<u64>,
    has: u64,
}

#[derive(Clone, Debug, Default)]
struct World {
    hosts: [Host; 3],
    store: Option<Kept>,
    older: Option<Kept>,
    /// Of each edit, what it was made from.
    made_from: Vec<u64>,
    /// What somebody was told is lost.
    told: Vec<u64>,
    lineages: u64,
}

impl World {
    /// The script's compare-and-set, won.
    fn put(&mut self, host: usize, founds: bool, revision: u64) {
        self.lineages += u64::from(founds);
        let mine = &mut self.hosts[host];
        let lineage = match mine.standing.head {
            Some(head) if !founds => head.lineage,
            _ => self.lineages,
        };
        let again = mine.standing.again(&Document::default());
        let parents = match again.filter(|_| revision == mine.standing.revision()) {
            Some(again) => again.parents,
            None => mine.standing.next_parents(),
        };
        let mut body = mine.has.to_le_bytes().to_vec();
        body.extend(parents.iter().flat_map(|digest| digest.to_le_bytes()));
        let head = Head::of(&SECRET, lineage, revision, &body);
        mine.standing = Standing::at(head, &built_upon(parents.clone()));
        self.older = self.store.replace(Kept {
            head,
            parents,
            has: mine.has,
        });
    }

    fn look(&mut self, host: usize) -> Step {
        let mine = &mut self.hosts[host];
        let has = self.store.as_ref().map_or(Has::Nothing, |kept| Has::One {
            head: kept.head,
            same: kept.has == mine.has,
            follows: mine.standing.is_within(&kept.head, &kept.parents),
        });
        let step = decide(&mine.standing, mine.has == 0, has, mine.waited);
        mine.waited = match step {
            Step::Wait => mine.waited + LOOK_EVERY,
            _ => Duration::ZERO,
        };
        match (step, self.store.clone()) {
            (Step::Agree | Step::Follow { .. }, Some(kept)) => {
                if step == (Step::Follow { lost: true }) {
                    self.told.push(mine.has);
                }
                mine.has = kept.has;
                mine.standing = Standing::at(kept.head, &built_upon(kept.parents));
            }
            (
                Step::Write {
                    revision,
                    founds,
                    over,
                },
                kept,
            ) => {
                self.told.extend(over.and(kept).map(|kept| kept.has));
                self.put(host, founds, revision);
            }
            _ => {}
        }
        step
    }

    /// An edit as the agent makes it: on top of what the store has, or alone while it is away.
    fn edit(&mut self, host: usize, reached: bool) {
        if reached {
            let known = self.store.as_ref().map(|kept| kept.head);
            let mine = &self.hosts[host].standing;
            if mine.ahead > 0 || known != mine.head {
                self.look(host);
            }
        }
        let value = self.made_from.len() as u64 + 1;
        self.made_from.push(self.hosts[host].has);
        self.hosts[host].has = value;
        if reached {
            let mine = &self.hosts[host].standing;
            let (founds, revision) = (mine.head.is_none(), mine.revision() + 1);
            self.put(host, founds, revision);
        } else {
            self.hosts[host].standing.ahead += 1;
        }
    }

    /// Whether `newer` is built upon `edit`, or is it.
    fn has(&self, newer: u64, edit: u64) -> bool {
        let mut at = newer;
        while at > edit {
            at = self.made_from[at as usize - 1];
        }
        at == edit
    }
}

#[test]
fn what_a_store_lost_is_given_back_under_its_old_name_and_nobody_is_alarmed() {
    let mut world = World::default();
    world.edit(0, true);
    world.look(1);
    world.edit(0, true);
    let before = world.store.clone().unwrap();
    // The host that is behind comes first, and the one that is ahead of it mends that.
    world.store = None;
    world.look(1);
    world.look(0);
    world.look(1);
    let after = world.store.clone().unwrap();
    assert_eq!((after.head, after.has), (before.head, before.has));
    assert!(world.told.is_empty());
    // Changes made alone meet what another has given back.
    world.edit(0, false);
    world.store = None;
    world.look(1);
    world.look(0);
    world.look(1);
    assert_eq!((world.hosts[1].has, world.told.len()), (3, 0));
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Edit(usize, bool),
    Look(usize),
    Empty,
    /// The store falls back to what it had before the last write, as in a failover.
    Restore,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0_usize..3, any::<bool>()).prop_map(|(host, reached)| Event::Edit(host, reached)),
        6 => (0_usize..3).prop_map(Event::Look),
        1 => Just(Event::Empty),
        1 => Just(Event::Restore),
    ];
    prop::collection::vec(event, 0..60)
}

proptest! {
    /// Whatever happened, hosts that look again have one configuration; an emptied store erases
    /// nothing; and every edit is in it, or in something of which somebody was told that it is lost.
    #[test]
    fn hosts_agree_again_and_nothing_is_lost_silently(events in events()) {
        let mut world = World::default();
        for event in events {
            match event {
                Event::Edit(host, reached) => world.edit(host, reached),
                Event::Look(host) => {
                    world.look(host);
                }
                Event::Empty => world.store = None,
                Event::Restore => world.store = world.older.clone(),
            }
        }
        for _ in 0..12 {
            for host in 0..3 {
                world.look(host);
            }
        }
        let edits = world.made_from.len() as u64;
        let Some(kept) = world.store.clone() else {
            prop_assert_eq!(edits, 0);
            return Ok(());
        };
        prop_assert!(kept.has > 0, "an empty store erased what was configured");
        for host in &world.hosts {
            prop_assert_eq!(host.has, kept.has);
            prop_assert_eq!(host.standing.head, Some(kept.head));
            prop_assert_eq!(host.standing.ahead, 0);
        }
        for edit in 1..=edits {
            let left = world.told.iter().chain([&kept.has]);
            prop_assert!(
                left.clone().any(|newer| world.has(*newer, edit)),
                "edit {edit} is gone, and nobody was told"
            );
        }
    }
}
