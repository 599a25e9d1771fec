//! The audit: an entry for each change, in the transaction of the change, and entries of refusals
//! and reads, chained by hashes.
//!
//! ```text
//!   entry 1 ─ hash ─▶ entry 2 ─ hash ─▶ entry 3 ─ hash ─▶ head: number and hash of the last
//!                       ▲
//!                       └ checkpoint: number, hash and time, signed
//! ```
//!
//! An entry that is altered, left out or put in between breaks the chain at its place. An attacker
//! who computes the whole chain again cannot sign its checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use crate::{Difference, Role};

/// Hash of the entry before the first.
const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// An entry of the audit, whose hash continues the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Number of the entry, from 1 without gaps.
    pub number: u64,
    /// Time of the change.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Name of the user.
    pub user: String,
    /// The user's role.
    pub role: Role,
    /// The user's tenant, for roles of a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_tenant: Option<String>,
    /// The API token.
    pub token: String,
    /// The operation of the API.
    pub operation: String,
    /// Kind of the object.
    pub kind: String,
    /// Tenant of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Name of the object.
    pub name: String,
    /// The reason that the user gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The address that the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The result; entries of earlier versions have none, and were carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Outcome>,
    /// All objects that the change created, changed or removed; none for a refusal or a read.
    #[schema(value_type = Vec<Object>)]
    pub changes: Vec<Difference>,
    /// Hash of the entry before; left out where a part of the entry is shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub previous: String,
    /// SHA-256 of this entry without this field, hexadecimal; left out where a part is shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

/// The result of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Status of HTTP: 200 to 299 for what was carried out. 200 for a command of the director.
    pub status: u16,
    /// Type of the refusal, such as `conflict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Number of equal accesses that the entry stands for, at least 1; changes have entries of
    /// their own.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u64,
}

impl Outcome {
    /// It was carried out, with this status.
    #[must_use]
    pub const fn done(status: u16) -> Self {
        Self {
            status,
            problem: None,
            count: 1,
        }
    }

    /// It was refused, with this status and type of refusal.
    #[must_use]
    pub fn refused(status: u16, problem: &str) -> Self {
        Self {
            problem: Some(problem.to_owned()),
            ..Self::done(status)
        }
    }
}

const fn one() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_one(count: &u64) -> bool {
    *count == 1
}

/// The last entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Its number; 0 if there is none.
    pub number: u64,
    /// Its SHA-256, hexadecimal.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            number: 0,
            hash: START.to_owned(),
        }
    }
}

/// A signed statement that the chain has this entry. The signature is Ed25519 (RFC 8032) over
/// [`Checkpoint::text`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Number of the entry.
    pub number: u64,
    /// Hash of the entry.
    pub hash: String,
    /// Time of the signature.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The public key, hexadecimal.
    pub key: String,
    /// The public key that signs later checkpoints in place of this one, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The signature, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signature: String,
}

impl Checkpoint {
    /// The signed text.
    #[must_use]
    pub fn text(&self) -> String {
        let Self {
            number, hash, at, ..
        } = self;
        match &self.next {
            None => format!("causeway audit checkpoint 1\n{number}\n{hash}\n{at}\n"),
            Some(next) => {
                format!("causeway audit checkpoint 2\n{number}\n{hash}\n{at}\n{next}\n")
            }
        }
    }

    /// The public key that signs the checkpoint after this one, hexadecimal.
    #[must_use]
    pub fn signer(&self) -> &str {
        self.next.as_deref().unwrap_or(&self.key)
    }

    fn is_signed(&self) -> bool {
        let Some((key, signature)) = unhex(&self.key).zip(unhex(&self.signature)) else {
            return false;
        };
        let key = UnparsedPublicKey::new(&ED25519, key);
        key.verify(self.text().as_bytes(), &signature).is_ok()
    }
}

impl Entry {
    /// The hash of the entry without its field `hash`.
    ///
    /// # Errors
    /// When the entry has no JSON form.
    pub fn computed_hash(&self) -> serde_json::Result<String> {
        let unsigned = Self {
            hash: String::new(),
            ..self.clone()
        };
        Ok(hex(&Sha256::digest(serde_json::to_vec(&unsigned)?)))
    }

