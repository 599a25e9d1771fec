//! The daemon's side of the control socket.

use std::{
    convert::Infallible,
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
    task::JoinHandle,
    time::timeout,
};

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{Reply, RequestRefusal, Socket};

/// Clients that are served at once; more wait.
const MAX_CLIENTS: usize = 16;
/// Time that a client has to send a request, and to read its reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that replies have to reach their clients when the daemon ends.
const LAST_REPLIES: Duration = Duration::from_secs(1);

/// A request and its way back.
pub type Call<Q, T> = (Q, Responder<T>);

/// Sends the reply to one request, at once or later, from any thread. Dropped without a reply, the
/// client is told that the daemon is stopping.
#[derive(Debug)]
pub struct Responder<T>(oneshot::Sender<Reply<T>>);

impl<T> Responder<T> {
    /// Sends the reply. A client that has closed its connection is ignored.
    pub fn send(self, reply: impl Into<Reply<T>>) {
        let _ = self.0.send(reply.into());
    }
}

/// A control socket that is listened on. The runtime serves it, and removes it at the end.
#[derive(Debug)]
pub struct Control {
    of: &'static Socket,
    listener: UnixListener,
    path: SocketPath,
}

impl Control {
    /// As [`bind`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn bind(of: &'static Socket, path: &Path) -> Result<Self, Error> {
        let listener = bind(of, path)?;
        let path = SocketPath(path.to_owned());
        Ok(Self { of, listener, path })
    }

    /// As [`serve`], until [`Server::finish`].
    pub(crate) fn serve<Q, T>(self, calls: mpsc::Sender<Call<Q, T>>) -> Server
    where
        Q: DeserializeOwned + Send + 'static,
        T: Serialize + Send + 'static,
    {
        let (busy, idle) = mpsc::channel(1);
        Server {
            task: tokio::spawn(serve(self.of, self.listener, calls, busy)),
            idle,
            path: self.path,
        }
    }
}

/// A control socket that is served.
#[derive(Debug)]
pub(crate) struct Server {
    task: JoinHandle<()>,
    /// Closed once no request is being answered.
    idle: mpsc::Receiver<Infallible>,
    path: SocketPath,
}

impl Server {
    /// Accepts no more clients, waits a second at most until replies that were sent have reached
    /// their clients, and removes the socket.
    pub async fn finish(mut self) {
        self.task.abort();
        // The sender that the task holds goes with it; each request that is being answered has one.
        let _ = timeout(LAST_REPLIES, self.idle.recv()).await;
        drop(self.path);
    }
}

/// Removes the socket from the file system when it is dropped.
#[derive(Debug)]
pub(crate) struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "cannot remove the control socket");
        }
    }
}

/// Why the socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process answers there.
    #[error(
        "{} is already running: it answers at {}; stop it first, or give this one another {}",
        of.one,
        path.display(),
        of.setting
    )]
    Running {
        of: &'static Socket,
        /// The path of the socket.
        path: PathBuf,
    },
    /// The path is taken by something that is no socket.
    #[error("{} exists and is not a socket; move it away", path.display())]
    NotASocket { path: PathBuf },
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// The operation, as in "listen on".
        operation: &'static str,
        /// The file.
        path: PathBuf,
        source: io::Error,
    },
}

/// Listens on the socket at `path`. A socket without a process is replaced; one that a process
/// answers at is left alone. Needs a tokio runtime.
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
            fs::remove_file(path).map_err(failed("remove the stale socket"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed("inspect")(source)),
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed("create the directory of"))?;
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(failed("set the permissions of"))?;
    Ok(listener)
}

/// Serves clients until the task is aborted. A copy of `busy` exists as long as a request is being
/// answered.
pub(super) async fn serve<Q, T>(
    of: &'static Socket,
    listener: UnixListener,
    calls: mpsc::Sender<Call<Q, T>>,
    busy: mpsc::Sender<Infallible>,
) where
    Q: DeserializeOwned + Send + 'static,
    T: Serialize + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (calls, busy) = (calls.clone(), busy.downgrade());
                tokio::spawn(async move {
                    if let Err(error) = client(of, stream, calls, busy).await {
                        tracing::debug!(%error, "a control client closed its connection");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client<Q: DeserializeOwned, T: Serialize>(
    of: &Socket,
    stream: UnixStream,
    calls: mpsc::Sender<Call<Q, T>>,
    busy: mpsc::WeakSender<Infallible>,
) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if !of.access.includes(uid) {
        tracing::warn!(uid, "control connection refused: {}", of.access.rule());
        return Ok(());
    }
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(of.max_request));
    loop {
        // Bytes that are not UTF-8 get an answer, too. Requests and replies may have keys.
        let mut line = Zeroizing::new(Vec::new());
        if timeout(CLIENT_TIMEOUT, lines.read_until(b'\n', &mut line)).await?? == 0 {
            return Ok(());
        }
        lines.get_mut().set_limit(of.max_request);
        let _busy = busy.upgrade();
        let reply = match serde_json::from_slice(&line) {
            Ok(request) => answer(of, &calls, request).await,
            Err(error) => Reply::Error(RequestRefusal::new(
                "bad-request",
                format!("cannot parse the request: {error}; client and daemon versions may differ"),
            )),
        };
        let mut bytes = Zeroizing::new(serde_json::to_vec(&reply)?);
        bytes.push(b'\n');
        timeout(CLIENT_TIMEOUT, write.write_all(&bytes)).await??;
    }
}

async fn answer<Q, T>(of: &Socket, calls: &mpsc::Sender<Call<Q, T>>, request: Q) -> Reply<T> {
    let stopping = || {
        let message = format!("the {} is stopping", of.name);
        Reply::Error(RequestRefusal::new("internal", message))
    };
    let (sender, receiver) = oneshot::channel();
    if calls.send((request, Responder(sender))).await.is_err() {
        return stopping();
    }
    receiver.await.unwrap_or_else(|_| stopping())
}
