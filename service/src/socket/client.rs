//! Asks a running daemon.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
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
    /// The conversation broke.
    #[error("talking to the {}: {source}", of.name)]
    Io {
        /// With which daemon.
        of: &'static Socket,
        /// Why.
        source: io::Error,
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

/// Asks the daemon at `path`.
///
/// # Errors
/// When it does not answer, or refuses.
pub fn ask<Q: Serialize, T: DeserializeOwned>(
    of: &'static Socket,
    path: &Path,
    request: &Q,
) -> Result<T, Error> {
    let stream = UnixStream::connect(path).map_err(|source| Error::Connect {
        of,
        path: path.to_owned(),
        source,
    })?;
    let unread = |source| Error::Reply { of, source };
    let line = serde_json::to_vec(request).map_err(unread)?;
    let reply = exchange(of, stream, line).map_err(|source| Error::Io { of, source })?;
    match serde_json::from_str(&reply).map_err(unread)? {
        Reply::Ok(value) => Ok(value),
        Reply::Error(refusal) => Err(Error::Refused(refusal)),
    }
}

fn exchange(of: &Socket, mut stream: UnixStream, mut line: Vec<u8>) -> io::Result<String> {
    let patience = Some(Duration::from_secs(30));
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut reply)?;
    if reply.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the {} closed the connection: {}", of.name, of.who.rule()),
        ));
    }
    Ok(reply)
}