    /// The text of an entry without hash, with its hash; and the hash.
    ///
    /// # Errors
    /// When the entry has no JSON form.
    pub fn signed(&self) -> serde_json::Result<(String, String)> {
        debug_assert!(
            self.hash.is_empty(),
            "the hash is not part of the hashed text"
        );
        let mut text = serde_json::to_string(self)?;
        let hash = hex(&Sha256::digest(text.as_bytes()));
        // The field is the last one.
        text.pop();
        text.push_str(",\"hash\":\"");
        text.push_str(&hash);
        text.push_str("\"}");
        Ok((text, hash))
    }
}

/// The chain is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// An entry does not follow the one before it.
    #[error("entry {number} does not follow entry {}: {reason}", number - 1)]
    Entry {
        /// Number that the entry should have.
        number: u64,
        /// The difference.
        reason: &'static str,
    },
    /// The head is not that of the last entry.
    #[error("the last entry is {found}, and the head names entry {expected}")]
    Head {
        /// Number of the last entry.
        found: u64,
        /// Number in the head.
        expected: u64,
    },
    /// A checkpoint contradicts the chain, or its signature is wrong.
    #[error("the checkpoint of entry {number} {reason}")]
    Checkpoint {
        /// Number of the entry that it names.
        number: u64,
        /// The contradiction.
        reason: &'static str,
    },
    /// An entry cannot be read.
    #[error("an entry after {after} cannot be read: {reason}")]
    Unreadable {
        /// Number of the entry before.
        after: u64,
        /// The error.
        reason: String,
    },
}

/// Keys and checkpoint that a check of the chain relies on, kept apart from the director.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Public keys, hexadecimal; none to accept every key.
    pub keys: Vec<String>,
    /// A checkpoint: the chain must have its entry.
    pub since: Option<Checkpoint>,
}

/// A check of the chain, entry by entry.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    before: Head,
    /// Those that were not reached yet, by number.
    checkpoints: BTreeMap<u64, Vec<Checkpoint>>,
    signed: Option<u64>,
}

impl Chain {
    /// The check of a chain with these checkpoints, each of which must be signed. The last ones
    /// must be signed by a key of `trust`, or by one that a trusted key names as the next.
    /// Checkpoints of other keys before a trusted one prove nothing, and contradict nothing: its
    /// hash stands for all entries before it.
    ///
    /// # Errors
    /// [`Broken::Checkpoint`].
    pub fn new(
        checkpoints: impl IntoIterator<Item = Checkpoint>,
        trust: &Trust,
    ) -> Result<Self, Broken> {
        let mut all: Vec<_> = checkpoints.into_iter().chain(trust.since.clone()).collect();
        all.sort_by_key(|checkpoint| checkpoint.number);
        let mut keys: BTreeSet<_> = trust.keys.iter().cloned().collect();
        let is_any = keys.is_empty();
        // The first one of another key after the last trusted one.
        let mut other = None;
        let mut chain = Self::default();
        for checkpoint in all {
            let number = checkpoint.number;
            if !checkpoint.is_signed() {
                let reason = "has a wrong signature";
                return Err(Broken::Checkpoint { number, reason });
            }
            if is_any || keys.contains(&checkpoint.key) {
                other = None;
                if let Some(next) = &checkpoint.next {
                    keys.remove(&checkpoint.key);
                    keys.insert(next.clone());
                }
            } else {
                other.get_or_insert(number);
            }
            chain
                .checkpoints
                .entry(number)
                .or_default()
                .push(checkpoint);
        }
        match other {
            Some(number) => Err(Broken::Checkpoint {
                number,
                reason: "is signed by another key, and no trusted key has signed a later one",
            }),
            None => Ok(chain),
        }
    }

