//! Asks a running daemon.

use std::{
    io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{MAX_LINE, Refusal, Reply, Socket};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no {} answers at {}: {source}; is it running (`systemctl status causeway-{}`), and is --socket right?", of.name, path.display(), of.name)]
    Connect {
        /// Of which daemon.
        of: &'static Socket,
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It could not be asked.
    #[error("asking the {}: {source}; the request was not sent whole: ask again", of.name)]
    Unsent {
        /// Which daemon.
        of: &'static Socket,
        /// Why.
        source: io::Error,
    },
    /// It was asked, and has not answered in time. It may be doing what it was asked, or do it yet.
    #[error("the {} has not answered for {} s, and may still carry out what it was asked: look with `causeway-{} status` before asking again", of.name, patience.as_secs_f64(), of.name)]
    Silent {
        /// Which daemon.
        of: &'static Socket,
        /// How long it was waited for.
        patience: Duration,
    },
    /// It was asked, and the conversation broke before the answer.
    #[error("waiting for the answer of the {}: {source}; what it was asked may have been carried out: look with `causeway-{} status` before asking again", of.name, of.name)]
    Unanswered {
        /// Which daemon.
        of: &'static Socket,
        /// Why.
        source: io::Error,
    },
    /// It closed the connection without an answer.
    #[error("the {} closed the connection without an answer: {}; if it was being stopped it may have carried out what it was asked: look with `causeway-{} status` before asking again", of.name, of.who.rule(), of.name)]
    Closed {
        /// Which daemon.
        of: &'static Socket,
    },
    /// The reply was none.
    #[error("the {} answered something else: {source}; is it of another version?", of.name)]
    Reply {
        /// Of which daemon.
        of: &'static Socket,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// How long the daemon may take the request, and how long to answer it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the daemon at `path`.
///
/// # Errors
/// When it does not answer, or refuses.
pub fn ask<Q: Serialize, T: DeserializeOwned>(
    of: &'static Socket,
    path: &Path,
    request: &Q,
) -> Result<T, Error> {
    ask_within(of, path, request, PATIENCE)
}

/// As [`ask`], with another patience.
pub(super) fn ask_within<Q: Serialize, T: DeserializeOwned>(
    of: &'static Socket,
    path: &Path,
    request: &Q,
    patience: Duration,
) -> Result<T, Error> {
    let stream = UnixStream::connect(path).map_err(|source| Error::Connect {
        of,
        path: path.to_owned(),
        source,
    })?;
    let unread = |source| Error::Reply { of, source };
    let mut line = serde_json::to_vec(request).map_err(unread)?;
    line.push(b'\n');
    send(&stream, &line, patience).map_err(|source| Error::Unsent {
        of,
        source: match source.kind() {
            _ if is_timeout(&source) => {
                io::Error::new(ErrorKind::TimedOut, "it does not take the request")
            }
            ErrorKind::BrokenPipe => io::Error::new(
                ErrorKind::BrokenPipe,
                format!("it closed the connection: {}", of.who.rule()),
            ),
            _ => source,
        },
    })?;
    let reply = match receive(&stream, patience) {
        Ok(reply) if reply.is_empty() => return Err(Error::Closed { of }),
        Ok(reply) => reply,
        Err(error) if is_timeout(&error) => {
            return Err(Error::Silent { of, patience });
        }
        Err(source) => return Err(Error::Unanswered { of, source }),
    };
    match serde_json::from_str(&reply).map_err(unread)? {
        Reply::Ok(value) => Ok(value),
        Reply::Error(refusal) => Err(Error::Refused(refusal)),
    }
}

/// Whether it is what `SO_RCVTIMEO` and `SO_SNDTIMEO` end in: EAGAIN (socket(7)).
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn send(mut stream: &UnixStream, line: &[u8], patience: Duration) -> io::Result<()> {
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(line)
}

/// The reply; empty: there is none, the other end has closed.
fn receive(stream: &UnixStream, patience: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(patience))?;
    let mut reply = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut reply)?;
    Ok(reply)
}
