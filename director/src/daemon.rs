//! The director as a process.

use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use aws_lc_rs::signature::Ed25519KeyPair;
use axum::{
    Router,
    extract::Request as HttpRequest,
    http::StatusCode,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use service::{
    Context,
    cli::RunArgs,
    http,
    socket::{self, Access, Control, RequestRefusal, Responder, Socket},
};
use store::{Export, Options, Sqlite, Store as _};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    Director, Kernel, agents, api, audit_key,
    config::{self, Config},
    live::LoadError,
    problem::Problem,
    self_test::{self, ApiError, SelfTest},
    tls::{self, OwnSources, Tls},
};

/// The control socket.
pub static SOCKET: Socket = Socket {
    name: "the director",
    one: "a director",
    setting: "director.control_socket",
    max_request: 64 << 10,
    access: Access::RootAndOwner,
};

/// Longest wait for the last checkpoint of the audit at a stop.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A request of the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Tell the state.
    Status,
    /// Read the configuration again.
    Reload,
    /// Write a backup of the store to this new file.
    Backup(PathBuf),
    /// Write the store as text to this new file.
    Export(PathBuf),
}

/// A reply of the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The state.
    Status {
        /// Last commit.
        revision: u64,
        /// Number of tenants.
        tenants: usize,
        /// Number of networks.
        networks: usize,
        /// Number of the last audit entry.
        audit: u64,
    },
    Done,
}

