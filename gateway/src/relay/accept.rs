//! The accept loop: accepts on one thread, counts and limits connections, and gives each to the
//! thread with the fewest.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Shared,
    config::Limits,
    connection::{refuse, serve},
};

/// Pause after a failed accept: its usual cause, too many open files, does not end at once.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts on thread `n` until the listener is stopped, and then the rest of the accept queue.
pub(super) async fn accept(
    n: usize,
    socket: TcpListener,
    local: SocketAddr,
    mut stopped: watch::Receiver<()>,
    shared: Arc<Shared>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            // No value is ever sent.
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((client, from)) => begin(n, client, (from, local), &shared),
            Err(error) => {
                not_accepted(&error, &shared);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while let Ok(Ok((client, from))) = timeout(Duration::ZERO, socket.accept()).await {
        begin(n, client, (from, local), &shared);
    }
}

fn not_accepted(error: &io::Error, shared: &Shared) {
    shared.counters.accept_failures.inc();
    tracing::warn!(%error, "cannot accept a connection");
}

fn begin(n: usize, client: TcpStream, ends: (SocketAddr, SocketAddr), shared: &Arc<Shared>) {
    shared.counters.accepted.inc();
    let config = shared.config();
    let Limits {
        connections,
        per_source,
        ..
    } = config.limits;
    let counted = if config.is_proxy(ends.0.ip()) {
        shared.connections.take_of_proxy(connections)
    } else {
        let source = ends.0.ip();
        shared.connections.take(source, connections, per_source)
    };
    let counted = match counted {
        Ok(counted) => counted,
        Err(full) => return refuse(ends.0, &full.into(), shared),
    };
    let (chosen, busy) = shared.threads.take(n);
    let shared = Arc::clone(shared);
    if chosen == n {
        tokio::spawn(serve(client, ends, (counted, busy), config, shared));
        return;
    }
    // The socket moves to the runtime of another thread.
    match client.into_std() {
        Ok(client) => {
            let there = shared.threads.runtime(chosen).clone();
            there.spawn(async move {
                match TcpStream::from_std(client) {
                    Ok(client) => serve(client, ends, (counted, busy), config, shared).await,
                    Err(error) => not_accepted(&error, &shared),
                }
            });
        }
        Err(error) => not_accepted(&error, &shared),
    }
}
