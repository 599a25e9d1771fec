//! Changes: computed over the state in memory, one at a time, and committed with their audit entry.

mod differences;
mod idempotency;
mod plan;
mod taken;

pub(crate) use plan::{Applied, Planned, RecordError, Wanted};

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use aws_lc_rs::signature::Ed25519KeyPair;
use control::{
    ChangeOfObject, Difference, Kind as _, Origin, Precondition, Revision, Tenant, Transaction,
};
use jiff::Timestamp;
use store::{CommitError, Sqlite, Store as _};
use tokio::sync::{Mutex, Notify, RwLock, RwLockReadGuard, Semaphore};

use crate::{
    Environment,
    audit::{self, Accesses, DELAY, Outcome, Take, WINDOW},
    authentication::{Attempts, Ended, LastUses},
    environment::uid,
    live::{CREATION_PREFIX, KnownAgents, Live, LoadError},
    machines::{AgentListener, IDENTITIES, Presence},
    metrics::Metrics,
    people::{Actor, ENROLMENT, PASSWORD, TOKENS, Token},
    problem::Problem,
    source::FairSemaphore,
};
use idempotency::{keep_answer, set_revision, stored_answer};
use taken::Taken;

/// Times that a change is computed again when another director was faster.
const ATTEMPTS: usize = 5;
/// Passwords that are hashed at once: each takes 19 MiB and a CPU for tens of milliseconds.
const PASSWORDS: usize = 2;
/// Requests that wait for a password to be hashed: some seconds' work.
const PASSWORD_QUEUE: usize = 64;
/// Entries of the audit after which a checkpoint is signed before its time.
pub const MAX_UNSIGNED_ENTRIES: u64 = 1000;
/// Keys of a transaction that takes long to free.
const MANY_KEYS: usize = 100;

/// The director: its store, its state, and the order of changes.
#[derive(Debug)]
pub struct Director {
    pub(crate) store: Sqlite,
    live: RwLock<Live>,
    /// One change at a time is computed and committed.
    change_lock: Mutex<()>,
    /// The state in memory may not be that of the store.
    is_unknown: AtomicBool,
    /// The disk of the store is full, as a change or the self-test has found.
    pub(crate) is_full: AtomicBool,
    /// The director stops, and makes no more changes.
    is_closed: AtomicBool,
    /// There are [`MAX_UNSIGNED_ENTRIES`] entries without a checkpoint.
    signature_due: Notify,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) metrics: Metrics,
    /// Connected agents.
    pub(crate) presence: Presence,
    /// The listener of agents, if there is one.
    pub(crate) agent_listener: OnceLock<AgentListener>,
    /// Wrong passwords, and wrong codes of authenticators.
    pub(crate) attempts: Attempts,
    /// Accesses that the audit does not have yet.
    pub(crate) accesses: Accesses,
    /// Last uses of tokens.
    pub(crate) last_uses: LastUses,
    /// Tokens that ended before the clock was set back.
    pub(crate) ended: Ended,
    /// Permits to hash a password.
    pub(crate) passwords: Semaphore,
    /// Waits for one of them.
    pub(crate) password_queue: FairSemaphore,
}

