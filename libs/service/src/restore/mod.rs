//! Detects that the machine was restored from a snapshot of its memory.
//!
//! After a restore every counter in memory is an old one, and a session would use nonces a second
//! time. So every holder of keys compares [`Restores::count`] with the number that it last saw, and
//! wipes its keys when the number differs: workers before each batch of frames, TLS connections of
//! tunnels before each record, the manager before all other work. Connections of tokio have their
//! TLS around an [`UntilRestore`], which ends at once.
//!
//! ```text
//!   kernel: NEW_VMGENID=1 (uevent) ─┐
//!                                   ├─▶ RestoreDetector ─▶ Restores ─▶ workers, TLS, manager
//!   clocks, every 250 ms ───────────┘   thread of `watch`
//! ```
//!
//! The uevent is sent when the hypervisor changes the VM generation ID (drivers/virt/vmgenid.c,
//! Linux 6.12). Without such a device, a correction of the wall clock reveals the missing time.

mod detector;
mod stream;
mod watch;

use std::sync::{
    Arc, OnceLock,
    atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire},
    },
};

use tokio::sync::{Notify, futures::OwnedNotified};

pub use detector::{ClockSample, RestoreDetector, RestoreSign};
pub use stream::UntilRestore;

/// How often the machine was restored while the process ran.
#[derive(Clone, Debug, Default)]
pub struct Restores {
    count: Arc<AtomicU64>,
    noted: Arc<Notify>,
}

impl Restores {
    /// The number of restores: one atomic load.
    #[inline]
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Acquire)
    }

    /// Notes a restore. Everything that holds keys wipes them.
    pub fn note(&self) {
        self.count.fetch_add(1, AcqRel);
        self.noted.notify_waiters();
    }

    /// Is ready after the next [`Self::note`], also one before the first poll.
    fn next(&self) -> OwnedNotified {
        Arc::clone(&self.noted).notified_owned()
    }

    /// The restores of this process. The first call starts a thread that watches for them.
    #[must_use]
    pub fn watched() -> Self {
        static RESTORES: OnceLock<Restores> = OnceLock::new();
        RESTORES
            .get_or_init(|| {
                let restores = Self::default();
                watch::start(&restores);
                restores
            })
            .clone()
    }
}
