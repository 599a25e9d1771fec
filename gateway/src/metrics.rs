//! Serves metrics to Prometheus: `GET /metrics`, and nothing else, one request a connection.

use std::{io, sync::Arc, time::Duration};

use prometheus_client::{encoding::text, registry::Registry};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Clients at once; more wait.
const MAX_CLIENTS: usize = 8;
/// Longest request, bytes.
const MAX_REQUEST: usize = 8 << 10;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The format (OpenMetrics 1.0, section "Text format").
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let registry = Arc::clone(&registry);
                tokio::spawn(async move {
                    match timeout(PATIENCE, client(stream, &registry)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "a metrics client went away"),
                        Err(_) => tracing::debug!("a metrics client was too slow"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() >= MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics")) => {
            let mut body = String::new();
            text::encode(&mut body, registry).map_err(io::Error::other)?;
            ("200 OK", body)
        }
        (Some(b"GET"), _) => ("404 Not Found", "see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET /metrics\n".to_owned()),
    };
    let kind = if status.starts_with("200") {
        FORMAT
    } else {
        "text/plain"
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
