//! One state of a backend's controllers for all hosts: compare-and-set, and every host's record.
//!
//! What is in the bodies is the caller's affair; here they are bytes with an age. No time of a host
//! ever crosses the wire.

use redis::Value;

use super::link::RedisStore;
use crate::sync::Unsettled;

/// A record is kept for so long without a newer one, in milliseconds.
const RECORD_MS: u64 = 10_000;
/// Whoever steps is replaced after so long without a word, in milliseconds.
const STEPPER_MS: u64 = 1_000;
/// A state is kept for so long, in milliseconds: what was proven longer ago says little.
const STATE_MS: u64 = 600_000;
/// Most hosts whose records are kept.
const HOSTS_MAX: usize = 1_024;
/// Largest state or record, in bytes.
pub const BODY_MAX: usize = 1 << 18;

/// What a host says of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The backend.
    pub backend: String,
    /// Which host, as in the registry.
    pub host: u64,
    /// Its record; empty for none.
    pub record: Vec<u8>,
    /// Epoch of the store's state that it goes on from; 0 for none.
    pub known: u64,
    /// The state it offers, and its epoch, which is above `known`.
    pub offer: Option<(u64, Vec<u8>)>,
    /// Whether it wants the records of all hosts.
    pub all: bool,
}

/// What it learns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Whether the offer is the fleet's state now.
    pub taken: bool,
    /// Whether this host is the one that steps where there is no report.
    pub steps: bool,
    /// Epoch of the store's state; 0 for none.
    pub epoch: u64,
    /// The store's state and its age in microseconds, if it is not the one the host has.
    pub state: Option<(u64, Vec<u8>)>,
    /// Hosts with records, this one included.
    pub hosts: u64,
    /// Host, age in microseconds and record of each other host, if all were wanted.
    pub records: Option<Vec<(String, u64, Vec<u8>)>>,
}

impl RedisStore {
    /// Tells the fleet what this host knows of a backend, and learns what the others do.
    ///
    /// # Errors
    ///
    /// As [`crate::sync::Settle::settle`]. A state or record above [`BODY_MAX`] is not sent.
    pub async fn adapt(&self, said: &Said) -> Result<Heard, Unsettled> {
        let offer = said.offer.as_ref();
        let body = offer.map_or(&[][..], |(_, body)| body.as_slice());
        for (what, bytes) in [("state", body.len()), ("record", said.record.len())] {
            if bytes > BODY_MAX {
                return Err(Unsettled::Away(format!(
                    "a {what} of backend `{}` has {bytes} bytes, {BODY_MAX} at most",
                    said.backend
                )));
            }
        }
        let keys = self.adaptive_keys(&said.backend);
        let text = |text: String| text.into_bytes();
        let arguments = [
            text(format!("{:016x}", said.host)),
            said.record.clone(),
            text(said.known.to_string()),
            text(offer.map_or(0, |(epoch, _)| *epoch).to_string()),
            body.to_vec(),
            text(u8::from(said.all).to_string()),
            text(RECORD_MS.to_string()),
            text(STEPPER_MS.to_string()),
            text(STATE_MS.to_string()),
            text(HOSTS_MAX.to_string()),
        ];
        let value = self.run_adaptive(&keys, &arguments).await?;
        read(value, said.all).ok_or_else(|| self.misunderstood("not a state and records"))
    }
}

fn read(value: Value, all: bool) -> Option<Heard> {
    let Value::Array(found) = value else {
        return None;
    };
    let whole = |value: &Value| redis::from_redis_value_ref::<u64>(value).ok();
    let bytes = |value: &Value| match value {
        Value::BulkString(bytes) if bytes.len() <= BODY_MAX => Some(bytes.clone()),
        _ => None,
    };
    let [taken, steps, epoch, age, hosts, state, records @ ..] = found.as_slice() else {
        return None;
    };
    let state = bytes(state)?;
    let record = |three: &[Value]| match three {
        [host, age, record] => Some((
            String::from_utf8(bytes(host)?).ok()?,
            whole(age)?,
            bytes(record)?,
        )),
        _ => None,
    };
    Some(Heard {
        taken: whole(taken)? == 1,
        steps: whole(steps)? == 1,
        epoch: whole(epoch)?,
        state: (!state.is_empty()).then_some((whole(age)?, state)),
        hosts: whole(hosts)?,
        // What another version of ours put there is skipped.
        records: all.then(|| records.chunks(3).filter_map(record).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart_and_nonsense_refused() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let head = [
            Value::Int(1),
            Value::Int(0),
            text("7"),
            text("12"),
            Value::Int(2),
            text("{}"),
        ];
        let whole = [&head[..], &[text("a"), text("5"), text("r")]].concat();
        let heard = read(Value::Array(whole.clone()), true).unwrap();
        assert_eq!((heard.taken, heard.steps, heard.epoch), (true, false, 7));
        assert_eq!(heard.state, Some((12, b"{}".to_vec())));
        assert_eq!(heard.records.unwrap(), [("a".to_owned(), 5, b"r".to_vec())]);
        assert_eq!(read(Value::Array(whole), false).unwrap().records, None);
        assert_eq!(read(Value::Array(head[..5].to_vec()), true), None);
        assert_eq!(read(Value::Nil, true), None);
        let odd = [&head[..], &[text("a"), text("x"), text("r")]].concat();
        assert_eq!(
            read(Value::Array(odd), true).unwrap().records,
            Some(Vec::new())
        );
    }
}
