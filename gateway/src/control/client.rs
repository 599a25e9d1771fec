//! Asks a running gateway.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{MAX_LINE, Refusal, Reply, Request, Status};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no gateway answers at {}: {source}; is it running (`systemctl status causeway-gateway`), and is --socket right?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The conversation broke.
    #[error("talking to the gateway: {0}")]
    Io(#[from] io::Error),
    /// The reply was none.
    #[error("the gateway answered something else: {0}; is it of another version?")]
    Reply(#[from] serde_json::Error),
    /// It refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Asks the gateway at `socket`.
///
/// # Errors
/// When it does not answer, or refuses.
pub fn ask(socket: &Path, request: Request) -> Result<Status, Error> {
    let connect = |source| Error::Connect {
        path: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(connect)?;
    let patience = Some(Duration::from_secs(30));
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut reply)?;
    if reply.is_empty() {
        return Err(Error::Io(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the gateway closed the connection: only root and whoever runs it may ask",
        )));
    }
    match serde_json::from_str(&reply)? {
        Reply::Ok(status) => Ok(*status),
        Reply::Error(refusal) => Err(Error::Refused(refusal)),
    }
}
