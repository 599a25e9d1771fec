//! The control socket: one JSON request a line, one JSON reply a line, for root, and for users that
//! the daemon allows.

mod client;
mod page;
mod server;

pub use client::{Client, Error as AskError, ask};
pub use page::Page;
pub use server::{Call, Control, Error as BindError, Responder, bind};

use serde::{Deserialize, Serialize};

use crate::{config, render::cut};

/// Longest reply, bytes.
pub const MAX_LINE: u64 = 16 << 20;
/// Longest message of a refusal, bytes: a request that it quotes may be long.
const MAX_MESSAGE: usize = 64 << 10;

/// The control socket of one kind of daemon: names for its messages, and its settings.
#[derive(Debug)]
pub struct Socket {
    /// The daemon, as in "the gateway".
    pub name: &'static str,
    /// With its article, as in "a gateway".
    pub one: &'static str,
    /// The configuration key of the socket's path.
    pub setting: &'static str,
    /// Longest request, bytes.
    pub max_request: u64,
    /// Users that may send requests.
    pub access: Access,
}

/// Users that may send requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Root only.
    Root,
    /// Root and the user of the daemon.
    RootAndOwner,
}

impl Access {
    fn includes(self, uid: u32) -> bool {
        uid == 0 || (self == Self::RootAndOwner && uid == nix::unistd::geteuid().as_raw())
    }

    const fn rule(self) -> &'static str {
        match self {
            Self::Root => "it accepts requests of root only",
            Self::RootAndOwner => "it accepts requests of root and of its own user only",
        }
    }
}

/// Why a request was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RequestRefusal {
    /// Stable, for programs: `bad-request`, `not-found`, `conflict`, `invalid`, `unsupported` or
    /// `internal`.
    pub code: String,
    /// For people: the problem and the remedy.
    pub message: String,
}

impl RequestRefusal {
    /// With a stable `code` for programs and a `message` for people, which is cut off after 64 KiB.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: cut(message.into(), MAX_MESSAGE),
        }
    }

    /// The message as a line of the log ([`config::line`]). The client has all of it.
    #[must_use]
    pub fn line(&self) -> String {
        config::line(&self.message)
    }
}

/// A reply. On the wire `{"ok": …}` or `{"error": {"code": …, "message": …}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply<T> {
    /// The request was carried out; the content depends on it.
    Ok(T),
    /// The request was refused.
    Error(RequestRefusal),
}

impl<T> From<Result<T, RequestRefusal>> for Reply<T> {
    fn from(result: Result<T, RequestRefusal>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(refusal) => Self::Error(refusal),
        }
    }
}

#[cfg(test)]
mod tests;
