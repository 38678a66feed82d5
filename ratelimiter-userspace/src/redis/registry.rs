//! The registry of hosts in Redis, and the list of hot sources.

use redis::Value;

use super::link::Inner;
use crate::sync::beat::{ABSENT_US, FORGOTTEN_US, HOT_US, MAX_HOT};
use crate::sync::{Beat, Fleet, HotSource, Unsettled};

impl Inner {
    pub(super) async fn beat_once(&self, beat: &Beat) -> Result<Fleet, Unsettled> {
        let current = self.current()?;
        let prefix = self.prefix();
        let keys = [format!("{{{prefix}}}:hosts"), format!("{{{prefix}}}:hot")];
        let mut arguments: Vec<Vec<u8>> = [
            format!("{:016x}", beat.host),
            u8::from(beat.leaving).to_string(),
            beat.cursor_us.to_string(),
            FORGOTTEN_US.to_string(),
            ABSENT_US.to_string(),
            HOT_US.to_string(),
            beat.most.min(MAX_HOT).to_string(),
        ]
        .map(String::into_bytes)
        .to_vec();
        let hot = beat.hot.iter().take(MAX_HOT);
        arguments.extend(hot.map(|source| source.to_be_bytes().to_vec()));
        let value = self.run(&current, &self.beat, &keys, &arguments).await?;
        let Value::Array(found) = value else {
            return Err(self.garbled("not a list"));
        };
        let [known, live, cursor, hot @ ..] = found.as_slice() else {
            return Err(self.garbled("too short a list"));
        };
        let whole = |value: &Value| redis::from_redis_value_ref::<u64>(value).ok();
        let host_count = |value: &Value| whole(value).and_then(|count| u32::try_from(count).ok());
        let source = |value: &Value| match value {
            Value::BulkString(bytes) => bytes
                .as_slice()
                .try_into()
                .ok()
                .map(HotSource::from_be_bytes),
            _ => None,
        };
        let read = || {
            Some(Fleet {
                known: host_count(known)?,
                live: host_count(live)?,
                cursor_us: whole(cursor)?,
                // What another version of ours put there is skipped.
                hot: hot.iter().filter_map(source).take(MAX_HOT).collect(),
            })
        };
        read().ok_or_else(|| self.garbled("not numbers"))
    }
}
