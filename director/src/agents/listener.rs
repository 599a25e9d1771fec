//! The listener of agents: TLS 1.3 by certificates, and HTTP/2.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent_protocol::{MAX_FROM_AGENT, agents_server::AgentsServer};
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use service::restore::UntilRestore;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use super::{
    authority::{self, shown},
    service::{AgentPeer, Service},
    settings::Settings,
    shared::{Agents, MAX_OF_MACHINE, OfMachine},
};
use crate::{
    Director,
    machines::machine_key,
    source::network,
    tls::{Admitted, Limits},
};

/// Longest connection of a machine without a certificate, from the accept on: the handshake, and
/// the enrolment, after which it connects again. Connections come through gateways, too, where they
/// count for the tenant after `relay.trial_time` (docs/gateway.md): this is less.
const STRANGER_TIME: Duration = Duration::from_secs(8);
/// Longest time that a connection has no stream: before the first, and after the last.
const WITHOUT_STREAM: Duration = Duration::from_secs(60);
/// Interval at which connections without a stream are looked for.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);
/// Connections at once. Those of appliances come from the addresses of gateways, so that there is
/// no other limit for an address.
const MAX_CONNECTIONS: usize = 16_384;
/// Time after which a silent connection is asked for a sign of life, and time for the answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Streams of a connection at once: one for good, and renewals.
const MAX_STREAMS: u32 = 4;
/// Window of a stream and of a connection, bytes.
const WINDOW: u32 = 64 << 10;
/// Time before connections are accepted again when the kernel refuses.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The listener cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The authority cannot be used.
    #[error(transparent)]
    Authority(#[from] authority::Error),
    /// The address cannot be used.
    #[error("cannot listen on {address}: {source}; write another agents.listen")]
    Listen {
        address: SocketAddr,
        /// The error of the kernel.
        source: std::io::Error,
    },
}

/// Opens the listener of a director, which has none yet: its address, and the task that serves it
/// until it is aborted.
///
/// # Errors
/// [`Error`].
pub async fn start(
    director: &Arc<Director>,
    settings: Settings,
) -> Result<(SocketAddr, JoinHandle<()>), Error> {
    let agents = Arc::new(Agents::load(director, settings).await?);
    let listener = bind(agents.settings.listen).await?;
    let address = listener.local_addr().unwrap_or(agents.settings.listen);
    let named = agents.named();
    tracing::info!(%address, authority = %named.authority, "serving agents");
    // The first one stays.
    let _ = director.agent_listener.set(named);
    Ok((
        address,
        tokio::spawn(serve(listener, Arc::clone(director), agents)),
    ))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| Error::Listen { address, source })
}

/// Serves agents on a listener. Ends only when it is aborted.
async fn serve(listener: TcpListener, director: Arc<Director>, agents: Arc<Agents>) {
    let limits = Arc::new(Limits::new(MAX_CONNECTIONS, MAX_CONNECTIONS));
    let restores = director.environment.restores();
    let service = AgentsServer::new(Service {
        director,
        agents: Arc::clone(&agents),
    });
    let service = service.max_decoding_message_size(MAX_FROM_AGENT);
    let router = tonic::service::Routes::new(service).into_axum_router();
    // Its drop ends the connections.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of an agent");
                sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        let everywhere = IpAddr::from([0, 0, 0, 0]);
        let Some(admitted) = Admitted::new(&limits, everywhere) else {
            let text = "there are too many connections of agents";
            agents.strangers.warn(from.ip(), text);
            continue;
        };
        let (router, agents) = (router.clone(), Arc::clone(&agents));
        let deadline = StrangerDeadline::from_now();
        // A stream carries small messages that are to arrive at once.
        let _ = stream.set_nodelay(true);
        let stream = UntilRestore::new(stream, &restores);
        connections.spawn(async move {
            let _admitted = admitted;
            connection(stream, from, router, (&agents, deadline)).await;
        });
    }
}

/// When a connection ends whose machine has shown no certificate.
#[derive(Clone, Copy, Debug)]
struct StrangerDeadline(Instant);

impl StrangerDeadline {
    /// Of a connection that was accepted now.
    fn from_now() -> Self {
        Self(Instant::now() + STRANGER_TIME)
    }

    /// The result of a handshake, or `None` at the deadline.
    async fn handshake<T>(self, handshake: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.0, handshake).await.ok()
    }

    /// Waits for the deadline.
    async fn passed(self) {
        sleep_until(self.0).await;
    }
}

