//! Connects over TCP to the first address that answers, as a [`Race`] decides.

use std::{io, net::SocketAddr};

use gateway_client::{
    dial::{AttemptId, Race, RaceAction},
    pool::{Failure, Report},
};
use tokio::{net::TcpStream, task::JoinSet, time::sleep_until};

const ANSWERED: Report = Report::Answered {
    load: None,
    draining: false,
};

/// Does what a race decides, and reports each result; `tried` gets the addresses. The connection
/// has `TCP_NODELAY`.
///
/// # Errors
/// The last error, when no address answers.
pub async fn dial(
    mut race: Race,
    tried: &mut Vec<SocketAddr>,
    report: &impl Fn(SocketAddr, Report),
) -> io::Result<(TcpStream, SocketAddr)> {
    let begun = tokio::time::Instant::now();
    let mut error = io::ErrorKind::AddrNotAvailable.into();
    // Its drop ends the attempts.
    let mut attempts = JoinSet::new();
    loop {
        while let Some(action) = race.poll(begun.elapsed()) {
            match action {
                RaceAction::Connect { attempt, address } => {
                    tried.push(address);
                    attempts.spawn(connect(attempt, address));
                }
                RaceAction::Expire { address, .. } => {
                    error = io::ErrorKind::TimedOut.into();
                    tracing::debug!(%address, "an address does not answer");
                    report(address, Report::Failed(Failure::Silent));
                }
            }
        }
        let Some(deadline) = race.next_deadline() else {
            return Err(error);
        };
        let (attempt, address, connected) = tokio::select! {
            Some(joined) = attempts.join_next() => joined.map_err(io::Error::other)?,
            () = sleep_until(begun + deadline) => continue,
        };
        match connected {
            Ok(stream) => {
                // An attempt that expired in this moment was reported as a failure.
                if race.connected(attempt, begun.elapsed()).is_none() {
                    continue;
                }
                report(address, ANSWERED);
                for slow in race.finish(begun.elapsed()) {
                    report(slow, Report::Failed(Failure::Silent));
                }
                // It fails only if the connection is closed already.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return Ok((stream, address));
            }
            Err(source) => {
                tracing::debug!(%address, error = %source, "cannot connect to an address");
                race.failed(attempt, begun.elapsed());
                report(address, Report::Failed(Failure::Unreachable));
                error = source;
            }
        }
    }
}

async fn connect(
    attempt: AttemptId,
    address: SocketAddr,
) -> (AttemptId, SocketAddr, io::Result<TcpStream>) {
    (attempt, address, TcpStream::connect(address).await)
}
