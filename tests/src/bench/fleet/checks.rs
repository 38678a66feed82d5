//! The check API of an agent over HTTP while Redis is stopped, beside itself while it is not.
use std::time::Duration;

use ratelimiter_userspace::clock;
use serde_json::json;

use super::scene::Store;
use super::{Figure, compared};
use crate::OrFail as _;
use crate::agent::Setup;
use crate::http::request_tcp;
use crate::netns::Netns;

const ADDRESS: &str = "127.0.0.1:9741";

/// The 99th percentile of checks one after the other for `time`, in milliseconds.
fn p99_ms(edge: &Netns, time: Duration) -> f64 {
    let body = json!({"client_id": "alice"});
    let address = ADDRESS.parse().or_fail("an address");
    let mut took: Vec<f64> = edge.run(|| {
        let (began, mut took) = (clock::instant(), Vec::new());
        while began.elapsed() < time {
            let asked = clock::instant();
            request_tcp(address, "POST", "/v1/check", &[], Some(&body))
                .or_fail("no answer to a check")
                .expect(200);
            took.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        took
    });
    took.sort_by(f64::total_cmp);
    println!("{} checks", took.len());
    took.get(took.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}

/// Alternates between healthy and stopped, three times `time` each.
pub(super) fn run(time: Duration) -> Vec<Figure> {
    let mut store = Store::start();
    let edge = Netns::new();
    let _agent = Setup::new()
        .enforce()
        .settings(&format!("[redis]\nurl = \"{}\"", store.url()))
        .settings("[segments.default.limits.default]\nrate_limit = 1000000\ntime_window = 1")
        .settings(
            "[tables]\ncrowd4_words = 65536\ncrowd6_ways = 16384\nregion_words = 4096\n\
             tracked = 4096\npolicies = 256\nprefixes = 65536\nevents_bytes = 65536",
        )
        .check(ADDRESS)
        .start(&edge);
    p99_ms(&edge, time);
    let (mut healthy, mut stopped) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        healthy.push(p99_ms(&edge, time));
        store.freeze();
        stopped.push(p99_ms(&edge, time));
        store.thaw();
        // Until it is connected again, at most 1.2 s.
        crate::process::rest(Duration::from_secs(3));
    }
    let [healthy, stopped] = [healthy, stopped].map(|values| super::super::median(&values));
    vec![compared(
        "p99_redis_stopped_vs_healthy",
        stopped,
        healthy,
        "ms",
    )]
}
