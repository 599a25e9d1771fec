//! Errors of the harness.

use std::{fmt::Write as _, io, path::PathBuf};

use aya::programs::ProgramError;

/// A failure to load the programs, to reach a map or to run a packet.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    #[error("cannot make a network namespace: {0}; run the tests as root")]
    Namespace(#[source] nix::Error),
    #[error("cannot make the interfaces: {0}; install iproute2")]
    Interfaces(String),
    #[error("loading {path}: {source}")]
    Load {
        path: PathBuf,
        #[source]
        source: Box<aya::EbpfError>,
    },
    #[error("the object has no map {0}, or it is of another type")]
    Map(&'static str),
    #[error("the object has no XDP program {0}")]
    Program(&'static str),
    #[error("loading program {name}: {source}")]
    ProgramLoad {
        name: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("BPF_PROG_TEST_RUN of {name} with {len} bytes: {source}")]
    Run {
        name: &'static str,
        len: usize,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("cannot bind an AF_XDP socket to interface {ifindex}: {source}")]
    Socket {
        ifindex: u32,
        #[source]
        source: Box<xsk::Error>,
    },
    #[error("map {name}: {source}")]
    MapAccess {
        name: &'static str,
        #[source]
        source: Box<aya::maps::MapError>,
    },
    #[error("map {name}: cannot {operation}: {source}")]
    Raw {
        name: String,
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

impl HarnessError {
    /// A failed operation on a map through aya.
    pub(super) fn map(name: &'static str, source: aya::maps::MapError) -> Self {
        Self::MapAccess {
            name,
            source: Box::new(source),
        }
    }
}

/// An error and its causes, one a line.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let _ = write!(out, "\n  because: {e}");
        source = e.source();
    }
    out
}
