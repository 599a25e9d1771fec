//! The HTTP server of a daemon: `GET /metrics` for Prometheus and `GET /health` for load balancers.
//!
//! One request a connection. A connection has ten seconds, and eight are served at once, so that
//! slow clients cost a daemon nothing.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Sleep, sleep},
};

use crate::Health;

/// Connections that are served at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 8;
/// Lifetime of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, such as one without a free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Content type of the metrics (OpenMetrics 1.0, section "Text format").
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The address is not free, or is none of this machine.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}; write another {setting}")]
pub struct Error {
    address: SocketAddr,
    /// The configuration key of the address.
    setting: &'static str,
    source: io::Error,
}

/// A running server; it ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    configured: SocketAddr,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on `address` and serves. `setting` is the configuration key of the address, for the
    /// error. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        setting: &'static str,
        registry: Arc<Registry>,
        health: Health,
    ) -> Result<Self, Error> {
        let failed = |source| Error {
            address,
            setting,
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        tracing::info!(address = %bound, "serving metrics and health over HTTP");
        let listener = LimitedListener {
            listener,
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        };
        let router = router(registry, health);
        let task = tokio::spawn(async move {
            // axum::serve never returns.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            configured: address,
            address: bound,
            task,
        })
    }

    /// The address as given to [`bind`](Self::bind); its port may be 0.
    #[must_use]
    pub const fn configured(&self) -> SocketAddr {
        self.configured
    }

    /// The address with the port in use.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(registry: Arc<Registry>, health: Health) -> Router {
    Router::new()
        .route("/metrics", get(metrics).with_state(registry))
        .route("/health", get(check).with_state(health))
        .fallback(async || (StatusCode::NOT_FOUND, "see /metrics and /health\n"))
        .layer(map_response(async |mut response: Response| {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            response
        }))
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot encode the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn check(State(health): State<Health>) -> (StatusCode, String) {
    match health.check() {
        Ok(state) => (StatusCode::OK, format!("{state}\n")),
        Err(state) => (StatusCode::SERVICE_UNAVAILABLE, format!("{state}\n")),
    }
}

/// A listener whose connections are limited in number and lifetime.
struct LimitedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Listener for LimitedListener {
    type Io = LimitedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (LimitedStream, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                std::future::pending::<()>().await;
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let stream = LimitedStream {
                        stream,
                        deadline: Box::pin(sleep(CONNECTION_TIMEOUT)),
                        _permit: permit,
                    };
                    return (stream, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails with `TimedOut` after its lifetime.
struct LimitedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl LimitedStream {
    fn expire<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.deadline
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for LimitedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => self.expire(cx),
            ready => ready,
        }
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Pending => self.expire(cx),
            ready => ready,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
