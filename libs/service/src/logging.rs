//! Log output of a daemon: to standard error, which systemd gives to the journal.

use tracing_subscriber::{EnvFilter, fmt};

/// How log events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text an event.
    #[default]
    Text,
    /// One JSON object an event, for log collectors.
    Json,
}

/// Installs the log output of the process. `CAUSEWAY_LOG` is the filter, `info` without it.
///
/// A second call has no effect.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("CAUSEWAY_LOG").unwrap_or_else(|_| "info".into());
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    // It fails only where log output is installed already.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
