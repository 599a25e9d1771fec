//! Log lines of the programs, by aya-log.

use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

use super::{Harness, HarnessError};

/// A line that a program logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Its severity.
    pub level: Level,
    pub text: String,
}

/// Collects the records of one loaded object.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<LogLine>>>);

impl Log for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = LogLine {
            level: record.level(),
            text: record.args().to_string(),
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }

    fn flush(&self) {}
}

/// Reader of the log ring.
pub(super) struct ProgramLog {
    reader: EbpfLogger<Collector>,
    collector: Collector,
}

impl ProgramLog {
    /// Takes the log ring out of the object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, HarnessError> {
        let collector = Collector::default();
        let reader = EbpfLogger::init_with_logger(ebpf, collector.clone())
            .map_err(|_| HarnessError::Map("AYA_LOGS"))?;
        Ok(Self { reader, collector })
    }

    /// The lines since the last call.
    pub(super) fn lines(&mut self) -> Vec<LogLine> {
        self.reader.flush();
        std::mem::take(
            &mut *self
                .collector
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Harness {
    /// The lines that the programs logged since the last call or reset.
    pub fn log_lines(&mut self) -> Vec<LogLine> {
        self.log.lines()
    }
}
