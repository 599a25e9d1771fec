//! Desired states: what a director, an operator or a configuration file may change while a daemon
//! runs; objects by ID, with a revision.
//!
//! For: the rules of revisions, the form of snapshots and deltas, and refusals, for every daemon.
//! Never: the objects of a daemon, their check, or how they are put in force. Pure.
//!
//! ```text
//!   Snapshot ─┐             ┌─ problem, older, other base, most objects gone ─▶ UpdateRefusal
//!   Delta ────┴▶ Position ──┤
//!                           └─▶ the daemon prepares all, then commits ─▶ Position of the revision
//! ```

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    config::{self, Problem},
    socket::RequestRefusal,
};

/// Highest revision: a JSON number that every reader has exactly, and beyond any count of updates.
pub const MAX_REVISION: u64 = 1 << 53;
/// States with fewer objects of a kind may lose most of them without `withdrawal`.
const SMALL: usize = 10;

/// Whether an update may remove most of the objects of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Withdrawal {
    /// No: it is taken for a mistake of the sender.
    #[default]
    Unintended,
    /// Yes.
    Intended,
}

impl Withdrawal {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the state in force comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// There is none yet.
    #[default]
    None,
    /// The configuration file.
    File,
    /// Snapshots and deltas.
    Applied,
}

impl Source {
    /// Name in status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::File => "file",
            Self::Applied => "applied",
        }
    }
}

/// A whole state of the objects `O`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot<O> {
    /// Number of the state, from 1 to [`MAX_REVISION`]; 0 in a stored state: from the configuration
    /// file.
    pub revision: u64,
    #[serde(default, skip_serializing_if = "Withdrawal::is_default")]
    pub withdrawal: Withdrawal,
    #[serde(default)]
    pub objects: O,
}

/// A difference between two states of the objects `O` with the IDs `I`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta<O, I> {
    /// Revision of the state that it changes.
    pub base: u64,
    /// Revision of the new state, above `base`.
    pub revision: u64,
    #[serde(default, skip_serializing_if = "Withdrawal::is_default")]
    pub withdrawal: Withdrawal,
    /// Objects that are added, or replace that of their ID.
    #[serde(default)]
    pub put: O,
    /// Objects that are removed; each must be there.
    #[serde(default)]
    pub remove: I,
}

/// A change of the desired state: the state as a whole, or a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[serde(bound(deserialize = "O: Default + Deserialize<'de>, I: Default + Deserialize<'de>"))]
pub enum Update<O, I> {
    Snapshot(Snapshot<O>),
    Delta(Delta<O, I>),
}

impl<O, I> Update<O, I> {
    /// Revision of the state after the update.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        match self {
            Self::Snapshot(snapshot) => snapshot.revision,
            Self::Delta(delta) => delta.revision,
        }
    }

    /// Refuses a revision after which there would be no room for others. Not for stored states: one
    /// that is in force stays.
    ///
    /// # Errors
    /// [`UpdateRefusal::High`].
    pub const fn check_revision(&self) -> Result<(), UpdateRefusal> {
        let revision = self.revision();
        if revision > MAX_REVISION {
            return Err(UpdateRefusal::High { revision });
        }
        Ok(())
    }
}

/// Why an update is refused. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateRefusal {
    /// A newer state is in force.
    #[error(
        "revision {revision} is older than revision {applied}, which is in force: use a higher \
         revision; or begin anew: write the state into the configuration file, `reload`, remove it \
         from the file, `reload`, and `apply` a snapshot of any revision"
    )]
    Older { revision: u64, applied: u64 },
    /// No update could follow.
    #[error("revision {revision} is too high: use 1 to {MAX_REVISION}")]
    High { revision: u64 },
    /// The delta is of another state.
    #[error(
        "the delta changes revision {base}, and revision {applied} is in force: send a delta of \
         {applied}, or a snapshot"
    )]
    Base { base: u64, applied: u64 },
    /// A delta of a state that has no revision.
    #[error("the state in force is that of the configuration file: send a snapshot first")]
    NoBase,
    /// The revision was used for another state.
    #[error("revision {revision} is in force with other contents: use a higher revision")]
    Differs { revision: u64 },
    /// The number is wrong.
    #[error("revision {revision}: write a number above {above}")]
    Number { revision: u64, above: u64 },
    /// It removes more than half.
    #[error(
        "it removes {removed} of {present} {kind}: if that is intended, write \"withdrawal\": \
         \"intended\""
    )]
    Withdrawal {
        kind: &'static str,
        removed: usize,
        present: usize,
    },
    /// The objects are wrong; every problem is kept, and the message has the first ones.
    #[error("{}", config::list(.0))]
    Invalid(Vec<Problem>),
}

impl From<&UpdateRefusal> for RequestRefusal {
    fn from(refusal: &UpdateRefusal) -> Self {
        let code = match refusal {
            UpdateRefusal::Invalid(_) => "invalid",
            _ => "conflict",
        };
        Self::new(code, refusal.to_string())
    }
}

