//! Locks that lab tests take, across all processes on the machine.
//!
//! ```text
//!   a test in a module `timed`    causeway-tests.lock, exclusive: it runs alone
//!   any other                     causeway-tests.lock, shared, and one of four slots
//! ```

use std::{fs::File, thread, time::Duration};

use nix::fcntl::{Flock, FlockArg};

/// Held exclusively by a test that asserts times or rates, shared by the others.
const LOCK: &str = "/run/causeway-tests.lock";
/// Each held by one test that shares the machine.
const SLOTS: [&str; 4] = [
    "/run/causeway-tests.slot1",
    "/run/causeway-tests.slot2",
    "/run/causeway-tests.slot3",
    "/run/causeway-tests.slot4",
];

/// The lock of the running test, released on drop.
#[derive(Debug)]
pub struct LabLock {
    _slot: Option<Flock<File>>,
    _lock: Flock<File>,
}

impl LabLock {
    /// Waits for the lock: exclusive if the running test is in a module `timed`.
    #[must_use]
    pub fn acquire() -> Self {
        if crate::test_name().split("::").any(|part| part == "timed") {
            return Self {
                _slot: None,
                _lock: lock(LOCK, FlockArg::LockExclusive).expect("a blocking lock"),
            };
        }
        let slot = loop {
            match SLOTS
                .into_iter()
                .find_map(|slot| lock(slot, FlockArg::LockExclusiveNonblock))
            {
                Some(slot) => break slot,
                None => thread::sleep(Duration::from_millis(20)),
            }
        };
        Self {
            _slot: Some(slot),
            _lock: lock(LOCK, FlockArg::LockShared).expect("a blocking lock"),
        }
    }
}

/// The lock, or `None` if `how` does not block and another process holds it.
fn lock(path: &str, how: FlockArg) -> Option<Flock<File>> {
    let file = File::create(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    match Flock::lock(file, how) {
        Ok(lock) => Some(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => None,
        Err((_, e)) => panic!("locking {path}: {e}"),
    }
}