async fn connection(
    stream: UntilRestore<TcpStream>,
    from: SocketAddr,
    router: Router,
    (agents, deadline): (&Agents, StrangerDeadline),
) {
    let config = match agents.trusted.config() {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "cannot renew the director's certificate");
            return;
        }
    };
    let source = network(from.ip());
    let Some(handshake) = Admitted::new(&agents.handshakes, source) else {
        let text = "there are too many handshakes";
        agents.strangers.warn(from.ip(), text);
        return;
    };
    let handshaken = deadline.handshake(TlsAcceptor::from(config).accept(stream));
    let stream = match handshaken.await {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => {
            let text = format!("the TLS handshake fails: {error}");
            agents.strangers.warn(from.ip(), &text);
            return;
        }
        None => {
            tracing::debug!(%from, "handshake took too long");
            return;
        }
    };
    drop(handshake);
    let certificate = shown(stream.get_ref().1.peer_certificates());
    let machine = certificate.as_ref();
    let machine = machine.and_then(|known| machine_key(known.name.machine()));
    let (mut first, mut connected) = (None, None);
    match &machine {
        None => {
            first = Admitted::new(&agents.first_contacts, source);
            if first.is_none() {
                let text = "there are too many without a certificate";
                agents.strangers.warn(from.ip(), text);
                return;
            }
        }
        Some(key) => {
            connected = OfMachine::enter(agents, key);
            if connected.is_none() {
                let text = format!("{key}: it has {MAX_OF_MACHINE} connections");
                agents.refusals.warn(from.ip(), &text);
                return;
            }
        }
    }
    let streams = Arc::new(AtomicUsize::new(0));
    let peer = AgentPeer {
        address: from,
        certificate,
        streams: Arc::clone(&streams),
    };
    let router = router.layer(axum::Extension(peer));
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(16 << 10);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let ended = async {
        match &first {
            Some(_) => deadline.passed().await,
            None => without_stream(&streams).await,
        }
    };
    let served = tokio::select! {
        served = served => served,
        () = ended => Ok(()),
    };
    if let Err(error) = served {
        tracing::debug!(%from, %error, "connection of an agent ended");
    }
    drop(connected);
}

/// Waits until a connection has had no stream for some time: also one of which the preface of
/// HTTP/2 does not come.
async fn without_stream(streams: &AtomicUsize) {
    let mut idle = Duration::ZERO;
    while idle < WITHOUT_STREAM {
        sleep(IDLE_INTERVAL).await;
        idle = match streams.load(Ordering::Relaxed) {
            0 => idle + IDLE_INTERVAL,
            _ => Duration::ZERO,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls;

    #[tokio::test(start_paused = true)]
    async fn one_deadline_covers_the_handshake_and_the_connection_of_a_stranger() {
        let accepted = Instant::now();
        let deadline = StrangerDeadline::from_now();
        let slow = deadline.handshake(sleep(STRANGER_TIME - Duration::from_millis(1)));
        assert_eq!(slow.await, Some(()));
        deadline.passed().await;
        assert_eq!(accepted.elapsed(), STRANGER_TIME);

        let accepted = Instant::now();
        let silent = StrangerDeadline::from_now().handshake(std::future::pending::<()>());
        assert_eq!(silent.await, None);
        assert_eq!(accepted.elapsed(), STRANGER_TIME);
    }

    #[test]
    fn strangers_are_gone_before_a_gateway_counts_them_for_the_tenant() {
        let page = include_str!("../../../docs/gateway.md");
        let mut lines = page.lines();
        let trial = lines.find_map(|line| line.strip_prefix("trial_time = "));
        let trial = trial.and_then(|rest| rest.split_whitespace().next());
        let trial: u64 = trial.expect("the default").parse().expect("seconds");
        let trial = Duration::from_secs(trial);
        assert!(
            STRANGER_TIME + Duration::from_secs(1) < trial,
            "{STRANGER_TIME:?} of {trial:?}"
        );
    }

    #[test]
    fn the_unit_allows_as_many_files_as_there_may_be_connections() {
        let unit = include_str!("../../systemd/causeway-director.service");
        let limit = unit
            .lines()
            .find_map(|line| line.strip_prefix("LimitNOFILE="));
        let limit: usize = limit.expect("a limit").parse().expect("a number");
        let needed = MAX_CONNECTIONS + tls::MAX_CONNECTIONS;
        assert!(
            limit >= needed + 1000,
            "{limit} files for {needed} connections"
        );
    }
}
