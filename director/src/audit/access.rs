//! Accesses that change nothing and are in the audit all the same: refused operations, and reads of
//! a tenant's objects by the provider's users.
//!
//! They are collected in memory and committed with the next change, or a second later, so that
//! requests that are refused cause one commit in a second at most, however many they are. A process
//! that is killed loses those of the last second. Equal ones of a second are one entry with a
//! count, and a user has a limited number of entries in a minute, so that no role fills the audit
//! by requests that it may not make; the number of those beyond is an entry at the end of the
//! minute.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use control::audit::Outcome;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use super::Subject;
use crate::people::Actor;

/// Time from an access to its commit.
pub(crate) const DELAY: Duration = Duration::from_secs(1);
/// Time for which entries are limited.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// Entries of a user in a window; further accesses are counted in one more.
const MAX_OF_USER: usize = 20;
/// Entries of all users in a window; further accesses are counted as those of a user are. Also the
/// most such counts: further ones are not kept.
const MAX_ACCESSES: usize = 2000;
/// Time in which reads of a tenant's objects with a token are one entry.
const READS: Duration = Duration::from_secs(3600);
/// Operation of the entry that counts what has none of its own.
const OTHERS: &str = "others";

/// An access that the audit records, although it changes nothing.
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
    /// Those to commit.
    due: BTreeMap<Key, Access>,
    /// Counts of what exceeds the limits of the window, to commit at its end.
    others: BTreeMap<Key, Access>,
    /// Begin of the window.
    since: Option<Timestamp>,
    /// Number of entries in the window.
    total: usize,
    /// The same, by user.
    of_user: HashMap<String, usize>,
    /// Time of the last entry of reads, by token and tenant.
    reads: HashMap<(String, String), Duration>,
}

/// Accesses to take for a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Those that are due at this time.
    Due(Timestamp),
    /// All, counts of a window that has not ended included.
    All,
}

/// Accesses that are not committed yet.
#[derive(Debug, Default)]
pub(crate) struct Accesses {
    pending: Mutex<Pending>,
    noted: Notify,
}

impl Accesses {
    /// Adds a refused operation.
    pub fn refused(&self, access: Access) {
        self.lock().add(access);
        self.noted.notify_one();
    }

    /// Adds a read of a tenant's objects, unless there is an entry of one with the same token
    /// within the hour. `now` is of a clock that is never set.
    pub fn read(&self, access: Access, tenant: &str, now: Duration) {
        let mut pending = self.lock();
        let token = access.actor.token.clone();
        let is_recent = |last: &Duration| now.saturating_sub(*last) < READS;
        let key = (token, tenant.to_owned());
        if pending.reads.get(&key).is_some_and(is_recent) {
            return;
        }
        if pending.due.len() >= MAX_ACCESSES {
            return;
        }
        if pending.reads.len() >= MAX_ACCESSES {
            pending.reads.retain(|_, last| is_recent(last));
        }
        pending.reads.insert(key, now);
        pending.add(access);
        drop(pending);
        self.noted.notify_one();
    }

    /// Waits until there is an access, or since the last call was one.
    pub async fn noted(&self) {
        self.noted.notified().await;
    }

    /// Takes accesses, in the order of their times.
    pub fn take(&self, take: Take) -> Vec<Access> {
        let mut pending = self.lock();
        match take {
            Take::Due(now) => pending.begin_window(now),
            Take::All => pending.count_others(),
        }
        let mut all: Vec<_> = std::mem::take(&mut pending.due).into_values().collect();
        all.sort_by_key(|access| access.at);
        all
    }

