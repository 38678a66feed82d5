//! Measures the check library beside governor, and its servers beside others:
//! `bench-check [--json FILE]`.
//!
//! - `serve`: the servers, each a process of its own
//! - `load`, `wire`: who asks them; `servers`: their rows
//!
//! Every row is the median of interleaved rounds, all in one process on one machine, so that the
//! ratio means something where the absolute figure does not. Ids are strings of 8 to 40 bytes, in
//! the order of the requests; every check conforms and pays its compare-and-swap. "Seen" goals are
//! printed beside each row, never enforced here.

mod load;
mod serve;
mod servers;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use governor::{DefaultKeyedRateLimiter, Quota};
use ratelimiter_userspace::limiter::{Answer, RateLimiter};
use ratelimiter_userspace::policy::model::{Algorithm, Document, LimitSpec, Segment, Unit};
use ratelimiter_userspace::policy::units::Window;
use serde::Serialize;

/// Rounds per figure.
const ROUNDS: usize = 7;
const HOT: usize = 1_000;
const MANY: usize = 1_000_000;
/// Checks per round on the hot set: 400 per client stay below 1000 per minute.
const HOT_CHECKS: usize = 400_000;
const MANY_CHECKS: usize = 1_000_000;

/// One line of the report.
#[derive(Serialize)]
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    baseline: Option<f64>,
    ratio: Option<f64>,
}

/// xorshift64*: the same sequence on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Client id number `n`: 8 to 40 bytes.
fn id(n: usize) -> String {
    let tail = "tenant/eu-west-1/account/premium";
    format!("{n:08x}{}", &tail[..n.wrapping_mul(0x9e37_79b9) % 33])
}

fn uniform(ids: &[String], checks: usize, seed: u64) -> Vec<String> {
    let mut random = Random(seed);
    (0..checks)
        .map(|_| ids[random.below(ids.len())].clone())
        .collect()
}

/// Zipf with exponent 1.0 over the ids, by inverting the cumulative distribution.
fn zipf(ids: &[String], checks: usize, seed: u64) -> Vec<String> {
    let mut random = Random(seed);
    let mut cumulative = Vec::with_capacity(ids.len());
    let mut sum = 0.0;
    for rank in 1..=ids.len() {
        sum += 1.0 / rank as f64;
        cumulative.push(sum);
    }
    // Neighbouring ranks are not neighbours in memory.
    let place = |rank: usize| rank.wrapping_mul(0x9e37_79b1) % ids.len();
    (0..checks)
        .map(|_| {
            let rank = cumulative.partition_point(|&below| below < random.unit() * sum);
            ids[place(rank.min(ids.len() - 1))].clone()
        })
        .collect()
}

fn document(algorithm: Algorithm, rate_limit: u64) -> anyhow::Result<Document> {
    let mut document = Document::default();
    let mut segment = Segment::default();
    let time_window = Window::from_ns(60_000_000_000).map_err(anyhow::Error::msg)?;
    segment.limits.insert(
        "default".to_owned(),
        LimitSpec {
            rate_limit,
            time_window,
            burst: None,
            unit: Unit::Requests,
            algorithm: Some(algorithm),
            mode: None,
            consistency: None,
            on_store_loss: None,
        },
    );
    document.segments.insert("default".to_owned(), segment);
    Ok(document)
}

fn limiter(algorithm: Algorithm, rate: u64, capacity: usize) -> anyhow::Result<RateLimiter> {
    let builder = RateLimiter::builder()
        .capacity(capacity)
        .block_bytes(1 << 30)
        .document(document(algorithm, rate)?);
    Ok(builder.build()?)
}

fn rival() -> DefaultKeyedRateLimiter<String> {
    let most = NonZeroU32::MAX;
    governor::RateLimiter::keyed(Quota::per_second(most).allow_burst(most))
}

/// Runs `work` and returns nanoseconds per check.
fn time(checks: usize, work: impl FnOnce() -> usize) -> anyhow::Result<f64> {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
    let begin = Instant::now();
    let passed = black_box(work());
    let took = begin.elapsed();
    anyhow::ensure!(
        passed == checks,
        "{passed} of {checks} checks passed; all must"
    );
    Ok(took.as_nanos() as f64 / checks as f64)
}

