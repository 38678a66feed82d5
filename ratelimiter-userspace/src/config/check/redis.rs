//! Bounds of `[redis]`.

use super::Check;
use crate::config::settings::Redis;

/// Longest prefix of the keys in Redis, in bytes.
const MAX_PREFIX_BYTES: usize = 32;

impl Check {
    pub(super) fn redis(&mut self, redis: &Redis) {
        self.range(&["redis", "deadline_ms"], redis.deadline_ms, 5, 5_000);
        self.range(
            &["redis", "exact_deadline_ms"],
            redis.exact_deadline_ms,
            1,
            1_000,
        );
        self.range(
            &["redis", "sync_interval_ms"],
            redis.sync_interval_ms,
            20,
            10_000,
        );
        self.range(&["redis", "lease_ms"], redis.lease_ms, 200, 60_000);
        for (name, file) in [
            ("password_file", &redis.password_file),
            ("key_secret_file", &redis.key_secret_file),
            ("ca_file", &redis.ca_file),
            ("cert_file", &redis.cert_file),
            ("key_file", &redis.key_file),
        ] {
            if !file.is_empty() {
                self.absolute(&["redis", name], file);
            }
        }
        if redis.cert_file.is_empty() != redis.key_file.is_empty() {
            self.push(
                &["redis", "cert_file"],
                "`redis.cert_file` and `redis.key_file` are set together or not at all".to_owned(),
            );
        }
        let prefix = &redis.prefix;
        let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_.-".contains(&c);
        if prefix.is_empty() || prefix.len() > MAX_PREFIX_BYTES || !prefix.bytes().all(legal) {
            self.push(
                &["redis", "prefix"],
                format!(
                    "`redis.prefix` is `{}`; it must be 1 to {MAX_PREFIX_BYTES} characters of \
                     `[a-z0-9_.-]`",
                    prefix.escape_debug()
                ),
            );
        }
    }
}
