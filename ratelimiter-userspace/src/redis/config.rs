//! The fleet's configuration in Redis: looked at, and written by compare-and-set.

use std::time::Duration;

use redis::Value;

use super::link::{Inner, RedisStore};
use crate::sync::Unsettled;
use crate::sync::config::{Body, Head};

/// Least time for a call that may carry a whole configuration.
const DEADLINE: Duration = Duration::from_secs(2);

/// What Redis has under the key.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its head as it stands there; empty for none. What a write expects.
    pub raw: Vec<u8>,
    /// What it is.
    pub what: What,
}

/// What a configuration in Redis is.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// There is none.
    Absent,
    /// Not what a host of this fleet wrote: damaged, forged, or under another secret.
    Damaged,
    /// Written by a host of this fleet, in words that this agent does not know.
    Unknown(Head, String),
    /// A configuration.
    Whole(Head, Box<Body>),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq)]
pub enum Put {
    /// It was made.
    Written,
    /// There is something else than was expected: nothing was written.
    Moved(Found),
}

impl RedisStore {
    /// Looks at the configuration; `None` if it is still the one under the head `known`.
    ///
    /// # Errors
    ///
    /// If the store does not answer.
    pub async fn configuration(&self, known: &[u8]) -> Result<Option<Found>, Unsettled> {
        let (_, head, body) = self.inner.configure(&[known]).await?;
        if head == known && !known.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.found(head, &body)))
    }

    /// Writes a configuration if the one in force has the head `expected` (empty for none).
    ///
    /// # Errors
    ///
    /// If the store does not answer; it may have been written nevertheless.
    pub async fn configure(
        &self,
        expected: &[u8],
        head: &Head,
        body: &[u8],
    ) -> Result<Put, Unsettled> {
        let new = head.to_string();
        let arguments = [expected, new.as_bytes(), body];
        let (written, head, body) = self.inner.configure(&arguments).await?;
        Ok(if written {
            Put::Written
        } else if head == expected {
            // The script sends no body along with a head that the caller has named.
            return Err(self
                .inner
                .garbled("a write that was neither made nor refused"));
        } else {
            Put::Moved(self.found(head, &body))
        })
    }

    fn found(&self, raw: Vec<u8>, body: &[u8]) -> Found {
        let head = std::str::from_utf8(&raw).map_err(drop);
        let what = match head.and_then(str::parse::<Head>) {
            _ if raw.is_empty() && body.is_empty() => What::Absent,
            Ok(head) if head.names(self.inner.config_secret(), body) => {
                match serde_json::from_slice(body) {
                    Ok(body) => What::Whole(head, Box::new(body)),
                    Err(error) => What::Unknown(head, error.to_string()),
                }
            }
            _ => What::Damaged,
        };
        Found { raw, what }
    }
}

impl Inner {
    /// Name of the configuration in Redis.
    fn config_key(&self) -> String {
        format!("{}:config", self.prefix())
    }

    async fn configure(&self, arguments: &[&[u8]]) -> Result<(bool, Vec<u8>, Vec<u8>), Unsettled> {
        let current = self.current()?;
        let arguments: Vec<Vec<u8>> = arguments.iter().map(|bytes| bytes.to_vec()).collect();
        let within = self.deadline().max(DEADLINE);
        let keys = [self.config_key()];
        let value = self
            .run_within(&current, &self.config, (&keys, &arguments), within, true)
            .await?;
        let read = || match value {
            Value::Array(parts) => match <[Value; 3]>::try_from(parts) {
                Ok(
                    [
                        Value::Int(written),
                        Value::BulkString(head),
                        Value::BulkString(body),
                    ],
                ) => Some((written == 1, head, body)),
                _ => None,
            },
            _ => None,
        };
        read().ok_or_else(|| self.garbled("not a configuration"))
    }
}