fn ours(limiter: &RateLimiter, requests: &[String]) -> usize {
    requests
        .iter()
        .filter(|id| limiter.allow_request(id))
        .count()
}

/// As `ours`, with the whole answer.
fn answered(limiter: &RateLimiter, requests: &[String]) -> usize {
    requests
        .iter()
        .filter(|id| black_box(limiter.check(id, 1)).is_ok_and(|answer| answer.allowed))
        .count()
}

fn theirs(limiter: &DefaultKeyedRateLimiter<String>, requests: &[String]) -> usize {
    requests
        .iter()
        .filter(|id| limiter.check_key(id).is_ok())
        .count()
}

fn batched(limiter: &RateLimiter, requests: &[(&str, u64)]) -> usize {
    let mut out: Vec<Answer> = Vec::new();
    let mut passed = 0;
    for batch in requests.chunks(32) {
        limiter.check_many(batch, limiter.now_ns(), &mut out);
        passed += out.iter().filter(|answer| answer.allowed).count();
    }
    passed
}

/// Figures by name, one per round.
#[derive(Default)]
struct Figures(BTreeMap<&'static str, Vec<f64>>);

impl Figures {
    fn push(&mut self, name: &'static str, value: f64) {
        self.0.entry(name).or_default().push(value);
    }
    fn median(&self, name: &str) -> f64 {
        let mut values = self.0.get(name).cloned().unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Every id `times` times, in random order.
fn each(ids: &[String], times: usize, seed: u64) -> Vec<String> {
    let mut random = Random(seed);
    let mut requests: Vec<String> = (0..times).flat_map(|_| ids.iter().cloned()).collect();
    for n in (1..requests.len()).rev() {
        requests.swap(n, random.below(n + 1));
    }
    requests
}

/// One thousand clients that all fit the nearest caches.
fn hot(figures: &mut Figures) -> anyhow::Result<()> {
    let ids: Vec<String> = (0..HOT).map(id).collect();
    let requests = uniform(&ids, HOT_CHECKS, 1);
    // A log of 10 holds ten: one of the first look, and nine.
    let nine = each(&ids, 9, 1);
    for _ in 0..ROUNDS {
        for (name, algorithm, rate, requests) in [
            (
                "hot_sliding_window",
                Algorithm::SlidingWindow,
                1_000,
                &requests,
            ),
            ("hot_token_bucket", Algorithm::TokenBucket, 1_000, &requests),
            ("hot_fixed_window", Algorithm::FixedWindow, 1_000, &requests),
            ("hot_sliding_log", Algorithm::SlidingLog, 10, &nine),
        ] {
            let limiter = limiter(algorithm, rate, MANY)?;
            ours(&limiter, &ids);
            figures.push(name, time(requests.len(), || ours(&limiter, requests))?);
        }
        let full = limiter(Algorithm::SlidingWindow, 1_000, MANY)?;
        ours(&full, &ids);
        figures.push(
            "hot_full_answer",
            time(HOT_CHECKS, || answered(&full, &requests))?,
        );
        let rival = rival();
        theirs(&rival, &ids);
        figures.push(
            "hot_governor",
            time(HOT_CHECKS, || theirs(&rival, &requests))?,
        );
    }
    Ok(())
}

/// One million clients. Everybody stays in debt: an idle client may be forgotten, and one that
/// comes back costs more than one that is known.
fn many(figures: &mut Figures, ids: &[String]) -> anyhow::Result<()> {
    let uniform = uniform(ids, MANY_CHECKS, 2);
    let zipf = zipf(ids, MANY_CHECKS, 3);
    let borrowed: Vec<(&str, u64)> = uniform.iter().map(|id| (id.as_str(), 1)).collect();
    let window = limiter(Algorithm::SlidingWindow, 1_000, MANY)?;
    let bucket = limiter(Algorithm::TokenBucket, 1_000, MANY)?;
    let zipfed = limiter(Algorithm::TokenBucket, 60_000_000, MANY)?;
    let rival = rival();
    for limiter in [&window, &bucket, &zipfed] {
        ours(limiter, ids);
    }
    theirs(&rival, ids);
    for _ in 0..ROUNDS {
        for (name, limiter, requests) in [
            ("uniform_sliding_window", &window, &uniform),
            ("uniform_token_bucket", &bucket, &uniform),
            ("zipf_token_bucket", &zipfed, &zipf),
        ] {
            figures.push(name, time(MANY_CHECKS, || ours(limiter, requests))?);
        }
        for (name, limiter) in [
            ("batch_sliding_window", &window),
            ("batch_token_bucket", &bucket),
        ] {
            figures.push(name, time(MANY_CHECKS, || batched(limiter, &borrowed))?);
        }
        for (name, requests) in [("uniform_governor", &uniform), ("zipf_governor", &zipf)] {
            figures.push(name, time(MANY_CHECKS, || theirs(&rival, requests))?);
        }
    }
    Ok(())
}

/// Checks per second of `threads` threads together, in millions.
fn together(
    threads: usize,
    requests: &[Vec<String>],
    limiter: &RateLimiter,
) -> anyhow::Result<f64> {
    let checks: usize = requests.iter().take(threads).map(Vec::len).sum();
    let ns = time(checks, || {
        std::thread::scope(|scope| {
            let running: Vec<_> = requests
                .iter()
                .take(threads)
                .map(|mine| scope.spawn(|| ours(limiter, mine)))
                .collect();
            running
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .sum()
        })
    })?;
    Ok(1_000.0 / ns)
}

fn cores(figures: &mut Figures, ids: &[String]) -> anyhow::Result<()> {
    let requests = [uniform(ids, MANY_CHECKS, 4), uniform(ids, MANY_CHECKS, 5)];
    let one = [
        vec![ids[0].clone(); MANY_CHECKS],
        vec![ids[0].clone(); MANY_CHECKS],
    ];
    let limiter = limiter(Algorithm::TokenBucket, 60_000_000, MANY)?;
    ours(&limiter, ids);
    for _ in 0..ROUNDS {
        figures.push("one_core", together(1, &requests, &limiter)?);
        figures.push("two_cores", together(2, &requests, &limiter)?);
        figures.push("one_core_one_client", together(1, &one, &limiter)?);
        figures.push("two_cores_one_client", together(2, &one, &limiter)?);
    }
    Ok(())
}

/// Resident bytes of this process.
fn resident() -> anyhow::Result<f64> {
    let statm = fs::read_to_string("/proc/self/statm").context("reading /proc/self/statm")?;
    let pages: f64 = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .context("/proc/self/statm has no second field")?;
    Ok(pages * 4_096.0)
}

/// Growth of resident memory per client, from before the limiter is made.
fn bytes_per_client(algorithm: Algorithm, rate: u64, ids: &[String]) -> anyhow::Result<f64> {
    let before = resident()?;
    let limiter = limiter(algorithm, rate, ids.len())?;
    let passed = ours(&limiter, ids);
    let after = resident()?;
    anyhow::ensure!(passed > 0 && limiter.stats().clients as usize > ids.len() * 99 / 100);
    Ok((after - before) / ids.len() as f64)
}

fn print(row: &Row, goal: &str) {
    let base = row
        .baseline
        .map_or(String::new(), |base| format!(" (baseline {base:.1})"));
    let ratio = row
        .ratio
        .map_or(String::new(), |ratio| format!(" ratio {ratio:.2}"));
    println!(
        "{:<24} {:>9.2} {:<10}{base}{ratio}  goal {goal}",
        row.name, row.value, row.unit
    );
}

fn run() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    if let [Some(first), Some(kind), Some(port)] = [1, 2, 3].map(|n| std::env::args().nth(n))
        && first == "--serve"
    {
        return serve::main(&kind, &port);
    }
    let mut json = None;
    let mut only = String::new();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--only" => only = args.next().context("`--only` needs a part")?,
            "--json" => json = Some(args.next().context("`--json` needs a file")?),
            other => anyhow::bail!(
                "unknown argument `{other}`; usage: bench-check [--json FILE] \
                 [--only bytes|hot|many|cores|servers|http|grpc|resp]"
            ),
        }
    }
    let ids: Vec<String> = (0..MANY).map(id).collect();
    let wants = |part: &str| only.is_empty() || only == part;
    // Memory first, while the heap holds nothing else.
    let (mut bytes, mut bytes_log) = (f64::NAN, f64::NAN);
    if wants("bytes") {
        bytes = bytes_per_client(Algorithm::SlidingWindow, 1_000, &ids)?;
        bytes_log = bytes_per_client(Algorithm::SlidingLog, 10, &ids)?;
    }
    let mut figures = Figures::default();
    if wants("hot") {
        hot(&mut figures)?;
    }
    if wants("many") {
        many(&mut figures, &ids)?;
    }
    if wants("cores") {
        cores(&mut figures, &ids)?;
    }
    drop(ids);
    servers::measure(&mut figures, &only)?;

    let of = |name: &str| figures.median(name);
    let value = |name: &str, value: f64, unit| Row {
        name: name.to_owned(),
        value,
        unit,
        baseline: None,
        ratio: None,
    };
    let beside = |name: &str, ours: f64, theirs: f64, unit, ratio: f64| Row {
        baseline: Some(theirs),
        ratio: Some(ratio),
        ..value(name, ours, unit)
    };
    let hot = of("hot_sliding_window").max(of("hot_token_bucket"));
    let uniform = of("uniform_sliding_window").max(of("uniform_token_bucket"));
    let batch = of("batch_sliding_window").max(of("batch_token_bucket"));
    let (rival, zipf, zipf_rival) = (
        of("uniform_governor"),
        of("zipf_token_bucket"),
        of("zipf_governor"),
    );
    let (one, two) = (of("one_core"), of("two_cores"));
    let (one_hot, two_hot) = (of("one_core_one_client"), of("two_cores_one_client"));
    let mut rows = vec![
        (value("lib_1k_ns", hot, "ns"), "<= 40"),
        (
            beside("lib_1m_vs_governor", uniform, rival, "ns", rival / uniform),
            "ratio >= 2",
        ),
        (
            beside(
                "lib_zipf_vs_governor",
                zipf,
                zipf_rival,
                "ns",
                zipf_rival / zipf,
            ),
            "ratio >= 2",
        ),
        (value("lib_1m_batch_ns", batch, "ns"), "<= 40"),
        (
            beside("lib_two_cores", two, one, "Mchecks/s", two / one),
            "ratio >= 1.7",
        ),
        (value("bytes_per_client", bytes, "bytes"), "<= 50"),
        (
            value("lib_1k_sliding_log_ns", of("hot_sliding_log"), "ns"),
            "printed",
        ),
        (
            beside(
                "lib_1k_vs_governor",
                hot,
                of("hot_governor"),
                "ns",
                of("hot_governor") / hot,
            ),
            "printed",
        ),
        (
            value("lib_1k_full_answer_ns", of("hot_full_answer"), "ns"),
            "printed",
        ),
        (
            value("lib_1k_fixed_window_ns", of("hot_fixed_window"), "ns"),
            "printed",
        ),
        (
            beside(
                "lib_two_cores_one_client",
                two_hot,
                one_hot,
                "Mchecks/s",
                two_hot / one_hot,
            ),
            "printed",
        ),
        (
            value("bytes_per_client_log10", bytes_log, "bytes"),
            "printed",
        ),
    ];
    rows.extend(servers::rows(&figures));
    // What was not asked for was not measured.
    rows.retain(|(row, _)| !row.value.is_nan());
    for (row, goal) in &rows {
        print(row, goal);
    }
    for (name, values) in &figures.0 {
        let shown: Vec<String> = values.iter().map(|value| format!("{value:.1}")).collect();
        println!("  {name}: {}", shown.join(" "));
    }
    if let Some(path) = json {
        let rows: Vec<&Row> = rows.iter().map(|(row, _)| row).collect();
        fs::write(&path, serde_json::to_vec_pretty(&rows)?)
            .with_context(|| format!("writing `{path}`"))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}