    /// Checks the next entry.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn push(&mut self, entry: &Entry) -> Result<(), Broken> {
        let number = self.before.number + 1;
        let broken = |reason| Err(Broken::Entry { number, reason });
        if entry.number != number {
            return broken("an entry is missing, or there twice");
        }
        if entry.previous != self.before.hash {
            return broken("it names another hash");
        }
        let hash = entry.computed_hash().map_err(|error| Broken::Unreadable {
            after: number - 1,
            reason: error.to_string(),
        })?;
        if hash != entry.hash {
            return broken("its content has another hash");
        }
        if let Some(checkpoints) = self.checkpoints.remove(&number) {
            if checkpoints.iter().any(|checkpoint| checkpoint.hash != hash) {
                let reason = "names another hash: the chain was computed again";
                return Err(Broken::Checkpoint { number, reason });
            }
            self.signed = Some(number);
        }
        self.before = Head { number, hash };
        Ok(())
    }

    /// The head after the last entry, and the number of the last entry that a checkpoint covers.
    ///
    /// # Errors
    /// [`Broken::Checkpoint`] for a checkpoint of an entry that is not there.
    pub fn finish(self) -> Result<(Head, Option<u64>), Broken> {
        match self.checkpoints.into_keys().next() {
            Some(number) => Err(Broken::Checkpoint {
                number,
                reason: "names an entry that is not there: the end of the chain is missing",
            }),
            None => Ok((self.before, self.signed)),
        }
    }
}