/// Source and revision of the state in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub source: Source,
    /// 0: none was applied.
    pub revision: u64,
}

impl Position {
    /// Whether a revision is the one that was applied last.
    #[must_use]
    pub fn is_in_force(self, revision: u64) -> bool {
        self.source == Source::Applied && revision == self.revision
    }

    /// Checks the revision of a snapshot. With that in force, the contents must be the same.
    ///
    /// # Errors
    /// [`UpdateRefusal::Older`], [`UpdateRefusal::Number`].
    pub fn check_snapshot(self, revision: u64) -> Result<(), UpdateRefusal> {
        self.check_age(revision)?;
        if revision == 0 {
            return Err(UpdateRefusal::Number { revision, above: 0 });
        }
        Ok(())
    }

    /// Checks the revisions of a delta. Returns whether it changes the state in force; false: its
    /// revision is in force, and the state must be as after it.
    ///
    /// # Errors
    /// [`UpdateRefusal::Older`], [`UpdateRefusal::Number`], [`UpdateRefusal::NoBase`],
    /// [`UpdateRefusal::Base`].
    pub fn check_delta(self, base: u64, revision: u64) -> Result<bool, UpdateRefusal> {
        self.check_age(revision)?;
        if revision <= base {
            let above = base;
            return Err(UpdateRefusal::Number { revision, above });
        }
        // The same again: its base is not there any more, its outcome is.
        if self.is_in_force(revision) {
            return Ok(false);
        }
        if self.source == Source::File {
            return Err(UpdateRefusal::NoBase);
        }
        if base != self.revision {
            let applied = self.revision;
            return Err(UpdateRefusal::Base { base, applied });
        }
        Ok(true)
    }

    fn check_age(self, revision: u64) -> Result<(), UpdateRefusal> {
        if self.source == Source::Applied && revision < self.revision {
            let applied = self.revision;
            return Err(UpdateRefusal::Older { revision, applied });
        }
        Ok(())
    }

