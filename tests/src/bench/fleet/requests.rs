//! Requests decided in this process: leased beside local, and exact beside a script per check.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ratelimiter_userspace::clock;
use ratelimiter_userspace::config::store_url::StoreUrl;
use ratelimiter_userspace::limiter::{FleetOptions, QuotaSpec, RateLimiter, Request};
use ratelimiter_userspace::policy::model::{Algorithm, Consistency, OnStoreLoss};
use ratelimiter_userspace::redis::{Access, Options, RedisStore};

use super::scene::Store;
use super::{Figure, compared};
use crate::OrFail as _;
use crate::process::holds_within;

/// Clients whose limit is exact, and checks of them under way at once.
const CLIENTS: usize = 16;
const TASKS: usize = 256;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;

/// The limit, a second, and at once: more than anybody asks for.
const RATE: u64 = 1_000_000;
const BURST: u64 = 100_000_000;

/// What others do for each check: one window, counted and given its end.
const SCRIPT: &str = "local n = redis.call('INCRBY', KEYS[1], ARGV[1])\n\
    if n == tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end\nreturn n";

fn quota(consistency: Consistency) -> QuotaSpec {
    QuotaSpec {
        name: Arc::from("default"),
        algorithm: Algorithm::TokenBucket,
        rate_limit: RATE,
        window_ns: 1_000_000_000,
        burst: BURST,
        shadow: false,
        consistency: Some(consistency),
        on_store_loss: OnStoreLoss::Hold,
    }
}

pub(super) fn open(url: &str) -> RedisStore {
    let url: StoreUrl = url.parse().or_fail("a URL");
    let store = RedisStore::open(Options {
        access: Access {
            target: url.target().or_fail("a URL").clone(),
            username: String::new(),
            password: None,
            authorities: None,
            certificate: None,
        },
        prefix: "rl".to_owned(),
        deadline: Duration::from_millis(500),
        secret: [0; 16],
    })
    .or_fail("open the store");
    let connected = holds_within(Duration::from_secs(10), || store.is_connected());
    assert!(connected, "{:?}", store.figures());
    store
}

/// Checks per second of a client, one after the other.
fn per_s(limiter: &RateLimiter, client: &str) -> f64 {
    let (began, mut checks) = (clock::instant(), 0_u64);
    while began.elapsed() < ROUND / 4 {
        for _ in 0..1_000 {
            assert!(
                limiter.allow_request(client),
                "`{client}` is within its limit"
            );
        }
        checks += 1_000;
    }
    checks as f64 / began.elapsed().as_secs_f64()
}

/// Completed calls per second of many tasks at once.
fn together<F>(
    runtime: &tokio::runtime::Runtime,
    call: impl Fn(usize) -> F + Clone + Send + Sync + 'static,
) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let (began, done) = (clock::instant(), Arc::new(AtomicU64::new(0)));
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let (call, done) = (call.clone(), Arc::clone(&done));
            tasks.spawn(async move {
                while began.elapsed() < ROUND {
                    call(task % CLIENTS).await;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.or_fail("a task");
        }
    });
    done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

pub(super) fn run() -> Vec<Figure> {
    let server = Store::start();
    let store = open(&server.url());
    let limiter = RateLimiter::builder()
        .capacity(10_000)
        .fleet(FleetOptions {
            exact_deadline: Duration::from_secs(1),
            ..FleetOptions::default()
        })
        .build()
        .or_fail("a limiter");
    limiter.join(Arc::new(store.clone()), &store.runtime());
    let joined = holds_within(Duration::from_secs(10), || !limiter.is_alone());
    assert!(joined, "the limiter does not join");
    for (client, consistency) in [
        ("leased", Consistency::Leased),
        ("local", Consistency::Local),
    ] {
        limiter
            .set_policy(client, Some(vec![quota(consistency)]))
            .or_fail("a limit");
    }
    for client in 0..CLIENTS {
        limiter
            .set_policy(
                format!("exact{client}"),
                Some(vec![quota(Consistency::Exact)]),
            )
            .or_fail("a limit");
    }
    let (mut leased, mut local) = (Vec::new(), Vec::new());
    per_s(&limiter, "leased");
    for _ in 0..ROUNDS {
        leased.push(per_s(&limiter, "leased"));
        local.push(per_s(&limiter, "local"));
    }

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .or_fail("a runtime");
    let client = redis::Client::open(server.url()).or_fail("a client");
    let connection = runtime
        .block_on(client.get_multiplexed_async_connection())
        .or_fail("a connection");
    let script = Arc::new(redis::Script::new(SCRIPT));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let limiter = limiter.clone();
        ours.push(together(&runtime, move |client| {
            let limiter = limiter.clone();
            async move {
                let id = format!("exact{client}");
                let answer = limiter
                    .check_request_soon(&Request::new(id.as_bytes()))
                    .await;
                assert!(
                    answer.or_fail("an answer").allowed,
                    "`{id}` is within its limit"
                );
            }
        }));
        let (connection, script) = (connection.clone(), Arc::clone(&script));
        theirs.push(together(&runtime, move |client| {
            let (mut connection, script) = (connection.clone(), Arc::clone(&script));
            async move {
                let mut call = script.prepare_invoke();
                call.key(format!("w{client}")).arg(1).arg(1_000);
                let _count: u64 = call
                    .invoke_async(&mut connection)
                    .await
                    .or_fail("an answer");
            }
        }));
    }
    let [leased, local, ours, theirs] =
        [leased, local, ours, theirs].map(|values| super::super::median(&values));
    vec![
        compared("leased_vs_local_rps", leased, local, "1/s"),
        compared("exact_vs_per_request_script", ours, theirs, "1/s"),
    ]
}
