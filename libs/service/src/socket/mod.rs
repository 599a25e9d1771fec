//! The control socket: one JSON request a line, one JSON reply a line, for root and whom else the daemon lets ask.

mod client;
mod server;

pub use client::{Error as AskError, ask};
pub use server::{Call, Error as BindError, bind, serve};

use serde::{Deserialize, Serialize};

/// Longest reply, bytes.
pub const MAX_LINE: u64 = 16 << 20;

/// Whose socket it is: what the messages say, and what differs.
#[derive(Debug)]
pub struct Socket {
    /// The daemon, as in "the gateway".
    pub name: &'static str,
    /// One of them, as in "a gateway".
    pub one: &'static str,
    /// The setting that names the socket.
    pub setting: &'static str,
    /// Longest request, bytes.
    pub max_request: u64,
    /// Who may ask.
    pub who: Who,
}

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Only root.
    Root,
    /// Root, and the user that the daemon runs as.
    RootAndOwner,
}

impl Who {
    fn includes(self, uid: u32) -> bool {
        uid == 0 || (self == Self::RootAndOwner && uid == nix::unistd::geteuid().as_raw())
    }

    const fn others(self) -> &'static str {
        match self {
            Self::Root => "not root",
            Self::RootAndOwner => "another user",
        }
    }

    const fn rule(self) -> &'static str {
        match self {
            Self::Root => "only root may ask it",
            Self::RootAndOwner => "only root and whoever runs it may ask",
        }
    }
}

/// Why a request was refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable, for programs: `bad-request`, `not-found`, `conflict`, `invalid`, `unsupported`, `internal`.
    pub code: String,
    /// For people: what is wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
        }
    }
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply<T> {
    /// It was done; what it says depends on the request.
    Ok(T),
    /// It was refused.
    Error(Refusal),
}

#[cfg(test)]
mod tests;
