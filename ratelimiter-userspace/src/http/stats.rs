//! Requests by route and outcome, and how long they took. Bounded by the table of routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{Method, StatusCode};

use super::connections::ConnectionStats;
use super::routes::ROUTES;

/// Upper bounds of the duration buckets, in seconds.
pub const BUCKETS_S: [f64; 8] = [0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];
/// Classes of status codes, in the order of their numbers.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Counters of the HTTP service. All only ever rise.
#[derive(Debug)]
pub struct HttpStats {
    requests: Vec<[AtomicU64; CLASSES.len()]>,
    durations: [AtomicU64; BUCKETS_S.len() + 1],
    duration_sum_ns: AtomicU64,
    /// Connections.
    pub connections: Arc<ConnectionStats>,
}

impl Default for HttpStats {
    fn default() -> Self {
        Self {
            // The last place is for requests that no route took.
            requests: (0..=ROUTES.len()).map(|_| Default::default()).collect(),
            durations: Default::default(),
            duration_sum_ns: AtomicU64::new(0),
            connections: Arc::default(),
        }
    }
}

impl HttpStats {
    /// Counts one request of route number `route`; `None` if no route took it.
    pub fn record(&self, route: Option<usize>, status: StatusCode, duration_s: f64) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(count) = self
            .requests
            .get(route.unwrap_or(ROUTES.len()))
            .and_then(|classes| classes.get(class))
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let bucket = BUCKETS_S.iter().position(|bound| duration_s <= *bound);
        if let Some(count) = self.durations.get(bucket.unwrap_or(BUCKETS_S.len())) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.duration_sum_ns
            .fetch_add((duration_s * 1e9) as u64, Ordering::Relaxed);
    }

    /// Visits every counter above 0: path, method, class of status, requests.
    pub fn visit(&self, visit: &mut dyn FnMut(&'static str, &'static str, &'static str, u64)) {
        for (number, classes) in self.requests.iter().enumerate() {
            let (path, method) = ROUTES
                .get(number)
                .map_or(("other", "other"), |route| (route.path, method_word(route)));
            for (class, count) in CLASSES.iter().zip(classes) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    visit(path, method, class, count);
                }
            }
        }
    }

    /// Requests by duration bucket, not summed up, and the sum of all durations in seconds.
    #[must_use]
    pub fn durations(&self) -> ([u64; BUCKETS_S.len() + 1], f64) {
        let counts = std::array::from_fn(|n| {
            self.durations
                .get(n)
                .map_or(0, |count| count.load(Ordering::Relaxed))
        });
        let sum_s = self.duration_sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        (counts, sum_s)
    }
}

fn method_word(route: &super::routes::Route) -> &'static str {
    match route.method {
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "GET",
    }
}
