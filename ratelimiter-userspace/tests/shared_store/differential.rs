//! The script in a real Redis against the model of it: equal answers, to the last bit.
use ratelimiter_userspace::policy::model::Algorithm;
use ratelimiter_userspace::sync::settle::MIN_TTL_US;
use ratelimiter_userspace::sync::{Entry, FleetKey, FleetQuota, Ledger};

use crate::server::{Server, store, wait_until};

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::TokenBucket,
    Algorithm::SlidingLog,
    Algorithm::SlidingWindow,
    Algorithm::FixedWindow,
];

/// A quota whose windows come and go while the test runs.
fn quota(random: &mut Random, key: u64, revision: u64) -> FleetQuota {
    let grain = random.pick(&[1, 1, 256, 65_536]);
    let units = 1 + random.below(40);
    // Most keys stay with one algorithm, some change theirs.
    let algorithm = if random.below(20) == 0 {
        random.pick(&ALGORITHMS)
    } else {
        ALGORITHMS[(key % 4) as usize]
    };
    FleetQuota {
        algorithm,
        limit: units * grain,
        burst: (1 + random.below(50)) * grain,
        window_us: random.pick(&[400, 1_500, 20_000, 150_000, 1_000_000, 60_000_000]),
        grain,
        revision,
    }
}

fn entry(random: &mut Random, key: u64, quota: FleetQuota) -> Entry {
    let some = |random: &mut Random, chance: u64, most: u64| {
        if random.below(chance) == 0 {
            random.below(most)
        } else {
            0
        }
    };
    let grain = quota.grain;
    let mut entry = Entry::take(
        FleetKey(u128::from(key) << 64 | u128::from(key)),
        quota,
        random.below(30) * grain,
        random.below(6) * grain,
    );
    entry.spend = some(random, 3, 20 * grain);
    entry.debt = some(random, 3, 60 * grain);
    entry.returned = some(random, 4, 20 * grain);
    entry.age_us = some(random, 2, quota.window_us * 2);
    if random.below(200) == 0 {
        entry.spend = random.next();
    }
    if random.below(200) == 0 {
        entry.debt = random.next();
    }
    if random.below(200) == 0 {
        entry.returned = random.next();
    }
    if random.below(100) == 0 {
        (entry.want, entry.least) = (random.next(), random.next());
    }
    entry
}

#[test]
fn the_script_answers_as_the_model_does() {
    let server = Server::start();
    let store = store(&server);
    for seed in 1..=6_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut model = Ledger::new();
        let _: () = server.query(&["FLUSHALL"]).unwrap();
        let mut quotas: Vec<FleetQuota> = (0..16).map(|key| quota(&mut random, key, 1)).collect();
        let mut compared = 0;
        for round in 0..80_u64 {
            let batch: Vec<Entry> = (0..40)
                .map(|_| {
                    let key = random.below(16);
                    if random.below(40) == 0 {
                        // A newer revision, and now and then an older one.
                        let revision = (1 + round).saturating_sub(random.below(4));
                        quotas[key as usize] = quota(&mut random, key, revision);
                    }
                    entry(&mut random, key, quotas[key as usize])
                })
                .collect();
            let (now_us, found) = store
                .runtime()
                .block_on(store.settle_at(&batch))
                .unwrap_or_else(|error| panic!("seed {seed} round {round}: {error}"));
            let expected = model.settle(now_us, &batch);
            for (place, (found, expected)) in
                found.answers.iter().zip(&expected.answers).enumerate()
            {
                assert_eq!(
                    found, expected,
                    "seed {seed} round {round} entry {place}: {:?}",
                    batch[place]
                );
                compared += 1;
            }
            assert_eq!(found, expected, "seed {seed} round {round}");
        }
        assert_eq!(compared, 80 * 40);
    }
}

/// Every key under the prefix with its time to live in milliseconds; -1 for none.
fn keys_with_ttl(server: &Server) -> Vec<(String, i64)> {
    let keys: Vec<String> = server.query(&["KEYS", "rl:u:*"]).unwrap();
    keys.into_iter()
        .map(|key| {
            let ttl = server.query(&["PTTL", &key]).unwrap();
            (key, ttl)
        })
        .collect()
}

#[test]
fn every_key_expires_and_names_nobody() {
    let server = Server::start();
    let store = store(&server);
    let mut random = Random(77);
    let mut longest_us = MIN_TTL_US;
    for _ in 0..20 {
        let batch: Vec<Entry> = (1..60)
            .map(|key| {
                let quota = quota(&mut random, key, 1);
                let drain = quota.debt_cap() as f64 / quota.limit as f64 * quota.window_us as f64;
                longest_us = longest_us.max(drain as u64 + 2 * quota.window_us);
                entry(&mut random, key, quota)
            })
            .collect();
        store.runtime().block_on(store.settle_at(&batch)).unwrap();
    }
    let found = keys_with_ttl(&server);
    assert!(found.len() >= 50, "{}", found.len());
    for (key, ttl) in found {
        assert!(
            ttl > 0 && ttl as u64 <= longest_us / 1_000 + 1,
            "{key}: {ttl}"
        );
        assert_eq!(key.len(), "rl:u:{000}:".len() + 29, "{key}");
    }
}

