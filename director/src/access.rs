//! Accesses that change nothing and are in the audit all the same: refused operations, and reads of
//! a tenant's objects by the provider's users.
//!
//! They are collected in memory and committed with the next change, or by a timer, so that none
//! needs a commit of its own. A process that is killed loses those of the last interval. Equal ones
//! are one entry with a count, and a user has a limited number of entries in an interval, so that
//! no role fills the audit by requests that it may not make.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use control::audit::Outcome;
use jiff::{SignedDuration, Timestamp};

use crate::{audit::Subject, people::Actor};

/// Interval of commits.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);
/// Entries of a user in an interval; further accesses are counted in one more.
const MAX_OF_USER: usize = 20;
/// Entries of all users in an interval; further accesses are not kept.
const MAX_ACCESSES: usize = 2000;
/// Time in which reads of a tenant's objects with a token are one entry.
const READS: SignedDuration = SignedDuration::from_hours(1);
/// Operation of the entry that counts what has none of its own.
const OTHERS: &str = "others";

/// An access.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub at: Timestamp,
    pub actor: Actor,
    pub subject: Subject,
}

/// User, token, operation, tenant, name, and type of the refusal.
type Key = (String, String, String, Option<String>, String, String);

#[derive(Debug, Default)]
struct Pending {
    all: BTreeMap<Key, Access>,
    /// Number of entries, by user.
    of_user: HashMap<String, usize>,
    /// Time of the last entry of reads, by token and tenant.
    reads: HashMap<(String, String), Timestamp>,
}

/// Accesses that are not committed yet.
#[derive(Debug, Default)]
pub(crate) struct Accesses(Mutex<Pending>);

impl Accesses {
    /// Adds a refused operation.
    pub fn refused(&self, access: Access) {
        self.lock().add(access);
    }

    /// Adds a read of a tenant's objects, unless there is an entry of one with the same token
    /// within the hour.
    pub fn read(&self, access: Access, tenant: &str) {
        let mut pending = self.lock();
        let (token, at) = (access.actor.token.clone(), access.at);
        let is_recent = |last: &Timestamp| at.duration_since(*last) < READS;
        let key = (token, tenant.to_owned());
        if pending.reads.get(&key).is_some_and(is_recent) {
            return;
        }
        if pending.reads.len() >= MAX_ACCESSES {
            pending.reads.retain(|_, last| is_recent(last));
        }
        pending.reads.insert(key, at);
        pending.add(access);
    }

    /// Takes all, in the order of their times.
    pub fn take(&self) -> Vec<Access> {
        let mut pending = self.lock();
        pending.of_user.clear();
        let mut all: Vec<_> = std::mem::take(&mut pending.all).into_values().collect();
        all.sort_by_key(|access| access.at);
        all
    }

    /// Gives back those that were not committed.
    pub fn give_back(&self, accesses: Vec<Access>) {
        let mut pending = self.lock();
        for access in accesses {
            pending.add(access);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    fn add(&mut self, mut access: Access) {
        if self.count(&access) {
            return;
        }
        let user = access.actor.user.clone();
        let used = self.of_user.get(&user).copied().unwrap_or_default();
        if used >= MAX_OF_USER {
            access.subject = Subject {
                operation: OTHERS.to_owned(),
                kind: String::new(),
                tenant: access.actor.tenant.clone(),
                name: String::new(),
                reason: None,
                address: access.subject.address,
                outcome: Outcome {
                    problem: None,
                    ..access.subject.outcome
                },
            };
            if self.count(&access) {
                return;
            }
        }
        self.of_user.insert(user, used + 1);
        if self.all.len() < MAX_ACCESSES {
            self.all.insert(key(&access), access);
        }
    }

    /// Counts an access beside an equal one, if there is one.
    fn count(&mut self, access: &Access) -> bool {
        let Some(found) = self.all.get_mut(&key(access)) else {
            return false;
        };
        found.at = found.at.max(access.at);
        found.subject.outcome.count += access.subject.outcome.count;
        true
    }
}

fn key(access: &Access) -> Key {
    let Access { actor, subject, .. } = access;
    (
        actor.user.clone(),
        actor.token.clone(),
        subject.operation.clone(),
        subject.tenant.clone(),
        subject.name.clone(),
        subject.outcome.problem.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use control::Role;

    use super::*;

    fn access(user: &str, name: &str, second: i64) -> Access {
        Access {
            at: Timestamp::from_second(second).expect("a time"),
            actor: Actor {
                user: user.to_owned(),
                role: Role::ProviderOperator,
                tenant: None,
                object: None,
                token: "t".to_owned(),
            },
            subject: Subject {
                operation: "host.remove".to_owned(),
                kind: "host".to_owned(),
                tenant: None,
                name: name.to_owned(),
                reason: None,
                address: None,
                outcome: Outcome::refused(403, "forbidden"),
            },
        }
    }

    #[test]
    fn accesses_are_counted_and_bounded_for_each_user() {
        let accesses = Accesses::default();
        for second in 0..1000 {
            accesses.refused(access("alice", &format!("h{}", second % 100), second));
            accesses.refused(access("bob", "h1", second));
        }
        let all = accesses.take();
        let of = |user: &str| {
            let mut found = Vec::new();
            for access in all.iter().filter(|access| access.actor.user == user) {
                let subject = &access.subject;
                found.push((subject.operation.as_str(), subject.outcome.count));
            }
            found
        };
        assert_eq!(of("bob"), [("host.remove", 1000)]);
        let of_alice = of("alice");
        assert_eq!(of_alice.len(), MAX_OF_USER + 1);
        assert_eq!(of_alice.iter().map(|(_, count)| count).sum::<u64>(), 1000);
        assert!(of_alice.contains(&(OTHERS, 800)), "{of_alice:?}");
        assert!(all.is_sorted_by_key(|access| access.at));
        assert_eq!(accesses.take().len(), 0);
        accesses.give_back(all);
        accesses.refused(access("bob", "h1", 2000));
        let counts = accesses.take();
        assert_eq!(counts.len(), MAX_OF_USER + 2);
        assert_eq!(counts.last().expect("bob's").subject.outcome.count, 1001);
    }

    #[test]
    fn reads_of_a_tenant_are_one_entry_in_an_hour() {
        let accesses = Accesses::default();
        for second in [0, 10, 3599, 3600, 3601] {
            accesses.read(access("alice", "acme", second), "acme");
            accesses.read(access("alice", "globex", second), "globex");
        }
        let counts: Vec<_> = accesses
            .take()
            .iter()
            .map(|a| a.subject.outcome.count)
            .collect();
        assert_eq!(counts, [2, 2]);
        for number in 0..3 * MAX_ACCESSES {
            let second = 10_000 * i64::try_from(number).expect("small");
            accesses.read(access("alice", "t", second), &number.to_string());
        }
        assert!(accesses.lock().reads.len() <= MAX_ACCESSES);
    }
}