impl Director {
    /// Reads the state of a store.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn new(store: Sqlite, environment: Arc<dyn Environment>) -> Result<Self, LoadError> {
        let live = Live::load_checked(&store).await?;
        let presence = Presence::default();
        Ok(Self {
            store,
            live: RwLock::new(live),
            change_lock: Mutex::new(()),
            is_unknown: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            signature_due: Notify::new(),
            environment,
            metrics: Metrics::new(presence.clone()),
            presence,
            agent_listener: OnceLock::new(),
            attempts: Attempts::default(),
            accesses: Accesses::default(),
            last_uses: LastUses::default(),
            ended: Ended::default(),
            passwords: Semaphore::new(PASSWORDS),
            password_queue: FairSemaphore::new(PASSWORD_QUEUE),
        })
    }

    /// Whether there is any user.
    pub(crate) async fn has_users(&self) -> bool {
        !self.live.read().await.users.is_empty()
    }

    /// The public key that signs the audit, hexadecimal, as its last checkpoint names it.
    pub(crate) async fn signer(&self) -> Option<String> {
        let live = self.live.read().await;
        live.checkpoint
            .as_ref()
            .map(|last| last.signer().to_owned())
    }

    /// The objects of the state at this time, with the agents of machines.
    pub(crate) fn agents_of<'l>(&'l self, live: &'l Live) -> KnownAgents<'l> {
        KnownAgents {
            live,
            presence: &self.presence,
        }
    }

    /// The state, for reading.
    pub(crate) async fn live(&self) -> Result<RwLockReadGuard<'_, Live>, Problem> {
        if self.is_unknown.load(Ordering::Acquire) {
            let _lock = self.change_lock.lock().await;
            self.reload().await?;
        }
        Ok(self.live.read().await)
    }

    /// Reads the state again after a commit whose result is not known.
    async fn reload(&self) -> Result<(), Problem> {
        if !self.is_unknown.load(Ordering::Acquire) {
            return Ok(());
        }
        let live = Live::load(&self.store).await.map_err(|error| {
            tracing::error!(%error, "cannot read the store");
            Problem::unavailable()
        })?;
        // A commit whose result was not known may have revoked identities.
        for key in self.presence.keys() {
            let identity = live.identities.get(&key).map(|(identity, _)| identity);
            let enrolment = identity.map(|identity| identity.enrolment.as_str());
            self.presence.keep_only(&key, enrolment);
        }
        *self.live.write().await = live;
        self.is_unknown.store(false, Ordering::Release);
        Ok(())
    }

    /// Signs a checkpoint of the audit's last entry, unless it has one. Returns whether it did.
    ///
    /// # Errors
    /// [`Problem`] when the store cannot be used.
    pub async fn checkpoint(&self, key: &Ed25519KeyPair) -> Result<bool, Problem> {
        let _lock = self.change_lock.lock().await;
        self.sign(key).await
    }

    /// Ends changes: later ones, and those that wait for their turn, are refused. Then signs a
    /// checkpoint, so that every entry has one: whether it was made.
    ///
    /// # Errors
    /// [`Problem`] when the store cannot be used.
    pub async fn close(&self, key: &Ed25519KeyPair) -> Result<bool, Problem> {
        let _lock = self.change_lock.lock().await;
        self.is_closed.store(true, Ordering::Release);
        self.reload().await?;
        self.write_accesses(Take::All).await?;
        self.sign(key).await
    }

    /// Adds refusals and reads to the audit a second after they are made, without an end: one
    /// commit in a second at most, however many they are.
    pub async fn keep_accesses(self: Arc<Self>) {
        loop {
            // A window with counts ends without another access, too.
            let _ = tokio::time::timeout(WINDOW, self.accesses.noted()).await;
            tokio::time::sleep(DELAY).await;
            let due = Take::Due(self.environment.now());
            // It runs to its end also if this loop is aborted at a stop: what is committed must not
            // be given back. After an error, which is logged, they are kept for the next time.
            let director = Arc::clone(&self);
            let _ = tokio::spawn(async move { director.flush(due).await }).await;
        }
    }

    /// Adds all refusals and reads to the audit that it does not have yet.
    ///
    /// # Errors
    /// [`Problem`] when the store cannot be used; they are added later then.
    pub async fn flush_accesses(&self) -> Result<(), Problem> {
        self.flush(Take::All).await
    }

    async fn flush(&self, take: Take) -> Result<(), Problem> {
        let _lock = self.change_lock.lock().await;
        self.reload().await?;
        self.write_accesses(take).await
    }

    /// The same. The caller has the turn.
    async fn write_accesses(&self, take: Take) -> Result<(), Problem> {
        let taken = Taken::of(&self.accesses, take);
        if taken.list.is_empty() {
            return Ok(());
        }
        let live = self.live.read().await;
        let mut transaction = Transaction::default();
        taken.append(&mut transaction, &live)?;
        drop(live);
        match self.commit(transaction).await {
            Ok(_) => {
                taken.committed();
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "cannot commit entries of the audit");
                Err(Problem::unavailable())
            }
        }
    }

    /// Waits until there are [`MAX_UNSIGNED_ENTRIES`] entries without a checkpoint.
    pub async fn signature_due(&self) {
        self.signature_due.notified().await;
    }

    /// Signs a checkpoint. The caller has the turn.
    async fn sign(&self, key: &Ed25519KeyPair) -> Result<bool, Problem> {
        self.reload().await?;
        let live = self.live.read().await;
        if live.unsigned() == 0 {
            return Ok(false);
        }
        let now = self.environment.now();
        let transaction = audit::checkpoint(&live.head, live.head_written, now, key)
            .map_err(|error| Problem::internal(&error))?;
        drop(live);
        match self.commit(transaction).await {
            Ok(_) => Ok(true),
            Err(error) => {
                tracing::warn!(%error, "cannot commit a checkpoint of the audit");
                Err(Problem::unavailable())
            }
        }
    }

    /// Commits a transaction and applies it to the state in memory. If the caller goes away in
    /// between, as the handler of a request does whose client closes the connection, the state is
    /// read again before it is used.
    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        let known = Known(&self.is_unknown);
        let transaction = Arc::new(transaction);
        // The commit is sent first; while the thread of the store writes it, the objects are read.
        let reading = async { Live::read(&transaction) };
        let commit = self.store.commit(Arc::clone(&transaction), None);
        let (committed, objects) = tokio::join!(commit, reading);
        if let Err(CommitError::Unavailable(error)) = &committed
            && error.is_full()
        {
            // The self-test finds out when there is room again.
            self.is_full.store(true, Ordering::Relaxed);
        }
        let revision = committed?;
        let applied = match objects {
            Ok(objects) => {
                let mut live = self.live.write().await;
                live.apply(&transaction, objects, revision)
            }
            Err(error) => Err(error),
        };
        self.close_revoked(&transaction).await;
        match applied {
            Ok(()) => std::mem::forget(known),
            Err(error) => tracing::error!(%error, "cannot apply a commit"),
        }
        if transaction.put.len() > MANY_KEYS {
            // Its memory is freed beside the answer.
            drop(tokio::task::spawn_blocking(move || drop(transaction)));
        }
        Ok(revision)
    }

    /// Closes the streams of machines whose identity a transaction has replaced or deleted.
    async fn close_revoked(&self, transaction: &Transaction) {
        let changed = transaction.changes().map(|(key, _)| key);
        let changed: Vec<_> = changed
            .filter_map(|key| key.strip_prefix(IDENTITIES))
            .collect();
        if changed.is_empty() {
            return;
        }
        let live = self.live.read().await;
        for key in changed {
            let identity = live.identities.get(key).map(|(identity, _)| identity);
            let enrolment = identity.map(|identity| identity.enrolment.as_str());
            self.presence.keep_only(key, enrolment);
        }
    }

    /// Makes a change that is none of an object, and has no entry in the audit: computed over the
    /// state as other changes are, and again if another director was faster. `None` changes
    /// nothing.
    pub(crate) async fn record<E>(
        &self,
        plan: impl Fn(&Live, Timestamp) -> Result<Option<Transaction>, E>,
    ) -> Result<(), RecordError<E>> {
        let _lock = self.change_lock.lock().await;
        for _ in 0..ATTEMPTS {
            if self.is_closed.load(Ordering::Acquire) || self.reload().await.is_err() {
                return Err(RecordError::Unavailable);
            }
            let live = self.live.read().await;
            let planned = plan(&live, self.environment.now()).map_err(RecordError::Refused)?;
            drop(live);
            let Some(transaction) = planned else {
                return Ok(());
            };
            match self.commit(transaction).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Stale { .. }) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot commit a record without an audit entry");
                    return Err(RecordError::Unavailable);
                }
            }
        }
        Err(RecordError::Unavailable)
    }

    /// Stores the last use of a token. It is no change of an object, and has no entry in the audit;
    /// if it fails, a later one is stored.
    pub(crate) async fn store_last_use(&self, hash: &str, at: Timestamp) {
        let recorded = self.record(|live, _| {
            self.last_uses.retain(|hash| live.tokens.contains_key(hash));
            let Some((token, revision)) = live.tokens.get(hash) else {
                return Ok(None);
            };
            let used = Token {
                last_used: Some(at),
                ..token.clone()
            };
            let mut transaction = Transaction::default();
            let key = format!("{TOKENS}{hash}");
            let precondition = Precondition::At(*revision);
            transaction.preconditions.insert(key.clone(), precondition);
            transaction.put.insert(key, serde_json::to_string(&used)?);
            Ok::<_, serde_json::Error>(Some(transaction))
        });
        if let Err(error) = recorded.await {
            tracing::warn!(%error, "cannot store the last use of a token");
        }
    }

    /// Computes a change and commits it with its audit entry.
    pub(crate) async fn change(
        &self,
        wanted: Wanted<'_>,
        plan: impl Fn(&Live, Origin) -> Result<Planned, Problem> + Sync,
    ) -> Result<Applied, Problem> {
        self.change_by(wanted, &plan).await
    }

    /// As [`Self::change`], compiled once for all plans.
    async fn change_by(
        &self,
        mut wanted: Wanted<'_>,
        plan: &(dyn Fn(&Live, Origin) -> Result<Planned, Problem> + Sync),
    ) -> Result<Applied, Problem> {
        wanted.subject.outcome = Outcome::done(wanted.status);
        let _lock = self.change_lock.lock().await;
        for _ in 0..ATTEMPTS {
            if self.is_closed.load(Ordering::Acquire) {
                return Err(Problem::stopping());
            }
            self.reload().await?;
            let origin = Origin {
                now: self.environment.now(),
                uid: uid(&*self.environment).map_err(|error| Problem::internal(&error))?,
            };
            let live = self.live.read().await;
            still_holds(&live, wanted.actor, origin.now)?;
            if let Some(applied) = stored_answer(&live, &wanted, origin.now)? {
                return Ok(applied);
            }
            let mut planned = plan(&live, origin)?;
            let people = differences::of_people(&live, &planned.transaction);
            planned.differences.extend(people);
            let mut applied = Applied {
                status: wanted.status,
                body: planned.body,
                warnings: planned.warnings,
                differences: Vec::new(),
                revision: None,
            };
            let is_unchanged = planned.transaction.is_empty();
            if wanted.dry_run || is_unchanged && wanted.idempotency.is_none() {
                applied.differences = planned.differences;
                return Ok(applied);
            }
            let mut transaction = planned.transaction;
            let mut taken = None;
            if !is_unchanged {
                // Earlier ones come first, in the same commit.
                let before = Taken::of(&self.accesses, Take::Due(origin.now));
                let head = before.append(&mut transaction, &live)?;
                taken = Some(before);
                note_creations(&mut transaction, &planned.differences, head.number + 1);
                audit::append(
                    &mut transaction,
                    &head,
                    live.head_written,
                    origin.now,
                    wanted.actor,
                    &wanted.subject,
                    planned.differences,
                )
                .map_err(|error| Problem::internal(&error))?;
            }
            keep_answer(
                &live,
                &wanted,
                &mut transaction,
                &applied,
                is_unchanged,
                origin.now,
            )?;
            drop(live);
            match self.commit(transaction).await {
                // The commit has only the kept answer: the object has the previous revision.
                Ok(_) if is_unchanged => return Ok(applied),
                Ok(revision) => {
                    if let Some(taken) = taken {
                        taken.committed();
                    }
                    applied.revision = Some(revision);
                    set_revision(&mut applied.body, revision);
                    self.metrics.commits.inc();
                    if self.live.read().await.unsigned() >= MAX_UNSIGNED_ENTRIES {
                        self.signature_due.notify_one();
                    }
                    return Ok(applied);
                }
                Err(CommitError::Stale { key }) => {
                    tracing::debug!(key, "objects changed meanwhile; computing the change again");
                }
                Err(error) => {
                    tracing::error!(%error, "cannot commit a change");
                    return Err(Problem::unavailable());
                }
            }
        }
        Err(Problem::unavailable())
    }
}

