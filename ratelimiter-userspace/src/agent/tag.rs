//! Tags of objects (`ETag`): a hash of what an object is.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::admin::edit::object;
use crate::policy::model::Document;

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

/// The tag people are shown for `path`, and may name in `If-Match`: that of what the store has, else of
/// what the file or the defaults have there.
pub(super) fn shown_tag(stored: &Document, document: &Document, path: &str) -> Option<String> {
    tag_of(&object(stored, path)).or_else(|| tag_of(&object(document, path)))
}
