//! SIGINT and SIGTERM as an error that unwinds to where the lab is taken down.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::error::{During as _, Error, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP make every wait of this library end with
/// [`Error::Interrupted`], except those of a tear-down. For programs, not for tests.
///
/// # Errors
/// If the handlers cannot be set.
pub fn install() -> Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(note),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.during(|| format!("handling {signal}"))?;
    }
    Ok(())
}

/// # Errors
/// [`Error::Interrupted`] after a signal.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}

/// Clears pending signals, so that a tear-down completes. Returns whether there was one.
pub fn clear() -> bool {
    INTERRUPTED.swap(false, Ordering::Relaxed)
}
