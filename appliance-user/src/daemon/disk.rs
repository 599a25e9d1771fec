//! Work that waits for the disk, beside the loop: packets of the slow path, handshakes and probes
//! of gateways have deadlines of a few milliseconds, and a disk may take seconds.
//!
//! ```text
//!   request ─▶ job ─▶ thread: write, fsync ─▶ its outcome ─▶ the request goes on
//!                └─▶ meanwhile: steps of the loop
//! ```
//!
//! One request at a time has a job. Nothing changes the configuration or state in force meanwhile,
//! but links and routes may change.

use std::{ops::ControlFlow, pin::pin};

use anyhow::Context as _;
use service::run::Pulse;

use super::Daemon;

/// Shows that the loop works while a request waits for the disk.
pub(super) struct DiskWait {
    pulse: Pulse,
    /// Whether a request waits.
    waits: bool,
}

impl DiskWait {
    pub const fn new(pulse: Pulse) -> Self {
        Self {
            pulse,
            waits: false,
        }
    }

    /// Serves the watchdog, if a request waits: the runtime does not meanwhile.
    pub fn beat(&self) {
        if self.waits {
            self.pulse.beat();
        }
    }
}

impl Daemon {
    /// Runs a job that may wait for the disk on a thread of its own; the loop goes on meanwhile.
    ///
    /// # Errors
    /// When there is no thread left.
    pub(super) async fn on_disk<T: Send + 'static>(
        &mut self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let job = tokio::task::spawn_blocking(job);
        self.disk_wait.waits = true;
        let done = meanwhile(job, async || {
            match <Self as service::Daemon>::step(self).await {
                Ok(flow) => flow,
                // The next step of the runtime meets the error, too, and ends the daemon by it.
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "event loop failed; the daemon will stop"
                    );
                    ControlFlow::Break(())
                }
            }
        });
        let done = done.await;
        self.disk_wait.waits = false;
        done.context("wait for a thread")
    }
}

/// Waits for a job, and works meanwhile, until `work` breaks. `work` must be cancel-safe.
async fn meanwhile<T>(
    job: impl Future<Output = T>,
    mut work: impl AsyncFnMut() -> ControlFlow<()>,
) -> T {
    let mut job = pin!(job);
    loop {
        tokio::select! {
            biased;
            done = &mut job => return done,
            flow = work() => if flow.is_break() {
                return job.await;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::mpsc::{RecvTimeoutError, channel},
        time::Duration,
    };

    use super::*;

    /// No wait of a test is longer.
    const TIMEOUT: Duration = Duration::from_secs(20);

    /// The disk hangs until the loop has worked ten times: with a loop that waits for it, for ever.
    #[tokio::test]
    async fn a_loop_works_while_the_disk_hangs() {
        let (works, disk) = channel();
        let job = tokio::task::spawn_blocking(move || {
            for _ in 0..10 {
                disk.recv_timeout(TIMEOUT)?;
            }
            Ok::<_, RecvTimeoutError>("written")
        });
        let worked = Cell::new(0);
        let done = meanwhile(job, async || {
            tokio::task::yield_now().await;
            worked.set(worked.get() + 1);
            // The job has ended once it has ten.
            let _ = works.send(());
            ControlFlow::Continue(())
        });
        assert_eq!(done.await.expect("no panic"), Ok("written"));
        assert!(worked.get() >= 10);
    }

    #[tokio::test]
    async fn a_loop_that_ends_does_not_end_the_job() {
        let (ended, waits) = channel();
        let job = tokio::task::spawn_blocking(move || waits.recv_timeout(TIMEOUT));
        let worked = Cell::new(0);
        let done = meanwhile(job, async || {
            worked.set(worked.get() + 1);
            let _ = ended.send(());
            ControlFlow::Break(())
        });
        assert_eq!(done.await.expect("no panic"), Ok(()));
        assert_eq!(worked.get(), 1);
    }
}
