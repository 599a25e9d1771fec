//! The client's side of the control socket.

use std::{
    io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{MAX_LINE, Reply, RequestRefusal, Socket};

/// Why a request has no reply.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process listens.
    #[error(
        "cannot connect to the {name} at {path}: {source}; check that it is running (`systemctl \
         status causeway-{name}`) and that --socket is correct",
        name = of.name,
        path = path.display()
    )]
    Connect {
        /// The kind of daemon.
        of: &'static Socket,
        /// The socket.
        path: PathBuf,
        source: io::Error,
    },
    /// The request was not sent whole.
    #[error("cannot send the request to the {}: {source}; retry", of.name)]
    Unsent {
        /// The kind of daemon.
        of: &'static Socket,
        source: io::Error,
    },
    /// The daemon has the request and did not reply in time. It may still carry the request out.
    #[error(
        "the {name} did not reply within {} s. The request may still be executed; check \
         `causeway-{name} status` before retrying",
        timeout.as_secs_f64(),
        name = of.name
    )]
    Silent {
        /// The kind of daemon.
        of: &'static Socket,
        /// The time that was waited.
        timeout: Duration,
    },
    /// The connection broke before the reply.
    #[error(
        "connection lost while waiting for the {name}'s reply: {source}; the request may have been \
         executed; check `causeway-{name} status` before retrying",
        name = of.name
    )]
    Unanswered {
        /// The kind of daemon.
        of: &'static Socket,
        source: io::Error,
    },
    /// The daemon closed the connection without a reply.
    #[error(
        "the {name} closed the connection without a reply: {}; if it was stopping, the request may \
         have been executed; check `causeway-{name} status` before retrying",
        of.access.rule(),
        name = of.name
    )]
    Closed {
        /// The kind of daemon.
        of: &'static Socket,
    },
    /// The reply cannot be read.
    #[error(
        "cannot parse the {}'s reply: {source}; client and daemon versions may differ",
        of.name
    )]
    Reply {
        /// The kind of daemon.
        of: &'static Socket,
        source: serde_json::Error,
    },
    /// The daemon refused the request.
    #[error(transparent)]
    Refused(#[from] RequestRefusal),
}

/// Time that the daemon has to take the request, and to reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of the daemon at a path.
#[derive(Clone, Debug)]
pub struct Client {
    of: &'static Socket,
    path: PathBuf,
}

impl Client {
    /// A client of the daemon `of`, which listens at `path`.
    #[must_use]
    pub const fn new(of: &'static Socket, path: PathBuf) -> Self {
        Self { of, path }
    }

    /// As [`ask`].
    ///
    /// # Errors
    /// When the daemon does not reply, or refuses.
    pub fn ask<Q: Serialize, T: DeserializeOwned>(&self, request: &Q) -> Result<T, Error> {
        ask(self.of, &self.path, request)
    }
}

/// Sends a request to the daemon at `path` and waits for the reply, 30 s at most.
///
/// # Errors
/// When the daemon does not reply, or refuses.
pub fn ask<Q: Serialize, T: DeserializeOwned>(
    of: &'static Socket,
    path: &Path,
    request: &Q,
) -> Result<T, Error> {
    ask_within(of, path, request, REPLY_TIMEOUT)
}

/// As [`ask`], with another time limit.
pub(super) fn ask_within<Q: Serialize, T: DeserializeOwned>(
    of: &'static Socket,
    path: &Path,
    request: &Q,
    timeout: Duration,
) -> Result<T, Error> {
    let stream = UnixStream::connect(path).map_err(|source| Error::Connect {
        of,
        path: path.to_owned(),
        source,
    })?;
    let unread = |source| Error::Reply { of, source };
    let mut line = Zeroizing::new(serde_json::to_vec(request).map_err(unread)?);
    line.push(b'\n');
    send(&stream, &line, timeout).map_err(|source| Error::Unsent {
        of,
        source: match source.kind() {
            _ if is_timeout(&source) => {
                io::Error::new(ErrorKind::TimedOut, "it does not read the request")
            }
            ErrorKind::BrokenPipe => io::Error::new(
                ErrorKind::BrokenPipe,
                format!("it closed the connection: {}", of.access.rule()),
            ),
            _ => source,
        },
    })?;
    let reply = match receive(&stream, timeout) {
        Ok(reply) if reply.is_empty() => return Err(Error::Closed { of }),
        Ok(reply) => Zeroizing::new(reply),
        Err(error) if is_timeout(&error) => {
            return Err(Error::Silent { of, timeout });
        }
        Err(source) => return Err(Error::Unanswered { of, source }),
    };
    match serde_json::from_str(&reply).map_err(unread)? {
        Reply::Ok(value) => Ok(value),
        Reply::Error(refusal) => Err(Error::Refused(refusal)),
    }
}

/// Whether `SO_RCVTIMEO` or `SO_SNDTIMEO` has expired: EAGAIN (socket(7)).
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn send(mut stream: &UnixStream, line: &[u8], timeout: Duration) -> io::Result<()> {
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(line)
}

/// The line of the reply; empty where the daemon has closed the connection.
fn receive(stream: &UnixStream, timeout: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(timeout))?;
    let mut reply = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut reply)?;
    Ok(reply)
}
