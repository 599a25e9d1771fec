//! Log lines of the programs, by aya-log, forwarded to `tracing`.
//!
//! For: the ring `AYA_LOGS` of one loaded object. Never: packet traces, which have a ring of their
//! own.

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

use super::error::Error;

/// Reader of an object's log ring.
pub(super) struct ProgramLog(EbpfLogger<Tracing>);

impl ProgramLog {
    /// Takes the log ring out of a loaded object.
    ///
    /// # Errors
    /// When the object has none.
    pub(super) fn open(object: &mut Ebpf) -> Result<Self, Error> {
        EbpfLogger::init_with_logger(object, Tracing)
            .map(Self)
            .map_err(|_| Error::Missing { what: "AYA_LOGS" })
    }

    /// Forwards all lines in the ring.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

/// Writes records of aya-log, which uses the crate `log`, to `tracing`.
struct Tracing;

impl Log for Tracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let module = record.target();
        let message = record.args();
        match record.level() {
            Level::Error => tracing::error!(module, "XDP program: {message}"),
            Level::Warn => tracing::warn!(module, "XDP program: {message}"),
            Level::Info => tracing::info!(module, "XDP program: {message}"),
            Level::Debug | Level::Trace => tracing::debug!(module, "XDP program: {message}"),
        }
    }

    fn flush(&self) {}
}