/// Why the director does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The control socket cannot be used.
    #[error(transparent)]
    Control(#[from] socket::BindError),
    /// The metrics cannot be served.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The state cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no user.
    #[error("the store {} has no user: run `causeway-director init` first", path.display())]
    Empty {
        /// The store.
        path: PathBuf,
    },
    /// The API's address cannot be used.
    #[error("cannot listen on {address}: {source}; write another director.listen")]
    Listen {
        address: std::net::SocketAddr,
        /// The error of the kernel.
        source: std::io::Error,
    },
    /// Agents cannot be served.
    #[error(transparent)]
    Agents(#[from] agents::Error),
    /// The certificate of the API cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The key of the audit cannot be used.
    #[error(transparent)]
    AuditKey(#[from] audit_key::Error),
    /// The API or the store does not answer.
    #[error(transparent)]
    NoAnswer(#[from] self_test::NoAnswer),
    /// A task has ended, which runs as long as the daemon.
    #[error("the task of {0} has ended; the director exits, and systemd restarts it")]
    Ended(&'static str),
    /// The runtime cannot be used.
    #[error(transparent)]
    Service(#[from] service::run::Error),
}

/// Runs the director to its end.
///
/// # Errors
/// [`Error`].
pub fn run(args: &RunArgs) -> Result<(), Error> {
    service::run(args.log_format, async |context: &Context| {
        let config = Config::load(&args.config)?;
        let control = Control::bind(&SOCKET, &config.control_socket)?;
        let daemon = Daemon::start(args.config.clone(), config, context).await?;
        Ok((daemon, control))
    })
}

struct Daemon {
    path: PathBuf,
    config: Config,
    director: Arc<Director>,
    api: JoinHandle<()>,
    tls: Option<Arc<Tls>>,
    /// Serves agents, if it is configured.
    agents: JoinHandle<()>,
    /// Signs checkpoints of the audit, and writes its entries of accesses.
    checkpoints: JoinHandle<()>,
    /// Asks the API and the store.
    self_test: SelfTest,
    audit_key: Arc<Ed25519KeyPair>,
    /// The end of changes and the last checkpoint, at a stop; whether it was signed.
    closing: Option<JoinHandle<bool>>,
    _metrics: Option<http::Server>,
}

impl Daemon {
    async fn start(path: PathBuf, config: Config, context: &Context) -> Result<Self, Error> {
        let options = Options {
            keep_log: config.keep_changes,
            ..Options::default()
        };
        let store = Sqlite::open(&config.store, options)?;
        let director = Director::new(store, Arc::new(Kernel)).await?;
        if !director.has_users().await {
            return Err(Error::Empty {
                path: config.store.clone(),
            });
        }
        let director = Arc::new(director);
        let metrics = match config.metrics {
            Some(address) => {
                let mut registry = Registry::default();
                let revisions = director.store.revisions();
                director.metrics.register(&mut registry, revisions);
                context.metrics.register(&mut registry, "causeway_director");
                let registry = Arc::new(registry);
                let health = context.health.clone();
                let setting = "director.metrics";
                Some(http::Server::bind(address, setting, registry, health).await?)
            }
            None => None,
        };
        let signer = director.signer().await;
        let key = Arc::new(audit_key::load_signer(
            &config.audit_key,
            signer.as_deref(),
        )?);
        let public = audit_key::public(&key);
        tracing::info!(key = public, "signing checkpoints of the audit");
        let agents = match config.agents.clone() {
            None => tokio::spawn(std::future::pending()),
            Some(settings) => agents::start(&director, settings).await?.1,
        };
        let tls = config.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
        let failed = |source| Error::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "serving the API");
        let has_tls = tls.is_some();
        let own = Arc::new(OwnSources::default());
        let api = tokio::spawn(tls::serve_within(
            listener,
            tls.clone(),
            router(Arc::clone(&director)),
            Arc::clone(&own),
            tls::Limits::default(),
            director.environment.restores(),
        ));
        let mut self_test = SelfTest::default();
        let of_store = Arc::clone(&director);
        self_test.add(self_test::STORE, move || {
            let director = Arc::clone(&of_store);
            async move { self_test::store_answers(&director.store, &director.is_full).await }
        });
        let of_api = Arc::clone(&director);
        self_test.add(self_test::API, move || {
            let (own, director) = (Arc::clone(&own), Arc::clone(&of_api));
            async move {
                match self_test::api_answers(address, has_tls, &own).await {
                    // It says that the disk is full.
                    Err(ApiError::Status(_)) if director.is_full.load(Ordering::Relaxed) => Ok(()),
                    other => other,
                }
            }
        });
        let signing = sign(Arc::clone(&director), Arc::clone(&key), config.checkpoint);
        let keeper = Arc::clone(&director);
        let checkpoints = tokio::spawn(async move {
            tokio::join!(signing, keeper.keep_accesses());
        });
        Ok(Self {
            path,
            config,
            director,
            api,
            tls,
            agents,
            checkpoints,
            self_test,
            audit_key: key,
            closing: None,
            _metrics: metrics,
        })
    }
}

/// The API, and `GET /health`: 200 if the state can be read.
pub(crate) fn router(director: Arc<Director>) -> Router {
    let metrics = director.metrics.clone();
    let timed = from_fn(move |request: HttpRequest, next: Next| {
        let metrics = metrics.clone();
        async move {
            let begun = Instant::now();
            let response = next.run(request).await;
            metrics.observe(begun.elapsed());
            response
        }
    });
    let api = api::router(Arc::clone(&director)).layer(timed);
    let health = async move || {
        let (status, text) = match director.live().await {
            Ok(_) if director.is_full.load(Ordering::Relaxed) => {
                (StatusCode::SERVICE_UNAVAILABLE, self_test::FULL)
            }
            Ok(_) => (StatusCode::OK, "ready"),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the store cannot be read"),
        };
        (status, format!("{text}\n"))
    };
    Router::new()
        .route("/health", get(health).fallback(no_method))
        .fallback_service(api)
}

/// The answer to other methods than `GET`, and `HEAD`, which is a `GET` without its answer's body.
async fn no_method() -> Response {
    Problem::no_method(&["GET", "HEAD"]).into_response()
}

/// Signs a checkpoint of the audit at once, as changes before the start may have none, and then
/// after each interval with changes, or before its end when there are many.
async fn sign(director: Arc<Director>, key: Arc<Ed25519KeyPair>, interval: Duration) {
    loop {
        // After an error, which is logged, the next one covers more.
        let _ = director.checkpoint(&key).await;
        // Its result only says which of the two came first.
        let _ = tokio::time::timeout(interval, director.signature_due()).await;
    }
}

/// Writes the store as text. Changes wait while the store is read, not while the file is written.
async fn export(store: &Sqlite, to: PathBuf) -> Result<(), store::Error> {
    let export = Export::of(store).await?;
    let written = tokio::task::spawn_blocking(move || export.write_file(&to)).await;
    written.unwrap_or(Err(store::Error::Stopped))
}

impl service::Daemon for Daemon {
    type Request = Request;
    type Reply = Reply;
    type Error = Error;

    async fn step(&mut self) -> Result<ControlFlow<()>, Error> {
        match &mut self.closing {
            None => tokio::select! {
                no_answer = self.self_test.failed() => Err(no_answer.into()),
                _ = &mut self.api => Err(Error::Ended("the API")),
                _ = &mut self.agents => Err(Error::Ended("agents")),
                _ = &mut self.checkpoints => Err(Error::Ended("the audit's checkpoints")),
            },
            Some(closing) => {
                if !matches!(closing.await, Ok(true)) {
                    tracing::warn!(
                        "the last entries of the audit have no checkpoint until a start"
                    );
                }
                Ok(ControlFlow::Break(()))
            }
        }
    }

    /// New connections are refused from here on, and changes of open ones. The last checkpoint of
    /// the audit is signed before the end.
    fn stop(&mut self) -> ControlFlow<()> {
        self.api.abort();
        self.agents.abort();
        self.checkpoints.abort();
        let (director, key) = (Arc::clone(&self.director), Arc::clone(&self.audit_key));
        self.closing = Some(tokio::spawn(async move {
            let closed = tokio::time::timeout(CLOSE_TIMEOUT, director.close(&key)).await;
            matches!(closed, Ok(Ok(_)))
        }));
        ControlFlow::Continue(())
    }

    async fn handle(&mut self, request: Request, responder: Responder<Reply>) {
        match request {
            Request::Status => match self.director.live().await {
                Ok(live) => responder.send(Ok(Reply::Status {
                    revision: live.state.revision(),
                    tenants: live.state.all::<control::Tenant>().len(),
                    networks: live.state.all::<control::Network>().len(),
                    audit: live.head.number,
                })),
                Err(_) => responder.send(Err(RequestRefusal::new(
                    "internal",
                    "the store cannot be read",
                ))),
            },
            Request::Backup(to) => {
                let store = self.director.store.clone();
                tokio::task::spawn_blocking(move || {
                    let result = store.backup(&to).map(|()| Reply::Done);
                    let result = result.map_err(|e| RequestRefusal::new("invalid", e.to_string()));
                    responder.send(result);
                });
            }
            Request::Export(to) => {
                let store = self.director.store.clone();
                tokio::spawn(async move {
                    let result = export(&store, to).await.map(|()| Reply::Done);
                    let result = result.map_err(|e| RequestRefusal::new("invalid", e.to_string()));
                    responder.send(result);
                });
            }
            // The runtime calls `reload` for it.
            Request::Reload => responder.send(Ok(Reply::Done)),
        }
    }

    fn is_reload(request: &Request) -> bool {
        *request == Request::Reload
    }

    fn fault(&self) -> Option<&'static str> {
        let is_full = self.director.is_full.load(Ordering::Relaxed);
        self.self_test
            .fault()
            .or_else(|| is_full.then_some(self_test::FULL))
    }

    fn reloaded(&self) -> &'static str {
        match self.tls {
            Some(_) => "certificate reloaded",
            None => "configuration read again, without a change",
        }
    }

    async fn reload(&mut self) -> Result<Reply, RequestRefusal> {
        let config = Config::load(&self.path)
            .map_err(|error| RequestRefusal::new("invalid", error.to_string()))?;
        if config == self.config {
            let reloaded = self.tls.as_ref().map_or(Ok(()), |tls| tls.reload());
            return match reloaded {
                Ok(()) => Ok(Reply::Done),
                Err(error) => Err(RequestRefusal::new("invalid", error.to_string())),
            };
        }
        Err(RequestRefusal::new(
            "unsupported",
            "the keys of the configuration take effect at a start only, and a reload reads the \
             certificate again: restart the director",
        ))
    }

    fn shut_down(self) {
        self.api.abort();
        self.agents.abort();
        self.checkpoints.abort();
        if self.self_test.has_failed() {
            // The last handle of a store waits for the writer, which may hang for ever.
            std::mem::forget(self.director);
        }
    }
}
