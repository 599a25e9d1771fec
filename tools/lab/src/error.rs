//! The one error type of this library.

use std::{io, path::PathBuf, time::Duration};

/// An error of the lab, with the failed operation and, where known, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A declared topology that cannot be raised.
    #[error("topology {topology}: {reason}")]
    Topology {
        /// Its name.
        topology: String,
        /// The defect, in the topology's names.
        reason: String,
    },
    /// A value that cannot be read.
    #[error("{what} {value:?}: {reason}")]
    Parse {
        /// The kind of value that was expected.
        what: &'static str,
        /// The text.
        value: String,
        reason: &'static str,
    },
    /// A system call or file operation.
    #[error("{operation}: {source}")]
    Io {
        /// The operation that failed.
        operation: String,
        /// The system's error.
        source: io::Error,
    },
    /// A command that ended with another status than 0.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        status: String,
        /// Its standard error.
        stderr: String,
    },
    /// Something that did not happen in its time.
    #[error("{what} did not happen within {} ms{}", .within.as_millis(), hint(.detail))]
    Timeout {
        /// The event.
        what: String,
        /// How long.
        within: Duration,
        /// The last thing seen, and where to look; may be empty.
        detail: String,
    },
    /// Output of a program that does not read as it should.
    #[error("{what} cannot be read: {reason}")]
    Output {
        /// Whose output.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A name that the lab does not have.
    #[error("there is no {kind} {name:?} in lab {lab}; there are: {known}")]
    Unknown {
        /// `host`, `link`, `appliance`, `machine`, …
        kind: &'static str,
        /// The requested name.
        name: String,
        lab: String,
        /// The names it has.
        known: String,
    },
    /// No lab of that name is up.
    #[error(
        "lab {name:?} is not up; list labs with `causeway-lab list`, raise one with `causeway-lab \
         up`"
    )]
    NotUp {
        /// The requested name.
        name: String,
    },
    /// The lab of that name belongs to a process that still uses it.
    #[error(
        "lab {name:?} is in use by another process; wait until that process ends, or use another \
         name"
    )]
    InUse {
        /// The requested name.
        name: String,
    },
    /// The virtual switch's programs.
    #[error("{operation}: {reason}")]
    Bpf {
        /// The operation that failed.
        operation: String,
        /// The whole chain of causes.
        reason: String,
    },
    /// A file that must be built first.
    #[error("{} is missing: {hint}", .path.display())]
    Missing {
        /// The expected path.
        path: PathBuf,
        /// How to get it.
        hint: &'static str,
    },
    /// SIGINT or SIGTERM was received.
    #[error("interrupted")]
    Interrupted,
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn hint(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(" ({detail})")
    }
}

/// Names the operation in front of an I/O error.
pub(crate) trait During<T> {
    /// `operation` is only built when there is an error.
    fn during(self, operation: impl FnOnce() -> String) -> Result<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            operation: operation(),
            source,
        })
    }
}

impl<T> During<T> for nix::Result<T> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Io {
            operation: operation(),
            source: errno.into(),
        })
    }
}
