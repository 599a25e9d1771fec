//! The limit of open files, and the numbers of connections and pipes that follow from it.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{config::Local, relay::Relay};

/// Open files other than those of connections and the relay's threads: control, circuits, the
/// runtime.
const OTHER_FILES: usize = 128;
/// Pipes that are always possible, two open files each.
const MIN_PIPES: usize = 64;
/// Pipes at most: bytes in more pipes are never under way at once.
const MAX_PIPES: usize = 1 << 14;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for more connections than files can be open.
    #[error(
        "limits.connections: {wanted} need {} open files, and {files} are allowed: write {} at \
         most, or raise the limit (systemd: LimitNOFILE=)",
        files_of(*wanted, *others), connections_of(*files, *others)
    )]
    TooFew {
        wanted: usize,
        files: usize,
        /// Of the files, those that no connection can have.
        others: usize,
    },
    #[error("{operation}: {source}")]
    System {
        operation: &'static str,
        source: io::Error,
    },
}

/// Connections and pipes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    pub connections: usize,
    pub pipes: usize,
}

/// Open files that the process may have.
#[derive(Clone, Copy, Debug)]
pub struct Limits(usize);

impl Limits {
    /// Raises the soft limit to the hard limit.
    pub fn of_process() -> Result<Self, Error> {
        let system = |operation| {
            move |errno: nix::Error| Error::System {
                operation,
                source: errno.into(),
            }
        };
        let (soft, hard) =
            getrlimit(Resource::RLIMIT_NOFILE).map_err(system("get the limit of open files"))?;
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
                .map_err(system("raise the limit of open files"))?;
        }
        Ok(Self(usize::try_from(hard).unwrap_or(usize::MAX)))
    }

    /// Divides the open files between connections and pipes.
    pub fn shares(self, config: &Local) -> Result<Shares, Error> {
        let Self(files) = self;
        let others = OTHER_FILES + Relay::files(config.listen.len());
        let most = connections_of(files, others);
        let connections = match config.connections {
            // A quarter of the rest for pipes: a busy connection has one for each direction.
            None => (most - most / 4).max(1),
            Some(wanted) if wanted <= most => wanted,
            Some(wanted) => {
                return Err(Error::TooFew {
                    wanted,
                    files,
                    others,
                });
            }
        };
        let left = files.saturating_sub(others + connections * 2) / 2;
        let pipes = if config.spliced {
            left.min(MAX_PIPES)
        } else {
            0
        };
        Ok(Shares { connections, pipes })
    }
}

/// Open files that this many connections need at least.
const fn files_of(connections: usize, others: usize) -> usize {
    (connections + MIN_PIPES) * 2 + others
}

/// Connections at most with this many open files.
const fn connections_of(files: usize, others: usize) -> usize {
    files.saturating_sub(MIN_PIPES * 2 + others) / 2
}
