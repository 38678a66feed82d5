//! Hosts, network and store on a simulated clock: the fleet's promises under faults, ten thousand
//! times, and the bounds of the design's table.
//!
//! A seed replays exactly: `FLEET_SEED=1234 cargo test --test fleet_simulation one_seed -- --nocapture`
//! prints what happened, event by event. `FLEET_SEEDS=1000000` runs as many.

mod bounds;
mod bucket;
mod checks;
mod member;
mod random;
mod scenario;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use checks::Broken;
use member::Bug;
use scenario::Scenario;
use world::World;

/// Seeds of a CI run.
const SEEDS: u64 = 10_000;
/// Seeds within which every planted bug must be found.
const FOUND_WITHIN: u64 = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var_os(name)?.to_str()?.parse().ok()
}

/// Runs one seed; returns the number of events.
fn run(seed: u64, bug: Option<Bug>, loud: bool) -> Result<u64, Broken> {
    let scenario = Scenario::of(seed);
    let mut world = World::new(&scenario, bug, loud);
    world.run()?;
    checks::after(&scenario, &world)?;
    Ok(world.events)
}

#[test]
fn ten_thousand_seeds_keep_every_promise() {
    let seeds = number("FLEET_SEEDS").unwrap_or(SEEDS);
    let (next, fewest) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let broken: Vec<String> = std::thread::scope(|scope| {
        let run_some = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return None;
                }
                match run(seed, None, false) {
                    Ok(events) => {
                        fewest.fetch_min(events, Ordering::Relaxed);
                    }
                    Err(broken) => return Some(format!("FLEET_SEED={seed}: {broken}")),
                }
            }
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(run_some)).collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().unwrap())
            .collect()
    });
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(fewest.load(Ordering::Relaxed) >= 200, "{fewest:?} events");
}

#[test]
fn one_seed() {
    let seed = number("FLEET_SEED").unwrap_or(1);
    let loud = std::env::var_os("FLEET_SEED").is_some();
    if loud {
        println!("{:#?}", Scenario::of(seed));
    }
    if let Err(broken) = run(seed, None, loud) {
        panic!("FLEET_SEED={seed}: {broken}");
    }
    // The same seed is the same run.
    assert_eq!(run(seed, None, false).ok(), run(seed, None, false).ok());
}

#[test]
fn every_planted_bug_is_found() {
    for bug in Bug::ALL {
        let found = (0..FOUND_WITHIN).find_map(|seed| {
            let broken = run(seed, Some(bug), false).err()?;
            Some((seed, broken))
        });
        match found {
            Some((seed, broken)) => println!("{bug:?}: seed {seed}: {broken}"),
            None => panic!("{bug:?} goes unseen in {FOUND_WITHIN} seeds"),
        }
    }
}
