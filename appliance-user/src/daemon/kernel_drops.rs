//! Frames that the kernel drops after XDP programs: opens their counters, and opens them again
//! while that fails, such as before tracefs is mounted.

use std::time::{Duration, Instant};

use crate::{
    datapath::Datapath,
    kernel::xdp_errors::{Dropped, Error, XdpErrors},
};

/// Counter of redirects that the kernel refused.
pub(super) const REDIRECT_FAILED: &str = "xdp_redirect_failed";
/// Time between attempts to open the counters.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// The counters, or why there are none.
#[derive(Debug)]
pub(super) struct KernelDrops {
    counters: Result<XdpErrors, String>,
    retry_at: Instant,
}

impl KernelDrops {
    pub fn open(now: Instant) -> Self {
        let mut drops = Self {
            counters: Err(String::new()),
            retry_at: now,
        };
        drops.retry(now);
        drops
    }

    /// Opens the counters if that is due. A new reason why it fails is logged.
    fn retry(&mut self, now: Instant) {
        let Err(before) = &self.counters else { return };
        if now < self.retry_at {
            return;
        }
        self.retry_at = now + RETRY_INTERVAL;
        match XdpErrors::open() {
            Ok(counters) => {
                if !before.is_empty() {
                    tracing::info!("frames that the kernel drops after XDP programs are counted");
                }
                self.counters = Ok(counters);
            }
            Err(error) => self.lose(&error),
        }
    }

    fn lose(&mut self, error: &Error) {
        let reason = error.to_string();
        if self.counters.as_ref().err() != Some(&reason) {
            tracing::warn!(
                %error,
                "frames that the kernel drops after XDP programs are not counted"
            );
        }
        self.counters = Err(reason);
    }

    /// Has the drops of the programs counted that are attached now. Returns the counts.
    pub fn sample(&mut self, now: Instant, datapath: &Datapath) -> Option<Dropped> {
        self.retry(now);
        let counters = self.counters.as_mut().ok()?;
        let interfaces: Vec<u32> = datapath.attached().values().map(|a| a.ifindex).collect();
        let programs = match datapath.program_ids() {
            Ok(programs) => programs,
            Err(error) => {
                tracing::debug!(%error, "cannot read the ids of the programs");
                return self.read();
            }
        };
        if let Err(error) = counters.watch(&programs, &interfaces) {
            self.lose(&error);
        }
        self.read()
    }

    /// The counts; `None` while there are no counters.
    pub fn read(&self) -> Option<Dropped> {
        self.counters.as_ref().ok().map(XdpErrors::read)
    }

    /// Why the frames are not counted, and what to do, for status.
    pub fn warning(&self) -> Option<String> {
        let reason = self.counters.as_ref().err()?;
        Some(format!(
            "frames that the kernel drops after XDP programs are not counted \
             (xdp_redirect_failed): {reason}; the appliance counts them within 10 seconds of that"
        ))
    }
}