    /// Refuses an update that removes more than half of a kind without the intention. `kinds`:
    /// name, number of removed objects, and of present ones.
    ///
    /// # Errors
    /// [`UpdateRefusal::Withdrawal`].
    pub fn check_withdrawal(
        self,
        withdrawal: Withdrawal,
        kinds: impl IntoIterator<Item = (&'static str, usize, usize)>,
    ) -> Result<(), UpdateRefusal> {
        if withdrawal == Withdrawal::Intended || self.source == Source::File {
            return Ok(());
        }
        let mut kinds = kinds.into_iter();
        match kinds.find(|(_, removed, present)| *present >= SMALL && removed * 2 > *present) {
            Some((kind, removed, present)) => Err(UpdateRefusal::Withdrawal {
                kind,
                removed,
                present,
            }),
            None => Ok(()),
        }
    }
}

/// Deserializes a map in which each key is written once: for `#[serde(deserialize_with)]`.
///
/// # Errors
/// An ID that is written twice, and those of the values.
pub fn unique<'de, D, V>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    struct Visitor<V>(PhantomData<V>);
    impl<'de, V: Deserialize<'de>> de::Visitor<'de> for Visitor<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("objects by ID")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut out = BTreeMap::new();
            while let Some((id, value)) = map.next_entry::<String, V>()? {
                if let Some(id) = out.contains_key(&id).then_some(&id) {
                    return Err(de::Error::custom(format!("ID {id:?} is written twice")));
                }
                out.insert(id, value);
            }
            Ok(out)
        }
    }
    deserializer.deserialize_map(Visitor(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Position = Position {
        source: Source::None,
        revision: 0,
    };
    const FIFTH: Position = Position {
        source: Source::Applied,
        revision: 5,
    };
    const FILE: Position = Position {
        source: Source::File,
        revision: 0,
    };

    #[test]
    fn older_snapshots_are_refused_and_the_same_one_is_not() {
        assert_eq!(NONE.check_snapshot(1), Ok(()));
        assert_eq!(FILE.check_snapshot(1), Ok(()));
        assert_eq!(FIFTH.check_snapshot(5), Ok(()));
        assert!(FIFTH.is_in_force(5) && !FIFTH.is_in_force(6) && !FILE.is_in_force(0));
        let older = UpdateRefusal::Older {
            revision: 4,
            applied: 5,
        };
        assert_eq!(FIFTH.check_snapshot(4), Err(older));
        let zero = UpdateRefusal::Number {
            revision: 0,
            above: 0,
        };
        assert_eq!(NONE.check_snapshot(0), Err(zero));
    }

    #[test]
    fn a_revision_after_which_none_could_follow_is_refused() {
        type Any = Update<BTreeMap<String, u8>, Vec<String>>;
        let snapshot = |revision| {
            Any::Snapshot(Snapshot {
                revision,
                ..Snapshot::default()
            })
        };
        let delta = |revision| {
            Any::Delta(Delta {
                base: 5,
                revision,
                ..Delta::default()
            })
        };
        for update in [snapshot(MAX_REVISION), delta(MAX_REVISION)] {
            assert_eq!(update.check_revision(), Ok(()));
        }
        for revision in [MAX_REVISION + 1, u64::MAX] {
            for update in [snapshot(revision), delta(revision)] {
                let high = UpdateRefusal::High { revision };
                assert_eq!(update.check_revision(), Err(high));
            }
        }
        let text = UpdateRefusal::High { revision: u64::MAX }.to_string();
        let remedy = "revision 18446744073709551615 is too high: use 1 to 9007199254740992";
        assert_eq!(text, remedy);
    }

    #[test]
    fn a_delta_needs_its_base() {
        assert_eq!(FIFTH.check_delta(5, 6), Ok(true));
        assert_eq!(FIFTH.check_delta(4, 5), Ok(false), "the same again");
        assert_eq!(NONE.check_delta(0, 1), Ok(true));
        assert_eq!(FILE.check_delta(0, 1), Err(UpdateRefusal::NoBase));
        let other = UpdateRefusal::Base {
            base: 4,
            applied: 5,
        };
        assert_eq!(FIFTH.check_delta(4, 6), Err(other));
        let number = UpdateRefusal::Number {
            revision: 6,
            above: 6,
        };
        assert_eq!(FIFTH.check_delta(6, 6), Err(number));
        let older = FIFTH.check_delta(1, 2);
        assert!(matches!(older, Err(UpdateRefusal::Older { .. })));
    }

    #[test]
    fn most_objects_go_only_on_purpose() {
        let check = |position: Position, withdrawal, removed, present| {
            position.check_withdrawal(withdrawal, [("tenants", removed, present)])
        };
        let refused = check(FIFTH, Withdrawal::Unintended, 6, 11);
        assert!(matches!(refused, Err(UpdateRefusal::Withdrawal { .. })));
        assert_eq!(check(FIFTH, Withdrawal::Intended, 6, 11), Ok(()));
        assert_eq!(check(FIFTH, Withdrawal::Unintended, 5, 10), Ok(()));
        assert_eq!(check(FIFTH, Withdrawal::Unintended, 9, 9), Ok(()));
        assert_eq!(check(FILE, Withdrawal::Unintended, 11, 11), Ok(()));
    }

    #[test]
    fn a_refusal_of_many_problems_is_short_in_the_reply_and_a_line_in_the_log() {
        let problem = |n| Problem {
            at: format!("circuit \"{n:016x}\": tenant"),
            what: "there is no tenant \"acme\"".to_owned(),
        };
        let refusal = UpdateRefusal::Invalid((0..100_000).map(problem).collect());
        let refusal = RequestRefusal::from(&refusal);
        assert_eq!(refusal.code, "invalid");
        let reply = &refusal.message;
        assert!(reply.starts_with("100000 problems:\n  - circuit \"0000"));
        assert!(reply.ends_with("\n  and 99950 more"), "{reply}");
        assert!(reply.len() < 10_000, "{} bytes", reply.len());
        assert_eq!(
            refusal.line(),
            "100000 problems, first: circuit \"0000000000000000\": tenant: there is no tenant \
             \"acme\""
        );
        let other = RequestRefusal::from(&UpdateRefusal::NoBase);
        let text = UpdateRefusal::NoBase.to_string();
        assert_eq!((&*other.code, other.line()), ("conflict", text));
    }

    #[test]
    fn unknown_and_repeated_keys_are_refused() {
        type Any = Update<BTreeMap<String, u8>, Vec<String>>;
        let read = serde_json::from_str::<Any>;
        let update = read(r#"{"snapshot":{"revision":3,"objects":{"a":1}}}"#).expect("good");
        assert_eq!(update.revision(), 3);
        let wire = serde_json::to_string(&update).expect("serializable");
        assert_eq!(wire, r#"{"snapshot":{"revision":3,"objects":{"a":1}}}"#);
        assert_eq!(read(&wire).expect("good"), update);
        assert!(read(r#"{"snapshot":{"revision":3,"object":{}}}"#).is_err());
        assert!(read(r#"{"delta":{"base":3}}"#).is_err());

        #[derive(Debug, Deserialize)]
        struct Once {
            #[serde(deserialize_with = "unique")]
            all: BTreeMap<String, u8>,
        }
        let once: Once = serde_json::from_str(r#"{"all":{"a":1,"b":2}}"#).expect("good");
        assert_eq!(once.all.len(), 2);
        let twice = serde_json::from_str::<Once>(r#"{"all":{"a":1,"a":1}}"#);
        let error = twice.expect_err("twice").to_string();
        assert!(error.starts_with("ID \"a\" is written twice"), "{error}");
    }
}
