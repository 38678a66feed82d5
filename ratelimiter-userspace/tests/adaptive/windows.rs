//! Bars 29 and 30: adaptive windows on a host whose load depends on the bursts it admits.
use ratelimiter_userspace::control::window::{Patience, Scale, Settings, rescale_previous};

use crate::bars::{Bars, Required};
use crate::rng::Rng;

const CLIENTS: usize = 120;
const RATE: f64 = 20.0;
const WINDOW_S: f64 = 2.0;
const STEP_S: f64 = 0.02;
const END_S: f64 = 500.0;
/// The host is loaded in this interval, and the loop has come to rest in the second.
const LOADED_S: (f64, f64) = (120.0, 400.0);
const REST_S: (usize, usize) = (200, 395);

/// One client's buckets: a token bucket and a sliding window under the same rule.
struct Client {
    patience: Patience,
    changed_s: f64,
    offered: f64,
    tokens: f64,
    at_s: f64,
    window_s: f64,
    started_s: f64,
    current: f64,
    previous: f64,
    admitted: Vec<f64>,
    admitted_sliding: Vec<f64>,
}

impl Client {
    fn new() -> Self {
        Self {
            patience: Patience::default(),
            changed_s: 0.0,
            offered: 0.0,
            tokens: RATE * WINDOW_S,
            at_s: 0.0,
            window_s: WINDOW_S,
            started_s: 0.0,
            current: 0.0,
            previous: 0.0,
            admitted: Vec::new(),
            admitted_sliding: Vec::new(),
        }
    }

    fn request(&mut self, settings: &Settings, scale: Scale, now_s: f64) -> bool {
        self.offered += 1.0;
        let elapsed_s = now_s - self.changed_s;
        if elapsed_s >= settings.period_s {
            let patience = self.patience;
            self.patience = patience.after_period(settings, self.offered, RATE, elapsed_s);
            (self.changed_s, self.offered) = (now_s, 0.0);
        }
        let window_s = settings.window(WINDOW_S, scale, self.patience);
        self.slide(now_s, window_s);
        // A smaller window clamps the tokens, a larger one adds none.
        let refilled = self.tokens + (now_s - self.at_s) * RATE;
        self.tokens = refilled.min((RATE * window_s).max(1.0));
        self.at_s = now_s;
        let admitted = self.tokens >= 1.0;
        if admitted {
            self.tokens -= 1.0;
            self.admitted.push(now_s);
        }
        admitted
    }

    /// A new window takes effect when one ends, and the count before it keeps its rate.
    fn slide(&mut self, now_s: f64, window_s: f64) {
        while now_s - self.started_s >= self.window_s {
            self.started_s += self.window_s;
            let idle = now_s - self.started_s >= self.window_s;
            let count = if idle { 0.0 } else { self.current };
            self.previous = rescale_previous(count, self.window_s, window_s);
            (self.current, self.window_s) = (0.0, window_s);
        }
        let past = (now_s - self.started_s) / self.window_s;
        let count = self.current + self.previous * (1.0 - past);
        if count + 1.0 <= RATE * self.window_s {
            self.current += 1.0;
            self.admitted_sliding.push(now_s);
        }
    }
}

/// 40 smooth, 40 bursty, 25 at the limit, 15 abusive clients.
fn offered(client: usize, now_s: f64) -> f64 {
    match client {
        0..40 => 6.0,
        40..80 if (now_s + client as f64 * 0.31) % 12.0 < 1.0 => 80.0,
        40..80 => 0.0,
        80..105 => 20.0,
        _ => 100.0,
    }
}

struct Run {
    clients: Vec<Client>,
    offered: Vec<f64>,
    /// The scale after each second.
    scales: Vec<f64>,
}

