//! Who asks: a keyed 128-bit identity of the client id, instead of the id.
//!
//! One half chooses the place in the table, the other is the fingerprint kept there. Both are
//! NH sums (the universal hash under UMAC, RFC 4418) of the id with independent keys, finished by
//! strongly universal multilinear hashing: two distinct ids share one half with a probability of
//! about 2^-63 over the choice of the key, both halves with about 2^-126, and nobody who does not
//! know the key can do better. Fast because it is four multiplications per 16 bytes.
//!
//! The key is the caller's, so that it can be saved with the usage snapshot: under another key
//! nobody would be known any more.

use std::hash::{BuildHasher, Hasher, RandomState};

use siphasher::sip::SipHasher24;
use siphasher::sip128::{Hash128, Hasher128, SipHasher24 as SipHasher128};

use crate::policy::model::MAX_CLIENT_ID_BYTES;

/// Pairs of words in the longest message: the length, then the id.
const PAIRS: usize = (1 + MAX_CLIENT_ID_BYTES / 8).div_ceil(2);

/// The secret under which identities are computed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdentityKey(pub [u8; 16]);

impl std::fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdentityKey(secret)")
    }
}

impl IdentityKey {
    /// Returns a fresh key from the operating system's randomness.
    #[must_use]
    pub fn random() -> Self {
        // Two independent SipHash keys seeded by the operating system; their images are a PRF's.
        let half = || RandomState::new().build_hasher().finish().to_le_bytes();
        let mut key = [0; 16];
        let (low, high) = key.split_at_mut(8);
        low.copy_from_slice(&half());
        high.copy_from_slice(&half());
        Self(key)
    }
}

/// A client as the table knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey {
    /// Chooses the line.
    pub place: u64,
    /// What is stored and compared; never [`EMPTY`] or [`TOMBSTONE`].
    pub print: u64,
}

/// What an id names. A client id never shares a bucket with a descriptor or a key of the same
/// bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdKind {
    /// A client.
    Client = 0,
    /// A descriptor of Envoy's rate limit service.
    Descriptor = 1,
    /// A key of the Redis protocol.
    Key = 2,
}

/// Marks the digest of a long id, in the word that holds length and kind.
const LONG: u64 = 1 << 63;

/// Fingerprint of a way nobody holds.
pub(super) const EMPTY: u64 = 0;
/// Fingerprint of a way that is being given to somebody else.
pub(super) const TOMBSTONE: u64 = 1;

/// Turns ids into [`ClientKey`]s.
pub struct Identity {
    key: IdentityKey,
    /// Per pair of words: two keys for the place, two for the fingerprint.
    pairs: [[u64; 4]; PAIRS],
    place: [u128; 3],
    print: [u128; 3],
}

impl Identity {
    /// Derives the working keys from `key`.
    #[must_use]
    pub fn new(key: IdentityKey) -> Self {
        let mut counter = 0_u64;
        let mut next = || {
            let mut hasher = SipHasher24::new_with_key(&key.0);
            hasher.write_u64(counter);
            counter += 1;
            hasher.finish()
        };
        let mut pairs = [[0; 4]; PAIRS];
        for word in pairs.iter_mut().flatten() {
            *word = next();
        }
        let mut wide = || u128::from(next()) << 64 | u128::from(next());
        let place = [wide(), wide(), wide()];
        let print = [wide(), wide(), wide()];
        Self {
            key,
            pairs,
            place,
            print,
        }
    }

    /// The key to save with a snapshot.
    #[must_use]
    pub fn key(&self) -> IdentityKey {
        self.key
    }

    /// Returns the identity of `id`. Bytes past [`MAX_CLIENT_ID_BYTES`] are not looked at: such ids
    /// are refused before they come here.
    #[inline]
    #[must_use]
    pub fn of(&self, id: &[u8]) -> ClientKey {
        self.hash(id.len() as u64, id)
    }