    /// Gives back those that were not committed.
    pub fn give_back(&self, accesses: Vec<Access>) {
        if accesses.is_empty() {
            return;
        }
        let mut pending = self.lock();
        for access in accesses {
            add(&mut pending.due, access);
        }
        drop(pending);
        self.noted.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    fn add(&mut self, mut access: Access) {
        self.begin_window(access.at);
        if count(&mut self.due, &access) {
            return;
        }
        // Reads are few by themselves: one of a token and a tenant in an hour. None is counted with
        // others, as its tenant would not see it.
        if access.subject.outcome.problem.is_none() {
            add(&mut self.due, access);
            return;
        }
        let of_user = self.of_user.entry(access.actor.user.clone()).or_default();
        if *of_user < MAX_OF_USER && self.total < MAX_ACCESSES {
            *of_user += 1;
            self.total += 1;
            add(&mut self.due, access);
            return;
        }
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
        if self.others.len() < MAX_ACCESSES {
            add(&mut self.others, access);
        } else {
            count(&mut self.others, &access);
        }
    }

    /// Begins another window if this one has ended, or the clock was set back.
    fn begin_window(&mut self, now: Timestamp) {
        let age = self.since.map(|since| now.duration_since(since));
        let window = SignedDuration::try_from(WINDOW).unwrap_or(SignedDuration::MAX);
        if age.is_some_and(|age| !age.is_negative() && age < window) {
            return;
        }
        self.since = Some(now);
        self.total = 0;
        self.of_user.clear();
        self.count_others();
    }

    /// Makes the counts due.
    fn count_others(&mut self) {
        for access in std::mem::take(&mut self.others).into_values() {
            add(&mut self.due, access);
        }
    }
}

/// Adds an access, or counts it beside an equal one.
fn add(all: &mut BTreeMap<Key, Access>, access: Access) {
    if !count(all, &access) {
        all.insert(key(&access), access);
    }
}

/// Counts an access beside an equal one, if there is one.
fn count(all: &mut BTreeMap<Key, Access>, access: &Access) -> bool {
    let Some(found) = all.get_mut(&key(access)) else {
        return false;
    };
    found.at = found.at.max(access.at);
    found.subject.outcome.count += access.subject.outcome.count;
    true
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

    /// Operations and counts of a user.
    fn of<'a>(all: &'a [Access], user: &str) -> Vec<(&'a str, u64)> {
        let mut found = Vec::new();
        for access in all.iter().filter(|access| access.actor.user == user) {
            let subject = &access.subject;
            found.push((subject.operation.as_str(), subject.outcome.count));
        }
        found
    }

    #[test]
    fn accesses_are_counted_and_bounded_for_each_user() {
        let accesses = Accesses::default();
        for number in 0..1000 {
            accesses.refused(access("alice", &format!("h{}", number % 100), number / 20));
            accesses.refused(access("bob", "h1", number / 20));
        }
        let all = accesses.take(Take::All);
        assert_eq!(of(&all, "bob"), [("host.remove", 1000)]);
        let of_alice = of(&all, "alice");
        assert_eq!(of_alice.len(), MAX_OF_USER + 1);
        assert_eq!(of_alice.iter().map(|(_, count)| count).sum::<u64>(), 1000);
        assert!(of_alice.contains(&(OTHERS, 800)), "{of_alice:?}");
        assert!(all.is_sorted_by_key(|access| access.at));
        assert_eq!(accesses.take(Take::All).len(), 0);
        accesses.give_back(all);
        accesses.refused(access("bob", "h1", 50));
        let counts = accesses.take(Take::All);
        assert_eq!(counts.len(), MAX_OF_USER + 2);
        assert_eq!(counts.last().expect("bob's").subject.outcome.count, 1001);
    }

    #[test]
    fn a_user_has_as_many_entries_in_a_minute_however_often_they_are_taken() {
        let accesses = Accesses::default();
        let second = |second: i64| Timestamp::from_second(second).expect("a time");
        let mut taken = Vec::new();
        for number in 0..60 {
            for name in ["h1", "h2"] {
                accesses.refused(access("alice", name, number));
            }
            taken.extend(accesses.take(Take::Due(second(number))));
        }
        assert_eq!(of(&taken, "alice"), [("host.remove", 1); MAX_OF_USER]);
        // The others are counted in one, at the end of the minute.
        let last = accesses.take(Take::Due(second(60)));
        assert_eq!(of(&last, "alice"), [(OTHERS, 100)]);
        // The next minute, and a clock that is set back, have entries of their own.
        for now in [61, 30] {
            accesses.refused(access("alice", "h1", now));
            let all = accesses.take(Take::Due(second(now)));
            assert_eq!(of(&all, "alice"), [("host.remove", 1)]);
        }
        // All users together are bounded, too.
        for user in 0..2 * MAX_ACCESSES {
            accesses.refused(access(&user.to_string(), "h1", 100));
        }
        assert_eq!(accesses.take(Take::Due(second(100))).len(), MAX_ACCESSES);
        assert_eq!(accesses.take(Take::All).len(), MAX_ACCESSES);
    }

    #[test]
    fn reads_of_a_tenant_are_one_entry_in_an_hour() {
        let accesses = Accesses::default();
        let mut counts = Vec::new();
        for second in [0_i64, 10, 3599, 3600, 3601] {
            let now = Duration::from_secs(second.unsigned_abs());
            accesses.read(access("alice", "acme", second), "acme", now);
            accesses.read(access("alice", "globex", second), "globex", now);
            let taken = accesses.take(Take::All);
            counts.push(taken.iter().map(|a| a.subject.outcome.count).sum::<u64>());
        }
        assert_eq!(counts, [2, 0, 0, 2, 0]);
        for number in 0..3 * MAX_ACCESSES {
            let second = 10_000 * i64::try_from(number).expect("small");
            let now = Duration::from_secs(second.unsigned_abs());
            accesses.read(access("alice", "t", second), &number.to_string(), now);
        }
        assert!(accesses.lock().reads.len() <= MAX_ACCESSES);
    }
}