/// Keeps the number of the audit's entry by which a tenant is made: entries before it are those of
/// an earlier tenant of the same name, whatever the clock says.
fn note_creations(transaction: &mut Transaction, differences: &[Difference], number: u64) {
    let tenants = differences.iter().filter(|of| of.kind == Tenant::KIND);
    for Difference { name, change, .. } in tenants {
        let key = format!("{CREATION_PREFIX}{name}");
        match change {
            ChangeOfObject::Created => drop(transaction.put.insert(key, number.to_string())),
            ChangeOfObject::Removed => drop(transaction.delete.insert(key)),
            ChangeOfObject::Changed => {}
        }
    }
}

/// Refuses the change of an actor whose token has ended while the request waited for its turn.
fn still_holds(live: &Live, actor: &Actor, now: Timestamp) -> Result<(), Problem> {
    // Such changes check what was shown in their plan.
    if actor.token == PASSWORD || actor.token.starts_with(ENROLMENT) {
        return Ok(());
    }
    // A token's id is the beginning of its hash.
    let mut tokens = live.tokens.range(actor.token.clone()..);
    let found = tokens.next().and_then(|(hash, _)| live.actor(hash, now));
    match found.as_ref() == Some(actor) {
        true => Ok(()),
        false => Err(Problem::no_token()),
    }
}