    /// Returns the identity of `id` among the ids of another kind: no two kinds ever share one.
    /// Ids longer than [`MAX_CLIENT_ID_BYTES`] stand for their keyed 128-bit digest.
    #[inline]
    #[must_use]
    pub fn of_kind(&self, kind: IdKind, id: &[u8]) -> ClientKey {
        let kind = (kind as u64) << 32;
        if id.len() <= MAX_CLIENT_ID_BYTES {
            return self.hash(id.len() as u64 | kind, id);
        }
        let mut hasher = SipHasher128::new_with_key(&self.key.0);
        hasher.write(id);
        let Hash128 { h1, h2 } = hasher.finish128();
        let mut digest = [0; 16];
        let (low, high) = digest.split_at_mut(8);
        low.copy_from_slice(&h1.to_le_bytes());
        high.copy_from_slice(&h2.to_le_bytes());
        self.hash(digest.len() as u64 | kind | LONG, &digest)
    }

    /// `len` is the length of `id`, and above its 32 bits what tells kinds of ids apart.
    #[inline(always)]
    fn hash(&self, len: u64, id: &[u8]) -> ClientKey {
        let mut place = 0_u128;
        let mut print = 0_u128;
        let mut keys = self.pairs.iter();
        let mut absorb = |x: u64, y: u64| {
            if let Some([a, b, c, d]) = keys.next() {
                let product =
                    |k: u64, l: u64| u128::from(x.wrapping_add(k)) * u128::from(y.wrapping_add(l));
                place = place.wrapping_add(product(*a, *b));
                print = print.wrapping_add(product(*c, *d));
            }
        };
        // The message is the length, then the id in words; the last word overlaps the one before,
        // which is injective because the length is known.
        if id.len() <= 8 {
            absorb(len, short_word(id));
        } else if id.len() <= 40 {
            // Most ids: always five words, those behind the end stand for the last, so that the
            // processor has no length to guess.
            let last = id.len() - 8;
            let word = |n: usize| word_at(id, (8 * n).min(last));
            absorb(len, word(0));
            absorb(word(1), word(2));
            absorb(word(3), word(4));
        } else {
            absorb(len, word_at(id, 0));
            let last = id.len() - 8;
            let mut at = 8;
            while at + 8 <= last {
                absorb(word_at(id, at), word_at(id, at + 8));
                at += 16;
            }
            if at < last {
                absorb(word_at(id, at), word_at(id, last));
            } else {
                absorb(word_at(id, last), 0);
            }
        }
        let print = finish(print, &self.print);
        ClientKey {
            place: scatter(finish(place, &self.place)),
            print: if print <= TOMBSTONE { print + 2 } else { print },
        }
    }
}

/// Strongly universal hash of 128 bits to 64 (Lemire and Kaser, multilinear).
#[inline(always)]
fn finish(sum: u128, keys: &[u128; 3]) -> u64 {
    let [low, high, offset] = keys;
    let mixed = (sum & u128::from(u64::MAX))
        .wrapping_mul(*low)
        .wrapping_add((sum >> 64).wrapping_mul(*high))
        .wrapping_add(*offset);
    (mixed >> 64) as u64
}

/// Mixes a place (a bijection; the finaliser of MurmurHash3). Universal hashing promises few
/// collisions, not an even spread of ids that count upwards: without this some groups of lines
/// overflow in a half empty table.
#[inline(always)]
fn scatter(mut place: u64) -> u64 {
    place ^= place >> 33;
    place = place.wrapping_mul(0xff51_afd7_ed55_8ccd);
    place ^= place >> 33;
    place = place.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    place ^ place >> 33
}

