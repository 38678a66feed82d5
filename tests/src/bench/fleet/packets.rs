//! What three hosts admit of one source: saturating everywhere, and polite, with Redis and without.
use std::time::Duration;

use ratelimiter_userspace::clock;

use super::scene::{Edge, Store, agent, metric};
use super::{Figure, figure};
use crate::OrFail as _;
use crate::agent::Agent;
use crate::flood::Flood;
use crate::process::{holds_within, rest};

/// Packets a second, and at once.
const LIMIT: u64 = 300;
/// What one host is sent of a greedy source, a second; of a polite one.
const GREEDY: u64 = 900;
const POLITE: u64 = LIMIT / 6;
/// Before this the hosts need not know of each other.
const WARM: Duration = Duration::from_secs(10);
const TRACKED: u64 = 4_096;

struct Scene<'a> {
    store: &'a mut Store,
    edges: &'a [Edge],
    agents: &'a [Agent<'a>],
}

impl Scene<'_> {
    fn received(&self) -> u64 {
        self.edges
            .iter()
            .map(|edge| edge.edge.ipv4_received())
            .sum()
    }

    /// What arrives within `time`, over the limit.
    fn admitted(&self, time: Duration) -> f64 {
        let (before, began) = (self.received(), clock::instant());
        rest(time);
        let received = (self.received() - before) as f64;
        received / (LIMIT as f64 * began.elapsed().as_secs_f64())
    }

    /// Seconds until every agent settles again.
    fn resumed(&self) -> f64 {
        let began = clock::instant();
        let back = holds_within(Duration::from_secs(20), || {
            let together = |agent| metric(agent, "ratelimiter_sync_apart") == 0.0;
            self.agents.iter().all(together)
        });
        if back {
            began.elapsed().as_secs_f64()
        } else {
            f64::INFINITY
        }
    }
}

/// Three agents under `on_loss`, and a source that sends `per_s` to each of them for `time`.
fn scenario<T: Send>(
    on_loss: &str,
    (per_s, time): (u64, Duration),
    work: impl FnOnce(&mut Scene<'_>) -> T,
) -> (T, u64, u64) {
    let mut store = Store::start();
    let edges = [Edge::new(), Edge::new(), Edge::new()];
    let agents: Vec<Agent<'_>> = edges
        .iter()
        .map(|edge| agent(edge, &store, (LIMIT, TRACKED), on_loss))
        .collect();
    let mut scene = Scene {
        store: &mut store,
        edges: &edges,
        agents: &agents,
    };
    let before = scene.received();
    let (found, sent) = std::thread::scope(|scope| {
        let floods: Vec<_> = edges
            .iter()
            .map(|edge| {
                let flood = Flood::new(vec![edge.frame("192.0.2.77")])
                    .rate(per_s)
                    .lasting(time);
                scope.spawn(move || edge.send(&flood).packets)
            })
            .collect();
        let found = work(&mut scene);
        let sent: u64 = floods
            .into_iter()
            .map(|flood| flood.join().or_fail("a flood"))
            .sum();
        (found, sent)
    });
    rest(Duration::from_millis(200));
    let received = scene.received() - before;
    // What still settles must not wait for a Redis that is stopped.
    scene.store.thaw();
    (found, sent, received)
}

pub(super) fn run(steady: Duration) -> Vec<Figure> {
    let outage = steady / 2;
    let ends = Duration::from_secs(2);
    let (hold, _, _) = scenario("hold", (GREEDY, WARM + steady + outage + ends), |scene| {
        rest(WARM);
        let steady = scene.admitted(steady);
        scene.store.freeze();
        let apart = scene.admitted(outage);
        scene.store.thaw();
        (steady, apart, scene.resumed())
    });
    let (strict, _, _) = scenario("strict", (GREEDY, WARM + outage + ends), |scene| {
        rest(WARM);
        scene.store.freeze();
        let apart = scene.admitted(outage);
        scene.store.thaw();
        apart
    });
    let all = WARM + outage + outage;
    let (seen, sent, received) = scenario("hold", (POLITE, all), |scene| {
        rest(WARM);
        scene.store.freeze();
        rest(outage);
        let apart = metric(&scene.agents[0], "ratelimiter_sync_apart");
        scene.store.thaw();
        rest(outage);
        apart
    });
    println!("polite: {sent} sent, {received} admitted; apart as the first host says: {seen}");
    vec![
        figure("admitted_steady_vs_limit", hold.0, "x"),
        figure("admitted_hold_apart_vs_limit", hold.1, "x"),
        figure("admitted_strict_partition_vs_limit", strict, "x"),
        figure(
            "denied_polite_hold",
            sent.saturating_sub(received) as f64,
            "packets",
        ),
        figure("resume_after_heal_s", hold.2, "s"),
    ]
}