#[test]
fn a_poisoned_key_is_dropped_and_counted() {
    let server = Server::start();
    let store = store(&server);
    let quota = FleetQuota {
        algorithm: Algorithm::TokenBucket,
        limit: 10,
        burst: 10,
        window_us: 60_000_000,
        grain: 1,
        revision: 1,
    };
    let take = |key: u128| Entry::take(FleetKey(key), quota, 4, 1);
    let double = |value: f64| value.to_le_bytes();
    let bucket = |numbers: [f64; 5]| {
        let mut bytes = vec![1];
        bytes.extend(numbers.into_iter().flat_map(double));
        bytes
    };
    let poisons: Vec<Vec<u8>> = vec![
        b"-1".to_vec(),
        b"9223372036854775808".to_vec(),
        b"NaN".to_vec(),
        Vec::new(),
        vec![9; 41],
        bucket([1.0, 0.0, f64::NAN, 0.0, 1.0]),
        bucket([1.0, 0.0, -1.0, 0.0, 1.0]),
        bucket([1.0, 1e300, 0.0, 0.0, 1.0]),
        bucket([f64::INFINITY, 0.0, 0.0, 0.0, 1.0]),
        bucket([1.0, 0.5, 0.0, 0.0, 1.0]),
        vec![2; 17 + 16 * 100],
        vec![0xff; 1 << 20],
    ];
    let mut connection = server.connection().unwrap();
    for (number, poison) in poisons.iter().enumerate() {
        let key = store.usage_key(FleetKey(number as u128 + 1));
        redis::cmd("SET")
            .arg(key)
            .arg(poison)
            .exec(&mut connection)
            .unwrap();
    }
    let list = store.usage_key(FleetKey(100));
    let mut push = redis::cmd("RPUSH");
    push.arg(list);
    for n in 0..10_000 {
        push.arg(n);
    }
    push.exec(&mut connection).unwrap();
    let batch: Vec<Entry> = (1..=poisons.len() as u128).chain([100]).map(take).collect();
    let (_, settled) = store.runtime().block_on(store.settle_at(&batch)).unwrap();
    for (answer, entry) in settled.answers.iter().zip(&batch) {
        assert_eq!((answer.granted, answer.level), (4, 4), "{:?}", entry.key);
    }
    assert_eq!(settled.mended, batch.len() as u64);
    assert_eq!(store.figures().mended, batch.len() as u64);
    // A second time there is nothing to mend, and what was taken is remembered.
    let (_, settled) = store.runtime().block_on(store.settle_at(&batch)).unwrap();
    assert_eq!(settled.mended, 0);
    assert!(settled.answers.iter().all(|answer| answer.level >= 7));
    assert!(keys_with_ttl(&server).iter().all(|(_, ttl)| *ttl > 0));

    // A host that lies about what it spent or is owed is held to what its quota allows at most.
    let mut rogue = take(500);
    (rogue.spend, rogue.debt) = (1_000_000_000_000_000_000, u64::MAX);
    let (_, settled) = store.runtime().block_on(store.settle_at(&[rogue])).unwrap();
    assert_eq!(settled.clamped, 2);
    assert!(settled.answers[0].level <= 2 * quota.entry_cap());
}

#[test]
fn times_of_the_future_hold_nobody_up() {
    let server = Server::start();
    let store = store(&server);
    let mut connection = server.connection().unwrap();
    for algorithm in [
        Algorithm::FixedWindow,
        Algorithm::SlidingWindow,
        Algorithm::SlidingLog,
    ] {
        let quota = FleetQuota {
            algorithm,
            limit: 4,
            burst: 4,
            window_us: 200_000,
            grain: 1,
            revision: 1,
        };
        // Full, and an hour ahead: what another server's clock has left behind.
        let (now_us, settled) = store
            .runtime()
            .block_on(store.settle_at(&[Entry::take(FleetKey(1), quota, 4, 1)]))
            .unwrap();
        assert_eq!(settled.answers[0].granted, 4);
        let key = store.usage_key(FleetKey(1));
        let mut state: Vec<u8> = redis::cmd("GET").arg(&key).query(&mut connection).unwrap();
        let ahead = (now_us as f64 + 3_600e6).to_le_bytes();
        state.splice(17..25, ahead);
        redis::cmd("SET")
            .arg(&key)
            .arg(state)
            .exec(&mut connection)
            .unwrap();
        wait_until("the window is over", || {
            let batch = [Entry::take(FleetKey(1), quota, 1, 1)];
            let (_, settled) = store.runtime().block_on(store.settle_at(&batch)).unwrap();
            settled.answers[0].granted == 1
        });
        let _: () = server.query(&["FLUSHALL"]).unwrap();
    }
}
