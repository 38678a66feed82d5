//! Tags of objects (`ETag`): a hash of what an object is.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// The tag of an object; none for one that does not exist. Equal objects have equal tags, on every
/// host and after every restart.
pub(super) fn tag_of(object: &serde_json::Value) -> Option<String> {
    if object.is_null() {
        return None;
    }
    let mut hasher = SipHasher13::new();
    hasher.write(object.to_string().as_bytes());
    Some(format!("{:016x}", hasher.finish()))
}