/// Reads eight bytes from `at`; zero where they do not exist (no caller asks).
#[inline(always)]
fn word_at(id: &[u8], at: usize) -> u64 {
    id.get(at..)
        .and_then(|rest| rest.first_chunk::<8>())
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Reads up to eight bytes into a word, injectively for a given length.
#[inline(always)]
fn short_word(id: &[u8]) -> u64 {
    if let (Some(first), Some(last)) = (id.first_chunk::<4>(), id.last_chunk::<4>()) {
        return u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << 32;
    }
    match id {
        [] => 0,
        [a] => u64::from(*a),
        [a, b] => u64::from(*a) | u64::from(*b) << 8,
        [a, b, c, ..] => u64::from(*a) | u64::from(*b) << 8 | u64::from(*c) << 16,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn identity() -> Identity {
        Identity::new(IdentityKey(*b"0123456789abcdef"))
    }

    #[test]
    fn ids_that_differ_in_one_place_differ_in_both_halves() {
        let identity = identity();
        let mut places = HashSet::new();
        let mut prints = HashSet::new();
        let mut count = 0;
        for len in 0..=MAX_CLIENT_ID_BYTES {
            let mut id = vec![0_u8; len];
            // The zero id of every length, and every single bit of it flipped.
            for bit in 0..=len * 8 {
                if let Some(byte) = bit.checked_sub(1) {
                    id[byte / 8] ^= 1 << (byte % 8);
                }
                let key = identity.of(&id);
                places.insert(key.place);
                prints.insert(key.print);
                count += 1;
                if let Some(byte) = bit.checked_sub(1) {
                    id[byte / 8] ^= 1 << (byte % 8);
                }
            }
        }
        assert_eq!(places.len(), count);
        assert_eq!(prints.len(), count);
    }

    #[test]
    fn kinds_of_ids_never_share_an_identity() {
        let identity = identity();
        let kinds = [IdKind::Client, IdKind::Descriptor, IdKind::Key];
        let mut seen = HashSet::new();
        for len in [0, 1, 8, 16, 17, 256, 257, 4_096] {
            let id = vec![7_u8; len];
            for kind in kinds {
                assert!(seen.insert(identity.of_kind(kind, &id)), "{kind:?}, {len}");
            }
            if len <= MAX_CLIENT_ID_BYTES {
                assert_eq!(identity.of(&id), identity.of_kind(IdKind::Client, &id));
            }
        }
        // Bytes past what is hashed directly count too.
        let mut long = vec![7_u8; 4_096];
        long[4_095] = 8;
        assert!(seen.insert(identity.of_kind(IdKind::Key, &long)));
    }

    #[test]
    fn another_key_gives_another_identity() {
        let other = Identity::new(IdentityKey(*b"0123456789abcdeg"));
        assert_ne!(identity().of(b"client"), other.of(b"client"));
        assert_ne!(IdentityKey::random(), IdentityKey::random());
    }

    #[test]
    fn places_spread_evenly() {
        let identity = identity();
        let mut bins = [0_u32; 256];
        for n in 0..256 * 400 {
            let key = identity.of(format!("client-{n}").as_bytes());
            bins[(key.place >> 56) as usize] += 1;
        }
        let chi: f64 = bins
            .iter()
            .map(|&n| (f64::from(n) - 400.0).powi(2) / 400.0)
            .sum();
        // 255 degrees of freedom: the 0.01 and 0.99 quantiles.
        assert!((204.0..311.0).contains(&chi), "chi-square {chi}");
    }

    #[test]
    fn ids_that_count_upwards_do_not_crowd_a_group() {
        // 2000 clients on 234 groups of 24 ways, under several keys: 8.5 each on average. Ten more
        // than that is a deviation of six sigma for a random spread.
        for key in 0..8 {
            let identity = Identity::new(IdentityKey([key; 16]));
            for prefix in ["client-", "c", "tenant/eu-west-1/account-"] {
                let mut groups = [0_u32; 234];
                for n in 0..2_000 {
                    let place = identity.of(format!("{prefix}{n}").as_bytes()).place;
                    groups[((u128::from(place) * 234) >> 64) as usize] += 1;
                }
                let most = groups.iter().max();
                assert!(most < Some(&27), "{most:?} under {key} with {prefix}");
            }
        }
    }

    #[test]
    fn prints_are_never_the_reserved_words() {
        assert!(identity().of(b"").print > TOMBSTONE);
    }
}