/// Bytes as hexadecimal text.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hexadecimal text; `None` if it is none.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() % 2 == 1 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    fn entries(count: u64) -> Vec<Entry> {
        let mut previous = START.to_owned();
        (1..=count)
            .map(|number| {
                let mut entry = Entry {
                    number,
                    at: Timestamp::UNIX_EPOCH,
                    user: "admin".to_owned(),
                    role: Role::ProviderAdmin,
                    user_tenant: None,
                    token: "t".to_owned(),
                    address: None,
                    operation: "host.create".to_owned(),
                    kind: "host".to_owned(),
                    tenant: None,
                    name: "h1".to_owned(),
                    reason: None,
                    result: Some(Outcome::done(201)),
                    changes: Vec::new(),
                    previous: previous.clone(),
                    hash: String::new(),
                };
                entry.hash = entry.computed_hash().unwrap();
                previous.clone_from(&entry.hash);
                entry
            })
            .collect()
    }

    fn pair_of(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn signed(entry: &Entry, seed: u8) -> Checkpoint {
        handed_over(entry, seed, None)
    }

    fn handed_over(entry: &Entry, seed: u8, next: Option<u8>) -> Checkpoint {
        let pair = pair_of(seed);
        let mut checkpoint = Checkpoint {
            number: entry.number,
            hash: entry.hash.clone(),
            at: Timestamp::UNIX_EPOCH,
            key: hex(pair.public_key().as_ref()),
            next: next.map(|seed| hex(pair_of(seed).public_key().as_ref())),
            signature: String::new(),
        };
        checkpoint.signature = hex(pair.sign(checkpoint.text().as_bytes()).as_ref());
        checkpoint
    }

    fn check(
        entries: &[Entry],
        checkpoints: &[Checkpoint],
        key: Option<&str>,
    ) -> Result<Option<u64>, Broken> {
        let trust = Trust {
            keys: key.into_iter().map(ToOwned::to_owned).collect(),
            since: None,
        };
        check_with(entries, checkpoints, &trust)
    }

    fn check_with(
        entries: &[Entry],
        checkpoints: &[Checkpoint],
        trust: &Trust,
    ) -> Result<Option<u64>, Broken> {
        let mut chain = Chain::new(checkpoints.iter().cloned(), trust)?;
        for entry in entries {
            chain.push(entry)?;
        }
        chain.finish().map(|(_, signed)| signed)
    }

    #[test]
    fn a_chain_that_is_computed_again_contradicts_its_checkpoints() {
        let good = entries(3);
        let checkpoint = signed(&good[1], 1);
        let key = checkpoint.key.clone();
        let checkpoints = [checkpoint.clone()];
        assert_eq!(check(&good, &checkpoints, Some(&key)), Ok(Some(2)));
        assert_eq!(check(&good, &[], None), Ok(None));
        let reason = |result: Result<Option<u64>, Broken>| result.unwrap_err().to_string();

        let mut forged = entries(3);
        forged[0].user = "eve".to_owned();
        assert!(reason(check(&forged, &checkpoints, None)).contains("another hash"));
        for at in 0..3 {
            if at > 0 {
                forged[at].previous = forged[at - 1].hash.clone();
            }
            forged[at].hash = forged[at].computed_hash().unwrap();
        }
        assert_eq!(
            check(&forged, &[], None),
            Ok(None),
            "the chain by itself is whole"
        );
        let found = reason(check(&forged, &checkpoints, None));
        assert!(
            found.contains("checkpoint of entry 2 names another hash"),
            "{found}"
        );
        let found = reason(check(&forged, &[signed(&forged[1], 2)], Some(&key)));
        assert!(found.contains("signed by another key"), "{found}");
        let found = reason(check(&good[..1], &checkpoints, None));
        assert!(
            found.contains("names an entry that is not there"),
            "{found}"
        );
        let wrong = Checkpoint {
            number: 3,
            ..checkpoint
        };
        assert!(reason(check(&good, &[wrong], None)).contains("wrong signature"));
    }

    #[test]
    fn a_key_hands_over_to_the_next() {
        let chain = entries(5);
        let [first, second, third] = [1, 2, 3].map(|seed| signed(&chain[0], seed).key);
        let checkpoints = [
            signed(&chain[0], 1),
            handed_over(&chain[2], 1, Some(2)),
            signed(&chain[3], 2),
        ];
        assert_eq!(checkpoints[0].signer(), first);
        assert_eq!(checkpoints[1].signer(), second);
        for key in [&first, &second] {
            assert_eq!(check(&chain, &checkpoints, Some(key)), Ok(Some(4)), "{key}");
        }
        let refused = |checkpoints: &[Checkpoint], key: &str| {
            let error = check(&chain, checkpoints, Some(key)).unwrap_err();
            error.to_string()
        };
        assert!(refused(&checkpoints, &third).contains("entry 1 is signed by another key"));
        // The old key does not sign any more.
        let late = [&checkpoints[..], &[signed(&chain[4], 1)]].concat();
        assert!(refused(&late, &first).contains("entry 5 is signed by another key"));
        // Nor does a name without the signature of it hand over.
        let mut forged = checkpoints.clone();
        forged[1].next = Some(third.clone());
        assert!(refused(&forged, &first).contains("entry 3 has a wrong signature"));
        // A key that was replaced without the old one is trusted by name only.
        let lost = [signed(&chain[0], 1), signed(&chain[3], 3)];
        assert!(refused(&lost, &first).contains("entry 4 is signed by another key"));
        let trust = Trust {
            keys: vec![first, third],
            since: None,
        };
        assert_eq!(check_with(&chain, &lost, &trust), Ok(Some(4)));
    }

    #[test]
    fn a_kept_checkpoint_shows_a_missing_end() {
        let chain = entries(4);
        let kept = signed(&chain[3], 1);
        let trust = Trust {
            keys: vec![kept.key.clone()],
            since: Some(kept),
        };
        let stored = [signed(&chain[1], 1)];
        assert_eq!(check_with(&chain, &stored, &trust), Ok(Some(4)));
        // A store that was set back is whole by itself.
        assert_eq!(
            check(&chain[..2], &stored, Some(&trust.keys[0])),
            Ok(Some(2))
        );
        let found = check_with(&chain[..2], &stored, &trust).unwrap_err();
        let text = "checkpoint of entry 4 names an entry that is not there";
        assert!(found.to_string().contains(text), "{found}");
        let mut other = entries(4);
        other[3].user = "eve".to_owned();
        other[3].hash = other[3].computed_hash().unwrap();
        let found = check_with(&other, &stored, &trust).unwrap_err();
        assert!(found.to_string().contains("computed again"), "{found}");
    }

    #[test]
    fn an_entry_of_an_earlier_version_has_the_hash_that_it_had() {
        let text = concat!(
            r#"{"number":1,"at":"1970-01-01T00:00:00Z","user":"admin","role":"provider-admin","#,
            r#""token":"t","operation":"host.create","kind":"host","name":"h1","changes":[],"#,
            r#""previous":"00"}"#
        );
        let entry: Entry = serde_json::from_str(text).unwrap();
        assert_eq!(entry.result, None);
        let hash = hex(&Sha256::digest(text.as_bytes()));
        assert_eq!(entry.computed_hash().unwrap(), hash);
    }

    #[test]
    fn hexadecimal_text_is_read_strictly() {
        assert_eq!(unhex("00ff"), Some(vec![0, 255]));
        for wrong in ["0", "zz", "+1", "ä"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}
