//! Listens on the control socket.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{Refusal, Reply, Socket};

/// Clients at once; more wait.
const MAX_CLIENTS: usize = 16;
/// How long a client may take to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request and where its reply goes.
pub type Call<Q, T> = (Q, oneshot::Sender<Reply<T>>);

/// Why the socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process answers there.
    #[error("{} is already running: it answers at {}; stop it first, or give this one another {}", of.one, path.display(), of.setting)]
    Running {
        /// Of which daemon.
        of: &'static Socket,
        /// The socket.
        path: PathBuf,
    },
    /// Something else is in its place.
    #[error("{} is there and is not a socket; move it away", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Takes the socket at `path`: a dead one is replaced, a live one is not.
///
/// # Errors
/// [`Error`].
pub fn bind(of: &'static Socket, path: &Path) -> Result<UnixListener, Error> {
    let failed = |operation| {
        move |source| Error::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(Error::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(Error::Running {
                    of,
                    path: path.to_owned(),
                });
            }
            fs::remove_file(path).map_err(failed("replace the dead socket"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed("look at")(source)),
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
    Ok(listener)
}

/// Serves until the receiver of `calls` is gone.
pub async fn serve<Q, T>(
    of: &'static Socket,
    listener: UnixListener,
    calls: mpsc::Sender<Call<Q, T>>,
) where
    Q: DeserializeOwned + Send + 'static,
    T: Serialize + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let calls = calls.clone();
                tokio::spawn(async move {
                    if let Err(error) = client(of, stream, calls).await {
                        tracing::debug!(%error, "a control client went away");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client<Q: DeserializeOwned, T: Serialize>(
    of: &Socket,
    stream: UnixStream,
    calls: mpsc::Sender<Call<Q, T>>,
) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if !of.who.includes(uid) {
        tracing::warn!(uid, "control socket: refused, {}", of.who.others());
        return Ok(());
    }
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(of.max_request));
    loop {
        let mut line = String::new();
        if timeout(PATIENCE, lines.read_line(&mut line)).await?? == 0 {
            return Ok(());
        }
        lines.get_mut().set_limit(of.max_request);
        let reply = match serde_json::from_str(&line) {
            Ok(request) => answer(of, &calls, request).await,
            Err(error) => Reply::Error(Refusal::new(
                "bad-request",
                format!("not a request of this version: {error}"),
            )),
        };
        let mut bytes = serde_json::to_vec(&reply)?;
        bytes.push(b'\n');
        timeout(PATIENCE, write.write_all(&bytes)).await??;
    }
}

async fn answer<Q, T>(of: &Socket, calls: &mpsc::Sender<Call<Q, T>>, request: Q) -> Reply<T> {
    let stopping = || {
        let what = format!("the {} is stopping", of.name);
        Reply::Error(Refusal::new("internal", what))
    };
    let (sender, receiver) = oneshot::channel();
    if calls.send((request, sender)).await.is_err() {
        return stopping();
    }
    receiver.await.unwrap_or_else(|_| stopping())
}