/// Marks the state in memory as unknown unless it is forgotten.
struct Known<'d>(&'d AtomicBool);

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use control::Role;
    use jiff::SignedDuration;
    use store::Options;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::{
        Kernel,
        audit::{Access, Subject},
        init,
    };

    /// The clock of the runtime, which a test moves.
    #[derive(Debug)]
    struct Clock(Instant);

    impl Environment for Clock {
        fn now(&self) -> Timestamp {
            let elapsed = SignedDuration::try_from(self.0.elapsed()).expect("short");
            Timestamp::UNIX_EPOCH + elapsed
        }

        fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
            Kernel.fill(bytes)
        }
    }

    async fn director(path: &std::path::Path) -> Arc<Director> {
        let clock = Clock(Instant::now());
        init(path, "admin", None, &clock).await.expect("a store");
        let mut opened = Sqlite::open(path, Options::default());
        // The thread of `init` closes the store when it ends.
        for _ in 0..500 {
            if opened.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            opened = Sqlite::open(path, Options::default());
        }
        let director = Director::new(opened.expect("a store"), Arc::new(clock)).await;
        Arc::new(director.expect("a director"))
    }

    fn refuse(director: &Director, user: &str, name: &str) {
        director.accesses.refused(Access {
            at: director.environment.now(),
            actor: Actor {
                user: user.to_owned(),
                role: Role::TenantOperator,
                tenant: Some("acme".to_owned()),
                object: None,
                token: "t".to_owned(),
            },
            subject: Subject {
                operation: "policy.remove".to_owned(),
                kind: "policy".to_owned(),
                tenant: Some("acme".to_owned()),
                name: name.to_owned(),
                reason: None,
                address: None,
                outcome: Outcome::refused(403, "forbidden"),
            },
        });
    }

    async fn audit(director: &Director) -> u64 {
        director.live().await.expect("the state").head.number
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_in_the_audit_after_a_second() {
        let folder = tempfile::tempdir().expect("a folder");
        let director = director(&folder.path().join("store")).await;
        let before = audit(&director).await;
        let keeper = tokio::spawn(Arc::clone(&director).keep_accesses());
        let mut revisions = director.store.revisions();
        revisions.mark_unchanged();
        sleep(Duration::from_secs(100)).await;
        assert!(
            !revisions.has_changed().expect("a store"),
            "there is nothing"
        );
        let begun = Instant::now();
        for name in ["a", "b", "b"] {
            refuse(&director, "alice", name);
        }
        sleep(DELAY - Duration::from_millis(1)).await;
        assert!(
            !revisions.has_changed().expect("a store"),
            "they are collected"
        );
        revisions.changed().await.expect("a commit");
        assert!(begun.elapsed() <= DELAY + Duration::from_millis(10));
        // A director that is killed here has them.
        let snapshot = director.store.snapshot(audit::PREFIX).await.expect("it");
        assert_eq!(snapshot.entries.len() as u64, before + 2);
        keeper.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_cause_one_commit_in_a_second_at_most() {
        let folder = tempfile::tempdir().expect("a folder");
        let director = director(&folder.path().join("store")).await;
        let before = audit(&director).await;
        let keeper = tokio::spawn(Arc::clone(&director).keep_accesses());
        let revisions = director.store.revisions();
        let (first, begun) = (*revisions.borrow(), Instant::now());
        for number in 0..2000_u32 {
            refuse(&director, "alice", &number.to_string());
            refuse(&director, &format!("user-{}", number % 10), "p");
            sleep(Duration::from_millis(10)).await;
            if number % 100 == 99 {
                // The store's thread does not wait for the paused clock: the clock waits for it.
                director.store.snapshot(audit::PREFIX).await.expect("it");
            }
        }
        let (commits, time) = (*revisions.borrow() - first, begun.elapsed());
        assert!(time < WINDOW, "{time:?}");
        assert!(
            (1..=time.as_secs()).contains(&commits),
            "{commits} in {time:?}"
        );
        keeper.abort();
        // At a stop all are written, and what exceeds the limits is counted.
        let key = Ed25519KeyPair::generate().expect("a key");
        assert!(director.close(&key).await.expect("a checkpoint"));
        let entries = director.store.snapshot(audit::PREFIX).await.expect("it");
        let entries = entries.entries[before as usize..].iter();
        let entries: Vec<audit::Entry> = entries
            .map(|entry| serde_json::from_str(&entry.value).expect("an entry"))
            .collect();
        let counts = entries.iter().map(|entry| {
            let result = entry.result.as_ref().expect("a result");
            result.count
        });
        assert_eq!(counts.sum::<u64>(), 4000);
        let of_alice = entries.iter().filter(|entry| entry.user == "alice");
        assert_eq!(of_alice.count(), 21);
        assert!(entries.len() <= 11 * 21, "{}", entries.len());
    }
}
