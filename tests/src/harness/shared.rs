//! One loaded set of programs for all tests of a process.
//!
//! The kernel takes about a second to verify the six programs. Tests take turns with one set, by a
//! lock. Each test gets it as a fresh load would be, in a new network namespace. A failed test does
//! not harm the next: its lock is taken over, and the reset clears its entries.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

use appliance_common::events::TraceFilter;

use super::{CONNECTIONS, Harness, HarnessError, describe, missing, namespace};
use crate::{skip, world::World};

/// The programs as they run in service.
static PLAIN: Mutex<Option<Harness>> = Mutex::new(None);
/// The programs that can trace packets.
static TRACING: Mutex<Option<Harness>> = Mutex::new(None);

/// The shared programs, while one test uses them.
#[derive(Debug)]
pub struct SharedHarness(MutexGuard<'static, Option<Harness>>);

impl Deref for SharedHarness {
    type Target = Harness;

    fn deref(&self) -> &Harness {
        self.0.as_ref().expect("loaded by `borrow`")
    }
}

impl DerefMut for SharedHarness {
    fn deref_mut(&mut self) -> &mut Harness {
        self.0.as_mut().expect("loaded by `borrow`")
    }
}

impl Drop for SharedHarness {
    fn drop(&mut self) {
        // An open socket would keep the test's network namespace.
        self.close_sockets();
    }
}

impl Harness {
    /// Takes the shared programs with maps filled with `world`, and waits for the test that has
    /// them. Prints `SKIPPED` and returns `None` where programs cannot be loaded.
    ///
    /// The calling thread moves to a new network namespace with the interfaces of [`crate::world`].
    /// A thread that has the shared programs must drop them before it takes them again.
    ///
    /// # Panics
    ///
    /// When loading fails although root, BPF and the object are there: that is a failure of the
    /// test.
    #[must_use]
    #[expect(
        clippy::new_ret_no_self,
        reason = "a lock on the one harness of the process"
    )]
    pub fn new(world: World) -> Option<SharedHarness> {
        take_or_skip(&PLAIN, world, false)
    }

    /// As [`Harness::new`], with programs that trace the packets that match `filter`.
    ///
    /// # Panics
    ///
    /// As [`Harness::new`].
    #[must_use]
    pub fn tracing(world: World, filter: TraceFilter) -> Option<SharedHarness> {
        let mut shared = take_or_skip(&TRACING, world, true)?;
        match shared.set_trace_filter(filter) {
            Ok(()) => Some(shared),
            Err(e) => panic!("{}", describe(&e)),
        }
    }
}

fn take_or_skip(
    set: &'static Mutex<Option<Harness>>,
    world: World,
    trace: bool,
) -> Option<SharedHarness> {
    if let Some(why) = missing() {
        skip(&why);
        return None;
    }
    match borrow(set, world, trace) {
        Ok(shared) => Some(shared),
        Err(e) => panic!("{}", describe(&e)),
    }
}

fn borrow(
    set: &'static Mutex<Option<Harness>>,
    world: World,
    trace: bool,
) -> Result<SharedHarness, HarnessError> {
    let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
    // Programs whose reset fails are dropped; the next test loads new ones.
    let harness = match set.take() {
        Some(mut used) => {
            used.reset()?;
            namespace::enter_new()?;
            used.fill(world)?;
            used
        }
        None => Harness::load_with(world, CONNECTIONS, trace)?,
    };
    *set = Some(harness);
    Ok(SharedHarness(set))
}
