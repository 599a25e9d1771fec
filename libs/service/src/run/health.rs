//! The state of the loop, as other tasks see it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::Notifier;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    Ready,
    Draining,
    /// A part of the daemon does not do its work.
    Faulty(&'static str),
    Stopping,
}

/// Shows that the loop of a daemon works while a request waits, for the disk say: the runtime,
/// which waits for the request, cannot.
#[derive(Clone, Debug)]
pub struct Pulse {
    pub(super) notifier: Arc<Notifier>,
    pub(super) health: Health,
}

impl Pulse {
    /// To be called from a step of the loop, about each second while a request waits.
    pub fn beat(&self) {
        if self.notifier.watchdog_timeout().is_some() {
            self.notifier.keep_alive();
        }
        self.health.touch();
    }
}

/// Whether the daemon takes work, and when its loop last ran.
#[derive(Clone, Debug)]
pub struct Health {
    /// The loop that ran longest ago that still counts as alive.
    timeout: Duration,
    last: Arc<Mutex<(State, Instant)>>,
}

impl Health {
    pub(super) fn new(heartbeat: Duration) -> Self {
        Self {
            timeout: heartbeat * 3,
            last: Arc::new(Mutex::new((State::Starting, Instant::now()))),
        }
    }

    pub(super) fn set(&self, state: State) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (state, Instant::now());
    }

    /// The loop runs, in the state that it had.
    fn touch(&self) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).1 = Instant::now();
    }

    /// The state in a word, or the fault.
    ///
    /// # Errors
    /// The daemon takes no new work: it starts, drains, stops or hangs, or a part of it has failed.
    pub fn check(&self) -> Result<&'static str, &'static str> {
        let (state, at) = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match state {
            _ if at.elapsed() > self.timeout => Err("hanging"),
            State::Starting => Err("starting"),
            State::Ready => Ok("ready"),
            State::Draining => Err("draining"),
            State::Faulty(fault) => Err(fault),
            State::Stopping => Err("stopping"),
        }
    }
}