fn run(feedback: f64) -> Run {
    let settings = Settings::default();
    let mut rng = Rng::new(29);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new()).collect();
    let mut sums = vec![0.0; CLIENTS];
    let mut scale = Scale::default();
    let mut scales = Vec::new();
    let (mut second, mut burst, mut peak, mut loads) = (0.0, 0.0, 0f64, Vec::new());
    for step in 1..=(END_S / STEP_S) as u64 {
        let now_s = step as f64 * STEP_S;
        for (i, client) in clients.iter_mut().enumerate() {
            let wanted = offered(i, now_s) * STEP_S;
            let extra = f64::from(u8::from(rng.unit() < wanted.fract()));
            for _ in 0..(wanted.trunc() + extra) as u32 {
                sums[i] += 1.0;
                if client.request(&settings, scale, now_s) {
                    second += 1.0;
                    burst += 1.0;
                }
            }
        }
        if step % 5 == 0 {
            (peak, burst) = (peak.max(burst * 10.0), 0.0);
        }
        if step % 50 == 0 {
            let loaded = now_s >= LOADED_S.0 && now_s < LOADED_S.1;
            let base = if loaded { 0.42 } else { 0.15 };
            let load = base + 0.25 * second / 1400.0 + feedback * peak / 2000.0;
            loads.push(load + 0.03 * rng.normal());
            (second, peak) = (0.0, 0.0);
            if loads.len() as f64 >= settings.period_s {
                let mean = loads.iter().sum::<f64>() / loads.len() as f64;
                scale = scale.after_period(&settings, mean);
                loads.clear();
            }
            scales.push(scale.get());
        }
    }
    Run {
        clients,
        offered: sums,
        scales,
    }
}

fn changes_of_direction(scales: &[f64]) -> usize {
    let moves = scales.windows(2).map(|two| two[1] - two[0]);
    let moves: Vec<f64> = moves.filter(|by| by.abs() > 1e-9).collect();
    moves.windows(2).filter(|two| two[0] * two[1] < 0.0).count()
}

/// The most admitted in any interval of this length.
fn most_within(times: &[f64], length_s: f64) -> usize {
    let (mut from, mut most) = (0, 0);
    for (i, at_s) in times.iter().enumerate() {
        while at_s - times[from] > length_s {
            from += 1;
        }
        most = most.max(i - from + 1);
    }
    most
}

#[test]
fn windows_shrink_under_load_without_cycling_and_never_raise_the_rate() {
    let mut bars = Bars::default();
    for feedback in [0.0, 0.2, 0.5] {
        let Run {
            clients,
            offered,
            scales,
        } = run(feedback);
        let name = |what: &str| format!("{what}, feedback {feedback}");
        let rest = &scales[REST_S.0..REST_S.1];
        let turns = changes_of_direction(rest) as f64;
        bars.at_most(Required, &name("29 changes of direction"), turns, 0.0);
        let steps = scales.windows(2).map(|two| (two[1] - two[0]).abs());
        let largest = steps.fold(0.0, f64::max);
        bars.at_most(
            Required,
            &name("29 largest step of W0"),
            largest,
            0.10 + 1e-9,
        );
        let long_run = |times: &dyn Fn(&Client) -> usize| {
            let abusers = clients[105..].iter().map(times).sum::<usize>() as f64;
            abusers / (15.0 * RATE * (END_S - 60.0))
        };
        let late = |times: &[f64]| times.iter().filter(|at_s| **at_s > 60.0).count();
        let tokens = long_run(&|client| late(&client.admitted));
        bars.at_most(
            Required,
            &name("30 abusers' rate / limit, token bucket"),
            tokens,
            1.001,
        );
        let sliding = long_run(&|client| late(&client.admitted_sliding));
        bars.at_most(
            Required,
            &name("30 abusers' rate / limit, sliding"),
            sliding,
            1.001,
        );
        let bound = RATE * (10.0 + 4.0 * WINDOW_S);
        let most = clients
            .iter()
            .map(|client| most_within(&client.admitted, 10.0))
            .max();
        let most = most.unwrap_or(0) as f64 / bound;
        bars.at_most(Required, &name("most in 10 s / r (T + W_max)"), most, 1.0);
        let admitted: usize = clients[40..80]
            .iter()
            .map(|client| client.admitted.len())
            .sum();
        let accepted = admitted as f64 / offered[40..80].iter().sum::<f64>();
        bars.note(&name("bursty clients accepted"), accepted);
        bars.note(
            &name("scale under load"),
            rest.iter().sum::<f64>() / rest.len() as f64,
        );
    }
    bars.close("adaptive windows");
}
